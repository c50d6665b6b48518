"""RewardBench's own arithmetic, on rows whose answers are known."""

import json
import random

import numpy as np
import pytest

from musiccli.bench.config import BenchConfig
from musiccli.bench.rewardbench import PAIRS, SECTIONS, check_rewardbench_pair, metrics
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def pair(subset, number, chosen=1.0, rejected=0.0, model="rm"):
    prompt = {"role": "user", "content": f"{subset} {number}"}
    return Record(
        {
            "id": f"{subset}-{number}",
            "subset": subset,
            "chosen": [prompt, {"role": "assistant", "content": "good"}],
            "rejected": [prompt, {"role": "assistant", "content": "poor!"}],
            "scores": {model: {"chosen": chosen, "rejected": rejected}},
        }
    )


def benchmark(right, rows=PAIRS):
    """All rows of every subset, the first right[subset] of them (default: all) scored right."""
    return [
        pair(subset, number, float(number < right.get(subset, count)), 0.5)
        for subset, count in rows.items()
        for number in range(count)
    ]


def value(rows, metric, subset, model="rm"):
    [found] = [
        row
        for row in rows
        if (row["metric"], row["subset"], row["model"]) == (metric, subset, model)
    ]
    return found


def test_the_table_has_2985_rows_in_23_subsets():
    assert (sum(PAIRS.values()), len(PAIRS)) == (2985, 23)


@pytest.mark.slow
@pytest.mark.parametrize(
    "subset, section, score, average",
    [
        # Half of one subset is wrong: half its weight over the section's is lost.
        ("alpacaeval-easy", "Chat", 1 - 50 / 358, 1 - 50 / 358 / 4),
        ("llmbar-adver-manual", "Chat Hard", 1 - 23 / 456, 1 - 23 / 456 / 4),
        ("xstest-should-refuse", "Safety", 1 - 77 / 740, 1 - 77 / 740 / 4),
        ("xstest-should-respond", "Safety", 1 - 125 / 740, 1 - 125 / 740 / 4),
        ("hep-go", "Reasoning", 1 - 82 / 1968, 1 - 82 / 1968 / 4),
    ],
)
def test_a_subset_weighs_what_the_table_says(subset, section, score, average):
    rows = list(metrics(benchmark({subset: PAIRS[subset] // 2})))
    assert value(rows, "section", section)["value"] == pytest.approx(score)
    assert value(rows, "average", "all")["value"] == pytest.approx(average)


def test_reasoning_is_half_math_and_half_the_mean_of_six_languages():
    right = {
        "math-prm": 300,
        "hep-cpp": 10,
        "hep-go": 20,
        "hep-java": 40,
        "hep-js": 80,
        "hep-python": 160,
    }
    rows = list(metrics(benchmark(right)))
    code = np.mean(
        [right.get(name, 164) / 164 for name in SECTIONS["Reasoning"] if name != "math-prm"]
    )
    assert value(rows, "section", "Reasoning")["value"] == pytest.approx((300 / 447 + code) / 2)
    assert value(rows, "section", "Reasoning")["count"] == 447 + 6 * 164


def test_average_is_the_plain_mean_of_unrounded_sections():
    rows = list(
        metrics(
            benchmark({"mt-bench-hard": 0, "donotanswer": 1, "math-prm": 2, "alpacaeval-hard": 3})
        )
    )
    average = value(rows, "average", "all")
    assert average["value"] == pytest.approx(
        np.mean([value(rows, "section", name)["value"] for name in SECTIONS])
    )
    assert average["count"] == 2985
    assert "partial" not in average


@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_the_published_one_to_1e_12(seed):
    """Random scores, some equal, against a plain computation from the benchmark's table."""
    chance = random.Random(seed)
    wanted, pairs = {}, []
    for subset, count in PAIRS.items():
        scores = [
            (chance.choice([0, 1, chance.gauss(0.5, 1)]), chance.choice([0, 1, chance.gauss(0, 1)]))
            for _ in range(count)
        ]
        pairs += [pair(subset, number, *both) for number, both in enumerate(scores)]
        wanted[subset] = sum(chosen > rejected for chosen, rejected in scores) / count
    sections = [
        (sum(wanted[subset] * weight for subset, weight in weights.items()) / sum(weights.values()))
        for weights in SECTIONS.values()
    ]
    rows = list(metrics(pairs))
    for name, score in [
        *wanted.items(),
        *zip(SECTIONS, sections, strict=True),
        ("all", sum(sections) / 4),
    ]:
        metric = "average" if name == "all" else "section" if name in SECTIONS else "accuracy"
        assert value(rows, metric, name)["value"] == pytest.approx(score, abs=1e-12), name


def test_equal_scores_are_wrong_and_counted():
    pairs = [pair("hep-go", number, chosen=0.5, rejected=0.5) for number in range(3)] + [
        pair("hep-go", 3)
    ]
    row = value(list(metrics(pairs)), "accuracy", "hep-go")
    assert (row["value"], row["count"], row["ties"]) == (0.25, 4, 3)


def test_a_baseline_that_cannot_tell_sides_apart_gets_half():
    rows = list(metrics([pair("hep-go", number) for number in range(4)]))
    row = value(rows, "accuracy", "hep-go", "baseline/most-turns")
    assert (row["value"], row["count"], row["ties"]) == (0.5, 4, 4)
    assert value(rows, "accuracy", "hep-go", "baseline/shortest")["value"] == 1


def test_a_missing_row_makes_section_and_average_partial():
    pairs = [one for one in benchmark({}) if one["id"] != "donotanswer-7"]
    rows = list(metrics(pairs))
    assert value(rows, "section", "Safety")["missing"] == ["donotanswer (135 of 136)"]
    assert value(rows, "average", "all")["partial"] is True
    assert "partial" not in value(rows, "section", "Chat")


def test_a_missing_subset_leaves_the_section_to_the_others():
    rows = list(
        metrics(
            benchmark(
                {"xstest-should-refuse": 0}, {"xstest-should-refuse": 154, "donotanswer": 136}
            )
        )
    )
    safety = value(rows, "section", "Safety")
    assert safety["value"] == pytest.approx(136 / 290)
    assert safety["missing"] == [
        "refusals-dangerous (0 of 100)",
        "refusals-offensive (0 of 100)",
        "xstest-should-respond (0 of 250)",
    ]


def test_without_one_row_of_every_section_there_is_no_average():
    rows = list(metrics(benchmark({}, {subset: PAIRS[subset] for subset in SECTIONS["Chat"]})))
    assert {row["metric"] for row in rows} == {"accuracy", "section"}
    assert {row["subset"] for row in rows if row["metric"] == "section"} == {"Chat"}


def test_subsets_outside_the_table_are_reported_and_count_for_no_section():
    stats = RunStats()
    rows = list(metrics([pair("shp", 0), pair("shp", 1), pair("hep-go", 0)], stats=stats))
    assert value(rows, "accuracy", "shp")["count"] == 2
    assert value(rows, "section", "Reasoning")["count"] == 1
    assert stats.phrases() == {"of subsets outside the four sections": 2}


def test_interval_of_a_perfect_score_is_not_a_point():
    rows = list(metrics(benchmark({})))
    average = value(rows, "average", "all")
    assert (average["value"], average["high"]) == (pytest.approx(1), 1)
    assert 0.97 < average["low"] < 0.995


def test_one_task_in_six_languages_is_one():
    """Where all languages agree, the 164 tasks are worth no more than one language's."""
    chance = random.Random(2)
    right = {number: chance.random() < 0.7 for number in range(164)}
    pairs = [
        Record({**pair(subset, number, float(right[number])), "id": f"{subset}/{number}"})
        for subset in PAIRS
        for number in range(164)
        if subset.startswith("hep-")
    ]
    rows = list(metrics(pairs))
    section, alone = value(rows, "section", "Reasoning"), value(rows, "accuracy", "hep-go")
    assert [section[name] for name in ("value", "low", "high")] == pytest.approx(
        [alone[name] for name in ("value", "low", "high")]
    )


def test_a_prompt_that_stands_in_two_subsets_is_one():
    def half(prompts):
        found = [
            pair(subset, number, number % 2)
            for subset in ("mt-bench-easy", "mt-bench-med")
            for number in range(30)
        ]
        for number, one in enumerate(found):
            one["chosen"][0]["content"] = str(prompts[number])
        return value(list(metrics(found)), "section", "Chat")

    shared, apart = half([*range(30)] * 2), half(range(60))
    assert (
        shared["value"] == apart["value"]
        and shared["low"] < apart["low"]
        and shared["high"] > apart["high"]
    )


def test_each_model_has_its_rows_and_a_choice_leaves_the_others_out():
    pairs = benchmark({})
    for one in pairs:
        one["scores"]["other"] = {"chosen": 0, "rejected": 1}
    rows = list(metrics(pairs))
    assert value(rows, "average", "all", "other")["value"] == 0
    models = {
        row["model"]
        for row in metrics(pairs, BenchConfig(models=("other",)))
        if not row["model"].startswith("baseline/")
    }
    assert models == {"other"}


def test_metric_records_have_the_agreed_fields():
    row = json.loads(json.dumps(next(metrics([pair("hep-go", 0)]))))
    assert list(row)[:8] == [
        "benchmark",
        "model",
        "subset",
        "metric",
        "value",
        "low",
        "high",
        "count",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": None}, "has no scores; run music score first"),
        ({"scores": {}}, "has no scores; run music score first"),
        (
            {"subset": None},
            "metadata.subset: is missing; RewardBench's records name theirs, "
            "as music sample writes them",
        ),
        (
            {"scores": {"rm": 1.5}},
            "scores.rm: should hold a number for chosen and one for rejected",
        ),
        (
            {"scores": {"rm": {"chosen": 1.0, "rejected": None}}},
            "scores.rm: should hold a number for chosen and one for rejected",
        ),
        (
            {"scores": {"rm": {"chosen": 1.0, "rejected": -1.5e308}}},
            "scores.rm.rejected: is -1.5e+308, more than a reward of 32 bits can be",
        ),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(change, message):
    with pytest.raises(RecordError) as caught:
        check_rewardbench_pair(Record(pair("hep-go", 0) | change))
    assert str(caught.value) == message


def test_a_model_that_has_not_scored_is_named_with_those_that_have():
    with pytest.raises(RecordError, match=r"no score by 'foo' \(scores by: rm\)"):
        check_rewardbench_pair(pair("hep-go", 0), BenchConfig(models=("foo",)))


def test_the_subset_may_stand_in_metadata():
    one = pair("hep-go", 0)
    one["metadata"] = {"subset": one.pop("subset")}
    assert value(list(metrics([check_rewardbench_pair(one)])), "accuracy", "hep-go")["count"] == 1
