"""Plan-RewardBench: half points for near-equal scores, and the plain mean of seven splits."""

import random
from statistics import mean

import pytest
from build import scored_pair

from musiccli.bench.planrewardbench import PAIRS, check_planrewardbench_pair, metrics
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def pair(number, chosen, rejected, split="safety_refusal"):
    return Record(scored_pair(number, chosen, rejected, metadata={"subset": split}))


def values(rows, model="rm"):
    return {row["subset"]: row["value"] for row in rows if row["model"] == model}


@pytest.mark.parametrize(
    "chosen, rejected, points",
    [(1, 0, 1), (0, 1, 0), (2, 2, 0.5), (0, 1e-4, 0.5), (1e-4, 0, 0.5), (0, 1.01e-4, 0)],
)
def test_scores_that_are_as_good_as_equal_earn_half_a_point(chosen, rejected, points):
    assert values(metrics([pair(0, chosen, rejected)]))["safety_refusal"] == points


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_the_published_formula_to_1e_12(seed):
    chance, given = random.Random(seed), []
    for number in range(300):
        split = list(PAIRS)[number % 7]
        difference = chance.choice([0, 5e-5, -5e-5, chance.gauss(0, 1)])
        given.append((split, difference))
    records = [
        pair(number, difference, 0.0, split) for number, (split, difference) in enumerate(given)
    ]
    chance.shuffle(records)
    rows = values(metrics(records))
    points = {
        split: [
            0.5 if abs(difference) <= 1e-4 else float(difference > 0)
            for name, difference in given
            if name == split
        ]
        for split in PAIRS
    }
    for split, some in points.items():
        assert rows[split] == pytest.approx(mean(some), abs=1e-12)
    assert rows["all"] == pytest.approx(mean(map(mean, points.values())), abs=1e-12)


def test_without_all_pairs_or_splits_it_says_what_is_missing():
    rows = list(metrics([pair(0, 1, 0), pair(1, 1, 0, "my_split")]))
    assert "all" not in values(rows)
    [row] = [row for row in rows if (row["model"], row["subset"]) == ("rm", "safety_refusal")]
    assert row["missing"] == ["safety_refusal (1 of 51)"]
    stats = RunStats()
    list(metrics([pair(0, 1, 0, "my_split")], stats=stats))
    assert stats.phrases() == {"of splits outside the seven": 1}


def test_the_interval_of_the_average_takes_pairs_of_one_prompt_as_one():
    """The same prompts in every split: the seven splits are no seven samples."""
    chance = random.Random(1)
    shared = [chance.random() < 0.6 for _ in range(40)]
    widths = {}
    for kind in ("shared", "apart"):
        records = [
            pair(number + (1000 * index if kind == "apart" else 0), right, 0.5, split)
            for index, split in enumerate(PAIRS)
            for number, right in enumerate(shared)
        ]
        [row] = [row for row in metrics(records) if row["model"] == "rm" and row["subset"] == "all"]
        widths[kind] = row["high"] - row["low"]
    assert widths["shared"] > 2 * widths["apart"]


def test_a_pair_without_a_split_is_refused():
    record = Record(scored_pair(0, 1, 0))
    with pytest.raises(RecordError, match=r"metadata\.subset: is missing; it names the split"):
        check_planrewardbench_pair(record)
