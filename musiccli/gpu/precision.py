"""The precision in which a device computes, and of hidden states between layers under autocast."""

import contextlib
from typing import Any

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether models compute in bf16 here: on a GPU that has it. NVIDIA's do from Ampere on.

    Older ones emulate it, slower than they compute in fp32. A CPU computes in fp32.
    """
    if device.type != "cuda":
        return False
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def computed_precision(device: torch.device) -> torch.dtype:
    """The precision of what is not trained."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def bf16_autocast(device: torch.device) -> Any:
    """Autocast to bf16 where the device has it; elsewhere a context that changes nothing."""
    if not has_bf16(device):
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
