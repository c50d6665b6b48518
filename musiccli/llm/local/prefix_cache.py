"""Keys and values of texts that a model has read, so that a text's beginning is not read again.

A conversation's next prompt begins with its last one and the reply to it, and prompts of one
template begin with the same words.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

LIMIT = 1 << 30  # bytes; 23,000 tokens of SmolLM2-135M

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # each layer's keys and values


class PrefixCache:
    """The last texts that were read, as tokens; the least recently used is dropped first.

    Attributes:
        limit: bytes of keys and values that are kept.
        size: bytes that are in use.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit, self.size = limit, 0
        self._texts: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def longest_prefix(self, ids: Sequence[int]) -> tuple[int, Layers]:
        """The stored text that begins most like `ids`.

        Returns:
            How many tokens the two begin with alike, and the keys and values of the stored text,
            each (heads, tokens or more, size); 0 and nothing where there is no such text.
        """
        length, text = max(
            ((common_prefix(ids, text), text) for text in self._texts), default=(0, ())
        )
        if not length:
            return 0, []
        self._texts.move_to_end(text)
        return length, self._texts[text]

    def store(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep the keys and values of a text, each (heads, tokens, size).

        They replace those of every text with which this one begins.
        """
        for text in [text for text in self._texts if common_prefix(ids, text) == len(text)]:
            self._drop(text)
        self._texts[tuple(ids)] = layers
        self.size += _bytes(layers)
        while self.size > self.limit:
            self._drop(next(iter(self._texts)))

    def _drop(self, text: tuple[int, ...]) -> None:
        self.size -= _bytes(self._texts.pop(text))


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    for index, (token, counterpart) in enumerate(zip(first, second, strict=False)):
        if token != counterpart:
            return index
    return min(len(first), len(second))


def _bytes(layers: Layers) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
