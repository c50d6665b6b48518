"""What a record becomes: seeds, prompts, pairs, comparisons, conversations, corruptions, contrasts.

Each function takes a record and a random generator of its own. It gives a list of results, or
raises Dropped where the record gives none.
"""

from collections.abc import Callable, Collection
from random import Random
from typing import Any

from musiccli.core.messages import Message, count_characters, count_turns, same_text
from musiccli.core.records import Record, lookup, record_kind, side_names
from musiccli.sample.columns import context_fields
from musiccli.sample.config import ContrastTurn, CorruptionKind, Speaker
from musiccli.sample.corruptions import MessagePool, corrupt, intact_messages, replace_one_reply

Emitter = Callable[[Record, Random], list[dict[str, Any]]]

CHARACTERS_PER_TOKEN = 4  # roughly, in English; loading a tokenizer would be slow
_ROLES_BEFORE = {  # the last message of a seed, by who speaks next
    Speaker.user: {"assistant"},
    Speaker.assistant: {"user", "tool"},
    Speaker.any: {"user", "assistant", "tool"},
}


class Dropped(Exception):
    """A record that gives no result. The text is the reason, as RunStats counts it."""


def count_tokens(messages: list[Message]) -> int:
    """About how many tokens a conversation has."""
    return count_characters(messages) // CHARACTERS_PER_TOKEN


def seeds(
    record: Record, rng: Random, *, next_speaker: Speaker, max_tokens: int | None
) -> list[dict[str, Any]]:
    """The beginning of a random side, of random length, after which `next_speaker` can go on."""
    side = rng.choice(side_names(record))
    messages = record[side]
    lengths = [
        index + 1
        for index, message in enumerate(messages)
        if message["role"] in _ROLES_BEFORE[next_speaker] and not message.get("tool_calls")
    ]
    if not lengths:
        raise Dropped("no_reply")  # a user message is in every conversation
    if max_tokens:
        lengths = [n for n in lengths if count_tokens(messages[:n]) <= max_tokens]
    if not lengths:
        raise Dropped("longer_than_max_tokens")
    origin = {"side": side, "messages": len(messages)}
    return [_conversation(record, messages[: rng.choice(lengths)], seed=origin)]


def prompts(record: Record, rng: Random) -> list[dict[str, Any]]:
    """The first user message, after the system message where there is one."""
    messages = record[side_names(record)[0]]
    return [_conversation(record, messages[: 1 + (messages[0]["role"] == "system")])]


def pairs(record: Record, rng: Random) -> list[dict[str, Any]]:
    """The preference itself, or a comparison as a preference for its winner.

    `chosen_side` in the metadata then names the side that won, because other metadata may name it.
    """
    if record_kind(record) == "preference":
        _refuse_equal_sides(record)
        return [record]
    winner = record.get("winner")
    if winner not in ("a", "b"):
        raise Dropped("tie" if winner == "tie" else "nobody_ranked_it")
    _refuse_equal_sides(record)
    return [
        {
            "id": record["id"],
            "chosen": record[winner],
            "rejected": record["b" if winner == "a" else "a"],
            **context_fields(record),
            "metadata": {**(record.get("metadata") or {}), "chosen_side": winner},
        }
    ]


def _refuse_equal_sides(record: Record) -> None:
    """Raises Dropped for a pair of one conversation with itself: it teaches and measures nothing.

    A benchmark's rows are all kept, because its figures count such a pair as not won.
    """
    if lookup(record, "subset") is None and same_text(
        *(record[side] for side in side_names(record))
    ):
        raise Dropped("same_text")


def comparisons(record: Record, rng: Random) -> list[dict[str, Any]]:
    """Two sides, and the winner where the data has one. A preference's sides are shuffled."""
    kind = record_kind(record)
    if kind == "comparison":
        return [record]
    if kind == "conversation":
        raise Dropped("nothing_to_compare_it_with")
    _refuse_equal_sides(record)
    first, second = rng.sample(("chosen", "rejected"), 2)
    return [
        {
            "id": record["id"],
            "a": record[first],
            "b": record[second],
            "winner": "a" if first == "chosen" else "b",
            **context_fields(record),
            "metadata": record.get("metadata") or {},
        }
    ]


def conversations(record: Record, rng: Random) -> list[dict[str, Any]]:
    """Each side alone: a preference's as its two branches, a comparison's as samples 0 and 1."""
    kind = record_kind(record)
    if kind == "conversation":
        return [record]
    if kind == "preference":
        return [
            _conversation(record, record[side]) | {"branch": side}
            for side in ("chosen", "rejected")
        ]
    return [
        _conversation(record, record[side]) | {"sample": number} for number, side in enumerate("ab")
    ]


def corruptions(
    record: Record, rng: Random, *, pool: MessagePool, kinds: Collection[CorruptionKind]
) -> list[dict[str, Any]]:
    """Preferences of the conversation, or of the better side, over each corruption of it."""
    results = corrupt(record, rng, pool=pool, kinds=kinds)
    if not results:
        short = count_turns(intact_messages(record)) < 2
        raise Dropped("fewer_than_two_turns" if short else "no_corruption_of_that_kind")
    return results


def contrasts(
    record: Record, rng: Random, *, pool: MessagePool, turn: ContrastTurn
) -> list[dict[str, Any]]:
    """The preference of a conversation over itself with one reply taken from another one."""
    result = replace_one_reply(record, rng, pool=pool, turn=turn)
    if result is None:
        answered = count_turns(intact_messages(record)) > 0
        raise Dropped("no_match_in_another_conversation" if answered else "no_reply")
    return [result]


def _conversation(record: Record, messages: list[Message], **labels: Any) -> dict[str, Any]:
    metadata = {**(record.get("metadata") or {}), **labels}
    if "turns" in metadata:
        metadata["turns"] = count_turns(messages)
    context = context_fields(record)
    return {"id": record["id"], "messages": messages, **context, "metadata": metadata}
