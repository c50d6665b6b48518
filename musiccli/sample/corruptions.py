"""A conversation beside itself with one thing wrong at one turn: what a reward model that reads it all should notice,
and one such pair of each conversation: what it could learn that from, made without an LLM.

The kinds. A turn is a user message and the reply to it, counted from 1:

- reply: turn t has a reply to something else, the nearest in length out of another conversation;
- user: turn t has a user message out of another conversation, the nearest in length;
- drop_user: the user message of turn t > 1 is gone. The replies around it become one message, a blank line between
  them, so that roles still alternate. This side is always the shorter one: see what `longest` gets on it;
- swap: turns t and t + 1 change places. The length stays as it is.

`distance` counts turns from the end: 0 where the last turn is touched, else how many whole turns follow. Lengths are in
characters. What is borrowed never comes from a conversation that opens with the same user message.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from random import Random

from musiccli.core.records import Message, Record, count_characters, same_text, side_names

KINDS = ("reply", "user", "drop_user", "swap")
Exchange = list[Message]  # a user message and the reply to it


class Pool:
    """The messages of many conversations, to borrow from; `counts` is told what could not be matched.

    They stand by their role in order of length, each as (length, opening of its conversation, text, text before it).
    """

    def __init__(self, found: Iterable[Record], counts: Counter):
        self.counts = counts
        self._sorted: dict[str, list[tuple[int, str, str, str]]] = {"user": [], "assistant": []}
        for record in found:
            said, before = intact(record), ""
            for message in said:
                if message["role"] in self._sorted:
                    text = message["content"]
                    self._sorted[message["role"]].append((len(text), opening(said), text, before))
                before = message["content"]
        for texts in self._sorted.values():
            texts.sort()

    def nearest(self, message: Message, own: str, rng: Random) -> Message | None:
        """A message by the same role, of the nearest length, from a conversation that does not open with `own`."""
        found = self.borrow(message, own, rng)
        return found and {"role": message["role"], "content": found[0]}

    def borrow(self, message: Message, own: str, rng: Random) -> tuple[str, str] | None:
        """The text of `nearest`, in other words than the message's, and what was said before it where it comes from."""
        texts, length = self._sorted[message["role"]], len(message["content"])
        above = rng.randint(bisect_left(texts, (length,)), bisect_left(texts, (length + 1,)))
        below = above - 1
        while below >= 0 or above < len(texts):
            far_below = length - texts[below][0] if below >= 0 else float("inf")
            far_above = texts[above][0] - length if above < len(texts) else float("inf")
            if far_below < far_above or (far_below == far_above and rng.random() < 0.5):
                at, below = below, below - 1
            else:
                at, above = above, above + 1
            _, other, text, before = texts[at]
            if other != own and words(text) != words(
                message["content"]
            ):  # "You're welcome!" for "You're welcome."
                return text, before
        self.counts[f"{message['role']} messages without a match in another conversation"] += 1
        return None


def corruptions(
    record: Record, rng: Random, *, pool: Pool, kinds: Collection[str] = KINDS
) -> list[dict]:
    """Preferences, the conversation as it is over each corruption of it; none where it has fewer than two turns.

    Fewer `kinds` give the same records of these kinds as all of them would.
    """
    said = intact(record)
    system, turns = said[: len(said) % 2], exchanges(said)
    if len(turns) < 2:
        return []
    made = []
    for kind, turn, touched, changed in corrupted(turns, opening(said), rng, pool):
        rejected = system + [message for exchange in changed for message in exchange]
        if kind in kinds and not same_text(
            said, rejected
        ):  # the same where two turns that are equal changed places
            made.append(
                preference(record, said, rejected, kind, turn, distance=len(turns) - touched)
            )
    return made


def contrast(record: Record, rng: Random, *, pool: Pool, last: bool = False) -> dict | None:
    """The preference of the conversation as it is over itself with one `reply` replaced; None where none has a match.

    The reply is drawn among those that have one, or is the `last`. The record also says what `pair` would: where the
    sides part, and in `contrast` which message the borrowed reply answers where it comes from.
    """
    said = intact(record)
    replies = range(1 + len(said) % 2, len(said), 2)
    for at in replies[-1:] if last else rng.sample(replies, len(replies)):
        if found := pool.borrow(said[at], opening(said), rng):
            text, instruction = found
            rejected = [*said[:at], {"role": "assistant", "content": text}, *said[at + 1 :]]
            about = {
                "first_divergence": at,
                "contrast": [{"message": at, "instruction": instruction}],
            }
            return (
                preference(record, said, rejected, "reply", (at + 1) // 2, (len(said) - at) // 2)
                | about
            )
    return None


def preference(
    record: Record,
    said: list[Message],
    rejected: list[Message],
    kind: str,
    turn: int,
    distance: int,
) -> dict:
    """What was said over what it became, with what is wrong there and which conversation it is."""
    about = {
        "kind": kind,
        "turn": turn,
        "distance": distance,
        "length_difference": count_characters(rejected) - count_characters(said),
    }
    return {
        "id": f"{record['id']}/{kind}-{turn}",
        "chosen": said,
        "rejected": rejected,
        "corruption": about,
        "metadata": {**(record.get("metadata") or {}), "conversation": record["id"]},
    }


def corrupted(
    turns: list[Exchange], own: str, rng: Random, pool: Pool
) -> Iterator[tuple[str, int, int, list]]:
    """Every corruption: its kind, its turn, the last turn it touches, and the turns that result."""
    for turn, (question, reply) in enumerate(turns, start=1):
        before, after = turns[: turn - 1], turns[turn:]
        if other := pool.nearest(reply, own, rng):
            yield "reply", turn, turn, [*before, [question, other], *after]
        if other := pool.nearest(question, own, rng):
            yield "user", turn, turn, [*before, [other, reply], *after]
        if before:
            *earlier, [asked, answered] = before
            joined = {
                "role": "assistant",
                "content": f"{answered['content']}\n\n{reply['content']}",
            }
            yield "drop_user", turn, turn, [*earlier, [asked, joined], *after]
        if after:
            yield "swap", turn, turn + 1, [*before, after[0], [question, reply], *after[1:]]


def intact(record: Record) -> list[Message]:
    """The conversation to corrupt, up to its last reply: of two sides the better one, or `a` where nobody chose."""
    names = side_names(record)
    side = record["winner"] if record.get("winner") in names else names[0]
    said = record[side]
    return said[:-1] if said[-1]["role"] == "user" else said


def exchanges(said: Sequence[Message]) -> list[Exchange]:
    """The turns of a conversation that ends with a reply; of an odd number of messages the first is the system's."""
    return [list(said[index : index + 2]) for index in range(len(said) % 2, len(said), 2)]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def opening(said: Sequence[Message]) -> str:
    """The first user message."""
    return next((message["content"] for message in said if message["role"] == "user"), "")
