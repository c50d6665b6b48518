"""Continuous batching: rows join a batch when they come, leave it when they are done, and never wait for one another.

Keys and values of all rows stand in one buffer that is written in place. A row's tokens end where every row's do, at a
column that moves right with each token: to come costs a row its own copy, to leave that of one other, a token nothing.
What a row has read is kept for prompts that begin alike.
"""

from dataclasses import dataclass, field

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from musiccli.llm.local.prefix_cache import PrefixCache

TOP_K = 64  # candidates that top-p sampling considers
TOGETHER = 8  # prompts of similar length prefilled in one pass, so that little of it is padding
SPARE = 256  # columns that a buffer is made with beyond those that it needs


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
        self.generator = torch.Generator().manual_seed(self.request.seed)

    @property
    def cached_length(self) -> int:
        """Tokens whose keys and values are there: all but the one written last."""
        return len(self.ids) + len(self.written) - 1


class Layer(CacheLayerMixin):
    """One layer's keys and values, (rows, heads, columns, size) each, of which a `Batch` says what is in use."""

    def __init__(self, batch: "Batch", keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.batch, self.keys, self.values, self.is_initialized = batch, keys, values, True

    def update(self, key, value, *args, **kwargs):
        rows, low, end = len(self.batch.rows), self.batch.low, self.batch.end
        self.keys[:rows, :, end - 1], self.values[:rows, :, end - 1] = key[:, :, 0], value[:, :, 0]
        return self.keys[:rows, :, low:end], self.values[:rows, :, low:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.batch.end - self.batch.low, 0

    def get_seq_length(self) -> int:
        return self.batch.end - self.batch.low - 1

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states, value_states) -> None:
        """There is nothing to be done later."""


class Batch:
    """The rows under way in one model. The columns from `low` up to `end` of its buffers are in use."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])  # tokens that end a reply
        self.prefixes = PrefixCache()
        self.clear()

    def clear(self) -> None:
        self.rows: list[Row] = []
        self.low = self.end = 0
        self._cache = Cache(layers=[])

    @torch.inference_mode()
    def join(self, rows: list[Row]) -> list[Row]:
        """Read the prompts of new rows and write a first token for each; returns the rows that are done already."""
        found = {row: self.prefixes.find(row.ids[:-1]) for row in rows}
        rows = sorted(rows, key=lambda row: len(row.ids) - found[row][0])
        for start in range(0, len(rows), TOGETHER):
            self._prefill({row: found[row] for row in rows[start : start + TOGETHER]})
        return self._leave()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token in every row; returns the rows that are done now."""
        device = self.model.device
        self._make_room(self._cache.layers, len(self.rows), 0, 1)
        self.end += 1
        cached_length = torch.tensor(
            [[row.cached_length + 1] for row in self.rows], device=device
        )  # (rows, 1)
        mask = (torch.arange(self.low, self.end, device=device) >= self.end - cached_length).long()
        tokens = torch.tensor([row.written[-1:] for row in self.rows], device=device)
        self._write(self.rows, self._forward(tokens, mask, cached_length - 1, self._cache))
        return self._leave()

    def _prefill(self, found: dict[Row, tuple[int, list]]) -> None:
        """Read the rows' prompts. All read as many tokens as the row that has most to read; what stands before these
        was found, and is copied."""
        rows, device = [*found], self.model.device
        longest = max(len(row.ids) for row in rows)
        before = longest - max(len(row.ids) - there for row, (there, _) in found.items())
        ids, mask = (
            torch.zeros(len(rows), longest, dtype=torch.long, device=device) for _ in range(2)
        )
        for index, row in enumerate(rows):
            ids[index, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[index, longest - len(row.ids) :] = 1
        cache = self._known(found, longest, before)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self._write(rows, self._forward(ids[:, before:], mask, positions[:, before:], cache))
        self._make_room(cache.layers, len(self.rows) + len(rows), longest, 0)
        first, last = len(self.rows), len(self.rows) + len(rows)
        for own, new in zip(self._cache.layers, cache.layers, strict=True):
            own.keys[first:last, :, self.end - longest : self.end] = new.keys
            own.values[first:last, :, self.end - longest : self.end] = new.values
        self.rows = self.rows + rows
        self._forget()

    @staticmethod
    def _known(found: dict[Row, tuple[int, list]], longest: int, before: int) -> DynamicCache:
        """The columns up to `before` of rows that all end at `longest`."""
        cache = DynamicCache()
        like = next((layers for _, layers in found.values() if layers), []) if before else []
        for number, pair in enumerate(like):
            columns = [one.new_zeros(len(found), len(one), before, one.shape[2]) for one in pair]
            for index, (row, (_, layers)) in enumerate(found.items()):
                count = before - (longest - len(row.ids))
                if count > 0:
                    for to, one in zip(columns, layers[number], strict=True):
                        to[index, :, before - count :] = one[:, :count]
            cache.update(*columns, number)
        return cache

    def _make_room(self, like: list, rows: int, before: int, after: int) -> None:
        """Buffers for so many rows, with `before` columns up to `end` and `after` behind it; what is in use moves with
        `end`. `like` has layers of the same shapes."""
        there = self._cache.layers
        rows = max([rows, *(len(one.keys) for one in there[:1])])
        if (
            there
            and rows == len(there[0].keys)
            and before <= self.end
            and self.end + after <= there[0].keys.shape[2]
        ):
            return
        used, count, end = (
            slice(self.low, self.end),
            len(self.rows),
            max(before, self.end - self.low),
        )
        low = end - (self.end - self.low)

        def moved(like: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
            new = like.new_zeros(rows, like.shape[1], end + after + SPARE, like.shape[3])
            if count:
                new[:count, :, low:end] = old[:count, :, used]
            return new

        pairs = zip(like, there or [None] * len(like), strict=True)
        self._cache = Cache(
            layers=[
                Layer(
                    self, moved(one.keys, old and old.keys), moved(one.values, old and old.values)
                )
                for one, old in pairs
            ]
        )
        self.low, self.end = low, end

    def _forward(self, tokens, mask, positions, cache) -> torch.Tensor:  # -> (rows, vocabulary)
        return self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _write(self, rows: list[Row], logits: torch.Tensor) -> None:
        for row, token in zip(rows, sample(logits, rows), strict=True):
            row.written.append(token)

    def _leave(self) -> list[Row]:
        """Take out the rows that are done; the last one moves into the place of each."""
        done = [row for row in self.rows if self._done(row)]
        for row in done:
            place, last = self.rows.index(row), self.rows[-1]
            self._keep(row, place)
            if row is not last:
                columns = slice(self.end - last.cached_length, self.end)
                for layer in self._cache.layers:
                    layer.keys[place, :, columns] = layer.keys[len(self.rows) - 1, :, columns]
                    layer.values[place, :, columns] = layer.values[len(self.rows) - 1, :, columns]
                self.rows[place] = last
            del self.rows[-1]
        self._forget()
        return done

    def _keep(self, row: Row, place: int) -> None:
        columns = slice(self.end - row.cached_length, self.end)
        self.prefixes.keep(
            [*row.ids, *row.written[:-1]],
            [
                (one.keys[place, :, columns].clone(), one.values[place, :, columns].clone())
                for one in self._cache.layers
            ],
        )

    def _forget(self) -> None:
        """Columns in which no row has a token any more are out of use."""
        self.low = self.end - max((row.cached_length for row in self.rows), default=0)

    def _done(self, row: Row) -> bool:
        if row.written[-1] in self.ends or len(row.written) >= row.request.max_tokens:
            return True
        return bool(row.request.stop) and any(
            stop in self.tokenizer.decode(row.written) for stop in row.request.stop
        )


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    """The next token of each row from logits (rows, vocabulary): its own temperature, top-p and seed.

    By the Gumbel-max trick: with noise added, the largest score is a sample, and each row's noise is its own.
    """
    temperature = torch.tensor([[max(row.request.temperature, 1e-6)] for row in rows])
    top_p = torch.tensor([[row.request.top_p] for row in rows])
    top, index = (
        logits.float().cpu().topk(min(TOP_K, logits.shape[-1]), dim=-1)
    )  # (rows, k), best first
    scaled = top / temperature
    probability = scaled.softmax(-1)
    outside = probability.cumsum(-1) - probability >= top_p  # the best token always stays
    uniform = torch.stack([torch.rand(top.shape[-1], generator=row.generator) for row in rows])
    noise = -(-uniform.clamp_min(1e-20).log()).log()
    greedy = torch.tensor([[row.request.temperature <= 0] for row in rows])
    noisy = torch.where(greedy, scaled, scaled + noise).masked_fill(outside, float("-inf"))
    return index.gather(-1, noisy.argmax(-1, keepdim=True))[:, 0].tolist()
