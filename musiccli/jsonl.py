"""Records in and out: files, pipes and compressed files, read and written one line at a time.

Only this file knows what `-`, `.gz` and `.zst` mean, and only this file opens standard input and output.
"""

import contextlib
import gzip
import io
import os
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import orjson
import zstandard

from musiccli.errors import InputError, RecordError
from musiccli.records import Record

MAX_LINE = 32 << 20  # bytes; a longer line is not a conversation, and reading it whole would not be bounded memory
FLUSH_SECONDS = 0.5  # how long a finished record may wait before the next stage of a pipe sees it
UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)


class Rejects:
    """What becomes of a bad record: it stops the run, or it is stepped over, counted and kept in a file."""

    def __init__(self, *, skip: bool = False, path: str | None = None, report: Callable[[str], None] = lambda _: None):
        self.skip, self.count, self.report = skip, 0, report
        self._output = Output(path) if path else None

    @contextlib.contextmanager
    def guard(self, record: Record | None = None) -> Iterator[None]:
        """Around the work on one record: a RecordError in it is counted here, or raised if bad records stop the run."""
        try:
            yield
        except RecordError as error:
            error.where = error.where or getattr(record, "where", None)
            error.record = error.record if error.record is not None else record
            if not self.skip:
                raise
            self.add(error, error.record)

    def add(self, error: Exception, record: object = None) -> None:
        """Count one failed record, say why, and keep it."""
        self.count += 1
        if self.count <= 10:
            self.report(str(error))
        elif self.count == 11:
            self.report("more bad records follow; they are counted, and kept by --rejects FILE")
        if self._output:
            whole = dict(record) if isinstance(record, dict) else {"line": record}
            self._output.write(whole | {"error": str(error)})

    def close(self) -> None:
        if self._output:
            self._output.close()


def read(paths: Iterable[str], parse: Callable[[Record], Record], rejects: Rejects | None = None, *,
         unique: bool = True) -> Iterator[Record]:
    """The records of several files, one after the other, each checked by `parse`; `-` or no path is standard input.

    A line that is no JSON object, a record that `parse` refuses and (if `unique`) a second record of the same id,
    branch and sample go to `rejects`. Raises InputError for a file that is missing, damaged or without any record.
    """
    paths = list(paths) or ["-"]
    for path in paths:
        if path != "-":
            check_readable(path)
    return _records(paths, parse, rejects or Rejects(), _Seen() if unique else None)


def _records(paths: list[str], parse: Callable, rejects: Rejects, seen: "_Seen | None") -> Iterator[Record]:
    for path in paths:
        name = "<stdin>" if path == "-" else path
        number = 0
        with open_input(path) as stream:
            for number, line in _lines(stream, name):
                if line is not None and line.isspace():
                    continue
                record = None
                with rejects.guard():
                    record = parse(_decode(line, f"{name}:{number}"))
                    if seen and not seen.add(record):
                        problem = f"{record['id']!r} stands here a second time; an id names one record"
                        record, bad = None, record
                        raise RecordError(problem, field="id", record=bad)
                if record is not None:
                    yield record
        if not number:
            hint = "; did the command before it fail?" if path == "-" else ""
            raise InputError(f"{name}: is empty; expected JSONL, one record a line{hint}")


def check_readable(path: str) -> None:
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; expected a JSONL file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")


@contextlib.contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its suffix; "-" is standard input."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as raw:
        if path.endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)
        elif path.endswith(".zst"):
            yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        else:
            yield raw


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None stands for one that is longer than MAX_LINE."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                line = None
            yield number, line
    except UNREADABLE as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{name}: damaged after line {number}: {error}") from error


def _decode(line: bytes | None, where: str) -> Record:
    if line is None:
        raise RecordError(f"the line is longer than {MAX_LINE >> 20} MB; a record is one conversation", where=where)
    try:
        value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        text = line.decode("utf-8", "replace").rstrip("\n")
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as wrong:
            raise RecordError(f"is not UTF-8 (byte {wrong.start + 1})", where=where, record=text) from None
        problem = f"is not JSON: {error.msg} (column {error.colno})"
        raise RecordError(problem, where=where, record=text) from None
    if not isinstance(value, dict):
        raise RecordError("is JSON, but not an object; a record is {...}", where=where,
                          record=line.decode("utf-8").rstrip("\n"))
    return Record(value, where)


class Output:
    """Where records go. A file is written beside its target and renamed by `close`: one that exists is whole."""

    def __init__(self, path: str | None = None):
        self.count, self._partial, self._target = 0, None, None
        self._flushed = time.monotonic()
        if path in (None, "-"):
            self._stream = sys.stdout.buffer
            return
        target = Path(path)
        if target.is_dir():
            raise InputError(f"{path}: is a folder; name a file to write")
        try:
            if target.exists() and not target.is_file():  # a device or a named pipe cannot be renamed onto
                raw = target.open("wb")
            else:
                self._target, self._partial = target, target.with_name(f".{target.name}.{os.getpid()}.partial")
                raw = self._partial.open("wb")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        if path.endswith(".gz"):
            self._stream = gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0)
        elif path.endswith(".zst"):
            self._stream = zstandard.ZstdCompressor().stream_writer(raw)
        else:
            self._stream = raw
        self._raw = raw

    def write(self, record: dict) -> None:
        self.write_bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.count += 1

    def write_bytes(self, data: bytes) -> None:
        """A record's line, or a piece of what is no record: a page, a picture."""
        self._stream.write(data)
        now = time.monotonic()
        if self._target is None and now - self._flushed > FLUSH_SECONDS:
            self._stream.flush()
            self._flushed = now

    def close(self) -> None:
        """Finish: what was written becomes visible under its name, whole."""
        if self._stream is sys.stdout.buffer:
            self._stream.flush()
            return
        if self._stream is not self._raw:
            self._stream.close()
        if not self._raw.closed:
            self._raw.flush()
            if self._partial:
                os.fsync(self._raw.fileno())
            self._raw.close()
        if self._partial:
            os.replace(self._partial, self._target)

    def discard(self) -> None:
        """Give up: nothing appears under the target's name."""
        if self._partial:
            with contextlib.suppress(OSError):
                self._raw.close()
                self._partial.unlink()


class _Seen:
    """A set of 64-bit hashes in one flat array: ids of a million records fit into 16 MB."""

    KEY = ("id", "branch", "sample", "best_of")

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, record: Record) -> bool:
        """Whether this id, branch and sample had not been seen before."""
        key = hash(tuple(record.get(field) for field in self.KEY)) & 0xFFFFFFFFFFFFFFFF or 1
        if self._count * 2 >= len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(16 * len(self._slots)))
            for other in filter(None, old):
                self._put(other)
        new = self._put(key)
        self._count += new
        return new

    def _put(self, key: int) -> bool:
        mask = len(self._slots) - 1
        slot = key & mask
        while self._slots[slot]:
            if self._slots[slot] == key:
                return False
            slot = (slot + 1) & mask
        self._slots[slot] = key
        return True
