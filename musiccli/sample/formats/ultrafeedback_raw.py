"""UltraFeedback as it was published: an instruction, and completions that GPT-4 scored.

Source: OpenBMB/UltraFeedback. `overall_score` goes with the critique; `fine-grained_score` is the
mean of the ratings of four aspects.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_asking_text
from musiccli.sample.columns import Format
from musiccli.sample.replies import (
    Reply,
    ReplyContext,
    check_number,
    list_replies,
    pair_all,
    read_objects,
)

SCALES = {"overall_score": 10, "fine-grained_score": 5}  # the highest score
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
HIGHEST_RATING = 5
UNRATED = "N/A"
REFERENCE_COLUMNS = ("correct_answers", "incorrect_answers")
NO_REFERENCE: tuple[Any, ...] = (None, [], ["None"])
LABELS = (*SCALES, *ASPECTS)


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield each completion as a conversation, with its overall score and its model."""
    return list_replies(_context(row, source), _replies(row, LABELS[0]))


def read_pairs(row: Record, source: str, label: str = LABELS[0]) -> Iterator[dict[str, Any]]:
    """Every two completions, the one with the higher score chosen."""
    return pair_all(_context(row, source, {"label": label}), _replies(row, label))


def _context(row: Record, source: str, labels: dict[str, Any] | None = None) -> ReplyContext:
    history = read_asking_text(row, "instruction", row["instruction"])
    text_columns = {"instruction", "completions"}
    references = {name: row.get(name) for name in REFERENCE_COLUMNS}  # of TruthfulQA's questions
    known_labels = {name: value for name, value in references.items() if value not in NO_REFERENCE}
    return ReplyContext(
        row, source, history, known_labels | (labels or {}), text_columns=text_columns
    )


def _replies(row: Record, label: str) -> list[Reply]:
    replies = []
    for index, completion in enumerate(read_objects(row, "completions")):
        score = _score(row, f"completions[{index}]", completion, label)
        labels = {"score": score, "model": completion.get("model")}
        labels |= {"principle": completion.get("principle")} if "principle" in completion else {}
        replies.append(Reply(completion["response"], score, labels))
    return replies


def _score(row: Record, field: str, completion: Mapping[str, Any], label: str) -> float | None:
    """The completion's score on one scale, or the rating of one aspect."""
    if label in SCALES:
        return check_number(row, f"{field}.{label}", completion.get(label), 0, SCALES[label])
    rating = completion["annotations"][label]["Rating"]
    if rating == UNRATED:
        return None
    return check_number(row, f"{field}.annotations.{label}.Rating", rating, 0, HIGHEST_RATING)


FORMATS = [
    Format(
        "UltraFeedback completions",
        order=34,
        columns=frozenset({"instruction", "completions"}),
        read=read,
        read_pairs=read_pairs,
        labels={label: partial(read_pairs, label=label) for label in LABELS},
    )
]
