"""Arena 55k (the Kaggle competition): turns as JSON lists in strings, and one-hot winners."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, user_message
from musiccli.sample.columns import Format, make_record
from musiccli.sample.replies import TIE, read_flag

WINNERS = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": TIE}
TEXT_COLUMNS = ("prompt", "response_a", "response_b")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner. A tie may also be one between two bad replies."""
    prompts, *replies = (_read_turns(row, column) for column in TEXT_COLUMNS)
    for column, texts in zip(TEXT_COLUMNS[1:], replies, strict=True):
        if len(texts) != len(prompts):
            raise RecordError(
                f"holds {len(texts)} turns; the prompt holds {len(prompts)}",
                field=column,
                record=row,
            )
    sides = {side: _conversation(prompts, texts) for side, texts in zip("ab", replies, strict=True)}
    winner = _winner(row)
    record = make_record(row, source, sides, texts={*TEXT_COLUMNS, *WINNERS})
    yield record if winner is None else record | {"winner": winner}


def _read_turns(row: Record, column: str) -> list[Any]:
    """The texts of a column: a list, or a string that holds one as JSON."""
    value = row[column]
    if isinstance(value, str):
        try:
            value = json_text.decode(value.encode())
        except ValueError as error:
            raise RecordError(f"is no JSON list ({error})", field=column, record=row) from None
    if not isinstance(value, list) or not value:
        raise RecordError("should be a list of texts", field=column, record=row)
    return value


def _conversation(prompts: list[Any], replies: list[Any]) -> list[Message]:
    turns = zip(map(user_message, prompts), map(assistant_message, replies), strict=True)
    return list(chain.from_iterable(turns))


def _winner(row: Record) -> str | None:
    """The only winner that is marked; None where no mark is set at all."""
    marks = {column: read_flag(row, column) for column in WINNERS}
    if all(mark is None for mark in marks.values()):
        return None
    marked = [column for column, mark in marks.items() if mark]
    if len(marked) != 1:
        names = ", ".join(WINNERS)
        raise RecordError(
            f"{len(marked)} of {names} are 1; there should be one",
            field="winner_model_a",
            record=row,
        )
    return WINNERS[marked[0]]


def _fits(row: Record) -> bool:
    """Whether the prompt is a list of turns, and not one text."""
    prompt = row["prompt"]
    return isinstance(prompt, list) or (isinstance(prompt, str) and prompt.startswith("["))


FORMATS = [
    Format("Arena 55k", order=24, columns=frozenset(TEXT_COLUMNS), read=read, fits=_fits),
]
