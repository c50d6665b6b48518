"""Steps of one solution with labels, as ProcessBench and TRL have them: they are refused."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.sample.columns import Format


def refuse(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Raise RecordError, because the row has one solution, and its label is for a step."""
    raise RecordError(
        "holds the steps of one solution, labelled step by step: there are no two replies to "
        "compare, and no conversation",
        field="steps" if "steps" in row else "completions",
        record=row,
    )


FORMATS = [
    Format("ProcessBench", order=48, columns=frozenset({"problem", "steps", "label"}), read=refuse),
    Format(
        "stepwise supervision",
        order=49,
        columns=frozenset({"prompt", "completions", "labels"}),
        read=refuse,
    ),
]
