"""Continuous batching: rows join a batch when they come, leave it when they are done, and never wait for one another.

Keys and values of all rows stand left-padded in one cache, so each row's last token is in the last column.
"""

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

TOP_K = 64  # candidates that top-p sampling considers
TOGETHER = 8  # prompts of similar length prefilled in one pass, so that little of it is padding


@dataclass(frozen=True)
class Request:
    """A prompt as text, special tokens and all, and how to continue it."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(eq=False)
class Row:
    """One request under way: its prompt's tokens, what was written so far, and its own source of chance."""

    request: Request
    ids: list[int]
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = torch.Generator().manual_seed(self.request.seed)


class Batch:
    """The rows under way in one model."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])  # tokens that end a reply
        self.clear()

    def clear(self) -> None:
        self.rows: list[Row] = []
        self._cache, self._mask = DynamicCache(), None  # _mask: (rows, length), 1 where a token stands

    @torch.inference_mode()
    def join(self, rows: list[Row]) -> list[Row]:
        """Read the prompts of new rows and write a first token for each; returns the rows that are done already."""
        rows = sorted(rows, key=lambda row: len(row.ids))
        for start in range(0, len(rows), TOGETHER):
            self._prefill(rows[start:start + TOGETHER])
        return self._leave()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token in every row; returns the rows that are done now."""
        tokens = torch.tensor([row.written[-1:] for row in self.rows], device=self.model.device)
        self._mask = torch.cat((self._mask, torch.ones_like(self._mask[:, :1])), dim=1)
        self._write(self.rows, self._forward(tokens, self._mask, self._mask.sum(1, keepdim=True) - 1, self._cache))
        return self._leave()

    def _prefill(self, rows: list[Row]) -> None:
        longest = max(len(row.ids) for row in rows)
        ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long, device=self.model.device) for _ in range(2))
        for index, row in enumerate(rows):
            ids[index, longest - len(row.ids):] = torch.tensor(row.ids)
            mask[index, longest - len(row.ids):] = 1
        cache = DynamicCache()
        self._write(rows, self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache))
        if self.rows:
            length = max(longest, self._mask.shape[1])
            for own, new in zip(self._cache.layers, cache.layers, strict=True):
                own.keys = torch.cat((_widen(own.keys, length, 2), _widen(new.keys, length, 2)))
                own.values = torch.cat((_widen(own.values, length, 2), _widen(new.values, length, 2)))
            self._mask = torch.cat((_widen(self._mask, length, 1), _widen(mask, length, 1)))
        else:
            self._cache, self._mask = cache, mask
        self.rows = self.rows + rows

    def _forward(self, tokens, mask, positions, cache) -> torch.Tensor:  # -> (rows, vocabulary)
        return self.model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache,
                          use_cache=True, logits_to_keep=1).logits[:, -1]

    def _write(self, rows: list[Row], logits: torch.Tensor) -> None:
        for row, token in zip(rows, sample(logits, rows), strict=True):
            row.written.append(token)

    def _leave(self) -> list[Row]:
        done = [row for row in self.rows if self._done(row)]
        if not done:
            return []
        stay = [index for index, row in enumerate(self.rows) if row not in done]
        self.rows = [self.rows[index] for index in stay]
        if not stay:
            self.clear()
            return done
        index = torch.tensor(stay, device=self._mask.device)
        self._mask = self._mask[index]
        unused = int(self._mask.argmax(1).min())  # leading columns in which no row that stays has a token
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, unused:], layer.values[index, :, unused:]
        return done

    def _done(self, row: Row) -> bool:
        if row.written[-1] in self.ends or len(row.written) >= row.request.max_tokens:
            return True
        return bool(row.request.stop) and any(stop in self.tokenizer.decode(row.written) for stop in row.request.stop)


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    """The next token of each row from logits (rows, vocabulary): its own temperature, top-p and seed.

    By the Gumbel-max trick: with noise added, the largest score is a sample, and each row's noise is its own.
    """
    temperature = torch.tensor([[max(row.request.temperature, 1e-6)] for row in rows])
    top_p = torch.tensor([[row.request.top_p] for row in rows])
    top, index = logits.float().cpu().topk(min(TOP_K, logits.shape[-1]), dim=-1)  # (rows, k), best first
    scaled = top / temperature
    probability = scaled.softmax(-1)
    outside = probability.cumsum(-1) - probability >= top_p  # the best token always stays
    uniform = torch.stack([torch.rand(top.shape[-1], generator=row.chance) for row in rows])
    noise = -(-uniform.clamp_min(1e-20).log()).log()
    greedy = torch.tensor([[row.request.temperature <= 0] for row in rows])
    noisy = torch.where(greedy, scaled, scaled + noise).masked_fill(outside, float("-inf"))
    return index.gather(-1, noisy.argmax(-1, keepdim=True))[:, 0].tolist()


def _widen(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Zeros before what stands along `dim`, up to `length`: the mask hides them."""
    shape = list(tensor.shape)
    shape[dim] = length - shape[dim]
    return torch.cat((tensor.new_zeros(shape), tensor), dim=dim) if shape[dim] else tensor
