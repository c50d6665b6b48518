"""Conversations laid out in one row of tokens: no padding, and a prefix that several share stands there once.

The two sides of a preference, or the N candidates of one prompt, form a group. A group of sequences with `shared`
leading tokens in common is laid out as shared tokens, rest of the first, rest of the second, ... Each *run* of the row
attends to itself causally and to the runs named in `before`, all with positions that continue from the prefix.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from musiccli.reward_model.chat_template import EncodedConversation

WORTH_SHARING = (
    16  # tokens; a shorter common prefix is cheaper computed twice than attended to from elsewhere
)


@dataclass(frozen=True)
class Segment:
    """Row positions start..stop attend to `before` (a range of the row, possibly empty) and then to themselves."""

    start: int
    stop: int
    before: tuple[int, int]


@dataclass
class PackedRow:
    """`ids` and `positions` of one row, its runs, and for each sequence the row indices where rewards are read."""

    ids: list[int]
    positions: list[int]
    segments: list[Segment]
    reward_positions: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens to lay out once: those that all have in common, but never the whole of one."""
    if len(sequences) < 2:
        return 0
    low, high = min(sequences), max(sequences)  # what the extremes share, all share
    most = min(len(one) for one in sequences) - 1
    shared = next((index for index in range(most) if low[index] != high[index]), most)
    return shared if shared >= WORTH_SHARING else 0


def packed_length(group: Sequence[EncodedConversation]) -> int:
    """Tokens that a group takes in a row."""
    shared = shared_prefix([one.ids for one in group])
    return sum(len(one.ids) for one in group) - shared * (len(group) - 1)


def pack(groups: Sequence[Sequence[EncodedConversation]]) -> PackedRow:
    """All sequences of all groups in one row; `reward_positions` follows their order."""
    row = PackedRow([], [], [], [])
    for group in groups:
        shared = shared_prefix([one.ids for one in group])
        base = len(row.ids)
        for number, one in enumerate(group):
            start, skip = len(row.ids), shared if number else 0
            row.ids += one.ids[skip:]
            row.positions += range(skip, len(one.ids))
            row.segments.append(Segment(start, len(row.ids), (base, base + skip)))
            row.reward_positions.append(
                [base + end if end < skip else start + end - skip for end in one.reward_positions]
            )
    return row


def micro_batches(sizes: Sequence[int], budget: int, padded: bool = False) -> list[list[int]]:
    """Indices of groups, largest first, for each micro-batch: at most `budget` tokens, or a single larger group. Each
    takes its size, or where it is `padded` that of the largest beside it."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = sizes[batches[-1][0]] if batches and padded else sizes[index]
        if not batches or size > room:
            batches.append([])
            size, room = sizes[index], budget
        batches[-1].append(index)
        room -= size
    return batches


def partitions(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Indices dealt to so many hands, largest first and each to the hand that has the least."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [(0, hand) for hand in range(hands)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, hand = heapq.heappop(loads)
        dealt[hand].append(index)
        heapq.heappush(loads, (load + sizes[index], hand))
    return dealt
