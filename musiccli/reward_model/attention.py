"""Attention over a packed row: each segment sees its prefix and itself, and nothing else.

It is registered with transformers under NAME. A model whose attention looks its function up in
ALL_ATTENTION_FUNCTIONS then runs it unchanged. transformers builds no mask for this name, since
it has no mask function for it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from musiccli.cpu.attention import attention, can_attend
from musiccli.reward_model.packing import Segment

NAME = "music_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, with the signature that transformers calls.

    Gemma-2's soft-cap and sliding window are applied here. The window counts positions, which
    are contiguous within a segment and its prefix.

    Args:
        module: the calling layer, whose keys and values histories hold.
        query: (1, heads, row, size).
        key: (1, key heads, row, size).
        value: (1, key heads, row, size).
        attention_mask: unused; the segments say what each token sees.
        segments: the parts of the row.
        scaling: what scores are multiplied by; None for 1 / sqrt(size).
        dropout: probability of dropping a weight.
        softcap: the limit of the scores, see `musiccli.cpu.attention.attention`.
        sliding_window: how many positions back a token sees, its own included; None for all.

    Returns:
        (1, row, heads, size), and None in place of the weights.
    """
    outputs = []
    for segment in segments:
        rows = slice(segment.start, segment.stop)
        keys, values = _keys_and_values(module, segment, key, value)
        outputs.append(
            _attend(query[:, :, rows], keys, values, scaling, softcap, sliding_window, dropout)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _keys_and_values(module, segment, key, value) -> tuple[torch.Tensor, torch.Tensor]:
    """What a segment attends to: its history, its prefix and itself, (1, key heads, ., size)."""
    start, stop = segment.prefix
    parts = [(key[:, :, segment.start : segment.stop], value[:, :, segment.start : segment.stop])]
    if stop > start:
        parts.insert(0, (key[:, :, start:stop], value[:, :, start:stop]))
    beginning = segment.beginning
    if beginning.history:
        earlier = beginning.history.layers[module]
        parts.insert(0, tuple(tensor[:, :, : beginning.length] for tensor in earlier))
    keys, values = parts[0]
    if len(parts) > 1:
        keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
    if beginning.recorded:
        beginning.recorded.layers[module] = (keys.clone(), values.clone())
    return keys, values


def _attend(query, key, value, scaling, softcap, window, dropout) -> torch.Tensor:
    """Causal attention of query (1, heads, rows, size) at the last positions of the keys."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if can_attend(query, dropout):
        return attention(query, key, value, window, scaling, softcap)
    rows, columns = query.shape[2], key.shape[2]
    window = window if window and window < columns else None
    if softcap is not None:
        mask = _mask(rows, columns, window, query.device)
        return _softcapped(query, key, value, mask, scaling, softcap)
    is_plain = window is None and rows == columns
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if is_plain else _mask(rows, columns, window, query.device),
        is_causal=is_plain,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _softcapped(query, key, value, mask, scaling, softcap) -> torch.Tensor:
    """Attention with soft-capped scores, which PyTorch's own cannot do; its weights in fp32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (1, heads, rows, columns)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


@lru_cache(maxsize=64)
def _mask(rows: int, columns: int, window: int | None, device: torch.device) -> torch.Tensor:
    """True where a query may look: (rows, columns), lower-right causal, within the window."""
    positions = torch.arange(columns - rows, columns, device=device)[:, None]
    distance = positions - torch.arange(columns, device=device)
    return (distance >= 0) & (distance < window) if window else distance >= 0


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
