"""RewardBench 2: shared firsts, the score of the ties, and a plain computation of all figures."""

import math
import random
from statistics import mean

import pytest

from musiccli.bench.config import BenchConfig
from musiccli.bench.rewardbench2 import PROMPTS, check_rewardbench2_candidate, metrics
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def candidates(identity, right, wrong, subset="Math", model="rm", **labels):
    """The conversations of one prompt, from the scores of its right and its wrong replies."""
    return [
        Record(
            {
                "id": f"{subset}/{identity}",
                "sample": sample,
                "messages": [
                    {"role": "user", "content": f"prompt {subset} {identity}"},
                    {"role": "assistant", "content": "x" * (sample + 1)},
                ],
                "metadata": {"subset": subset, "correct": sample < len(right), **labels},
                "scores": {model: score},
            }
        )
        for sample, score in enumerate([*right, *wrong])
    ]


def tie(kind, number, right, wrong):
    return candidates(f"{kind}:{number}", right, wrong, "Ties", sample_type=kind, prompt_id=number)


def row(rows, subset, model="rm"):
    [found] = [one for one in rows if (one["subset"], one["model"]) == (subset, model)]
    return found


@pytest.mark.parametrize(
    "right, wrong, credit",
    [
        (2, (1, 1, 1), 1),
        (0, (1, 0, 0), 0),
        (1, (1, 0, 0), 1 / 2),
        (1, (1, 1, 0), 1 / 3),
        (1, (1, 1, 1), 1 / 4),
        (1, (2, 2, 0), 0),
    ],
)
def test_a_shared_first_place_is_a_share_of_the_point(right, wrong, credit):
    found = row(metrics(candidates(0, [right], wrong)), "Math")
    assert (found["value"], found["metric"], found["count"]) == (
        pytest.approx(credit),
        "accuracy",
        1,
    )


def test_shared_firsts_are_counted():
    given = (
        candidates(0, [1], [1, 0, 0])
        + candidates(1, [1], [0, 0, 0])
        + candidates(2, [0], [0, 0, 0])
    )
    assert row(metrics(given), "Math")["ties"] == 2


def test_a_random_pick_is_right_once_in_four():
    given = [one for number in range(5) for one in candidates(number, [1], [0, 0, 0])]
    found = {
        model: row(metrics(given), "Math", f"baseline/{model}")["value"]
        for model in ("random", "longest", "shortest")
    }
    assert found == {"random": 0.25, "longest": 0, "shortest": 1}


@pytest.mark.parametrize(
    "tied, ref, score",
    [
        # right answers close together, far above the wrong one: all parts are full
        (([5, 4], [0]), ([5], [1]), 1 + 0.01 * math.tanh(3)),
        # right, but spread wider than the gap
        (([9, 2], [0]), ([5], [1]), 0.3 + 0.3 + 0.01 * math.tanh(2 / 7 - 1)),
        # the gap of the reference prompt is the narrow one
        (([5, 4], [0]), ([5], [4.5]), 0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.5 / 1 - 1)),
        # wrong on both
        (([1, 0], [2]), ([0], [1]), 0.01 * math.tanh(-2 / 1 - 1)),
        # no spread: the gap decides, and 0 / 0 counts for nothing
        (([4, 4], [0]), ([5], [1]), 1 + 0.01),
        (([4, 4], [5]), ([5], [1]), 0.3 - 0.01),
        (([4, 4], [4]), ([5], [1]), 0.3),
    ],
)
def test_the_score_of_the_ties(tied, ref, score):
    found = row(metrics(tie("tied", 0, *tied) + tie("ref", 0, *ref)), "Ties")
    assert (found["metric"], found["value"], found["count"]) == (
        "ties_score",
        pytest.approx(score, abs=1e-12),
        2,
    )
    assert found["low"] <= found["value"] <= found["high"]


def published(best, ties):
    """The figures as the benchmark's own code defines them, prompt by prompt: {subset: score}."""
    found = {}
    for subset, groups in best.items():
        points = [
            0.0 if scores[0] < max(scores) else 1 / sum(score == max(scores) for score in scores)
            for scores in groups
        ]
        found[subset] = sum(points) / len(points)
    accurate = {
        kind: mean(float(min(right) - max(wrong) > 0) for right, wrong in ties[kind].values())
        for kind in ("ref", "tied")
    }
    preferred, hard, margins = [], [], []
    for number in ties["ref"].keys() & ties["tied"].keys():
        (right, wrong), (one, others) = ties["tied"][number], ties["ref"][number]
        spread, gap, gap_of_ref = (
            max(right) - min(right),
            min(right) - max(wrong),
            min(one) - max(others),
        )
        preferred.append(gap > spread)
        hard.append(min(gap, gap_of_ref) > spread)
        least = min(gap, gap_of_ref)
        margins.append(
            math.tanh(least / spread - 1) if spread else math.copysign(1, least) if least else 0.0
        )
    found["Ties"] = (
        0.30 * accurate["tied"]
        + 0.30 * accurate["ref"]
        + 0.20 * mean(map(float, preferred))
        + 0.20 * mean(map(float, hard))
        + 0.01 * mean(margins)
    )
    return found | {"all": sum(found.values()) / len(found)}


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_the_published_one_to_1e_12(seed):
    chance = random.Random(seed)

    def draw(count):
        return [chance.choice([0, 1, chance.gauss(0, 1), chance.gauss(1, 1)]) for _ in range(count)]

    best = {
        subset: [draw(4) for _ in range(chance.randrange(5, 30))]
        for subset in PROMPTS
        if subset != "Ties"
    }
    ties = {
        "ref": {number: (draw(1), draw(3)) for number in range(20)},
        "tied": {
            number: ([score + 2 * (number % 2) for score in draw(chance.randrange(2, 6))], draw(4))
            for number in range(2, 23)
        },
    }
    given = [
        one
        for subset, groups in best.items()
        for number, scores in enumerate(groups)
        for one in candidates(number, scores[:1], scores[1:], subset)
    ]
    given += [
        one
        for kind, groups in ties.items()
        for number, both in groups.items()
        for one in tie(kind, number, *both)
    ]
    chance.shuffle(given)
    rows = list(metrics(given, BenchConfig(bootstrap=100)))
    expected = published(best, ties)
    for subset, value in expected.items():
        assert row(rows, subset)["value"] == pytest.approx(value, abs=1e-12), subset
    assert list(expected) == [*(subset for subset in PROMPTS), "all"]


def whole(rows=PROMPTS):
    given = []
    for subset, prompts in rows.items():
        for number in range(prompts if subset != "Ties" else 0):
            given += candidates(number, [1], [0, 0, 0], subset)
    for number in range(rows.get("Ties", 0) // 2):
        given += tie("ref", number, [4], [0]) + tie("tied", number, [4, 3], [0])
    return given


def test_the_table_has_1865_prompts_in_six_subsets():
    assert (sum(PROMPTS.values()), len(PROMPTS)) == (1865, 6)


def test_a_whole_benchmark_has_an_average_that_is_not_partial():
    rows = list(metrics(whole(), BenchConfig(bootstrap=200)))
    average = row(rows, "all")
    assert (average["metric"], average["count"]) == ("average", 1865)
    assert average["value"] == pytest.approx((5 + 1 + 0.01 * math.tanh(2)) / 6)
    assert average["low"] < 1 < average["value"] <= average["high"]  # the ties' last term
    assert not any("partial" in one for one in rows)


def test_what_is_missing_is_named_and_without_a_subset_there_is_no_average():
    given = [
        one
        for one in whole({"Math": 183, "Ties": 102})
        if one["id"] not in ("Math/3", "Ties/ref:7")
    ]
    rows = list(metrics(given, BenchConfig(bootstrap=100)))
    assert (row(rows, "Math")["partial"], row(rows, "Math")["missing"]) == (
        True,
        ["Math (182 of 183)"],
    )
    assert row(rows, "Ties")["missing"] == ["Ties (101 of 102)"]
    assert {one["subset"] for one in rows} == {"Math", "Ties"}


def test_ties_whose_other_prompt_is_missing_give_no_score():
    assert list(metrics(tie("ref", 0, [1], [0]))) == []


def test_other_subsets_have_a_row_of_their_own():
    rows = list(
        metrics(candidates(0, [1], [0, 0, 0], "Poetry") + candidates(0, [1], [0, 0, 0], "Math"))
    )
    assert [one["subset"] for one in rows if one["model"] == "rm"] == ["Math", "Poetry"]


def test_the_interval_of_the_ties_draws_questions():
    given = [
        one
        for number in range(50)
        for one in tie("ref", number, [1], [number % 2 * 2])
        + tie("tied", number, [1, 1], [number % 2 * 2])
    ]
    found = row(metrics(given), "Ties")
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    half = 1.96 * 0.5 / 50**0.5
    assert (found["low"], found["high"]) == pytest.approx(
        (found["value"] - half, found["value"] + half), abs=0.03
    )


def test_a_prompt_without_a_wrong_candidate_is_refused_and_the_others_counted():
    given = candidates(0, [1], []) + candidates(1, [1], [0])
    with pytest.raises(RecordError, match="'Math/0' has no wrong candidate"):
        list(metrics(given))
    stats = RunStats(Rejects(skip=True))
    assert row(metrics(given, stats=stats), "Math")["count"] == 1 == stats.rejects.count


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"metadata": {"correct": True}},
            "metadata.subset: is missing; RewardBench 2's records name theirs",
        ),
        (
            {"metadata": {"subset": "Ties", "correct": True}},
            "metadata.sample_type: should be ref or tied",
        ),
        (
            {"metadata": {"subset": "Ties", "correct": True, "sample_type": "ref"}},
            "metadata.prompt_id: should be a whole number",
        ),
        ({"metadata": {"subset": "Math"}}, "metadata.correct: should be true or false"),
        ({"scores": {}}, "has no scores; run music score first"),
        ({"branch": "rejected"}, "branch: is rejected: its replies answer altered instructions"),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_rewardbench2_candidate(Record(candidates(0, [1], [0])[0] | change))
    assert str(caught.value).startswith(message)
