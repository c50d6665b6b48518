"""Bootstrap intervals of statistics of clustered values.

A statistic is computed from column sums. `cluster_sums` gives one row of sums for each cluster
(pairs that share a prompt), and the bootstrap draws such rows.

Simulations as in intervals.py measured how often the 95% intervals hold the true value:

- paired differences of accuracies: 92.9% (13 clusters of 8, accuracies 0.95 and 0.90) to 96.3%.
  Plain percentiles hold it in 90 to 92% for 13 clusters.
- Cohen's kappa, true values of 0.03 to 0.70: 93.3 to 96.3%. Plain percentiles: from 92.5%.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.quantiles import t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_CELLS = 10_000_000  # drawn counts that are in memory at once: 80 MB


def cluster_sums(columns: "Sequence[ArrayLike]", clusters: "ArrayLike") -> "Array":
    """The sums of each column within each cluster, (clusters, columns)."""
    import numpy as np

    _, index = np.unique(clusters, return_inverse=True)
    return np.stack(
        [np.bincount(index, weights=np.asarray(column, float)) for column in columns], axis=1
    )


def bootstrap_interval(
    rows: "Array",
    statistic: "Callable[[Array], Array]",
    config: BenchConfig = BenchConfig(),
) -> tuple[float, float] | None:
    """Percentile interval of a statistic, from clusters drawn with replacement (Efron 1979).

    Percentiles are too narrow for few clusters. So they are taken further out, by as much as
    Student's t makes the interval of a mean wider than the bootstrap's own spread does (expanded
    percentiles: Hesterberg 2015, The American Statistician 69:371).

    Equal rows are drawn together, as one multinomial. That is the same distribution as drawing the
    clusters one by one, but its cost grows with the number of distinct rows.

    Args:
        rows: (clusters, columns), from `cluster_sums`.
        statistic: maps sums, (samples, columns), to values, (samples,).
        config: the number of bootstrap samples, the confidence and the seed.

    Returns:
        The bounds. None where all samples are equal, as with one cluster: they show no spread, but
        that does not make the value certain.
    """
    import numpy as np

    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    return bootstrap_interval_of_counts(distinct, counts, statistic, config)


def bootstrap_interval_of_counts(
    distinct: "Array",
    counts: "Array",
    statistic: "Callable[[Array], Array]",
    config: BenchConfig = BenchConfig(),
) -> tuple[float, float] | None:
    """`bootstrap_interval` of rows that were counted already.

    Args:
        distinct: (distinct rows, columns), in ascending order.
        counts: how many clusters have each of them.
        statistic: as of `bootstrap_interval`.
        config: as of `bootstrap_interval`.
    """
    import numpy as np
    from scipy.special import ndtr

    groups = int(counts.sum())
    generator, parts = np.random.default_rng(config.seed), []
    batch = max(1, MAX_CELLS // len(distinct))
    for start in range(0, config.bootstrap, batch):
        size = min(batch, config.bootstrap - start)
        drawn = generator.multinomial(groups, counts / groups, size=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(statistic(drawn @ distinct))
    values = np.concatenate(parts)
    if np.nanmin(values) == np.nanmax(values):
        return None
    expanded = t_quantile(config.confidence, groups - 1) * math.sqrt(groups / (groups - 1))
    tail = float(ndtr(-expanded))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
