"""Datasets whose rows are parts of a whole: successive rows become one row, which a format reads.

The rows of one whole must follow each other, as they do in these datasets. So memory holds the rows
of one whole only, and never more than MAX_ROWS of them.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.columns import Format
from musiccli.sample.formats import FORMATS

MAX_ROWS = 10_000  # of one whole; a tree of OASST has a few hundred at most


def join_rows(rows: Iterable[tuple[str, Record]], stats: RunStats) -> Iterator[tuple[str, Record]]:
    """The rows in their order, with those of one whole joined to one row.

    Args:
        rows: pairs of a source's name and one of its rows.
        stats: counts the rows before they are joined. Its `rejects` get the rows that fit nowhere.
    """
    formats = [format for format in FORMATS if format.group]
    groups = {format.name: format.group for format in formats if format.group}
    ended: set[int] = set()  # hashes of the wholes whose rows have ended
    whole_of = partial(_whole, formats)
    for (source, name, value), members in groupby(_count(rows, stats), key=whole_of):
        if name is None:
            yield from members
            continue
        group, whole = groups[name], hash((source, name, repr(value)))
        kept: list[Record] = []
        for _, row in members:
            with stats.rejects.guard(row):
                _check(row, group.column, len(kept), whole in ended and not group.may_return)
                kept.append(row)
        ended.add(whole)
        joined = group.join(kept, stats.rejects) if kept else None
        if joined is not None:
            yield source, joined


def _count(rows: Iterable[tuple[str, Record]], stats: RunStats) -> Iterator[tuple[str, Record]]:
    for source, row in rows:
        stats.count("rows_read")
        yield source, row


def _whole(
    formats: list[Format], source_and_row: tuple[str, Record]
) -> tuple[str, str | None, Any]:
    """What rows of one whole have in common: the source, the format and the column's value."""
    source, row = source_and_row
    for format in formats:
        if format.group and row.keys() >= format.columns:
            return source, format.name, row[format.group.column]
    return source, None, None


def _check(row: Record, column: str, earlier: int, ended: bool) -> None:
    """Raise RecordError where a row cannot be joined to the rows before it."""
    value = row[column]
    problem = None
    if ended:
        problem = f"{shortened(value)}: the rows of one {column} should follow each other"
    elif earlier == MAX_ROWS:
        problem = f"{shortened(value)}: more than {MAX_ROWS:,} rows belong together"
    if problem:
        raise RecordError(problem, field=column, record=row)
