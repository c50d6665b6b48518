"""HelpSteer 2 and 3: two replies and a strength from -3 (the first is better) to 3, or ratings.

A row with ratings holds one reply. Successive rows with one prompt are replies to it.

Sources: the dataset cards of nvidia/HelpSteer2 and nvidia/HelpSteer3. The turns of HelpSteer 2 are
marked as in NeMo-Aligner (examples/nlp/data/steerlm/common.py): "<extra_id_1>Assistant", a line
break and the text.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import (
    assistant_message,
    nested_value,
    read_history,
    read_messages,
    user_message,
)
from musiccli.sample.columns import Format, RowGroup, make_record
from musiccli.sample.replies import (
    TIE,
    Reply,
    ReplyContext,
    make_vote,
    pair_all,
    read_number,
    read_objects,
    read_whole_number,
)

TURN_HEADER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # the text before it ends there
STRONGEST = 3
LABEL_COLUMNS = {"preference_strength", "all_preferences_unprocessed"}  # one of them is there
ANNOTATOR_COLUMNS = ("all_preferences_unprocessed", "three_most_similar_preferences")
RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
HIGHEST_RATING = 4  # from 0
JOINED = "rows_of_prompt"  # in a row that was made of several


def read_helpsteer3(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison of the two replies, with the annotators' own scores."""
    strength = read_whole_number(row, "overall_preference", -STRONGEST, STRONGEST)
    annotators = read_objects(row, "individual_preference")
    context = ReplyContext(
        row,
        source,
        read_messages(row, "context"),
        _strength_labels(strength, [annotator.get("score") for annotator in annotators]),
        text_columns={"response1", "response2", "individual_preference"},
    )
    yield make_vote(context, Reply(row["response1"]), Reply(row["response2"]), _winner(strength))


def read_helpsteer2(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison of the two replies, with the strengths that annotators chose."""
    strength = read_whole_number(row, "preference_strength", -STRONGEST, STRONGEST)
    annotators = read_objects(row, "all_preferences_unprocessed")
    similar = read_objects(row, "three_most_similar_preferences")  # they make the strength
    context = ReplyContext(
        row,
        source,
        [*read_history(row), *_read_turns(row)],
        _strength_labels(strength, [annotator.get("strength") for annotator in annotators])
        | {"similar_strengths": [annotator.get("strength") for annotator in similar]},
        text_columns={"response_1", "response_2", *ANNOTATOR_COLUMNS},
    )
    yield make_vote(context, Reply(row["response_1"]), Reply(row["response_2"]), _winner(strength))


def read_rated(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield each reply as a conversation with its ratings."""
    for member in row.get(JOINED, [row]):
        yield from read_ratings(member, source)


def read_rated_pairs(row: Record, source: str, label: str = RATINGS[0]) -> Iterator[dict[str, Any]]:
    """Every two replies to one prompt, the one with the higher rating chosen."""
    if JOINED not in row:  # one reply, and so no pair
        yield from read_ratings(row, source)
        return
    replies = [
        Reply(
            member["response"],
            read_number(member, label, 0, HIGHEST_RATING),
            {"rating": _ratings(member)},
        )
        for member in row[JOINED]
    ]
    context = ReplyContext(
        row,
        source,
        _read_turns(row),
        {"label": label},
        text_columns={"response", JOINED, *RATINGS},
    )
    yield from pair_all(context, replies)


def join_replies(rows: list[Record], rejects: Rejects) -> Record | None:
    """One row of those with one prompt. Those that cannot be read go to the rejects."""
    members = []
    for row in rows:
        with rejects.guard(row):
            for _ in read_ratings(row, ""):
                members.append(row)
    if len(members) < 2:
        return members[0] if members else None
    return Record({**members[0], JOINED: members}, members[0].where)


def read_ratings(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation of one row with its ratings."""
    ratings = _ratings(row)
    messages = [*_read_turns(row), assistant_message(row["response"])]
    yield make_record(row, source, {"messages": messages}, ratings, texts={"response"})


def _ratings(row: Record) -> dict[str, float | None]:
    return {name: read_number(row, name, 0, HIGHEST_RATING) for name in RATINGS if name in row}


def _winner(strength: int | None) -> str | None:
    if strength is None:
        return None
    return TIE if strength == 0 else "a" if strength < 0 else "b"


def _strength_labels(strength: int | None, annotators: list[Any]) -> dict[str, Any]:
    """The strength without its sign, and each annotator's with it (below 0: a is better)."""
    labels: dict[str, Any] = {} if strength is None else {"strength": abs(strength)}
    return labels | {"annotators": len(annotators), "annotator_strengths": annotators}


def _read_turns(row: Record) -> list[Message]:
    """The messages of a prompt whose turns after the first are marked."""
    first, *parts = TURN_HEADER.split(nested_value(row, "prompt", str))
    makers = {"User": user_message, "Assistant": assistant_message}
    messages = [user_message(first)] if first or not parts else []
    messages += [makers[header](text) for header, text in zip(parts[::2], parts[1::2], strict=True)]
    if messages[-1]["role"] != "user":
        raise RecordError(
            "ends with the assistant; the replies follow a user message", field="prompt", record=row
        )
    return messages


FORMATS = [
    Format(
        "HelpSteer3 preference",
        order=21,
        columns=frozenset({"context", "response1", "response2"}),
        read=read_helpsteer3,
    ),
    Format(
        "HelpSteer2 preference",
        order=53,
        columns=frozenset({"prompt", "response_1", "response_2"}),
        read=read_helpsteer2,
        fits=lambda row: not LABEL_COLUMNS.isdisjoint(row),
    ),
    Format(
        "HelpSteer2 ratings",
        order=23,
        columns=frozenset({"prompt", "response", "helpfulness", "correctness"}),
        read=read_rated,
        read_pairs=read_rated_pairs,
        labels={label: partial(read_rated_pairs, label=label) for label in RATINGS},
        group=RowGroup("prompt", join_replies, may_return=True),
    ),
]
