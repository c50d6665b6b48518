"""Matrix products of fp32 models on a CPU, by whichever library is the faster there.

PyTorch hands them to MKL, which keeps from AVX-512 on processors that are not Intel's: on an AMD EPYC that has it, with
the shapes of the embedded models, MKL reaches 100 GFLOP/s a core where oneDNN, which PyTorch carries as well, reaches
190 to 250. On one without AVX-512 both reach 60, and backwards MKL is ahead by a fifth.
"""

import torch
from torch import nn

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def use_onednn_linear(model: nn.Module) -> None:
    """Let every linear layer of the model compute here wherever it is on a CPU and in fp32. Its class changes, its
    weights and their names do not."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """nn.Linear, its products chosen here where they can be."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.device.type == "cpu" and inputs.dtype == self.weight.dtype == torch.float32:
            return _Linear.apply(inputs, self.weight, self.bias)
        return super().forward(inputs)


class _Linear(torch.autograd.Function):
    """inputs (..., in) @ weight (out, in).T + bias (out,) -> (..., out), and its gradients."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return _product(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        wanted, columns = ctx.needs_input_grad, gradient.flatten(0, -2).t()  # (out, rows)
        rows = inputs.flatten(0, -2).t()  # (in, rows)
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            # The shorter side first: for the other order oneDNN has no good kernel where LoRA makes one side short.
            (_product(columns, rows) if len(columns) <= len(rows) else _product(rows, columns).t())
            if wanted[1]
            else None,
            columns.sum(1) if wanted[2] else None,
        )


def _product(left, right, bias=None):
    """left (..., inner) @ right (outer, inner).T: the two may be transposed views."""
    return (
        torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
        if ONEDNN
        else nn.functional.linear(left, right, bias)
    )


ROWS = 128  # of queries at a time: their weights then stay in the processor's cache, and later keys are left out


@torch.library.custom_op("musiccli::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention by the same products: query (1, heads, rows, size), key and value (1, key heads, columns, size)
    -> (1, heads, rows, size).

    The queries stand at the last positions of the keys and look at most `window` positions back, their own with them.
    Of the weights nothing is kept: backwards they are computed again.
    """
    outputs = torch.empty_like(query)
    for rows, columns, hidden in _blocks(query, key, window):
        for (heads, out), keys, values in _by_key_head(key, value, query, outputs):
            weights, _ = _weights(heads[:, rows], keys[columns], hidden, scale, softcap)
            out[:, rows] = _product(weights, values[columns].t()).view_as(out[:, rows])
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
    found = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, columns, hidden in _blocks(query, key, window):
        parts = zip(
            _by_key_head(key, value, query, gradient, found[0]),
            found[1][0],
            found[2][0],
            strict=True,
        )
        for ((heads, grads, to_query), keys, values), to_key, to_value in parts:
            weights, scores = _weights(heads[:, rows], keys[columns], hidden, scale, softcap)
            above, asked = _flat(grads[:, rows]), _flat(heads[:, rows])
            to_value[columns] += _product(weights.t(), above.t())
            below = torch._softmax_backward_data(
                _product(above, values[columns]), weights, -1, torch.float32
            )
            if softcap is not None:
                below *= 1 - (scores / softcap) ** 2
            below *= scale
            to_query[:, rows] = _product(below, keys[columns].t()).view_as(to_query[:, rows])
            to_key[columns] += _product(below.t(), asked.t())
    return list(found)


def _by_key_head(key, value, *like_query):
    """Of each key head: the parts (group, rows, size) of what is laid out like queries, its keys and values (columns,
    size)."""
    groups = zip(*(one[0].chunk(key.shape[1]) for one in like_query), strict=True)
    return zip(groups, key[0], value[0], strict=True)


def _blocks(query, key, window):
    """Rows of queries, the columns of keys that any of them sees, and which of these each does not: (rows, columns)."""
    before = key.shape[2] - query.shape[2]
    for start in range(0, query.shape[2], ROWS):
        stop = min(start + ROWS, query.shape[2])
        low = max(0, before + start + 1 - window) if window else 0
        back = torch.arange(before + start, before + stop)[:, None] - torch.arange(
            low, before + stop
        )
        yield (
            slice(start, stop),
            slice(low, before + stop),
            (back < 0) | (back >= window) if window else back < 0,
        )


def _weights(heads, keys, hidden, scale, softcap):
    """Softmax weights (group * rows, columns), and the scores after the soft-cap where there is one."""
    scores = _product(_flat(heads) * scale, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = scores.view(len(heads), *hidden.shape).masked_fill(hidden, float("-inf")).view_as(scores)
    return seen.softmax(-1), scores


def _flat(heads):
    return heads.reshape(-1, heads.shape[-1])


def _keep(ctx, inputs, output):
    *tensors, ctx.window, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(*tensors)


def _go_back(ctx, gradient):
    found = _attention_backward(gradient, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.softcap)
    return (*found, None, None, None)


attention.register_autograd(_go_back, setup_context=_keep)
