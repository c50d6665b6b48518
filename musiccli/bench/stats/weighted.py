"""Models compared by figures that are weighted means: sections and averages of benchmarks.

A figure is a weighted sum of the values of its parts, and each item of a part moves it by a little.
The difference of two models' figures is tested by Student's t. Its standard error is that of the
differences of these little moves, summed by prompt, so that what both models find hard cancels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.comparisons import MANY_MODELS, holm_records
from musiccli.bench.stats.outcomes import MetricRecord, ModelOutcomes, metric_record
from musiccli.bench.stats.quantiles import t_quantile
from musiccli.bench.stats.significance import (
    MCNEMAR,
    T_BY_PROMPT,
    detectable_difference,
    mcnemar_p,
    mean_p,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


ROUNDING = 1e-12  # a standard error below it is 0: all items move both figures alike


class Part(NamedTuple):
    """A part of a figure: what its items add to its value.

    Attributes:
        moves: how far each item moves the part's value from its mean, (items,); they sum to 0.
        clusters: the cluster of each item.
        is_right: whether each item is right; None where items earn other points than 0 and 1.
        value: the mean of the items' points; None where the part is no mean.
    """

    moves: "Array"
    clusters: "Array"
    is_right: "Array | None" = None
    value: float | None = None


def part_of_moves(
    moves: "Array",
    clusters: "Array",
    is_right: "Array | None" = None,
    value: float | None = None,
) -> Part:
    """A part, with moves that are larger by as much as few clusters show too little spread."""
    import numpy as np

    groups = len(np.unique(clusters))
    factor = math.sqrt(groups / (groups - 1)) if groups > 1 else math.nan
    return Part(factor * moves, clusters, is_right, value)


def part_of(outcomes: ModelOutcomes) -> Part:
    """The part whose value is an accuracy."""
    points = outcomes.points
    is_right = points == 1
    has_halves = bool((points[~is_right] != 0).any())
    mean = float(points.mean())
    moves = (points - mean) / len(points)
    return part_of_moves(moves, outcomes.prompts, None if has_halves else is_right, mean)


class Figure(NamedTuple):
    """A model's figure.

    Attributes:
        row: its metric record.
        weights: of its parts.
        clusters: each cluster once, ascending.
        moves: by cluster.
        parts: in the order of the weights.
    """

    row: MetricRecord
    weights: Sequence[float]
    clusters: "Array"
    moves: "Array"
    parts: Sequence[Part]


class Difference(NamedTuple):
    """A first figure minus a second one.

    Attributes:
        value: the difference.
        standard_error: by clusters; nan where it is not known.
        degrees_of_freedom: of Student's t.
        clusters: how many clusters both figures are from.
        p: of the hypothesis that the figures are equal.
        test: the name of the test that gave `p`.
    """

    value: float
    standard_error: float
    degrees_of_freedom: int
    clusters: int
    p: float
    test: str


class WeightedComparisons:
    """Collects the figures of all models, and compares those of the same subset."""

    def __init__(self, benchmark: str):
        self._benchmark = benchmark
        self._figures: dict[str, dict[str, Figure]] = {}  # by subset, by model

    def add(self, row: MetricRecord, weights: Sequence[float], parts: Sequence[Part]) -> None:
        """Add a figure by its metric record; baselines are not compared."""
        import numpy as np

        if is_baseline(row["model"]):
            return
        moves = [weight * part.moves for weight, part in zip(weights, parts, strict=True)]
        every = np.concatenate([part.clusters for part in parts])
        clusters, index = np.unique(every, return_inverse=True)
        by_cluster = np.bincount(index, weights=np.concatenate(moves))
        figure = Figure(row, weights, clusters, by_cluster, parts)
        self._figures.setdefault(row["subset"], {})[row["model"]] = figure

    def records(self, config: BenchConfig) -> Iterator[MetricRecord]:
        """Of all pairs each two models' difference; of every subset `holm_p` from MANY_MODELS on.

        A difference has the p-value of its test, `difference_p`.

        Models of which other parts of a figure are present are not compared.
        """
        for subset, figures in self._figures.items():
            best = max(figures, key=lambda model: figures[model].row["value"])
            weights = figures[best].weights
            same = {name: some for name, some in figures.items() if some.weights == weights}
            if subset == "all":
                for first, second in combinations(same, 2):
                    difference = subtract(same[first], same[second])
                    yield from self._difference_records(
                        same[first].row, same[second].row, difference, config
                    )
            if len(same) >= MANY_MODELS:
                p_values = {
                    model: subtract(same[best], figure).p
                    for model, figure in same.items()
                    if model != best
                }
                counts = {model: figure.row["count"] for model, figure in same.items()}
                yield from holm_records(self._benchmark, subset, best, p_values, counts)

    def _difference_records(
        self,
        first: Mapping[str, Any],
        second: Mapping[str, Any],
        difference: Difference,
        config: BenchConfig,
    ) -> Iterator[MetricRecord]:
        count = min(first["count"], second["count"])
        about = self._benchmark, first["model"], first["subset"]
        against = {"against": second["model"]}
        interval, error = None, difference.standard_error
        if error > 0:
            reach = t_quantile(config.confidence, difference.degrees_of_freedom) * error
            interval = max(-1.0, difference.value - reach), min(1.0, difference.value + reach)
        yield metric_record(
            *about,
            "accuracy_difference",
            difference.value,
            interval,
            count,
            **against,
            prompts=difference.clusters,
        )
        test = {"test": difference.test, **against}
        yield metric_record(*about, "difference_p", difference.p, None, count, **test)
        if error > 0:
            value = detectable_difference(error, config.confidence)
            yield metric_record(*about, "detectable_difference", value, None, count, **against)


def subtract(first: Figure, second: Figure) -> Difference:
    """The first figure minus the second one, from the clusters of both."""
    import numpy as np

    clusters = np.union1d(first.clusters, second.clusters)
    moves = np.zeros(len(clusters))
    for figure, sign in ((first, 1), (second, -1)):
        moves[np.searchsorted(clusters, figure.clusters)] += sign * figure.moves
    value = first.row["value"] - second.row["value"]
    error = math.sqrt(float(moves @ moves))
    error = 0.0 if error < ROUNDING else error
    freedom = max(1, len(clusters) - len(first.weights))
    p, test = _exact_p(first.parts, second.parts), MCNEMAR
    if p is None:
        groups = freedom + 1 if error else _differing_clusters(first, second, value)
        p, test = mean_p(value, error, groups), T_BY_PROMPT
    return Difference(value, error, freedom, len(clusters), p, test)


def _differing_clusters(first: Figure, second: Figure, value: float) -> int:
    """In how many clusters the figures differ with the sign of `value`, where the error is 0.

    All items of a part then differ alike, by the difference of the part's values. Parts of which no
    value is known do not count.
    """
    import numpy as np

    differing = [
        part.clusters
        for part, second_part in zip(first.parts, second.parts, strict=True)
        if part.value is not None
        and second_part.value is not None
        and (part.value - second_part.value) * value > 0
    ]
    return len(np.unique(np.concatenate(differing))) if differing else 0


def _exact_p(first_parts: Sequence[Part], second_parts: Sequence[Part]) -> float | None:
    """McNemar's p-value; None where there are several parts, or items that it does not fit.

    It needs items that are each right or wrong, and of a cluster each.
    """
    import numpy as np

    if len(first_parts) > 1 or len(second_parts) > 1:
        return None
    first, second = first_parts[0], second_parts[0]
    if first.is_right is None or second.is_right is None:
        return None
    if not np.array_equal(first.clusters, second.clusters):
        return None
    if len(np.unique(first.clusters)) < len(first.clusters):
        return None
    only_first = int((first.is_right & ~second.is_right).sum())
    only_second = int((second.is_right & ~first.is_right).sum())
    return mcnemar_p(only_first, only_second)
