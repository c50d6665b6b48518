"""Attention over a packed row: each run of tokens sees its shared prefix and itself, and nothing else of the row.

Registered with transformers under NAME, so that any model whose attention goes through ALL_ATTENTION_FUNCTIONS runs it
unchanged; transformers builds no mask for a name that it has no mask function for.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from musiccli.cpu.attention import attention, can_attend
from musiccli.reward_model.packing import Segment

NAME = "music_packed"


def packed_attention(
    module,
    query,
    key,
    value,
    attention_mask=None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_,
):
    """Attention of one packed row: query (1, heads, row, size), key and value (1, key heads, row, size).

    Returns (1, row, heads, size) and None for the weights. Gemma-2's soft-cap and sliding window are applied here, the
    window by position: within a run and its prefix positions are contiguous.
    """
    outputs = []
    for run in segments:
        own, before = slice(run.start, run.stop), slice(*run.before)
        keys, values = key[:, :, own], value[:, :, own]
        if before.stop > before.start:
            keys = torch.cat((key[:, :, before], keys), dim=2)
            values = torch.cat((value[:, :, before], values), dim=2)
        outputs.append(
            _attend(query[:, :, own], keys, values, scaling, softcap, sliding_window, dropout)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(query, key, value, scaling, softcap, window, dropout):
    """Causal attention of the last len(query) positions over len(key) positions."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if can_attend(query, dropout):
        return attention(query, key, value, window, scaling, softcap)
    rows, columns = query.shape[2], key.shape[2]
    window = window if window and window < columns else None
    if softcap is None:
        plain = window is None and rows == columns
        mask = None if plain else _mask(rows, columns, window, query.device)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=plain,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling
    weights = torch.tanh(weights / softcap) * softcap
    weights = weights.masked_fill(~_mask(rows, columns, window, query.device), float("-inf"))
    return weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


@lru_cache(maxsize=64)
def _mask(rows: int, columns: int, window: int | None, device) -> torch.Tensor:
    """True where the query may look: (rows, columns), lower-right causal, at most `window` positions back."""
    back = torch.arange(columns - rows, columns, device=device)[:, None] - torch.arange(
        columns, device=device
    )
    return (back >= 0) & (back < window) if window else back >= 0


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
