"""Fast attention, compiled layers and the figures of cards, for networks on a GPU.

With the environment variable MUSIC_PLAIN_TORCH set to 1, models run on PyTorch's own, uncompiled.
"""

import torch

from musiccli.cpu import plain_torch


def can_compile(device: torch.device) -> bool:
    """Whether layers are compiled on this device: a GPU for which PyTorch has a compiler."""
    if device.type != "cuda" or plain_torch():
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())
