"""What is measured of rewards: by the formulas, on numbers small enough to do by hand."""

import math

import pytest
from build import talk

from musiccli.core.errors import InputError
from musiccli.train.log import describe_metrics
from musiccli.train.metrics import expected_calibration_error, held_out_metrics, mean_metrics
from musiccli.train.run import _refuse_non_finite_rewards
from musiccli.train.tokenized_pairs import diverging_exchange


def logit(confidence):
    return math.log(confidence / (1 - confidence))


def test_means_are_over_pairs_and_a_tie_is_no_success():
    assert mean_metrics([0.5, 1.5], [2.0, 0.0], [1, 2, 3, 4]) == {
        "loss": 1.0,
        "accuracy": 0.5,
        "margin": 1.0,
        "mean_reward": 2.5,
    }


@pytest.mark.parametrize(
    "margins, error",
    [
        ([logit(0.8)] * 4 + [-logit(0.8)], 0.0),  # right in four of five, and 80% sure
        ([logit(0.8)] * 5, 0.2),
        ([-logit(0.9)] * 3, 0.9),  # sure and wrong
        ([0.0, 0.0], 0.0),  # ties: half right, half sure
        ([logit(0.71), logit(0.74)], 0.275),  # one bin: 1 - 0.725
        ([logit(0.74), -logit(0.76)], (0.26 + 0.76) / 2),  # two bins: nothing cancels
        ([logit(0.71), -logit(0.74)], abs(0.5 - 0.725)),  # one bin: half right
        ([1e6, 800.0], 0.0),
    ],
)
def test_calibration_error_is_the_gap_between_confidence_and_accuracy_by_bin(margins, error):
    assert expected_calibration_error(margins) == pytest.approx(error, abs=1e-12)


def test_held_out_pairs_are_broken_down_by_turns_and_by_diverging_exchange():
    found = held_out_metrics(
        [(2.0, 1.0), (0.0, 1.0), (5.0, 5.0), (1.0, -1.0)],
        [3, 1, 3, 12],
        ["first", "last", "middle", "last"],
    )
    assert found["loss"] == pytest.approx(
        sum(math.log(1 + math.exp(-m)) for m in (1, -1, 0, 2)) / 4
    )
    assert {name: found[name] for name in ("pairs", "accuracy", "margin", "mean_reward")} == {
        "pairs": 4,
        "accuracy": 0.5,
        "margin": 0.5,
        "mean_reward": 14 / 8,
    }
    assert list(found["by_turns"].items()) == [
        ("1", {"accuracy": 0.0, "pairs": 1}),
        ("3", {"accuracy": 0.5, "pairs": 2}),
        ("12", {"accuracy": 1.0, "pairs": 1}),
    ]
    assert list(found["by_divergence"].items()) == [
        ("first", {"accuracy": 1.0, "pairs": 1}),
        ("middle", {"accuracy": 0.0, "pairs": 1}),
        ("last", {"accuracy": 0.5, "pairs": 2}),
    ]


def test_a_huge_margin_overflows_nothing():
    assert held_out_metrics([(-1e4, 1e4)], [1], ["last"])["loss"] == 2e4


@pytest.mark.parametrize(
    "chosen, rejected, where",
    [
        (talk("q", "a"), talk("q", "b"), "last"),
        (talk("q", "a", "r", "b"), talk("q", "a", "r", "c"), "last"),
        (talk("q", "a", "r", "b"), talk("q", "x", "r", "b"), "first"),
        (talk("q", "a", "r", "b"), talk("z", "a", "r", "b"), "first"),
        (talk("q", "a", "r", "b"), talk("q", "a", "s", "b"), "middle"),
        (talk("q", "a", "r", "b", "s", "c"), talk("q", "a", "r", "x", "s", "c"), "middle"),
        (talk("q", "a", "r", "b"), talk("q", "a"), "middle"),
        (
            [{"role": "system", "content": "s"}, *talk("q", "a", "r", "b")],
            [{"role": "system", "content": "s"}, *talk("q", "x", "r", "b")],
            "first",
        ),
    ],
)
def test_where_sides_part(chosen, rejected, where):
    assert diverging_exchange(chosen, rejected) == diverging_exchange(rejected, chosen) == where


def test_the_last_line_tells_the_counts_and_leaves_out_what_is_not_known():
    step = {
        "step": 6,
        "epoch": 2.0,
        "tokens": 77,
        "loss": 0.61234,
        "grad_norm": None,
        "eval_by_turns": {"1": {"accuracy": 0.5, "pairs": 8}, "2": {"accuracy": 1.0, "pairs": 3}},
    }
    assert describe_metrics(step) == "step 6, loss 0.6123, eval_by_turns 1: 0.5 of 8 2: 1 of 3"


@pytest.mark.parametrize(
    "rewards",
    [[(math.nan, 0.0), (1.0, 0.0)], [(math.inf, 0.0), (0.0, math.inf)], [(math.inf, math.inf)]],
)
def test_rewards_that_are_no_numbers_have_metrics_that_are_none(rewards):
    count = len(rewards)
    measured = held_out_metrics(rewards, [1] * count, ["first"] * count)
    assert not math.isfinite(measured["mean_reward"]) and not math.isfinite(measured["loss"])
    assert measured["pairs"] == count


def test_a_held_out_reward_that_is_no_number_is_refused_by_set_and_step():
    metrics = {"step": 7, "eval_mean_reward": 0.5, "eval_facts_mean_reward": math.nan}
    _refuse_non_finite_rewards(metrics, [""])
    with pytest.raises(InputError, match="held-out pairs facts is nan at step 7; lower `lr`"):
        _refuse_non_finite_rewards(metrics, ["", "facts"])
