"""Compile the layers of a backbone, each by itself: a graph for each kind of layer and length."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch

MAX_GRAPHS = 256  # of one function: kinds of layers, row lengths, and with or without gradients


def compile_layers(layers: Iterable[torch.nn.Module], backend: str = "inductor") -> None:
    """Let PyTorch compile each layer when it is first called. Weights and their names stay.

    Call this before DDP or FSDP wraps the layers. For flex attention compiling is no option: not
    compiled, soft-capped scores get wrong gradients under activation checkpointing, silently. So a
    graph beyond MAX_GRAPHS is an error, where PyTorch would go on without compiling.

    Args:
        layers: of a backbone.
        backend: of `torch.compile`.
    """
    warnings.filterwarnings("ignore", "\\s*Online softmax is disabled")  # Inductor's, of a router
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MAX_GRAPHS)
    limits.fail_on_recompile_limit_hit = True
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)


def compile_attention(layers: Iterable[Any], backend: str = "inductor") -> None:
    """Let PyTorch compile the attention of each layer, in place of the whole layer.

    transformers records the logits of routers by hooks that cannot be compiled. The rest of such a
    layer would not be either, and flex attention with it, where activations are computed again.

    Args:
        layers: of a mixture of experts, `self_attn` in each.
        backend: of `torch.compile`.
    """
    layers = list(layers)
    undo_compilation(layers)
    compile_layers([layer.self_attn for layer in layers], backend)


def undo_compilation(layers: Iterable[torch.nn.Module]) -> None:
    """Let layers run as they were before `compile_layers`."""
    for layer in layers:
        layer._compiled_call_impl = None


def recompute(kept: float) -> None:
    """Let layers compute a part of their activations again in the backward pass.

    PyTorch keeps those that take the longest to compute for each byte, such as products, and
    computes the cheap ones again: norms, gates, rotations. Compiled layers are compiled anew.

    Args:
        kept: of the bytes that layers keep beyond their inputs, the share that they may still keep.
    """
    torch._functorch.config.activation_memory_budget = kept
    torch._dynamo.reset()


def uncompiled() -> Any:
    """A context in which compiled layers run as they were written."""
    return torch.compiler.set_stance("force_eager")
