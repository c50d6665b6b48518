"""Whether something was there before, for many millions of things: 64-bit hashes in one flat array.

A million take 16 MB. Two different things are taken for the same with a chance of n² / 2⁶⁵: for a million, 3 in 10⁸.
"""

from array import array


class Seen:
    """A set of hashes, open addressing, at most half full."""

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, value: int) -> bool:
        """Whether this hash had not been seen before."""
        if self._count * 2 >= len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for other in filter(None, old):
                self._put(other)
        new = self._put(value & 0xFFFFFFFFFFFFFFFF or 1)
        self._count += new
        return new

    def _put(self, value: int) -> bool:
        mask = len(self._slots) - 1
        slot = value & mask
        while self._slots[slot]:
            if self._slots[slot] == value:
                return False
            slot = (slot + 1) & mask
        self._slots[slot] = value
        return True
