"""LLaMA-Factory: an `instruction` with an optional `input`, and a better and a worse reply.

github.com/hiyouga/LLaMA-Factory, data/README.md. Its ShareGPT rows are read by sharegpt.py.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    assistant_message,
    read_asking_text,
    read_turn_pairs,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record, read_text

TEXTS = ("instruction", "output")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, each reply after the history and the instruction."""
    history = read_instruction(row)
    sides = {
        name: [*history, assistant_message(read_text(row, name))] for name in ("chosen", "rejected")
    }
    yield make_record(row, source, sides, texts=TEXTS)


def read_instruction(row: Record) -> list[Message]:
    """The column `history`, and the instruction with the input on a line below it."""
    instruction = read_asking_text(row, "instruction", instruction_text(row))
    return with_system_message(row, [*read_turn_pairs(row, "history"), *instruction])


def instruction_text(row: Record) -> str:
    """The instruction, with the input on a line below it where there is one."""
    text = read_text(row, "instruction")
    return f"{text}\n{read_text(row, 'input')}" if row.get("input") else text


FORMATS = [
    Format(
        "LLaMA-Factory preference",
        order=81,
        columns=frozenset({"instruction", "chosen", "rejected"}),
        read=read,
        fits=lambda row: isinstance(row["chosen"], str) and row.get("prompt") is None,
    )
]
