"""Write records to a file, to standard output, to a device or to a named pipe."""

import contextlib
import errno
import io
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from musiccli.core import json_text
from musiccli.core.errors import InputError
from musiccli.core.jsonl.compression import writing_stream
from musiccli.core.partial_files import create_partial, is_at

FLUSH_SECONDS = 0.5  # how long a record may wait before the reader of a pipe sees it


def open_output(path: str | None = None) -> "Output":
    """Open a file for writing, compressed by its suffix. None, "" and "-" are standard output.

    Raises:
        InputError: it cannot be written.
    """
    if not path or path == "-":
        return StandardOutput()
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name a file to write")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return StreamOutput(path, open(path, "wb"))
        return FileOutput(path)
    except OSError as error:
        _raise_unwritable(path, error)


class Output:
    """Where records go. `open_output` opens one of the classes below.

    Attributes:
        name: the path, or "-" for standard output.
        count: how many records were written.
    """

    def __init__(self, name: str, raw: BinaryIO) -> None:
        self.name, self.count = name, 0
        self._raw = raw
        self._stream = writing_stream(name, raw)

    @property
    def on_terminal(self) -> bool:
        """Whether people see the records as they are written."""
        return False

    def write(self, record: Mapping[str, Any] | bytes) -> None:
        """Write one record, or its JSON, as a line. Raises InputError if that fails."""
        line = record if isinstance(record, bytes) else json_text.encode(record)
        self.write_bytes(line + b"\n")
        self.count += 1

    def write_bytes(self, data: bytes) -> None:
        """Write bytes that are not a record, such as a page or a picture."""
        try:
            self._stream.write(data)
            self._after_write()
        except OSError as error:
            _raise_unwritable(self.name, error)

    def close(self) -> None:
        """Complete the output. Does nothing after `discard`."""
        if self._raw.closed:
            return
        try:
            if self._stream is not self._raw:
                self._stream.close()  # writes what the compressor still holds
            self._raw.flush()
            self._complete()
        except OSError as error:
            self.discard()
            _raise_unwritable(self.name, error)

    def discard(self) -> None:
        """Give up. A file is left as it was; what was written to a stream stays there."""
        with contextlib.suppress(OSError):
            self._raw.close()

    def _after_write(self) -> None: ...

    def _complete(self) -> None:
        self._raw.close()


class FileOutput(Output):
    """A file, written beside its target and renamed by `close`. So a target is always complete.

    Until then nobody else may read it. The complete file has the mode of the file that it replaces,
    or the one that the umask gives a new file.
    """

    def __init__(self, path: str) -> None:
        self._target = Path(os.path.realpath(path))  # what a link points to, not the link
        self._partial, descriptor = create_partial(self._target, path)
        super().__init__(path, open(descriptor, "wb"))  # noqa: SIM115

    def discard(self) -> None:
        if self._raw.closed:
            return
        with contextlib.suppress(OSError):  # it may be renamed or removed already
            if is_at(self._partial, self._raw.fileno()):
                self._partial.unlink()
        super().discard()  # the lock ends now

    def _complete(self) -> None:
        descriptor = self._raw.fileno()
        os.fsync(descriptor)
        with contextlib.suppress(OSError):  # a file system without modes
            os.fchmod(descriptor, self._final_mode())
        if not is_at(self._partial, descriptor):
            raise OSError(errno.ESTALE, "another run has removed its partial file")
        self._partial.replace(self._target)
        self._raw.close()

    def _final_mode(self) -> int:
        if self._target.exists():
            return self._target.stat().st_mode & 0o777
        umask = os.umask(0o077)  # the only way to read it is to set it
        os.umask(umask)
        return 0o666 & ~umask


class StreamOutput(Output):
    """A device or a named pipe, which is written in place."""

    def __init__(self, name: str, raw: BinaryIO) -> None:
        super().__init__(name, raw)
        self._flush = DelayedFlush(self._stream, timer=self._stream is raw)

    def close(self) -> None:
        self._flush.cancel()
        super().close()

    def discard(self) -> None:
        self._flush.cancel()
        super().discard()

    def _after_write(self) -> None:
        self._flush.after_write()


class StandardOutput(StreamOutput):
    """Standard output. It stays open."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise InputError("<stdout>: is closed; write to a file with `output`")
        stream = sys.stdout.buffer
        if isinstance(stream, io.RawIOBase):  # PYTHONUNBUFFERED: it may write a part of a line
            stream = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False))
        super().__init__("-", stream)

    @property
    def on_terminal(self) -> bool:
        return sys.stdout.isatty()

    def discard(self) -> None:
        self._flush.cancel()
        try:
            self._raw.flush()
        except OSError:  # nobody reads, or the disk is full
            silence_stdout()

    def _complete(self) -> None: ...


class DelayedFlush:
    """Flushes a stream within FLUSH_SECONDS of a write.

    Without a `timer` it flushes only when another write follows. Compressed streams have no timer,
    because two threads may not use them at once.
    """

    def __init__(self, stream: BinaryIO, *, timer: bool) -> None:
        self._stream, self._use_timer = stream, timer
        self._timer: threading.Timer | None = None
        self._flushed = time.monotonic()

    def after_write(self) -> None:
        """Flush now if the last flush is long ago, else start the timer."""
        now = time.monotonic()
        if now - self._flushed > FLUSH_SECONDS:
            self._stream.flush()
            self._flushed = now
        elif self._use_timer and not self._timer:
            self._timer = threading.Timer(FLUSH_SECONDS, self._flush)
            self._timer.start()

    def cancel(self) -> None:
        """Stop the timer."""
        if timer := self._timer:
            timer.cancel()

    def _flush(self) -> None:
        self._timer = None  # before the flush: a write that follows starts another
        # The next write meets an OSError, too. ValueError: the stream is closed, and so complete.
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _raise_unwritable(name: str, error: OSError) -> NoReturn:
    """Raises InputError, but a BrokenPipeError again: that the reader stopped is no failure."""
    if isinstance(error, BrokenPipeError):
        raise error
    folder = os.path.dirname(name)
    missing = bool(folder) and not os.path.isdir(folder)
    reason = "there is no such folder" if missing else error.strerror
    shown = "<stdout>" if name == "-" else name
    raise InputError(f"{shown}: cannot be written: {reason}") from error


def silence_stdout() -> None:
    """Discard what standard output still buffers: writing it when Python exits would fail."""
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
