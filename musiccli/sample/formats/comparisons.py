"""Comparisons in our own form: two conversations, `a` and `b`."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.sample.columns import Format, make_record, read_messages


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the row's comparison with all its fields."""
    sides = {side: read_messages(row, side) for side in ("a", "b")}
    yield make_record(row, source, sides, keep_fields=True)


FORMATS = [Format("comparison", order=110, columns=frozenset({"a", "b"}), read=read)]
