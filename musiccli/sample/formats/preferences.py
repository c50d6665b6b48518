"""Preferences in most forms: our records, TRL, UltraFeedback, Skywork, RewardBench, Anthropic HH.

`chosen` and `rejected` hold messages, texts beside a `prompt`, or HH strings: one string with each
turn behind a blank line and "Human:" or "Assistant:".
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.sample.columns import (
    HH_START,
    Format,
    assistant_message,
    make_record,
    read_hh,
    read_messages,
    read_prompt,
    with_system_message,
)


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, each side as a whole conversation."""
    sides = {name: read_side(row, name) for name in ("chosen", "rejected")}
    is_record = isinstance(row["chosen"], list) and row.get("prompt") is None
    yield make_record(row, source, sides, keep_fields=is_record)


def read_side(row: Record, name: str) -> list[Message]:
    """One side as a whole conversation."""
    value, prompt = row[name], row.get("prompt")
    if not isinstance(value, str):
        return with_system_message(row, _with_prompt(row, name, read_messages(row, name)))
    if not prompt or HH_START.match(value):
        return read_hh(row, name)
    return with_system_message(row, [*read_prompt(row), assistant_message(value)])


def _with_prompt(row: Record, name: str, side: list[Message]) -> list[Message]:
    """The side after the prompt, where it does not hold the prompt already.

    UltraFeedback repeats the prompt in both sides; TRL's explicit form does not.
    """
    prompt = row.get("prompt")
    if not prompt:
        return side
    history = read_prompt(row)
    if side[: len(history)] == history:
        return side
    if isinstance(prompt, str) and side and side[0]["role"] != "assistant":
        if any(_holds_prompt(message, prompt) for message in side):
            return side
        raise RecordError(
            "neither holds the prompt nor begins with the assistant", field=name, record=row
        )
    return history + side


def _holds_prompt(message: Message, prompt: str) -> bool:
    """Whether a user message is the prompt, up to spaces around it."""
    content: object = message["content"]  # not yet checked
    return (
        message["role"] == "user" and isinstance(content, str) and content.strip() == prompt.strip()
    )


FORMATS = [
    Format(
        "preference, HH or RewardBench",
        order=100,
        columns=frozenset({"chosen", "rejected"}),
        read=read,
    )
]
