"""WebGPT comparisons (arXiv 2112.09332): a question, two answers with sources, and a score."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, nested_value, user_message
from musiccli.sample.columns import Format, make_record, read_text
from musiccli.sample.replies import check_number


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison. The answer with the positive score wins, and 0 is a tie.

    `score_0` in the metadata is the strength, from -1 to 1. `score_1` is its opposite.
    """
    question = nested_value(row, "question", dict)
    sides = {
        side: [user_message(question.get("full_text")), assistant_message(read_text(row, column))]
        for side, column in {"a": "answer_0", "b": "answer_1"}.items()
    }
    labels = {name: question[name] for name in ("dataset", "id") if name in question}
    labels = {f"question_{name}": label for name, label in labels.items()}
    record = make_record(row, source, sides, labels, texts=("answer_0", "answer_1"))
    yield record | {"winner": _winner(row)}


def _winner(row: Record) -> str:
    first, second = (check_number(row, name, row[name], -1, 1) for name in ("score_0", "score_1"))
    if first is None or second is None:
        name = "score_0" if first is None else "score_1"
        raise RecordError("is empty; it should be a number", field=name, record=row)
    if first * second > 0:
        problem = "has the sign of `score_0`; the two scores are opposites"
        raise RecordError(problem, field="score_1", record=row)
    if first == second:
        return "tie"
    return "a" if first > second else "b"


FORMATS = [
    Format(
        "WebGPT",
        order=52,
        columns=frozenset({"question", "answer_0", "answer_1", "score_0", "score_1"}),
        read=read,
    )
]
