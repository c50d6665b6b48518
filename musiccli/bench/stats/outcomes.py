"""Scored pairs as small numbers: which side each model picked, which was better, and what the pair belongs to.

Conversations are forgotten as soon as they are counted: a million pairs by two models are some 30 MB.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from musiccli.bench.stats import baselines
from musiccli.bench.stats import intervals as statistics
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, content_id, side_names

if TYPE_CHECKING:
    import numpy as np

EQUAL, ABSENT = 2, -1  # what a pick is besides 0 and 1, the sides in their order


def check_scores(record: Record, models: Sequence[str] = ()) -> Record:
    """A record of two sides in which each of `models`, or else each model there is, has scored both sides."""
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    names = side_names(record)
    for model in models or scores:
        by_side = scores.get(model)
        if by_side is None:
            have = ", ".join(scores)
            raise RecordError(
                f"no score by {model!r} (scores by: {have}); music score --as NAME adds one",
                field="scores",
                record=record,
            )
        numbers = [by_side.get(name) for name in names] if isinstance(by_side, dict) else [None]
        if not all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
        ):
            raise RecordError(
                f"should hold a number for {names[0]} and one for {names[1]}",
                field=f"scores.{model}",
                record=record,
            )
    return record


def prompt(record: Record) -> int:
    """A number that is equal where the prompt is: that of the messages up to the user's first."""
    side = record[side_names(record)[0]]
    first = next(index for index, message in enumerate(side) if message["role"] == "user")
    return number(*(message["content"] for message in side[: first + 1]))


def number(*content: object) -> int:
    """63 bits that follow from content, as clusters are told apart by.

    Python's own `hash` differs from process to process, and with it the order in which clusters are summed and rounded.
    """
    return int(content_id(*content), 16) >> 1


class Tally:
    """Columns, one entry a pair: `prompts`, `labels`, `picks` by model, and `groups` by field."""

    def __init__(self, models: Sequence[str] = ()):
        self._wanted = models
        self.prompts, self.labels = array("q"), array("b")
        self.picks: dict[str, array] = {}
        self.groups: dict[str, array] = {}
        self._codes: dict[str, dict] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def models(self) -> list[str]:
        """The models in the order they were met, the baselines after them."""
        return sorted(self.picks, key=lambda model: model.startswith(baselines.PREFIX))

    def add(
        self, record: Record, label: int, groups: dict[str, object], cluster: int | None = None
    ) -> None:
        """Count one pair whose better side is `label` (0 or 1) and that belongs to one value of each field.

        Pairs of one `cluster` are not independent; left out, it is the prompt.
        """
        scores = record["scores"]
        chosen = {model: scores[model] for model in self._wanted or scores} | baselines.scores(
            record
        )
        first, second = side_names(record)
        for model, by_side in chosen.items():
            one, other = by_side[first], by_side[second]
            column = self.picks.setdefault(model, array("b", [ABSENT]) * len(self))
            column.append(0 if one > other else 1 if other > one else EQUAL)
        for field, value in groups.items():
            codes = self._codes.setdefault(field, {})
            self.groups.setdefault(field, array("i")).append(codes.setdefault(value, len(codes)))
        self.prompts.append(prompt(record) if cluster is None else cluster)
        self.labels.append(label)
        for column in self.picks.values():
            if len(column) < len(self):
                column.append(ABSENT)

    def members(self, field: str) -> Iterator[tuple[object, "np.ndarray"]]:
        """Each value of a field in its natural order, with a mask of the pairs that have it."""
        import numpy as np

        codes = self._codes.get(field, {})
        for value in sorted(
            codes, key=lambda value: (isinstance(value, str), value)
        ):  # numbers first
            yield value, np.asarray(self.groups[field]) == codes[value]

    def outcomes(self, model: str, mask: "np.ndarray | None" = None) -> "Outcomes":
        import numpy as np

        picks, labels, prompts = map(np.asarray, (self.picks[model], self.labels, self.prompts))
        here = picks != ABSENT if mask is None else mask & (picks != ABSENT)
        guess = 0.5 if model.startswith(baselines.PREFIX) else 0.0
        points = np.where(picks == labels, 1.0, np.where(picks == EQUAL, guess, 0.0))
        return Outcomes(model, here, points[here], picks[here], labels[here], prompts[here])


class Outcomes:
    """How one model did on some pairs: `points` (0, 1, or a baseline's half), `picks`, `labels`, `prompts`."""

    def __init__(self, model: str, mask, points, picks, labels, prompts):
        self.model, self.mask = model, mask
        self.points, self.picks, self.labels, self.prompts = points, picks, labels, prompts

    def __len__(self) -> int:
        return len(self.points)

    @property
    def share(self) -> float:
        return float(self.points.mean())

    @property
    def ties(self) -> int:
        return int((self.picks == EQUAL).sum())

    def interval(self, confidence: float) -> statistics.Interval:
        return statistics.share_interval(self.points, self.prompts, confidence)


def metric(
    benchmark: str,
    model: str,
    subset: str,
    name: str,
    value: float | None,
    interval: Iterable[float] | None,
    count: int,
    **extra: object,
) -> dict:
    """A metric record. `low` and `high` are null where the data cannot give an interval."""
    value, low, high = (
        None if number is None else float(number) for number in (value, *(interval or (None, None)))
    )
    return {
        "benchmark": benchmark,
        "model": model,
        "subset": subset,
        "metric": name,
        "value": value,
        "low": low,
        "high": high,
        "count": count,
        **extra,
    }


def accuracy(
    benchmark: str, subset: str, outcomes: Outcomes, confidence: float, **extra: object
) -> dict:
    """The accuracy of one model on one subset; its tied scores are counted beside it."""
    return metric(
        benchmark,
        outcomes.model,
        subset,
        "accuracy",
        outcomes.share,
        outcomes.interval(confidence),
        len(outcomes),
        ties=outcomes.ties,
        **extra,
    )
