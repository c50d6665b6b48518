"""Plain means over parts of a benchmark, as metric records."""

from collections.abc import Mapping, Sequence
from typing import Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.intervals import combine_proportions, variance_inflation
from musiccli.bench.stats.outcomes import MetricRecord, ModelOutcomes, metric_record


def mean_record(
    benchmark: str,
    model: str,
    subset: str,
    metric: str,
    parts: Sequence[ModelOutcomes],
    config: BenchConfig,
    extra: Mapping[str, Any] | None = None,
) -> MetricRecord:
    """The metric record of the plain mean of the accuracies of some parts.

    Its interval takes values of one cluster as dependent, also across parts.
    """
    weights = [1 / len(parts)] * len(parts)
    inflation = variance_inflation(
        [part.points for part in parts], [part.prompts for part in parts], weights
    )
    value, interval = combine_proportions(
        [part.accuracy for part in parts],
        [part.interval(config.confidence) for part in parts],
        weights,
        inflation,
    )
    count, ties = sum(map(len, parts)), sum(part.ties for part in parts)
    return metric_record(
        benchmark, model, subset, metric, value, interval, count, ties=ties, **(extra or {})
    )
