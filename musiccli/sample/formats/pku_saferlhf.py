"""PKU-SafeRLHF: two responses, of which one is more helpful and one is safer.

Source: the dataset card of PKU-Alignment/PKU-SafeRLHF.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import read_prompt
from musiccli.sample.columns import Format
from musiccli.sample.replies import Reply, ReplyContext, make_vote, read_whole_number

COLUMNS = {"helpfulness": "better_response_id", "safety": "safer_response_id"}  # by the label


def read(row: Record, source: str, label: str = "helpfulness") -> Iterator[dict[str, Any]]:
    """Yield the comparison of the two responses, whose winner is the better one by the label."""
    number = read_whole_number(row, COLUMNS[label], 0, 1)
    context = ReplyContext(
        row,
        source,
        read_prompt(row),
        {"label": label},
        text_columns={"response_0", "response_1"},
    )
    winner = None if number is None else "ab"[number]
    yield make_vote(context, _reply(row, "response_0"), _reply(row, "response_1"), winner)


def _reply(row: Record, name: str) -> Reply:
    """A response, with the kinds of harm that annotators saw in it where the row tells them."""
    harms = row.get(f"{name}_harm_category")
    if not isinstance(harms, dict):
        return Reply(row[name])
    harm = [category for category, present in harms.items() if present is True]
    return Reply(row[name], labels={"harm": harm})


FORMATS = [
    Format(
        "PKU-SafeRLHF",
        order=32,
        columns=frozenset({"prompt", "response_0", "response_1"}),
        read=read,
        labels={label: partial(read, label=label) for label in COLUMNS},
    )
]
