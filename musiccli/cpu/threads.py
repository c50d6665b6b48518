"""How many threads compute on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from musiccli.core.resources import cores


def limit_threads() -> None:
    """Compute with no more threads than this process may use cores, a container's limit included.

    PyTorch starts one for each core of the machine, and those that wait hold up the others.
    OMP_NUM_THREADS stays where it is set.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


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
