"""Conversations as `messages`, and prompts with or without a completion."""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    read_messages,
    read_prompt,
    read_side,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record

# Columns of one of several replies, as response_a, completion1 or responses.
_SEVERAL_REPLIES = re.compile(
    r"(response|completion|answer|output|reply|generation)_?(\d+|[a-zA-Z])|completions|responses"
)


def read_conversation(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the row's conversation, after the system message of its own column if there is one."""
    _refuse_one_side(row)
    messages = with_system_message(row, read_messages(row, "messages"))
    yield make_record(row, source, {"messages": messages}, keep_fields=True)


def read_prompt_and_completion(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the prompt, and the completion after it if there is one, as one conversation."""
    yield make_record(row, source, {"messages": prompt_and_completion(row)}, texts=("response",))


def prompt_and_completion(row: Record) -> list[Message]:
    """The columns `prompt` and `completion`, each a string or messages, after `system`.

    Some files have a `response` for a `completion`.
    """
    _refuse_one_side(row)
    column = "completion" if "completion" in row else "response"
    return read_side(row, column) if row.get(column) else with_system_message(row, read_prompt(row))


def _has_one_reply_at_most(row: Record) -> bool:
    """Whether no column holds one of several responses, which only a known label could rank."""
    return not any(row[name] and _SEVERAL_REPLIES.fullmatch(name) for name in row)


def _refuse_one_side(row: Record) -> None:
    """Raises RecordError for half a preference, which is no conversation."""
    columns = {name for name, value in row.items() if isinstance(value, str | list | dict)}
    for side, partner in (("chosen", "rejected"), ("rejected", "chosen")):
        if side in columns:
            problem = f"is missing beside {side}; a preference has both"
            raise RecordError(problem, field=partner, record=row)


FORMATS = [
    Format("conversation", order=120, columns=frozenset({"messages"}), read=read_conversation),
    Format(
        "prompt",
        order=140,
        columns=frozenset({"prompt"}),
        read=read_prompt_and_completion,
        fits=_has_one_reply_at_most,
    ),
]
