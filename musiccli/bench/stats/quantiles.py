"""Quantiles of the distributions that intervals are made from."""


def normal_quantile(confidence: float) -> float:
    """Standard deviations around a normal mean that hold `confidence` of it: 1.96 for 0.95."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2))


def t_quantile(confidence: float, degrees_of_freedom: float) -> float:
    """`normal_quantile` for Student's t distribution: 2.26 for 0.95 and 9 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.5 + confidence / 2))
