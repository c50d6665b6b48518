"""Keep freed memory in the process when a CPU does the work.

Every pass through a network allocates and frees the same large tensors. glibc returns each to
the system and asks for it again, page by page, which takes a sixth of a training step's time.
"""

import ctypes
import sys

import torch

from musiccli.cpu import plain_torch

# Parameters of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
SETTINGS = {
    MMAP_MAX: 0,  # large blocks come from the heap, too
    TRIM_THRESHOLD: -1,  # the heap never shrinks
    TOP_PAD: 1 << 26,  # it grows by 64 MB at a time
    ARENA_MAX: 1,  # all threads share it
}


def retain_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations.

    Does nothing without glibc, or with a GPU, where the large tensors are in the GPU's memory.
    """
    if plain_torch() or torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for name, value in SETTINGS.items():
            mallopt(name, value)
