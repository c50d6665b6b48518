"""Orca pairs, by Intel and by Argilla: a question after a system message, and two replies."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.sample.columns import (
    Format,
    assistant_message,
    make_record,
    read_text,
    user_message,
    with_system_message,
)


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference; for a row whose `status` is "tie", the comparison without a winner.

    Intel's rows have a `question`, and Argilla's an `input` and a `status`.
    """
    question = read_text(row, "input" if row.get("question") is None else "question")
    history = with_system_message(row, [user_message(question)])
    chosen, rejected = (
        [*history, assistant_message(read_text(row, name))] for name in ("chosen", "rejected")
    )
    if row.get("status") == "tie":
        tie = make_record(row, source, {"a": chosen, "b": rejected}, texts=("question",))
        yield tie | {"winner": "tie"}
    else:
        sides = {"chosen": chosen, "rejected": rejected}
        yield make_record(row, source, sides, texts=("question",))


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
        read=read,
        fits=_fits,
    ),
]
