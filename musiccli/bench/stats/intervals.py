"""Intervals and tests: for one proportion, for a weighted sum of them, and for anything that is resampled by prompt.

Pairs that share a prompt are not independent, so every function that takes `clusters` takes one number a value,
equal where the prompt is equal. numpy is imported inside: the command line loads without it.

How often the 95% intervals hold the truth, in simulations of 750 to 2,000 sets each: n = 100 to 2,000 values alone or
in clusters of 1 to 8, of an intra-cluster correlation up to 0.5; `tests/test_bench_coverage.py` repeats a part of them.

- `share_interval`, truths of 0.55 to 0.95: 93.2 to 98.0%. Below that only where few clusters hold all the errors: at
  0.95 with a correlation of 0.5, 89.8 to 92.5% with 38 to 77 clusters, 93.6% and more from 125 on. Without Student's
  t 91.8% and more otherwise; forgetting clusters of 1 to 8 with that correlation, under 85%.
- `bootstrap` of paired differences of accuracies: 92.9% (13 clusters of 8, accuracies 0.95 and 0.90) to 96.3%; plain
  percentiles hold 90 to 92% for 13 clusters. Of Cohen's kappa, truths of 0.03 to 0.70: 93.3 to 96.3%; plain 92.5%.
- `combine` of RewardBench's Reasoning, tasks in six languages correlated up to 0.6: 94.7 to 95.5% with `shared_excess`;
  taking the languages as independent, 87.1%.
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


def students_t(confidence: float, freedom: int) -> float:
    """`quantile` for a mean whose variance was estimated from `freedom` + 1 clusters: 2.26 for 0.95 and 9.

    By bisection of the distribution's sums (Abramowitz & Stegun 26.7.3 and 4), or for many degrees of freedom by the
    expansion of Fisher & Cornish (1960, Technometrics 2:209), good to seven digits there.
    """
    if freedom > 100:
        z = quantile(confidence)
        terms = (
            z,
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return math.fsum(term / freedom**power for power, term in enumerate(terms))
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < confidence else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """How much of Student's t lies within sqrt(freedom) * tan(angle) of 0."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


def wilson(
    share: float, count: float, confidence: float = 0.95, freedom: float = math.inf
) -> Interval:
    """Wilson's score interval for `share`, a mean of `count` outcomes between 0 and 1 (Wilson 1927, JASA 22:209).

    It stays inside 0..1 and keeps its width when every outcome is the same. Where `count` is itself an estimate, from
    `freedom` + 1 clusters, Student's t stands for the normal quantile.
    """
    square = (quantile(confidence) if freedom == math.inf else students_t(confidence, freedom)) ** 2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * (share * (1 - share) / count + square / (4 * count * count))) / (
        1 + square / count
    )
    return min(share, max(0.0, middle - half)), max(
        share, min(1.0, middle + half)
    )  # whatever is rounded


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


def share_interval(
    values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95
) -> Interval:
    """Wilson's interval of the mean of clustered values from 0 to 1, for as many as they are worth.

    A half point, for a tie, varies less than a toss of a coin: where there are some, the values are worth more than
    their number.
    """
    import numpy as np

    values, groups = np.asarray(values, float), len(np.unique(clusters))
    share, worth = float(values.mean()), effective_count(values, clusters)
    if values.var() > 0:
        worth *= share * (1 - share) / float(values.var())
    return wilson(
        share, worth, confidence, math.inf if groups == len(values) else max(1, groups - 1)
    )


def combine(
    shares: Sequence[float],
    intervals: Sequence[Interval],
    weights: Sequence[float],
    excess: float = 1.0,
) -> tuple[float, Interval]:
    """The weighted sum of shares, with the interval that follows from theirs.

    Each bound moves by the root of the weighted squares of the parts' own distances (MOVER: Zou & Donner 2008,
    Statistics in Medicine 27:1693), so parts at 0 or 1 keep the width that Wilson gives them. Of parts that are not
    independent, `excess` says how many times the variance is theirs.
    """
    value = math.fsum(weight * share for weight, share in zip(weights, shares, strict=True))
    parts = list(zip(weights, shares, intervals, strict=True))
    below = math.sqrt(
        excess * math.fsum((weight * (share - low)) ** 2 for weight, share, (low, _) in parts)
    )
    above = math.sqrt(
        excess * math.fsum((weight * (high - share)) ** 2 for weight, share, (_, high) in parts)
    )
    return value, (max(0.0, value - below), min(1.0, value + above))


def shared_excess(
    parts: Sequence[Sequence[float]], clusters: Sequence[Sequence[int]], weights: Sequence[float]
) -> float:
    """How many times the variance of a weighted sum of means is what it were, if no cluster stood in two of its parts.

    Both from sums of weighted residuals within clusters, over all parts at once and in each alone. At least 1: parts
    that share something are not taken for better than independent ones.
    """
    import numpy as np

    residuals = [
        weight * (np.asarray(part, float) - np.mean(part)) / len(part)
        for part, weight in zip(parts, weights, strict=True)
    ]
    together = totals([np.concatenate(residuals)], np.concatenate(clusters))
    apart = sum(
        float((totals([part], own) ** 2).sum())
        for part, own in zip(residuals, clusters, strict=True)
    )
    return max(1.0, float((together**2).sum()) / apart) if apart else 1.0


def totals(columns: Sequence[Sequence[float]], clusters: Sequence[int]) -> "np.ndarray":
    """Sums of each column within each cluster, (clusters, columns): what `bootstrap` resamples."""
    import numpy as np

    _, index = np.unique(clusters, return_inverse=True)
    return np.stack(
        [np.bincount(index, weights=np.asarray(column, float)) for column in columns], axis=1
    )


def bootstrap(
    rows: "np.ndarray",
    statistic: Callable[["np.ndarray"], "np.ndarray"],
    *,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of a statistic of column sums, its clusters drawn with replacement (Efron 1979).

    Percentiles are too narrow for few clusters; so they are taken further out, by as much as a mean's interval by
    Student's t is wider than one by the bootstrap's own spread (the expanded percentiles of Hesterberg 2015, The
    American Statistician 69:371).

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
    further = students_t(confidence, len(rows) - 1) * math.sqrt(len(rows) / (len(rows) - 1))
    tail = NormalDist().cdf(-further)
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def standard_error(values: Sequence[float], clusters: Sequence[int]) -> float:
    """Standard error of the mean of clustered values; nan for fewer than two clusters."""
    import numpy as np

    values = np.asarray(values, float)
    residuals = totals([values - values.mean()], clusters)[:, 0]
    groups = len(residuals)
    return (
        math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / len(values)
        if groups > 1
        else math.nan
    )


def detectable(error: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a test at `confidence` would have shown with probability `power`."""
    return (quantile(confidence) + NormalDist().inv_cdf(power)) * error


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: pairs only the one got right against pairs only the other did.

    Twice the lower tail of Binomial(n, 1/2), at most 1 (McNemar 1947, Psychometrika 12:153).
    """
    count, least = only_first + only_second, min(only_first, only_second)
    choose = (
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(least + 1)
    )
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
