"""The memory of a GPU: what is free, and how it is handed out."""

import os

import torch


def avoid_fragmentation() -> None:
    """Let PyTorch's allocator grow its segments, so that rows of several lengths share them.

    It reads the setting when the first memory is taken; a setting of the user's stays.
    """
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):  # the second before torch 2.9
        if name in os.environ:
            return
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors may still take: what the device has free, and what the allocator holds."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
