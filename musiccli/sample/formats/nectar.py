"""Nectar: a prompt as an HH string, and seven answers that GPT-4 ranked.

Source: the dataset card of berkeley-nest/Nectar.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_prompt
from musiccli.sample.columns import Format
from musiccli.sample.replies import (
    Reply,
    ReplyContext,
    check_number,
    list_replies,
    pair_all,
    read_objects,
)

ANSWERS = 7  # at most, in each row


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield each answer as a conversation, with its rank and its model."""
    return list_replies(_context(row, source), _replies(row))


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every two answers, the one with the lower rank chosen."""
    return pair_all(_context(row, source), _replies(row))


def _context(row: Record, source: str) -> ReplyContext:
    origins = {"sources": row["source"]} if isinstance(row.get("source"), list) else {}
    return ReplyContext(row, source, read_prompt(row), origins, text_columns={"answers"})


def _replies(row: Record) -> list[Reply]:
    replies = []
    for index, answer in enumerate(read_objects(row, "answers")):
        rank = check_number(row, f"answers[{index}].rank", answer.get("rank"), 1, ANSWERS)
        labels = {"rank": rank, "model": answer.get("model")}
        replies.append(Reply(answer["answer"], None if rank is None else -rank, labels))
    return replies


FORMATS = [
    Format(
        "Nectar",
        order=31,
        columns=frozenset({"prompt", "answers"}),
        read=read,
        read_pairs=read_pairs,
    )
]
