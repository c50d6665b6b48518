"""Which records were read before, in little memory."""

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.records import identity_key

PARTS = 4096  # sorted lists, so that a new key moves few others


class Identities:
    """The records of one input by their `identity_key`.

    Only hashes are kept, of 8 bytes each: about 0.1 GB for ten million records.
    """

    def __init__(self) -> None:
        self._parts = [array("Q") for _ in range(PARTS)]

    def add(self, record: Mapping[str, Any]) -> None:
        """Raises RecordError if a record with the same identity was added before."""
        if not self.add_key(identity_key(record)):
            raise self.error(record)

    def add_key(self, key: int) -> bool:
        """Add a record by its `identity_key`; returns whether it is new."""
        part = self._parts[key % PARTS]
        index = bisect_left(part, key)
        if index < len(part) and part[index] == key:
            return False
        part.insert(index, key)
        return True

    @staticmethod
    def error(record: Mapping[str, Any]) -> RecordError:
        """The error of a record whose identity was added before."""
        problem = f"{shortened(record['id'])} names an earlier record, too; ids must be unique"
        return RecordError(problem, field="id", record=record)
