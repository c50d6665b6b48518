"""Linear layers of fp32 models on a CPU, computed by the faster of two libraries.

PyTorch uses MKL, which does not use AVX-512 on processors that are not Intel's. On an AMD EPYC
with AVX-512 and the shapes of the bundled models, MKL reaches 100 GFLOP/s a core. oneDNN, which
PyTorch carries as well, reaches 190 to 250. Without AVX-512 both reach 60, and in backward
passes MKL is ahead by a fifth.
"""

import os

import torch
from torch import nn

from musiccli.cpu import plain_torch

ONEDNN_IS_FASTER = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
# How many prepared products oneDNN, and PyTorch for it, keep; both read this at the first product.
# Every shape is one, and rows have any length: 1,024 of each, the default, take half a gigabyte.
CACHED_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}


def use_onednn_linear(model: nn.Module) -> None:
    """Let OneDnnLinear compute all linear layers of `model`, wherever they are in fp32 on a CPU.

    Only the layers' class changes: their weights and the names of their weights stay.
    """
    if plain_torch():
        return
    for name, capacity in CACHED_PRODUCTS.items():
        os.environ.setdefault(name, capacity)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """nn.Linear by `multiply_transposed`; on other devices and types nn.Linear itself."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (..., in_features) -> (..., out_features)."""
        if inputs.device.type == "cpu" and inputs.dtype == self.weight.dtype == torch.float32:
            return _LinearFunction.apply(inputs, self.weight, self.bias)
        return super().forward(inputs)


class _LinearFunction(torch.autograd.Function):
    """inputs (..., in) @ weight (out, in).T + bias (out,) -> (..., out), and its gradients."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return multiply_transposed(inputs, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        outputs = gradient.flatten(0, -2).t()  # (out, rows)
        return (
            multiply_transposed(gradient, weight.t()) if for_inputs else None,
            _weight_gradient(outputs, inputs.flatten(0, -2).t()) if for_weight else None,
            outputs.sum(1) if for_bias else None,
        )


def _weight_gradient(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """outputs (out, rows) @ inputs (in, rows).T -> (out, in).

    The factor with fewer rows goes first. LoRA makes one factor small, and oneDNN is slow where
    that is the second one.
    """
    if len(outputs) <= len(inputs):
        return multiply_transposed(outputs, inputs)
    return multiply_transposed(inputs, outputs).t()


def multiply_transposed(
    left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """left (..., inner) @ right (outer, inner).T + bias (outer,) -> (..., outer).

    Both factors may be transposed views.
    """
    if ONEDNN_IS_FASTER:
        # Of a right factor with gaps between its rows oneDNN makes a loop 1,000 times as slow.
        dense = right if right.is_contiguous() or right.t().is_contiguous() else right.contiguous()
        return torch.ops.mkldnn._linear_pointwise(left, dense, bias, "none", [], "")
    return nn.functional.linear(left, right, bias)
