"""JudgeBench (arXiv 2410.12784): a question, two answers, and the label "A>B" or "B>A"."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, read_asking_text
from musiccli.sample.columns import Format, make_record, read_label, read_text

TEXTS = ("question", "response_A", "response_B", "label")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison, won by the answer that is correct.

    `source` in the metadata is the set of questions, as "mmlu-pro-computer science".
    """
    question = read_asking_text(row, "question", read_text(row, "question"))
    sides = {
        side: [*question, assistant_message(read_text(row, column))]
        for side, column in {"a": "response_A", "b": "response_B"}.items()
    }
    winner = read_label(row, "label", {"A>B": "a", "B>A": "b", "A=B": "tie"})
    yield make_record(row, source, sides, id=row.get("pair_id"), texts=TEXTS) | {"winner": winner}


FORMATS = [
    Format(
        "JudgeBench",
        order=43,
        columns=frozenset({"question", "response_A", "response_B", "label"}),
        read=read,
    )
]
