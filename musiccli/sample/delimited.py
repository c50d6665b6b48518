"""CSV and TSV files: a header that names the columns, and one row of texts after the other."""

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record
from musiccli.core.row_messages import text_or_messages

ENCODINGS = {  # by the byte order mark; Excel writes UTF-16 as "Unicode text"
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}


def read_delimited(
    stream: BinaryIO, name: str, rejects: jsonl.Rejects, *, tabs: bool = False
) -> Iterator[Record]:
    """The rows of a CSV or TSV file.

    Every cell is a text. An empty cell is absent, and a cell that holds a JSON list of messages
    becomes that list. A cell may hold line breaks where it stands in quotation marks.

    Args:
        stream: the file's bytes, decompressed: UTF-8, or UTF-16 with a byte order mark.
        name: the file's name. A row is named by the line in which it begins.
        rejects: gets the rows that cannot be read.
        tabs: whether tabs separate the cells. Otherwise commas do, or semicolons where the header
            holds no comma.

    Raises:
        InputError: the header cannot be used.
        UnicodeDecodeError: the file begins like UTF-16, and is not.
    """
    lines = _Lines(_text(stream))
    header_line = lines.peek()
    if "\n" not in header_line and len(header_line) >= jsonl.MAX_LINE:
        raise InputError(f"{name}: {_too_long('header')}")
    delimiter = "\t" if tabs else _delimiter(header_line)
    csv.field_size_limit(jsonl.MAX_LINE)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(rows, name)
    while True:
        record, where = None, f"{name}:{lines.number + 1}"
        lines.begin_row()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except (csv.Error, _RowTooLongError) as error:
            with rejects.guard():
                raise RecordError(f"is no row of the table: {error}", where=where) from None
            continue
        if not cells:  # an empty line
            continue
        with rejects.guard(Record(dict(zip(header, map(_decodable, cells), strict=False)), where)):
            record = _record(header, cells, where)
        if record is not None:
            yield record


class _RowTooLongError(Exception):
    pass


class _Lines:
    """The lines of a file. A row of more than MAX_LINE characters is not read whole.

    Attributes:
        number: how many lines were read so far.
    """

    def __init__(self, text: TextIO) -> None:
        self._text, self._next = text, text.readline(jsonl.MAX_LINE)
        self.number, self._length = 0, 0

    def peek(self) -> str:
        """The next line."""
        return self._next

    def begin_row(self) -> None:
        """Count the characters of a row from here on."""
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._next
        if not line:
            raise StopIteration
        self.number += 1
        self._length += len(line)
        if len(line) == jsonl.MAX_LINE and not line.endswith("\n"):
            while (rest := self._text.readline(1 << 16)) and not rest.endswith("\n"):
                pass
        self._next = self._text.readline(jsonl.MAX_LINE)
        if self._length >= jsonl.MAX_LINE:
            raise _RowTooLongError(_too_long("row"))
        return line


def _too_long(part: str) -> str:
    return f"the {part} is longer than {jsonl.MAX_LINE >> 20} MB; a record is one conversation"


def _text(stream: BinaryIO) -> TextIO:
    """The text of a file. A byte that is not UTF-8 becomes a surrogate, which its row reports."""
    buffered = io.BufferedReader(stream)  # type: ignore[type-var]  # what peeks
    start = buffered.peek(3)
    encoding = next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8")
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(buffered, encoding, errors, newline="")


def _delimiter(header: str) -> str:
    """What separates the columns of a CSV file: Excel writes semicolons in much of Europe."""
    return next((mark for mark in ",;\t" if mark in header), ",")


def _header(rows: Iterator[list[str]], name: str) -> list[str]:
    """The names of the columns. One without a name, such as pandas' index, is named by its place.

    Raises:
        InputError: two columns have the same name, or there is no header.
    """
    try:
        names = next(rows, [])
    except (csv.Error, _RowTooLongError) as error:
        raise InputError(f"{name}: its header cannot be read: {error}") from None
    header = [text.strip() or f"column_{place}" for place, text in enumerate(names, start=1)]
    repeated = next((text for text in header if header.count(text) > 1), None)
    if repeated:
        raise InputError(f"{name}: two columns have the name {repeated}")
    if not header:
        raise InputError(f"{name}: its first line is empty; it should name the columns")
    return header


def _record(header: list[str], cells: list[str], where: str) -> Record:
    if len(cells) != len(header):
        raise RecordError(f"has {len(cells)} cells, but the header names {len(header)} columns")
    row = {
        column: _cell(column, text) if text else None
        for column, text in zip(header, cells, strict=True)
    }
    return Record(row, where)


def _decodable(text: str) -> str:
    """The text with "?" for each byte that is not UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _cell(column: str, text: str) -> Any:
    if _decodable(text) != text:
        raise RecordError("is not UTF-8; convert the file first", field=column)
    return text_or_messages(column, text)
