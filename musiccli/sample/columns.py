"""What the readers of all dataset formats share: labels, ids and records from a row's columns."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import (
    Message,
    count_turns,
)
from musiccli.core.records import Record, content_id
from musiccli.core.row_messages import STEPS_COLUMN, SYSTEM_COLUMNS

CONTENT_COLUMNS = {  # ids and texts, which are not labels
    "id",
    "unique_id",
    "metadata",
    "prompt",
    "completion",
    *SYSTEM_COLUMNS,
    STEPS_COLUMN,
    "tools",
    "user_persona",
    "chosen",
    "rejected",
    "winner",
    "input",
    "output_1",
    "output_2",
}
MAX_LABEL_LENGTH = 200  # characters; a longer string is text, not a label


class Row(Record):
    """A row of a dataset that knows which of its columns were read.

    Attributes:
        columns_read: the columns whose values were asked for by name.
    """

    __slots__ = ("columns_read",)

    def __init__(self, fields: Mapping[str, Any], where: str | None = None) -> None:
        super().__init__(fields, where)
        self.columns_read: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.columns_read.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        """The value of a column, or the default."""
        self.columns_read.add(column)
        return super().get(column, default)


Reader = Callable[[Record, str], Iterator[dict[str, Any]]]  # takes a row and its source's name


@dataclass(frozen=True)
class RowGroup:
    """How successive rows, each a part of a whole, are joined to one row.

    Attributes:
        column: the column whose value the rows of one whole share.
        join: makes one row of them, or none. Rows that do not fit go to the rejects.
        may_return: whether the value may come again, and is then that of another whole.
    """

    column: str
    join: Callable[[list[Record], Rejects], Record | None]
    may_return: bool = False


@dataclass(frozen=True)
class Format:
    """A dataset format, recognized by the columns of its rows.

    Attributes:
        name: the format's name in error messages.
        order: formats are tried in this order, and the first that fits reads the row. A format
            with more specific columns has a lower order.
        columns: the columns that every row has; it may have more.
        read: yields the records of one row, not yet checked.
        read_pairs: yields preferences, for a format whose `read` yields other records.
        labels: readers of pairs by the label that ranks them, for a format with several labels.
            `read` and `read_pairs` use the first.
        group: how rows are joined, for a format whose rows are parts of a whole.
        fits: checks the values of a row, where its columns alone do not identify the format.
    """

    name: str
    order: int
    columns: frozenset[str]
    read: Reader
    read_pairs: Reader | None = None
    labels: Mapping[str, Reader] = field(default_factory=dict)
    group: RowGroup | None = None
    fits: Callable[[Record], bool] = lambda row: True


def make_record(
    row: Record,
    source: str,
    sides: dict[str, list[Message]],
    labels: dict[str, Any] | None = None,
    *,
    id: str | int | None = None,
    texts: Collection[str] = (),
    keep_fields: bool = False,
) -> dict[str, Any]:
    """The record of one row, not yet checked.

    Args:
        row: the row, whose labels become metadata.
        source: the name of the dataset, which becomes metadata, too.
        sides: the conversations, each under the field that holds it.
        labels: more metadata.
        id: the record's id. Without it the row's id is used, or one made from the texts.
        texts: columns that hold texts, which do not become metadata even where they are short.
        keep_fields: whether a row with an id keeps all its fields, because it is a record already.
    """
    metadata = {
        **(row["metadata"] if isinstance(row.get("metadata"), dict) else {}),
        **row_labels({name: value for name, value in row.items() if name not in texts}),
        **(labels or {}),
        "turns": count_turns(next(iter(sides.values()))),
    }
    if source:
        metadata.setdefault("source", source)
    id = row_id(row) if id is None else id
    if keep_fields and id is not None:
        old_metadata = row.get("metadata")
        return {**row, **sides, "metadata": metadata if old_metadata is None else old_metadata}
    return {
        "id": content_id(*sides.values()) if id is None else id,
        **sides,
        **context_fields(row),
        "metadata": metadata,
    }


def context_fields(record: Record) -> dict[str, Any]:
    """What belongs to every conversation made of a record: the functions on offer, the persona."""
    fields = {name: record.get(name) for name in ("tools", "user_persona")}
    return {name: value for name, value in fields.items() if value is not None}


def row_id(row: Record) -> str | int | None:
    """The id that the dataset gives a row. RewardBench's ids are unique within a subset only."""
    id = row.get("unique_id", row.get("id"))
    if isinstance(id, float) and id.is_integer():  # a table holds a null in the same column
        id = int(id)
    if isinstance(id, bool) or not isinstance(id, str | int):
        return None
    return f"{row['subset']}/{id}" if isinstance(row.get("subset"), str) else id


def row_labels(columns: object) -> dict[str, Any]:
    """The columns that label a row (subset, task, score) rather than hold its text."""
    if not isinstance(columns, dict):
        return {}
    return {
        name: value
        for name, value in columns.items()
        if name not in CONTENT_COLUMNS
        and isinstance(value, str | int | float)
        and len(str(value)) <= MAX_LABEL_LENGTH
    }


def read_text(row: Record, field: str) -> str:
    """The text in a column. Raises RecordError where the column holds something else."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RecordError(f"is {shortened(value)}; it should be a text", field=field, record=row)
    return value


def read_label(row: Record, field: str, meanings: Mapping[Any, str]) -> str:
    """What the value of a label column means. Its text, as CSV has it, means the same.

    Args:
        row: the row.
        field: the column, or a dotted path into it.
        meanings: what each value means.

    Raises:
        RecordError: the column holds none of these values.
    """
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    for label, meaning in meanings.items():
        if value == label and isinstance(value, bool) == isinstance(label, bool):
            return meaning
        if isinstance(value, str) and value.lower() == str(label).lower():
            return meaning
    labels = [str(label).lower() if isinstance(label, bool) else str(label) for label in meanings]
    raise RecordError(
        f"is {shortened(value)}; it should be {', '.join(labels[:-1])} or {labels[-1]}",
        field=field,
        record=row,
    )
