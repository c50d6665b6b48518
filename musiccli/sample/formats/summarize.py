"""Summarize from feedback (arXiv 2009.01325): a post or an article, and two summaries.

The prompt is the query of github.com/openai/summarize-from-feedback.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, content_id
from musiccli.core.row_messages import assistant_message, nested_value, user_message
from musiccli.sample.columns import Format, make_record, read_label


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner.

    The metadata holds the worker, who made the choice, and the policies that wrote the summaries.
    Several workers may compare the same two, so the worker is in the id, too.
    """
    summaries = nested_value(row, "summaries", list)
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise RecordError("is no list of two summaries", field="summaries", record=row)
    winner = read_label(row, "choice", {0: "a", 1: "b"})
    question = user_message(_query(row))
    sides = {
        side: [question, assistant_message(summary.get("text"))]
        for side, summary in zip(("a", "b"), summaries, strict=True)
    }
    extra = row.get("extra")
    labels = {
        "subreddit": row["info"].get("subreddit"),
        "policy_a": summaries[0].get("policy"),
        "policy_b": summaries[1].get("policy"),
        "confidence": extra.get("confidence") if isinstance(extra, dict) else None,
    }
    labels = {name: label for name, label in labels.items() if label is not None}
    id = content_id(row["info"].get("id"), row.get("worker"), *sides.values())
    yield make_record(row, source, sides, labels, id=id, texts=("choice",)) | {"winner": winner}


def _query(row: Record) -> str:
    """What the models were asked: a post of Reddit with its title, or a news article."""
    info = nested_value(row, "info", dict)
    if isinstance(info.get("post"), str):
        return (
            f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\n"
            f"POST: {info['post']}\n\nTL;DR:"
        )
    if isinstance(info.get("article"), str):
        return f"Article:\n{info['article']}\n\nTL;DR:"
    raise RecordError("has neither a post nor an article", field="info", record=row)


FORMATS = [
    Format(
        "summarize from feedback",
        order=51,
        columns=frozenset({"info", "summaries", "choice"}),
        read=read,
    )
]
