"""UltraInteract_pair: a `trajectory` and two next actions."""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, read_messages
from musiccli.sample.columns import Format, make_record


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the preference between the two actions, each after the trajectory."""
    history = read_messages(row, "trajectory")
    sides = {name: [*history, assistant_message(row[name])] for name in ("chosen", "rejected")}
    yield make_record(row, source, sides)


FORMATS = [
    Format(
        "UltraInteract pair",
        order=70,
        columns=frozenset({"trajectory", "chosen", "rejected"}),
        read=read,
    )
]
