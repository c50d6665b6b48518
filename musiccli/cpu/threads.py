"""How many threads compute on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Compute with half of the threads, for work that waits for memory rather than for a core.

    Writing a token reads every weight once, and half of the cores already use the whole width of
    the memory. On 2 cores, the second one gained nothing, and waiting for it took a fifth of the
    work. Reading a prompt is bound by the cores and keeps all of them.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(threads // 2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
