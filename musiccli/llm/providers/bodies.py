"""Bodies of HTTP answers, read up to a limit and unpacked within it."""

import zlib
from collections.abc import Iterator

from musiccli.llm.provider_errors import OversizedReply, ProviderError

ACCEPT_ENCODING = "gzip, deflate"  # what `Body` unpacks
MAX_ERROR_BODY = 64 << 10  # bytes that are read of an error's body; its message stands early
OVERHEAD = 1 << 20  # bytes of a reply's body beside its text
# Bytes for each token the reply may have: the longest tokens have 128 letters, and JSON may write
# each byte of a letter as two or three.
BYTES_PER_TOKEN = 512
MAX_REPLY_BODY = 32 << 20  # bytes; a record that holds more would not be read again
PIECE = 64 << 10  # bytes that are unpacked at once


def body_limit(status: int, max_tokens: int) -> int:
    """The bytes that are read of an answer, unpacked."""
    if status >= 300:
        return MAX_ERROR_BODY
    return min(MAX_REPLY_BODY, OVERHEAD + BYTES_PER_TOKEN * max_tokens)


class Body:
    """A body as it arrives.

    Args:
        status: the HTTP status. Of an error only the start is kept; a reply that is too large is
            refused.
        encoding: the header Content-Encoding.
        max_tokens: the longest reply that was asked for.

    Raises:
        ProviderError: the body is packed in a way that was not asked for.
    """

    def __init__(self, status: int, encoding: str | None, max_tokens: int):
        self._limit, self._is_error = body_limit(status, max_tokens), status >= 300
        self._bytes = bytearray()
        encoding = (encoding or "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ProviderError(f"the body is packed as {encoding[:40]}, which was not asked for")
        self._unpacker = None if encoding == "identity" else _Unpacker()

    def add(self, chunk: bytes) -> bool:
        """Take a chunk as it came over the wire. Returns whether more is wanted.

        Raises:
            OversizedReply: the reply is larger than it may be.
            ProviderError: the chunk does not unpack.
        """
        for piece in self._unpacker.unpack(chunk) if self._unpacker else (chunk,):
            self._bytes += piece[: self._limit + 1 - len(self._bytes)]
            if len(self._bytes) > self._limit:
                if self._is_error:
                    return False
                raise OversizedReply(self._limit)
        return True

    def value(self) -> bytes:
        """The body so far."""
        return bytes(memoryview(self._bytes)[: self._limit])


class _Unpacker:
    """Unpacks gzip and deflate in pieces: a small chunk may hold gigabytes."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(47)  # zlib or gzip, by the first bytes
        self._started = False

    def unpack(self, chunk: bytes) -> Iterator[bytes]:
        """The pieces that a chunk holds, each of at most PIECE bytes."""
        while chunk:
            try:
                yield self._zlib.decompress(chunk, PIECE)
            except zlib.error as error:
                if self._started:
                    raise ProviderError("the body does not unpack") from error
                self._zlib = zlib.decompressobj(-15)  # some servers send deflate without a head
                self._started = True
                continue
            self._started = True
            chunk = self._zlib.unconsumed_tail
            if self._zlib.eof and self._zlib.unused_data:  # gzip may have several members
                chunk, self._zlib = self._zlib.unused_data, zlib.decompressobj(47)
