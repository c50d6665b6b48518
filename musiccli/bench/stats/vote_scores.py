"""Votes of judges as scores, so that judges and reward models are measured alike."""

from collections.abc import Mapping
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record, record_kind, side_names
from musiccli.core.votes import GIVEN_WINNER


def better_side(record: Mapping[str, Any]) -> Any:
    """The label of a pair: its winner, or if it was judged the winner that it had before.

    A preference without either is won by its chosen side.
    """
    default = "chosen" if record_kind(record) == "preference" else None
    if GIVEN_WINNER in record or "votes" in record:
        return record.get(GIVEN_WINNER, default)
    return record.get("winner", default)


def with_vote_scores(record: Record) -> Record:
    """Add `scores` of the record's judges: how many votes each side has.

    The side with more votes is the one for which votes of 1, -1 and 0 sum to more than 0.

    Raises:
        RecordError: a judge has the name of a model that scored the record.
    """
    counts: dict[str, dict[str, int]] = {}
    for vote in record.get("votes") or ():
        by_side = counts.setdefault(vote["judge"], dict.fromkeys(side_names(record), 0))
        if vote["winner"] in by_side:
            by_side[vote["winner"]] += 1
    scores = record.get("scores") or {}
    for judge in counts:
        if judge in scores:
            problem = f"{judge!r} is a judge, too; score the records under another name"
            raise RecordError(problem, field=f"scores.{judge}", record=record)
    if counts:
        record["scores"] = {**scores, **counts}
    return record
