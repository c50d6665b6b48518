"""Tests of differences, and the differences that a test could have shown."""

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.quantiles import normal_quantile


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


def detectable_difference(
    standard_error: float, confidence: float = BenchConfig.confidence, power: float = 0.8
) -> float:
    """The smallest true difference that a test would have shown with probability `power`."""
    from scipy.special import ndtri

    return (normal_quantile(confidence) + float(ndtri(power))) * standard_error
