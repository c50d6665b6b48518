"""Conversations laid out in one row of tokens, without padding and with shared prefixes once.

The two sides of a preference, or the candidates of one prompt, form a group. A group whose
conversations begin with the same tokens is laid out as: these tokens, the rest of the first
conversation, the rest of the second, and so on. Each of these parts is a Segment of the row.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from musiccli.reward_model.chat_template import EncodedConversation

MIN_SHARED_TOKENS = (
    16  # a shorter prefix costs less computed twice than attended to across segments
)


@dataclass(eq=False)
class History:
    """Tokens with their keys and values, which conversations that begin with them need.

    Attributes:
        ids: the tokens.
        layers: of each attention module its keys and values, (1, key heads, tokens, size) each.
    """

    ids: list[int]
    layers: dict[Any, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Beginning:
    """The tokens of conversations that need not be in a row.

    Attributes:
        history: begins with these tokens; None where there are none.
        length: how many they are.
        recorded: gets the keys and values of a conversation; None records nothing.
    """

    history: History | None = None
    length: int = 0
    recorded: History | None = None


NOTHING = Beginning()


@dataclass(frozen=True)
class Segment:
    """A part of a row whose tokens attend to `prefix`, and causally to one another.

    Attributes:
        start: row position of its first token.
        stop: row position behind its last token.
        prefix: row positions (start, stop) that it continues, possibly an empty range.
        beginning: what precedes the prefix and is not in the row. It may ask for a record of the
            whole conversation that ends with this segment.
    """

    start: int
    stop: int
    prefix: tuple[int, int]
    beginning: Beginning = NOTHING


@dataclass
class PackedRow:
    """Several conversations in one row of tokens.

    Attributes:
        ids: token ids (row,).
        positions: position of each token within its conversation (row,).
        segments: the parts of the row, in order; together they cover it.
        reward_positions: for each conversation, where in the row its rewards are.
    """

    ids: list[int]
    positions: list[int]
    segments: list[Segment]
    reward_positions: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two sequences have in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_prefix(sequences: Sequence[list[int]]) -> int:
    """How many leading tokens to lay out once: what all have in common, never a whole sequence."""
    if len(sequences) < 2:
        return 0
    low, high = min(sequences), max(sequences)  # what the extremes share, all share
    limit = min(len(sequence) for sequence in sequences) - 1
    shared = next((index for index in range(limit) if low[index] != high[index]), limit)
    return shared if shared >= MIN_SHARED_TOKENS else 0


def packed_length(group: Sequence[EncodedConversation]) -> int:
    """Tokens that a group takes in a row."""
    shared = shared_prefix([conversation.ids for conversation in group])
    return sum(len(conversation.ids) for conversation in group) - shared * (len(group) - 1)


def count_tokens(group: Sequence[EncodedConversation], *, packed: bool) -> int:
    """Tokens that a group takes in a forward pass by itself, packed in a row or padded."""
    if packed:
        return packed_length(group)
    return len(group) * max(len(conversation.ids) for conversation in group)


def pack(
    groups: Sequence[Sequence[EncodedConversation]], beginnings: Sequence[Beginning] = ()
) -> PackedRow:
    """All conversations of all groups in one row, in their order.

    Args:
        groups: the conversations.
        beginnings: for each group, with what all its conversations begin that need not be in the
            row. Its first conversation is recorded where that is asked for. Left out, the row
            holds all tokens.
    """
    row = PackedRow([], [], [], [])
    for index, group in enumerate(groups):
        beginning = beginnings[index] if beginnings else NOTHING
        shared = shared_prefix([conversation.ids for conversation in group])
        base, length = len(row.ids), beginning.length
        for number, conversation in enumerate(group):
            start, skip = len(row.ids), shared if number else length
            row.ids += conversation.ids[skip:]
            row.positions += range(skip, len(conversation.ids))
            prefix = (base, base + skip - length)
            row.segments.append(Segment(start, len(row.ids), prefix, beginning))
            beginning = replace(beginning, recorded=None)  # the first conversation alone is
            row.reward_positions.append(
                [
                    base + position - length if position < skip else start + position - skip
                    for position in conversation.reward_positions
                ]
            )
    return row


def row_table(row: PackedRow, length: int) -> np.ndarray:
    """A row as numbers, padded to `length` by a segment of its own without a prefix.

    Returns:
        (5, length) int32: token ids, positions, and for each token where its segment starts and
        where the prefix of its segment starts and stops.
    """
    table = np.zeros((5, length), np.int32)
    tokens = len(row)
    table[0, :tokens], table[1, :tokens] = row.ids, row.positions
    table[1, tokens:] = range(length - tokens)
    table[2, tokens:] = tokens
    for segment in row.segments:
        table[2:, segment.start : segment.stop] = [
            [segment.start],
            [segment.prefix[0]],
            [segment.prefix[1]],
        ]
    return table


def micro_batches(sizes: Sequence[int], budget: int, padded: bool = False) -> list[list[int]]:
    """Deal groups into micro-batches, largest first.

    Args:
        sizes: tokens of each group.
        budget: the most tokens of a micro-batch; a larger group gets one for itself.
        padded: whether each group of a micro-batch takes the size of the largest one in it.

    Returns:
        The indices of the groups in each micro-batch.
    """
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


def partitions(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Deal items into `count` partitions, largest first, each to the one with the least so far.

    Returns:
        The indices of the items in each partition.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, number = heapq.heappop(loads)
        dealt[number].append(index)
        heapq.heappush(loads, (load + sizes[index], number))
    return dealt
