"""Causal attention in fp32 on a CPU, by the matrix products of linear.py.

For heads of at least 128 numbers, this is faster than PyTorch's own attention on a CPU. For Gemma's
heads of 256, PyTorch takes half as long again, in the forward and the backward pass.
"""

from collections.abc import Iterator

import torch

from musiccli.cpu import plain_torch
from musiccli.cpu.linear import multiply_transposed

MIN_HEAD_SIZE = 128  # numbers per head
BLOCK_ROWS = 128  # queries at a time: their weights fit the processor's cache


def can_attend(query: torch.Tensor, dropout: float = 0.0) -> bool:
    """Whether `attention` is the faster choice for this query (1, heads, rows, size)."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and query.shape[-1] >= MIN_HEAD_SIZE
        and not dropout
        and not plain_torch()
    )


@torch.library.custom_op("musiccli::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention. Its weights are not kept: the backward pass computes them again.

    Args:
        query: (1, heads, rows, size), for the last `rows` of the `columns` positions.
        key: (1, key heads, columns, size).
        value: (1, key heads, columns, size).
        window: how many positions a query sees, its own and those before it; None for all.
        scale: what scores are multiplied by.
        softcap: scores become softcap * tanh(scores / softcap), as in Gemma-2 (arXiv 2408.00118,
            section 2); None leaves them.

    Returns:
        (1, heads, rows, size).
    """
    outputs = torch.empty_like(query)
    for rows, columns, hidden in _blocks(query, key, window):
        for (heads, head_outputs), keys, values in _by_key_head(key, value, query, outputs):
            weights, _ = _weights(heads[:, rows], keys[columns], hidden, scale, softcap)
            block = multiply_transposed(weights, values[columns].t())
            head_outputs[:, rows] = block.view_as(head_outputs[:, rows])
    return outputs


@torch.library.custom_op("musiccli::attention_backward", mutates_args=())
def _attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> list[torch.Tensor]:
    """Gradients of query, key and value, shaped as these; `gradient` is that of the outputs."""
    query_gradient = torch.empty_like(query)
    key_gradient, value_gradient = torch.zeros_like(key), torch.zeros_like(value)
    for rows, columns, hidden in _blocks(query, key, window):
        parts = zip(
            _by_key_head(key, value, query, gradient, query_gradient),
            key_gradient[0],
            value_gradient[0],
            strict=True,
        )
        for ((heads, upper, to_query), keys, values), to_key, to_value in parts:
            weights, scores = _weights(heads[:, rows], keys[columns], hidden, scale, softcap)
            flat_upper, flat_heads = _flat(upper[:, rows]), _flat(heads[:, rows])
            to_value[columns] += multiply_transposed(weights.t(), flat_upper.t())
            to_scores = torch._softmax_backward_data(
                multiply_transposed(flat_upper, values[columns]), weights, -1, torch.float32
            )
            if softcap is not None:
                to_scores *= 1 - (scores / softcap) ** 2
            to_scores *= scale
            block = multiply_transposed(to_scores, keys[columns].t())
            to_query[:, rows] = block.view_as(to_query[:, rows])
            to_key[columns] += multiply_transposed(to_scores.t(), flat_heads.t())
    return [query_gradient, key_gradient, value_gradient]


def _by_key_head(key, value, *like_query) -> Iterator:
    """For each key head: (group, rows, size) of each query-shaped tensor, and (columns, size)."""
    groups = zip(*(tensor[0].chunk(key.shape[1]) for tensor in like_query), strict=True)
    return zip(groups, key[0], value[0], strict=True)


def _blocks(query, key, window) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """For each block of queries: its rows, the columns that any row sees, and a mask.

    The mask (rows, columns) is True where a row does not see a column.
    """
    offset = key.shape[2] - query.shape[2]  # of the first query's position
    for start in range(0, query.shape[2], BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, query.shape[2])
        low = max(0, offset + start + 1 - window) if window else 0
        positions = torch.arange(offset + start, offset + stop)[:, None]
        distance = positions - torch.arange(low, offset + stop)
        hidden = (distance < 0) | (distance >= window) if window else distance < 0
        yield slice(start, stop), slice(low, offset + stop), hidden


def _weights(heads, keys, hidden, scale, softcap) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax weights (group * rows, columns), and the scores, soft-capped where asked."""
    scores = multiply_transposed(_flat(heads) * scale, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked = scores.view(len(heads), *hidden.shape).masked_fill(hidden, float("-inf"))
    return masked.view_as(scores).softmax(-1), scores


def _flat(heads: torch.Tensor) -> torch.Tensor:
    """(group, rows, size) -> (group * rows, size)."""
    return heads.reshape(-1, heads.shape[-1])


def _save_inputs(ctx, inputs, output) -> None:
    *tensors, ctx.window, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    gradients = _attention_backward(
        gradient, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.softcap
    )
    return (*gradients, None, None, None)


attention.register_autograd(_backward, setup_context=_save_inputs)
