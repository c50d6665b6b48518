"""ComparIA: two models' conversations, and the name of the model that a person chose.

Source: the dataset card of ministere-culture/comparia-votes.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.records import Record
from musiccli.core.row_messages import read_messages
from musiccli.sample.columns import Format, make_record
from musiccli.sample.replies import TIE, read_flag

LIST_COLUMNS = ("categories", "keywords", "languages")


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison with its winner, if the person chose."""
    winner = _winner(row)
    sides = {side: read_messages(row, f"conversation_{side}") for side in "ab"}
    labels = {name: row[name] for name in LIST_COLUMNS if isinstance(row.get(name), list)}
    record = make_record(row, source, sides, labels)
    yield record if winner is None else record | {"winner": winner}


def _winner(row: Record) -> str | None:
    chosen = row.get("chosen_model_name")
    equal = read_flag(row, "both_equal")
    models = {side: row[f"model_{side}_name"] for side in "ab"}
    if equal and not chosen:
        return TIE
    if not chosen:
        return None
    winners = [side for side, model in models.items() if model == chosen]
    if equal or len(winners) != 1:
        raise RecordError(
            f"is {shortened(chosen)}, of {models['a']} and {models['b']}"
            f"{', which were equal' if equal else ''}; it should be one of the two",
            field="chosen_model_name",
            record=row,
        )
    return winners[0]


FORMATS = [
    Format(
        "ComparIA votes",
        order=25,
        columns=frozenset({"conversation_a", "conversation_b", "model_a_name", "model_b_name"}),
        read=read,
    )
]
