"""Which pairs each step holds, and in which micro-batches each rank computes them.

The plan follows from the seed and the sizes of the pairs, so every rank makes the same one.
"""

import itertools
import random
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from musiccli.reward_model.packing import micro_batches, partitions
from musiccli.train.config import TrainConfig

MicroBatch = list[int]  # indices of pairs; an empty one keeps a rank in step with the others
Step = list[list[MicroBatch]]  # for each rank its micro-batches, equally many on every rank


def plan_steps(
    sizes: Sequence[int] | np.ndarray, config: TrainConfig, ranks: int, padded: bool = False
) -> Iterator[Step]:
    """Every step of a run, in order.

    Pairs are shuffled anew in each epoch, and a step may hold pairs of two epochs.

    Args:
        sizes: tokens of each pair in a forward pass.
        config: gives `batch`, `budget`, `seed` and the number of steps.
        ranks: how many processes share each step.
        padded: whether a micro-batch takes the size of its largest pair for each of its pairs.
    """
    order = _shuffled_epochs(len(sizes), config.seed)
    for _ in range(total_steps(len(sizes), config)):
        indices = list(itertools.islice(order, config.batch))
        yield partition_pairs(indices, sizes, config.full_row, ranks, padded)


def partition_pairs(
    indices: Sequence[int],
    sizes: Sequence[int] | np.ndarray,
    budget: int,
    ranks: int,
    padded: bool = False,
) -> Step:
    """Partition pairs over the ranks, and each rank's pairs into micro-batches.

    The largest pair comes first, and each pair goes to the rank with the fewest tokens. A rank with
    fewer micro-batches than another gets empty ones before its own.
    """
    step: Step = []
    size_of = {index: int(sizes[index]) for index in indices}
    for partition in partitions([size_of[index] for index in indices], ranks):
        pairs = [indices[position] for position in partition]
        batches = micro_batches([size_of[index] for index in pairs], budget, padded)
        step.append([[pairs[position] for position in batch] for batch in batches])
    most = max(len(batches) for batches in step)
    return [[[]] * (most - len(batches)) + batches for batches in step]


def total_steps(pairs: int, config: TrainConfig) -> int:
    """The number of optimizer steps."""
    return config.steps or max(1, round(pairs * config.epochs / config.batch))


def _shuffled_epochs(count: int, seed: int) -> Iterator[int]:
    """Indices below `count` in random order, epoch after epoch without end."""
    for epoch in itertools.count():
        indices = array("q", range(count))  # 8 bytes each; a list would take 36
        random.Random(f"{seed} {epoch}").shuffle(indices)
        yield from indices
