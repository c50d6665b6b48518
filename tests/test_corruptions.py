"""Corruptions and contrasts: one thing is wrong, at the recorded turn, at the same length."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from build import talk

from musiccli.bench import audit
from musiccli.core import messages, records
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample import sources
from musiccli.sample.config import CorruptionKind, SampleConfig
from musiccli.sample.corruptions import MessagePool, corrupt, replace_one_reply
from musiccli.sample.sampler import sample
from musiccli.show.view import record_view

DATA = Path(__file__).parents[2] / "shared" / "data"


def conversation(identity, *texts, **fields):
    return Record({"id": identity, "messages": talk(*texts), "metadata": {"task": "x"}, **fields})


OTHERS = [
    conversation("other", "UUU", "AAA", "UUUU", "AAAA"),
    conversation("long", "U" * 40, "A" * 40),
]
MANY = [
    conversation(
        f"c{number}", *(f"{number} {turn} {'x' * (number * turn % 13)}" for turn in range(8))
    )
    for number in range(40)
]
THREE = conversation("c", "q01", "r01", "q002", "r002", "q00003", "r00003")


def sampled(rows, emit="corruptions", **settings):
    """The results, and what is counted, as people read it."""
    stats = RunStats()
    return list(sample(rows, SampleConfig(emit=emit, **settings), stats=stats)), stats.phrases()


def corrupted(record=THREE, others=OTHERS, seed=0):
    stats = RunStats()
    results = corrupt(record, Random(seed), pool=MessagePool([record, *others], stats))
    return {result["id"]: result for result in results}, stats.phrases()


def texts(side):
    return [message["content"] for message in side]


@pytest.mark.parametrize(
    "identity, expected, turn, distance, difference",
    [
        ("c/reply-1", ["q01", "AAA", "q002", "r002", "q00003", "r00003"], 1, 2, 0),
        ("c/reply-2", ["q01", "r01", "q002", "AAAA", "q00003", "r00003"], 2, 1, 0),
        ("c/reply-3", ["q01", "r01", "q002", "r002", "q00003", "AAAA"], 3, 0, -2),
        ("c/user-1", ["UUU", "r01", "q002", "r002", "q00003", "r00003"], 1, 2, 0),
        ("c/user-3", ["q01", "r01", "q002", "r002", "UUUU", "r00003"], 3, 0, -2),
        ("c/drop_user-2", ["q01", "r01\n\nr002", "q00003", "r00003"], 2, 1, -2),
        ("c/drop_user-3", ["q01", "r01", "q002", "r002\n\nr00003"], 3, 0, -4),
        ("c/swap-1", ["q002", "r002", "q01", "r01", "q00003", "r00003"], 1, 1, 0),
        ("c/swap-2", ["q01", "r01", "q00003", "r00003", "q002", "r002"], 2, 0, 0),
    ],
)
def test_each_kind_at_each_turn(identity, expected, turn, distance, difference):
    result = corrupted()[0][identity]
    assert texts(result["rejected"]) == expected
    assert result["chosen"] == THREE["messages"]
    assert result["corruption"] == {
        "kind": identity.split("/")[1].split("-")[0],
        "turn": turn,
        "distance": distance,
        "length_difference": difference,
    }


def test_every_turn_gives_every_kind_it_can():
    assert list(corrupted()[0]) == [
        "c/reply-1",
        "c/user-1",
        "c/swap-1",
        "c/reply-2",
        "c/user-2",
        "c/drop_user-2",
        "c/swap-2",
        "c/reply-3",
        "c/user-3",
        "c/drop_user-3",
    ]


def test_the_conversation_is_remembered_so_that_its_corruptions_can_be_counted_as_one():
    results, _ = corrupted()
    assert {
        (result["metadata"]["conversation"], result["metadata"]["task"])
        for result in results.values()
    } == {("c", "x")}


def test_a_system_message_stays_first_and_an_unanswered_message_is_left_out():
    record = Record(
        {"id": "c", "messages": talk("q01", "r01", "q002", "r002", "anyone?", system="be kind")}
    )
    for result in corrupted(record)[0].values():
        assert (
            result["rejected"][0] == {"role": "system", "content": "be kind"} == result["chosen"][0]
        )
        assert result["chosen"] == record["messages"][:-1]


@pytest.mark.parametrize(
    "record",
    [
        conversation("c", "q", "r"),
        conversation("c", "q", "r", "q2"),
        conversation("c", "q"),
        Record({"id": "c", "messages": talk("q", system="s")}),
    ],
)
def test_one_turn_is_not_enough(record):
    assert corrupted(record)[0] == {}


@pytest.mark.parametrize(
    "record, intact",
    [
        ({"chosen": talk("q", "r", "s", "good"), "rejected": talk("q", "r", "s", "bad")}, "good"),
        ({"a": talk("q", "r", "s", "a"), "b": talk("q", "r", "s", "b"), "winner": "b"}, "b"),
        ({"a": talk("q", "r", "s", "a"), "b": talk("q", "r", "s", "b"), "winner": "tie"}, "a"),
    ],
)
def test_of_two_sides_the_better_one_is_corrupted(record, intact):
    results, _ = corrupted(Record({"id": "c", **record}))
    assert {result["chosen"][-1]["content"] for result in results.values()} == {intact}


def test_nothing_is_borrowed_from_a_conversation_with_the_same_opening():
    sibling = conversation("sibling", "q01", "r0x", "q00x", "r00x")
    results, counts = corrupted(others=[sibling, *OTHERS])
    assert not any("x" in text for result in results.values() for text in texts(result["rejected"]))
    assert counts == {}


def test_what_cannot_be_matched_is_counted_and_the_other_kinds_remain():
    results, counts = corrupted(others=[])
    assert {result["corruption"]["kind"] for result in results.values()} == {"drop_user", "swap"}
    assert counts == {
        "messages without match (assistant)": 3,
        "messages without match (user)": 3,
    }


def test_turns_that_are_equal_are_not_swapped():
    results, _ = corrupted(conversation("c", "q01", "r01", "q01", "r01"))
    assert "c/swap-1" not in results


def test_of_two_messages_as_near_chance_decides():
    others = [conversation("shorter", "u", "ss"), conversation("longer", "u", "llll")]
    record = conversation("c", "q", "rrr", "q2", "r2")
    results = Counter(
        texts(corrupted(record, others, seed)[0]["c/reply-1"]["rejected"])[1] for seed in range(200)
    )
    assert 70 < results["ss"] < 130 and results["ss"] + results["llll"] == 200


def test_the_same_seed_gives_the_same_records():
    rows = [
        (
            "f",
            Record(
                {"id": f"c{number}", "messages": talk(*(f"{number} {turn}" for turn in range(6)))}
            ),
        )
        for number in range(20)
    ]
    first, second, different = (sampled(rows, seed=seed)[0] for seed in (1, 1, 2))
    assert first == second != different


def test_one_turn_conversations_are_dropped_by_name():
    results, counts = sampled([("f", record) for record in (THREE, *OTHERS)])
    assert {result["metadata"]["conversation"] for result in results} == {"c", "other"}
    assert counts["dropped (fewer than two turns)"] == 1


def test_one_kind_is_what_a_filter_would_leave_of_all():
    rows = [("f", record) for record in MANY]
    whole, _ = sampled(rows)
    for kind in CorruptionKind:
        assert sampled(rows, kinds=(kind,))[0] == [
            result for result in whole if result["corruption"]["kind"] == kind
        ]
    kinds = {result["corruption"]["kind"] for result in sampled(rows, kinds=("user", "swap"))[0]}
    assert kinds == {"user", "swap"}


def test_a_conversation_that_has_none_of_the_kind_is_dropped_for_that():
    rows = [("f", THREE), ("f", conversation("one", "q01", "r01"))]
    results, counts = sampled(rows, kinds=("reply",))
    assert results == []
    assert (
        counts["dropped (no corruption of that kind)"]
        == counts["dropped (fewer than two turns)"]
        == 1
    )


def test_a_conversation_that_is_the_better_side_of_two_rows_is_one():
    good = talk("q", "r", "s", "good")
    rows = [
        (
            "f",
            Record(
                {"id": number, "chosen": good, "rejected": talk("q", "r", "s", f"bad {number}")}
            ),
        )
        for number in range(3)
    ]
    for emit in ("corruptions", "contrasts"):
        results, counts = sampled([*rows, ("f", OTHERS[0])], emit)
        assert {result["metadata"]["conversation"] for result in results} == {0, "other"}
        assert counts["dropped (duplicate)"] == 2


# Contrasts


def contrast(record=THREE, others=OTHERS, seed=0, **settings):
    pool = MessagePool([record, *others], RunStats())
    return replace_one_reply(record, Random(seed), pool=pool, **settings)


def contrasts(inputs, **settings):
    results, counts = sampled((("f", record) for record in inputs), "contrasts", **settings)
    return results, {name: count for name, count in counts.items() if name != "rows read"}


def test_a_contrast_is_the_conversation_over_itself_with_the_last_reply_out_of_another():
    assert contrast(turn="last") == {
        "id": "c/reply-3",
        "chosen": THREE["messages"],
        "rejected": [*THREE["messages"][:5], {"role": "assistant", "content": "AAAA"}],
        "first_divergence": 5,
        "contrast": [{"message": 5, "instruction": "UUUU"}],
        "corruption": {"kind": "reply", "turn": 3, "distance": 0, "length_difference": -2},
        "metadata": {"task": "x", "conversation": "c"},
    }


@pytest.mark.parametrize(
    "turn, replacement, instruction", [(1, "AAA", "UUU"), (2, "AAAA", "UUUU"), (3, "AAAA", "UUUU")]
)
def test_at_any_turn_it_is_the_corruption_of_that_turn_and_says_what_the_borrowed_reply_answers(
    turn, replacement, instruction
):
    result = next(
        result
        for result in map(lambda seed: contrast(seed=seed), range(50))
        if result["corruption"]["turn"] == turn
    )
    index = 2 * turn - 1
    assert result["rejected"][index] == {"role": "assistant", "content": replacement}
    assert result["contrast"] == [{"message": index, "instruction": instruction}]
    assert (
        result["first_divergence"]
        == index
        == messages.first_divergence(result["chosen"], result["rejected"])
    )
    assert {
        name: result[name] for name in result if name not in ("contrast", "first_divergence")
    } == corrupted()[0][f"c/reply-{turn}"]


@pytest.mark.parametrize("turn", ["any", "last"])
@pytest.mark.parametrize(
    "record",
    [
        conversation("c", "q01", "r01", "and then?"),
        Record({"id": "c", "messages": talk("q01", "r01", system="be kind")}),
    ],
)
def test_one_turn_is_enough_and_it_is_the_last(record, turn):
    result = contrast(record, turn=turn)
    index = result["first_divergence"]
    assert (result["corruption"]["turn"], result["corruption"]["distance"]) == (1, 0)
    assert result["chosen"] == record["messages"][: index + 1]
    assert result["rejected"] == [
        *record["messages"][:index],
        {"role": "assistant", "content": "AAA"},
    ]


def test_of_a_preference_the_better_side_is_contrasted():
    inputs = [
        Record(
            {
                "id": f"p{number}",
                "chosen": talk(f"q{number}", f"good {number}"),
                "rejected": talk(f"q{number}", f"bad {number}"),
            }
        )
        for number in range(5)
    ]
    results, counts = contrasts(inputs)
    assert [result["chosen"] for result in results] == [record["chosen"] for record in inputs]
    assert (
        all(result["rejected"][1]["content"].startswith("good") for result in results)
        and counts == {}
    )


def test_each_conversation_gives_one_and_the_distances_are_spread():
    inputs = [
        Record(
            {
                **record,
                "id": f"{copy}{record['id']}",
                "messages": talk(
                    *(f"{copy} {message['content']}" for message in record["messages"])
                ),
            }
        )
        for record in MANY
        for copy in range(10)
    ]
    results, counts = contrasts(inputs)
    assert ([result["metadata"]["conversation"] for result in results], counts) == (
        [record["id"] for record in inputs],
        {},
    )
    spread = Counter(result["corruption"]["distance"] for result in results)
    assert spread.keys() == {0, 1, 2, 3} and all(70 < count < 130 for count in spread.values())
    results, _ = contrasts(inputs, turn="last")
    assert {
        (result["corruption"]["distance"], result["first_divergence"]) for result in results
    } == {(0, 7)}


def test_the_same_seed_gives_the_same_contrasts_whichever_are_chosen():
    first, second, different = (contrasts(MANY, seed=seed)[0] for seed in (1, 1, 2))
    assert first == second != different
    few, _ = contrasts(MANY, seed=1, count=7)
    assert len(few) == 7 and all(result in first for result in few)


def test_the_same_words_are_not_another_reply():
    record = conversation("c", "q", "You're welcome.")
    others = [
        conversation("other", "u", "You’re welcome!"),
        conversation("more", "u2", "Good morning to you all."),
    ]
    assert texts(contrast(record, others)["rejected"]) == ["q", "Good morning to you all."]


def test_a_turn_is_drawn_among_those_that_have_a_match():
    record = conversation("c", "q", "same", "q2", "same", "q3", "r3")
    others = [conversation("other", "u", "same")]  # what is equal is no match
    assert {contrast(record, others, seed)["corruption"]["turn"] for seed in range(20)} == {3}
    assert contrast(conversation("c", "q", "r", "q2", "same"), others, turn="last") is None


def test_nothing_is_borrowed_from_a_conversation_that_opens_alike():
    siblings = [
        conversation(f"sibling{number}", "q01", "r0x", "q00x", f"r00x{number}")
        for number in range(3)
    ]
    for seed in range(20):
        assert "x" not in "".join(
            texts(contrast(others=[*siblings, *OTHERS], seed=seed)["rejected"])
        )
    assert contrast(others=siblings) is None


def test_what_gives_no_contrast_is_dropped_by_name():
    alike = [conversation("c", "q", "r"), conversation("d", "q", "s")]
    assert contrasts(alike) == (
        [],
        {
            "messages without match (assistant)": 2,
            "dropped (no match in another conversation)": 2,
        },
    )
    alone = [conversation("e", "only asked"), conversation("f", "only asked, too")]
    assert contrasts(alone) == ([], {"dropped (no reply)": 2})
    long = [
        conversation("g", "x" * 400, "y" * 400),
        conversation("h", "x", "y"),
        conversation("i", "z", "zz"),
    ]
    results, counts = contrasts(long, max_tokens=50)
    assert ([result["id"] for result in results], counts) == (
        ["h/reply-1", "i/reply-1"],
        {"dropped (longer than max tokens)": 1},
    )


def test_a_contrast_is_what_show_audit_and_sensitivity_read():
    result = Record(contrast(turn="last"))
    assert (
        records.parse_preference(Record({**result}))
        == audit.check_contrast(Record({**result}))
        == result
    )
    shown = record_view(result)
    assert "corruption reply at turn 3" in shown.facts
    assert [message.instruction for message in shown.columns[1]] == ["UUUU"]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "mtbench101").is_dir(), reason="needs ../shared/data/mtbench101")
def test_on_mtbench101_every_record_is_valid_matched_and_wrong_in_one_place():
    results, counts = sampled(sources.read_rows([str(DATA / "mtbench101" / "mtbench101.jsonl")]))
    differences = Counter()
    for result in results:
        records.parse_preference(Record({**result}))
        corruption = result["corruption"]
        differences[corruption["kind"]] += corruption["length_difference"]
        turns = messages.count_turns(result["chosen"])
        assert corruption["distance"] == turns - corruption["turn"] - (corruption["kind"] == "swap")
        first = messages.first_divergence(result["chosen"], result["rejected"])
        assert (
            first
            == 2 * corruption["turn"]
            - {"reply": 1, "user": 2, "drop_user": 3, "swap": 2}[corruption["kind"]]
        )
    kinds = Counter(result["corruption"]["kind"] for result in results)
    assert counts["rows read"] == 1388 and counts["dropped (duplicate)"] == 1
    assert kinds == {"reply": 4204, "user": 4204, "drop_user": 2817, "swap": 2817}
    assert len({result["id"] for result in results}) == len(results)
    assert (
        abs(differences["reply"] / kinds["reply"]) < 0.1
        and abs(differences["user"] / kinds["user"]) < 0.1
    )
    assert differences["swap"] == 0 and differences["drop_user"] / kinds["drop_user"] < -50
