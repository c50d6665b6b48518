"""The worst records: the right ones, and few of them."""

import pytest
from build import talk

from musiccli.bench.report.worst_records import RECORDS_PER_MODEL, WorstRecords
from musiccli.bench.stats.candidates import CandidateGroup
from musiccli.core.records import Record


def pair(number, chosen, rejected, model="rm", **fields):
    return Record(
        {
            "id": f"p{number}",
            "chosen": talk("q", "good"),
            "rejected": talk("q", "bad"),
            "scores": {model: {"chosen": chosen, "rejected": rejected}},
            **fields,
        }
    )


def worst_pairs(records, label=lambda pair: "chosen", models=()):
    """(model, problem, id) of the worst of scored pairs, whose labels `label` gives."""
    worst = WorstRecords(models)
    for record in records:
        worst.add_scored_pair(record, label(record))
    return [(model, problem, record["id"]) for model, problem, record in worst]


def lost_contests(records):
    """(model, problem, id) of the worst of contests."""
    worst = WorstRecords()
    for record in records:
        worst.add_contest(record)
    return [(model, problem, record["id"]) for model, problem, record in worst]


def test_largest_wrong_margins_come_first_and_right_ones_and_ties_are_none():
    records = [pair(0, 0, 1), pair(1, 0, 3.14159), pair(2, 1, 0), pair(3, 1, 1), pair(4, 0, 2)]
    assert worst_pairs(records) == [
        ("rm", "wrong by 3.14", "p1"),
        ("rm", "wrong by 2", "p4"),
        ("rm", "wrong by 1", "p0"),
    ]


def test_only_a_few_are_kept_and_of_equal_ones_the_first():
    records = [pair(number, 0, 1 + (number == 90)) for number in range(100)]
    assert [identity for *_, identity in worst_pairs(records)] == [
        "p90",
        *(f"p{number}" for number in range(RECORDS_PER_MODEL - 1)),
    ]


def test_each_model_has_its_own():
    records = [pair(0, 0, 1, "one"), pair(1, 0, 100, "other"), pair(2, 0, 2, "one")]
    assert worst_pairs(records) == [
        ("one", "wrong by 2", "p2"),
        ("one", "wrong by 1", "p0"),
        ("other", "wrong by 100", "p1"),
    ]
    both = pair(0, 0, 1, "one")
    both["scores"]["other"] = {"chosen": 0, "rejected": 1}
    assert {model for model, *_ in worst_pairs([both], models=["other"])} == {"other"}


@pytest.mark.parametrize("winner, found", [("rejected", 1), ("chosen", 0), ("tie", 0), (None, 0)])
def test_a_label_says_which_side_is_better(winner, found):
    assert (
        len(worst_pairs([pair(0, 1, 0, winner=winner)], lambda record: record["winner"])) == found
    )


def test_of_candidates_the_lowest_right_one_stands_beside_the_highest_wrong_one():
    scores = {"right": 5, "low": 1, "wrong": 3, "high": 4}
    records = [
        Record(
            {
                "id": "c",
                "sample": number,
                "messages": talk("q", text),
                "scores": {"rm": score},
                "metadata": {"correct": number < 2, "subset": "Math"},
            }
        )
        for number, (text, score) in enumerate(scores.items())
    ]
    worst = WorstRecords()
    worst.add_candidates(CandidateGroup(records))
    [(model, problem, record)] = worst
    assert (model, problem) == ("rm", "wrong by 3")
    assert record == {
        "id": "c",
        "chosen": talk("q", "low"),
        "rejected": talk("q", "high"),
        "metadata": {"subset": "Math"},
        "scores": {"rm": {"chosen": 1, "rejected": 4}},
    }


def test_candidates_without_a_wrong_one_are_passed_over():
    record = Record(
        {"id": "c", "messages": talk("q", "x"), "scores": {"rm": 1}, "metadata": {"correct": True}}
    )
    worst = WorstRecords()
    worst.add_candidates(CandidateGroup([record]))
    assert list(worst) == []


def test_lost_contests_come_from_the_largest_pools_first():
    records = [
        Record(
            {
                "id": f"{size} {winner}",
                "best_of": size,
                "a": talk("q", "x"),
                "b": talk("q", "y"),
                "winner": winner,
                "models": {"a": "new", "b": "old"},
            }
        )
        for size in (2, 8, 4)
        for winner in ("a", "b", "tie", None)
    ]
    assert lost_contests(records) == [
        ("new", f"lost, best of {size}", f"{size} b") for size in (8, 4, 2)
    ]


def test_comparisons_that_are_no_contests_are_lost_by_their_first_side():
    assert lost_contests(
        [Record({"id": "x", "a": talk("q", "x"), "b": talk("q", "y"), "winner": "b"})]
    ) == [("a", "lost", "x")]
