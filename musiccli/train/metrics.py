"""What is measured of rewards: loss, accuracy and margin; for held-out pairs calibration, too."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from musiccli.train.pair_arrays import DIVERGENCES

Metrics = dict[str, Any]  # one step's values by name, as the log holds them

BINS = 10  # of confidence, from 0.5 to 1


def mean_metrics(
    losses: Sequence[float], margins: Sequence[float], rewards: Sequence[float]
) -> Metrics:
    """Means over pairs. They are no numbers where rewards are none.

    Accuracy is strict: a pair with equal rewards counts as wrong.

    Args:
        losses: one for each pair.
        margins: chosen minus rejected reward, one for each pair.
        rewards: of all sides.
    """
    count = len(losses)
    return {
        "loss": _total(losses) / count,
        "accuracy": sum(margin > 0 for margin in margins) / count,
        "margin": _total(margins) / count,
        "mean_reward": _total(rewards) / len(rewards),
    }


def _total(values: Sequence[float]) -> float:
    """The sum; no number where a value is none, or where both infinities are among them."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def held_out_metrics(
    rewards: Sequence[tuple[float, float]], turns: Sequence[int], divergences: Sequence[str]
) -> Metrics:
    """The metrics of held-out pairs: means, calibration, and accuracy by turns and by divergence.

    The loss is Bradley-Terry's alone, at the last turn. Runs with other margins, centering or
    `per_turn` can so be compared.

    Args:
        rewards: (chosen, rejected) of each pair.
        turns: of each pair, in the same order.
        divergences: in which exchange the sides of each pair begin to differ, one of DIVERGENCES.
    """
    margins = [chosen - rejected for chosen, rejected in rewards]
    # -log sigmoid(margin), written so that no exponential overflows.
    losses = [max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))) for margin in margins]
    means = mean_metrics(losses, margins, [reward for sides in rewards for reward in sides])
    return {
        "pairs": len(rewards),
        **means,
        "ece": expected_calibration_error(margins),
        "by_turns": _accuracies(margins, turns),
        "by_divergence": _accuracies(margins, divergences, DIVERGENCES),
    }


def expected_calibration_error(margins: Sequence[float]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    The model picks the side with the higher reward, with confidence sigmoid(|margin|). BINS bins of
    equal width divide the confidences from 0.5 to 1. The error is the mean over pairs of
    |accuracy - mean confidence| of their bin. A tie counts as half right. It is no number where a
    margin is none.
    """
    if any(map(math.isnan, margins)):
        return math.nan
    gaps: dict[int, list[float]] = defaultdict(list)
    for margin in margins:
        confidence = 1 / (1 + math.exp(-abs(margin)))
        correct = 0.5 if margin == 0 else float(margin > 0)
        bin_index = min(BINS - 1, int((confidence - 0.5) * 2 * BINS))
        gaps[bin_index].append(correct - confidence)
    return math.fsum(abs(math.fsum(bin_gaps)) for bin_gaps in gaps.values()) / len(margins)


def _accuracies(
    margins: Sequence[float], groups: Sequence[Any], order: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """{group: {"accuracy", "pairs"}}, in the order given or else sorted.

    Args:
        margins: one for each pair.
        groups: the group of each pair.
        order: of the groups; a group without pairs is left out.
    """
    correct: dict[Any, list[bool]] = defaultdict(list)
    for group, margin in zip(groups, margins, strict=True):
        correct[group].append(margin > 0)
    return {
        str(group): {
            "accuracy": sum(correct[group]) / len(correct[group]),
            "pairs": len(correct[group]),
        }
        for group in (order or sorted(correct))
        if group in correct
    }
