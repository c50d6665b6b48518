"""Keeps freed memory in the process, where a CPU does the work.

Every pass through a network takes and frees the same large tensors. glibc hands each back to the system and asks for it
anew, page by page: a sixth of a training step's time, and more where memory is slow to come.
"""

import ctypes
import sys

import torch

# glibc's malloc.h: large blocks come from the heap, too, it is never trimmed, grows by 64 MB, and all threads share it.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
SETTINGS = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: 1 << 26, ARENA_MAX: 1}


def retain_freed_memory() -> None:
    """From here on. Does nothing where there is a GPU, whose weights only pass through memory, or no glibc."""
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, value in SETTINGS.items() if mallopt else ():
        mallopt(name, value)
