"""Bradley-Terry ratings of judges as RankJudge computes them, and strengths of any players.

A judge beats a pair that it gets right, and loses to one that it gets wrong. Only pairs that every
judge read count, and of these only pairs that some got right and others wrong. Strengths have a
mean of 1 over judges and pairs, and a rating is 400 log10(strength) + 1500.

The strength of a pair depends only on how many judges got it right. So the fit needs the number of
pairs for each such number, and the number of pairs that each judge got right.

Source: _filter_trivial_pairs in code/metrics.py and run_bradley_terry in code/utils.py of
github.com/layer6ai-labs/RankJudge (arXiv 2605.21748). Theirs stops at changes of 1e-6 and rounds.

Each pair has a strength of its own that few judges decide, so ratings lie further apart than true
strengths do (Neyman and Scott 1948). Intervals are those of the rating that many such pairs give.
"""

import math
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.bootstrap import cluster_sums
from musiccli.bench.stats.quantiles import t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Array = np.ndarray[Any, np.dtype[Any]]

FIRST_RATING, POINTS_PER_TENFOLD = 1500, 400
MAX_STEPS, TOLERANCE = 100_000, 1e-14
MAX_PLAYER_STEPS, LEAST_STRENGTH = 5_000, 1e-12


def select_rated(right: "Array") -> "tuple[Array, Array]":
    """Which pairs and which judges can be rated.

    A judge that is right, or wrong, about every pair that is left has no finite rating. Where the
    likelihood of the others has no maximum, none is rated.

    Args:
        right: (pairs, judges), true where a judge got a pair right; every judge read every pair.

    Returns:
        (pairs,) and (judges,) flags.
    """
    import numpy as np

    judges = np.ones(right.shape[1], bool)
    while True:
        counts = right[:, judges].sum(1)
        pairs = (counts > 0) & (counts < judges.sum())
        wins = right[pairs].sum(0)
        rated = judges & (wins > 0) & (wins < pairs.sum())
        if (rated == judges).all():
            break
        judges = rated
    if judges.any() and not are_connected(right[pairs][:, judges]):
        return pairs & False, judges & False
    return pairs, judges


def are_connected(right: "Array") -> bool:
    """Whether the likelihood of ratings has a maximum (Ford 1957, Am. Math. Monthly 64:28).

    Of any two judges each must have beaten the other, itself or by a chain of others. One judge
    beats another by a pair that it got right and the other got wrong. A pair that some got right
    and others wrong stands between two judges, so it adds no condition.

    Args:
        right: (pairs, judges).
    """
    import numpy as np
    from scipy.sparse.csgraph import connected_components

    beats = np.asarray(right, float).T @ ~right > 0
    components, _ = connected_components(beats, connection="strong")
    return int(components) == 1


def rating_columns(right: "Array") -> "Array":
    """What the fit takes the sums of, (pairs, 2 x judges - 1).

    First, for each number from 1 to judges - 1, whether so many judges got the pair right. Then
    whether each judge did.

    Args:
        right: (pairs, judges), as `select_rated` chose them.
    """
    import numpy as np

    numbers = np.arange(1, right.shape[1])
    return np.concatenate([right.sum(1)[:, None] == numbers, right], axis=1).astype(float)


def ratings(sums: "Array") -> "Array":
    """The maximum-likelihood ratings of the judges, (..., judges).

    Args:
        sums: sums of the columns of `rating_columns`, (..., 2 x judges - 1).
    """
    import numpy as np

    judges = (sums.shape[-1] + 1) // 2
    pairs, wins = sums[..., : judges - 1], sums[..., judges - 1 :]
    losses_of_judges = np.arange(judges - 1, 0, -1.0)  # pair strengths: how many judges it beats
    strengths, pair_strengths = np.ones(wins.shape), np.ones(pairs.shape)
    for _ in range(MAX_STEPS):
        before = strengths
        odds = 1 / (strengths[..., :, None] + pair_strengths[..., None, :])
        strengths = wins / (odds * pairs[..., None, :]).sum(-1)
        odds = 1 / (strengths[..., :, None] + pair_strengths[..., None, :])
        pair_strengths = losses_of_judges / odds.sum(-2)
        total = strengths.sum(-1) + (pairs * pair_strengths).sum(-1)
        mean = (total / (judges + pairs.sum(-1)))[..., None]
        strengths, pair_strengths = strengths / mean, pair_strengths / mean
        if np.abs(np.log(strengths / before)).max() < TOLERANCE:
            break
    rating: Array = POINTS_PER_TENFOLD * np.log10(strengths) + FIRST_RATING
    return rating


def rate_judges(
    right: "ArrayLike", clusters: "ArrayLike", config: BenchConfig = BenchConfig()
) -> tuple[list[float | None], list[tuple[float, float] | None], int]:
    """The rating of each judge, its interval, and how many pairs the ratings are from.

    Intervals are from the delta method: the change of a rating with each sum, times how the sums
    vary between clusters.

    Args:
        right: (pairs, judges), true where a judge got a pair right.
        clusters: of the pairs; those of one cluster are not independent.
        config: the confidence.

    Returns:
        None stands for a judge without a finite rating and for an interval from one cluster.
    """
    import numpy as np

    right = np.asarray(right, bool)
    pairs, judges = select_rated(right)
    values: list[float | None] = [None] * right.shape[1]
    intervals: list[tuple[float, float] | None] = [None] * right.shape[1]
    if not pairs.any():
        return values, intervals, 0
    columns = rating_columns(right[pairs][:, judges])
    rows = cluster_sums(list(columns.T), np.asarray(clusters)[pairs])
    half_widths = _half_widths(rows, config)
    for index, value, half in zip(
        np.flatnonzero(judges), ratings(rows.sum(0)), half_widths, strict=True
    ):
        values[index] = float(value)
        if math.isfinite(half):
            intervals[index] = float(value - half), float(value + half)
    return values, intervals, int(pairs.sum())


def _half_widths(rows: "Array", config: BenchConfig) -> "Array":
    """Half the width of each judge's interval, (judges,); nan where there is one cluster."""
    import numpy as np

    groups, sums = len(rows), rows.sum(0)
    steps = np.diag(np.minimum(0.5, sums / 4))
    used = rows.std(0) > 0
    if groups < 2 or not used.any():
        return np.full((rows.shape[1] + 1) // 2, np.nan)
    above, below = ratings(sums + steps[used]), ratings(sums - steps[used])
    slopes = (above - below) / (2 * np.diag(steps)[used])[:, None]
    influence = (rows - rows.mean(0))[:, used] @ slopes
    error = np.sqrt(groups / (groups - 1) * (influence**2).sum(0))
    half: Array = t_quantile(config.confidence, groups - 1) * error
    return half


def player_strengths(wins: "Array") -> "Array":
    """The logarithms of Bradley-Terry strengths of players, (..., players), 0 on average.

    Maximum likelihood by the steps of Hunter 2004, Annals of Statistics 32:384. No strength is
    taken to be less than LEAST_STRENGTH, which is that of a player without any win.

    Args:
        wins: how often each player (row) beat each other one (column), (..., players, players);
            a tie is half a win for each.
    """
    import numpy as np

    games = wins + np.swapaxes(wins, -1, -2)
    total = wins.sum(-1)
    strengths = np.ones(total.shape)
    for _ in range(MAX_PLAYER_STEPS):
        before = strengths
        rates = games / (strengths[..., :, None] + strengths[..., None, :])
        strengths = np.maximum(total / np.maximum(rates.sum(-1), LEAST_STRENGTH), LEAST_STRENGTH)
        strengths = strengths / np.exp(np.log(strengths).mean(-1, keepdims=True))
        if np.abs(np.log(strengths / before)).max() < TOLERANCE:
            break
    logs: Array = np.log(strengths)
    return logs
