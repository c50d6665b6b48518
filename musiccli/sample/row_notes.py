"""What is said of rows after the last one: columns not read, scores that contradict the choice."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import nan
from typing import Any

from musiccli.core.records import Record, Scored, record_kind, side_names
from musiccli.core.row_messages import HISTORY_COLUMNS, SYSTEM_COLUMNS, are_said, asking_texts
from musiccli.core.run_stats import RunStats
from musiccli.core.transcripts import ends_with_reply_header
from musiccli.sample.columns import Row

LABEL_WORDS = frozenset(
    """
    preference preferences preferred prefer winner winners win rank ranks ranked ranking rankings
    score scores rating ratings label labels chosen rejected reject better best worse worst safer
    vote votes verdict verdicts judgment judgments judgement reward rewards grade correct tie
    helpfulness quality
    """.split()  # noqa: SIM905
)
RECORD_FIELDS = {"metadata", "branch", "votes", "verdict", "given_winner", *Scored.__annotations__}
ASKING_COLUMNS = {"prompt", "question", "instruction", "query", "input"}
# Columns beside one of these that may hold what it is about.
TEXT_COLUMNS = frozenset(
    """
    history context input instruction question query passage document article dialogue dialog
    system_message system_instruction
    """.split()  # noqa: SIM905
)
TIE_WORDS = frozenset(("tie", "tied", "ties"))
SCORE_WORDS = frozenset("score scores rating ratings reward rewards grade quality".split())  # noqa: SIM905
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


class RowNotes:
    """Counts the rows of which something should be said, and says it in a line for each kind."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[str, str]] = Counter()  # by what they have, and what helps
        self._first_row: dict[tuple[str, str], str] = {}

    def add(self, row: Row, records: Sequence[Record]) -> None:
        """Count what should be said of a row, of which `records` were made."""
        for column in ignored_labels(row, records):
            text = f"a column {column} that was not read as a label"
            self._count(text, "`columns` says what a column is", row)
        for column in ignored_texts(row, records):
            text = f"a column {column} whose text is in no message"
            messages = f"`columns` history={column} puts messages before the prompt"
            is_text = isinstance(dict.get(row, column), str)
            self._count(text, "a prompt holds all that was asked" if is_text else messages, row)
        if any(map(_ends_with_reply_header, records)):
            text = "a user message that ends with a header such as Assistant: and was not split"
            self._count(text, "a prompt of messages keeps its turns apart", row)
        for text in contrary_scores(row, records):
            self._count(text, "the chosen side stays chosen", row)

    def _count(self, text: str, help: str, row: Row) -> None:
        self._rows[text, help] += 1
        if row.where:
            self._first_row.setdefault((text, help), row.where)

    def report(self, stats: RunStats) -> None:
        """Say what was counted, with the number of rows and the first of them."""
        for kind, number in self._rows.items():
            text, help = kind
            first = f" (first: {self._first_row[kind]})" if kind in self._first_row else ""
            rows = "1 row has" if number == 1 else f"{number:,} rows have"
            stats.say(f"{rows} {text}{first}; {help}")


def _ends_with_reply_header(record: Record) -> bool:
    """Whether a user message waits for a reply as a transcript does that was read as one text."""
    return any(
        message["role"] == "user" and ends_with_reply_header(message["content"])
        for side in side_names(record)
        for message in record[side]
    )


def ignored_texts(row: Row, records: Sequence[Record]) -> Iterator[str]:
    """The columns whose messages or texts are in no message of the records made of a row.

    Replies alone do not count: another reply is no history that was lost.
    """
    texts = {column: _unread_texts(row, column, value) for column, value in row.items()}
    if records and any(texts.values()):
        sides = [record[side] for record in records for side in side_names(record)]
        yield from (column for column in texts if not are_said(texts[column], sides))


def _unread_texts(row: Row, column: str, value: Any) -> list[str]:
    """What the user and the system say in a column that was not read."""
    is_asked_for = column in HISTORY_COLUMNS or column in SYSTEM_COLUMNS  # wherever it is
    if column in row.columns_read and not (isinstance(value, str) and is_asked_for):
        return []
    pairs = isinstance(value, list) and value and isinstance(value[0], list)
    if column in RECORD_FIELDS or (pairs and column not in HISTORY_COLUMNS):
        return []
    is_beside_prompt = any(name in row for name in ASKING_COLUMNS & row.columns_read)
    is_text = isinstance(value, str) and (
        column in SYSTEM_COLUMNS or (column in TEXT_COLUMNS and is_beside_prompt)
    )
    return asking_texts(value) or ([value.strip()] if is_text else [])


def contrary_scores(row: Row, records: Sequence[Record]) -> Iterator[str]:
    """What is to be said of scores and flags that do not favor the chosen side."""
    if not (records and all(record_kind(record) == "preference" for record in records)):
        return
    fields = {**row, **(row["metadata"] if isinstance(row.get("metadata"), dict) else {})}
    for name, value in fields.items():
        words = {word.lower() for word in _WORD.findall(name)}
        if words & TIE_WORDS and _is_true(value):
            yield f"a true {name}"
        counterpart = name.replace("chosen", "rejected")
        if counterpart != name and words & SCORE_WORDS:
            chosen, rejected = _number(value), _number(fields.get(counterpart))
            if chosen <= rejected:  # never true of nan
                yield f"a {name} {'equal to' if chosen == rejected else 'below'} {counterpart}"


def _is_true(value: object) -> bool:
    """Whether a value is true, also as 1 or as the text of a table."""
    return str(value).lower() in ("true", "yes", "1", "1.0")


def _number(value: object) -> float:
    """The number that a value is, also as the text of a table; nan for any other value."""
    try:
        return nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return nan


def ignored_labels(row: Row, records: Sequence[Record]) -> Iterator[str]:
    """The columns of a row that look like labels and that its format's reader did not read.

    A column that the metadata of a labeled record keeps is none of these: it is not lost, and
    another column said which side is better.

    Yields:
        The names of columns; of a list of objects, such as `answers[].rank`.
    """
    labeled = bool(records) and all(map(_has_label, records))
    for column, value in row.items():
        if column in row.columns_read or column == "metadata":
            continue
        if records and all(column in record for record in records):  # a field of our own records
            continue
        if labeled and all(column in (record.get("metadata") or {}) for record in records):
            continue
        if looks_like_label(column):
            yield column
            continue
        inner, sign = (value[0], "[].") if isinstance(value, list) and value else (value, ".")
        if isinstance(inner, dict):
            yield from (f"{column}{sign}{name}" for name in inner if looks_like_label(name))


def looks_like_label(name: str) -> bool:
    """Whether a word of a column's name says that it labels a row."""
    return any(word.lower() in LABEL_WORDS for word in _WORD.findall(name))


def _has_label(record: Record) -> bool:
    """Whether a record says which side is better, or whether it is right."""
    metadata: dict[str, Any] = record.get("metadata") or {}
    return (
        record_kind(record) == "preference"
        or record.get("winner") is not None
        or "correct" in metadata
        or "success" in metadata
    )
