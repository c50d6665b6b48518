"""The whole run planned before it starts: which pairs each step holds, and in which micro-batches on each rank."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import count as count_from

from musiccli.core.errors import InputError
from musiccli.reward_model.packing import micro_batches, partitions
from musiccli.train.config import TrainConfig


def plan(
    sizes: Sequence[int], settings: TrainConfig, ranks: int, padded: bool = False
) -> Iterator[list[list[list[int]]]]:
    """Each step's micro-batches for each rank: step[rank] = [[pair, ...], ...], as many on every rank.

    Pairs are shuffled anew for each epoch; a step's pairs are dealt to the ranks by size, largest first. A micro-batch
    that is [] only keeps the ranks in step.
    """
    order = _order(len(sizes), settings.seed)
    for _ in range(total_steps(len(sizes), settings)):
        yield deal(
            [next(order) for _ in range(settings.batch)], sizes, settings.budget, ranks, padded
        )


def deal(
    indices: Sequence[int], sizes: Sequence[int], budget: int, ranks: int, padded: bool = False
) -> list[list[list[int]]]:
    """Pairs dealt to the ranks, largest first and each to the rank with the fewest tokens, in as many micro-batches on
    every rank; some may be []."""
    partitions_ = [
        [indices[place] for place in partition]
        for partition in partitions([sizes[index] for index in indices], ranks)
    ]
    dealt = [
        [
            [partition[place] for place in batch]
            for batch in micro_batches([sizes[index] for index in partition], budget, padded)
        ]
        for partition in partitions_
    ]
    most = max(len(batches) for batches in dealt)
    return [[[]] * (most - len(batches)) + batches for batches in dealt]


def total_steps(pairs: int, settings: TrainConfig) -> int:
    """The optimiser's steps: those asked for, or passes over the pairs. Raises InputError where these make no step."""
    if settings.steps:
        return settings.steps
    if not 0 < settings.epochs < math.inf:
        raise InputError(
            f"--epochs {settings.epochs:g}: trains nothing; give a number above 0, or --steps"
        )
    return max(1, round(pairs * settings.epochs / settings.batch))


def _order(count: int, seed: int) -> Iterator[int]:
    for epoch in count_from(0):
        indices = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(indices)
        yield from indices
