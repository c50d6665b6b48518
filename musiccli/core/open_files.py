"""How many files a process may open: a connection is one."""

import contextlib
import math


def allow_many_files() -> float:
    """Let this process open as many files as it may, and return how many; infinite where unknown.

    1,024 is a common limit to begin with.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return math.inf if hard == resource.RLIM_INFINITY else hard
    return math.inf
