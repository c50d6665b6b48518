"""Compressed files. The suffix of the name decides: `.gz` is gzip, `.zst` is Zstandard."""

import sys
import zlib
from types import ModuleType
from typing import BinaryIO, cast

ZSTD = b"\x28\xb5\x2f\xfd"
FIRST_BYTES = {b"\x1f\x8b": ".gz", ZSTD: ".zst"}  # RFC 1952 and RFC 8878


def reading_stream(path: str, raw: BinaryIO) -> BinaryIO:
    """The decompressed bytes of a file that is open for reading."""
    if path.endswith(".gz"):
        from gzip import GzipFile

        return cast(BinaryIO, GzipFile(fileobj=raw))
    if path.endswith(".zst"):
        return cast(BinaryIO, _zstd().ZstdFile(raw))
    return raw


def writing_stream(path: str, raw: BinaryIO) -> BinaryIO:
    """A stream that compresses into a file that is open for writing.

    It must be closed before `raw`. The same bytes give the same file: gzip's header has no time.
    """
    if path.endswith(".gz"):
        from gzip import GzipFile

        return cast(BinaryIO, GzipFile(fileobj=raw, mode="wb", filename="", mtime=0))
    if path.endswith(".zst"):
        return cast(BinaryIO, _zstd().ZstdFile(raw, "w"))
    return raw


def compress(data: bytes) -> bytes:
    """The bytes as one frame of Zstandard."""
    compressed: bytes = _zstd().compress(data)
    return compressed


def decompress(data: bytes) -> bytes:
    """The bytes that a frame of Zstandard holds; others, as JSON, are returned as they are.

    Raises:
        ValueError: the frame is damaged.
    """
    if not data.startswith(ZSTD):
        return data
    try:
        content: bytes = _zstd().decompress(data)
    except _zstd().ZstdError as error:
        raise ValueError(str(error)) from error
    return content


def read_errors() -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged file may raise. EOFError: the file was cut off."""
    return (OSError, EOFError, zlib.error, _zstd().ZstdError)


def _zstd() -> ModuleType:
    """Python's own module from 3.14 on, and the same module from PyPI before that."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
