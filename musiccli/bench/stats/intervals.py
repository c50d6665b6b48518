"""Confidence intervals of means of values from 0 to 1, and of weighted sums of such means.

Values of one cluster (pairs that share a prompt) are not independent. So every function that takes
`clusters` takes one number per value, equal where the cluster is equal. numpy and scipy are
imported inside the functions: the command line starts without them.

Simulations measured how often the 95% intervals hold the true value: 750 to 2,000 sets per case,
100 to 2,000 values per set, alone or in clusters of 1 to 8, with an intra-cluster correlation of up
to 0.5. `tests/test_bench_coverage.py` repeats a part of them. The intervals of single benchmarks
hold it in 93.0 to 96.5% (`tests/test_bench_coverage_benchmarks.py`).

- `proportion_interval`, true values of 0.55 to 0.95: 93.2 to 98.0%. It is less only where few
  clusters hold all the errors: at 0.95 with a correlation of 0.5, it is 89.8 to 92.5% with 38 to 77
  clusters, and 93.6% or more from 125 clusters on. Without Student's t the other cases fall to
  91.8%. Without regard to clusters of 1 to 8 with that correlation, coverage is below 85%.
- `median_interval` of 10 to 400 values, alone or in clusters of 4: 93.9 to 95.3%.
- `combine_proportions` of RewardBench's Reasoning, whose tasks in six languages correlate by up to
  0.6: 94.7 to 95.5% with `variance_inflation`, and 87.1% if the languages count as independent.
"""

import math
from typing import TYPE_CHECKING

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.bootstrap import cluster_sums
from musiccli.bench.stats.quantiles import normal_quantile, t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

Interval = tuple[float, float]


def wilson_interval(
    proportion: float,
    count: float,
    confidence: float = BenchConfig.confidence,
    degrees_of_freedom: float = math.inf,
) -> Interval:
    """Wilson's score interval (Wilson 1927, JASA 22:209). It keeps its width at 0 and at 1.

    Args:
        proportion: a mean of outcomes from 0 to 1.
        count: how many independent outcomes it is the mean of; need not be a whole number.
        confidence: how often the interval should hold the true value.
        degrees_of_freedom: clusters minus one, where `count` is estimated from clusters. Student's
            t then replaces the normal distribution.
    """
    if degrees_of_freedom == math.inf:
        square = normal_quantile(confidence) ** 2
    else:
        square = t_quantile(confidence, degrees_of_freedom) ** 2
    variance = proportion * (1 - proportion) / count + square / (4 * count * count)
    center = (proportion + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(square * variance) / (1 + square / count)
    # The outer minimum and maximum keep the proportion inside where rounding would not.
    return min(proportion, max(0.0, center - half)), max(proportion, min(1.0, center + half))


def effective_sample_size(values: "ArrayLike", clusters: "ArrayLike") -> float:
    """How many independent outcomes the clustered values are worth.

    That is their count over the design effect: the variance of the mean with regard to clusters,
    over the variance without (Kish 1965, Survey Sampling). Where the values do not vary, the design
    effect is unknown, and the result is the number of clusters.
    """
    import numpy as np

    values, (_, index) = np.asarray(values, float), np.unique(clusters, return_inverse=True)
    size, groups = len(values), int(index.max()) + 1
    residuals = values - values.mean()
    independent = size * float(residuals @ residuals) / (size - 1) if size > 1 else 0.0
    if groups == 1 or independent == 0:
        return float(groups)
    sums = np.bincount(index, weights=residuals)
    clustered = groups * float(sums @ sums) / (groups - 1)
    return max(1.0, min(size, size * independent / clustered)) if clustered else float(size)


def proportion_interval(
    values: "ArrayLike", clusters: "ArrayLike", confidence: float = BenchConfig.confidence
) -> Interval:
    """Wilson's interval of the mean of clustered values from 0 to 1.

    Half points vary less than zeros and ones. So values with half points count for more
    independent outcomes than there are values.
    """
    import numpy as np

    values, groups = np.asarray(values, float), len(np.unique(clusters))
    proportion, size = float(values.mean()), effective_sample_size(values, clusters)
    if values.var() > 0:
        size *= proportion * (1 - proportion) / float(values.var())
    degrees_of_freedom = math.inf if groups == len(values) else max(1, groups - 1)
    return wilson_interval(proportion, size, confidence, degrees_of_freedom)


def median_interval(
    values: "ArrayLike", clusters: "ArrayLike", confidence: float = BenchConfig.confidence
) -> Interval:
    """The interval of a median of clustered values (Woodruff 1952, JASA 47:635).

    Its bounds are the quantiles at the bounds of the interval of the share that lies below. Value k
    of n is the quantile k / (n + 1); a quantile (k - 1) / (n - 1) would lie too far inside.
    """
    import numpy as np

    values = np.asarray(values, float)
    size = effective_sample_size(values < np.median(values), clusters)
    share = wilson_interval(0.5, size, confidence)
    low, high = np.quantile(values, share, method="weibull")
    return float(low), float(high)


def combine_proportions(
    proportions: "Sequence[float]",
    intervals: "Sequence[Interval]",
    weights: "Sequence[float]",
    inflation: float = 1.0,
) -> tuple[float, Interval]:
    """The weighted sum of proportions, and its interval from theirs.

    Each bound lies at the root of the summed squares of the weighted distances of the parts' own
    bounds (MOVER: Zou and Donner 2008, Statistics in Medicine 27:1693). So parts at 0 or 1 keep the
    width that Wilson's interval gives them.

    Args:
        proportions: one per part.
        intervals: one per part.
        weights: one per part.
        inflation: how many times larger the variance is than that of independent parts.
    """
    parts = list(zip(weights, proportions, intervals, strict=True))
    value = math.fsum(weight * proportion for weight, proportion, _ in parts)
    below = math.fsum((weight * (part - low)) ** 2 for weight, part, (low, _) in parts)
    above = math.fsum((weight * (high - part)) ** 2 for weight, part, (_, high) in parts)
    low, high = value - math.sqrt(inflation * below), value + math.sqrt(inflation * above)
    return value, (max(0.0, low), min(1.0, high))


def variance_inflation(
    parts: "Sequence[ArrayLike]", clusters: "Sequence[ArrayLike]", weights: "Sequence[float]"
) -> float:
    """How much larger the variance of a weighted sum of means is because its parts share clusters.

    It compares sums of squared weighted residuals: summed within clusters over all parts at once,
    and within clusters of each part alone. It is at least 1.

    Args:
        parts: the values of each part.
        clusters: the cluster of each value of each part.
        weights: one per part.
    """
    import numpy as np

    residuals = []
    for part, weight in zip(parts, weights, strict=True):
        values = np.asarray(part, float)
        residuals.append(weight * (values - values.mean()) / len(values))
    together = cluster_sums([np.concatenate(residuals)], np.concatenate(clusters))
    apart = sum(
        float((cluster_sums([part], part_clusters) ** 2).sum())
        for part, part_clusters in zip(residuals, clusters, strict=True)
    )
    return max(1.0, float((together**2).sum()) / apart) if apart else 1.0


def standard_error(values: "ArrayLike", clusters: "ArrayLike") -> float:
    """Standard error of the mean of clustered values; nan where there is only one cluster."""
    import numpy as np

    values = np.asarray(values, float)
    sums = cluster_sums([values - values.mean()], clusters)[:, 0]
    groups = len(sums)
    if groups < 2:
        return math.nan
    return math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(values)
