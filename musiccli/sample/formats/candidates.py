"""RewardBench 2 and RM-Bench: several right and several wrong replies to one prompt."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from musiccli.core.records import Message, Record, content_id
from musiccli.sample.columns import (
    Format,
    assistant_message,
    make_record,
    read_prompt,
    row_id,
    with_system_message,
)


class Candidates(NamedTuple):
    """The candidates of one row, each a whole conversation, and what their records share."""

    right: list[list[Message]]
    wrong: list[list[Message]]
    id: str
    labels: dict[str, Any]


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Each candidate as a conversation. `correct` in the metadata says whether it is right.

    `sample` numbers them from 0, the right ones first.
    """
    right, wrong, id, labels = _candidates(row)
    for sample, messages in enumerate(right + wrong):
        correct = {"correct": sample < len(right)}
        record = make_record(row, source, {"messages": messages}, labels | correct, id=id)
        yield record | {"sample": sample}


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every right candidate over every wrong one.

    `candidates` in the metadata holds the number of each, both counted from 0.
    """
    right, wrong, id, labels = _candidates(row)
    for (first, chosen), (second, rejected) in product(enumerate(right), enumerate(wrong)):
        yield make_record(
            row,
            source,
            {"chosen": chosen, "rejected": rejected},
            labels | {"candidates": [first, second]},
            id=f"{id}/{first}-{second}",
        )


def _candidates(row: Record) -> Candidates:
    """Read one row. Ids of RM-Bench are counted within a domain."""
    prompt = read_prompt(row)
    right, wrong = (
        [with_system_message(row, [*prompt, assistant_message(reply)]) for reply in row[name]]
        for name in ("chosen", "rejected")
    )
    id = row_id(row)
    if id is None:
        id = content_id(*right, *wrong)
    elif isinstance(row.get("domain"), str):
        id = f"{row['domain']}/{id}"
    return Candidates(right, wrong, str(id), _tie_labels(row))


def _tie_labels(row: Record) -> dict[str, Any]:
    """What the score of RewardBench 2's subset Ties needs, from ids such as "ref:7" and "tied:7".

    `prompt_id` numbers the question, and `sample_type` names which of its two prompts the row has.
    """
    tie = re.fullmatch(r"(ref|tied):(\d+)", str(row.get("id")))
    return {"sample_type": tie[1], "prompt_id": int(tie[2])} if tie else {}


def _fits(row: Record) -> bool:
    """Whether both sides are lists of texts, and not one conversation each."""
    return all(
        isinstance(row[name], list)
        and row[name]
        and all(isinstance(reply, str) for reply in row[name])
        for name in ("chosen", "rejected")
    )


FORMATS = [
    Format(
        "RewardBench 2 or RM-Bench",
        order=90,
        columns=frozenset({"prompt", "chosen", "rejected"}),
        read=read,
        read_pairs=read_pairs,
        fits=_fits,
    )
]
