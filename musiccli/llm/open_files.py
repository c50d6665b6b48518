"""How many calls may be in flight by the number of files that a process may open: a call is one."""

import errno
import math
import os
from collections.abc import Callable

from musiccli.core.open_files import allow_many_files

RESERVED_FILES = 64  # for the streams, the records, the cache and what libraries open
TOO_MANY_FILES = os.strerror(errno.EMFILE)  # also the start of the text of ENFILE


def within_open_files(
    model: str, concurrency: int, say: Callable[[str], None] = lambda text: None
) -> int:
    """The calls that may be in flight to a model, at least 1; `say` tells where they are fewer."""
    files = allow_many_files()
    most = max(1, files - RESERVED_FILES) if files < math.inf else concurrency
    if concurrency <= most:
        return concurrency
    say(
        f"{model}: `concurrency` {concurrency:,} is more than the {files:,.0f} files that this "
        f"process may open (ulimit -Hn), less {RESERVED_FILES} for itself; at most {most:,.0f} "
        "calls are in flight"
    )
    return int(most)
