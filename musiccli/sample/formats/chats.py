"""Chats in a column `conversation`: WildChat, LMSYS-Chat-1M, Capybara, and MultiChallenge."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    nested_value,
    read_messages,
    read_turn_pairs,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record

IDS = ("conversation_id", "conversation_hash", "question_id")
MODERATION = ("openai_moderation", "detoxify_moderation")  # one verdict a message
RUBRIC = ("target_question", "pass_criteria")  # of MultiChallenge; texts of any length


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation, with its model, its language and its moderation in the metadata.

    MultiChallenge's conversations end with the user. What the next reply is asked for is kept as
    `target_question` and `pass_criteria`.
    """
    labels = {name: row[name] for name in (*MODERATION, *RUBRIC) if row.get(name) is not None}
    id = next((row[name] for name in IDS if row.get(name) is not None), None)
    sides = {"messages": with_system_message(row, _messages(row))}
    yield make_record(row, source, sides, labels, id=id)


def read_capitals(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation of a row whose columns are in capitals."""
    yield from read(Record({name.lower(): row[name] for name in row}, row.where), source)


def _messages(row: Record) -> list[Message]:
    turns = nested_value(row, "conversation", (list, dict))
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" not in turns[0]:
        return read_turn_pairs(row, "conversation")
    return read_messages(row, "conversation")


FORMATS = [
    Format("chat", order=131, columns=frozenset({"conversation"}), read=read),
    Format(
        "MultiChallenge in capitals",
        order=132,
        columns=frozenset({"CONVERSATION", "TARGET_QUESTION"}),
        read=read_capitals,
    ),
]
