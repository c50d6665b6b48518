"""What a guess that reads nothing gets right."""

from collections import Counter
from pathlib import Path

import pytest
from build import talk

from musiccli.bench.stats import baselines
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample import sources
from musiccli.sample.config import SampleConfig
from musiccli.sample.sampler import sample

DATA = Path(__file__).parents[2] / "shared" / "data"


def pair(one, other, names=("chosen", "rejected"), **fields):
    return Record({"id": "x", names[0]: one, names[1]: other, **fields})


@pytest.mark.parametrize(
    "baseline, expected",
    [
        ("longest", {"chosen": 10, "rejected": 6}),
        ("shortest", {"chosen": -10, "rejected": -6}),
        ("most-turns", {"chosen": 2, "rejected": 1}),
        ("fewest-turns", {"chosen": -2, "rejected": -1}),
        ("longest-last-reply", {"chosen": 1, "rejected": 5}),
        ("shortest-last-reply", {"chosen": -1, "rejected": -5}),
    ],
)
def test_each_baseline_scores_both_sides_by_its_measure(baseline, expected):
    scores = baselines.baseline_scores(pair(talk("q", "aaaa", "qqqq", "a"), talk("q", "aaaaa")))
    assert scores[f"baseline/{baseline}"] == expected


@pytest.mark.skipif(not (DATA / "mint").is_dir(), reason="needs ../shared/data/mint")
def test_of_solved_over_unsolved_trajectories_the_short_ones_win():
    stats = RunStats(Rejects(skip=True))
    rows = sources.read_rows([str(DATA / "mint")], stats=stats)
    pairs = list(sample(rows, SampleConfig(emit="pairs"), stats=stats))
    right = Counter()
    for one in pairs:
        for baseline, by_side in baselines.baseline_scores(one).items():
            right[baseline] += (by_side["chosen"] >= by_side["rejected"]) / 2 + (
                by_side["chosen"] > by_side["rejected"]
            ) / 2
    share = {
        baseline.removeprefix("baseline/"): round(100 * right[baseline] / len(pairs), 1)
        for baseline in right
    }
    assert (
        share.items()
        >= {"shortest": 89.5, "fewest-turns": 82.9, "shortest-last-reply": 77.3}.items()
    )


def test_first_listed_is_a():
    assert baselines.baseline_scores(pair(talk("q", "a"), talk("q", "b"), ("a", "b")))[
        "baseline/first-listed"
    ] == {"a": 1, "b": 0}


def test_in_preferences_a_coin_that_follows_from_the_id_says_which_was_first():
    found = [
        baselines.first_listed(pair(talk("q", "a"), talk("q", "b"), id=f"pair-{number}"))
        for number in range(1000)
    ]
    assert found == [
        baselines.first_listed(pair(talk("other", "text"), talk("q", "b"), id=f"pair-{number}"))
        for number in range(1000)
    ]
    assert 440 < found.count("chosen") < 560
