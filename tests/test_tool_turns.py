"""Conversations with calls and their results go through every command as they are."""

from random import Random

from build import assistant, call, result, talk, user, weather

from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.config import Emit, SampleConfig, Speaker
from musiccli.sample.corruptions import MessagePool, corrupt, replace_one_reply
from musiccli.sample.sampler import sample

TOOLS = weather()["tools"]
LONG = weather(
    messages=[
        *weather()["messages"],
        *talk("And in Rome?"),
        call("weather", city="Rome"),
        result("20 C"),
        assistant("It is 20 C."),
    ]
)
PREFERENCE = {
    "id": "p",
    "chosen": weather()["messages"],
    "rejected": weather(found="4 C")["messages"],
    "tools": TOOLS,
}


def sampled(row: dict, emit: Emit, **settings) -> list[dict]:
    rows = [("file", Record(row, "file:1"))]
    return list(sample(rows, SampleConfig(emit=emit, **settings), stats=RunStats()))


def test_sample_keeps_calls_results_and_what_is_on_offer():
    (conversation,) = sampled(LONG, Emit.conversations)
    assert conversation["messages"] == LONG["messages"]
    assert conversation["metadata"]["turns"] == 2
    (pair,) = sampled(PREFERENCE, Emit.pairs)
    assert (pair["chosen"], pair["rejected"]) == (PREFERENCE["chosen"], PREFERENCE["rejected"])
    sides = sampled(PREFERENCE, Emit.conversations)
    (comparison,) = sampled(PREFERENCE, Emit.comparisons)
    (prompt,) = sampled(LONG, Emit.prompts)
    for record in (conversation, pair, comparison, prompt, *sides):
        assert record["tools"] == TOOLS
    assert len(sides) == 2  # they differ by a result alone


def test_a_row_without_our_fields_keeps_them_too():
    row = {"prompt": "How warm is it?", "completion": PREFERENCE["chosen"][1:], "tools": TOOLS}
    (conversation,) = sampled(row, Emit.conversations)
    assert conversation["messages"][1:] == PREFERENCE["chosen"][1:]
    assert conversation["tools"] == TOOLS


def test_a_seed_ends_where_somebody_can_go_on():
    ends = {speaker: set() for speaker in Speaker}
    for speaker, seen in ends.items():
        for seed in range(40):
            (record,) = sampled(LONG, Emit.seeds, seed=seed, next_speaker=speaker)
            seen.add(len(record["messages"]))
    assert ends[Speaker.user] == {4, 8}  # never before the result of a call
    assert ends[Speaker.assistant] == {1, 3, 5, 7}
    assert ends[Speaker.any] == {1, 3, 4, 5, 7, 8}


def test_corruptions_change_whole_turns_and_never_a_call():
    record = Record(LONG)
    lender = Record({"id": "lender", "messages": talk("U" * 20, "A" * 10, "U" * 12, "A" * 11)})
    pool = MessagePool([record, lender], RunStats())
    rejected = {
        corruption["id"]: corruption["rejected"]
        for corruption in corrupt(record, Random(0), pool=pool)
    }
    first, second = LONG["messages"][:4], LONG["messages"][4:]
    assert rejected["w/swap-1"] == second + first
    assert rejected["w/reply-2"][:7] == first + second[:3]
    assert rejected["w/reply-2"][7] == assistant("A" * 11)
    assert rejected["w/user-2"] == [*first, user("U" * 12), *second[1:]]
    joined = {**second[1], "content": first[3]["content"]}
    assert rejected["w/drop_user-2"] == [*first[:3], joined, *second[2:]]
    assert all(corruption["tools"] == TOOLS for corruption in corrupt(record, Random(0), pool=pool))

    contrast = replace_one_reply(record, Random(0), pool=pool)
    index = contrast["first_divergence"]
    assert index in (3, 7) and contrast["rejected"][index]["content"].startswith("A")
    assert contrast["corruption"]["turn"] == (index + 1) // 4
    assert contrast["contrast"][0]["instruction"].startswith("U")
