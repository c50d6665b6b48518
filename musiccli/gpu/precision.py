"""The precision of hidden states between layers under autocast."""

import contextlib
from typing import Any

import torch


def bf16_autocast(device: torch.device) -> Any:
    """Autocast to bf16 on a GPU; on a CPU a context that changes nothing."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16)


def cast_hidden_states(embedding: torch.nn.Module) -> None:
    """Let an embedding in fp32 give hidden states in the precision of autocast, where that is on.

    They then stay in it from layer to layer, as they do where FSDP casts what a layer takes. It
    halves the memory and the traffic of what lies between the products.
    """

    def cast(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        kind = output.device.type
        if torch.is_autocast_enabled(kind):
            return output.to(torch.get_autocast_dtype(kind))
        return output

    embedding.register_forward_hook(cast)
