"""Community Alignment: up to four turns, each with four replies and the preferred one of them.

A turn follows on the preferred reply of the turn before (arXiv 2507.09650).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message
from musiccli.core.records import Record
from musiccli.core.row_messages import assistant_message, user_message
from musiccli.sample.columns import Format, make_record
from musiccli.sample.replies import Reply, ReplyContext, pair_preferred

TURNS = ("first", "second", "third", "fourth")
LETTERS = ("a", "b", "c", "d")
CHOICES = {f"response_{letter}": letter for letter in LETTERS}
TEXT_COLUMNS = {
    f"{turn}_turn_{name}"
    for turn in TURNS
    for name in ("prompt", "feedback", *(f"response_{letter}" for letter in LETTERS))
}


class Turn(NamedTuple):
    """A turn with its history, which ends with the user's message."""

    history: list[Message]
    preferred: Reply
    rejected: list[Reply]
    labels: dict[str, Any]


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the conversation that went on with the preferred replies."""
    *_, last = _read_turns(row)
    messages = [*last.history, assistant_message(last.preferred.text)]
    id = row["conversation_id"]
    yield make_record(row, source, {"messages": messages}, id=id, texts=TEXT_COLUMNS)


def read_pairs(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """At each turn, the preferred reply over each of the others."""
    for turn in _read_turns(row):
        id = f"{row['conversation_id']}/{turn.labels['turn']}"
        context = ReplyContext(row, source, turn.history, turn.labels, id, TEXT_COLUMNS)
        yield from pair_preferred(context, turn.preferred, turn.rejected)


def _read_turns(row: Record) -> list[Turn]:
    """The turns, up to the first without a prompt. Raises RecordError where later ones have one."""
    turns: list[Turn] = []
    history: list[Message] = []
    prompts = [row.get(f"{name}_turn_prompt") or None for name in TURNS]
    count = prompts.index(None) if None in prompts else len(prompts)
    if any(prompts[count:]) or not count:
        problem = "is missing; what was said at later turns has no history"
        raise RecordError(problem, field=f"{TURNS[count]}_turn_prompt", record=row)
    for number, name in enumerate(TURNS[:count]):
        history = [*history, user_message(prompts[number])]
        turn = _read_turn(row, name, number, history)
        turns.append(turn)
        history = [*history, assistant_message(turn.preferred.text)]
    return turns


def _read_turn(row: Record, name: str, number: int, history: list[Message]) -> Turn:
    column = f"{name}_turn_preferred_response"
    choice = row.get(column)
    if choice not in CHOICES:
        problem = f"is {shortened(choice)}; it should be one of {', '.join(CHOICES)}"
        raise RecordError(problem, field=column, record=row)
    replies = {
        letter: Reply(row.get(f"{name}_turn_response_{letter}"), labels={"response": letter})
        for letter in LETTERS
        if row.get(f"{name}_turn_response_{letter}") or letter == CHOICES[choice]
    }
    feedback = row.get(f"{name}_turn_feedback")
    labels = {"turn": number + 1} | ({"feedback": feedback} if feedback else {})
    preferred = replies.pop(CHOICES[choice])
    return Turn(history, preferred, list(replies.values()), labels)


FORMATS = [
    Format(
        "Community Alignment",
        order=26,
        columns=frozenset({"conversation_id", "assigned_lang"}),
        read=read,
        read_pairs=read_pairs,
        fits=lambda row: any(name.startswith("first_turn_") for name in row),
    )
]
