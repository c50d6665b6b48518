"""Follow-ups that need the history: which of a user's messages are of which kind."""

from collections.abc import Mapping, Sequence
from random import Random

from musiccli.core.errors import InputError
from musiccli.core.messages import Message, count_turns

KINDS = ("refer", "change", "correct")
MIN_EXCHANGES = {"refer": 2}  # before the message; who refers back needs more than the last one


def parse_shares(text: str) -> dict[str, float]:
    """The share of each kind in "refer=0.4,change=0.3,correct=0.3"; the rest is plain.

    Raises:
        InputError: a kind is none of KINDS or stands twice, or the shares are not from 0 to 1.
    """
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        kind, _, number = part.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1
        if kind.strip() not in KINDS or kind.strip() in shares or not 0 <= share <= 1:
            raise _wrong(text)
        shares[kind.strip()] = share
    if sum(shares.values()) > 1 + 1e-9:
        raise _wrong(text)
    return shares


def draw_kind(shares: Mapping[str, float], rng: Random) -> str:
    """One of KINDS, or "" for a plain message."""
    drawn = rng.random()
    for kind, share in shares.items():
        drawn -= share
        if drawn < 0:
            return kind
    return ""


def is_possible(kind: str, history: Sequence[Message]) -> bool:
    """Whether a conversation has what a message of this kind needs."""
    return count_turns(history) >= MIN_EXCHANGES.get(kind, 1)


def _wrong(text: str) -> InputError:
    return InputError(
        f"`follow_ups` {text}: expected {'=P,'.join(KINDS)}=P or some of them, each share P from 0 "
        "to 1 and at most 1 together"
    )
