"""Keys and values of what a model has read: a prompt that begins like an earlier one is read from where they part.

A conversation's next prompt begins with its last one and the reply to it; prompts of one template begin with its words.
"""

from collections import OrderedDict

import torch

LIMIT = 1 << 30  # bytes; 23,000 tokens of SmolLM2-135M


class PrefixCache:
    """The last texts read, as tokens, with each layer's keys and values; what was used least lately goes first."""

    def __init__(self, limit: int = LIMIT):
        self.limit, self.size = limit, 0
        self._kept: OrderedDict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = (
            OrderedDict()
        )

    def find(self, ids: list[int]) -> tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]:
        """How many of the first tokens of `ids` are there, and keys and values, each layer's (heads, tokens or more,
        size)."""
        length, best = max(((common(ids, kept), kept) for kept in self._kept), default=(0, ()))
        if not length:
            return 0, []
        self._kept.move_to_end(best)
        return length, self._kept[best]

    def keep(self, ids: list[int], layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Each layer's keys and values (heads, tokens, size) of `ids`. What these go on from is kept no longer."""
        for kept in [kept for kept in self._kept if common(ids, kept) == len(kept)]:
            self._drop(kept)
        self._kept[tuple(ids)] = layers
        self.size += _bytes(layers)
        while self.size > self.limit:
            self._drop(next(iter(self._kept)))

    def _drop(self, ids: tuple[int, ...]) -> None:
        self.size -= _bytes(self._kept.pop(ids))


def common(left: list[int] | tuple[int, ...], right: list[int] | tuple[int, ...]) -> int:
    """How many tokens the two begin with alike."""
    pairs = zip(left, right, strict=False)
    return next(
        (place for place, (one, other) in enumerate(pairs) if one != other),
        min(len(left), len(right)),
    )


def _bytes(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
    return sum(one.nbytes for layer in layers for one in layer)
