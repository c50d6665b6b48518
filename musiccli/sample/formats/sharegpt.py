"""ShareGPT: `conversations`, alone or as the history of two replies."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    assistant_message,
    join_history,
    read_messages,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record


def read_preference(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference between the two replies, each after the history.

    A side is a text or messages, and may begin with the history.
    """
    history = read_messages(row, "conversations")
    sides = {
        name: with_system_message(row, join_history(history, _side(row, name)))
        for name in ("chosen", "rejected")
    }
    yield make_record(row, source, sides)


def _side(row: Record, name: str) -> list[Message]:
    value = row[name]
    return [assistant_message(value)] if isinstance(value, str) else read_messages(row, name)


def read_conversation(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the row's conversation, after the system message of its own column if there is one."""
    messages = with_system_message(row, read_messages(row, "conversations"))
    yield make_record(row, source, {"messages": messages})


FORMATS = [
    Format(
        "ShareGPT preference",
        order=80,
        columns=frozenset({"conversations", "chosen", "rejected"}),
        read=read_preference,
    ),
    Format("ShareGPT", order=130, columns=frozenset({"conversations"}), read=read_conversation),
]
