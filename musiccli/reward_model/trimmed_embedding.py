"""Trains only those rows of an embedding that a run's tokens use.

A row that no token uses has no gradient and stays as it is. But its gradient and AdamW's two
moments would take as much memory and time as those of any other row. Of Gemma's 262,144 rows
(63% of the weights of its 270M model) a run uses some thousand. The results are the same but for
rounding; weight decay does not reach the other rows.
"""

from collections.abc import Iterable
from functools import cache
from hashlib import sha256

import torch
from torch import nn

from musiccli.reward_model.network import RewardNetwork

PADDING_ID = 0  # what the network fills padded rows with


def used_tokens(sequences: Iterable[Iterable[int]]) -> list[int]:
    """Every token id that occurs, in ascending order, and the one that pads."""
    return sorted({PADDING_ID}.union(*sequences))


def fingerprint(tokens: list[int]) -> str:
    """A short text that is equal for equal tokens."""
    return sha256(str(tokens).encode()).hexdigest()[:16]


class TrimmedEmbedding:
    """Replaces a network's embedding by the rows of `tokens`, until `restore` is called.

    The network must read no other tokens in between. Does nothing where the embedding is not
    trained, as with LoRA.

    Attributes:
        tokens: the token ids whose rows are kept, in order.
        whole: the embedding's weight (vocabulary, size) as it was.
    """

    def __init__(self, network: RewardNetwork, tokens: list[int]):
        self.tokens, self._embedding = tokens, network.backbone.get_input_embeddings()
        self.whole, self._padding = self._embedding.weight, self._embedding.padding_idx
        self._hook = None
        if self.whole.requires_grad:
            self._trim()

    def _trim(self) -> None:
        row_of_token = torch.zeros(len(self.whole), dtype=torch.long)  # (vocabulary,)
        row_of_token[self.tokens] = torch.arange(len(self.tokens))
        on_device = cache(row_of_token.to)  # copied once, not for each micro-batch
        self._embedding.weight = nn.Parameter(self.whole.detach()[self.tokens])
        self.whole.data = self.whole.data.cpu()  # the device needs the rows in training alone
        self._embedding.padding_idx = None  # it would name another row now
        self._hook = self._embedding.register_forward_pre_hook(
            lambda _, arguments: (on_device(arguments[0].device)[arguments[0]],)
        )

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of the whole embedding, which waits in memory; 0 where nothing was trimmed."""
        return self.whole.nbytes if self._hook else 0

    def restore(self) -> None:
        """Put the whole embedding back, with the trained rows in it."""
        if self._hook:
            self._hook.remove()
            trained = self._embedding.weight
            with torch.no_grad():
                self.whole.data = self.whole.data.to(trained.dtype)  # not yet where it was sharded
                self.whole[self.tokens] = trained.to(self.whole)
            self._embedding.weight, self._embedding.padding_idx = self.whole, self._padding
