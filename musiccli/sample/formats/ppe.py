"""PPE, Preference Proxy Evaluations (arXiv 2410.14872): people's votes, and graded samples."""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, content_id
from musiccli.core.row_messages import assistant_message, nested_value, read_prompt
from musiccli.sample import replies
from musiccli.sample.candidates import (
    Candidate,
    Candidates,
    candidate_conversations,
    candidate_pairs,
)
from musiccli.sample.columns import Format, make_record, read_label, read_text


def read_vote(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner, or without one where nobody voted.

    `both_bad` in the metadata of a tie says whether both responses are bad.
    """
    prompt = read_prompt(row)
    sides = {
        "a": [*prompt, assistant_message(read_text(row, "response_1"))],
        "b": [*prompt, assistant_message(read_text(row, "response_2"))],
    }
    winner, labels = replies.read_vote(row)
    texts = ("response_1", "response_2")
    record = make_record(row, source, sides, labels, id=row.get("question_id"), texts=texts)
    yield record if winner is None else record | {"winner": winner}


def read_samples(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Each sample as a conversation, in the order of the columns."""
    yield from candidate_conversations(row, source, _candidates(row))


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every right sample over every wrong one."""
    yield from candidate_pairs(row, source, _candidates(row))


def _candidates(row: Record) -> Candidates:
    """Read one row. Every model answered a question, so both are in the id."""
    prompt = read_prompt(row)
    numbers = _sample_numbers(row)
    candidates = [
        Candidate([*prompt, assistant_message(read_text(row, f"response_{number}"))], right)
        for number, right in zip(numbers, _grades(row, numbers), strict=True)
    ]
    names = [str(row[name]) for name in ("question_id", "model_name") if row.get(name) is not None]
    id = "/".join(names) or content_id(*(candidate.messages for candidate in candidates))
    columns = [f"{name}_{number}" for name in ("response", "score") for number in numbers]
    return Candidates(candidates, id, texts=columns)


def _sample_numbers(row: Record) -> list[int]:
    """The numbers of the columns `response_1`, `response_2`, ... that are not null."""
    columns = (re.fullmatch(r"response_([0-9]{1,4})", name) for name, text in row.items() if text)
    return sorted(int(column[1]) for column in columns if column)


def _grades(row: Record, numbers: list[int]) -> list[bool]:
    """Whether each sample is right, by the list `scores` or by columns: `score_1`, `score_2`."""
    if row.get("scores") is None:
        words = {True: "right", False: "wrong"}
        return [read_label(row, f"score_{number}", words) == "right" for number in numbers]
    grades: list[Any] = nested_value(row, "scores", list)
    if len(grades) != len(numbers) or not all(isinstance(grade, bool) for grade in grades):
        problem = f"is not true or false for each of {len(numbers)} responses"
        raise RecordError(problem, field="scores", record=row)
    return grades


FORMATS = [
    Format(
        "PPE vote",
        order=46,
        columns=frozenset({"prompt", "response_1", "response_2", "winner"}),
        read=read_vote,
    ),
    Format(
        "PPE samples",
        order=86,
        columns=frozenset({"prompt", "response_1", "response_2"}),
        read=read_samples,
        read_pairs=read_pairs,
        fits=lambda row: "scores" in row or "score_1" in row,
    ),
]
