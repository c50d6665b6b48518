"""MT-Bench human judgments and Chatbot Arena: two models' conversations and a person's vote.

The Arena's exports differ: 33k and 100k name a tie "tie (bothbad)" where both replies were bad, and
140k names it "both_bad". 140k holds contents as parts.
"""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import read_messages
from musiccli.sample.columns import Format, make_record
from musiccli.sample.replies import read_vote


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner.

    MT-Bench's rows hold both turns, also where the first was judged. So later turns are cut off.
    """
    (winner, labels), turns = read_vote(row), _judged_turns(row)
    if isinstance(row.get("category_tag"), dict):  # of 100k and 140k
        labels["category_tag"] = row["category_tag"]
    sides = {side: read_messages(row, f"conversation_{side}") for side in ("a", "b")}
    if turns is not None:
        sides = {side: _first_turns(messages, turns) for side, messages in sides.items()}
    record = make_record(row, source, sides, labels, id=_vote_id(row, turns))
    yield record if winner is None else record | {"winner": winner}


def _judged_turns(row: Record) -> int | None:
    """How many turns the vote is about: 1 may also be 1.0 or "1"; None where it is not known."""
    turn = row.get("turn")
    if turn is None:
        return None
    if isinstance(turn, float) and turn.is_integer():
        turn = int(turn)
    if isinstance(turn, str) and re.fullmatch("[0-9]{1,9}", turn):
        turn = int(turn)
    if isinstance(turn, bool) or not isinstance(turn, int) or turn < 1:
        problem = f"is {shortened(turn)}; it should be a whole number from 1"
        raise RecordError(problem, field="turn", record=row)
    return turn


def _first_turns(messages: list[Message], turns: int) -> list[Message]:
    """The messages before user message number `turns` + 1."""
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: starts[turns]] if turns < len(starts) else messages


def _vote_id(row: Record, turns: int | None) -> str | None:
    """An id made of the columns that name the vote, for data that has no ids."""
    if row.get("question_id") is None:
        return None
    names = ("question_id", "model_a", "model_b", "judge")
    parts = (*map(row.get, names), turns)
    return "/".join(str(part) for part in parts if part is not None)


FORMATS = [
    Format(
        "MT-Bench votes",
        order=50,
        columns=frozenset({"conversation_a", "conversation_b", "winner"}),
        read=read,
    )
]
