"""Agreement beyond chance: Cohen's kappa of two raters and Fleiss' kappa of several."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Array = np.ndarray[Any, np.dtype[Any]]


def cohen_kappa(table: "ArrayLike") -> "Array":
    """Cohen's kappa (Cohen 1960, Educational and Psychological Measurement 20:37).

    Args:
        table: counts, (..., categories of the first rater, categories of the second).

    Returns:
        (...); nan where chance alone explains all agreement.
    """
    import numpy as np

    table = np.asarray(table, float)
    total = table.sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(table, axis1=-2, axis2=-1) / total
        expected = (table.sum(-1) * table.sum(-2)).sum(-1) / total**2
    return _beyond_chance(observed, expected)


def fleiss_columns(table: "ArrayLike") -> "list[Array]":
    """The columns whose sums `fleiss_kappa` takes.

    Args:
        table: counts, (items, categories), of equally many raters on each item.

    Returns:
        2 + categories columns of (items,).
    """
    import numpy as np

    table = np.asarray(table, float)
    return [(table**2).sum(1), np.ones(len(table)), *table.T]


def fleiss_kappa(sums: "Array") -> "Array":
    """Fleiss' kappa (Fleiss 1971, Psychological Bulletin 76:378).

    Args:
        sums: sums of the columns of `fleiss_columns`, (..., 2 + categories).

    Returns:
        (...); nan where chance alone explains all agreement.
    """
    import numpy as np

    squares, items, categories = sums[..., 0], sums[..., 1], sums[..., 2:]
    ratings = categories.sum(-1)
    raters = ratings / items
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (squares / items - raters) / (raters * (raters - 1))
        expected = ((categories / ratings[..., None]) ** 2).sum(-1)
    return _beyond_chance(observed, expected)


def _beyond_chance(observed: "Array", expected: "Array") -> "Array":
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Array = (observed - expected) / np.where(expected < 1, 1 - expected, np.nan)
    return kappa
