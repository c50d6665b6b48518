"""What makes a CPU fast, behind one switch: the environment variable MUSIC_PLAIN_TORCH.

Set to 1, models run on PyTorch's own linear layers, attention, memory and autograd.
The numbers are the same but for rounding. Use it to find out whether this room is to blame.
"""

import os

SWITCH = "MUSIC_PLAIN_TORCH"


def plain_torch() -> bool:
    """Whether everything in this room is switched off."""
    return os.environ.get(SWITCH, "") not in ("", "0")
