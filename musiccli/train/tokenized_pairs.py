"""Preferences as tokens: what is too long is cut or dropped, what teaches nothing is dropped, all of it counted."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Message, Record, count_turns, first_divergence, lookup, shortened
from musiccli.reward_model.chat_template import EncodedConversation, cut_to_fit
from musiccli.reward_model.checkpoint import RewardModel

PARTS = ("first", "middle", "last")


@dataclass(frozen=True)
class Pair:
    """An encoded preference, and by what held-out accuracy is broken down."""

    sides: tuple[
        EncodedConversation, EncodedConversation
    ]  # chosen, rejected; the t-th reads of both are compared, and the last is at the end
    size: int  # tokens in a forward pass: when packed, or padded
    tokens: int  # tokens as two sequences
    turns: int  # assistant turns of the side that has more, as `bench agreement` counts them
    parts: str  # where the sides part: one of PARTS
    margin: float = 0.0  # by how much the loss wants chosen ahead


def prepare(
    preferences: Iterable[Record],
    model: RewardModel,
    max_length: int,
    counts: Counter,
    *,
    rejects: Rejects | None = None,
    margin_field: str | None = None,
    margin_scale: float = 1.0,
    per_turn: bool = False,
) -> list[Pair]:
    """Encode preferences; what is too long is cut by the contract of chat.fit, or dropped, and counted either way.

    Pairs whose two sides are the same tokens are dropped: their loss is log 2 and their gradient zero. One that the
    chat template refuses, or whose `margin_field` holds no margin, goes to `rejects`; margins are multiplied by
    `margin_scale`. Sides are read where `compared` says, or with `per_turn` false after the last turn alone.
    """
    rejects = rejects or Rejects()
    encode = partial(model.chat_template.encode, every_turn=per_turn)
    pairs = []
    for record in preferences:
        sides, fitted = [record["chosen"], record["rejected"]], None
        with rejects.guard(record):
            margin = margin_scale * _margin(record, margin_field) if margin_field else 0.0
            fitted = cut_to_fit(encode, sides, max_length, first_divergence(*sides))
            if fitted is None:
                counts[f"pairs dropped (over {max_length} tokens and not to be cut)"] += 1
        if fitted is None:
            continue
        (chosen, rejected), cut = fitted
        counts[f"pairs cut to {max_length} tokens"] += cut > 0
        if chosen.ids == rejected.ids:
            counts["pairs dropped (both sides the same tokens)"] += 1
            continue
        pairs.append(
            Pair(
                compared(chosen, rejected),
                model.network.token_count((chosen, rejected)),
                len(chosen.ids) + len(rejected.ids),
                max(map(count_turns, sides)),
                where_they_part(*sides),
                margin,
            )
        )
    return pairs


def compared(
    chosen: EncodedConversation, rejected: EncodedConversation
) -> tuple[EncodedConversation, EncodedConversation]:
    """Both sides with those reads alone that the loss compares: after the last turn of each, and before it after every
    turn that both have. Turns of the shared history are left out: of the same tokens the rewards are the same."""
    ends = [
        (one, other)
        for one, other in zip(
            chosen.reward_positions[:-1], rejected.reward_positions[:-1], strict=False
        )
        if chosen.ids[: one + 1] != rejected.ids[: other + 1]
    ]
    ours, theirs = zip(
        *ends, (chosen.reward_positions[-1], rejected.reward_positions[-1]), strict=True
    )
    return EncodedConversation(chosen.ids, list(ours)), EncodedConversation(
        rejected.ids, list(theirs)
    )


def _margin(record: Record, field: str) -> float:
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


def where_they_part(chosen: Sequence[Message], rejected: Sequence[Message]) -> str:
    """ "last" where only the last reply differs, "first" where the first exchange does already, else "middle"."""
    shared = first_divergence(chosen, rejected)
    if shared >= max(len(chosen), len(rejected)) - 1:
        return "last"
    return "first" if shared - (chosen[0]["role"] == "system") < 2 else "middle"


def fingerprint(pairs: Sequence[Pair]) -> str:
    """Equal for runs on the same tokens and margins in the same order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for side in pair.sides:
            digest.update(orjson.dumps(side.ids))
        if pair.margin:
            digest.update(orjson.dumps(pair.margin))
    return digest.hexdigest()[:16]
