"""What formats with several replies to one message share: votes between two, rankings of many.

A label that is null means that nobody ranked the replies. Any other value outside the dataset's
scale is an error of the row, and never read as a label.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message, same_text
from musiccli.core.records import Record, content_id, record_kind, side_names
from musiccli.core.row_messages import assistant_message
from musiccli.sample.columns import make_record, row_id

TIE = "tie"


# The letters of a vote between two models. Exports differ in case, spaces and underscores.
_VOTES = {"modela": "a", "modelb": "b", "tie": TIE, "tiebothbad": TIE, "bothbad": TIE}


@dataclass(frozen=True)
class Reply:
    """One of several replies to the same message.

    Attributes:
        text: the reply; checked with the record.
        value: what ranks it, the higher the better; None where nobody ranked it.
        labels: what the dataset says of this reply, as its model and its score.
    """

    text: Any
    value: float | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplyContext:
    """What all records share that hold replies to the same message.

    Attributes:
        row: the row, whose labels become metadata.
        source: the name of the dataset.
        history: the messages before the replies.
        labels: more metadata.
        id: the records' id, or its beginning; without it the row's, or one made from the texts.
        text_columns: the columns of the row that hold texts, and no labels.
    """

    row: Record
    source: str
    history: Sequence[Message]
    labels: Mapping[str, Any] = field(default_factory=dict)
    id: str | int | None = None
    text_columns: Collection[str] = ()

    def make_record(
        self, replies: Mapping[str, Reply], id: str | int | None, labels: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The record of some replies, each under the field that holds its conversation."""
        conversations = {
            side: [*self.history, assistant_message(reply.text)] for side, reply in replies.items()
        }
        return make_record(
            self.row,
            self.source,
            conversations,
            {**self.labels, **labels},
            id=id,
            texts=self.text_columns,
        )

    def shared_id(self, replies: Iterable[Reply]) -> str | int:
        """The id of all records of these replies."""
        id = row_id(self.row) if self.id is None else self.id
        return content_id(self.history, [reply.text for reply in replies]) if id is None else id


def make_vote(
    context: ReplyContext, first: Reply, second: Reply, winner: str | None
) -> dict[str, Any]:
    """The comparison of two replies, with the winner if there is one: "a", "b" or "tie"."""
    record = context.make_record({"a": first, "b": second}, context.id, _join_labels(first, second))
    return record if winner is None else record | {"winner": winner}


def read_vote(row: Record) -> tuple[str | None, dict[str, Any]]:
    """The winner of a vote between two models, and metadata: whether a tie is of bad replies.

    Returns:
        "a", "b", "tie", or None where nobody voted (the column `winner` is null).

    Raises:
        RecordError: the column holds anything else.
    """
    vote = row["winner"]
    if vote is None:
        return None, {}
    letters = re.sub("[^a-z]", "", vote.lower()) if isinstance(vote, str) else ""
    if letters not in _VOTES:
        problem = f"is {shortened(vote)}; it should be model_a, model_b, tie or tie (bothbad)"
        raise RecordError(problem, field="winner", record=row)
    winner = _VOTES[letters]
    return winner, {"both_bad": letters.endswith("bothbad")} if winner == TIE else {}


def pair_all(context: ReplyContext, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
    """Every two of the replies: the better one over the other.

    Replies of the same value make a comparison whose winner is "tie". A reply that nobody ranked
    makes comparisons without a winner.
    """
    start = context.shared_id(replies)
    for (i, first), (j, second) in combinations(enumerate(replies), 2):
        yield _pair(context, first, second, f"{start}/{i}-{j}")


def pair_preferred(
    context: ReplyContext, preferred: Reply, rejected: Sequence[Reply]
) -> Iterator[dict[str, Any]]:
    """The preferred reply over each of the others, which are not compared with each other.

    The replies' values, if they have any, may say that two of them tie.
    """
    start = context.shared_id([preferred, *rejected])
    for number, reply in enumerate(rejected):
        id = f"{start}/{number}"
        if preferred.value is not None and preferred.value == reply.value:
            yield _pair(context, preferred, reply, id)
        else:
            yield _preference(context, preferred, reply, id)


def list_replies(context: ReplyContext, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
    """Each reply as a conversation. `sample` numbers them from 0, in the order of the dataset."""
    id = context.shared_id(replies)
    for sample, reply in enumerate(replies):
        yield context.make_record({"messages": reply}, id, reply.labels) | {"sample": sample}


def _pair(context: ReplyContext, first: Reply, second: Reply, id: str) -> dict[str, Any]:
    """The better of two replies over the other, or a comparison of the two."""
    comparison = context.make_record({"a": first, "b": second}, id, _join_labels(first, second))
    if first.value is None or second.value is None:
        return comparison
    if first.value == second.value:
        return comparison | {"winner": TIE}
    better, worse = (first, second) if first.value > second.value else (second, first)
    return _preference(context, better, worse, id)


def _preference(context: ReplyContext, better: Reply, worse: Reply, id: str) -> dict[str, Any]:
    sides = {"chosen": better, "rejected": worse}
    return context.make_record(sides, id, _join_labels(better, worse))


def _join_labels(first: Reply, second: Reply) -> dict[str, list[Any]]:
    """Both replies' labels as lists: `model` becomes `models`, that of the first side first."""
    return {f"{name}s": [value, second.labels.get(name)] for name, value in first.labels.items()}


def read_number(row: Record, column: str, low: float, high: float) -> float | None:
    """The number in a column, which must lie on the dataset's scale. None where it is null.

    Tables write numbers as strings, and whole numbers with a decimal point. Both are read.

    Raises:
        RecordError: the value is no number from `low` to `high`.
    """
    return check_number(row, column, row.get(column), low, high)


def check_number(row: Record, field: str, value: Any, low: float, high: float) -> float | None:
    """The same for a value from within a column; `field` is its path."""
    if value is None or value == "":
        return None
    number = None
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = None
    if number is None or not low <= number <= high:
        problem = f"is {shortened(value)}; it should be a number from {low:g} to {high:g}"
        raise RecordError(problem, field=field, record=row)
    return int(number) if number.is_integer() else number


def read_whole_number(row: Record, column: str, low: int, high: int) -> int | None:
    """The whole number in a column, or None where it is null. Raises RecordError."""
    number = read_number(row, column, low, high)
    if number is None or isinstance(number, int):
        return number
    problem = f"is {number}; it should be a whole number from {low} to {high}"
    raise RecordError(problem, field=column, record=row)


def read_flag(row: Record, column: str) -> bool | None:
    """The truth value in a column, also as 0, 1, "true" or "False"; None where it is null."""
    return check_flag(row, column, row.get(column))


def check_flag(row: Record, field: str, value: Any) -> bool | None:
    """The same for a value from within a column; `field` is its path. Raises RecordError."""
    if value is None or value == "":
        return None
    word = str(value).lower()
    if isinstance(value, bool | int | float | str):
        if word in ("true", "1", "1.0"):
            return True
        if word in ("false", "0", "0.0"):
            return False
    raise RecordError(f"is {shortened(value)}; it should be true or false", field=field, record=row)


def read_objects(row: Record, column: str) -> list[dict[str, Any]]:
    """The objects in a column: a list of them, or such a list as JSON text; none if null.

    Raises:
        RecordError: the column holds something else.
    """
    value = row.get(column)
    items: Any = [] if value is None else value
    if isinstance(value, str):
        try:
            items = json_text.decode(value.encode())
        except ValueError:
            items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        problem = f"is {shortened(value)}; it should be a list of objects"
        raise RecordError(problem, field=column, record=row)
    return items


def keep_best_over_worst(records: Iterable[Record]) -> list[Record]:
    """Of the pairs that one row gives, for each message only the best reply over the worst.

    Pairs know their `ranks`, `scores` or `ratings` from the metadata; records without them are all
    kept.
    """
    widest: dict[str, tuple[float, int]] = {}  # by message: the gap, and the record that has it
    kept: dict[int, Record] = {}
    for number, record in enumerate(records):
        gap = _gap(record)
        if gap is None:
            kept[number] = record
            continue
        history = content_id(record[side_names(record)[0]][:-1])
        best, previous = widest.get(history, (-inf, -1))
        if gap > best:
            kept.pop(previous, None)
            kept[number] = record
            widest[history] = (gap, number)
    return [kept[number] for number in sorted(kept)]


def _gap(record: Record) -> float | None:
    """How much better a pair's first side is than the other, or None where it is no ranked pair.

    It is below 0 where a person chose the reply that has the lower score. Equal replies are no
    pair, whatever their ranks.
    """
    metadata = record.get("metadata") or {}
    names = [name for name in ("ranks", "scores", "ratings") if metadata.get(name)]
    values = metadata[names[0]] if names else None
    if record_kind(record) == "conversation" or not isinstance(values, list) or len(values) != 2:
        return None
    if same_text(*(record[side] for side in side_names(record))):
        return None
    if all(isinstance(value, dict) for value in values):  # several ratings of each reply
        values = [value.get(metadata.get("label")) for value in values]
    if not all(isinstance(value, int | float) for value in values):
        return None
    first, second = values
    return float(second - first if names[0] == "ranks" else first - second)
