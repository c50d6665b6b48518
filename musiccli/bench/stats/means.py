"""Weighted means over parts of a benchmark, as metric records."""

from collections.abc import Mapping, Sequence
from typing import Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.intervals import combine_proportions, variance_inflation
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ModelOutcomes,
    accuracy_record,
    metric_record,
)
from musiccli.bench.stats.weighted import WeightedComparisons, part_of


class FigureRecords:
    """Makes the metric records of one benchmark's figures, and compares the models by them."""

    def __init__(self, benchmark: str, config: BenchConfig):
        self._benchmark, self._config = benchmark, config
        self.comparisons = WeightedComparisons(benchmark)

    def accuracy(self, subset: str, outcomes: ModelOutcomes, **extra: object) -> MetricRecord:
        """The metric record of the accuracy of a subset."""
        row = accuracy_record(self._benchmark, subset, outcomes, self._config.confidence, **extra)
        self.comparisons.add(row, [1.0], [part_of(outcomes)])
        return row

    def mean(
        self,
        subset: str,
        metric: str,
        parts: Sequence[ModelOutcomes],
        weights: Sequence[float] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> MetricRecord:
        """The metric record of the weighted mean of the accuracies of some parts of one model.

        Its interval takes values of one cluster as dependent, also across parts. Without `weights`
        it is the plain mean.
        """
        weights = weights or [1 / len(parts)] * len(parts)
        inflation = variance_inflation(
            [part.points for part in parts], [part.prompts for part in parts], weights
        )
        value, interval = combine_proportions(
            [part.accuracy for part in parts],
            [part.interval(self._config.confidence) for part in parts],
            weights,
            inflation,
        )
        count, ties = sum(map(len, parts)), sum(part.ties for part in parts)
        row = metric_record(
            self._benchmark,
            parts[0].model,
            subset,
            metric,
            value,
            interval,
            count,
            ties=ties,
            **(extra or {}),
        )
        self.comparisons.add(row, weights, [part_of(part) for part in parts])
        return row
