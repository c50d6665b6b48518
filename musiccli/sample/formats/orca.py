"""Orca pairs, by Intel and by Argilla: a question after a system message, and two replies."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, read_asking_text, with_system_message
from musiccli.sample.columns import Format, make_record, read_label, read_text


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference of Intel's row, which has a `question`."""
    yield make_record(row, source, _sides(row, "question"), texts=("question",))


def read_argilla(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference of Argilla's row, which has an `input`; a tie where `status` says so."""
    sides = _sides(row, "input")
    row.get("labelling_prompt")  # of the LLM that rated the replies, and no part of the pair
    labels = {"rating": row["rating"]} if "rating" in row else {}
    results = {"unchanged": "chosen", "swapped": "chosen", "tie": "tie"}
    if "status" in row and read_label(row, "status", results) == "tie":
        tie = make_record(row, source, {"a": sides["chosen"], "b": sides["rejected"]}, labels)
        yield tie | {"winner": "tie"}
    else:
        yield make_record(row, source, sides, labels)


def _sides(row: Record, question_column: str) -> dict[str, list[Message]]:
    question = read_asking_text(row, question_column, read_text(row, question_column))
    history = with_system_message(row, question)
    return {
        name: [*history, assistant_message(read_text(row, name))] for name in ("chosen", "rejected")
    }


def _fits(row: Record) -> bool:
    """Whether the sides are replies, and not whole conversations, and no other column asks."""
    return isinstance(row["chosen"], str) and row.get("prompt") is None


FORMATS = [
    Format(
        "Orca",
        order=82,
        columns=frozenset({"question", "chosen", "rejected"}),
        read=read,
        fits=_fits,
    ),
    Format(
        "Orca by Argilla",
        order=83,
        columns=frozenset({"system", "input", "chosen", "rejected"}),
        read=read_argilla,
        fits=_fits,
    ),
]
