"""Columns of a dataset that hold what the user says: prompt=question,winner=label:0=a,1=b."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import InputError, RecordError, shortened
from musiccli.core.messages import Message, refuse_media
from musiccli.core.records import Record, parse_any
from musiccli.core.row_messages import (
    assistant_message,
    parse_messages_text,
    read_messages,
    read_prompt,
    read_side,
    user_message,
    with_system_message,
)
from musiccli.core.run_stats import RunStats
from musiccli.sample.columns import make_record, row_id, row_labels
from musiccli.sample.formats.conversations import read_prompt_and_completion

KINDS = {  # the kinds of record, and the names that make a mapping one of that kind
    "preference": ("chosen", "rejected"),
    "comparison": ("a", "b", "winner"),
    "conversation": ("messages",),
}
SAME_NAME = (  # read from the column of the same name where the mapping does not name them
    *("messages", "chosen", "rejected", "a", "b", "winner"),
    *("prompt", "completion", "system", "tools", "id"),
)
TARGETS = (*SAME_NAME, "history", "context")  # any other name becomes metadata
REQUIRED = ("messages", "prompt", "completion", "chosen", "rejected", "a", "b")
WINNERS = ("a", "b", "tie")
FIRST_ROWS = 20  # a column that none of them has is a mistake in the mapping


@dataclass(frozen=True)
class ColumnMapping:
    """Where the parts of a record stand in the rows of a dataset.

    Attributes:
        paths: the column of each part, or a dotted path into a column.
        winners: what a value of the winner's column means: a, b or tie.
        text: the mapping as it was typed, by part. It is kept in each record's metadata.
    """

    paths: dict[str, str]
    winners: dict[str, str]
    text: dict[str, str]

    @property
    def kind(self) -> str | None:
        """The kind of record that the mapping alone determines."""
        return next((kind for kind, names in KINDS.items() if self.paths.keys() & {*names}), None)

    def parts_by_column(self, row: Record) -> dict[str, list[str]]:
        """The columns of a row that the mapping uses, each with what they become."""
        parts: dict[str, list[str]] = {}
        for target, path in self.paths.items():
            part = target if target in TARGETS else f"metadata.{target}"
            parts.setdefault(_top_column(row, path), []).append(part)
        return parts


def parse_mapping(specifications: Iterable[str]) -> ColumnMapping:
    """A mapping from texts such as "prompt=question,winner=label:A>B=a,B>A=b".

    Raises:
        InputError: a text cannot be read, or it mixes several kinds of record.
    """
    mapping = ColumnMapping({}, {}, {})
    for specification in specifications:
        target = ""
        for part in specification.split(","):
            if target == "winner" and mapping.winners and _is_winner_value(part):
                _add_winner(mapping, part)
            else:
                target = _add_column(mapping, part)
    kinds = [kind for kind, names in KINDS.items() if mapping.paths.keys() & {*names}]
    if len(kinds) > 1:
        raise InputError(f"`columns`: names parts of a {kinds[0]} and of a {kinds[1]}; choose one")
    return mapping


def map_columns(
    rows: Iterable[tuple[str, Record]], mapping: ColumnMapping, stats: RunStats | None = None
) -> Iterator[tuple[str, Record]]:
    """The records of rows, read as a mapping says.

    Args:
        rows: pairs of a source's name and one of its rows.
        mapping: where the parts of a record stand.
        stats: its `rejects` get the rows that the mapping does not fit.

    Raises:
        InputError: none of the first rows has a column that records need.
    """
    stats = stats or RunStats()
    rows = iter(rows)
    first_rows = list(islice(rows, FIRST_ROWS))
    if first_rows:
        _check_columns([row for _, row in first_rows], mapping, stats)
    for source, row in chain(first_rows, rows):
        record = None
        with stats.rejects.guard(row):
            record = map_row(row, source, mapping)
        if record is not None:
            yield source, record
        else:
            stats.count("rows_read")


def map_row(row: Record, source: str, mapping: ColumnMapping) -> Record:
    """The record of one row.

    Raises:
        RecordError: the row lacks a part of the record, or holds it in a form that cannot be read.
    """
    parts = _Parts(row, mapping)
    try:
        refuse_media(row)
        record = _read_record(parts, source)
        return parse_any(Record(record, row.where))
    except RecordError as error:
        error.record = row
        raise


class _Parts:
    """The parts of one row under the names of our records."""

    def __init__(self, row: Record, mapping: ColumnMapping) -> None:
        self.row, self.mapping = row, mapping
        self._used = {_top_column(row, path) for path in mapping.paths.values()}

    def path(self, name: str) -> str:
        return self.mapping.paths.get(name, name)

    def get(self, name: str) -> Any:
        """The value of a part, or None."""
        if name in self.mapping.paths:
            return column_value(self.row, self.mapping.paths[name])
        return self.row.get(name) if name in SAME_NAME and name not in self._used else None

    def require(self, name: str) -> Any:
        """The value of a part that a record must have. Raises RecordError where it is missing."""
        value = self.get(name)
        if value is None:
            is_null = self.path(name) in self.row.null_fields
            problem = "is null" if is_null else f"is missing; the row has {', '.join(self.row)}"
            raise RecordError(problem, field=self.path(name), record=self.row)
        return value

    def kind(self) -> str:
        """The kind of record that the mapping, or else the row's own columns, make it."""
        if self.mapping.kind:
            return self.mapping.kind
        for kind, names in KINDS.items():
            if all(self.get(name) is not None for name in names if name != "winner"):
                return kind
        return "prompt"

    def metadata(self) -> dict[str, Any]:
        """What the mapping names beside the parts of a record, and the labels of other columns."""
        used = self._used - {"metadata"}
        unused = {name: value for name, value in self.row.items() if name not in used}
        names = [name for name in self.mapping.paths if name not in TARGETS]
        old = unused.get("metadata")
        return {
            **(old if isinstance(old, dict) else {}),
            **row_labels(unused),
            **{name: value for name in names if (value := self.get(name)) is not None},
            "columns": self.mapping.text,
        }


def _read_record(parts: _Parts, source: str) -> dict[str, Any]:
    """The record of one row, not yet checked."""
    kind = parts.kind()
    fields = Record({"metadata": parts.metadata()}, parts.row.where)
    if (system := parts.get("system")) is not None:
        fields["system"] = _text(parts, "system", system)
    if (tools := parts.get("tools")) is not None:
        fields["tools"] = parsed_list(tools)
    id = _id(parts)
    if kind == "conversation":
        fields["messages"] = _messages(parts, "messages", parts.require("messages"))
        messages = with_system_message(fields, read_messages(fields, "messages"))
        return make_record(fields, source, {"messages": messages}, id=id, texts=fields)
    if (prompt := _prompt(parts)) is not None:
        fields["prompt"] = prompt
    if kind == "prompt":
        fields["prompt"] = prompt if prompt is not None else parts.require("prompt")
        if (completion := parts.get("completion")) is not None:
            fields["completion"] = _text_or_messages(parts, "completion", completion)
        (record,) = read_prompt_and_completion(fields, source)
        return record if id is None else record | {"id": id}
    names = ("chosen", "rejected") if kind == "preference" else ("a", "b")
    for name in names:
        fields[name] = _text_or_messages(parts, name, parts.require(name))
    sides = {name: read_side(fields, name) for name in names}
    record = make_record(fields, source, sides, id=id, texts=fields)
    winner = _winner(parts) if kind == "comparison" else None
    return record if winner is None else record | {"winner": winner}


def _id(parts: _Parts) -> str | int | None:
    if "id" not in parts.mapping.paths:
        return row_id(parts.row)
    id = parts.get("id")
    if isinstance(id, float) and id.is_integer():  # a table holds a null in the same column
        id = int(id)
    if id is None or (isinstance(id, str | int) and not isinstance(id, bool)):
        return id
    problem = f"is {shortened(id)}; an id is a string or a whole number"
    raise RecordError(problem, field=parts.path("id"), record=parts.row)


def _prompt(parts: _Parts) -> str | list[Any] | None:
    """The history and the prompt after it, as far as there are any."""
    value = parts.get("prompt")
    prompt = None if value is None else _text_or_messages(parts, "prompt", value)
    name = next((name for name in ("history", "context") if name in parts.mapping.paths), None)
    history = None if name is None else parts.get(name)
    if name is None or history is None:
        return prompt
    if prompt is None:
        return _messages(parts, name, history)
    latest = read_prompt(Record({"prompt": prompt}, parts.row.where))
    return [*_messages(parts, name, history), *latest]


def _text(parts: _Parts, name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    problem = f"is {shortened(value)}; it should be a text"
    raise RecordError(problem, field=parts.path(name), record=parts.row)


def _text_or_messages(parts: _Parts, name: str, value: Any) -> str | list[Any]:
    """A text, or messages. A text that holds messages as JSON is parsed."""
    if isinstance(value, str):
        return parse_messages_text(value) or value
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and value:
        return value
    problem = f"is {shortened(value)}; it should be a text or messages"
    raise RecordError(problem, field=parts.path(name), record=parts.row)


def _messages(parts: _Parts, name: str, value: Any) -> list[Any]:
    """Messages. Texts are taken for turns of the user and the assistant, and so are pairs."""
    items = parsed_list(value)
    if isinstance(items, list):
        if all(isinstance(item, dict) for item in items):
            return items
        pairs = all(isinstance(item, list) and len(item) == 2 for item in items)
        texts = list(chain.from_iterable(items)) if pairs else items
        if all(isinstance(text, str) for text in texts):
            return [_turn(index, text) for index, text in enumerate(texts)]
    problem = f"is {shortened(value)}; it should be a list of messages"
    raise RecordError(problem, field=parts.path(name), record=parts.row)


def _turn(index: int, text: str) -> Message:
    return assistant_message(text) if index % 2 else user_message(text)


def parsed_list(value: Any) -> Any:
    """The list that a text holds as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json_text.decode(value.encode())
        except ValueError:  # no JSON, or more than can be written again
            pass
    return value


def _winner(parts: _Parts) -> str | None:
    """The side that won, "tie", or None where the row does not say."""
    value = parts.get("winner")
    if value is None:
        return None
    label, winners = _label(value), parts.mapping.winners or {name: name for name in WINNERS}
    if label not in winners:
        problem = f"is {shortened(value)}; `columns` names {', '.join(winners)}"
        raise RecordError(problem, field=parts.path("winner"), record=parts.row)
    return winners[label]


def _label(value: object) -> str:
    """A value as it is typed in a mapping: numbers and truth values as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json_text.encode(value).decode()


def column_value(row: Record, path: str) -> Any:
    """The value of a column, or at a dotted path into one; None where there is none.

    Numbers in a path count the items of a list: "choices.0.text" or "choices[-1].text". Texts on
    the way are parsed as JSON.
    """
    value: Any = row.get(_top_column(row, path))
    for name in _steps(path.removeprefix(_top_column(row, path))):
        if isinstance(value, str):
            try:
                value = json_text.decode(value.encode())
            except ValueError:  # no JSON, or more than can be written again
                return None
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", name):
            place = int(name)
            value = value[place] if -len(value) <= place < len(value) else None
        else:
            return None
    return value


def _top_column(row: Record, path: str) -> str:
    """The column that a path begins with. A column may have dots in its name."""
    return path if path in row else _steps(path)[0]


def _steps(path: str) -> list[str]:
    return [name for name in re.split(r"[.\[\]]", path) if name]


def _check_columns(rows: Sequence[Record], mapping: ColumnMapping, stats: RunStats) -> None:
    """Raises InputError for a path that leads to nothing in all of the rows.

    A part that a record may lack could come in later rows, so its path is only reported.
    """
    columns = ", ".join(dict.fromkeys(name for row in rows for name in (*row, *row.null_fields)))
    for target, path in mapping.paths.items():
        if any(path in row.null_fields or column_value(row, path) is not None for row in rows):
            continue
        text = f"`columns` {target}={path}: the first rows have no {path}; they have {columns}"
        if target in REQUIRED:
            raise InputError(text)
        stats.say(text)


def _is_winner_value(part: str) -> bool:
    label, separator, winner = (text.strip() for text in part.rpartition("="))
    return bool(separator) and winner in WINNERS and label not in TARGETS


def _add_winner(mapping: ColumnMapping, part: str) -> None:
    label, _, winner = (text.strip() for text in part.rpartition("="))
    if winner not in WINNERS:
        raise InputError(f"`columns` {part}: a winner is {', '.join(WINNERS[:-1])} or tie")
    mapping.winners[label] = winner
    mapping.text["winner"] += f",{part}"


def _add_column(mapping: ColumnMapping, part: str) -> str:
    """Add one NAME=COLUMN to the mapping, and return the name."""
    target, separator, path = (text.strip() for text in part.partition("="))
    if not (target and separator and path):
        raise InputError(f"`columns` {part}: should be NAME=COLUMN, as prompt=question")
    if target in mapping.paths:
        raise InputError(f"`columns` {part}: {target} is named twice")
    mapping.paths[target] = mapping.text[target] = path
    column, colon, value = path.partition(":")
    if target == "winner" and colon and "=" in value:
        mapping.paths[target] = mapping.text[target] = column
        _add_winner(mapping, value)
        mapping.text[target] = path
    return target
