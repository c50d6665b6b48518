"""RankJudge (arXiv 2605.21748): two conversations, one of which has a flaw in one round."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_messages
from musiccli.sample.columns import Format, make_record, read_label


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison, won by the conversation without the flaw.

    The row's own metadata is kept. There, `bad_round_index` counts the rounds from 1, and
    `assistant_behavior_type` is the kind of flaw.
    """
    sides = {side: read_messages(row, f"convo_{side}") for side in ("a", "b")}
    winner = read_label(row, "better_is_a", {True: "a", False: "b"})
    yield make_record(row, source, sides) | {"winner": winner}


FORMATS = [
    Format(
        "RankJudge",
        order=42,
        columns=frozenset({"convo_a", "convo_b", "better_is_a"}),
        read=read,
    )
]
