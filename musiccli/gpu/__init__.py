"""Fast attention, compiled layers and the figures of cards, for networks on a GPU.

With the environment variable MUSIC_PLAIN_TORCH set to 1, models run on PyTorch's own, uncompiled.
"""

import os

import torch

from musiccli.cpu import plain_torch
from musiccli.gpu.precision import has_bf16


def can_compile(device: torch.device) -> bool:
    """Whether layers are compiled on this device: a GPU for which PyTorch has a compiler.

    Compiled attention has not been tried on GPUs without bf16. Flex attention must not run
    uncompiled, as it would where PyTorch is told to compile nothing.
    """
    if not has_bf16(device) or plain_torch():
        return False
    from torch.utils._triton import has_triton

    # By TORCH_COMPILE_DISABLE=1; the other variable PyTorch reads nowhere but in the compiler.
    turned_off = torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    return bool(has_triton() and not turned_off)
