"""Fast attention, compiled layers and the figures of cards, for networks on a GPU.

With the environment variable MUSIC_PLAIN_TORCH set to 1, models run on PyTorch's own, uncompiled.
"""

import torch

from musiccli.cpu import plain_torch
from musiccli.gpu.precision import has_bf16


def can_compile(device: torch.device) -> bool:
    """Whether layers are compiled on this device: a GPU for which PyTorch has a compiler.

    Compiled attention has not been tried on GPUs without bf16.
    """
    if not has_bf16(device) or plain_torch():
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())
