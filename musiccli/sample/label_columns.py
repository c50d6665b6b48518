"""Columns that look like labels and that the reader of a row's format did not read."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from musiccli.core.records import Record, Scored, record_kind
from musiccli.core.run_stats import RunStats
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
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


class LabelColumns:
    """Counts the rows of each column that looks like a label and was not read."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._first_row: dict[str, str | None] = {}

    def add(self, row: Row, records: Iterable[Record]) -> None:
        """Count the columns of a row, of which `records` were made."""
        for column in ignored_labels(row, records):
            self._rows[column] = self._rows.get(column, 0) + 1
            self._first_row.setdefault(column, row.where)

    def report(self, stats: RunStats) -> None:
        """Say each column, with its number of rows and the first of them."""
        for column, number in self._rows.items():
            where = self._first_row[column]
            first = f" (first: {where})" if where else ""
            rows = "1 row has" if number == 1 else f"{number:,} rows have"
            stats.say(
                f"{rows} a column {column} that was not read as a label{first}; `columns` says "
                "what a column is"
            )


def ignored_labels(row: Row, records: Iterable[Record]) -> Iterator[str]:
    """The columns of a row that look like labels and that its format's reader did not read.

    A column that the metadata of a labeled record keeps is none of these: it is not lost, and
    another column said which side is better.

    Yields:
        The names of columns; of a list of objects, such as `answers[].rank`.
    """
    records = list(records)
    labeled = bool(records) and all(map(_has_label, records))
    for column, value in row.items():
        if column in row.columns_read or column in RECORD_FIELDS:
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
