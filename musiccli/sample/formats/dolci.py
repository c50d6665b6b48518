"""Dolci: preferences as `chosen_messages` and `rejected_messages`."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_messages
from musiccli.sample.columns import Format, make_record


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, each side as a whole conversation."""
    sides = {name: read_messages(row, f"{name}_messages") for name in ("chosen", "rejected")}
    yield make_record(row, source, sides)


FORMATS = [
    Format(
        "Dolci",
        order=101,
        columns=frozenset({"chosen_messages", "rejected_messages"}),
        read=read,
    )
]
