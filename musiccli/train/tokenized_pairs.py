"""Preference pairs as token ids: what a run trains on, and what it is measured on.

A pair over the length limit is cut or dropped. A pair whose sides are the same tokens is dropped.
Each outcome is counted.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message, count_turns, first_divergence
from musiccli.core.records import Record, lookup
from musiccli.core.run_stats import RunStats
from musiccli.reward_model.chat_template import EncodedConversation, cut_to_fit
from musiccli.reward_model.checkpoint import RewardModel

DIVERGENCES = ("first", "middle", "last")


@dataclass(frozen=True)
class TokenizedPair:
    """A preference as token ids, with what held-out accuracy is broken down by.

    Attributes:
        sides: the chosen and the rejected side. Both have equally many `reward_positions`. The loss
            compares the rewards at the first position of each side, at the second, and so on. The
            last position is the end of the conversation.
        size: tokens of the pair in a forward pass, packed or padded as the network computes it.
        tokens: tokens of both sides as two separate sequences.
        turns: turns of the side that has more, as `music bench agreement` counts them.
        divergence: the exchange in which the sides begin to differ, one of DIVERGENCES.
        margin: by how much the loss wants the chosen reward above the rejected one.
    """

    sides: tuple[EncodedConversation, EncodedConversation]
    size: int
    tokens: int
    turns: int
    divergence: str
    margin: float = 0.0


def tokenize_pairs(
    preferences: Iterable[Record],
    model: RewardModel,
    max_length: int,
    stats: RunStats | None = None,
    *,
    margin_field: str | None = None,
    margin_scale: float = 1.0,
    per_turn: bool = False,
) -> list[TokenizedPair]:
    """Tokenize preferences with the model's chat template.

    A pair of equal tokens is dropped because its loss is always log 2 and its gradient zero.

    Args:
        preferences: records with `chosen` and `rejected`.
        model: gives the chat template, and the size of a pair in a forward pass.
        max_length: the most tokens of one side. Longer pairs are cut by `cut_to_fit`, or dropped.
        stats: counts `pairs_cut_to_fit` and `pairs_dropped`. Its rejects take a pair that the chat
            template refuses, or that has no margin.
        margin_field: the field that holds a pair's margin; None means a margin of 0.
        margin_scale: the factor that multiplies each margin.
        per_turn: compare rewards after every turn in which the sides differ. Otherwise compare them
            after the last turn only.
    """
    stats = stats or RunStats()
    pairs: list[TokenizedPair] = []
    for record in preferences:
        with stats.rejects.guard(record):
            margin = margin_scale * _margin(record, margin_field) if margin_field else 0.0
            conversations = [record["chosen"], record["rejected"]]
            tools = record.get("tools") or ()
            encode = partial(model.chat_template.encode, every_turn=per_turn, tools=tools)
            sides = _encode_sides(conversations, encode, max_length, stats)
            if sides is None:
                continue
            pairs.append(
                TokenizedPair(
                    keep_compared_positions(*sides),
                    model.network.token_count(sides),
                    sum(len(side.ids) for side in sides),
                    max(map(count_turns, conversations)),
                    diverging_exchange(*conversations),
                    margin,
                )
            )
    return pairs


def _encode_sides(
    conversations: list[list[Message]],
    encode: Callable[[list[Message]], EncodedConversation],
    max_length: int,
    stats: RunStats,
) -> tuple[EncodedConversation, EncodedConversation] | None:
    """The chosen and the rejected side as tokens; None where the pair is dropped."""
    fitted = cut_to_fit(encode, conversations, max_length, first_divergence(*conversations))
    if fitted is None:
        stats.count("pairs_dropped", "too_long")
        return None
    (chosen, rejected), messages_cut = fitted
    if messages_cut:
        stats.count("pairs_cut_to_fit")
    if chosen.ids == rejected.ids:
        stats.count("pairs_dropped", "same_tokens")
        return None
    return chosen, rejected


def keep_compared_positions(
    chosen: EncodedConversation, rejected: EncodedConversation
) -> tuple[EncodedConversation, EncodedConversation]:
    """Both sides with only the reward positions that the loss compares.

    These are the last position of each side, and before it those of the turns that both sides have.
    Turns of the shared history are left out: equal tokens have equal rewards.
    """
    turns = zip(chosen.reward_positions[:-1], rejected.reward_positions[:-1], strict=False)
    compared = [
        (chosen_end, rejected_end)
        for chosen_end, rejected_end in turns
        if chosen.ids[: chosen_end + 1] != rejected.ids[: rejected_end + 1]
    ]
    compared.append((chosen.reward_positions[-1], rejected.reward_positions[-1]))
    chosen_positions, rejected_positions = map(list, zip(*compared, strict=True))
    return (
        EncodedConversation(chosen.ids, chosen_positions),
        EncodedConversation(rejected.ids, rejected_positions),
    )


def diverging_exchange(chosen: Sequence[Message], rejected: Sequence[Message]) -> str:
    """The exchange in which two sides begin to differ, one of DIVERGENCES.

    "last" means that only replies to the last user message differ, and "first" that the first
    exchange differs already. Everything between is "middle".
    """
    shared = first_divergence(chosen, rejected)
    starts, rejected_starts = _exchange_starts(chosen), _exchange_starts(rejected)
    if shared > max(starts[-1], rejected_starts[-1]):
        return "last"
    end_of_first = starts[1] if len(starts) > 1 else len(chosen)
    return "first" if shared < end_of_first else "middle"


def _exchange_starts(messages: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def fingerprint(pairs: Sequence[TokenizedPair]) -> str:
    """A hash of tokens and margins, equal for runs on the same pairs in the same order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for side in pair.sides:
            digest.update(orjson.dumps(side.ids))
        if pair.margin:
            digest.update(orjson.dumps(pair.margin))
    return digest.hexdigest()[:16]


def _margin(record: Record, field: str) -> float:
    """A record's margin: a number, or the length of a list. Raises RecordError otherwise."""
    value = lookup(record, field)
    if isinstance(value, list):
        return float(len(value))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        shown = "missing" if value is None else shortened(value)
        raise RecordError(
            f"is {shown}; a margin is a number from 0 up, or a list's length",
            field=field,
            record=record,
        )
    return float(value)
