"""LLMBar: one instruction with two outputs, and a label that says which is better."""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.sample.columns import Format, assistant_message, make_record, user_message

REWARDBENCH_SUBSETS = {  # LLMBar's files or folders, and RewardBench's names for them
    "Natural": "llmbar-natural",
    "Neighbor": "llmbar-adver-neighbor",
    "GPTInst": "llmbar-adver-GPTInst",
    "GPTOut": "llmbar-adver-GPTOut",
    "Manual": "llmbar-adver-manual",
}


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The better output over the other, with the subset in the metadata."""
    if row["label"] not in (1, 2):
        raise RecordError(f"is {row['label']!r}; it should be 1 or 2", field="label", record=row)
    better, worse = ("output_1", "output_2") if row["label"] == 1 else ("output_2", "output_1")
    question = user_message(row["input"])
    sides = {
        "chosen": [question, assistant_message(row[better])],
        "rejected": [question, assistant_message(row[worse])],
    }
    yield make_record(row, source, sides, _subset(row.where or source))


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
    )
]
