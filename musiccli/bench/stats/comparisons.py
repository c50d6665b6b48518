"""Two models on the same pairs: how much more often the first is right than the second."""

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.intervals import standard_error
from musiccli.bench.stats.outcomes import MetricRecord, ScoredPairs, metric_record
from musiccli.bench.stats.significance import detectable_difference, mcnemar_p

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def compare_models(
    benchmark: str, pairs: ScoredPairs, subset: str, mask: "Array | None", config: BenchConfig
) -> Iterator[MetricRecord]:
    """Metric records that compare every two models, baselines left out."""
    models = [model for model in pairs.models if not is_baseline(model)]
    for first, second in combinations(models, 2):
        yield from _compare_two(benchmark, pairs, subset, mask, first, second, config)


def _compare_two(
    benchmark: str,
    pairs: ScoredPairs,
    subset: str,
    mask: "Array | None",
    first: str,
    second: str,
    config: BenchConfig,
) -> Iterator[MetricRecord]:
    """Metric records of two models on the pairs that both of them scored.

    - `accuracy_difference`; its interval is a paired bootstrap over prompts.
    - `mcnemar_p`; McNemar's test takes the pairs as independent.
    - `detectable_difference`: the true difference that such a set of pairs would show to be
      significant with a probability (power) of 80%.
    """
    scored_by_first = pairs.outcomes(first, pairs.outcomes(second, mask).mask)
    scored_by_second = pairs.outcomes(second, scored_by_first.mask)
    count = len(scored_by_first)
    if not count:
        return
    gains = scored_by_first.points - scored_by_second.points

    def record(metric: str, value: float, interval: Any = None, **extra: object) -> MetricRecord:
        return metric_record(
            benchmark, first, subset, metric, value, interval, count, against=second, **extra
        )

    rows = cluster_sums([gains, gains * 0 + 1], scored_by_first.prompts)
    interval = bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1], config)
    yield record("accuracy_difference", gains.mean(), interval, prompts=len(rows))
    only_first, only_second = int((gains > 0).sum()), int((gains < 0).sum())
    p = mcnemar_p(only_first, only_second)
    yield record("mcnemar_p", p, only_first=only_first, only_second=only_second)
    error = standard_error(gains, scored_by_first.prompts)
    if error > 0:
        yield record("detectable_difference", detectable_difference(error, config.confidence))
