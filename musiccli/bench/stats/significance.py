"""Tests of differences, and the differences that a test could have shown."""

import math
from collections.abc import Sequence

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.quantiles import normal_quantile

MCNEMAR, T_BY_PROMPT = "McNemar", "t-test by prompt"  # the names of tests


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947, Psychometrika 12:153).

    It is twice the lower tail of Binomial(n, 1/2), at most 1.

    Args:
        only_first: how many pairs the first model alone has right.
        only_second: how many pairs the second model alone has right.
    """
    from scipy.special import bdtr

    count = only_first + only_second
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), count, 0.5))) if count else 1.0


def mean_p(mean: float, standard_error: float, clusters: int) -> float:
    """Two-sided p-value of a mean of clustered values, of the hypothesis that it is 0.

    It is that of Student's t. Where the clusters do not vary, it is that of their common sign.

    Args:
        mean: of the values.
        standard_error: of the mean by clusters; nan where it is not known, and p is then 1.
        clusters: how many there are; without spread, in how many the value differs from 0.
    """
    from scipy.special import stdtr

    if mean == 0 or math.isnan(standard_error):
        return 1.0
    if standard_error == 0:
        return min(1.0, 2 * 0.5**clusters)
    return 2 * float(stdtr(clusters - 1, -abs(mean) / standard_error))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Of m tests the k-th smallest p-value is multiplied by m - k + 1. None is then smaller than an
    adjusted one before it, or larger than 1.
    """
    adjusted, largest = [math.nan] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def detectable_difference(
    standard_error: float, confidence: float = BenchConfig.confidence, power: float = 0.8
) -> float:
    """The smallest true difference that a test would have shown with probability `power`."""
    from scipy.special import ndtri

    return (normal_quantile(confidence) + float(ndtri(power))) * standard_error
