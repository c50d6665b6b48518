"""What the margins of a reward model are worth: as probabilities, and where people see a tie.

The probability that the first of two conversations is better is sigmoid(margin / temperature), as
in the Bradley-Terry model. The temperature is the one under which the labels are most likely.

Simulations as in intervals.py: 95% intervals of the Brier score and of the accuracy with ties hold
the true value in 93 to 97 of 100 sets (`tests/test_bench_calibration.py`).
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.intervals import median_interval, proportion_interval
from musiccli.bench.stats.outcomes import MetricRecord, metric_record, prompt_cluster
from musiccli.core.records import side_names

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

BINS = 15  # of the calibration error, over 0 to 1, as in Guo et al. 2017
FIRST, SECOND, TIE = 0, 1, 2  # labels


class LabeledMargins:
    """Columns with one entry per pair: its label, its cluster, and each model's margin."""

    def __init__(self, models: Sequence[str] = ()):
        self._wanted_models = models
        self._labels, self._clusters = array("b"), array("q")
        self._margins: dict[str, array[float]] = {}  # first side minus second; nan: not scored

    def add(self, record: Mapping[str, Any], label: int) -> None:
        """Add a scored pair whose label is FIRST, SECOND or TIE."""
        first, second = side_names(record)
        for model in self._wanted_models or record["scores"]:
            scores = record["scores"][model]
            column = self._margins.setdefault(model, array("d"))
            column.extend([float("nan")] * (len(self._labels) - len(column)))
            column.append(scores[first] - scores[second])
        self._labels.append(label)
        self._clusters.append(prompt_cluster(record))

    def records(self, benchmark: str, config: BenchConfig) -> Iterator[MetricRecord]:
        """For each model, from all pairs that it scored.

        - `temperature`; None where the margins say nothing of the labels.
        - `brier` and `ece` of pairs whose label names a side, at that temperature. The calibration
          error has no interval: in small samples it is too high.
        - where there are ties, `accuracy_with_ties`, `tie_margin` and `decided_margin`: the medians
          of the size of the margins.
        """
        import numpy as np

        for model, column in self._margins.items():
            margins = np.full(len(self._labels), np.nan)
            margins[: len(column)] = column
            has_score = ~np.isnan(margins)
            labels, clusters = (
                np.asarray(self._labels)[has_score],
                np.asarray(self._clusters)[has_score],
            )
            for row in _model_records(margins[has_score], labels, clusters, config):
                yield metric_record(benchmark, model, "all", **row)


def _model_records(
    margins: "Array", labels: "Array", clusters: "Array", config: BenchConfig
) -> Iterator[dict[str, Any]]:
    """The fields of each metric record of one model."""
    import numpy as np

    decided = labels != TIE
    if not decided.any():
        return
    toward_label = np.where(labels == FIRST, margins, -margins)[decided]
    temperature = fit_temperature(toward_label)
    right = label_probabilities(toward_label, temperature)
    errors, count = (1 - right) ** 2, len(right)
    yield _fields("temperature", temperature, None, count)
    interval = proportion_interval(errors, clusters[decided], config.confidence)
    yield _fields("brier", float(errors.mean()), interval, count)
    yield _fields("ece", calibration_error(right, toward_label), None, count)
    if decided.all():
        return
    threshold = fit_tie_threshold(margins, labels)
    agrees = with_ties(margins, threshold) == labels
    interval = proportion_interval(agrees, clusters, config.confidence)
    value = float(agrees.mean())
    yield _fields("accuracy_with_ties", value, interval, len(labels), threshold=threshold)
    for metric, some in (("tie_margin", ~decided), ("decided_margin", decided)):
        sizes = np.abs(margins[some])
        interval = median_interval(sizes, clusters[some], config.confidence)
        yield _fields(metric, float(np.median(sizes)), interval, len(sizes))


def _fields(
    metric: str, value: float | None, interval: tuple[float, float] | None, count: int, **extra: Any
) -> dict[str, Any]:
    return {"metric": metric, "value": value, "interval": interval, "count": count, **extra}


def fit_temperature(margins: "Array") -> float | None:
    """The temperature under which the labels are most likely.

    Args:
        margins: score of the better side minus that of the other one, (pairs,).

    Returns:
        0 where no margin is negative: then every probability is 1 (or a half for equal scores).
        None where the margins point the wrong way as much as the right one: every probability is a
        half.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import expit

    margins = np.asarray(margins, float)
    if margins.sum() <= 0:
        return None
    if (margins >= 0).all():
        return 0.0
    margins = margins / (scale := float(np.abs(margins).max()))

    def slope(inverse: float) -> float:
        """The derivative of the log-likelihood with respect to 1 / temperature."""
        return float((margins * expit(-inverse * margins)).sum())

    high = 1.0
    while slope(high) > 0:
        high *= 2
    return scale / float(brentq(slope, 0.0, high, xtol=1e-14, rtol=1e-14))


def label_probabilities(margins: "Array", temperature: float | None) -> "Array":
    """The probability of each label, (pairs,), from `fit_temperature`'s arguments and result."""
    import numpy as np
    from scipy.special import expit

    margins = np.asarray(margins, float)
    if temperature is None:
        return np.full(len(margins), 0.5)
    if temperature == 0:
        return np.asarray((1 + np.sign(margins)) / 2)
    return np.asarray(expit(margins / temperature))


def calibration_error(probabilities: "Array", margins: "Array") -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    The confidence is the probability of the side that scores higher. Equal scores are half right.

    Args:
        probabilities: of the labels, (pairs,).
        margins: toward the labels, (pairs,).
    """
    import numpy as np

    confidence = np.maximum(probabilities, 1 - probabilities)
    right = (1 + np.sign(margins)) / 2
    bins = np.ceil(confidence * BINS)  # the bounds belong to the lower bin
    gaps = np.bincount(bins.astype(int), weights=right - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_tie_threshold(margins: "Array", labels: "Array") -> float:
    """The size up to which margins count as ties so that most labels are right.

    Of several it is the smallest. Source: tie calibration of Deutsch, Foster and Freitag 2023,
    arXiv 2305.14324, section 6.

    Args:
        margins: first side minus second, (pairs,).
        labels: FIRST, SECOND or TIE, (pairs,).
    """
    import numpy as np

    sizes = np.abs(margins)
    order = np.argsort(sizes, kind="stable")
    sizes = np.concatenate([[0.0], sizes[order]])
    ties = np.concatenate([[0], np.cumsum(labels[order] == TIE)])
    right = (margins != 0) & (np.where(margins > 0, FIRST, SECOND) == labels)
    decided = right.sum() - np.concatenate([[0], np.cumsum(right[order])])
    last = np.flatnonzero(np.append(sizes[1:] != sizes[:-1], True))  # of each size
    best = last[np.argmax((ties + decided)[last])]
    return float(sizes[best])


def with_ties(margins: "Array", threshold: float) -> "Array":
    """FIRST, SECOND or TIE for each margin; TIE where its size is at most the threshold."""
    import numpy as np

    picks: Array = np.where(np.abs(margins) <= threshold, TIE, np.where(margins > 0, FIRST, SECOND))
    return picks
