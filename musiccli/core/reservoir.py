"""Draw a random sample from items that are read one after the other."""

from collections.abc import Iterable
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def draw_sample(items: Iterable[Item], size: int, rng: Random) -> tuple[list[Item], int]:
    """Draw `size` items, every item with the same probability, in one pass.

    This is algorithm R (Vitter 1985, "Random sampling with a reservoir", ACM TOMS 11:37).

    Returns:
        The drawn items, not in their order, and how many items there were. Of fewer than `size`
        items, all are drawn.
    """
    drawn: list[Item] = []
    total = 0
    for total, item in enumerate(items, start=1):
        if len(drawn) < size:
            drawn.append(item)
        elif (position := rng.randrange(total)) < size:
            drawn[position] = item
    return drawn, total
