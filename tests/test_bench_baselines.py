"""What a guess that reads nothing gets right."""

import pytest

from musiccli.bench import baselines
from musiccli.records import Record


def side(*contents):
    return [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]


def pair(one, other, names=("chosen", "rejected"), **fields):
    return Record({"id": "x", names[0]: one, names[1]: other, **fields})


@pytest.mark.parametrize("baseline, expected", [
    ("longest", {"chosen": 10, "rejected": 6}),
    ("shortest", {"chosen": -10, "rejected": -6}),
    ("most-turns", {"chosen": 2, "rejected": 1}),
    ("longest-last-reply", {"chosen": 1, "rejected": 5}),
])
def test_each_baseline_scores_both_sides_by_its_measure(baseline, expected):
    scores = baselines.scores(pair(side("q", "aaaa", "qqqq", "a"), side("q", "aaaaa")))
    assert scores[f"baseline/{baseline}"] == expected


def test_first_listed_is_a():
    assert baselines.scores(pair(side("q", "a"), side("q", "b"), ("a", "b")))["baseline/first-listed"] == {
        "a": 1, "b": 0}


def test_in_preferences_a_coin_that_follows_from_the_id_says_which_was_first():
    found = [baselines.first_listed(pair(side("q", "a"), side("q", "b"), id=f"pair-{number}"))
             for number in range(1000)]
    assert found == [baselines.first_listed(pair(side("other", "text"), side("q", "b"), id=f"pair-{number}"))
                     for number in range(1000)]
    assert 440 < found.count("chosen") < 560
