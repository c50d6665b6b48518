"""Intervals and tests: for one proportion, for a weighted sum of them, and for anything that is resampled by prompt.

Pairs that share a prompt are not independent, so every function that takes `clusters` takes one number a value,
equal where the prompt is equal. numpy is imported inside: the command line loads without it.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]


def quantile(confidence: float) -> float:
    """Standard deviations on either side of a normal mean that hold `confidence` of it: 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(share: float, count: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for `share`, a mean of `count` outcomes between 0 and 1 (Wilson 1927, JASA 22:209).

    It stays inside 0..1 and keeps its width when every outcome is the same.
    """
    square = quantile(confidence) ** 2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * (share * (1 - share) / count + square / (4 * count * count))) / (1 + square / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_count(values: Sequence[float], clusters: Sequence[int]) -> float:
    """How many independent outcomes the clustered `values` are worth: their count over the design effect.

    The design effect is the clustered variance of the mean over the unclustered one (Kish 1965). It is 1 where
    every cluster is one value; where the values do not vary it cannot be told, and the clusters are counted.
    """
    import numpy as np

    values, (_, index) = np.asarray(values, float), np.unique(clusters, return_inverse=True)
    size, groups = len(values), index.max() + 1
    residuals = values - values.mean()
    alone = size * float(residuals @ residuals) / (size - 1) if size > 1 else 0.0
    if groups == 1 or alone == 0:
        return float(groups)
    totals = np.bincount(index, weights=residuals)
    together = groups * float(totals @ totals) / (groups - 1)
    return max(1.0, min(size, size * alone / together)) if together else float(size)


def share_interval(values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95) -> Interval:
    """Wilson's interval of the mean of clustered values between 0 and 1, for as many as they are worth."""
    return wilson(math.fsum(values) / len(values), effective_count(values, clusters), confidence)


def combine(shares: Sequence[float], intervals: Sequence[Interval], weights: Sequence[float]) -> tuple[float, Interval]:
    """The weighted sum of independent shares, with the interval that follows from theirs.

    Each bound moves by the root of the weighted squares of the parts' own distances (MOVER: Zou & Donner 2008,
    Statistics in Medicine 27:1693), so parts at 0 or 1 keep the width that Wilson gives them.
    """
    value = math.fsum(weight * share for weight, share in zip(weights, shares, strict=True))
    parts = list(zip(weights, shares, intervals, strict=True))
    below = math.sqrt(math.fsum((weight * (share - low)) ** 2 for weight, share, (low, _) in parts))
    above = math.sqrt(math.fsum((weight * (high - share)) ** 2 for weight, share, (_, high) in parts))
    return value, (max(0.0, value - below), min(1.0, value + above))


def totals(columns: Sequence[Sequence[float]], clusters: Sequence[int]) -> "np.ndarray":
    """Sums of each column within each cluster, (clusters, columns): what `bootstrap` resamples."""
    import numpy as np

    _, index = np.unique(clusters, return_inverse=True)
    return np.stack([np.bincount(index, weights=np.asarray(column, float)) for column in columns], axis=1)


def bootstrap(rows: "np.ndarray", statistic: Callable[["np.ndarray"], "np.ndarray"], *, draws: int = 10_000,
              confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """Percentile interval of a statistic of column sums, its clusters drawn with replacement (Efron 1979).

    `rows` is (clusters, columns), from `totals`; `statistic` maps (draws, columns) sums to (draws,) values. Equal rows
    are drawn together, as one multinomial: the same distribution as drawing clusters one by one, at a cost that
    grows with the kinds of rows and not with their number. None where nothing varies, as with a single cluster:
    resampling would claim certainty.
    """
    import numpy as np

    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    random, parts = np.random.default_rng(seed), []
    at_once = max(1, 10_000_000 // len(kinds))
    for start in range(0, draws, at_once):
        drawn = random.multinomial(len(rows), counts / len(rows), size=min(at_once, draws - start))
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(statistic(drawn @ kinds))
    values = np.concatenate(parts)
    if np.nanmin(values) == np.nanmax(values):
        return None
    low, high = np.nanquantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def standard_error(values: Sequence[float], clusters: Sequence[int]) -> float:
    """Standard error of the mean of clustered values; nan for fewer than two clusters."""
    import numpy as np

    values = np.asarray(values, float)
    residuals = totals([values - values.mean()], clusters)[:, 0]
    groups = len(residuals)
    return math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / len(values) if groups > 1 else math.nan


def detectable(error: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a test at `confidence` would have shown with probability `power`."""
    return (quantile(confidence) + NormalDist().inv_cdf(power)) * error


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: pairs only the one got right against pairs only the other did.

    Twice the lower tail of Binomial(n, 1/2), at most 1 (McNemar 1947, Psychometrika 12:153).
    """
    count, least = only_first + only_second, min(only_first, only_second)
    choose = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - count * math.log(2)) for log in choose))


def kappa(table: "np.ndarray") -> "np.ndarray":
    """Cohen's kappa of (..., categories, categories) counts; nan where chance alone explains all (Cohen 1960)."""
    import numpy as np

    table = np.asarray(table, float)
    total = table.sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = np.trace(table, axis1=-2, axis2=-1) / total
        chance = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
        return (agreed - chance) / np.where(chance < 1, 1 - chance, np.nan)


def fleiss_columns(table: "np.ndarray") -> list["np.ndarray"]:
    """What `fleiss_kappa` needs the sums of, from (items, categories) counts of equally many raters on each item."""
    import numpy as np

    table = np.asarray(table, float)
    return [(table**2).sum(1), np.ones(len(table)), *table.T]


def fleiss_kappa(sums: "np.ndarray") -> "np.ndarray":
    """Fleiss' kappa from (..., 2 + categories) sums of `fleiss_columns`; nan where chance alone explains all (Fleiss
    1971, Psychological Bulletin 76:378)."""
    import numpy as np

    squares, items, categories = sums[..., 0], sums[..., 1], sums[..., 2:]
    votes = categories.sum(-1)
    raters = votes / items
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = (squares / items - raters) / (raters * (raters - 1))
        chance = ((categories / votes[..., None]) ** 2).sum(-1)
        return (agreed - chance) / np.where(chance < 1, 1 - chance, np.nan)
