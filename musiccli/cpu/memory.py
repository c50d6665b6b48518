"""Keep freed memory in the process when a CPU does the work.

Every pass through a network allocates and frees the same large tensors. glibc returns each to
the system and asks for it again, page by page, which takes a sixth of a training step's time.
What outlives a pass should not lie between them: where it is freed, gaps of any size are left, and
the memory grows pass after pass.
"""

import ctypes
import mmap
import sys
from collections.abc import Sequence

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
ALIGNMENT = 64  # bytes, as torch aligns tensors


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


def copy_to_own_pages(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies that share pages of their own, which return to the system when all are freed.

    Args:
        tensors: on a CPU; at least one.

    Raises:
        MemoryError: the system has no pages.
    """
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    try:
        pages = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{sum(sizes)} bytes cannot be mapped") from error
    parts = torch.frombuffer(pages, dtype=torch.uint8).split(sizes)
    return [
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
