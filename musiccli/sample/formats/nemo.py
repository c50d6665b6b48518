"""NeMo: a context with ranked completions, or a prompt with a chosen and a rejected response.

When2Call (nvidia/When2Call) has `messages` for the prompt, and responses as messages.

docs.nvidia.com/nemo/rl, PreferenceDataset. Its HelpSteer3 repeats one response where people saw no
difference.
"""

from collections.abc import Iterator
from itertools import combinations
from math import isfinite
from typing import Any, NamedTuple

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record, content_id
from musiccli.core.row_messages import (
    assistant_message,
    nested_value,
    read_messages,
    read_prompt,
    with_system_message,
)
from musiccli.sample.columns import Format, make_record, read_text, row_id


class Completion(NamedTuple):
    """A completion as a whole conversation, and its rank. A lower rank is better."""

    rank: float
    messages: list[Message]


def read_completions(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Each completion as a conversation, with its rank in the metadata."""
    completions = _completions(row)
    id = _id(row, completions)
    for sample, (rank, messages) in enumerate(completions):
        record = make_record(row, source, {"messages": messages}, {"rank": rank}, id=id)
        yield record | {"sample": sample}


def read_ranked_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every two completions: the better over the worse, or a tie.

    Two of one rank, or of one text, are a comparison whose winner is "tie".
    """
    completions = _completions(row)
    id = _id(row, completions)
    ranked = sorted(enumerate(completions), key=lambda item: item[1].rank)
    for (first, better), (second, worse) in combinations(ranked, 2):
        labels = {"ranks": [better.rank, worse.rank]}
        pair_id = f"{id}/{first}-{second}"
        if better.rank == worse.rank or better.messages == worse.messages:
            sides = {"a": better.messages, "b": worse.messages}
            yield make_record(row, source, sides, labels, id=pair_id) | {"winner": "tie"}
        else:
            sides = {"chosen": better.messages, "rejected": worse.messages}
            yield make_record(row, source, sides, labels, id=pair_id)


def read_responses(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """The chosen response over the rejected one, or a tie where their texts are equal."""
    start = read_prompt(row) if "prompt" in row else read_messages(row, "messages")
    history = with_system_message(row, start)
    chosen, rejected = (
        [*history, *_response(row, f"{name}_response")] for name in ("chosen", "rejected")
    )
    texts = ("chosen_response", "rejected_response")
    if chosen == rejected:
        tie = make_record(row, source, {"a": chosen, "b": rejected}, texts=texts)
        yield tie | {"winner": "tie"}
    else:
        yield make_record(row, source, {"chosen": chosen, "rejected": rejected}, texts=texts)


def _response(row: Record, column: str) -> list[Message]:
    """A response as a text, or as messages."""
    if isinstance(row[column], list | dict):
        return read_messages(row, column)
    return [assistant_message(read_text(row, column))]


def _completions(row: Record) -> list[Completion]:
    context = read_messages(row, "context")
    completions = []
    for index, fields in enumerate(nested_value(row, "completions", list)):
        field = f"completions[{index}]"
        rank = fields.get("rank") if isinstance(fields, dict) else None
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not isfinite(rank):
            problem = 'should be {"rank": NUMBER, "completion": [messages]}'
            raise RecordError(problem, field=field, record=row)
        try:
            reply = read_messages(Record(fields), "completion")
        except RecordError as error:
            raise RecordError(error.problem, field=f"{field}.{error.field}", record=row) from None
        completions.append(Completion(rank, [*context, *reply]))
    return completions


def _id(row: Record, completions: list[Completion]) -> str | int:
    id = row_id(row)
    return content_id(*(completion.messages for completion in completions)) if id is None else id


FORMATS = [
    Format(
        "NeMo completions",
        order=47,
        columns=frozenset({"context", "completions"}),
        read=read_completions,
        read_pairs=read_ranked_pairs,
    ),
    Format(
        "NeMo responses",
        order=102,
        columns=frozenset({"prompt", "chosen_response", "rejected_response"}),
        read=read_responses,
    ),
    Format(
        "When2Call",
        order=103,
        columns=frozenset({"messages", "chosen_response", "rejected_response"}),
        read=read_responses,
    ),
]
