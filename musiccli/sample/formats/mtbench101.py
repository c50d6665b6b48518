"""MT-Bench-101: conversations as a `history` of turns, each {user, bot}."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, nested_value, user_message
from musiccli.sample.columns import Format, make_record


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the turns as one conversation."""
    messages = []
    for index, turn in enumerate(nested_value(row, "history", list)):
        if not isinstance(turn, dict):
            raise RecordError(
                "is no object with user and bot", field=f"history[{index}]", record=row
            )
        messages += [user_message(turn.get("user")), assistant_message(turn.get("bot"))]
    yield make_record(row, source, {"messages": messages})


FORMATS = [
    Format(
        "MT-Bench-101",
        order=135,
        columns=frozenset({"history"}),
        read=read,
        fits=lambda row: row.get("prompt") is None,
    )
]
