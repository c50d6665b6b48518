"""Users with a persona, who stop when they are satisfied, and messages that need the history."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from build import read, talk, write
from openai_server import serve
from scripted import call_at_once, jsonl, role, roles, scripted_reply

from musiccli import prompts
from musiccli.bench import audit
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record, parse_branch
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.pair.preferences import join_branches
from musiccli.simulate import follow_ups
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.estimate import estimate
from musiccli.simulate.personas import Personas, parse_seed
from musiccli.simulate.simulator import simulate
from musiccli.simulate.users import ends_conversation

MODEL = "openai/scripted"
NURSE = {
    "who": "a nurse on night shift",
    "goal": "a soup for the break",
    "knows": "there is a kettle and no stove",
    "satisfied": "there is a list of what to buy",
}


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    call_at_once(monkeypatch)


def seed(identity: object = "s", *contents: str, **fields) -> Record:
    return Record(
        {"id": identity, "messages": talk(*(contents or ("Question?",))), **fields}, "seeds.jsonl:1"
    )


def simulated(*seeds: Record, reply=scripted_reply, cache: Store | None = None, **settings):
    """The records, the counts above zero, and the server that answered."""
    stats = RunStats()
    config = SimulateConfig(**{"assistant": MODEL, "turns": 4, **settings})
    with serve(reply=reply) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5), cache)
        done = list(simulate(seeds, config, client, stats))
    return done, stats.phrases(), server


def satisfied_after(replies: int, text: str = "[satisfied]"):
    """A user who is satisfied once so many replies of a plain assistant stand in its prompt."""

    def reply(body: dict) -> str:
        if role(body) == "user":
            prompt = body["messages"][0]["content"]
            if prompt.count("\nAssistant: Assistant says") >= replies and "[satisfied]" in prompt:
                return text
        return scripted_reply(body)

    return reply


def prompts_of_users(server) -> list[str]:
    return [
        body["messages"][0]["content"] for body in list(server.requests) if role(body) == "user"
    ]


def texts(record: dict) -> list[str]:
    return [message["content"] for message in record["messages"]]


# Personas


def test_the_prompt_of_a_persona_holds_what_is_told_of_it():
    [chosen, rejected], _, server = simulated(seed(user_persona=NURSE), turns=2)
    for prompt in prompts_of_users(server):
        assert all(text in prompt for text in NURSE.values())
        assert "who has what" not in prompt and "{{" not in prompt
    assert chosen["user_persona"] == rejected["user_persona"] == NURSE
    assert len(prompts_of_users(server)) == 2


def test_a_persona_without_a_goal_cannot_tell_when_to_stop():
    who = {"who": "a nurse on night shift"}
    done, counts, server = simulated(seed(user_persona=who["who"]), reply=satisfied_after(1))
    assert not any("[satisfied]" in prompt for prompt in prompts_of_users(server))
    assert [len(record["messages"]) for record in done] == [8, 8] and counts == {}
    assert done[0]["user_persona"] == who["who"]  # as the seed has it


def test_personas_of_a_file_are_for_their_ids_or_drawn_by_the_seed(tmp_path):
    path = write(
        tmp_path / "p.jsonl", {"id": "x", "goal": "eggs"}, {"who": "a cook"}, {"who": "a pilot"}
    )
    personas = Personas(str(path), 0)
    assert personas.of(seed("x"), 0).record == {"goal": "eggs"}
    assert personas.of(seed("x", user_persona={"who": "a baker"}), 0).record == {"who": "a baker"}
    drawn = [personas.of(seed(number), 0).who for number in range(200)]
    assert drawn == [Personas(str(path), 0).of(seed(number), 0).who for number in range(200)]
    assert drawn != [Personas(str(path), 1).of(seed(number), 0).who for number in range(200)]
    assert 70 < Counter(drawn)["a cook"] < 130
    assert Personas(None, 0).of(seed(), 0) is None
    for_x = write(tmp_path / "x.jsonl", {"id": "x", "goal": "eggs"})
    done, counts, _ = simulated(seed("y"), seed("x"), persona=str(for_x), turns=1)
    assert counts == {"conversations without a persona": 1}
    assert not any("user_persona" in record for record in done[:2])
    done = done[2:]
    assert [record["user_persona"] for record in done] == [{"goal": "eggs"}] * 2
    assert all(parse_branch(Record(dict(record))) for record in done)


@pytest.mark.parametrize(
    "persona, problem",
    [
        (7, "user_persona: is a number; it should be an object with some of who, goal, knows"),
        ({"goals": "x"}, "user_persona: has no who and no goal and no knows and no satisfied"),
        ({"goal": ["x"]}, "user_persona.goal: is a list; it should be a text"),
        ({"goal": " "}, "user_persona.goal: is a string; it should be a text"),
    ],
)
def test_a_wrong_persona_names_its_field(persona, problem):
    with pytest.raises(RecordError) as raised:
        parse_seed(seed(user_persona=persona))
    assert str(raised.value).startswith(f"seeds.jsonl:1: {problem}")


@pytest.mark.parametrize(
    "lines, problem",
    [
        ([{"id": "x", "goal": "a"}, {"id": "x", "goal": "b"}], ":2: id: names an earlier persona"),
        ([{"goal": "a"}, {"name": "b"}], ":2: has no who and no goal"),
        ([{"knows": 5}], ":1: knows: is a number"),
    ],
)
def test_a_wrong_line_of_a_file_of_personas_is_named(tmp_path, lines, problem):
    path = write(tmp_path / "p.jsonl", *lines)
    with pytest.raises(RecordError) as raised:
        Personas(str(path), 0)
    assert str(raised.value).startswith(f"{path}{problem}")


# Satisfied users


@pytest.mark.parametrize("text", ["[satisfied]", "[Satisfied].", "Satisfied", "Thanks, goodbye!"])
def test_a_satisfied_user_ends_both_branches_after_the_same_turn(text):
    done, counts, server = simulated(seed(user_persona=NURSE), reply=satisfied_after(2, text))
    chosen, rejected = done
    assert [len(record["messages"]) for record in done] == [4, 4]
    assert (chosen["satisfied"], rejected.get("satisfied")) == (True, None)
    assert counts == {"conversations ended by a satisfied user": 1}
    assert roles(server) == {"assistant": 2, "contrast": 2, "user": 3}
    assert [reply["message"] for reply in rejected["contrast"]] == [1, 3]
    assert not any("faults" in record or text in texts(record) for record in done)


@pytest.mark.parametrize(
    "policy, ended, contrasted",
    [("last", 2, [3]), ("first", 2, [1]), ("middle", 3, [3]), ("random:3", 3, [1, 3, 5])],
)
def test_the_policy_is_about_the_turns_that_there_are_and_has_as_many_as_it_needs(
    policy, ended, contrasted
):
    [chosen, rejected], _, _ = simulated(
        seed(user_persona=NURSE), reply=satisfied_after(2), contrast=policy
    )
    assert [len(record["messages"]) for record in (chosen, rejected)] == [2 * ended] * 2
    assert [reply["message"] for reply in rejected["contrast"]] == contrasted
    assert texts(chosen)[: contrasted[0]] == texts(rejected)[: contrasted[0]]


def test_users_of_both_branches_get_the_same_prompt_and_to_stop_is_a_fault_in_the_rejected_one():
    def reply(body: dict) -> str:
        stops = role(body) == "user" and "Contrasted:" in body["messages"][0]["content"]
        return "[satisfied]" if stops and len(body["messages"]) == 1 else scripted_reply(body)

    done, counts, server = simulated(seed(user_persona=NURSE), reply=reply, turns=3)
    assert counts == {"retried (user early stop)": 2}
    assert [len(record["messages"]) for record in done] == [6, 6]
    openings = {prompt.split("The conversation so far")[0] for prompt in prompts_of_users(server)}
    assert len(openings) == 1
    [told] = {
        body["messages"][-1]["content"]
        for body in list(server.requests)
        if role(body) == "user" and len(body["messages"]) > 1
    }
    assert told.startswith("The conversation is not over: this person does not have")


def test_one_branch_ends_with_its_user_too_and_an_estimate_counts_every_turn():
    start = seed(user_persona=NURSE)
    [done], _, server = simulated(start, reply=satisfied_after(2), contrast="none")
    assert (len(done["messages"]), done["satisfied"]) == (4, True)
    assert roles(server) == {"assistant": 2, "user": 2}
    planned, _, _ = estimate([start], SimulateConfig(MODEL, turns=4, contrast="none"))
    assert {role: count["calls"] for (role, _), count in planned.items()} == {
        "assistant": 4,
        "user": 3,
    }


def test_a_pair_of_a_satisfied_user_is_kept_and_audited():
    done, _, _ = simulated(
        seed("x", user_persona=NURSE), seed("y", user_persona=NURSE), reply=satisfied_after(2)
    )
    stats = RunStats()
    pairs = [Record(pair) for pair in join_branches(map(Record, done), stats)]
    assert (len(pairs), stats.phrases()) == (2, {})
    assert all(pair["user_persona"] == NURSE and pair["satisfied"] for pair in pairs)
    rows = list(audit.metrics(map(audit.check_contrast, pairs)))
    counts = {row["subset"]: row["count"] for row in rows if row["metric"] == "leak"}
    assert counts == {"all": 4, "turn=1": 2, "turn=2": 2}


def test_a_self_taught_contrast_reads_the_replies_of_a_branch_that_has_ended():
    done, _, server = simulated(
        seed(user_persona=NURSE), reply=satisfied_after(2), prompts="self-taught"
    )
    shown = [str(body["messages"]) for body in list(server.requests) if role(body) == "contrast"]
    assert sum(texts(done[0])[1] in text for text in shown) == 1
    assert roles(server) == {"assistant": 3, "contrast": 2, "user": 3}


def test_a_run_with_personas_pays_for_no_call_twice(tmp_path):
    settings = {"reply": satisfied_after(2), "cache": Store(tmp_path / "c")}
    settings["follow_ups"] = "correct=0.5"
    first, _, _ = simulated(seed(user_persona=NURSE), **settings)
    again, _, server = simulated(seed(user_persona=NURSE), **settings)
    assert (again, server.calls) == (first, 0)


@pytest.mark.parametrize(
    "text, ends",
    [
        ("[satisfied]", True),
        ("**Satisfied**", True),
        ("Thank you so much!", True),
        ("Good, [ Satisfied ].", True),
        ("I am *satisfied* with that. What is next?", False),
        ("I am not satisfied with the second step.", False),
        ("How do I know that my guests are satisfied?", False),
    ],
)
def test_what_ends_a_conversation(text, ends):
    assert ends_conversation(text) is ends


# Follow-ups


@pytest.mark.parametrize(
    "text, shares",
    [
        ("", {}),
        ("refer=0.4,change=0.3,correct=0.3", {"refer": 0.4, "change": 0.3, "correct": 0.3}),
        ("correct=1", {"correct": 1.0}),
        ("change=0.2, refer=0", {"change": 0.2, "refer": 0.0}),
    ],
)
def test_shares_are_read(text, shares):
    assert follow_ups.parse_shares(text) == shares


@pytest.mark.parametrize(
    "text",
    [
        "refer",
        "refer=x",
        "refer=-0.1",
        "refer=0.7,change=0.4",
        "refer=nan",
        "ask=0.1",
        "refer=0.1,refer=0.2",
    ],
)
def test_wrong_shares_are_named_before_anybody_is_asked(text):
    expected = "expected refer=P,change=P,correct=P or some of them"
    with pytest.raises(InputError, match=expected):
        next(simulate([seed()], SimulateConfig(MODEL, follow_ups=text), Client()))


def test_kinds_are_drawn_in_their_shares():
    shares = follow_ups.parse_shares("refer=0.4,change=0.3,correct=0.1")
    drawn = Counter(follow_ups.draw_kind(shares, Random(number)) for number in range(2000))
    for kind, share in {**shares, "": 0.2}.items():
        assert drawn[kind] / 2000 == pytest.approx(share, abs=0.04), kind


def test_both_branches_have_the_same_kinds_which_their_prompts_and_records_name():
    settings = {"turns": 5, "follow_ups": "refer=0.4,change=0.3,correct=0.3"}
    done, counts, server = simulated(*map(seed, range(8)), **settings)
    left_out = counts.pop("follow ups left out (refer: too early)")
    assert counts == {}
    kinds = Counter()
    for chosen, rejected in zip(done[::2], done[1::2], strict=True):
        assert chosen["follow_ups"] == rejected["follow_ups"]
        for entry in chosen["follow_ups"]:
            assert chosen["messages"][entry["message"]]["role"] == "user"
            assert entry["kind"] != "refer" or entry["message"] >= 4  # two exchanges before it
            kinds[entry["kind"]] += 2
        assert chosen["simulator"]["follow_ups"] == settings["follow_ups"]
    guidance = prompts.sections("paper", "guidance")
    shown = Counter(
        kind
        for prompt in prompts_of_users(server)
        for kind in follow_ups.KINDS
        if guidance[kind].text in prompt
    )
    assert shown == kinds and kinds.keys() == set(follow_ups.KINDS)
    assert sum(kinds.values()) + left_out == 8 * 2 * 4


def test_where_no_kind_is_drawn_the_message_is_the_plain_users():
    plain, _, _ = simulated(seed())
    same, _, _ = simulated(seed(), follow_ups="refer=0")
    assert [texts(record) for record in same] == [texts(record) for record in plain]
    assert not any("follow_ups" in record for record in same)


def test_a_pair_keeps_the_kinds_of_its_messages():
    done, _, _ = simulated(seed(), follow_ups="change=1", turns=3)
    [pair] = join_branches(map(Record, done))
    assert pair["follow_ups"] == [
        {"message": 2, "kind": "change"},
        {"message": 4, "kind": "change"},
    ]


@pytest.mark.parametrize("setting", [{"persona": "p.jsonl"}, {"follow_ups": "refer=1"}])
def test_reviewed_users_take_neither(setting):
    with pytest.raises(InputError, match="is for `user_turns` plain"):
        SimulateConfig(MODEL, user_turns="review", **setting)


def test_a_reviewed_user_leaves_a_seeds_persona_aside_and_counts_it():
    _, counts, _ = simulated(
        seed(user_persona=NURSE), user_turns="review", contrast="none", turns=2
    )
    assert counts == {"messages without their persona (reviewed user)": 1}


@pytest.mark.parametrize("setting", [{"persona": "p.jsonl"}, {"follow_ups": "refer=1"}])
@pytest.mark.parametrize("prompt_set", ["small", "self-taught-small"])
def test_the_sets_for_small_models_have_neither_and_say_so(setting, prompt_set, tmp_path):
    if "persona" in setting:
        setting = {"persona": str(write(tmp_path / "p.jsonl", NURSE))}
    config = SimulateConfig(MODEL, prompts=prompt_set, contrast_calls=2, **setting)
    with pytest.raises(InputError, match=f"`prompts` {prompt_set} has no guided.md, which `"):
        next(simulate([seed()], config, Client()))


def test_a_set_without_guided_users_leaves_a_seeds_persona_aside_and_counts_it(tmp_path):
    stats = RunStats()
    start = seed("s", "Hello?", "Hi.", user_persona=NURSE)
    config = SimulateConfig("hosted_vllm/x", turns=1, contrast="none", prompts="small")
    with serve(reply=lambda body: "And what then?" if "prompt" in body else "Well.") as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5))
        config = replace(config, contrast_calls=2)
        [done] = simulate([start], config, client, stats)
    assert stats.phrases() == {"messages without their persona (no guided.md)": 1}
    assert len(done["messages"]) == 4 and "satisfied" not in done


# Other languages


def test_messages_in_another_language_are_counted_by_who_wrote_them():
    def reply(body: dict) -> str:
        if role(body) == "assistant":
            return "Das Ei muss acht Minuten kochen, wenn du es nicht weich magst."
        return scripted_reply(body)

    _, counts, _ = simulated(seed(), reply=reply, turns=1, contrast="none")
    assert counts == {"not in English (assistant)": 1}


# The command line


@pytest.mark.slow
def test_personas_and_follow_ups_are_options(music, tmp_path):
    path = write(tmp_path / "p.jsonl", NURSE)
    seeds = jsonl([seed(number) for number in range(3)])
    with serve(reply=satisfied_after(2)) as server:
        line = ("simulate", "--assistant", MODEL, "--api-base", server.base_url, "--persona", path)
        planned = music(*line, "--follow-ups", "change=0.5", "--dry-run", stdin=seeds)
        assert (planned.returncode, server.calls) == (0, 0), planned.stderr
        assert "and no user stops before the last turn" in planned.stderr
        done = music(*line, "--follow-ups", "change=0.5", stdin=seeds)
        wrong = music(*line, "--follow-ups", "change=2", stdin=seeds)
        missing = music(*line[:-1], tmp_path / "none.jsonl", stdin=seeds)
        bad = music(*line, stdin=jsonl([seed(user_persona=3)]))
    assert done.returncode == 0, done.stderr
    records = read(done.stdout)
    assert {len(record["messages"]) for record in records} == {4}
    assert "3 conversations ended by a satisfied user" in done.stderr
    for failed, problem in (
        (wrong, "--follow-ups change=2: expected refer=P"),
        (missing, "none.jsonl: "),
        (bad, "<stdin>:1: user_persona: is a number"),
    ):
        assert (failed.returncode, failed.stdout) == (2, "")
        assert problem in failed.stderr and len(failed.stderr.splitlines()) == 1, failed.stderr
