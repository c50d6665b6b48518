"""The rows of an embedding that a run's tokens reach: only these are trained, the others wait aside.

A row that no token reaches has no gradient and stays as it is, yet its gradient and AdamW's two moments would take as
much memory and time as those of any other: of Gemma's 262,144 rows (63% of the weights of its 270M model) a run reads
some thousand. What is computed is the same but for rounding; weight decay leaves the other rows alone.
"""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256

import torch
from torch import nn

from musiccli.reward_model.network import RewardNetwork


def used_tokens(sequences: Iterable[Iterable[int]]) -> list[int]:
    """Every token there is, in order; 0 stands for padding."""
    return sorted({0}.union(*sequences))


def fingerprint(tokens: list[int]) -> str:
    """Equal where the same rows are trained."""
    return sha256(str(tokens).encode()).hexdigest()[:16]


class TrimmedEmbedding:
    """A network's embedding while it holds the rows of `tokens` alone, which must be all that it will read; `restore`
    puts them back among the others. Both do nothing where the embedding is not trained (LoRA)."""

    def __init__(self, network: RewardNetwork, tokens: list[int]):
        self.tokens, self._embedding = tokens, network.backbone.get_input_embeddings()
        self.whole, self._padding = self._embedding.weight, self._embedding.padding_idx
        self._hook = None
        if self.whole.requires_grad:
            places = torch.zeros(len(self.whole), dtype=torch.long)
            places[tokens] = torch.arange(len(tokens))
            there = cache(places.to)  # by device: once, not for each micro-batch
            self._embedding.weight = nn.Parameter(self.whole.detach()[tokens])
            self._embedding.padding_idx = (
                None  # no row of padding is left whose gradient would have to be zero
            )
            self._hook = self._embedding.register_forward_pre_hook(
                lambda _, ids: (there(ids[0].device)[ids[0]],)
            )

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of the whole embedding that wait."""
        return self.whole.nbytes if self._hook else 0

    def restore(self) -> None:
        if self._hook:
            self._hook.remove()
            with torch.no_grad():
                self.whole[self.tokens] = self._embedding.weight.to(self.whole)
            self._embedding.weight, self._embedding.padding_idx = self.whole, self._padding
