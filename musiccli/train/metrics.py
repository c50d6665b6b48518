"""What is measured of rewards: loss, accuracy, margin; on held-out pairs also calibration, and accuracy by kind."""

import math
from collections import defaultdict
from collections.abc import Sequence

from musiccli.train.tokenized_pairs import PARTS, Pair

BINS = 10  # of confidence, from 0.5 to 1


def means(losses: Sequence[float], margins: Sequence[float], rewards: Sequence[float]) -> dict:
    """Means over pairs. Accuracy is strict: a tie is no success."""
    count = len(losses)
    return {
        "loss": math.fsum(losses) / count,
        "accuracy": sum(margin > 0 for margin in margins) / count,
        "margin": math.fsum(margins) / count,
        "mean_reward": math.fsum(rewards) / len(rewards),
    }


def held_out(rewards: Sequence[tuple[float, float]], pairs: Sequence[Pair]) -> dict:
    """Of the rewards (chosen, rejected) of pairs: the means, ECE, and accuracy by turns and by where the sides part.

    The loss is Bradley-Terry's alone, so that runs with other margins or centring can be compared.
    """
    margins = [chosen - rejected for chosen, rejected in rewards]
    losses = [max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))) for margin in margins]
    found = means(losses, margins, [reward for both in rewards for reward in both])
    return (
        {"pairs": len(pairs)}
        | found
        | {
            "ece": calibration_error(margins),
            "by_turns": _accuracies(margins, [pair.turns for pair in pairs]),
            "by_divergence": _accuracies(margins, [pair.parts for pair in pairs], PARTS),
        }
    )


def calibration_error(margins: Sequence[float]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3) of the picks that margins make.

    The model picks the side with the higher reward, with confidence sigmoid(|margin|), between 0.5 and 1. These are
    put into BINS bins of equal width over that range; the error is the mean over pairs of |share of right picks -
    mean confidence| of their bin. A tie is half right.
    """
    bins = defaultdict(list)
    for margin in margins:
        confidence = 1 / (1 + math.exp(-abs(margin)))
        right = 0.5 if margin == 0 else float(margin > 0)
        bins[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))].append(right - confidence)
    return math.fsum(abs(math.fsum(gaps)) for gaps in bins.values()) / len(margins)


def _accuracies(
    margins: Sequence[float], kinds: Sequence[int | str], order: Sequence[str] = ()
) -> dict[str, dict]:
    """{kind: {"accuracy", "pairs"}} of each kind there is."""
    groups = defaultdict(list)
    for kind, margin in zip(kinds, margins, strict=True):
        groups[kind].append(margin > 0)
    return {
        str(kind): {"accuracy": sum(groups[kind]) / len(groups[kind]), "pairs": len(groups[kind])}
        for kind in (order or sorted(groups))
        if kind in groups
    }
