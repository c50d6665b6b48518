"""Comparisons in our own form: two conversations, `a` and `b`, and perhaps the winner."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_side
from musiccli.sample.columns import Format, make_record, read_label

WINNERS = {"a": "a", "b": "b", "tie": "tie", "model_a": "a", "model_b": "b"}


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the row's comparison with all its fields."""
    sides = {side: read_side(row, side) for side in ("a", "b")}
    record = make_record(row, source, sides, texts=("a", "b"), keep_fields=True)
    if row.get("winner") is not None:
        record["winner"] = read_label(row, "winner", WINNERS)
    record.pop("prompt", None)  # it is in both sides
    yield record


FORMATS = [Format("comparison", order=110, columns=frozenset({"a", "b"}), read=read)]
