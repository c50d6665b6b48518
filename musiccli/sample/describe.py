"""What a dataset holds and what `sample` makes of it, from its first rows."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import Message
from musiccli.core.records import Record, side_names
from musiccli.core.run_stats import RunStats
from musiccli.sample import formats
from musiccli.sample.column_mapping import (
    SAME_NAME,
    ColumnMapping,
    map_columns,
    map_row,
    parsed_list,
)
from musiccli.sample.columns import Format, Row
from musiccli.sample.config import Emit, SampleConfig
from musiccli.sample.row_groups import join_rows
from musiccli.sample.row_notes import ignored_labels, looks_like_label
from musiccli.sample.sampler import sample
from musiccli.sample.value_summary import summarize_values

MAX_UNREADABLE = 10  # lines
ROWS = 20  # of a dataset that are read
MIN_PART = 8  # characters of a message; a shorter one is a part of a text only after a speaker
MESSAGE_NAMES = {"user": "user message", "system": "system message", "assistant": "reply"}
LEFT_ASIDE = "left aside"
LIKE_A_LABEL = ": a label?"  # after what becomes of a column that nothing read as a label
EXAMPLES = (Emit.pairs, Emit.comparisons, Emit.conversations)  # the first that gives a record

SourceRows = Sequence[tuple[str, Record]]  # the name of the source, and one of its rows


@dataclass(frozen=True)
class ColumnFacts:
    """One column: how many rows have it, what it holds, and what it becomes."""

    name: str
    rows: int
    holds: str
    becomes: str


@dataclass(frozen=True)
class EmitFacts:
    """What one choice of `emit` gives: the number of records, and of what is left out by reason."""

    emit: Emit
    records: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Description:
    """What the first rows of a dataset are and become.

    Attributes:
        rows: how many rows were read.
        formats: the formats, each with what tells it and the number of its rows.
        unknown: how many rows have no known format.
        problems: why rows cannot be read, each named by its place.
        columns: in the order of the rows.
        emits: for every choice of `emit`.
        example: a record, and the choice of `emit` that gives it; None where there is no record.
    """

    rows: int
    formats: dict[str, int]
    unknown: int
    problems: list[str]
    columns: list[ColumnFacts]
    emits: list[EmitFacts]
    example: tuple[Emit, Record] | None


class UnreadableLines(list[str]):
    """What was wrong with lines of a file. Too many of them end the reading."""

    def append(self, problem: str) -> None:
        """Add one. Raises InputError where the lines are hardly rows of a dataset at all."""
        super().append(problem)
        if len(self) == MAX_UNREADABLE:
            raise InputError(f"{self[0]}; nor are the next lines rows of a dataset")


def describe(
    rows: Iterable[tuple[str, Record]],
    config: SampleConfig = SampleConfig(),
    mapping: ColumnMapping | None = None,
    unreadable: Sequence[str] = (),
) -> Description:
    """Describe a dataset by its first rows, without failing at those that cannot be read.

    Args:
        rows: pairs of a source's name and one of its rows, as `read_rows` gives them.
        config: what would be made of the rows. Its `emit` is the example's, unless the default.
        mapping: what the columns hold, where the user says so.
        unreadable: what was wrong with lines that hold no rows. It may grow while `rows` are read.
    """
    first_rows = list(islice(rows, ROWS))
    names: Counter[str] = Counter()
    problems: list[str] = []
    becomes: dict[str, Counter[str]] = {}
    wholes = [] if mapping else _records_of_wholes(first_rows)
    for source, row in first_rows:
        format = None if mapping else _format(row)
        if mapping:
            names["as `columns` says"] += 1
            uses = _uses_by_mapping(row, source, mapping, problems)
        elif format:
            names[f"{format.name}: has {', '.join(sorted(format.columns))}"] += 1
            uses = _uses_in_whole(row, wholes) if format.group else _uses(row, source, problems)
        else:
            uses = _unknown_uses(row)
        for column, part in uses:
            if row[column] is not None:
                becomes.setdefault(column, Counter())[part] += 1
    for column in sorted({name for _, row in first_rows for name in row.null_fields}):
        becomes.setdefault(column, Counter())
    emits, results = _try_emits(first_rows, config, mapping)
    return Description(
        rows=len(first_rows),
        formats=dict(names),
        unknown=len(first_rows) - names.total(),
        problems=[*unreadable, *(problems if names else ())],
        columns=[
            _column_facts(column, [row for _, row in first_rows], uses)
            for column, uses in becomes.items()
        ],
        emits=emits,
        example=_example(results, config),
    )


def _format(row: Record) -> Format | None:
    try:
        return formats.recognize(row)
    except RecordError:
        return None


def _column_facts(name: str, rows: Sequence[Record], uses: Counter[str]) -> ColumnFacts:
    values = [row[name] for row in rows if row.get(name) is not None]
    ordered = [use for use, _ in uses.most_common() if use != LEFT_ASIDE] or [LEFT_ASIDE]
    return ColumnFacts(name, len(values), summarize_values(values), ", ".join(ordered))


# What each column becomes


Uses = Iterator[tuple[str, str]]  # each column of a row, and what it becomes


def _uses(row: Record, source: str, problems: list[str]) -> Uses:
    """What the columns of a row become that a format reads."""
    tracked = _copied(row)
    try:
        records = _records(tracked, source)
    except (RecordError, InputError) as error:
        problems.append(str(error))
        records = []
    labels = {re.split(r"[.\[]", name)[0] for name in ignored_labels(tracked, records)}
    for column, value in row.items():
        was_read = column in tracked.columns_read
        use = _use(column, value, records, was_read) if records else LEFT_ASIDE
        yield column, use + LIKE_A_LABEL if column in labels else use


def _uses_by_mapping(row: Record, source: str, mapping: ColumnMapping, problems: list[str]) -> Uses:
    """What the columns of a row become that a mapping reads."""
    parts = mapping.parts_by_column(row)
    try:
        records = [map_row(_copied(row), source, mapping)]
    except RecordError as error:
        problems.append(str(error))
        records = []
    for column, value in row.items():
        if column in parts:
            yield column, ", ".join(parts[column])
        else:
            was_read = column in SAME_NAME
            yield column, _use(column, value, records, was_read) if records else LEFT_ASIDE


def _uses_in_whole(row: Record, records: Sequence[Record]) -> Uses:
    """What the columns of a row become that is a part of a whole, such as a tree of messages."""
    for column, value in row.items():
        use = _use(column, value, records, was_read=True) if records else LEFT_ASIDE
        yield column, LEFT_ASIDE if use == "read" else use


def _unknown_uses(row: Record) -> Uses:
    for column in row:
        yield column, LEFT_ASIDE + LIKE_A_LABEL * looks_like_label(column)


def _records_of_wholes(rows: SourceRows) -> list[Record]:
    """The records of those rows that are parts of a whole."""
    stats = RunStats(Rejects(skip=True))
    records: list[Record] = []
    parts = [
        (source, _copied(row)) for source, row in rows if (format := _format(row)) and format.group
    ]
    for source, whole in join_rows(parts, stats):
        with stats.rejects.guard(whole):
            records += _records(whole, source)
    return records


def _records(row: Record, source: str) -> list[Record]:
    """All that a row gives: pairs if it can become pairs, else conversations."""
    return list(formats.read(row, source, pairs=True)) or list(formats.read(row, source))


def _copied(row: Record) -> Row:
    return Row(deepcopy(dict(row)) | dict.fromkeys(row.null_fields), row.where)


def _use(column: str, value: Any, records: Sequence[Record], was_read: bool) -> str:
    """What a column of a row becomes in the records of the row."""
    record = records[0]
    metadata = record.get("metadata") or {}
    kept = column not in side_names(record) and record.get(column) == value
    if kept and isinstance(value, list | dict):
        return column
    if was_read and (part := _part_of_conversations(value, records)):
        return part
    if was_read and looks_like_label(column):
        return "label"
    if kept:
        return column
    uses = ["metadata"] if value in metadata.values() else []
    if str(value) in {str(record["id"]), *re.split(r"[/:-]", str(record["id"]))}:
        uses.insert(0, "id")
    return ", ".join(uses) or ("read" if was_read else LEFT_ASIDE)


def _part_of_conversations(value: Any, records: Sequence[Record]) -> str | None:
    """The side, or the messages, that hold the texts of a column."""
    texts = [text for text in _texts(value) if text.strip()]
    names = side_names(records[0])
    matched = {
        name: [message for record in records for message in _matched(record.get(name), texts)]
        for name in names
    }
    if not any(matched.values()):
        return None
    if len(names) == 2:
        whole = [name for name in names if len(matched[name]) == _count_messages(records, name)]
        partial = [name for name in names if matched[name]]
        for candidates in (whole, partial):
            if len(candidates) == 1:
                return candidates[0]
    roles = {message["role"] for messages in matched.values() for message in messages}
    return MESSAGE_NAMES.get(next(iter(roles)), "messages") if len(roles) == 1 else "messages"


def _matched(messages: list[Message] | None, texts: Sequence[str]) -> list[Message]:
    """The messages whose content one of the texts holds."""
    return [message for message in messages or () if _holds(texts, message["content"])]


def _count_messages(records: Sequence[Record], side: str) -> int:
    messages = (message for record in records for message in record.get(side) or ())
    return sum(isinstance(message["content"], str) for message in messages)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of any depth, and those of a list that a text holds as JSON."""
    if isinstance(value, str):
        yield value
        if isinstance(items := parsed_list(value), list):
            yield from _texts(items)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _holds(texts: Sequence[str], content: object) -> bool:
    """Whether a message is one of the texts, or a part of one as in a transcript."""
    if not isinstance(content, str):  # a message of calls alone
        return False
    content = content.strip()
    part = content if len(content) >= MIN_PART else f": {content}"
    return any(text.strip() == content or part in text for text in texts)


# What comes out


def _try_emits(
    rows: SourceRows, config: SampleConfig, mapping: ColumnMapping | None
) -> tuple[list[EmitFacts], dict[Emit, list[dict[str, Any]]]]:
    """What each choice of `emit` gives of the rows: in numbers, and the records."""
    facts, results = [], {}
    for emit in Emit:
        stats = RunStats(Rejects(skip=True))
        copies: Iterable[tuple[str, Record]] = [(source, _copied(row)) for source, row in rows]
        try:
            if mapping:
                copies = map_columns(copies, mapping, stats)
            chosen = replace(config, emit=emit, count=None)
            results[emit] = list(sample(copies, chosen, stats=stats))
        except InputError:  # the mapping names a column that no row has; it is a problem of each
            results[emit] = []
        left_out = {
            outcome.reason.replace("_", " "): count
            for outcome, count in stats.counts.items()
            if outcome.name == "dropped" and count
        }
        if stats.rejects.count:
            left_out["cannot be read"] = stats.rejects.count
        facts.append(EmitFacts(emit, len(results[emit]), left_out))
    return facts, results


def _example(
    results: dict[Emit, list[dict[str, Any]]], config: SampleConfig
) -> tuple[Emit, Record] | None:
    choices = EXAMPLES if config.emit is SampleConfig.emit else (config.emit,)
    for emit in choices:
        if results[emit]:
            return emit, Record(results[emit][0])
    return None
