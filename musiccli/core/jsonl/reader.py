"""Read records from files and from standard input."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, NamedTuple, TextIO

import orjson

from musiccli.core import json_text
from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl.compression import FIRST_BYTES, read_errors, reading_stream
from musiccli.core.jsonl.identities import Identities
from musiccli.core.jsonl.rejects import Rejects
from musiccli.core.records import Record

MAX_LINE = 32 << 20  # bytes; a longer line is not read whole, which bounds the memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".ipc", ".feather")  # what music sample reads
SAMPLE_READS = "music sample makes records of such files"
STDIN_NAME = "<stdin>"  # in messages about standard input
STDIN_COPY = "MUSIC_STDIN"  # environment variable: the file that holds all of standard input
_reserved_stdin: list[TextIO | None] = []  # standard input, while `reserved_stdin` keeps it for us


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        where: "file:line".
        data: its bytes; None for a line that is longer than MAX_LINE.
    """

    where: str
    data: bytes | None


def read(
    paths: Iterable[str],
    parse: Callable[[Record], Record],
    rejects: Rejects | None = None,
    *,
    unique: bool = True,
) -> Iterator[Record]:
    """The records of several files, one file after the other.

    Args:
        paths: the files; "-", or no path at all, is standard input.
        parse: checks each record, and may change it; raises RecordError.
        rejects: handles lines that hold no JSON object, and records that `parse` refuses. By
            default the first one raises RecordError.
        unique: whether a second record with the same `identity_key` is a bad record.

    Raises:
        InputError: a file is missing, damaged or without any record.
    """
    return parse_lines(read_lines(paths), parse, rejects, unique=unique)


def parse_lines(
    lines: Iterator[Line],
    parse: Callable[[Record], Record],
    rejects: Rejects | None = None,
    *,
    unique: bool = True,
) -> Iterator[Record]:
    """The records in lines, checked as by `read`."""
    return _records(lines, parse, rejects or Rejects(), Identities() if unique else None)


def read_lines(paths: Iterable[str]) -> Iterator[Line]:
    """The lines of several files that are not blank, one file after the other.

    Args:
        paths: the files; "-", or no path at all, is standard input.

    Raises:
        InputError: a file is missing, damaged or without any record.
    """
    paths = list(paths) or ["-"]
    for path in paths:
        check_lines(path)
    return _lines_of_files(paths)


@dataclass
class RecordFiles:
    """The records of several files, of which it can be told whether they have changed.

    Attributes:
        paths: the files; "-", or no path at all, is standard input.
        parse: as in `read`.
        unique: as in `read`.
        read_count: how many records were read so far.
    """

    paths: list[str]
    parse: Callable[[Record], Record]
    unique: bool = True
    read_count: int = 0

    def __post_init__(self) -> None:
        """Raises InputError for a file that cannot be read."""
        self.paths = list(self.paths) or ["-"]
        for path in self.paths:
            check_lines(path)

    def __iter__(self) -> Iterator[Record]:
        """The records; the first bad one raises RecordError."""
        return self.read(Rejects())

    def read(self, rejects: Rejects) -> Iterator[Record]:
        """The records, as the function `read` gives them."""
        for record in read(self.paths, self.parse, rejects, unique=self.unique):
            self.read_count += 1
            yield record

    def first(self, count: int) -> list[Record] | None:
        """The first records, which are read once more later.

        None where they cannot be: a pipe can be read only once. The first bad one raises
        RecordError.
        """
        for path in self.paths:
            if not os.path.isfile(os.environ.get(STDIN_COPY, "") if path == "-" else path):
                return None
        return list(islice(read(self.paths, self.parse, unique=self.unique), count))

    def hashes(self) -> list[tuple[str, str]] | None:
        """The name and the SHA-256 of each file; None where one is a pipe."""
        hashes = []
        for path in self.paths:
            content = sha256(os.environ.get(STDIN_COPY, path) if path == "-" else path)
            if content is None:
                return None
            hashes.append((STDIN_NAME if path == "-" else path, content))
        return hashes


def _records(
    lines: Iterator[Line],
    parse: Callable[[Record], Record],
    rejects: Rejects,
    identities: Identities | None,
) -> Iterator[Record]:
    for line in lines:
        record = None
        with rejects.guard():
            parsed = parse(decode(line.data, line.where))
            if identities is not None:
                identities.add(parsed)
            record = parsed
        if record is not None:
            yield record


def _lines_of_files(paths: list[str]) -> Iterator[Line]:
    for path in paths:
        name = STDIN_NAME if path == "-" else path
        empty = True
        with open_input(path) as stream:
            for number, data in _lines(stream, name):
                if data is None or not data.isspace():
                    empty = False
                    yield Line(f"{name}:{number}", data)
        if empty:
            hint = "; did the command before it fail?" if path == "-" else ""
            raise InputError(f"{name}: is empty; expected JSONL, one record a line{hint}")


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number, from 1. None stands for a line that is longer than MAX_LINE."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(1 << 16)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            else:
                yield number, line
    except BrokenPipeError:  # raised by the output that the records go to, not by this file
        raise
    except read_errors() as error:
        position = f"after line {number}" if number else "at its start"
        raise InputError(f"{name}: damaged {position}: {error}") from error


def decode(line: bytes | None, where: str) -> Record:
    """The record in one line, or in one item of a JSON list. Raises RecordError.

    Args:
        line: its bytes; None stands for a line that is longer than MAX_LINE.
        where: "file:line", for errors.
    """
    if line is None:
        problem = f"the line is longer than {MAX_LINE >> 20} MB; a record is one conversation"
        raise RecordError(problem, where=where)
    try:
        value = json_text.decode(line.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        text = line.decode("utf-8", "replace").rstrip("\n")
        problem = str(error)
        if isinstance(error, orjson.JSONDecodeError):
            problem = _why_not_json(line, error)
        raise RecordError(problem, where=where, record=text) from None
    if not isinstance(value, dict):
        problem = "is JSON, but not an object; a record is {...}"
        if isinstance(value, list) and where.endswith(":1"):
            problem += f", one a line; {SAMPLE_READS}"
        text = line.decode("utf-8").rstrip("\n")
        raise RecordError(problem, where=where, record=text)
    return Record(value, where)


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    for first_bytes, suffix in FIRST_BYTES.items():
        if line.startswith(first_bytes):
            return f"is compressed; name the file {suffix}, or unpack it"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as decode_error:
        return f"is not UTF-8 (byte {decode_error.start + 1})"
    if line.strip() in (b"{", b"["):
        return (
            "is not JSON: it begins a value of several lines; expected one record a line, as "
            "jq -c writes it"
        )
    incomplete = "" if line.endswith(b"\n") else "; the file ends within this line"
    return f"is not JSON: {error.msg} (column {error.colno}){incomplete}"


def check_lines(path: str) -> None:
    """Raises InputError for a file that cannot be read, or that holds a table by its suffix."""
    if path == "-":
        return
    check_readable(path)
    if path.removesuffix(".gz").removesuffix(".zst").lower().endswith(TABLES):
        raise InputError(f"{path}: is no JSONL; {SAMPLE_READS}")


def check_readable(path: str) -> None:
    """Raises InputError for a file that is missing, empty, a folder or not allowed to be read."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; expected a JSONL file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise InputError(f"{path}: is empty; expected JSONL, one record a line")


@contextlib.contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by its suffix; "-" is standard input."""
    if path == "-" and STDIN_COPY not in os.environ:
        # This reference keeps the interpreter's exit from closing it while a thread still reads.
        stdin = standard_input()
        if stdin is None:
            raise InputError("<stdin>: is closed; name a file")
        yield stdin.buffer
        return
    with open(os.environ[STDIN_COPY] if path == "-" else path, "rb") as raw:
        yield reading_stream(path, raw)


@contextlib.contextmanager
def reserved_stdin() -> Iterator[None]:
    """Let only `open_input` read standard input: for all others, it is empty.

    Libraries that ask questions, and the programs that they start, would take records for answers.
    """
    stdin, null = sys.stdin, open(os.devnull)  # noqa: SIM115
    with contextlib.suppress(OSError, ValueError, AttributeError):  # it has no descriptor
        descriptor = stdin.fileno()
        copy = os.dup(descriptor)
        os.dup2(null.fileno(), descriptor)
        stdin = open(copy, encoding=stdin.encoding)  # noqa: SIM115
    _reserved_stdin.append(stdin)
    before, sys.stdin = sys.stdin, null
    try:
        yield
    finally:
        sys.stdin = before
        _reserved_stdin.pop()
        if stdin is not before:
            os.dup2(stdin.fileno(), before.fileno())


def standard_input() -> TextIO | None:
    """The standard input that records are read from; None where it is closed."""
    return _reserved_stdin[-1] if _reserved_stdin else sys.stdin


def from_stdin(paths: Iterable[str]) -> bool:
    """Whether reading `paths` reads standard input itself, not a copy of it."""
    return "-" in (list(paths) or ["-"]) and STDIN_COPY not in os.environ


def from_keyboard(paths: Iterable[str]) -> bool:
    """Whether reading `paths` waits for what somebody types."""
    stdin = standard_input()
    return from_stdin(paths) and stdin is not None and stdin.isatty()


@contextlib.contextmanager
def standard_input_as_file() -> Iterator[None]:
    """Copy standard input to a temporary file, which processes started within this context read.

    So each of these processes can read the whole input.
    """
    import shutil
    import tempfile

    with (
        open_input("-") as stdin,
        tempfile.NamedTemporaryFile(suffix=".jsonl", prefix="music-stdin-") as file,
    ):
        shutil.copyfileobj(stdin, file)
        file.flush()
        os.environ[STDIN_COPY] = file.name
        try:
            yield
        finally:
            del os.environ[STDIN_COPY]


def sha256(path: str) -> str | None:
    """A file's SHA-256 in hex digits; None for a pipe, which can be read only once."""
    from hashlib import file_digest

    if path == "-" or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
