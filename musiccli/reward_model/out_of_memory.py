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
        if is_out_of_memory(error):
            raise InputError(f"memory does not suffice; {advice}") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU has run out."""
    on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError)
