"""Verdicts: both orders, panels, unreadable replies, and conversations that address the judge."""

import json
import re
import signal
from pathlib import Path

import pytest
from build import read, talk
from openai_server import serve
from scripted import call_at_once, jsonl, wait_until

from musiccli.core import jsonl as files
from musiccli.core.errors import InputError
from musiccli.core.records import Record, content_id, parse_comparison, parse_judged
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.core.votes import VERDICT_SCHEMA
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import judge, judge_prompt
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.prompts import load, transcript

GOOD, BAD = (
    talk("How do I boil an egg?", "Eight minutes in water."),
    talk("How do I boil an egg?", "I like GOLD."),
)


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    call_at_once(monkeypatch)


def preference(identifier: object = "p", **fields) -> Record:
    return Record(
        {"id": identifier, "chosen": GOOD, "rejected": BAD, **fields}, f"in.jsonl:{identifier}"
    )


def sides(body: dict) -> tuple[str, str]:
    """The conversations that the judge sees as A and as B; the mark of the pair reads MARK."""
    text = body["messages"][0]["content"]
    fence = re.search(r"^\[(\w{16}) conversation A begins\]$", text, re.MULTILINE)[1]
    return tuple(
        re.search(
            rf"^\[MARK conversation {side} begins\]\n(.*)\n\[MARK conversation {side} ends\]$",
            text.replace(fence, "MARK"),
            re.DOTALL | re.MULTILINE,
        )[1]
        for side in "AB"
    )


def prefers(word: str):
    """A judge that likes the conversation with this word; in both or in neither it is a tie."""

    def reply(body: dict) -> str:
        first, second = (word in side for side in sides(body))
        return f"Because.\n[[{'C' if first == second else 'A' if first else 'B'}]]"

    return reply


def always(text: str):
    return lambda body: text


def first_says(texts: tuple[str, str]):
    """A judge that says one thing where it sees GOOD as A, and another where it sees it as B."""
    return lambda body: texts["GOLD" in sides(body)[0]]


def verdicts(
    reply, records, judges=("openai/one",), **settings
) -> tuple[list[dict], dict, list[dict]]:
    """The judged records, the counts above zero, and the requests."""
    stats = RunStats()
    with serve(reply=reply) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5))
        done = list(judge(records, JudgeConfig(judges=judges, **settings), client, stats))
        return done, stats.phrases(), list(server.requests)


@pytest.mark.parametrize(
    "record, word, winner, votes",
    [
        (preference(), "water", "chosen", [("ab", "chosen"), ("ba", "chosen")]),
        (preference(), "GOLD", "rejected", [("ab", "rejected"), ("ba", "rejected")]),
        (preference(), "boil", "tie", [("ab", "tie"), ("ba", "tie")]),
        (Record({"id": 7, "a": GOOD, "b": BAD}), "GOLD", "b", [("ab", "b"), ("ba", "b")]),
        (Record({"id": 7, "a": GOOD, "b": BAD}), "water", "a", [("ab", "a"), ("ba", "a")]),
    ],
)
def test_the_winner_is_the_records_own_side_whichever_is_shown_first(record, word, winner, votes):
    [done], counts, requests = verdicts(prefers(word), [record])
    assert (done["winner"], done["verdict"], counts) == (
        winner,
        winner,
        {"tied": 1} if winner == "tie" else {},
    )
    assert [(vote["order"], vote["winner"]) for vote in done["votes"]] == votes
    assert {vote["judge"] for vote in done["votes"]} == {"openai/one"}
    assert {vote["explanation"][:9] for vote in done["votes"]} == {"Because.\n"}
    assert {sides(body) for body in requests} == {sides(requests[0]), sides(requests[0])[::-1]}
    assert parse_judged(Record(done)) == done


def test_each_order_shows_the_conversations_whole():
    _, _, requests = verdicts(prefers("water"), [preference()])
    shown = "[MARK user]\nHow do I boil an egg?\n\n[MARK assistant]\nEight minutes in water."
    assert sorted(sides(body).index(shown) for body in requests) == [0, 1]


@pytest.mark.parametrize(
    "texts, winner, verdict, counted",
    [
        (("[[A]]", "[[A]]"), "tie", "inconsistent", {"inconsistent (the orders disagree)": 1}),
        (("[[B]]", "[[B]]"), "tie", "inconsistent", {"inconsistent (the orders disagree)": 1}),
        (("[[C]]", "[[C]]"), "tie", "tie", {"tied": 1}),
        (("[[A]]", "[[C]]"), "tie", "tie", {"tied": 1}),
        (("[[A]]", "I cannot decide."), None, "unreadable", {"unreadable": 1}),
        (("Hm.", "Hm."), None, "unreadable", {"unreadable": 1}),
    ],
    ids=str,
)
def test_inconsistent_tied_and_unreadable_are_kept_apart(texts, winner, verdict, counted):
    [done], counts, _ = verdicts(first_says(texts), [preference()])
    assert (done["winner"], done["verdict"], counts) == (winner, verdict, counted)
    assert len(done["votes"]) == 2


def test_an_unreadable_vote_has_no_winner_and_keeps_what_was_said():
    [done], _, _ = verdicts(always("Both are fine, I would say A or B."), [preference()])
    assert done["votes"] == [
        {
            "judge": "openai/one",
            "order": order,
            "winner": None,
            "explanation": "Both are fine, I would say A or B.",
        }
        for order in ("ab", "ba")
    ]


def test_every_judge_of_a_panel_votes_in_both_orders():
    def reply(body: dict) -> str:
        return always("[[A]]")(body) if body["model"] == "biased" else prefers("water")(body)

    judges = ("openai/one", "openai/two", "openai/biased")
    [done], counts, requests = verdicts(reply, [preference()], judges)
    assert [(vote["judge"], vote["order"]) for vote in done["votes"]] == [
        (name, order) for name in judges for order in ("ab", "ba")
    ]
    assert (done["winner"], done["verdict"], len(requests)) == ("chosen", "chosen", 6)
    assert counts == {"inconsistent votes (openai/biased)": 1}


def test_what_a_panel_could_not_use_is_counted_by_judge():
    def reply(body: dict) -> str:
        return always("Hm.")(body) if body["model"] == "two" else always("[[B]]")(body)

    [done], counts, _ = verdicts(reply, [preference()], ("openai/one", "hosted_vllm/two"))
    assert (done["winner"], done["verdict"]) == ("tie", "inconsistent")
    assert counts == {
        "inconsistent (the orders disagree)": 1,
        "inconsistent votes (openai/one)": 1,
        "unreadable votes (hosted_vllm/two)": 1,
    }


def test_conversations_of_the_same_text_are_a_tie_and_nobody_is_asked():
    [done], counts, requests = verdicts(always("[[A]]"), [preference(rejected=list(GOOD))])
    assert (done["winner"], done["verdict"], done["votes"]) == ("tie", "tie", [])
    assert (counts, requests) == ({"tied": 1}, [])


def test_records_keep_their_order_and_their_other_fields():
    records = [preference(number, metadata={"n": number}, custom=[number]) for number in range(30)]
    done, _, _ = verdicts(prefers("water"), records)
    added = ("winner", "verdict", "votes")
    assert [
        {name: value for name, value in record.items() if name not in added} for record in done
    ] == records


def test_a_winner_that_a_person_named_before_is_kept_beside_the_judges():
    ranked = Record({"id": 1, "a": GOOD, "b": BAD, "winner": "b"})
    [done], _, _ = verdicts(prefers("water"), [ranked])
    assert (done["winner"], done["given_winner"]) == ("a", "b")
    [again], _, _ = verdicts(
        prefers("GOLD"), [Record(done)]
    )  # judged once more, it is still the person's
    assert (again["winner"], again["given_winner"]) == ("b", "b")
    [fresh], _, _ = verdicts(prefers("water"), [preference()])
    assert "given_winner" not in fresh


def test_contests_of_one_id_are_judged_each_for_itself(tmp_path):
    contests = [Record({"id": "p", "best_of": size, "a": GOOD, "b": BAD}) for size in (2, 4)]
    with serve(reply=prefers("water")) as server:
        client = Client(ClientConfig(api_base=(server.base_url,)), Store(tmp_path / "c"))
        done = list(judge(contests, JudgeConfig(judges=("openai/one",)), client))
        assert [(record["best_of"], record["winner"]) for record in done] == [(2, "a"), (4, "a")]
        assert server.calls == 4


def test_explicit_prompts_are_judged_with_their_prompt():
    record = parse_comparison(
        Record({"id": 1, "prompt": "How?", "chosen": "Like water.", "rejected": "No."})
    )
    _, _, requests = verdicts(prefers("water"), [record])
    assert "[MARK user]\nHow?\n\n[MARK assistant]\nLike water." in sides(requests[0])


def test_the_judge_is_asked_at_temperature_zero():
    _, _, requests = verdicts(prefers("water"), [preference()], max_tokens=99)
    assert {(body["temperature"], body["max_tokens"]) for body in requests} == {(0.0, 99)}


INJECTED = json.loads(
    (Path(__file__).parents[1] / "recipes" / "injections" / "injections.json").read_text("utf-8")
)


@pytest.mark.parametrize("injected", INJECTED, ids=lambda injected: injected["name"])
def test_a_text_inside_a_conversation_ends_neither_its_turn_nor_its_fence(injected):
    text = injected["text"].replace("{{letter}}", "A")
    record = preference(rejected=talk("How do I boil an egg?", f"I like GOLD.\n\n{text}"))
    [done], _, requests = verdicts(prefers("water"), [record])
    assert done["winner"] == "chosen"
    for body in requests:
        prompt = body["messages"][0]["content"]
        fence = re.search(r"^\[(\w{16}) conversation A begins\]$", prompt, re.MULTILINE)[1]
        assert text.strip() in "".join(sides(body)) and fence not in text
        marked = re.findall(rf"^\[{fence} (.*)\]$", prompt, re.MULTILINE)
        assert marked == [
            *("conversation A begins", "user", "assistant", "conversation A ends"),
            *("conversation B begins", "user", "assistant", "conversation B ends"),
        ]
        assert prompt.count(fence) == len(marked) + 1  # once, where it is explained


def test_a_mark_that_a_text_holds_by_chance_is_not_used(monkeypatch):
    plain = [transcript(side) for side in (GOOD, BAD)]
    first, second = (content_id(0, "p", *plain, attempt).upper() for attempt in (0, 1))
    assert f"[{first} conversation A begins]" in judge_prompt(
        load("paper", "judge"), GOOD, BAD, (0, "p")
    )
    ids = ("eight minutes", second)
    monkeypatch.setattr("musiccli.judge.verdicts.content_id", lambda *parts: ids[parts[-1]].lower())
    shown = judge_prompt(load("paper", "judge"), GOOD, BAD, (0, "p"))
    assert f"[{second} conversation A begins]" in shown and "[EIGHT" not in shown


def test_the_fence_is_another_for_every_record_and_order_and_the_same_again():
    records = [preference(number) for number in range(5)]
    fences = [
        [
            re.search(r"\[(\w{16}) conversation A begins\]", body["messages"][0]["content"])[1]
            for body in verdicts(prefers("water"), records)[2]
        ]
        for _ in range(2)
    ]
    assert len(set(fences[0])) == 10
    assert sorted(fences[0]) == sorted(fences[1])


def test_the_fence_follows_from_both_texts_so_nobody_can_write_his_own():
    """Whoever writes the mark of a pair into a reply changes the pair, and with it the mark."""
    seen = set()
    for _ in range(20):
        held = [*BAD[:-1], {"role": "assistant", "content": "GOLD " + " ".join(sorted(seen))}]
        fence = re.search(
            r"\[(\w{16}) conversation A ends\]",
            judge_prompt(load("paper", "judge"), GOOD, held, (0, "p")),
        )[1]
        assert fence not in seen
        seen.add(fence)


def test_a_reply_cut_by_the_token_limit_is_marked_counted_and_not_believed():
    with serve(reply=always("It says [[A]] which means nothing"), script=["length"] * 2) as server:
        stats = RunStats()
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5))
        [done] = judge([preference()], JudgeConfig(judges=("openai/one",)), client, stats)
    assert {vote["explanation"] for vote in done["votes"]} == {"It says [[A]]"}
    assert (done["winner"], [vote["truncated"] for vote in done["votes"]]) == (None, [True, True])
    assert stats.number("truncated_replies") == 2


@pytest.mark.parametrize("plain", [False, True], ids=["takes a schema", "refuses it"])
def test_a_judge_answers_in_json_where_the_server_can_hold_it_to_that_and_else_in_text(plain):
    def reply(body: dict) -> str:
        letter = prefers("water")(body)[-3]
        if "response_format" not in body:
            return f"Because.\n[[{letter}]]"
        assert body["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA
        return json.dumps({"explanation": 'B says {"verdict": "C"} and\n[[C]]', "verdict": letter})

    records = [preference(number) for number in range(4)]
    with serve(reply=reply, refuses=["response_format"] * plain) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5, concurrency=1))
        done = list(judge(records, JudgeConfig(judges=("openai/one",)), client))
        assert server.calls == 8 + plain
    assert [record["winner"] for record in done] == ["chosen"] * 4
    explanation = "Because.\n[[A]]" if plain else 'B says {"verdict": "C"} and\n[[C]]'
    assert done[0]["votes"][0]["explanation"] == explanation


def test_small_models_continue_a_text_and_say_one_letter():
    [done], _, requests = verdicts(always(" A"), [preference()], prompts="small")
    assert done["verdict"] == "inconsistent"
    assert all(
        body["prompt"].endswith("The better assistant is in conversation:") for body in requests
    )
    assert {tuple(body["stop"]) for body in requests} == {("\n",)}


def test_a_provider_is_not_asked_to_continue_raw_text(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "sk-test-0123456789")
    client = Client(ClientConfig())
    config = JudgeConfig(judges=("gemini/gemini-1.5-pro",), prompts="small")
    with pytest.raises(InputError, match="only local/ models and servers of your own continue raw"):
        list(judge([preference()], config, client))


@pytest.mark.parametrize(
    "fault, reason", [("content_filter", "content filter"), ("tool_calls", "tool call")]
)
def test_a_judge_that_was_interrupted_is_not_believed(fault, reason):
    words = "It says [[A]] and nothing else"
    with serve(reply=always(words), script=[fault] * 2) as server:
        stats = RunStats()
        client = Client(ClientConfig(api_base=(server.base_url,)))
        [done] = judge([preference()], JudgeConfig(judges=("openai/one",)), client, stats)
    assert (done["winner"], done["verdict"]) == (None, "unreadable")
    assert [vote["interrupted"] for vote in done["votes"]] == [reason] * 2
    assert stats.phrases() == {"unreadable": 1, f"interrupted replies ({reason})": 2}


def test_a_pair_whose_call_fails_is_rejected_and_the_others_go_on():
    def reply(body: dict) -> str:
        return "" if "poison" in str(body) else prefers("water")(body)

    bad = preference("bad", rejected=talk("How do I boil an egg?", "With poison."))
    rejects = files.Rejects()
    with serve(reply=reply) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), attempts=2))
        done = list(
            judge(
                [preference("x"), bad, preference("y")],
                JudgeConfig(judges=("openai/one",)),
                client,
                RunStats(rejects),
            )
        )
    assert ([record["id"] for record in done], rejects.count) == (["x", "y"], 1)


# The command line


@pytest.mark.slow
def test_judge_writes_judged_records_and_nothing_else(music):
    records = [preference(number) for number in range(3)]
    with serve(reply=prefers("water"), script=["500", "429"]) as server:
        done = music(
            "judge",
            "--judge",
            "openai/one",
            "--judge",
            "hosted_vllm/two",
            "--judge",
            "openai/one",
            "--api-base",
            server.base_url,
            stdin=jsonl(records),
        )
        assert server.calls == 3 * 2 * 2 + 2  # a judge named twice votes once
    assert (done.returncode, [record["winner"] for record in read(done.stdout)]) == (
        0,
        ["chosen"] * 3,
    ), done.stderr
    *_, first, second, last = done.stderr.splitlines()
    assert first.startswith("music judge: judge hosted_vllm/two: 6 calls (0 from cache, ")
    assert second.startswith("music judge: judge openai/one: 6 calls (0 from cache, ")
    assert last.startswith("music judge: 3 records written in ")
    assert music.network == ""


@pytest.mark.slow
def test_dry_run_asks_nobody_writes_nothing_and_says_what_it_would_take(music, tmp_path):
    target = tmp_path / "judged.jsonl"
    same = {"id": "same", "a": GOOD, "b": GOOD}  # a tie without any call
    given = jsonl([*(preference(number) for number in range(3)), same])
    with serve(reply=prefers("water")) as server:
        line = ("judge", "--judge", "hosted_vllm/any", "--api-base", server.base_url)
        line += ("--max-tokens", "300")
        planned = music(*line, "--judge", "local/smollm2", "--dry-run", "-o", target, stdin=given)
        assert (planned.returncode, planned.stdout, server.calls) == (0, "", 0), planned.stderr
        assert not target.exists()
        unknown = music(*line, "--dry-run", stdin=given)
        assert music(*line, stdin=given).returncode == 0
    read_by_judge = sum(len(body["messages"][0]["content"]) // 4 for body in server.requests)
    rows = ["6", f"{read_by_judge:,}", "1,200"]
    shown, alone = (
        [line.split() for line in done.stderr.splitlines()] for done in (planned, unknown)
    )
    assert ["judge", "hosted_vllm/any", *rows, "unknown"] in shown
    assert ["judge", "local/smollm2", *rows, "$0.00"] in shown
    assert ["all", *rows, "unknown"] in alone
    assert "$0.00 and what is unknown" in planned.stderr
    assert "an estimate from 4 of 4 pairs, drawn at random" in planned.stderr


@pytest.mark.slow
def test_judge_without_a_key_says_so_in_one_line(music):
    done = music(
        "judge", "--judge", "gemini/gemini-1.5-pro", stdin=jsonl([preference(n) for n in range(3)])
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith("music judge: error: gemini/gemini-1.5-pro: ")
    assert "GEMINI_API_KEY" in done.stderr
    assert music.network == ""


@pytest.mark.parametrize("sent", ["INT", "TERM", "TERM deaf", "INT INT", "TERM TERM", None])
def test_a_run_that_is_stopped_waits_for_its_paid_calls_and_says_so(music, sent):
    """`deaf` to Ctrl-C is what a script makes of its background jobs. None: an error ends the run."""
    good, bad = "hosted_vllm/good", "hosted_vllm/bad"
    signals, deaf = [name for name in (sent or "").split() if name != "deaf"], "deaf" in str(sent)
    at_once, judges = len(signals) > 1, (good,) if sent else (good, bad)
    hear = signal.SIG_IGN if deaf else signal.default_int_handler
    with (
        serve(reply=always("[[A]]"), delay=90 if at_once else 3) as server,
        serve(api_key="other", delay=1) as refusing,
    ):
        process = music.start(
            *("judge", *(word for judge in judges for word in ("--judge", judge))),
            *("--api-base", f"{good}={server.base_url}"),
            *(() if sent else ("--api-base", f"{bad}={refusing.base_url}")),
            preexec_fn=lambda: signal.signal(signal.SIGINT, hear),
        )
        process.stdin.write(jsonl([preference(0)]))
        process.stdin.flush()
        wait_until(lambda: server.calls == 2)
        said = []
        for name in signals or [None]:
            if name:
                process.send_signal(getattr(signal, f"SIG{name}"))
            said += [] if said else [process.stderr.readline()]
        process.wait(timeout=60)
        said += process.stderr.read().splitlines(keepends=True)
        assert server.finished == (0 if at_once else 2)
    line = "music judge: waiting for 2 paid calls that are under way; Ctrl-C or SIGTERM now ends the run at once\n"
    assert said[0] == line and said.count(line) == 1
    last = "music judge: interrupted\n" if sent else "Incorrect API key"
    assert process.returncode == (130 if sent else 2) and last in said[-1]
    assert at_once or "2 calls" in "".join(said)


@pytest.mark.slow
def test_judge_interrupted_then_stopped_by_its_limit_goes_on_each_time(music):
    records = jsonl([preference(number) for number in range(20)])
    script = [*[None] * 8, *["hang"] * 2]  # the first run gets no further
    with serve(reply=prefers("water"), script=script) as server:
        options = (
            "judge",
            "--judge",
            "openai/gpt-4o",
            "--api-base",
            server.base_url,
            "--concurrency",
            "2",
        )
        cut = music.interrupted(*options, when=lambda: server.calls >= 10, stdin=records)
        assert (cut.returncode, cut.stderr.splitlines()[-1]) == (130, "music judge: interrupted"), (
            cut.stderr
        )
        stopped = music(*options, "--max-cost", "0.003", stdin=records)
        assert stopped.returncode == 1 and "stopped by --max-cost with " in stopped.stderr
        assert 3 <= len(read(stopped.stdout)) < 20
        whole = music(*options, stdin=records)
        assert (whole.returncode, len(read(whole.stdout))) == (0, 20)
        assert 40 <= server.calls <= 40 + 2  # what was in flight is asked again
    assert whole.stdout.startswith(stopped.stdout) and stopped.stdout.startswith(cut.stdout)


def test_replies_under_way_are_kept_when_another_judge_ends_the_run(tmp_path):
    good, bad = "hosted_vllm/good", "hosted_vllm/bad"
    records = [preference(number) for number in range(40)]
    store = Store(tmp_path / "calls.sqlite")
    with serve(reply=always("[[A]]"), delay=0.4) as server, serve(api_key="other") as refusing:
        addresses = (f"{good}={server.base_url}", f"{bad}={refusing.base_url}")
        client = Client(ClientConfig(api_base=addresses), store)
        with pytest.raises(InputError, match="Incorrect API key"):
            list(judge(records, JudgeConfig(judges=(good, bad)), client))
        assert 0 < server.calls == server.finished == client.usage["judge", good].calls
    assert [(usage.model, usage.entries) for usage in store.models()] == [(good, server.calls)]
