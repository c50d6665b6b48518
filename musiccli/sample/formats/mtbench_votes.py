"""MT-Bench human judgments and Chatbot Arena: two models' conversations and a person's vote."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.sample.columns import Format, make_record, read_messages


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner.

    MT-Bench's rows hold both turns, also where the first was judged. So later turns are cut off.
    """
    winner = _winner(row)
    last_message = 2 * row["turn"] if isinstance(row.get("turn"), int) else None
    sides = {side: read_messages(row, f"conversation_{side}")[:last_message] for side in ("a", "b")}
    yield make_record(row, source, sides, id=_vote_id(row)) | {"winner": winner}


def _winner(row: Record) -> str:
    winners = {"model_a": "a", "model_b": "b"}
    if str(row["winner"]).startswith("tie"):
        return "tie"
    if row["winner"] not in winners:
        raise RecordError(
            f"is {row['winner']!r}; it should be model_a, model_b or tie",
            field="winner",
            record=row,
        )
    return winners[row["winner"]]


def _vote_id(row: Record) -> str | None:
    """An id made of the columns that name the vote. The data has no ids."""
    if row.get("question_id") is None:
        return None
    names = ("question_id", "model_a", "model_b", "judge", "turn")
    return "/".join(str(row.get(name)) for name in names)


FORMATS = [
    Format(
        "MT-Bench votes",
        order=50,
        columns=frozenset({"conversation_a", "conversation_b", "winner"}),
        read=read,
    )
]
