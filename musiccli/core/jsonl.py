"""Records in and out: files, pipes and compressed files, read and written one line at a time.

Only this file knows what `-`, `.gz` and `.zst` mean, and only this file opens standard input and output.
"""

import contextlib
import io
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import orjson

from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import IDENTITY_FIELDS, Record, shortened

MAX_LINE = (
    32 << 20
)  # bytes; a longer line is not a conversation, and reading it whole would not be bounded memory
FLUSH_SECONDS = 0.5  # how long a finished record may wait before the next stage of a pipe sees it
STDIN = "MUSIC_STDIN"  # in the environment of processes that read standard input together: the file where it is kept
READ_ERRORS = (OSError, EOFError, zlib.error)
COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}  # how such a file begins


class Rejects:
    """What becomes of a bad record: it stops the run, or it is stepped over, counted and kept in a file."""

    def __init__(
        self,
        *,
        skip: bool = False,
        path: str | None = None,
        report: Callable[[str], None] = lambda _: None,
    ):
        self.skip, self.count, self.report = skip, 0, report
        self._output = open_output(path) if path else None

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


def read(
    paths: Iterable[str],
    parse: Callable[[Record], Record],
    rejects: Rejects | None = None,
    *,
    unique: bool = True,
) -> Iterator[Record]:
    """The records of several files, one after the other, each checked by `parse`; `-` or no path is standard input.

    A line that is no JSON object, a record that `parse` refuses and (if `unique`) a second record of the same id,
    branch and sample go to `rejects`. Raises InputError for a file that is missing, damaged or without any record.
    """
    paths = list(paths) or ["-"]
    for path in paths:
        if path != "-":
            check_readable(path)
    return _records(paths, parse, rejects or Rejects(), set() if unique else None)


def _records(
    paths: list[str], parse: Callable, rejects: Rejects, seen: set[int] | None
) -> Iterator[Record]:
    for path in paths:
        name = "<stdin>" if path == "-" else path
        empty = True
        with open_input(path) as stream:
            for number, line in _lines(stream, name):
                if line is not None and line.isspace():
                    continue
                record, empty = None, False
                with rejects.guard():
                    record = parse(_decode(line, f"{name}:{number}"))
                    if seen is not None:
                        identity = hash(repr([record.get(field) for field in IDENTITY_FIELDS]))
                        if identity in seen:
                            problem = f"{shortened(record['id'])} stands here a second time; an id names one record"
                            record, bad = None, record
                            raise RecordError(problem, field="id", record=bad)
                        seen.add(identity)
                if record is not None:
                    yield record
        if empty:
            hint = "; did the command before it fail?" if path == "-" else ""
            raise InputError(f"{name}: is empty; expected JSONL, one record a line{hint}")


def check_readable(path: str) -> None:
    """Raises InputError for a file that cannot be read, or holds nothing: better now than after hours on another."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; expected a JSONL file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise InputError(f"{path}: is empty; expected JSONL, one record a line")


def from_stdin(paths: Iterable[str]) -> bool:
    """Whether records would be read from standard input itself, not from the file where it is kept for several."""
    return "-" in (list(paths) or ["-"]) and STDIN not in os.environ


def from_keyboard(paths: Iterable[str]) -> bool:
    """Whether records would be read from a terminal, where somebody may not know that they are waited for."""
    return from_stdin(paths) and sys.stdin is not None and sys.stdin.isatty()


@contextlib.contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed by its suffix; "-" is standard input."""
    if path == "-" and STDIN not in os.environ:
        if sys.stdin is None:
            raise InputError("<stdin>: is closed; name a file")
        held = sys.stdin  # so that the interpreter's exit does not close it under a thread that still reads (inflight)
        yield held.buffer
        return
    with open(os.environ[STDIN] if path == "-" else path, "rb") as raw:
        if path.endswith(".gz"):
            from gzip import GzipFile

            yield GzipFile(fileobj=raw)
        elif path.endswith(".zst"):
            yield io.BufferedReader(_Unzstd(raw))
        else:
            yield raw


class _Unzstd(io.RawIOBase):
    """The bytes of a zstd file. zstandard's own reader takes a file that was cut off for a whole one."""

    PIECE = 1024  # compressed bytes at a time: zstd never makes more than 32 MB of them

    def __init__(self, raw: BinaryIO):
        self._raw, self._frame, self._left, self._ready = raw, None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready and self._more():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _more(self) -> bool:
        import zstandard

        piece = self._left or self._raw.read(self.PIECE)
        if not piece:
            if self._frame and not self._frame.eof:
                raise EOFError("the compressed file ends too early")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(piece))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._left = self._frame.unused_data
        return True


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None stands for one that is longer than MAX_LINE."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = None
                while (rest := stream.readline(1 << 16)) and not rest.endswith(b"\n"):
                    pass
            yield number, line
    except READ_ERRORS as error:
        if isinstance(error, BrokenPipeError):
            raise
        spot = f"after line {number}" if number else "at its start"
        raise InputError(f"{name}: damaged {spot}: {error}") from error


def _decode(line: bytes | None, where: str) -> Record:
    if line is None:
        raise RecordError(
            f"the line is longer than {MAX_LINE >> 20} MB; a record is one conversation",
            where=where,
        )
    try:
        value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        text = line.decode("utf-8", "replace").rstrip("\n")
        raise RecordError(_not_json(line, error), where=where, record=text) from None
    if not isinstance(value, dict):
        raise RecordError(
            "is JSON, but not an object; a record is {...}",
            where=where,
            record=line.decode("utf-8").rstrip("\n"),
        )
    return Record(value, where)


def _not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    for magic, suffix in COMPRESSED.items():
        if line.startswith(magic):
            return f"is compressed; name the file {suffix}, or unpack it"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"is not UTF-8 (byte {wrong.start + 1})"
    torn = "" if line.endswith(b"\n") else "; the file ends within this line"
    return f"is not JSON: {error.msg} (column {error.colno}){torn}"


class Output:
    """Where records go. A file is written beside its target and renamed by `close`: one that exists is whole."""

    def __init__(self, path: str | None = None):
        self.name, self.count, self._flushed = path or "-", 0, time.monotonic()
        self._partial = self._target = self._timer = None
        if self.name == "-":
            if sys.stdout is None:
                raise InputError("<stdout>: is closed; write to a file with -o FILE")
            self._stream = self._raw = sys.stdout.buffer
            if isinstance(
                self._raw, io.RawIOBase
            ):  # PYTHONUNBUFFERED: a write might take only part of a line
                self._stream = self._raw = io.BufferedWriter(
                    io.FileIO(sys.stdout.fileno(), "wb", closefd=False)
                )
            return
        if os.path.isdir(path):
            raise InputError(f"{path}: is a folder; name a file to write")
        try:
            self._raw = self._open(Path(path))
        except OSError as error:
            self._fail(error)
        self._stream = _compressed(path, self._raw)

    def _open(self, target: Path) -> BinaryIO:
        if (
            target.exists() and not target.is_file()
        ):  # a device or a named pipe cannot be renamed onto
            return target.open("wb")
        self._target = Path(os.path.realpath(target))  # what a link points to, not the link
        self._partial = self._target.with_name(f".{self._target.name}.{os.getpid()}.partial")
        raw = self._partial.open("wb")
        if self._target.exists():  # a private file stays private
            os.chmod(self._partial, self._target.stat().st_mode & 0o777)
        return raw

    @property
    def on_terminal(self) -> bool:
        """Whether people look at it as it is written."""
        return self.name == "-" and sys.stdout.isatty()

    def write(self, record: dict) -> None:
        self.write_bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.count += 1

    def write_bytes(self, data: bytes) -> None:
        """A record's line, or a piece of what is no record: a page, a picture."""
        try:
            self._stream.write(data)
            if self._target is None:
                self._flush_soon()
        except OSError as error:
            self._fail(error)

    def _flush_soon(self) -> None:
        """Whoever reads a pipe sees a record within FLUSH_SECONDS, also where no other follows it."""
        import threading

        now = time.monotonic()
        if now - self._flushed > FLUSH_SECONDS:
            self._stream.flush()
            self._flushed = now
        elif self._stream is self._raw and not self._timer:
            self._timer = threading.Timer(FLUSH_SECONDS, self._flush_now)
            self._timer.start()

    def _flush_now(self) -> None:
        self._timer = None  # before the flush: whoever writes from here on starts another
        with contextlib.suppress(
            OSError, ValueError
        ):  # the next write meets it, too; closed: nothing is left to flush
            self._raw.flush()

    def _stop_flushing(self) -> None:
        if timer := self._timer:
            timer.cancel()

    def close(self) -> None:
        """Finish: what was written becomes visible under its name, whole. Nothing after a discard."""
        self._stop_flushing()
        if self._raw.closed:
            return
        try:
            if self._stream is not self._raw:
                self._stream.close()
            self._raw.flush()
            if self._partial:
                os.fsync(self._raw.fileno())
            if self.name != "-":
                self._raw.close()
            if self._partial:
                os.replace(self._partial, self._target)
                self._partial = None
        except OSError as error:
            self.discard()
            self._fail(error)

    def discard(self) -> None:
        """Give up: nothing appears under the target's name; what went to standard output already stays there."""
        self._stop_flushing()
        try:
            if self.name != "-":
                self._raw.close()
            else:
                self._raw.flush()
        except OSError:  # nobody reads, or the disk is full
            if self.name == "-":
                silence_stdout()
        if self._partial:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, BrokenPipeError):  # no fault: whoever reads has seen enough
            raise error
        folder = os.path.dirname(self.name)
        reason = (
            "there is no such folder" if folder and not os.path.isdir(folder) else error.strerror
        )
        raise InputError(
            f"{'<stdout>' if self.name == '-' else self.name}: cannot be written: {reason}"
        ) from error


open_output = Output


def _compressed(path: str, raw: BinaryIO) -> BinaryIO:
    if path.endswith(".gz"):
        from gzip import GzipFile

        return GzipFile(fileobj=raw, mode="wb", filename="", mtime=0)
    if path.endswith(".zst"):
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return raw


def silence_stdout() -> None:
    """Let go of what could not be written: at its exit the interpreter would try once more, and complain."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sha256(path: str) -> str | None:
    """A file's SHA-256 in hex; None for a pipe, which can be read only once."""
    from hashlib import file_digest

    if path == "-" or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def same_file(one: str | None, other: str | None) -> bool:
    """Whether two outputs would go to one place; None and "-" are standard output."""
    one, other = one or "-", other or "-"
    return one == other or (
        "-" not in (one, other) and os.path.realpath(one) == os.path.realpath(other)
    )


@contextlib.contextmanager
def standard_input_as_file() -> Iterator[None]:
    """All of standard input in a file, which processes started within read in its place; gone afterwards."""
    import shutil
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".jsonl", prefix="music-stdin-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        os.environ[STDIN] = file.name
        try:
            yield
        finally:
            del os.environ[STDIN]
