"""Preferences in most forms: our records, TRL, UltraFeedback, Skywork, RewardBench, Anthropic HH.

`chosen` and `rejected` hold messages, texts beside a `prompt`, or HH strings: one string with each
turn behind a blank line and "Human:" or "Assistant:".
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_side
from musiccli.sample.columns import Format, make_record


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, each side as a whole conversation."""
    sides = {name: read_side(row, name) for name in ("chosen", "rejected")}
    is_record = isinstance(row["chosen"], list) and row.get("prompt") is None
    yield make_record(row, source, sides, keep_fields=is_record)


FORMATS = [
    Format(
        "preference, HH or RewardBench",
        order=100,
        columns=frozenset({"chosen", "rejected"}),
        read=read,
    )
]
