"""A file that is one JSON list, read item after item in bounded memory."""

import re
from collections.abc import Iterator
from typing import BinaryIO

from musiccli.core import jsonl
from musiccli.core.errors import InputError
from musiccli.core.records import Record

CHUNK = 1 << 16  # bytes that are read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OUTSIDE_STRINGS = re.compile(rb'["\[\]{},]')  # what decides where an item ends
_INSIDE_STRINGS = re.compile(rb'["\\]')


def read_json_list(stream: BinaryIO, name: str, rejects: jsonl.Rejects) -> Iterator[Record]:
    """The items of a JSON list, each an object.

    Args:
        stream: the file's bytes, decompressed.
        name: the file's name, for errors.
        rejects: gets the items that are no JSON objects, and those longer than MAX_LINE.

    Raises:
        InputError: the list has no end, or something follows it.
    """
    for index, item in enumerate(_items(stream, name)):
        record = None
        with rejects.guard():
            record = jsonl.decode(item, f"{name}[{index}]")
        if record is not None:
            yield record


def _items(stream: BinaryIO, name: str) -> Iterator[bytes | None]:
    """The bytes of each item. None stands for an item that is longer than MAX_LINE."""
    splitter = ItemSplitter()
    while chunk := stream.read(CHUNK):
        yield from splitter.feed(chunk)
        if splitter.ended and splitter.take_rest().strip():
            raise InputError(f"{name}: is not JSON: something follows the end of its list")
    if not splitter.ended:
        raise InputError(f"{name}: is not JSON: the file ends within item {splitter.count}")


class ItemSplitter:
    """Finds where the items of a JSON list end. It checks nothing else.

    Attributes:
        count: how many items have ended so far.
        ended: whether the list has ended.
    """

    def __init__(self) -> None:
        self.count, self.ended = 0, False
        self._buffer = bytearray()  # what is not part of an item that has ended
        self._position = 0  # where in the buffer the search goes on
        self._depth = 0  # brackets that are open: 1 between items
        self._in_string, self._too_long = False, False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield the items that end within the next bytes of the file."""
        self._buffer += chunk
        while not self.ended:
            marks = _INSIDE_STRINGS if self._in_string else _OUTSIDE_STRINGS
            match = marks.search(self._buffer, self._position)
            if not match:
                self._position = max(self._position, len(self._buffer))
                break
            self._position = match.end()
            if self._ends_item(match[0]):
                yield from self._take_item()
        if len(self._buffer) > jsonl.MAX_LINE:
            self._too_long = True
            self._position -= len(self._buffer)
            self._buffer.clear()

    def take_rest(self) -> bytes:
        """What follows the end of the list, as far as it was fed."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _ends_item(self, mark: bytes) -> bool:
        if self._in_string:
            if mark == b"\\":
                self._position += 1  # the character after it, which may come with the next chunk
            else:
                self._in_string = False
        elif mark == b'"':
            self._in_string = True
        elif mark in b"[{":
            self._depth += 1
            if self._depth == 1:  # the list itself begins
                self._drop_before_position()
        elif mark in b"]}":
            self._depth -= 1
            self.ended = self._depth == 0
            return self.ended
        else:
            return self._depth == 1
        return False

    def _take_item(self) -> Iterator[bytes | None]:
        item = bytes(self._buffer[: self._position - 1]).strip()
        self._drop_before_position()
        if self.ended and not self.count and not item and not self._too_long:
            return  # an empty list
        self.count += 1
        yield None if self._too_long else item
        self._too_long = False

    def _drop_before_position(self) -> None:
        del self._buffer[: self._position]
        self._position = 0
