"""Conversations with one thing wrong at one turn, made without an LLM.

A turn is a user message and the reply to it, counted from 1. The kinds of corruption:

- reply: turn t has a reply to something else, taken from another conversation.
- user: turn t has a user message from another conversation.
- drop_user: the user message of turn t > 1 is missing. The replies around it become one message,
  with a blank line between them, so that roles still alternate. This side is always shorter.
- swap: turns t and t + 1 change places. The length stays the same.

A replacement is the message of the same role that is nearest in length. It never comes from a
conversation that opens with the same user message. `distance` counts the whole turns that follow
the last changed turn. Lengths are in characters.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from operator import attrgetter
from random import Random
from typing import Any, NamedTuple

from musiccli.core.messages import Message, count_characters, same_text, turn_ends
from musiccli.core.records import Record, side_names
from musiccli.core.run_stats import RunStats
from musiccli.sample.config import ContrastTurn, CorruptionKind

MAX_COMPARED = 1000  # messages, where many conversations are alike
Turn = list[Message]  # a user message and all that replies to it


class PooledMessage(NamedTuple):
    """A message's text, and where it comes from. The order of the fields is the order in a pool."""

    length: int
    opening: str  # the first user message of its conversation
    text: str
    user_text: str  # of the user message before it


class MessagePool:
    """The user messages and replies of many conversations, as replacements for each other.

    `stats` counts the messages for which the pool holds no replacement.
    """

    def __init__(self, records: Iterable[Record], stats: RunStats) -> None:
        self._stats = stats
        self._by_length: dict[str, list[PooledMessage]] = {"user": [], "assistant": []}
        for record in records:
            self._add(intact_messages(record))
        for pooled in self._by_length.values():
            pooled.sort()

    def _add(self, messages: list[Message]) -> None:
        opening, user_text = opening_text(messages), ""
        for message in messages:
            text = message["content"]
            if message["role"] in self._by_length and not message.get("tool_calls"):
                pooled = PooledMessage(len(text), opening, text, user_text)
                self._by_length[message["role"]].append(pooled)
            if message["role"] == "user":
                user_text = text

    def nearest(self, message: Message, opening: str, rng: Random) -> PooledMessage | None:
        """The message of the same role and the nearest length, in other words.

        Args:
            message: the message to replace. One that calls functions has no replacement.
            opening: the first user message of its conversation.
            rng: decides between messages of equally near lengths.
        """
        if message.get("tool_calls"):
            return None
        words = _words(message["content"])
        by_distance = self._by_distance(message["role"], len(message["content"]), rng)
        for pooled in islice(by_distance, MAX_COMPARED):
            # "You're welcome!" would be no replacement for "You're welcome."
            if pooled.opening != opening and _words(pooled.text) != words:
                return pooled
        self._stats.count("messages_without_match", message["role"])
        return None

    def _by_distance(self, role: str, length: int, rng: Random) -> Iterator[PooledMessage]:
        """The messages of a role, those of the nearest length first."""
        pooled = self._by_length[role]
        first = bisect_left(pooled, length, key=attrgetter("length"))
        last = bisect_right(pooled, length, key=attrgetter("length"))
        above = rng.randint(first, last)
        below = above - 1
        while below >= 0 or above < len(pooled):
            below_by = length - pooled[below].length if below >= 0 else float("inf")
            above_by = pooled[above].length - length if above < len(pooled) else float("inf")
            if below_by < above_by or (below_by == above_by and rng.random() < 0.5):
                yield pooled[below]
                below -= 1
            else:
                yield pooled[above]
                above += 1


class Corruption(NamedTuple):
    """One corruption of a conversation."""

    kind: CorruptionKind
    turn: int
    last_turn: int  # the last changed turn
    turns: list[Turn]  # of the corrupted conversation


def corrupt(
    record: Record,
    rng: Random,
    *,
    pool: MessagePool,
    kinds: Collection[CorruptionKind] = tuple(CorruptionKind),
) -> list[dict[str, Any]]:
    """Preferences of the unchanged conversation over each corruption of it.

    A conversation with fewer than two turns has none. The random choices do not depend on `kinds`.
    """
    messages = intact_messages(record)
    system, turns = _split_into_turns(messages)
    if len(turns) < 2:
        return []
    preferences = []
    for corruption in _corruptions(turns, opening_text(messages), rng, pool):
        rejected = system + [message for turn in corruption.turns for message in turn]
        # a swap of two equal turns changes nothing
        if corruption.kind in kinds and not same_text(messages, rejected):
            distance = len(turns) - corruption.last_turn
            preferences.append(
                _preference(record, rejected, corruption.kind, corruption.turn, distance)
            )
    return preferences


def replace_one_reply(
    record: Record, rng: Random, *, pool: MessagePool, turn: ContrastTurn = ContrastTurn.any
) -> dict[str, Any] | None:
    """The preference of the unchanged conversation over itself with one reply replaced.

    The record has the fields that `music pair` writes: `first_divergence`, and `contrast` with
    the message that the replacement answers where it comes from.

    Args:
        turn: whose reply to replace: the last one, or one drawn among those with a replacement.

    Returns:
        None where no reply has a replacement.
    """
    messages = intact_messages(record)
    replies = list(enumerate(turn_ends(messages), start=1))
    last_only = turn == ContrastTurn.last
    for number, index in replies[-1:] if last_only else rng.sample(replies, len(replies)):
        if pooled := pool.nearest(messages[index], opening_text(messages), rng):
            rejected = [*messages]
            rejected[index] = {"role": "assistant", "content": pooled.text}
            return {
                **_preference(
                    record,
                    rejected,
                    CorruptionKind.reply,
                    turn=number,
                    distance=len(replies) - number,
                ),
                "first_divergence": index,
                "contrast": [{"message": index, "instruction": pooled.user_text}],
            }
    return None


def _preference(
    record: Record, rejected: list[Message], kind: CorruptionKind, turn: int, distance: int
) -> dict[str, Any]:
    chosen = intact_messages(record)
    return {
        "id": f"{record['id']}/{kind.value}-{turn}",
        "chosen": chosen,
        "rejected": rejected,
        **({"tools": record["tools"]} if record.get("tools") is not None else {}),
        "corruption": {
            "kind": kind.value,
            "turn": turn,
            "distance": distance,
            "length_difference": count_characters(rejected) - count_characters(chosen),
        },
        "metadata": {**(record.get("metadata") or {}), "conversation": record["id"]},
    }


def _corruptions(
    turns: list[Turn], opening: str, rng: Random, pool: MessagePool
) -> Iterator[Corruption]:
    """Every corruption of the conversation, turn after turn."""
    for turn, messages in enumerate(turns, start=1):
        question, *between, reply = messages
        before, after = turns[: turn - 1], turns[turn:]
        if pooled := pool.nearest(reply, opening, rng):
            changed: Turn = [question, *between, {"role": "assistant", "content": pooled.text}]
            yield Corruption(CorruptionKind.reply, turn, turn, [*before, changed, *after])
        if pooled := pool.nearest(question, opening, rng):
            changed = [{"role": "user", "content": pooled.text}, *between, reply]
            yield Corruption(CorruptionKind.user, turn, turn, [*before, changed, *after])
        if before and not before[-1][-1].get("tool_calls"):
            joined = _joined_turns(before[-1], messages)
            yield Corruption(CorruptionKind.drop_user, turn, turn, [*before[:-1], joined, *after])
        if after:
            swapped = [*before, after[0], messages, *after[1:]]
            yield Corruption(CorruptionKind.swap, turn, turn + 1, swapped)


def _joined_turns(earlier: Turn, later: Turn) -> Turn:
    """Both turns as one, without the second user message: the messages around it are joined."""
    *start, before = earlier
    _, after, *end = later
    content = "\n\n".join(text for text in (before["content"], after["content"]) if text)
    return [*start, {**after, "content": content}, *end]


def intact_messages(record: Record) -> list[Message]:
    """The conversation to corrupt, up to its last reply.

    Of two sides it is the winner, and the first side where there is no winner.
    """
    names = side_names(record)
    winner = record.get("winner")
    messages: list[Message] = record[winner if winner in names else names[0]]
    ends = turn_ends(messages)
    return messages[: ends[-1] + 1] if ends else messages[:-1]


def opening_text(messages: Sequence[Message]) -> str:
    """The first user message."""
    return next((message["content"] for message in messages if message["role"] == "user"), "")


def _split_into_turns(messages: Sequence[Message]) -> tuple[list[Message], list[Turn]]:
    """The system message if there is one, and the turns after it."""
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not starts:
        return list(messages), []
    turns = [list(messages[start:end]) for start, end in pairwise([*starts, len(messages)])]
    return list(messages[: starts[0]]), turns


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
