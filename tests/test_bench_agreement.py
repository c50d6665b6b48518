"""Agreement with labels: what counts as right, where, and which of two models does better."""

import numpy as np
import pytest
from build import lines, scored_pair, talk
from console import music
from scipy.stats import ttest_1samp

from musiccli.bench.agreement import BENCHMARK, AgreementConfig, check_labeled_pair, metrics
from musiccli.bench.stats.intervals import wilson_interval
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats


def pair(
    number,
    scores,
    names=("chosen", "rejected"),
    prompt=None,
    replies=("good",),
    others=("poor!",),
    **fields,
):
    """Scores by model are (first side, second side)."""
    prompt = prompt or f"prompt {number}"
    return Record(
        {
            "id": f"p{number}",
            names[0]: talk(prompt, *replies),
            names[1]: talk(prompt, *others),
            "metadata": {},
            "scores": {
                model: dict(zip(names, both, strict=True)) for model, both in scores.items()
            },
            **fields,
        }
    )


def judged(number, winner, scores, **fields):
    return pair(number, scores, ("a", "b"), winner=winner, **fields)


def find(rows, metric, subset="all", model="rm"):
    return [
        row
        for row in rows
        if (row["metric"], row["subset"], row["model"]) == (metric, subset, model)
    ]


def test_without_a_winner_chosen_is_better():
    rows = list(
        metrics([pair(0, {"rm": (1, 0)}), pair(1, {"rm": (0, 1)}), pair(2, {"rm": (2, 2)})])
    )
    [row] = find(rows, "accuracy")
    assert (row["value"], row["count"], row["ties"]) == (pytest.approx(1 / 3), 3, 1)


@pytest.mark.parametrize("winner, right", [("chosen", 1), ("rejected", 0)])
def test_a_judges_winner_overrules_the_names_of_the_sides(winner, right):
    [row] = find(list(metrics([pair(0, {"rm": (1, 0)}, winner=winner)])), "accuracy")
    assert row["value"] == right


def test_labels_that_name_no_side_are_left_out_and_counted():
    stats = RunStats()
    pairs = [
        judged(0, "tie", {"rm": (1, 0)}),
        judged(1, None, {"rm": (1, 0)}),
        judged(2, "b", {"rm": (0, 1)}),
    ]
    [row] = find(list(metrics(pairs, stats=stats)), "accuracy")
    assert (row["value"], row["count"]) == (1, 1)
    assert stats.phrases() == {"left out (label is a tie)": 1, "left out (label is null)": 1}


def test_baselines_stand_beside_the_model():
    rows = list(metrics([judged(0, "b", {"rm": (1, 0)}), judged(1, "a", {"rm": (1, 0)})]))
    found = {
        row["model"]: row["value"]
        for row in rows
        if row["metric"] == "accuracy" and row["subset"] == "all"
    }
    assert found == {
        "rm": 0.5,
        "baseline/longest": 0.5,
        "baseline/shortest": 0.5,
        "baseline/most-turns": 0.5,
        "baseline/fewest-turns": 0.5,
        "baseline/longest-last-reply": 0.5,
        "baseline/shortest-last-reply": 0.5,
        "baseline/first-listed": 0.5,
    }


def test_always_a_is_the_share_of_a():
    rows = list(metrics([judged(number, "ab"[number != 0], {"rm": (1, 0)}) for number in range(4)]))
    assert find(rows, "accuracy", model="baseline/first-listed")[0]["value"] == 0.25


def test_pairs_are_grouped_by_turns_and_by_first_divergence():
    pairs = [
        pair(0, {"rm": (1, 0)}),
        pair(1, {"rm": (0, 1)}, replies=["x", "q", "y"], others=["x", "q", "z"]),
        pair(2, {"rm": (1, 0)}, replies=["x", "q", "y"], others=["w"]),
    ]
    rows = list(metrics(pairs))
    accuracies = [
        (row["subset"], row["value"], row["count"])
        for row in rows
        if row["metric"] == "accuracy" and row["model"] == "rm"
    ]
    assert accuracies == [
        ("all", pytest.approx(2 / 3), 3),
        ("turns=1", 1, 1),
        ("turns=2", 0.5, 2),
        ("first_divergence=1", 1, 2),
        ("first_divergence=3", 0, 1),
    ]


def test_numbers_are_listed_in_their_order():
    pairs = [
        pair(turns, {"rm": (1, 0)}, replies=["x", "q"] * (turns - 1) + ["y"])
        for turns in (10, 2, 1)
    ]
    subsets = [
        row["subset"]
        for row in metrics(pairs, AgreementConfig(group_by=("turns",)))
        if (row["model"], row["metric"]) == ("rm", "accuracy")
    ]
    assert subsets == ["all", "turns=1", "turns=2", "turns=10"]


@pytest.mark.parametrize("field", ["metadata.category", "category"])
def test_pairs_are_grouped_by_a_field_of_the_metadata(field):
    pairs = [
        pair(0, {"rm": (1, 0)}, metadata={"category": "math"}),
        pair(1, {"rm": (0, 1)}, metadata={}),
        pair(2, {"rm": (0, 1)}, metadata={"category": "math"}),
    ]
    found = {
        row["subset"]: row["value"]
        for row in metrics(pairs, AgreementConfig(group_by=(field,)))
        if row["metric"] == "accuracy" and row["model"] == "rm"
    }
    assert found == {"all": pytest.approx(1 / 3), f"{field}=math": 0.5, f"{field}=none": 0}


def test_kappa_is_given_where_labels_name_both_sides():
    pairs = [
        judged(number, winner, {"rm": (1, 0) if picked == "a" else (0, 1)})
        for number, (winner, picked) in enumerate(
            ["aa"] * 20 + ["ab"] * 5 + ["bb"] * 15 + ["ba"] * 10
        )
    ]
    [row] = find(list(metrics(pairs, AgreementConfig(group_by=()))), "kappa")
    assert row["value"] == pytest.approx(0.4)  # agreed 0.7, chance 0.5 x 0.6 + 0.5 x 0.4
    assert row["low"] < 0.4 < row["high"]


def test_kappa_against_a_constant_label_is_not_given():
    assert (
        find(list(metrics([pair(number, {"rm": (1, number % 3)}) for number in range(9)])), "kappa")
        == []
    )


def two_models(gained, lost, both, per_prompt=1):
    """Pairs that only `new` has right, only `old`, and both; `per_prompt` copies of each."""
    outcomes = [((1, 0), (0, 1))] * gained + [((0, 1), (1, 0))] * lost + [((1, 0), (1, 0))] * both
    return [
        pair(f"{number}.{copy}", {"new": new, "old": old}, prompt=f"prompt {number}")
        for number, (new, old) in enumerate(outcomes)
        for copy in range(per_prompt)
    ]


def test_two_models_are_compared_on_the_same_pairs():
    rows = list(metrics(two_models(30, 10, 60), AgreementConfig(group_by=())))
    [difference], [test] = (
        find(rows, "accuracy_difference", model="new"),
        find(rows, "difference_p", model="new"),
    )
    assert (difference["value"], difference["count"], difference["against"]) == (0.2, 100, "old")
    assert (difference["low"], difference["high"]) == pytest.approx(
        (0.2 - 1.96 * 0.06, 0.2 + 1.96 * 0.06), abs=0.01
    )
    assert (test["only_first"], test["only_second"]) == (30, 10)
    assert (test["value"], test["test"]) == (pytest.approx(0.00222, abs=1e-5), "McNemar")
    [smallest] = find(rows, "detectable_difference", model="new")
    assert smallest["value"] == pytest.approx(2.8016 * np.sqrt((0.4 - 0.04) / 99), abs=1e-4)


def test_where_prompts_are_repeated_their_differences_are_tested():
    gains = np.array([3] * 12 + [-3] * 5 + [0] * 33)  # by prompt, of three pairs each
    rows = list(metrics(two_models(12, 5, 33, per_prompt=3), AgreementConfig(group_by=())))
    [test] = find(rows, "difference_p", model="new")
    assert test["value"] == pytest.approx(ttest_1samp(gains, 0).pvalue, rel=1e-9)
    assert (test["test"], test["only_first"]) == ("t-test by prompt", 36)
    [note] = [note for note in BENCHMARK.all_notes(rows) if note.startswith("new - old")]
    assert "150 pairs of 50 prompts; right alone 36 : 15; t-test by prompt p = 0.09;" in note


def test_repeating_every_pair_of_a_prompt_adds_nothing_to_what_is_known():
    once, often = (
        find(
            list(metrics(two_models(30, 10, 60, copies), AgreementConfig(group_by=()))),
            metric,
            model="new",
        )[0]
        for metric, copies in (("accuracy_difference", 1), ("accuracy_difference", 5))
    )
    assert (often["low"], often["high"]) == (once["low"], once["high"])
    once, often = (
        find(
            list(metrics(two_models(30, 10, 60, copies), AgreementConfig(group_by=()))),
            "accuracy",
            model="new",
        )[0]
        for copies in (1, 5)
    )
    assert (often["low"], often["high"]) == pytest.approx((once["low"], once["high"]), abs=0.003)


def test_pairs_that_only_one_model_scored_are_left_out_of_the_comparison():
    pairs = [*two_models(3, 1, 6), pair("alone", {"old": (1, 0)}), pair("first", {"new": (1, 0)})]
    rows = list(metrics(pairs, AgreementConfig(group_by=())))
    assert find(rows, "accuracy_difference", model="new")[0]["count"] == 10
    assert [find(rows, "accuracy", model=model)[0]["count"] for model in ("new", "old")] == [11, 11]


def test_interval_is_wilsons_where_no_prompt_repeats():
    rows = list(
        metrics(
            [pair(number, {"rm": (1, number % 4 == 0)}) for number in range(40)],
            AgreementConfig(confidence=0.9),
        )
    )
    [row] = find(rows, "accuracy")
    assert (row["low"], row["high"]) == pytest.approx(wilson_interval(0.75, 40, 0.9))


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {
                "id": "x",
                "a": talk("q", "r"),
                "b": talk("q", "s"),
                "scores": {"rm": {"a": 1, "b": 2}},
            },
            "winner: is missing; music judge adds it",
        ),
        (
            {"id": "x", "chosen": talk("q", "r"), "rejected": talk("q", "s")},
            "has no scores; run music score first",
        ),
        (
            {"id": "x", "messages": talk("q", "r"), "scores": {"rm": 1}},
            "chosen: is missing; the record is a conversation (messages)",
        ),
    ],
)
def test_a_record_that_cannot_be_counted_says_why(record, message):
    with pytest.raises(RecordError) as caught:
        check_labeled_pair(Record(record))
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_hundred_models_are_compared():
    scores = {f"rm{number}": {"chosen": number % 3, "rejected": 1} for number in range(100)}
    pairs = [scored_pair(number, 1, 0, scores=scores) for number in range(5)]
    done = music("bench", "agreement", given=lines(*pairs))
    assert done.status == 0 and {row["model"] for row in done.records} >= scores.keys()


def test_scores_by_thousands_of_models_are_refused_by_record_or_by_number():
    """Every two models are compared: 3,000 would take hours."""
    names = [f"rm{number}" for number in range(3000)]
    scores = {name: {"chosen": 1, "rejected": 0} for name in names}
    wide = scored_pair(0, 1, 0, scores=scores)
    done = music("bench", "agreement", given=lines(wide))
    assert (done.status, done.lines) == (
        2,
        [
            "music bench agreement: error: <stdin>:1: scores: are by 3,000 models; name those to "
            "compare with --model"
        ],
    )
    assert music("bench", "agreement", "--model", "rm7", given=lines(wide)).status == 0
    long = [scored_pair(n, 1, 0, scores={name: scores[name]}) for n, name in enumerate(names)]
    done = music("bench", "agreement", given=lines(*long))
    assert done.status == 2 and "scores by more than 128 models; name those" in done.err
