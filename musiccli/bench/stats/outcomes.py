"""Scored pairs as columns of small numbers, and the metric records that are computed from them.

The conversations themselves are not kept: a million pairs with two models take about 30 MB.
"""

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from musiccli.bench.stats.baselines import baseline_scores, is_baseline
from musiccli.bench.stats.intervals import Interval, proportion_interval
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record, content_id, side_names

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MetricRecord = dict[str, Any]  # a Metric of core.records, and fields that some benchmarks add
MAX_MODELS = 128  # every two of them are compared
TOO_MANY = "name those to compare with `models`"
LARGEST_REWARD = 3.5e38  # above the largest number of 32 bits
SHOWN = 10  # names in an error message
EQUAL, ABSENT = 2, -1  # picks besides 0 and 1, the sides: equal scores, and no scores


def check_scored_pair(record: Record, models: Sequence[str] = ()) -> Record:
    """Check that each of `models`, or else each model of the record, has scored both sides."""
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    names = side_names(record)
    check_model_count(record, models)
    for model in models or scores:
        by_side = scores.get(model)
        if by_side is None:
            raise missing_model(record, model)
        numbers = [by_side.get(name) for name in names] if isinstance(by_side, dict) else [None]
        if not all(map(is_number, numbers)):
            problem = f"should hold a number for {names[0]} and one for {names[1]}"
            raise RecordError(problem, field=f"scores.{model}", record=record)
        for name in names:
            check_reward(by_side[name], f"scores.{model}.{name}", record)
    return record


def check_reward(value: object, field: str, record: Record) -> None:
    """Raise RecordError where a value is no number, or one so large that sums would overflow."""
    if not is_number(value):
        raise RecordError("should be a number", field=field, record=record)
    if abs(value) > LARGEST_REWARD:  # type: ignore[arg-type]  # is_number
        problem = f"is {value:.3g}, more than a reward of 32 bits can be"
        raise RecordError(problem, field=field, record=record)


def missing_model(record: Record, model: str) -> RecordError:
    """The error that a model has not scored a record."""
    problem = f"no score by {model!r} (scores by: {shown_names(record['scores'])})"
    return RecordError(problem, field="scores", record=record)


def check_model_count(record: Record, models: Sequence[str]) -> None:
    """Raise RecordError where more models have scored a record than can be compared."""
    if not models and len(record["scores"]) > MAX_MODELS:
        problem = f"are by {len(record['scores']):,} models; {TOO_MANY}"
        raise RecordError(problem, field="scores", record=record)


def shown_names(names: Collection[str]) -> str:
    """The first of some names, for an error message."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(islice(names, SHOWN)) + more


def is_number(value: object) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def prompt_cluster(record: Mapping[str, Any]) -> int:
    """A number that is equal where the messages up to the first user message are equal."""
    side = record[side_names(record)[0]]
    first = next(index for index, message in enumerate(side) if message["role"] == "user")
    return cluster_number(*(message["content"] for message in side[: first + 1]))


def cluster_number(*content: object) -> int:
    """63 bits that follow from the content, to name a cluster.

    Python's `hash` differs between processes. The order in which clusters are summed, and so the
    rounding of the sums, would differ with it.
    """
    return int(content_id(*content), 16) >> 1


@dataclass(frozen=True)
class ModelOutcomes:
    """How one model did on some pairs.

    Attributes:
        model: its name.
        mask: which of all pairs these are; None where that is not known.
        points: 1 where it is right, else 0; a guess is half a point.
        picks: the side it scores higher, 0 or 1, or EQUAL.
        labels: the better side, 0 or 1.
        prompts: the clusters of the pairs.
    """

    model: str
    mask: "Array | None"
    points: "Array"
    picks: "Array"
    labels: "Array"
    prompts: "Array"

    def __len__(self) -> int:
        return len(self.points)

    @property
    def accuracy(self) -> float:
        """The mean of the points."""
        return float(self.points.mean())

    @property
    def ties(self) -> int:
        """How many pairs have equal scores on both sides."""
        return int((self.picks == EQUAL).sum())

    def interval(self, confidence: float) -> Interval:
        """The interval of the accuracy."""
        return proportion_interval(self.points, self.prompts, confidence)


class ScoredPairs:
    """Columns with one entry per pair: its prompt, its label, each model's pick, and its groups."""

    def __init__(
        self, models: Sequence[str] = (), tie_margin: float = 0.0, tie_points: float = 0.0
    ):
        """Take no pair yet.

        Args:
            models: names of the models to keep; none: every model that scored the pairs.
            tie_margin: scores that differ by no more than this are equal.
            tie_points: what a model earns with equal scores. A baseline always earns a half.
        """
        self._wanted_models = models
        self._tie_margin, self._tie_points = tie_margin, tie_points
        self._prompts, self._labels = array("q"), array("b")
        self._picks: dict[str, array[int]] = {}
        self._groups: dict[str, array[int]] = {}  # by field: the number of each pair's value
        self._group_numbers: dict[str, dict[Any, int]] = {}  # by field: the number of each value

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def models(self) -> list[str]:
        """The models in the order in which they were met, then the baselines."""
        return sorted(self._picks, key=is_baseline)

    def add(
        self,
        record: Mapping[str, Any],
        label: int,
        groups: Mapping[str, Any],
        cluster: int | None = None,
    ) -> None:
        """Add one pair.

        Args:
            record: the scored pair.
            label: which side is better, 0 or 1.
            groups: the value of each field that pairs are grouped by.
            cluster: pairs of the same cluster are not independent; None for the prompt's.
        """
        scores = record["scores"]
        model_scores = {model: scores[model] for model in self._wanted_models or scores}
        first, second = side_names(record)
        baselines = baseline_scores(record)
        if not self._wanted_models and len(self._picks) > MAX_MODELS + len(baselines):
            raise InputError(f"scores by more than {MAX_MODELS} models; {TOO_MANY}")
        for model, by_side in (model_scores | baselines).items():
            column = self._picks.setdefault(model, array("b", [ABSENT]) * len(self))
            column.append(_pick(by_side[first], by_side[second], self._tie_margin))
        for field, value in groups.items():
            numbers = self._group_numbers.setdefault(field, {})
            column = self._groups.setdefault(field, array("i"))
            column.append(numbers.setdefault(value, len(numbers)))
        self._prompts.append(prompt_cluster(record) if cluster is None else cluster)
        self._labels.append(label)
        for column in self._picks.values():
            if len(column) < len(self):
                column.append(ABSENT)

    def groups(self, field: str) -> "Iterator[tuple[Any, Array]]":
        """Each value of a field, numbers first and in their order, with a mask of its pairs."""
        import numpy as np

        numbers = self._group_numbers.get(field, {})
        for value in sorted(numbers, key=lambda value: (isinstance(value, str), value)):
            yield value, np.asarray(self._groups[field]) == numbers[value]

    @property
    def prompts(self) -> "Array":
        """The cluster of each pair."""
        import numpy as np

        return np.asarray(self._prompts)

    def right_and_scored(self, model: str, mask: "Array | None" = None) -> "tuple[Array, Array]":
        """Of which pairs, or which of those in `mask`, a model is right, and which it scored."""
        import numpy as np

        picks, labels = np.asarray(self._picks[model]), np.asarray(self._labels)
        if mask is not None:
            picks, labels = picks[mask], labels[mask]
        return picks == labels, picks != ABSENT

    def outcomes(self, model: str, mask: "Array | None" = None) -> ModelOutcomes:
        """How a model did on the pairs that it scored; with `mask`, on those of them."""
        import numpy as np

        columns = (self._picks[model], self._labels, self._prompts)
        picks, labels, prompts = map(np.asarray, columns)
        is_scored = picks != ABSENT if mask is None else mask & (picks != ABSENT)
        points_of_equal = 0.5 if is_baseline(model) else self._tie_points
        points = np.where(picks == labels, 1.0, np.where(picks == EQUAL, points_of_equal, 0.0))
        return ModelOutcomes(
            model,
            is_scored,
            points[is_scored],
            picks[is_scored],
            labels[is_scored],
            prompts[is_scored],
        )


def _pick(first: float, second: float, tie_margin: float) -> int:
    if abs(first - second) <= tie_margin:
        return EQUAL
    return 0 if first > second else 1


def metric_record(
    benchmark: str,
    model: str,
    subset: str,
    metric: str,
    value: float | None,
    interval: Interval | None,
    count: int,
    **extra: object,
) -> MetricRecord:
    """A metric record. `low` and `high` are None where the data give no interval."""
    low, high = interval or (None, None)
    return {
        "benchmark": benchmark,
        "model": model,
        "subset": subset,
        "metric": metric,
        "value": None if value is None else float(value),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "count": count,
        **extra,
    }


def accuracy_record(
    benchmark: str, subset: str, outcomes: ModelOutcomes, confidence: float, **extra: object
) -> MetricRecord:
    """The metric record of one model's accuracy on one subset, with its number of ties."""
    interval = outcomes.interval(confidence)
    value, count = outcomes.accuracy, len(outcomes)
    extra = {"ties": outcomes.ties, **extra}
    return metric_record(
        benchmark, outcomes.model, subset, "accuracy", value, interval, count, **extra
    )
