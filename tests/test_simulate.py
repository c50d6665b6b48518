"""The algorithm call by call, with scripted models; faults; runs that are stopped and go on."""

import contextlib
import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from aiohttp import web
from build import read, talk
from openai_server import serve
from scripted import call_at_once, jsonl, role, roles, scripted_reply, wait_until, words

from musiccli import prompts
from musiccli.core import jsonl as files
from musiccli.core.errors import InputError
from musiccli.core.messages import first_divergence
from musiccli.core.records import Record, parse_branch, parse_conversation, parse_preference
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm import dry_run
from musiccli.llm.call import Reply
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.pair.preferences import join_branches
from musiccli.prompts import transcript
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.contrast import split_contrast
from musiccli.simulate.estimate import estimate
from musiccli.simulate.policies import contrasted_turns
from musiccli.simulate.retries import without_thinking
from musiccli.simulate.simulator import simulate
from musiccli.simulate.truncation import whole_sentences

MODEL = "openai/scripted"


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    call_at_once(monkeypatch)


def seed(identifier: object = "s", *contents: str, **fields) -> Record:
    """A seed; with three messages it ends with the user, with two with the assistant."""
    return Record(
        {"id": identifier, "messages": talk(*(contents or (f"Question {identifier}?",))), **fields},
        f"seeds.jsonl:{identifier}",
    )


def simulated(
    *seeds: Record, reply=scripted_reply, client: dict | None = None, rejects=None, **settings
):
    """The records, the counts above zero, and the server that answered."""
    stats = RunStats(rejects)
    config = SimulateConfig(**{"assistant": MODEL, "user": MODEL, "turns": 2, **settings})
    fields = dict(client or {})
    cache = fields.pop("cache", None)
    with serve(reply=reply) as server:
        client_config = ClientConfig(api_base=(server.base_url,), timeout=5, **fields)
        done = list(simulate(seeds, config, Client(client_config, cache), stats))
    return done, stats.phrases(), server


def six_words(body: dict) -> str:
    """In every role six words, which are eight tokens by this server's count."""
    first, second, *_ = words(body).lower().split()
    return (
        f"<instruction>{first}</instruction><reply>{second} one two three four five</reply>"
        if role(body) == "contrast"
        else f"{first} {second} or else {second} {first}"
    )


def texts(record: dict) -> list[str]:
    return [message["content"] for message in record["messages"]]


def turn_kinds(record: dict) -> str:
    """Each simulated reply by the first letter of who wrote it: A an assistant, C a contrast."""
    replies = [
        text
        for text in texts(record)[record["seed_messages"] :]
        if not text.startswith("User says: ")
    ]
    return "".join(text[0] for text in replies)


def by_role(server, name: str) -> list[dict]:
    return [body for body in server.requests if role(body) == name]


# Which turns are contrasted


@pytest.mark.parametrize(
    "policy, turns",
    [
        ("all", [0, 1, 2, 3]),
        ("none", []),
        ("first", [0]),
        ("last", [3]),
        ("middle", [2]),
        ("random:4", [0, 1, 2, 3]),
        ("prob:1", [0, 1, 2, 3]),
    ],
)
def test_a_policy_says_which_turns_are_contrasted_turns(policy, turns):
    assert sorted(contrasted_turns(policy, 4, Random(0))) == turns


@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_draws_k_turns_and_every_turn_has_its_chance(count):
    drawn = [contrasted_turns(f"random:{count}", 4, Random(number)) for number in range(400)]
    share = Counter(turn for turns in drawn for turn in turns)
    assert {len(turns) for turns in drawn} == {count}
    assert all(100 * count - 50 < share[turn] < 100 * count + 50 for turn in range(4))


def test_middle_draws_one_turn_between_the_first_and_the_last():
    drawn = [contrasted_turns("middle", 5, Random(number)) for number in range(300)]
    share = Counter(turn for turns in drawn for turn in turns)
    assert {len(turns) for turns in drawn} == {1} and share.keys() == {1, 2, 3}
    assert all(60 < count < 140 for count in share.values())
    assert contrasted_turns("middle", 3, Random(0)) == {1}
    with pytest.raises(InputError, match="`contrast` middle needs `turns` 3 or more"):
        contrasted_turns("middle", 2, Random(0))


def test_prob_draws_each_turn_by_itself_and_never_none():
    drawn = [contrasted_turns("prob:0.5", 4, Random(number)) for number in range(400)]
    share = Counter(turn for turns in drawn for turn in turns)
    assert {len(turns) for turns in drawn} == {1, 2, 3, 4}
    assert all(170 < share[turn] < 250 for turn in range(4))


@pytest.mark.parametrize(
    "policy",
    [
        "some",
        "all:2",
        "random",
        "random:0",
        "random:5",
        "random:x",
        "prob:0",
        "prob:1.1",
        "prob:nan",
        "prob:",
        "",
        "none:1",
        "middle:1",
    ],
)
def test_an_unknown_policy_names_those_there_are(policy):
    with pytest.raises(
        InputError, match=r"expected all \| none \| first \| middle \| last \| random:K \| prob:P"
    ):
        contrasted_turns(policy, 4, Random(0))
    with pytest.raises(InputError):
        next(simulate([seed()], SimulateConfig(MODEL, MODEL, contrast=policy, turns=4), Client()))


# The algorithm


@pytest.mark.parametrize(
    "policy, chosen, rejected, calls",
    [
        ("all", "AAA", "CCC", {"assistant": 3, "contrast": 3, "user": 4}),
        ("first", "AAA", "CAA", {"assistant": 5, "contrast": 1, "user": 4}),
        ("last", "AAA", "AAC", {"assistant": 3, "contrast": 1, "user": 2}),
        ("middle", "AAA", "ACA", {"assistant": 4, "contrast": 1, "user": 3}),
        ("random:3", "AAA", "CCC", {"assistant": 3, "contrast": 3, "user": 4}),
    ],
)
def test_from_a_seed_that_ends_with_the_user(policy, chosen, rejected, calls):
    done, _, server = simulated(seed(), turns=3, contrast=policy)
    assert [(record["branch"], turn_kinds(record)) for record in done] == [
        ("chosen", chosen),
        ("rejected", rejected),
    ]
    assert roles(server) == calls


@pytest.mark.parametrize(
    "policy, chosen, rejected, calls",
    [
        ("all", "AAA", "CCC", {"assistant": 3, "contrast": 3, "user": 5}),
        ("first", "AAA", "CAA", {"assistant": 5, "contrast": 1, "user": 5}),
        ("last", "AAA", "AAC", {"assistant": 3, "contrast": 1, "user": 3}),
    ],
)
def test_from_a_seed_that_ends_with_the_assistant(policy, chosen, rejected, calls):
    done, _, server = simulated(seed("s", "Hello?", "Hi."), turns=3, contrast=policy)
    assert [(record["branch"], turn_kinds(record)) for record in done] == [
        ("chosen", chosen),
        ("rejected", rejected),
    ]
    assert roles(server) == calls
    assert [len(record["messages"]) for record in done] == [8, 8]


def test_without_contrast_there_is_one_branch():
    [done], counts, server = simulated(seed(), turns=3, contrast="none")
    assert (done["branch"], turn_kinds(done), done["contrast"], counts) == ("chosen", "AAA", [], {})
    assert roles(server) == {"assistant": 3, "user": 2}


@pytest.mark.parametrize("policy, shared", [("all", 1), ("first", 1), ("middle", 3), ("last", 5)])
def test_the_branches_are_one_conversation_up_to_the_first_contrasted_reply(policy, shared):
    chosen, rejected = simulated(seed(), turns=3, contrast=policy)[0]
    assert first_divergence(chosen["messages"], rejected["messages"]) == shared
    assert chosen["messages"][shared]["role"] == "assistant"
    assert rejected["contrast"][0]["message"] == shared and chosen["contrast"] == []


@pytest.mark.slow
def test_whatever_is_contrasted_the_chosen_branch_is_the_same_and_is_asked_for_once(tmp_path):
    """The ablation differs in the rejected branch alone."""
    seeds = [seed("x"), seed("y", "Hello?", "Hi.")]
    cache = {"cache": Store(tmp_path / "c")}
    plain, _, plain_server = simulated(*seeds, turns=3, contrast="none", client=cache)
    for policy in ("all", "first", "middle", "last", "random:2", "prob:0.4"):
        done, _, server = simulated(*seeds, turns=3, contrast=policy, client=cache)
        assert [texts(record) for record in done if record["branch"] == "chosen"] == list(
            map(texts, plain)
        )
        assert not [body for body in server.requests if body in plain_server.requests]
        alone, _, fresh_server = simulated(*seeds, turns=3, contrast=policy)
        assert list(map(texts, alone)) == list(map(texts, done))
        assert all(body in fresh_server.requests for body in plain_server.requests)


def test_two_turns_of_three_are_contrasted_in_their_places():
    for number in range(6):
        chosen, rejected = simulated(seed(number), turns=3, contrast="random:2")[0]
        turns = sorted(contrasted_turns("random:2", 3, Random(f"0 {number} 0")))
        assert turn_kinds(rejected) == "".join("C" if turn in turns else "A" for turn in range(3))
        assert [reply["message"] for reply in rejected["contrast"]] == [
            1 + 2 * turn for turn in turns
        ]
        assert turn_kinds(chosen) == "AAA"


def test_each_branchs_user_sees_its_own_branch_only():
    [chosen, rejected], _, server = simulated(seed(), turns=3)
    seen = {body["messages"][0]["content"] for body in by_role(server, "user")}
    for record in (chosen, rejected):
        for length in (2, 4):
            assert (
                sum(
                    f"\n\n{transcript(record['messages'][:length])}\n\nWrite only" in text
                    for text in seen
                )
                == 1
            )
    for text in seen:
        branches = [name in text for name in ("Assistant says", "Contrasted:")]
        assert branches.count(True) == 1 and "Rewritten" not in text


def test_the_assistant_sees_the_conversation_as_messages():
    [chosen, _], _, server = simulated(seed("s", "One?", "Two.", "Three?"), turns=2)
    histories = [body["messages"] for body in by_role(server, "assistant")]
    assert sorted(histories, key=len) == [chosen["messages"][:3], chosen["messages"][:5]]


def test_a_contrast_in_one_call_sees_its_own_branch_and_keeps_the_users_message():
    [_, rejected], _, server = simulated(seed(), turns=2)
    late = max((body["messages"][0]["content"] for body in by_role(server, "contrast")), key=len)
    assert (
        f"The conversation so far:\n\n{transcript(rejected['messages'][:2])}\n\n"
        f"The user's last message:\n\n{rejected['messages'][2]['content']}\n\n"
    ) in late
    assert all(
        text.startswith(("Question s?", "User says: ", "Contrasted: ")) for text in texts(rejected)
    )
    assert [reply["instruction"][:11] for reply in rejected["contrast"]] == ["Rewritten: "] * 2
    assert not any("instruction>" in text or "Rewritten" in text for text in texts(rejected))


def test_a_contrast_in_two_calls_answers_the_rewritten_instruction_in_its_place():
    [_, rejected], counts, server = simulated(seed(), turns=2, contrast_calls=2)
    assert (roles(server), counts) == ({"assistant": 4, "rewrite": 2, "user": 2}, {})
    instructions = [reply["instruction"] for reply in rejected["contrast"]]
    assert all(text.startswith("Rewrite says: ") for text in instructions)
    histories = [body["messages"] for body in by_role(server, "assistant")]
    assert talk(instructions[0]) in histories
    assert [*rejected["messages"][:2], {"role": "user", "content": instructions[1]}] in histories
    assert not any("Rewrite says" in text for text in texts(rejected))


def answer_of(body: dict) -> str:
    """The plain reply that the prompt of a contrast shows."""
    shown = body["messages"][0]["content"].split("The assistant's answer to it:\n\n")[1]
    return shown.split("\n\nWrite ")[0]


def asks_for_a_plain_reply(body: dict) -> bool:
    """Whether a request is for the assistant's reply to what stands in a rejected branch."""
    return role(body) == "assistant" and "Contrasted:" in str(body)


@pytest.mark.parametrize("contrast_calls, writer", [(1, "contrast"), (2, "rewrite")])
def test_a_self_taught_contrast_reads_the_plain_reply_to_the_same_history(contrast_calls, writer):
    """The first is the chosen branch's; for a history of the rejected branch another is asked for."""
    [chosen, rejected], counts, server = simulated(
        seed(), turns=3, prompts="self-taught", contrast_calls=contrast_calls
    )
    first, *later = sorted(map(answer_of, by_role(server, writer)), key=texts(chosen).count)[::-1]
    assert (first, counts) == (texts(chosen)[1], {})
    assert len(later) == 2 and not set(later) & set(texts(chosen) + texts(rejected))
    asked = Counter(assistant=3 + len(later), user=4)
    asked.update({writer: 3, "assistant": 3 * (contrast_calls - 1)})
    assert roles(server) == +asked
    if contrast_calls == 1:
        asked_plainly = filter(asks_for_a_plain_reply, server.requests)
        assert sorted(len(body["messages"]) for body in asked_plainly) == [3, 5]
    assert rejected["simulator"]["prompts"] == "self-taught"


def test_a_self_taught_run_has_the_papers_chosen_branches_and_goes_on_where_it_stopped(tmp_path):
    cache = {"cache": Store(tmp_path / "c")}
    settings = {"turns": 3, "prompts": "self-taught", "client": cache}
    done, _, _ = simulated(seed(), **settings)
    again, _, server = simulated(seed(), **settings)
    assert (again, server.calls) == (done, 0)
    [chosen, _], _, _ = simulated(seed(), turns=3)
    assert texts(chosen) == texts(done[0]) and "prompts" not in chosen["simulator"]


def test_one_contrasted_turn_needs_no_other_plain_reply_than_the_chosen_branchs():
    for policy in ("first", "middle", "last"):
        calls = roles(simulated(seed(), turns=3, contrast=policy, prompts="self-taught")[2])
        assert calls == roles(simulated(seed(), turns=3, contrast=policy)[2])


def test_a_contrast_that_gives_the_plain_reply_is_asked_for_again():
    def reply(body: dict) -> str:
        if role(body) == "contrast" and len(body["messages"]) == 1:
            return f"<instruction>Go on</instruction><reply>{answer_of(body)}</reply>"
        return scripted_reply(body)

    done, counts, _ = simulated(seed(), reply=reply, turns=1, prompts="self-taught")
    assert counts == {"retried (contrast same answer)": 1}
    assert not any("faults" in record for record in done)


def test_a_plain_reply_for_a_contrast_is_repeated_when_faulty_and_marks_no_branch():
    def reply(body: dict) -> str:
        return "question s" if asks_for_a_plain_reply(body) else scripted_reply(body)

    done, counts, _ = simulated(seed(), reply=reply, turns=2, prompts="self-taught", retries=1)
    assert counts == {"retried (assistant repeat)": 1}
    assert not any("faults" in record for record in done)


def test_user_assistant_and_contraster_may_be_three_models():
    _, _, server = simulated(seed(), turns=2, user="openai/u", contraster="hosted_vllm/c")
    assert {(role(body), body["model"]) for body in server.requests} == {
        ("user", "u"),
        ("assistant", "scripted"),
        ("contrast", "c"),
    }


def test_samples_differ_and_stand_together():
    done, _, server = simulated(seed("x"), seed("y"), turns=1, samples=3)
    assert [(record["id"], record["sample"], record["branch"]) for record in done] == [
        (name, sample, side)
        for name in "xy"
        for sample in range(3)
        for side in ("chosen", "rejected")
    ]
    assert len({texts(record)[-1] for record in done}) == 12
    assert len({body["seed"] for body in server.requests}) == 12


def test_the_same_seed_gives_the_same_records_and_another_seed_others():
    first, same, different = (simulated(seed(), turns=2, seed=number)[0] for number in (1, 1, 2))
    assert first == same
    assert texts(first[0])[1:] != texts(different[0])[1:]


def test_limits_and_temperature_reach_the_models():
    _, _, server = simulated(
        seed(), turns=2, user_tokens=33, assistant_tokens=44, temperature=0.3, top_p=0.4
    )
    assert {(role(body), body["max_tokens"]) for body in server.requests} == {
        ("user", 33),
        ("assistant", 44),
        ("contrast", 44 + 33),
    }  # in one call: the instruction and the reply
    assert {(body["temperature"], body["top_p"]) for body in server.requests} == {(0.3, 0.4)}


@pytest.mark.parametrize("policy", ["all", "last", "none"])
def test_records_pass_the_branch_check_and_keep_unknown_fields(policy):
    start = seed("s", metadata={"topic": "eggs"}, custom={"deep": [1]}, prompt_id=7)
    done, _, _ = simulated(start, contrast=policy)
    for record in done:
        present = {name: value for name, value in record.items() if value is not None}
        assert parse_branch(Record(dict(record))) == present
        assert {
            name: record[name]
            for name in ("id", "metadata", "custom", "prompt_id", "seed_messages", "sample")
        } == {
            "id": "s",
            "metadata": {"topic": "eggs"},
            "custom": {"deep": [1]},
            "prompt_id": 7,
            "seed_messages": 1,
            "sample": 0,
        }
        assert record["simulator"] == {"assistant": MODEL, "user": MODEL, "contrast": policy}
        assert record["messages"][:1] == start["messages"]
        assert "faults" not in record and "truncated" not in record


def test_usage_and_cost_are_the_calls_own_and_shared_history_is_paid_once():
    gpt = "openai/gpt-4o"
    [chosen, rejected], _, _ = simulated(
        seed(), reply=six_words, turns=3, contrast="last", assistant=gpt, user=gpt
    )
    assert (chosen["usage"]["completion_tokens"], rejected["usage"]["completion_tokens"]) == (
        5 * 8,
        8,
    )
    tokens = Counter(chosen["usage"]) + Counter(rejected["usage"])
    assert chosen["cost"] + rejected["cost"] == pytest.approx(
        tokens["prompt_tokens"] * 2.5e-6 + tokens["completion_tokens"] * 1e-5
    )


def test_cost_is_none_where_a_price_is_unknown():
    assert [record["cost"] for record in simulated(seed())[0]] == [None, None]


def test_results_keep_input_order_whatever_finishes_first():
    seeds = [
        seed(number, *[f"Q{number}?", "Yes."] * (number % 3), f"Question {number}?")
        for number in range(20)
    ]
    done, _, _ = simulated(*seeds, turns=1)
    assert [record["id"] for record in done] == [number for number in range(20) for _ in range(2)]


def test_pair_takes_what_simulate_writes():
    done, _, _ = simulated(seed("x"), seed("y"), samples=2)
    stats = RunStats()
    pairs = list(join_branches(map(Record, done), stats))
    assert ([(pair["id"], pair["sample"]) for pair in pairs], stats.phrases()) == (
        [("x", 0), ("x", 1), ("y", 0), ("y", 1)],
        {},
    )
    assert all(parse_preference(Record(pair))["first_divergence"] == 1 for pair in pairs)


# A user's message in two calls


@pytest.mark.parametrize(
    "start, order",
    [
        (seed(), ["assistant", "reviewer", "chairman", "assistant"]),
        (seed("s", "Hello?", "Hi."), ["reviewer", "chairman", "assistant"] * 2),
    ],
)
def test_a_reviewer_then_a_chairman_write_each_user_message_that_the_seed_lacks(start, order):
    [done], counts, server = simulated(start, contrast="none", user_turns="review")
    assert ([role(body) for body in server.requests], counts) == (order, {})
    assert [text[:14] for text in texts(done)[-2:]] == ["Chairman says:", "Assistant says"]
    assert done["simulator"] == {
        "assistant": MODEL,
        "user": MODEL,
        "contrast": "none",
        "user_turns": "review",
    }
    assert done["messages"][: len(start["messages"])] == start["messages"]


def test_the_reviewer_reads_the_conversation_and_the_chairman_also_the_review_which_stays_outside():
    reviews = []

    def reply(body: dict) -> str:
        if role(body) == "reviewer":
            reviews.append(f"It lacks: {words(body)}")
        return reviews[-1] if role(body) == "reviewer" else scripted_reply(body)

    [done], _, server = simulated(
        seed(), reply=reply, contrast="none", user_turns="review", client={"concurrency": 1}
    )
    [reviewer], [chairman] = (
        [body["messages"] for body in by_role(server, who)] for who in ("reviewer", "chairman")
    )
    read = f"The conversation so far:\n\n{transcript(done['messages'][:2])}\n\n"
    assert read + "Write only the review." in reviewer[0]["content"]
    assert (
        f"{read}The review of the assistant's last reply:\n\n{reviews[0]}\n\nWrite only"
        in chairman[0]["content"]
    )
    assert len(reviewer) == len(chairman) == 1 and "It lacks" not in str(done)


@pytest.mark.parametrize(
    "policy, calls",
    [
        ("all", {"assistant": 3, "contrast": 3, "reviewer": 4, "chairman": 4}),
        ("last", {"assistant": 3, "contrast": 1, "reviewer": 2, "chairman": 2}),
    ],
)
def test_each_branch_is_reviewed_by_itself_once_they_differ(policy, calls):
    done, _, server = simulated(seed(), turns=3, contrast=policy, user_turns="review")
    assert roles(server) == calls
    ways = {transcript(record["messages"][:length]) for record in done for length in (2, 4)}
    for who in ("reviewer", "chairman"):
        read = [
            body["messages"][0]["content"].split("so far:\n\n")[1] for body in by_role(server, who)
        ]
        assert sorted(
            text.split("\n\nThe review")[0].split("\n\nWrite only")[0] for text in read
        ) == sorted(ways)


def test_reviewer_and_chairman_are_two_calls_even_where_they_are_asked_the_same(tmp_path):
    for name in ("review", "chair"):
        (tmp_path / f"{name}.md").write_text("Go on: {{transcript}}")
    cache = {"cache": Store(tmp_path / "c")}
    settings = {
        "turns": 1,
        "contrast": "none",
        "user_turns": "review",
        "prompts": str(tmp_path),
        "client": cache,
    }
    done, _, server = simulated(seed("s", "Hello?", "Hi."), **settings)
    [review, chair, _] = server.requests
    assert review["messages"] == chair["messages"] == talk("Go on: User: Hello?\n\nAssistant: Hi.")
    assert review["seed"] != chair["seed"]
    again, _, server = simulated(seed("s", "Hello?", "Hi."), **settings)
    assert (again, server.calls) == (done, 0)


def test_the_users_model_is_reviewer_and_chairman_within_the_users_limit():
    _, _, server = simulated(
        seed(), contrast="none", user_turns="review", user="openai/u", user_tokens=33
    )
    assert {(role(body), body["model"], body["max_tokens"]) for body in server.requests} == {
        ("assistant", "scripted", 512),
        ("reviewer", "u", 33),
        ("chairman", "u", 33),
    }


# Faults


def faulty(who: str, text: str, times: int, reply=scripted_reply):
    """Replies in which the role `who` gives a bad text the first `times` times."""
    remaining = [times]

    def answer(body: dict) -> str:
        if role(body) == who and remaining[0]:
            remaining[0] -= 1
            return text
        return reply(body)

    return answer


USER_FAULTS = [
    ("?!", "empty"),
    ("Sure, here is a recipe for you", "role flip"),
    ("How can I help you today?", "role flip"),
    ("Fine.\nAssistant: and now", "role flip"),
    ("User: what now", "role flip"),
    ("As an AI I must say", "refusal"),
    ("I’m sorry, but I can’t help with that.", "refusal"),
    ("Question   S", "repeat"),
    ("Thanks, goodbye!", "goodbye"),
    ("Thank you so much for all of this.", "goodbye"),
    ("My rewritten instruction is this.", "prompt leak"),
    ("What about {{transcript}}?", "prompt leak"),
]
REPLY_FAULTS = [("Fine.\nUser: and then?", "role flip"), ("question s", "repeat")]
CONTRAST_FAULTS = [
    ("Just an answer.", "unreadable"),
    ("I'm sorry, but I can't rewrite that.", "refusal"),
    (
        "<instruction>How to fry?</instruction><reply>I cannot assist with frying.</reply>",
        "refusal",
    ),
    ("<instruction>Only this</instruction>", "unreadable"),
    ("<instruction></instruction><reply>Answer.</reply>", "unreadable"),
    ("<instruction>question S</instruction><reply>Answer.</reply>", "not rewritten"),
    (
        "<instruction>How to fry?</instruction><reply>To the modified instruction: oil.</reply>",
        "leak",
    ),
    (
        "<instruction>How do I fry an egg?</instruction>"
        "<reply>How do I fry an egg? In oil.</reply>",
        "leak",
    ),
    ("<instruction>How to fry?</instruction><reply>Oil.\nUser: and then?</reply>", "role flip"),
]


@pytest.mark.parametrize(
    "who, text, name",
    [
        *(("user", text, f"user {fault}") for text, fault in USER_FAULTS),
        *(("assistant", text, f"assistant {fault}") for text, fault in REPLY_FAULTS),
        *(("contrast", text, f"contrast {fault}") for text, fault in CONTRAST_FAULTS),
    ],
)
def test_a_fault_is_asked_again_counted_and_gone(who, text, name):
    settings = {"turns": 2, "contrast": "none"} if who != "contrast" else {"turns": 1}
    done, counts, _ = simulated(seed(), reply=faulty(who, text, 2), **settings)
    assert counts == {f"retried ({name})": 2}
    assert not any("faults" in record or text in texts(record) for record in done)


@pytest.mark.parametrize(
    "who, text, name",
    [
        *(("chairman", text, f"user {fault}") for text, fault in USER_FAULTS),
        ("reviewer", "...", "reviewer empty"),
        ("reviewer", "<think>Hm", "reviewer empty"),
        ("reviewer", "I'm sorry, but I can't help with that.", "reviewer refusal"),
    ],
)
def test_a_fault_of_reviewer_or_chairman_is_asked_again_counted_and_gone(who, text, name):
    [done], counts, server = simulated(
        seed(), reply=faulty(who, text, 2), contrast="none", user_turns="review"
    )
    assert counts == {f"retried ({name})": 2}
    assert "faults" not in done and text not in texts(done)
    assert len(by_role(server, who)) == 3


def test_a_chairman_who_repeats_the_review_is_told_so():
    def reply(body: dict) -> str:
        first = role(body) == "chairman" and len(body["messages"]) == 1
        return (
            "It names no pan, no time."
            if first or role(body) == "reviewer"
            else scripted_reply(body)
        )

    [done], counts, server = simulated(seed(), reply=reply, contrast="none", user_turns="review")
    assert (counts, "faults" in done) == ({"retried (user review leak)": 1}, False)
    assert by_role(server, "chairman")[1]["messages"][-1]["content"].startswith(
        "That is the review itself"
    )


def test_a_chairmans_fault_that_stays_is_the_users_and_a_reviewers_marks_no_branch():
    settings = {"contrast": "none", "user_turns": "review", "retries": 1}
    [done], _, _ = simulated(seed(), reply=faulty("chairman", "Thanks, goodbye!", 2), **settings)
    assert done["faults"] == [{"message": 2, "fault": "user goodbye"}]
    [done], counts, _ = simulated(
        seed(), reply=faulty("reviewer", "I must decline.", 2), **settings
    )
    assert ("faults" in done, counts) == (False, {"retried (reviewer refusal)": 1})


def test_a_reviewer_who_never_says_anything_ends_its_conversation_alone(tmp_path):
    def reply(body: dict) -> str:
        silent = role(body) == "reviewer" and "Question bad" in str(body["messages"])
        return "<think>Hm." if silent else scripted_reply(body)

    rejects = files.Rejects(path=str(tmp_path / "rejects.jsonl"))
    done, _, _ = simulated(
        seed("x"),
        seed("bad"),
        reply=reply,
        contrast="none",
        user_turns="review",
        retries=1,
        rejects=rejects,
    )
    rejects.close()
    assert [record["id"] for record in done] == ["x"]
    [kept] = read((tmp_path / "rejects.jsonl").read_text())
    assert (
        kept["error"]
        == "seeds.jsonl:bad: openai/scripted wrote nothing but thoughts as reviewer in turn 2, 2 times"
    )


@pytest.mark.parametrize(
    "who, text, fault, dropped",
    [
        ("user", "Thanks, goodbye!", {"message": 2, "fault": "user goodbye"}, "user goodbye"),
        (
            "user",
            "I'm sorry, but I can't continue.",
            {"message": 2, "fault": "user refusal"},
            "user refusal",
        ),
        (
            "assistant",
            "Fine.\nUser: no",
            {"message": 1, "fault": "assistant role flip"},
            "assistant role flip",
        ),
        (
            "contrast",
            "I can't help with that.",
            {"message": 1, "fault": "contrast refusal"},
            "contrast refusal",
        ),
        (
            "contrast",
            "No tags",
            {"message": 1, "fault": "contrast unreadable"},
            "contrast unreadable",
        ),
    ],
)
def test_a_fault_that_stays_marks_its_record_and_pair_drops_it_by_name(who, text, fault, dropped):
    done, counts, _ = simulated(seed(), reply=faulty(who, text, 99), turns=2, retries=1)
    marked = [record for record in done if fault in record.get("faults", [])]
    assert marked and all(text in texts(record) for record in marked)
    [retried] = counts
    assert retried.startswith(f"retried ({who} ")
    stats = RunStats()
    assert list(join_branches(map(Record, done), stats)) == []
    assert stats.phrases() == {f"dropped ({dropped})": 1}


@pytest.mark.parametrize(
    "temperature, temperatures",
    [(0.7, [0.7, 0.9, 1.0, 1.0]), (0.0, [0.0, 0.2, 0.4, 0.6]), (1.4, [1.4, 1.4, 1.4, 1.4])],
)
def test_a_faulty_message_is_asked_for_again_warmer_but_never_beyond_what_providers_take(
    temperature, temperatures
):
    _, _, server = simulated(
        seed(),
        reply=faulty("assistant", "question s", 3),
        turns=1,
        contrast="none",
        temperature=temperature,
    )
    assert [body["temperature"] for body in server.requests] == temperatures
    assert len({body["seed"] for body in server.requests}) == 4


def test_a_fault_in_a_rewriting_is_asked_again():
    done, counts, _ = simulated(
        seed(), reply=faulty("rewrite", "question s", 2), turns=1, contrast_calls=2
    )
    assert counts == {"retried (rewrite not rewritten)": 2}
    assert not any("faults" in record for record in done)


def test_a_leak_in_the_second_call_is_asked_again():
    leaks = ["That was a different instruction."]

    def reply(body: dict) -> str:
        answers = body["messages"][-1]["content"].startswith("Rewrite says")
        return leaks.pop() if answers and leaks else scripted_reply(body)

    done, counts, _ = simulated(seed(), reply=reply, turns=1, contrast_calls=2)
    assert counts == {"retried (contrast leak)": 1}
    assert not any("faults" in record for record in done)


@pytest.mark.parametrize(
    "who, text, feedback",
    [
        ("user", "Thanks, goodbye!", "The conversation is not over."),
        ("user", "?!", "That message says nothing."),
        ("assistant", "question s", "That was said before"),
        ("contrast", "No tags", "That is not in the form"),
        ("rewrite", "question s", "That asks for the same"),
    ],
)
def test_who_is_asked_again_sees_the_message_and_what_is_wrong_with_it(who, text, feedback):
    _, _, server = simulated(
        seed(), reply=faulty(who, text, 2), turns=2, contrast_calls=2 if who == "rewrite" else 1
    )
    same = [body["messages"] for body in by_role(server, who)]
    [*again] = [
        messages for messages in same if len(messages) > 1 and messages[-2]["content"] == text
    ]
    assert len(again) == 2
    for messages in again:
        assert [message["role"] for message in messages[-3:]] == ["user", "assistant", "user"]
        assert messages[-1]["content"].startswith(feedback)
        assert (
            messages[:-2] in same
        )  # as it was asked first; what went wrong before the last attempt is forgotten


def test_without_words_for_a_fault_the_same_is_asked_again(tmp_path):
    (tmp_path / "retry.md").write_text("## user goodbye\nStay.\n")
    _, _, server = simulated(
        seed(),
        reply=faulty("assistant", "question s", 1),
        turns=1,
        contrast="none",
        prompts=str(tmp_path),
    )
    assert [body["messages"] for body in server.requests] == [talk("Question s?")] * 2
    _, _, server = simulated(
        seed(), reply=faulty("user", "Bye!", 1), turns=2, contrast="none", prompts=str(tmp_path)
    )
    [again] = [body["messages"] for body in by_role(server, "user") if len(body["messages"]) > 1]
    assert again[-1]["content"] == "Stay."


def test_an_assistant_may_refuse():
    text = "I'm sorry, but I can't help with that."
    [done], counts, _ = simulated(
        seed(), reply=faulty("assistant", text, 1), turns=1, contrast="none"
    )
    assert (texts(done)[1], counts, "faults" in done) == (text, {}, False)


def test_a_reply_that_the_limit_cut_is_marked_and_ends_with_a_sentence():
    def reply(body: dict) -> str:
        return (
            "One two three four five. Six seven eight"
            if role(body) == "assistant"
            else scripted_reply(body)
        )

    [done], counts, _ = simulated(
        seed(), reply=reply, turns=1, contrast="none", assistant_tokens=10
    )
    assert (texts(done)[1], done["truncated"], counts) == ("One two three four five.", [1], {})


@pytest.mark.parametrize(
    "text, spoken",
    [
        ("<think>The user greets.</think>\n\nHello!", "Hello!"),
        ("Hello <think>!", "Hello <think>!"),
        ("<think>Hm", ""),
        (" Hello! ", "Hello!"),
        ("<think>a</think>b</think>c", "b</think>c"),
    ],
)
def test_thoughts_before_a_reply_are_not_part_of_it(text, spoken):
    assert without_thinking(Reply(text, "stop", 1, 2, 0.5)).text == spoken


def test_no_thoughts_reach_the_conversation():
    def reply(body: dict) -> str:
        return f"<think>{words(body)}</think>{scripted_reply(body)}"

    done, counts, server = simulated(seed(), reply=reply, turns=2)
    assert not any("think>" in text for record in done for text in texts(record)) and not counts
    assert "think>" not in str(list(server.requests))


def test_a_contrast_cut_before_its_reply_is_too_long_and_is_told_so():
    def reply(body: dict) -> str:
        cut = role(body) == "contrast" and len(body["messages"]) == 1
        return f"<instruction>{words(body, 200)}" if cut else scripted_reply(body)

    done, counts, _ = simulated(seed(), reply=reply, turns=1, assistant_tokens=40, user_tokens=40)
    assert (counts, "faults" in done[1]) == ({"retried (contrast cut off)": 1}, False)


@pytest.mark.parametrize("policy", ["all", "last"])
def test_a_contrast_in_one_call_is_no_longer_than_what_it_stands_against(policy):
    def reply(body: dict) -> str:
        text = " ".join(f"Number {n} stands before {n + 1} here." for n in range(60))
        return (
            f"<instruction>Say more</instruction>\n<reply>{text}</reply>"
            if role(body) == "contrast"
            else text
        )

    (chosen, rejected), counts, _ = simulated(
        seed(), reply=reply, turns=1, contrast=policy, assistant_tokens=80, user_tokens=80
    )
    assert counts == {} and chosen["truncated"] == rejected["truncated"] == [1]
    assert len(texts(rejected)[1]) == pytest.approx(len(texts(chosen)[1]), abs=29)


@pytest.mark.parametrize("who", ["user", "assistant"])
def test_a_reply_that_ends_in_the_middle_is_asked_for_again_and_dropped_in_the_end(who):
    def reply(body: dict) -> str:
        return words(body, 40) if role(body) == who else scripted_reply(body)

    done, counts, server = simulated(
        seed(), reply=reply, turns=2, retries=1, **{f"{who}_tokens": 24}
    )
    assert counts.keys() == {f"retried ({who} cut off)"}
    assert any("in half the words" in body["messages"][-1]["content"] for body in server.requests)
    stats = RunStats()
    assert (list(join_branches(map(Record, done), stats)), stats.phrases()) == (
        [],
        {f"dropped ({who} cut off)": 1},
    )


@pytest.mark.parametrize(
    "text, kept",
    [
        ("One. Two. Three", "One. Two."),
        ("One two three four five. Six", "One two three four five."),
        ("One. Two three four five six seven", None),
        ("none at all", None),
        ("一二三四。五六", "一二三四。"),
        ('He said: "Yes!" and then', 'He said: "Yes!"'),
        ("A list.\n\nof thin", "A list."),
        ("- a long item\n- another\n- a thi", "- a long item\n- another"),
        ("A long list\n\nof thin", "A long list"),
        ("Of course, here are five:\n\n1. Wash the r", None),
        ("Wash the rice in cold water. Then do this:\n- rin", "Wash the rice in cold water."),
        ("Wash the rice in cold water. **Then:**\n- rin", "Wash the rice in cold water."),
        ("先把米洗干净。然后：\n- 煮", "先把米洗干净。"),
        ("Wash the rice in cold water.\n\n## And then?\n\nCook", "Wash the rice in cold water."),
        ("First wash it:\n- well\n- no", "First wash it:\n- well"),
        ("Wash the rice in cold water.\ne.g. in a", "Wash the rice in cold water."),
        (
            "1. Wash the rice well.\n2. Cook it slowly.\n3. Then",
            "1. Wash the rice well.\n2. Cook it slowly.",
        ),
        ("Do this:\n- **a.** or\n\n  b. wash", "Do this:\n- **a.** or"),
        ("We went to see old Dr. Smith. I met Mr. Smi", "We went to see old Dr. Smith."),
        ("It was 1990. Or so", "It was 1990."),
        ("One, e.g. two", None),
        ("So:\n```\na = 1\nb = 2\nc", None),
        ("So:\n```\na = 1\n```\nNow it", "So:\n```\na = 1\n```"),
        ("Whole.", "Whole."),
    ],
)
def test_a_cut_reply_ends_with_its_last_sentence_or_line_where_that_keeps_half(text, kept):
    reply = Reply(text, "length", 1, 2, 0.5)
    assert whole_sentences(reply) == (replace(reply, text=kept or text), kept is not None)
    whole = replace(reply, finish="stop")
    assert whole_sentences(whole) == (whole, True)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("<instruction>i</instruction><reply>r</reply>", ("i", "r")),
        (
            "Step 1:\n<Instruction>\n i \n</Instruction>\n\n<reply>\nr\n\nmore\n</reply> done",
            ("i", "r\n\nmore"),
        ),
        ("<instruction>i</instruction>\n<reply>cut off", ("i", "cut off")),
        ("<reply>r</reply>", (None, "r")),
        ("<instruction>i", (None, None)),
        ("", (None, None)),
    ],
)
def test_a_contrast_is_split_into_instruction_and_reply(text, parts):
    assert split_contrast(text) == parts


# Calls that fail, runs that are cut short


def test_a_conversation_whose_call_fails_is_rejected_and_the_others_go_on(tmp_path):
    def reply(body: dict) -> str:
        return "" if "poison" in str(body["messages"]) else scripted_reply(body)

    rejects = files.Rejects(path=str(tmp_path / "rejects.jsonl"))
    done, _, _ = simulated(
        seed("x"),
        seed("bad", "A poison?"),
        seed("y"),
        reply=reply,
        turns=1,
        rejects=rejects,
        client={"attempts": 2},
    )
    rejects.close()
    assert [record["id"] for record in done] == ["x", "x", "y", "y"]
    [kept] = read((tmp_path / "rejects.jsonl").read_text())
    assert (kept["id"], rejects.count) == ("bad", 1)
    assert kept["error"].startswith(
        "seeds.jsonl:bad: openai/scripted: an empty reply (after 2 attempts)"
    )


def test_a_seed_whose_samples_fail_is_rejected_once_and_can_be_read_again(tmp_path):
    def reply(body: dict) -> str:
        return "" if "poison" in str(body["messages"]) else scripted_reply(body)

    rejects = files.Rejects(path=str(tmp_path / "rejects.jsonl"))
    done, _, _ = simulated(
        seed("x"),
        seed("bad", "A poison?"),
        seed("worse", "Two poisons?"),
        reply=reply,
        turns=1,
        samples=3,
        rejects=rejects,
        client={"attempts": 1},
    )
    rejects.close()
    assert (len(done), rejects.count) == (6, 2)
    assert [
        record["id"] for record in files.read([str(tmp_path / "rejects.jsonl")], parse_conversation)
    ] == [
        "bad",
        "worse",
    ]


def test_a_branch_that_fails_lets_the_call_beside_it_reach_the_cache(tmp_path):
    def reply(body: dict) -> str:
        return "" if role(body) == "contrast" else scripted_reply(body)

    rejects = files.Rejects()
    cache = {"cache": Store(tmp_path / "c"), "attempts": 1}
    assert simulated(seed(), reply=reply, turns=1, rejects=rejects, client=cache)[0] == []
    assert rejects.count == 1
    done, _, server = simulated(seed(), turns=1, client={"cache": Store(tmp_path / "c")})
    assert (len(done), roles(server)) == (2, {"contrast": 1})


def test_a_branch_makes_no_further_call_when_the_other_has_failed():
    def reply(body: dict) -> str:
        """Nothing for the second reply of the chosen branch."""
        is_second = role(body) == "assistant" and len(body["messages"]) > 1
        return "" if is_second else scripted_reply(body)

    rejects = files.Rejects()
    done, _, server = simulated(
        seed(), reply=reply, turns=8, rejects=rejects, client={"attempts": 1}
    )
    assert (done, rejects.count) == ([], 1)
    assert 2 <= roles(server)["contrast"] <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, contrast_calls, user_turns, prompt_set",
    [
        ("all", 1, "plain", "paper"),
        ("none", 1, "plain", "paper"),
        ("first", 1, "plain", "paper"),
        ("last", 1, "plain", "paper"),
        ("random:2", 1, "plain", "paper"),
        ("prob:0.4", 1, "plain", "paper"),
        ("all", 2, "plain", "paper"),
        ("random:2", 2, "plain", "paper"),
        ("all", 1, "review", "paper"),
        ("last", 1, "review", "paper"),
        ("middle", 1, "plain", "paper"),
        ("all", 1, "plain", "self-taught"),
        ("all", 2, "plain", "self-taught"),
        ("middle", 1, "plain", "self-taught"),
    ],
)
def test_the_estimate_is_the_real_number_of_calls(policy, contrast_calls, user_turns, prompt_set):
    seeds = [
        seed(number, *["Q?", "A."] * (number % 2), *(["Q2?"] if number % 3 else ["Q3?", "A3."]))
        for number in range(4)
    ]
    settings = {
        "turns": 3,
        "samples": 2,
        "contrast": policy,
        "contrast_calls": contrast_calls,
        "user_turns": user_turns,
        "prompts": prompt_set,
    }
    planned, rehearsed, total = estimate(seeds, SimulateConfig(MODEL, MODEL, **settings))
    _, counts, server = simulated(*seeds, **settings)
    expected = Counter({name: count["calls"] for (name, _), count in planned.items()})
    if (
        contrast_calls == 2
    ):  # the scripted model takes an answer to a rewritten instruction for any assistant's
        expected["assistant"] += expected.pop("contrast", 0)
    expected["assistant"] += expected.pop("plain", 0)
    assert (dict(expected), counts, rehearsed, total) == (dict(roles(server)), {}, 8, 8)


@pytest.mark.slow
def test_the_estimate_of_many_conversations_is_a_sample_scaled_up(monkeypatch):
    monkeypatch.setattr(dry_run, "ESTIMATE_SAMPLE", 50)
    seeds = [
        seed(number, *["Q?", "A." * (number % 7)] * (number % 2), "Q2?") for number in range(300)
    ]
    settings = SimulateConfig(MODEL, MODEL, turns=2, samples=2)
    planned, rehearsed, total = estimate(iter(seeds), settings)
    monkeypatch.setattr(dry_run, "ESTIMATE_SAMPLE", 10_000)
    exact, _, _ = estimate(iter(seeds), settings)
    assert (rehearsed, total, planned.keys()) == (50, 600, exact.keys())
    for call_key, counts in exact.items():
        assert planned[call_key]["calls"] == counts["calls"]
        assert planned[call_key]["prompt_tokens"] == pytest.approx(
            counts["prompt_tokens"], rel=0.05
        )


def test_the_estimates_tokens_are_those_of_the_prompts_and_two_thirds_of_the_limits():
    start = seed("s", "x" * 400)
    settings = SimulateConfig(MODEL, MODEL, turns=1, user_tokens=30, assistant_tokens=60)
    planned, _, _ = estimate([start], settings)
    _, _, server = simulated(start, turns=1, user_tokens=30, assistant_tokens=60)
    [body] = by_role(server, "contrast")
    assert planned["assistant", MODEL] == {
        "calls": 1,
        "prompt_tokens": 100,
        "completion_tokens": 40,
    }
    assert planned["contrast", MODEL]["prompt_tokens"] == len(body["messages"][0]["content"]) // 4
    assert planned["contrast", MODEL]["completion_tokens"] == pytest.approx(
        60, abs=15
    )  # and the tags


@pytest.mark.slow
def test_max_cost_stops_in_good_order_and_a_rerun_goes_on(tmp_path):
    seeds, stats, gpt = [seed(number) for number in range(12)], RunStats(), "openai/gpt-4o"
    whole, _, _ = simulated(*seeds, assistant=gpt, user=gpt)
    price = sum(record["cost"] for record in whole)
    with serve(reply=scripted_reply) as server:
        first, second = (
            Client(
                ClientConfig(api_base=(server.base_url,), concurrency=2, max_cost=most),
                Store(tmp_path / "c"),
            )
            for most in (0.9 * price, math.inf)
        )
        stopped = list(simulate(seeds, SimulateConfig(gpt, gpt, turns=2), first, stats))
        paid = server.calls
        assert list(simulate(seeds, SimulateConfig(gpt, gpt, turns=2), second, stats)) == whole
    assert 0.7 <= first.cost / price < 0.95
    # Which of the last ones still start depends on what has finished by then.
    assert 0 < len(stopped) < 24 and stopped == [one for one in whole if one in stopped]
    assert first.cost + second.cost == pytest.approx(price)
    [limit] = stats.limits
    assert limit.startswith("stopped by `max_cost` with ") and " conversations unfinished" in limit
    assert sum(spent.cached for spent in second.usage.values()) == paid


# The command line

SEED_RECORDS = [
    seed(number, *["Hello?", "Hi."] * (number % 2), f"Question {number}?") for number in range(12)
]
SEEDS = jsonl(SEED_RECORDS)


def options(server, *more: object) -> tuple:
    return ("simulate", "--assistant", MODEL, "--api-base", server.base_url, "--turns", 2, *more)


@pytest.mark.slow
def test_simulate_writes_branches_and_nothing_else_in_spite_of_faults(music):
    faults = {"500": 0.05, "429": 0.05, "reset": 0.03, "invalid-json": 0.03}
    with serve(reply=scripted_reply, faults=faults) as server:
        done = music(*options(server), stdin=SEEDS)
    assert done.returncode == 0, done.stderr
    assert read(done.stdout) == simulated(*SEED_RECORDS)[0]
    stderr = [line for line in done.stderr.splitlines() if not line.endswith("; trying again")]
    assert [line.split(": ")[1] for line in stderr[:3]] == [
        f"{who} {MODEL}" for who in ("assistant", "contrast", "user")
    ]
    assert stderr[3].startswith("music simulate: 24 records written in ")
    assert len(stderr) == 4
    assert music.network == ""
    pairs = music("pair", stdin=done.stdout)
    assert (pairs.returncode, [pair["id"] for pair in read(pairs.stdout)]) == (0, list(range(12)))


@pytest.mark.slow
def test_a_run_that_was_killed_and_interrupted_goes_on_and_writes_what_it_would_have_written(
    music, tmp_path
):
    undisturbed, _, reference = simulated(*SEED_RECORDS)
    target = tmp_path / "out.jsonl"
    script = [*[None] * 28, *["hang"] * 4, *[None] * 24, *["hang"] * 4]  # both runs get no further
    with serve(reply=scripted_reply, script=script) as server:
        run = options(server, "--concurrency", 4, "-o", target)
        process = music.start(*run)
        process.stdin.write(SEEDS)
        process.stdin.flush()
        wait_until(lambda: server.calls >= 32)
        process.kill()
        process.communicate()
        cut = music.interrupted(*run, when=lambda: server.calls >= 60, stdin=SEEDS)
        assert (cut.returncode, cut.stdout, target.exists()) == (130, "", False)
        assert cut.stderr.splitlines()[-1] == "music simulate: interrupted", cut.stderr
        assert all(line.startswith("music simulate: ") for line in cut.stderr.splitlines()), (
            cut.stderr
        )
        whole = music(*run, stdin=SEEDS)
        assert (whole.returncode, read(target.read_text())) == (0, undisturbed)
        assert (
            reference.calls <= server.calls <= reference.calls + 2 * 4
        )  # what was in flight is asked again


@pytest.mark.slow
def test_interrupted_while_the_input_is_waited_for_leaves_at_once(music):
    first_line = SEEDS[: SEEDS.index("\n") + 1]
    with serve(reply=scripted_reply) as server:
        done = music.interrupted(
            *options(server), when=lambda: server.finished >= 6, stdin=first_line
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        130,
        "music simulate: interrupted",
    ), done.stderr


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_the_run_quietly(music):
    early, late = jsonl(SEED_RECORDS[:2]), jsonl(SEED_RECORDS[2:])
    with serve(reply=scripted_reply) as server:
        process = music.start(*options(server))
        process.stdin.write(early)
        process.stdin.flush()
        first = process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # it may have ended at a record of `early`
            process.stdin.write(late)
            process.stdin.flush()  # and it stays open, as from a slow pipe
        assert process.wait(timeout=120) == 0
        stderr = process.stderr.read()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    assert read(first)[0]["id"] == 0
    assert all(
        line.startswith("music simulate: ") and f" {MODEL}: " in line
        for line in stderr.splitlines()
    ), stderr


@pytest.mark.slow
def test_dry_run_asks_nobody_writes_nothing_and_says_what_it_would_take(music, tmp_path):
    target = tmp_path / "out.jsonl"
    with serve(reply=scripted_reply) as server:
        planned = music(
            *options(server, "--assistant", "openai/gpt-4o", "--dry-run", "-o", target), stdin=SEEDS
        )
        assert (planned.returncode, planned.stdout, server.calls, target.exists()) == (
            0,
            "",
            0,
            False,
        )
    assert "an estimate from 12 of 12 conversations, drawn at random" in planned.stderr
    table = [line.split() for line in planned.stderr.splitlines() if "gpt-4o" in line]
    assert {row[0]: int(row[2]) for row in table} == roles(simulated(*SEED_RECORDS, retries=0)[2])
    assert all(row[-1].startswith("$") for row in table)
    assert music.network == ""


@pytest.mark.slow
def test_users_that_review_are_an_option_and_their_calls_are_planned(music, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "chair.md").write_text(
        "You turn a review into the next message, quickly. {{transcript}} {{review}}"
    )
    more = ("--user-turns", "review", "--prompts", folder)
    expected, _, _ = simulated(*SEED_RECORDS, user_turns="review", prompts=str(folder))
    _, _, once = simulated(*SEED_RECORDS, user_turns="review", prompts=str(folder), retries=0)
    with serve(reply=scripted_reply) as server:
        planned = music(*options(server, *more, "--dry-run"), stdin=SEEDS)
        assert (planned.returncode, server.calls) == (0, 0), planned.stderr
        done = music(*options(server, *more), stdin=SEEDS)
    assert (done.returncode, read(done.stdout)) == (0, expected), done.stderr
    table = [line.split() for line in planned.stderr.splitlines() if MODEL in line]
    assert {row[0]: int(row[2]) for row in table} == roles(once)
    assert roles(once)["reviewer"] == roles(once)["chairman"] > 0 == roles(once)["user"]
    assert all("quickly" in body["messages"][0]["content"] for body in by_role(server, "chairman"))


@pytest.mark.slow
def test_a_failed_conversation_gives_exit_status_1(music):
    def reply(body: dict) -> str:
        if "Question 3?" in str(body["messages"]):
            raise web.HTTPBadRequest
        return scripted_reply(body)

    with serve(reply=reply) as server:
        done = music(*options(server, "--concurrency", 1), stdin=SEEDS)
    assert (done.returncode, {record["id"] for record in read(done.stdout)}) == (
        1,
        set(range(12)) - {3},
    ), done.stderr
    assert "music simulate: <stdin>:4: openai/scripted: 400: " in done.stderr
    assert done.stderr.splitlines()[-1].endswith("; 1 failed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, problem",
    [
        (("--contrast", "some"), "--contrast some: expected all | none"),
        (
            ("--prompts", "nowhere"),
            "--prompts nowhere: neither a folder nor one of paper, small, self-taught, ",
        ),
        (("--prompts", "small", "--contrast-calls", "1"), "has no contrast.md"),
        (("--top-p", "0"), "--top-p 0: should be above 0 and at most 1; --temperature 0 always"),
    ],
)
def test_a_wrong_policy_or_prompt_set_is_said_before_anybody_is_asked(music, more, problem):
    with serve() as server:
        done = music(*options(server, *more), stdin=SEEDS)
        assert (done.returncode, done.stdout, server.calls) == (2, "", 0)
    assert done.stderr.startswith("music simulate: error: ") and problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "files, calls",
    [
        (["rewrite"], {"assistant": 2, "rewrite": 1}),
        (["contrast"], {"assistant": 1, "contrast": 1}),
        (["rewrite", "contrast"], {"assistant": 1, "contrast": 1}),
        ([], {"assistant": 1, "contrast": 1}),
    ],
)
def test_a_folder_of_prompts_decides_how_many_calls_a_contrast_takes(music, tmp_path, files, calls):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in files:
        (folder / f"{name}.md").write_text(prompts.load("paper", name).text)
    with serve(reply=scripted_reply) as server:
        done = music(*options(server, "--turns", 1, "--prompts", folder), stdin=jsonl([seed()]))
        assert (done.returncode, roles(server)) == (0, calls), done.stderr
