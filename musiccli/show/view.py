"""What is shown of a record: its text, in the order in which a terminal or a page shows it.

Control characters are made visible here for every kind of output, and so are invisible ones that
reverse or hide text. Values of an unexpected kind, which other programs may write, are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from musiccli.core import json_text
from musiccli.core.messages import Message, ToolCall, first_divergence, turn_ends
from musiccli.core.records import Record, record_kind, side_names
from musiccli.core.text_safety import visible
from musiccli.show.differences import Span, changed_spans

MAX_FACT_LENGTH = 160  # characters; longer metadata is cut


class MessagePart(NamedTuple):
    """What a message says, or one call or the thoughts in it.

    Attributes:
        kind: "text", "call" or "thoughts".
        title: a few words above it; empty for the text.
        changed: spans of `text` that the message beside it lacks.
    """

    kind: str
    title: str
    text: str
    changed: Sequence[Span] = ()

    def segments(self) -> Iterator[tuple[str, bool]]:
        """The text in pieces, and whether each piece is changed."""
        position = 0
        for start, end in self.changed:
            yield self.text[position:start], False
            yield self.text[start:end], True
            position = end
        yield self.text[position:], False


class MessageView(NamedTuple):
    """One message, ready to be shown.

    Attributes:
        label: its role and its scores.
        parts: its thoughts, its text and its calls, in this order.
        instruction: the rewritten instruction that a contrasted reply answers.
    """

    role: str
    label: str
    parts: Sequence[MessagePart]
    instruction: str | None = None


class RecordView(NamedTuple):
    """One record, ready to be shown. `sides`, `captions` and `columns` hold one entry per side.

    Attributes:
        facts: what is known of the record beside its text, a few words each.
        shared: the messages that all sides begin with.
        divider: a line that says what follows the shared messages.
        columns: each side's messages after the shared ones.
        winner: index of the side that won.
        votes: a heading and the judge's explanation, for each vote.
    """

    id: str
    kind: str
    facts: list[str]
    shared: list[MessageView]
    divider: str
    sides: Sequence[str]
    captions: list[str]
    columns: list[list[MessageView]]
    winner: int | None
    votes: list[tuple[str, str]]

    def rows(self) -> Iterator[tuple[MessageView | None, ...]]:
        """The messages that stand beside each other; None where a side has no more."""
        return zip_longest(*self.columns)


def record_view(record: Record) -> RecordView:
    """What is shown of a record of any kind."""
    sides = side_names(record)
    shared, columns, divider = (
        _conversation_columns(record) if len(sides) == 1 else _pair_columns(record, *sides)
    )
    winner = record.get("winner")
    return RecordView(
        id=visible(str(record["id"])),
        kind=visible(_kind(record)),
        facts=[visible(_shortened(fact)) for fact in _facts(record)],
        shared=shared,
        divider=divider,
        sides=sides,
        captions=[_caption(record, side) for side in sides],
        columns=columns,
        winner=sides.index(winner) if winner in sides else None,
        votes=list(_votes(record)),
    )


def field_text(value: object) -> str:
    """A field's value as people type it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json_text.encode(value).decode()


Columns = tuple[list[MessageView], list[list[MessageView]], str]  # shared, columns, divider


def _conversation_columns(record: Record) -> Columns:
    """The seed is shared; what was simulated after it is the one column."""
    start = record.get("seed_messages")
    start = start if isinstance(start, int) else 0
    messages = _messages(record, "messages", _by_message(record, "contrast", "instruction"))
    seed, simulated = messages[:start], messages[start:]
    return (seed, [simulated], "simulated from here") if simulated else ([], [seed], "")


def _pair_columns(record: Record, left: str, right: str) -> Columns:
    """The common beginning is shared; after it each side is a column, with its changes marked."""
    start = first_divergence(record[left], record[right])
    left_messages = _messages(record, left, {})
    right_messages = _messages(
        record, right, _by_message(record, "contrast", "instruction") if right == "rejected" else {}
    )
    columns = _marked_columns(left_messages[start:], right_messages[start:])
    divider = "different from here" if any(columns) else "both sides are the same"
    return left_messages[:start], columns, divider


def _by_message(record: Record, field: str, name: str) -> dict[int, object]:
    """What the objects in a field's list hold under a name, by the index of their message."""
    return {
        entry["message"]: entry.get(name)
        for entry in _objects(record, field)
        if isinstance(entry.get("message"), int)
    }


def _kind(record: Record) -> str:
    kind = record_kind(record) or "conversation"
    is_contest = kind != "conversation" and "best_of" in record
    return f"contest, best of {record['best_of']}" if is_contest else kind


def _facts(record: Record) -> Iterator[str]:
    for name in ("branch", "sample"):
        if name in record:
            yield f"{name} {field_text(record[name])}"
    if "winner" in record:
        winner = record["winner"]
        won = "tie" if winner == "tie" else f"{winner} won"
        yield "verdict unreadable" if winner is None else won
    corruption = record.get("corruption")
    if isinstance(corruption, dict):
        kind, turn = (field_text(corruption.get(field)) for field in ("kind", "turn"))
        yield f"corruption {kind} at turn {turn}"
    if record.get("tools"):
        yield "tools: " + ", ".join(tool["function"]["name"] for tool in record["tools"])
    if persona := record.get("user_persona"):
        texts = persona.values() if isinstance(persona, dict) else [persona]
        yield "user: " + "; ".join(map(field_text, texts))
    if record.get("satisfied") is True:
        yield "ended by its user"
    for name, value in (record.get("metadata") or {}).items():
        yield f"{name}: {field_text(value)}"


def _caption(record: Record, side: str) -> str:
    """A side's name, the model that picked it, and its scores."""
    models, picks = _object(record, "models"), _object(record, "picks")
    parts = [] if side == "messages" else [side]
    if side in models:
        sample = f", sample {picks[side]}" if side in picks else ""
        parts.append(f"{models[side]}'s pick{sample}")
    parts += [
        f"{model} {score:.3f}"
        for model, score in _by_model(record, "scores", side)
        if isinstance(score, int | float)
    ]
    return visible(" · ".join(parts))


def _messages(record: Record, side: str, instructions: Mapping[int, object]) -> list[MessageView]:
    """Each message of a side, labeled with its role and, for an assistant turn, its scores."""
    messages: list[Message] = record[side]
    turn_scores = [
        (model, scores)
        for model, scores in _by_model(record, "turn_scores", side)
        if isinstance(scores, list)
    ]
    kinds = _by_message(record, "follow_ups", "kind")
    ends = set(turn_ends(messages))
    views, turns_left = [], len(ends)
    for index, message in enumerate(messages):
        label = [message["role"]]
        if name := message.get("name"):
            label.append(str(name))
        if index in ends:
            label += _turn_labels(turn_scores, turns_left)
            turns_left -= 1
        if message["role"] == "user" and index in kinds:
            label.append(str(kinds[index]))
        if index in instructions:
            label.append("contrasted")
        instruction = instructions.get(index)
        views.append(
            MessageView(
                role=message["role"],
                label=visible(" · ".join(label)),
                parts=list(_message_parts(message)),
                instruction=visible(str(instruction)) if instruction else None,
            )
        )
    return views


def _message_parts(message: Message) -> Iterator[MessagePart]:
    thoughts, text = message.get("reasoning_content"), visible(message["content"]).strip("\n")
    calls = message.get("tool_calls") or []
    if thoughts:
        yield MessagePart("thoughts", "thinks", visible(thoughts).strip("\n"))
    if text or not calls:
        yield MessagePart("text", "", text)
    for call in calls:
        title = visible(f"calls {call['function']['name']}")
        yield MessagePart("call", title, visible(_arguments(call)))


def _arguments(call: ToolCall) -> str:
    """The arguments of a call, one on each line; JSON as it is where they are no object."""
    text = call["function"]["arguments"]
    try:
        values = json_text.decode(text.encode())
    except ValueError:
        return text
    if not isinstance(values, dict):
        return text
    return "\n".join(f"{name}: {_value_text(value)}" for name, value in values.items())


def _value_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _turn_labels(turn_scores: Sequence[tuple[str, list[Any]]], turns_left: int) -> list[str]:
    """Each model's score of the turn with which `turns_left` turns remain.

    Counted from the end: a conversation that was cut to fit has no scores for its oldest turns.
    """
    return [
        f"{model} {scores[-turns_left]:.3f}"
        for model, scores in turn_scores
        if turns_left <= len(scores) and isinstance(scores[-turns_left], int | float)
    ]


def _by_model(record: Record, field: str, side: str) -> Iterator[tuple[str, object]]:
    """What each model has in `field` for a side; a conversation has no sides."""
    for model, value in _object(record, field).items():
        yield model, value.get(side) if isinstance(value, dict) else value


def _votes(record: Record) -> Iterator[tuple[str, str]]:
    for vote in _objects(record, "votes"):
        winner = "unreadable" if vote.get("winner") is None else vote["winner"]
        heading = f"{vote.get('judge')} · order {vote.get('order')} · {winner}"
        yield visible(heading), visible(str(vote.get("explanation") or "")).strip()


def _marked_columns(left: list[MessageView], right: list[MessageView]) -> list[list[MessageView]]:
    """The same columns. Messages of one role beside each other have their changes marked."""
    columns = [list(left), list(right)]
    for index, pair in enumerate(zip(left, right, strict=False)):
        if pair[0].role == pair[1].role:
            marked = _marked_parts(pair[0].parts, pair[1].parts)
            for column, message, parts in zip(columns, pair, marked, strict=True):
                column[index] = message._replace(parts=parts)
    return columns


def _marked_parts(
    left: Sequence[MessagePart], right: Sequence[MessagePart]
) -> tuple[list[MessagePart], list[MessagePart]]:
    """The parts of two messages. Those of one kind and title have their changes marked."""
    marked = list(left), list(right)
    for index, pair in enumerate(zip(left, right, strict=False)):
        if pair[0][:2] == pair[1][:2]:
            spans = changed_spans(pair[0].text, pair[1].text)
            for parts, part, changed in zip(marked, pair, spans, strict=True):
                parts[index] = part._replace(changed=changed)
    return marked


def _object(record: Record, field: str) -> dict[str, Any]:
    """The object in a field, or an empty one."""
    value = record.get(field)
    return value if isinstance(value, dict) else {}


def _objects(record: Record, field: str) -> list[dict[str, Any]]:
    """The objects in a field's list."""
    value = record.get(field)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_FACT_LENGTH else text[: MAX_FACT_LENGTH - 1] + "…"
