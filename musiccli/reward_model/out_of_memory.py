"""Work that may run out of memory, on a GPU or where the system refuses it: one line with what takes less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from musiccli.core.errors import InputError


@contextmanager
def explain_out_of_memory(less: str) -> Iterator[None]:
    """Around work: InputError where memory does not suffice, with `less`, a sentence on what takes less of it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(
            error
        ):  # on a CPU
            raise InputError(f"memory does not suffice; {less}") from error
        raise
