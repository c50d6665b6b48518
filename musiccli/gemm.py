"""Matrix products of fp32 models on a CPU, by oneDNN.

PyTorch hands them to MKL, which keeps from AVX-512 on processors that are not Intel's: on an AMD EPYC, with the shapes
of the embedded models, it reaches 100 GFLOP/s a core where oneDNN, which PyTorch carries as well, reaches 190 to 250.
"""

import torch
from torch import nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(model: nn.Module) -> None:
    """Let every linear layer of the model compute by oneDNN wherever it is on a CPU and in fp32. Its class changes, its
    weights and their names do not."""
    if ONEDNN:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


class Linear(nn.Linear):
    """nn.Linear, multiplied by oneDNN where it can be."""

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
        return (_product(gradient, weight.t()) if wanted[0] else None,
                # The shorter side first: for the other order oneDNN has no good kernel where LoRA makes one side short.
                (_product(columns, rows) if len(columns) <= len(rows) else _product(rows, columns).t())
                if wanted[1] else None,
                columns.sum(1) if wanted[2] else None)


def _product(left, right, bias=None):
    """left (..., inner) @ right (outer, inner).T: the two may be transposed views."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
