"""Plan-RewardBench (arXiv 2604.08178): pairs of whole trajectories of agents that call tools."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_messages
from musiccli.sample.columns import Format, make_record

SPLITS = (  # the names of its files
    "planning_single_easy",
    "planning_single_hard",
    "planning_multi_easy",
    "planning_multi_hard",
    "robust_recovery",
    "safety_refusal",
    "tool_irrelevance",
)


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference, with the functions on offer.

    Pairs of one query share a `uuid`, which stays in the metadata, so ids are made from the texts.
    `subset` in the metadata is the split, by the name of the file.
    """
    sides = {
        "chosen": read_messages(row, "chosen.messages"),
        "rejected": read_messages(row, "reject.messages"),
    }
    labels = {"subset": source} if source in SPLITS else {}
    yield make_record(row, source, sides, labels, texts=("query",))


FORMATS = [
    Format(
        "Plan-RewardBench",
        order=41,
        columns=frozenset({"chosen", "reject", "tools"}),
        read=read,
    )
]
