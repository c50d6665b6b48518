"""RewardBench 2 and RM-Bench: several right and several wrong replies to one prompt."""

import re
from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, content_id
from musiccli.core.row_messages import assistant_message, read_prompt, with_system_message
from musiccli.sample.candidates import (
    Candidate,
    Candidates,
    candidate_conversations,
    candidate_pairs,
)
from musiccli.sample.columns import Format, row_id


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Each candidate as a conversation, the right ones first."""
    yield from candidate_conversations(row, source, _candidates(row))


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Every right candidate over every wrong one."""
    yield from candidate_pairs(row, source, _candidates(row))


def _candidates(row: Record) -> Candidates:
    """Read one row. Ids of RM-Bench are counted within a domain."""
    if row["chosen"][:1] == row["rejected"][:1]:
        problem = (
            "begins as `rejected` does; replies to one prompt differ, and turns are no replies"
        )
        raise RecordError(problem, field="chosen", record=row)
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
    candidates = [Candidate(messages, True) for messages in right]
    candidates += [Candidate(messages, False) for messages in wrong]
    return Candidates(candidates, str(id), _tie_labels(row))


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
    ) and not (row["chosen"][0] == row["rejected"][0] == row["prompt"])


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
