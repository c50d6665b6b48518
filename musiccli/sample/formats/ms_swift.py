"""ms-swift: a conversation, or a `query` with its `response`, and a rejected reply beside it.

github.com/modelscope/ms-swift, docs: custom dataset.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    assistant_message,
    read_asking_text,
    read_messages,
    read_turn_pairs,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record, read_text

TEXTS = ("query", "response", "rejected_response")


def read_rejected_messages(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference of one whole conversation over the other."""
    columns = {"chosen": "messages", "rejected": "rejected_messages"}
    sides = {
        side: with_system_message(row, read_messages(row, column))
        for side, column in columns.items()
    }
    yield make_record(row, source, sides, texts=TEXTS)


def read_rejected_response(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference of the conversation's last reply over the rejected one."""
    chosen = with_system_message(row, read_messages(row, "messages"))
    if not chosen or chosen[-1]["role"] != "assistant":
        raise RecordError("does not end with the assistant", field="messages", record=row)
    rejected = [*chosen[:-1], assistant_message(read_text(row, "rejected_response"))]
    yield make_record(row, source, {"chosen": chosen, "rejected": rejected}, texts=TEXTS)


def read_query(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference of the response over the rejected one, after the history."""
    query = read_asking_text(row, "query", read_text(row, "query"))
    history = with_system_message(row, [*read_turn_pairs(row, "history"), *query])
    sides = {
        "chosen": [*history, assistant_message(read_text(row, "response"))],
        "rejected": [*history, assistant_message(read_text(row, "rejected_response"))],
    }
    yield make_record(row, source, sides, texts=TEXTS)


FORMATS = [
    Format(
        "ms-swift rejected messages",
        order=111,
        columns=frozenset({"messages", "rejected_messages"}),
        read=read_rejected_messages,
    ),
    Format(
        "ms-swift rejected response",
        order=112,
        columns=frozenset({"messages", "rejected_response"}),
        read=read_rejected_response,
    ),
    Format(
        "ms-swift query",
        order=113,
        columns=frozenset({"query", "response", "rejected_response"}),
        read=read_query,
    ),
]
