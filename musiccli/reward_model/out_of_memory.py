"""Turn an out-of-memory error into one line of advice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from musiccli.core.errors import InputError


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise InputError if memory runs out within it; `advice` says what would take less memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, torch.OutOfMemoryError) or on_cpu:
            raise InputError(f"memory does not suffice; {advice}") from error
        raise
