"""PRISM: conversations in which a person scored several replies at each turn, and chose one.

A turn follows on the chosen reply of the turn before. The dataset holds the same conversations as
`utterances`, too: a row for each reply. Source: the data card of HannahRoseKirk/prism-alignment.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from musiccli.core.errors import RecordError, shortened
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, user_message
from musiccli.sample.columns import Format, RowGroup, make_record, read_text
from musiccli.sample.replies import (
    Reply,
    ReplyContext,
    check_flag,
    check_number,
    pair_preferred,
    read_objects,
)

BEST_SCORE = 100
TEXT_COLUMNS = {"opening_prompt", "conversation_history"}
SHARED_COLUMNS = ("conversation_id", "user_id", "conversation_type")  # of utterances and their row
Exchange = tuple[Any, list[tuple[bool, Reply]]]  # a user message, and (is it chosen, a reply)


class Turn(NamedTuple):
    """A turn with its history, which ends with the user's message."""

    history: list[Message]
    chosen: Reply
    rejected: list[Reply]


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation that went on with the chosen replies."""
    *_, last = _read_turns(row)
    messages = [*last.history, assistant_message(last.chosen.text)]
    id = row["conversation_id"]
    yield make_record(row, source, {"messages": messages}, id=id, texts=TEXT_COLUMNS)


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """At each turn the chosen reply over each of the others. Equal scores are a tie."""
    for number, turn in enumerate(_read_turns(row), start=1):
        id = f"{row['conversation_id']}/{number}"
        labels = {"turn": number}
        context = ReplyContext(row, source, turn.history, labels, id, TEXT_COLUMNS)
        yield from pair_preferred(context, turn.chosen, turn.rejected)


def _read_turns(row: Record) -> list[Turn]:
    """The turns of a conversation, each with its history."""
    turns: list[Turn] = []
    history: list[Message] = []
    for prompt, replies in _read_exchanges(row):
        history = [*history, user_message(prompt)]
        chosen = [reply for is_chosen, reply in replies if is_chosen]
        rejected = [reply for is_chosen, reply in replies if not is_chosen]
        if len(chosen) != 1:
            problem = f"{len(chosen)} replies of turn {len(turns) + 1} are chosen; one should be"
            raise RecordError(problem, field="conversation_history", record=row)
        turns.append(Turn(history, chosen[0], rejected))
        history = [*history, assistant_message(chosen[0].text)]
    return turns


def _read_exchanges(row: Record) -> list[Exchange]:
    """Each user message with the replies to it, and whether each of them was chosen."""
    exchanges: list[Exchange] = []
    for index, message in enumerate(read_objects(row, "conversation_history")):
        field = f"conversation_history[{index}]"
        role = message.get("role")
        if role == "user":
            exchanges.append((message.get("content"), []))
        elif role == "model" and exchanges:
            exchanges[-1][1].append(_read_reply(row, field, message))
        else:
            problem = f"role is {shortened(role)}; it should be user, and then model"
            raise RecordError(problem, field=field, record=row)
    if not exchanges:
        problem = "is an empty list; a conversation needs at least one message"
        raise RecordError(problem, field="conversation_history", record=row)
    return exchanges


def _read_reply(row: Record, field: str, message: Mapping[str, Any]) -> tuple[bool, Reply]:
    """Whether a reply was chosen, and the reply."""
    chosen = check_flag(row, f"{field}.if_chosen", message.get("if_chosen"))
    if chosen is None:
        problem = "is null; it should be true or false"
        raise RecordError(problem, field=f"{field}.if_chosen", record=row)
    score = check_number(row, f"{field}.score", message.get("score"), 0, BEST_SCORE)
    labels = {"score": score, "model": message.get("model_name")}
    return chosen, Reply(message.get("content"), score, labels)


def read_utterance(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Read a row that no other row was joined to."""
    conversation = join_utterances([row], Rejects())
    return read(conversation, source) if conversation else iter(())


def join_utterances(rows: list[Record], rejects: Rejects) -> Record | None:
    """The row of the conversation whose utterances the rows are."""
    history: list[dict[str, Any]] = []
    turn: object = ()  # equal to no turn
    for row in rows:
        with rejects.guard(row):
            prompt, reply = (read_text(row, name) for name in ("user_prompt", "model_response"))
            if row.get("turn") != turn:
                turn = row.get("turn")
                history.append({"role": "user", "content": prompt})
            history.append(
                {"role": "model", "content": reply}
                | {name: row.get(name) for name in ("model_name", "score", "if_chosen")}
            )
    shared = {name: rows[0][name] for name in SHARED_COLUMNS if name in rows[0]}
    return Record({**shared, "conversation_history": history}, rows[0].where) if history else None


FORMATS = [
    Format(
        "PRISM conversation",
        order=27,
        columns=frozenset({"conversation_id", "conversation_history"}),
        read=read,
        read_pairs=read_pairs,
    ),
    Format(
        "PRISM utterances",
        order=28,
        columns=frozenset({"conversation_id", "interaction_id", "utterance_id"}),
        read=read_utterance,
        group=RowGroup("conversation_id", join_utterances),
    ),
]
