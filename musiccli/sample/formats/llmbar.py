"""LLMBar and OffsetBias: one instruction with two outputs, and a label: the better one.

LLMBar's instruction stands in `input`. Rows as Alpaca has them hold both columns.
"""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, read_asking_text
from musiccli.sample.columns import Format, make_record, read_label, read_text
from musiccli.sample.formats.llama_factory import instruction_text

REWARDBENCH_SUBSETS = {  # LLMBar's files or folders, and RewardBench's names for them
    "Natural": "llmbar-natural",
    "Neighbor": "llmbar-adver-neighbor",
    "GPTInst": "llmbar-adver-GPTInst",
    "GPTOut": "llmbar-adver-GPTOut",
    "Manual": "llmbar-adver-manual",
}


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The better output over the other, with the subset in the metadata."""
    labels = _subset(row.where or source)
    question = instruction_text(row) if "instruction" in row else read_text(row, "input")
    yield make_record(row, source, _sides(row, question), labels, texts=("instruction",))


def read_offsetbias(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The better output over the other, with the models in the metadata."""
    sides = _sides(row, instruction_text(row))
    yield make_record(row, source, sides, id=row.get("instruction_id"), texts=("instruction",))


def _sides(row: Record, text: str) -> dict[str, list[Message]]:
    better = read_label(row, "label", {1: "output_1", 2: "output_2"})
    worse = "output_2" if better == "output_1" else "output_1"
    question = read_asking_text(row, "instruction" if "instruction" in row else "input", text)
    return {
        "chosen": [*question, assistant_message(read_text(row, better))],
        "rejected": [*question, assistant_message(read_text(row, worse))],
    }


def _subset(path: str) -> dict[str, str]:
    """The subset by the last part of the path that names one."""
    for part in reversed(re.split(r"[\\/.\[:]", path)):
        if part in REWARDBENCH_SUBSETS:
            return {"subset": REWARDBENCH_SUBSETS[part]}
    return {}


FORMATS = [
    Format(
        "LLMBar",
        order=60,
        columns=frozenset({"input", "output_1", "output_2", "label"}),
        read=read,
    ),
    Format(
        "OffsetBias",
        order=61,
        columns=frozenset({"instruction", "output_1", "output_2", "label"}),
        read=read_offsetbias,
    ),
]
