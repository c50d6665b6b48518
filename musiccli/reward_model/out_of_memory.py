"""One line in place of a traceback where memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from musiccli.core.errors import InputError


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise InputError with `advice`, on what takes less memory, where the work runs out of it."""
    try:
        yield
    except RuntimeError as error:
        on_cpu = "can't allocate memory" in str(error)
        if isinstance(error, torch.OutOfMemoryError) or on_cpu:
            raise InputError(f"memory does not suffice; {advice}") from error
        raise
