"""RMB (arXiv 2410.09893): a better answer and one worse, or the best of several, with models."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, nested_value, read_messages
from musiccli.sample.candidates import (
    Candidate,
    Candidates,
    candidate_conversations,
    candidate_pairs,
)
from musiccli.sample.columns import Format, make_record


def read_pair(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, with the model and the score of each answer in the metadata."""
    history = read_messages(row, "conversation_input")
    chosen = _answer(row, "chosen", row["chosen"], history, True)
    rejected = _answer(row, "reject", row["reject"], history, False)
    sides = {"chosen": chosen.messages, "rejected": rejected.messages}
    labels = {f"chosen_{name}": label for name, label in chosen.labels.items()} | {
        f"rejected_{name}": label for name, label in rejected.labels.items()
    }
    yield make_record(row, source, sides, labels, id=_id(row, "pair_uid"))


def read_best_of_n(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Each answer as a conversation, the best one first. Only the best one is correct."""
    yield from candidate_conversations(row, source, _candidates(row))


def read_best_over_others(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The best answer over each other one."""
    yield from candidate_pairs(row, source, _candidates(row))


def _candidates(row: Record) -> Candidates:
    history = read_messages(row, "conversation_input")
    best = _answer(row, "bon_best", row["bon_best"], history, True)
    losers = [
        _answer(row, f"loser_list[{index}]", answer, history, False)
        for index, answer in enumerate(nested_value(row, "loser_list", list))
    ]
    return Candidates([best, *losers], _id(row, "bon_uid"))


def _answer(row: Record, field: str, answer: Any, history: list[Message], right: bool) -> Candidate:
    """One answer after the history, with its model and its score as labels."""
    if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
        raise RecordError("is no object with an answer", field=field, record=row)
    columns = {"model": "llm_name", "score": "score"}
    labels = {name: answer[column] for name, column in columns.items() if column in answer}
    return Candidate([*history, assistant_message(answer["answer"])], right, labels)


def _id(row: Record, column: str) -> str:
    """The number of a row, behind the category in which it is counted."""
    return "/".join(str(row[name]) for name in ("category_path", column) if row.get(name))


FORMATS = [
    Format(
        "RMB pair",
        order=44,
        columns=frozenset({"conversation_input", "chosen", "reject"}),
        read=read_pair,
    ),
    Format(
        "RMB best of N",
        order=45,
        columns=frozenset({"conversation_input", "bon_best", "loser_list"}),
        read=read_best_of_n,
        read_pairs=read_best_over_others,
    ),
]
