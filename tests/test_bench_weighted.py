"""Models compared by weighted figures: sections and averages have Holm's marks and differences, too."""

import random

import numpy as np
import pytest
from build import lines, talk
from console import music
from scipy.stats import binomtest, ttest_1samp

from musiccli.bench import planrewardbench, rewardbench, rewardbench2
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import comparison_notes
from musiccli.bench.rewardbench2 import TIES, Ties
from musiccli.bench.stats.means import FigureRecords
from musiccli.bench.stats.outcomes import ModelOutcomes
from musiccli.bench.stats.significance import holm_adjusted
from musiccli.core.records import Record

CONFIG = BenchConfig(bootstrap=200)


def outcomes(model: str, points, prompts) -> ModelOutcomes:
    points = np.asarray(points, float)
    return ModelOutcomes(model, None, points, points * 0, points * 0, np.asarray(prompts))


def compared(parts_by_model: dict[str, list], weights=()) -> list[dict]:
    """The records of comparisons by the mean of some parts, [(points, prompts), ...]."""
    figures = FigureRecords("b", CONFIG)
    for model, parts in parts_by_model.items():
        figures.mean("all", "average", [outcomes(model, *part) for part in parts], weights)
    return list(figures.comparisons.records(CONFIG))


def value_of(rows: list[dict], metric: str) -> dict:
    return {(row["model"], row["against"]): row for row in rows if row["metric"] == metric}


def test_of_a_single_part_the_difference_is_that_of_a_t_test():
    draws = np.random.default_rng(1)
    points = draws.choice([0, 0.5, 1], (2, 80))
    rows = compared({name: [(points[number], range(80))] for number, name in enumerate("ab")})
    row = value_of(rows, "accuracy_difference")["a", "b"]
    gains = points[0] - points[1]
    assert row["value"] == pytest.approx(gains.mean(), abs=1e-12)
    expected = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), rel=1e-9)
    test = value_of(rows, "difference_p")["a", "b"]
    assert test["value"] == pytest.approx(ttest_1samp(gains, 0).pvalue, rel=1e-9)
    [note] = comparison_notes(rows)
    assert f"; t-test by prompt p = {test['value']:.2g}" in note


def test_of_several_parts_the_variance_is_the_weighted_sum_of_theirs():
    draws = np.random.default_rng(2)
    sizes, weights = (30, 90), [0.75, 0.25]
    points = [draws.integers(0, 2, (2, size)) for size in sizes]
    prompts = [np.arange(30), 30 + np.arange(90)]
    parts = {
        name: [(part[number], some) for part, some in zip(points, prompts, strict=True)]
        for number, name in enumerate("ab")
    }
    row = value_of(compared(parts, weights), "accuracy_difference")["a", "b"]
    gains = [part[0] - part[1] for part in points]
    assert row["value"] == pytest.approx(0.75 * gains[0].mean() + 0.25 * gains[1].mean(), rel=1e-12)
    variance = sum(
        (weight * some.std(ddof=1)) ** 2 / len(some)
        for weight, some in zip(weights, gains, strict=True)
    )
    assert row["high"] - row["value"] == pytest.approx(1.9803 * variance**0.5, rel=1e-3)


def test_a_part_of_rights_and_wrongs_is_tested_by_the_exact_test():
    points = {"a": [1] * 9 + [0], "b": [1] * 4 + [0] * 6, "c": [1] * 8 + [0] * 2, "d": [0] * 10}
    rows = compared({name: [(some, range(10))] for name, some in points.items()})
    holm = {row["model"]: row["value"] for row in rows if row["metric"] == "holm_p"}
    expected = [binomtest(0, count).pvalue for count in (5, 1, 9)]
    assert [holm[name] for name in "bcd"] == pytest.approx(holm_adjusted(expected), rel=1e-12)


def test_models_that_are_equal_cannot_be_told_apart():
    part = ([1, 0, 1, 0.5] * 5, range(20))
    rows = compared({name: [part, part] for name in "abcd"})
    assert {row["value"] for row in rows if row["metric"] == "holm_p"} == {1}


def test_models_with_different_parts_of_a_figure_are_not_compared():
    part = ([1, 0] * 5, range(10))
    assert not compared({"a": [part, part], "b": [part]})


def test_the_score_of_the_ties_moves_as_leaving_a_question_out_says():
    """The jackknife: without a question the score is, to first order, less by what it moves."""
    draws = random.Random(3)

    def filled(questions):
        ties = Ties()
        for question in questions:
            for kind in ("ref", "tied"):
                metadata = {"sample_type": kind, "prompt_id": question}
                ties.add(Record({"metadata": metadata}), *scores[question, kind])
        return ties

    scores = {
        (question, kind): ([draws.gauss(1, 1) for _ in range(3)], [draws.gauss(0, 1)])
        for question in range(60)
        for kind in ("ref", "tied")
    }
    everything = filled(range(60))
    value = everything.record("rm", CONFIG)["value"]
    moves = everything.part().moves
    assert moves.sum() == pytest.approx(0, abs=1e-12)
    for question in range(60):
        without = filled(set(range(60)) - {question}).record("rm", CONFIG)["value"]
        assert moves[question] == pytest.approx((value - without), abs=2e-4)


def scored_by_five(number: int, draws: random.Random) -> dict:
    scores = {}
    for model in range(5):
        is_right = draws.random() < 0.4 + 0.13 * model
        scores[f"rm{model}"] = {"chosen": float(is_right), "rejected": 0.5}
    return {
        "id": f"hep-go/{number}",
        "chosen": talk(f"prompt {number}", "yes"),
        "rejected": talk(f"prompt {number}", "no"),
        "scores": scores,
    }


@pytest.mark.parametrize(
    "benchmark, subsets",
    [
        (rewardbench, ["alpacaeval-easy", "llmbar-natural", "donotanswer", "hep-go", "math-prm"]),
        (planrewardbench, list(planrewardbench.PAIRS)),
    ],
)
def test_every_column_of_a_weighted_benchmark_has_a_star(benchmark, subsets):
    draws = random.Random(1)
    records = [
        scored_by_five(number, draws) | {"metadata": {"subset": subsets[number % len(subsets)]}}
        for number in range(200)
    ]
    done = music("bench", benchmark.NAME, given=lines(*records))
    assert done.status == 0, done.err
    rows = [line.split() for line in done.lines if line.startswith(" rm4")]
    assert rows[0][1].endswith("*")
    best = {row["against"] for row in done.records if row["metric"] == "holm_p"}
    marked = {row["subset"] for row in done.records if row["metric"] == "holm_p"}
    shown = {
        row["subset"]
        for row in done.records
        if row["metric"] in ("accuracy", "section", "average") and row["model"] == "rm4"
    }
    assert marked == shown and "all" in shown and "rm4" in best
    assert "Against rm4, in points" in done.err


def test_rewardbench_2_marks_its_average_and_its_ties():
    draws, records = random.Random(1), []
    for subset in rewardbench2.PROMPTS:
        for number in range(20):
            for sample in range(4):
                scores = {f"rm{m}": draws.gauss((sample == 0) * m, 1) for m in range(5)}
                metadata = {"subset": subset, "correct": sample == 0}
                if subset == TIES:
                    kind = ("ref", "tied")[number % 2]
                    metadata |= {"sample_type": kind, "prompt_id": number // 2}
                messages = talk(f"{subset} {number}", f"reply {sample}")
                record = {"id": f"{subset}/{number}", "sample": sample, "messages": messages}
                records.append(Record(record | {"scores": scores, "metadata": metadata}))
    rows = list(rewardbench2.metrics(records, CONFIG))
    marked = {row["subset"] for row in rows if row["metric"] == "holm_p"}
    assert marked == {*rewardbench2.PROMPTS, "all"}
    holm = {row["model"]: row for row in rows if row["metric"] == "holm_p"}
    average = {row["model"]: row["value"] for row in rows if row["metric"] == "average"}
    assert holm["rm0"]["value"] < 0.001 and max(average, key=average.get) in holm["rm0"]["against"]


def planned(number: int, subset: str, right: dict[str, bool]) -> dict:
    scores = {model: {"chosen": float(flag), "rejected": 0.5} for model, flag in right.items()}
    return {
        "id": f"{subset}-{number}",
        "chosen": talk(f"q {subset} {number}", "good"),
        "rejected": talk(f"q {subset} {number}", "bad"),
        "metadata": {"subset": subset},
        "scores": scores,
    }


@pytest.mark.parametrize("count", [1, 2])
def test_a_subset_of_few_prompts_does_not_tell_models_apart(count):
    """One prompt has no standard error; of two that all go one way it is 0. Neither is certain."""
    draws = random.Random(0)
    records = []
    for subset in planrewardbench.PAIRS:
        is_small = subset == "safety_refusal"
        for number in range(count if is_small else 20):
            is_right = draws.random() < 0.7
            right = {model: model == "A" if is_small else is_right for model in "ABCD"}
            records.append(planned(number, subset, right))
    rows = music("bench", "planrewardbench", given=lines(*records)).records
    p_values = [row["value"] for row in rows if (row["metric"], row["subset"]) == ("holm_p", "all")]
    assert p_values == [1.0] * 3


def test_where_all_differ_alike_the_p_value_is_that_of_their_sign():
    """Of 5 + 6 prompts all differ, so it is 2 / 2 to the 11; halves differ by rounding alone."""
    parts = {
        "a": [([1, 0.5, 1, 1, 0.5], range(5)), ([1] * 6, range(5, 11))],
        "b": [([0.5, 0, 0.5, 0.5, 0], range(5)), ([0] * 6, range(5, 11))],
    }
    rows = compared({**parts, "c": parts["b"], "d": parts["b"]})
    values = [row["value"] for row in rows if row["metric"] == "holm_p"]
    assert values == pytest.approx([3 * 0.5**10] * 3)
