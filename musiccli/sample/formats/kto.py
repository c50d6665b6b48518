"""KTO: a conversation with a label that says whether its last reply is good.

TRL has `label` beside a prompt and a completion, ms-swift beside `messages`; LLaMA-Factory has
`kto_tag`. No row holds a pair.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, read_messages, with_system_message
from musiccli.sample.columns import Format, make_record, read_label, read_text
from musiccli.sample.formats.conversations import prompt_and_completion
from musiccli.sample.formats.llama_factory import read_instruction

TEXTS = ("instruction", "output", "kto_tag")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation. `label` in the metadata is true where its reply is good."""
    column = _label_column(row)
    read_label(row, column, {True: "good", False: "bad"})
    sides = {"messages": _messages(row)}
    is_record = "messages" in row
    labels = {"label": row[column]}
    yield make_record(row, source, sides, labels, texts=TEXTS, keep_fields=is_record)


def refuse_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Raise RecordError, because the row has one reply."""
    raise RecordError(
        "labels one reply, and there is no other to compare it with; "
        "`emit` conversations keeps it with its label",
        field=_label_column(row),
        record=row,
    )


def _label_column(row: Record) -> str:
    return "kto_tag" if "kto_tag" in row else "label"


def _messages(row: Record) -> list[Message]:
    if "instruction" in row:
        return [*read_instruction(row), assistant_message(read_text(row, "output"))]
    for column in ("messages", "conversations"):
        if column in row:
            return with_system_message(row, read_messages(row, column))
    return prompt_and_completion(row)


def _has_boolean_label(row: Record) -> bool:
    """Whether the label is KTO's. Other conversations may have a label of another kind."""
    return isinstance(row["label"], bool)


FORMATS = [
    Format(
        "KTO",
        order=114,
        columns=frozenset({"prompt", "completion", "label"}),
        read=read,
        read_pairs=refuse_pairs,
    ),
    Format(
        "KTO by ms-swift",
        order=115,
        columns=frozenset({"messages", "label"}),
        read=read,
        read_pairs=refuse_pairs,
        fits=_has_boolean_label,
    ),
    Format(
        "KTO by LLaMA-Factory",
        order=116,
        columns=frozenset({"instruction", "output", "kto_tag"}),
        read=read,
        read_pairs=refuse_pairs,
    ),
    Format(
        "KTO by LLaMA-Factory, ShareGPT",
        order=117,
        columns=frozenset({"conversations", "kto_tag"}),
        read=read,
        read_pairs=refuse_pairs,
    ),
]
