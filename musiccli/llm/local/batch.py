"""Continuous batching: rows join a running batch and leave it when they are done.

The keys and values of all rows stand in one buffer, which is written in place. The tokens of every
row end at the same column, which moves to the right with each token. A row that joins is copied
once; one that leaves is replaced by a copy of the last row; a token costs no copy.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from musiccli.cpu.threads import half_the_threads
from musiccli.llm.local.prefix_cache import Layers, PrefixCache

TOP_K = 64  # candidates that top-p sampling considers
PREFILL_ROWS = 8  # prompts of similar length that are read in one pass: little of it is padding
SPARE_COLUMNS = 256  # columns of a new buffer beyond those that it needs


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    Attributes:
        prompt: the text, special tokens included.
        max_tokens: most tokens of the answer.
        temperature: 0 always takes the likeliest token.
        top_p: nucleus sampling (arXiv 1904.09751).
        seed: of this request's sampling.
        stop: strings that end the answer.
    """

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(eq=False)
class Row:
    """One request under way.

    Attributes:
        request: what was asked.
        ids: tokens of the prompt.
        written: tokens of the answer so far.
        generator: the request's own random numbers.
    """

    request: Request
    ids: list[int]
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    @property
    def cached_length(self) -> int:
        """Tokens whose keys and values are in the buffer: all but the last one written."""
        return len(self.ids) + len(self.written) - 1


class Layer(CacheLayerMixin):
    """One layer's buffers: keys and values, (rows, heads, columns, size) each.

    The batch says which rows and columns are in use.
    """

    def __init__(self, batch: "Batch", keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.batch, self.keys, self.values, self.is_initialized = batch, keys, values, True

    def update(self, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any):
        """Write one token's keys and values, and return all that are in use."""
        rows, start, end = len(self.batch.rows), self.batch.start, self.batch.end
        self.keys[:rows, :, end - 1], self.values[:rows, :, end - 1] = key[:, :, 0], value[:, :, 0]
        return self.keys[:rows, :, start:end], self.values[:rows, :, start:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the attention mask, and its offset."""
        return self.batch.end - self.batch.start, 0

    def get_seq_length(self) -> int:
        """Columns in use before the token that is being read."""
        return self.batch.end - self.batch.start - 1

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The buffers exist from the start."""


class Batch:
    """The rows under way in one model.

    Attributes:
        rows: the rows, in the order of the buffers' rows.
        start, end: the columns of the buffers from `start` up to `end` are in use.
        end_tokens: tokens that end an answer.
        prefixes: keys and values of texts that were read before.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        end_tokens = model.generation_config.eos_token_id
        self.end_tokens = set(end_tokens if isinstance(end_tokens, list) else [end_tokens])
        self.prefixes = PrefixCache()
        self.clear()

    def clear(self) -> None:
        """Drop all rows and the buffers."""
        self.rows: list[Row] = []
        self.start = self.end = 0
        self._cache = Cache(layers=[])

    @torch.inference_mode()
    def join(self, rows: list[Row]) -> list[Row]:
        """Read the prompts of new rows and write their first tokens; returns the finished rows."""
        prefixes = {row: self.prefixes.longest_prefix(row.ids[:-1]) for row in rows}
        rows = sorted(rows, key=lambda row: len(row.ids) - prefixes[row][0])
        for first in range(0, len(rows), PREFILL_ROWS):
            self._prefill({row: prefixes[row] for row in rows[first : first + PREFILL_ROWS]})
        return self._remove_finished()

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token in every row; returns the finished rows."""
        device = self.model.device
        self._make_room(self._cache.layers, len(self.rows), 0, 1)
        self.end += 1
        lengths = torch.tensor(
            [[row.cached_length + 1] for row in self.rows], device=device
        )  # (rows, 1)
        mask = (torch.arange(self.start, self.end, device=device) >= self.end - lengths).long()
        tokens = torch.tensor([row.written[-1:] for row in self.rows], device=device)
        with half_the_threads():
            self._write(self.rows, self._forward(tokens, mask, lengths - 1, self._cache))
        return self._remove_finished()

    def _prefill(self, prefixes: dict[Row, tuple[int, Layers]]) -> None:
        """Read the prompts of some rows.

        All rows read as many tokens as the one that has most to read. What stands before these
        is copied from the cached prefixes.
        """
        rows, device = [*prefixes], self.model.device
        longest = max(len(row.ids) for row in rows)
        prefix_columns = longest - max(
            len(row.ids) - length for row, (length, _) in prefixes.items()
        )
        ids, mask = (
            torch.zeros(len(rows), longest, dtype=torch.long, device=device) for _ in range(2)
        )
        for index, row in enumerate(rows):
            ids[index, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[index, longest - len(row.ids) :] = 1
        cache = self._prefix_columns(prefixes, longest, prefix_columns)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self._write(
            rows, self._forward(ids[:, prefix_columns:], mask, positions[:, prefix_columns:], cache)
        )
        self._make_room(cache.layers, len(self.rows) + len(rows), longest, 0)
        first, last = len(self.rows), len(self.rows) + len(rows)
        for buffer, layer in zip(self._cache.layers, cache.layers, strict=True):
            buffer.keys[first:last, :, self.end - longest : self.end] = layer.keys
            buffer.values[first:last, :, self.end - longest : self.end] = layer.values
        self.rows = self.rows + rows
        self._release_columns()

    @staticmethod
    def _prefix_columns(
        prefixes: dict[Row, tuple[int, Layers]], longest: int, prefix_columns: int
    ) -> DynamicCache:
        """The first `prefix_columns` columns of rows that all end at column `longest`."""
        cache = DynamicCache()
        example = (
            next((layers for _, layers in prefixes.values() if layers), [])
            if prefix_columns
            else []
        )
        for number, pair in enumerate(example):
            columns = [
                tensor.new_zeros(len(prefixes), len(tensor), prefix_columns, tensor.shape[2])
                for tensor in pair
            ]
            for index, (row, (_, layers)) in enumerate(prefixes.items()):
                count = prefix_columns - (longest - len(row.ids))
                if count > 0:
                    for target, source in zip(columns, layers[number], strict=True):
                        target[index, :, prefix_columns - count :] = source[:, :count]
            cache.update(*columns, number)
        return cache

    def _make_room(self, example: list, rows: int, before: int, after: int) -> None:
        """Grow the buffers if need be.

        Args:
            example: layers with keys and values of the same heads and sizes.
            rows: rows that the buffers must have.
            before: columns that they must have up to `end`.
            after: columns that they must have behind `end`.
        """
        layers = self._cache.layers
        rows = max([rows, *(len(layer.keys) for layer in layers[:1])])
        if (
            layers
            and rows == len(layers[0].keys)
            and before <= self.end
            and self.end + after <= layers[0].keys.shape[2]
        ):
            return
        used, count = slice(self.start, self.end), len(self.rows)
        end = max(before, self.end - self.start)
        start = end - (self.end - self.start)

        def moved(example: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
            columns = end + after + SPARE_COLUMNS
            new = example.new_zeros(rows, example.shape[1], columns, example.shape[3])
            if old is not None:
                new[:count, :, start:end] = old[:count, :, used]
            return new

        pairs = zip(example, layers or [None] * len(example), strict=True)
        self._cache = Cache(
            layers=[
                Layer(
                    self, moved(new.keys, old and old.keys), moved(new.values, old and old.values)
                )
                for new, old in pairs
            ]
        )
        self.start, self.end = start, end

    def _forward(self, tokens, mask, positions, cache) -> torch.Tensor:
        """The logits of the last tokens, (rows, vocabulary)."""
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

    def _remove_finished(self) -> list[Row]:
        """Take out the finished rows; the last row moves into the place of each."""
        finished = [row for row in self.rows if self._is_finished(row)]
        for row in finished:
            index, last = self.rows.index(row), self.rows[-1]
            self._store_prefix(row, index)
            if row is not last:
                columns = slice(self.end - last.cached_length, self.end)
                for layer in self._cache.layers:
                    layer.keys[index, :, columns] = layer.keys[len(self.rows) - 1, :, columns]
                    layer.values[index, :, columns] = layer.values[len(self.rows) - 1, :, columns]
                self.rows[index] = last
            del self.rows[-1]
        self._release_columns()
        return finished

    def _store_prefix(self, row: Row, index: int) -> None:
        columns = slice(self.end - row.cached_length, self.end)
        layers = [
            (layer.keys[index, :, columns].clone(), layer.values[index, :, columns].clone())
            for layer in self._cache.layers
        ]
        self.prefixes.store([*row.ids, *row.written[:-1]], layers)

    def _release_columns(self) -> None:
        """Columns in which no row has a token are not in use."""
        self.start = self.end - max((row.cached_length for row in self.rows), default=0)

    def _is_finished(self, row: Row) -> bool:
        if row.written[-1] in self.end_tokens or len(row.written) >= row.request.max_tokens:
            return True
        return bool(row.request.stop) and any(
            stop in self.tokenizer.decode(row.written) for stop in row.request.stop
        )


def sample(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    """The next token of each row, by the row's temperature, top-p and random numbers.

    Gumbel-max trick: with Gumbel noise added to the scores, the largest one is a sample.

    Args:
        logits: (rows, vocabulary).
        rows: the rows, in the same order.
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
