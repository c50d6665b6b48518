"""Faster linear layers, attention, memory and recomputation on a CPU.

With the environment variable MUSIC_PLAIN_TORCH set to 1, models run on PyTorch's own. The results
are the same up to rounding. Use it to find out whether an error comes from this package.
"""

import os

SWITCH = "MUSIC_PLAIN_TORCH"


def plain_torch() -> bool:
    """Whether everything in this package is switched off."""
    return os.environ.get(SWITCH, "") not in ("", "0")
