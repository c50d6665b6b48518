"""Asks a server for rewards: a batch goes in pieces, a few at once, and rewards keep their order.

A piece is small enough for every `music serve`, and for proxies as they come: nginx takes a body of
1 MB, and a reply within 60 s. One that is refused for its size, or not done in time, is halved.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event, Thread
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from musiccli.core.errors import CallError, InputError, RecordError
from musiccli.core.json_text import check_depth, decode, encode
from musiccli.core.retry_after import parse_retry_after
from musiccli.serve.config import MIN_MAX_BODY
from musiccli.serve.served_model import Reply

PIECE_BYTES = MIN_MAX_BODY << 20  # of one request; a larger conversation is alone in its own
PIECE_CONVERSATIONS = 64  # in one request: four of them fill what the server deals together
FEWEST = 8  # conversations in a request of a server that was too slow for more
IN_FLIGHT = 4  # requests of one call: while one is computed, tokens are made of the next
ATTEMPTS = 8  # of a request to a restarting server
LONGEST_WAIT = 30.0  # seconds between two attempts
LONGEST_BUSY = 1800.0  # seconds for which a busy server may send one request away
SILENCE = 8.0  # seconds; a longer wait is logged
TIMEOUT = 300.0  # seconds for one reply
TOO_SLOW = (408, 504, 524)  # the last is Cloudflare's
KEY_VARIABLE = "MUSIC_API_KEY"  # the environment variable with the server's key

logger = logging.getLogger(__name__)


class _TooMuch(Exception):
    """A piece was refused for its size, or took too long.

    Attributes:
        too_slow: whether it took too long.
    """

    def __init__(self, problem: str, *, too_slow: bool) -> None:
        self.too_slow = too_slow
        super().__init__(problem)


class _Retry(Exception):
    """A request that should be sent again.

    Attributes:
        wait: seconds until then, where the server said so.
        busy: whether the server is well, and has too much to do.
    """

    def __init__(self, problem: str, wait: float | None = None, *, busy: bool = False) -> None:
        self.wait, self.busy = wait, busy
        super().__init__(problem)


@dataclass(frozen=True)
class _Piece:
    """Conversations of one request, as JSON.

    Attributes:
        first: the index of its first conversation in the caller's list.
        texts: its conversations.
    """

    first: int
    texts: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.texts)

    def halves(self) -> "tuple[_Piece, _Piece]":
        """Two pieces, where there is more than one conversation."""
        middle = len(self.texts) // 2
        left, right = self.texts[:middle], self.texts[middle:]
        return _Piece(self.first, left), _Piece(self.first + middle, right)

    def body(self, per_turn: bool) -> bytes:
        """The body of its request."""
        flags = b'"allow_empty_reply":true,"per_turn":%s' % (b"true" if per_turn else b"false")
        return b'{%s,"messages":[%s]}' % (flags, b",".join(self.texts))


class RewardClient:
    """What asks one server. Threads and processes may share it.

    Args:
        address: of the server, as "http://127.0.0.1:8000".

    Raises:
        InputError: it is no address.
    """

    def __init__(self, address: str) -> None:
        self._url = f"{address.rstrip('/')}/classify"
        try:
            parts = urlsplit(self._url)
            is_address = bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise InputError(f"{address}: expected the address of a server, as http://HOST:PORT")
        self._logged = -SILENCE
        self._most = PIECE_CONVERSATIONS  # in a request; fewer once the server was too slow

    def score(self, replies: Sequence[Reply], per_turn: bool) -> list[list[float]]:
        """The rewards of each conversation: after every turn, or after the last alone.

        Raises:
            RecordError: a conversation cannot be scored. It says which.
            CallError: the server does not answer, or not as `music serve` does.
        """
        pieces, stopped = list(_pieces(list(_as_json(replies)))), Event()
        if len(pieces) == 1:
            return self._ask(pieces[0], per_turn, stopped)
        waiting = deque((piece, Future[list[list[float]]]()) for piece in pieces)
        futures = [future for _, future in waiting]

        def ask_pieces() -> None:
            while waiting and not stopped.is_set():
                try:
                    piece, future = waiting.popleft()
                except IndexError:  # another thread took the last
                    return
                try:
                    future.set_result(self._ask(piece, per_turn, stopped))
                except BaseException as error:
                    future.set_exception(error)

        for _ in range(min(IN_FLIGHT, len(pieces))):
            Thread(target=ask_pieces, daemon=True, name="rewards").start()  # Ctrl-C waits for none
        try:
            return [rewards for future in futures for rewards in future.result()]
        finally:
            stopped.set()

    def _ask(self, piece: _Piece, per_turn: bool, stopped: Event) -> list[list[float]]:
        """The rewards of a piece, of its halves where the whole is too much."""
        if len(piece) <= self._most:
            try:
                return self._repeat(piece, per_turn, stopped)
            except _TooMuch as error:
                if error.too_slow:
                    self._most = max(FEWEST, min(self._most, len(piece) // 2))
        rewards = []
        for half in piece.halves():
            rewards += self._ask(half, per_turn, stopped)
        return rewards

    def _repeat(self, piece: _Piece, per_turn: bool, stopped: Event) -> list[list[float]]:
        """The rewards of a piece, asked for again while the server is busy or away.

        Raises:
            RecordError: a conversation cannot be scored.
            CallError: the server does not answer.
            _TooMuch: it has several conversations, and fewer would be better.
        """
        body, problem, wait = piece.body(per_turn), "", 0.0
        failures, busy = 0, 0.0
        while failures < ATTEMPTS and busy < LONGEST_BUSY:
            if problem and stopped.wait(wait):
                break
            wait = min(2.0**failures, LONGEST_WAIT)
            try:
                return self._send(body, piece, per_turn)
            except _TooMuch as error:
                if len(piece) > 1:
                    raise
                problem, failures = str(error), failures + 1
            except _Retry as error:
                problem = str(error)
                wait = min(error.wait or wait, LONGEST_WAIT)
                if error.busy:
                    busy += wait
                else:
                    failures += 1
            self._log(problem, wait)
        raise CallError(f"{self._url}: {problem}")

    def _log(self, problem: str, wait: float) -> None:
        """Log why a wait is long, once for all requests that wait for the same."""
        now = time.monotonic()
        if wait >= SILENCE and now - self._logged >= SILENCE:
            self._logged = now
            logger.warning("%s: %s; asking again in %g s", self._url, problem, wait)

    def _send(self, body: bytes, piece: _Piece, per_turn: bool) -> list[list[float]]:
        """The rewards of a piece, by one request.

        Raises:
            RecordError: a conversation cannot be scored.
            CallError: the server refuses the request, and always will.
            _TooMuch: a smaller request may succeed.
            _Retry: the same request may succeed later.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        try:
            with urlopen(Request(self._url, body, headers), timeout=TIMEOUT) as reply:
                return _read_rewards(reply.read(), piece, per_turn)
        except HTTPError as error:
            raise self._read_error(error, piece) from None
        except TimeoutError:
            raise _TooMuch(f"no reply within {TIMEOUT:g} s", too_slow=True) from None
        except (URLError, HTTPException, OSError) as error:
            raise _Retry(str(getattr(error, "reason", "") or error)) from None
        except ValueError as error:
            raise _Retry(str(error)) from None

    def _read_error(self, error: HTTPError, piece: _Piece) -> Exception:
        """What a reply means that is no success."""
        problem, items = f"HTTP status {error.code}", []
        try:
            fields = decode(error.read())["error"]
            problem, items = str(fields["message"]), list(fields.get("errors") or [])
            if error.code == 400 and items:
                return _bad_conversation(piece, int(items[0]["index"]), items[0]["message"])
        except (ValueError, LookupError, TypeError, AttributeError, OSError, HTTPException):
            pass  # it is not the reply of `music serve`, but of what stands before it
        if error.code in TOO_SLOW:
            return _TooMuch(problem, too_slow=True)
        if error.code == 413:
            if len(piece) == 1:
                return _bad_conversation(piece, 0, problem)
            return _TooMuch(problem, too_slow=False)
        if error.code == 429 or error.code >= 500:
            wait = parse_retry_after(error.headers.get("Retry-After"))
            return _Retry(problem, wait, busy=error.code == 429)
        if error.code == 401:
            problem = f"{problem} (set {KEY_VARIABLE})"
        return CallError(f"{self._url}: {problem}")


def _as_json(replies: Sequence[Reply]) -> Iterator[bytes]:
    """Each conversation as requests hold it.

    Raises:
        RecordError: one holds what is no JSON. It says which.
    """
    for number, reply in enumerate(replies):
        conversation = {"messages": reply.messages, "tools": reply.tools}
        try:
            check_depth([[conversation]])  # a body has two levels more
            yield encode(conversation)
        except (TypeError, ValueError) as error:
            raise RecordError(str(error), where=f"conversation {number}") from None


def _pieces(texts: Sequence[bytes]) -> Iterator[_Piece]:
    """Conversations in pieces of as many as one request may have."""
    envelope = len(_Piece(0, ()).body(per_turn=False))
    first, size = 0, envelope
    for number, text in enumerate(texts):
        size += len(text) + 1
        if number > first and (size > PIECE_BYTES or number - first == PIECE_CONVERSATIONS):
            yield _Piece(first, texts[first:number])
            first, size = number, envelope + len(text) + 1
    yield _Piece(first, texts[first:])


def _read_rewards(raw: bytes, piece: _Piece, per_turn: bool) -> list[list[float]]:
    """The rewards in a reply.

    Raises:
        RecordError: a conversation cannot be scored. It says which.
        ValueError: it is no reply of `music serve` to this piece.
    """
    try:
        data = decode(raw)["data"]
        if len(data) != len(piece):
            raise ValueError
        rewards = []
        for number, item in enumerate(data):
            if "error" in item:
                raise _bad_conversation(piece, number, item["error"]["message"])
            rewards.append([float(value) for value in item["turn_scores" if per_turn else "probs"]])
    except (ValueError, LookupError, TypeError):
        count = len(piece)
        raise ValueError(f"the reply is not that of music serve to {count} conversations") from None
    if not all(rewards):
        raise ValueError("the reply holds a conversation without a reward")
    return rewards


def _bad_conversation(piece: _Piece, number: int, problem: Any) -> RecordError:
    """The error of a conversation of a piece, by its index in the caller's list."""
    return RecordError(str(problem), where=f"conversation {piece.first + number}")
