"""How many calls may be in flight: more after a success, half as many after an overload."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count

from musiccli.llm.concurrency import CURRENT_ITEM

INITIAL_LIMIT = 16  # calls in flight
CUT_INTERVAL = 1.0  # seconds in which several overloads count as one


class AdaptiveLimiter:
    """Limits the calls in flight, between 1 and `max_limit`.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989). Until the first overload the
    limit doubles with every round of calls, as TCP's slow start does (RFC 5681).

    Attributes:
        max_limit: most calls ever in flight.
        limit: most calls in flight now; its whole part counts.
        in_flight: calls in flight now.
    """

    def __init__(self, max_limit: int):
        self.max_limit, self.limit, self.in_flight = (
            max_limit,
            float(min(INITIAL_LIMIT, max_limit)),
            0,
        )
        # A heap: the oldest item goes first, then whoever asked first.
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = count()
        self._slow_start = True
        self._last_cut = self._paused_until = 0.0  # monotonic time, in seconds

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A slot among the calls in flight. The oldest item's call gets the next free one."""
        if self.in_flight < int(self.limit):
            self.in_flight += 1
        else:
            await self._wait_for_slot()
        try:
            while (wait := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            self._release()

    def record_success(self) -> None:
        """Raise the limit after a call that succeeded."""
        step = 1 if self._slow_start else 1 / self.limit
        self.limit = min(self.max_limit, self.limit + step)
        self._hand_out_slots()

    def record_overload(self, retry_after: float | None = None) -> None:
        """Halve the limit; no call starts before `retry_after` seconds have passed."""
        now, self._slow_start = time.monotonic(), False
        if now - self._last_cut >= CUT_INTERVAL:
            self.limit, self._last_cut = max(1.0, self.limit / 2), now
        self._paused_until = max(self._paused_until, now + (retry_after or 0))

    async def _wait_for_slot(self) -> None:
        """Wait for a slot. It counts as taken from the moment at which it is handed over."""
        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (CURRENT_ITEM.get().number, next(self._ticket), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self.in_flight -= 1
        self._hand_out_slots()

    def _hand_out_slots(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            *_, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self.in_flight += 1


def backoff(attempt: int, quota: bool = False, max_seconds: float = 60.0) -> float:
    """Seconds to wait after attempt 1, 2, ...: exponential, with full jitter.

    Args:
        attempt: the attempt that failed.
        quota: whether a quota is used up. Most come back within a minute, so the wait is six times
            as long and at least half of that: six attempts then last longer than a minute.
        max_seconds: the longest wait.
    """
    longest = min(max_seconds, (3.0 if quota else 0.5) * 2**attempt)
    return random.uniform(longest / 2 if quota else 0, longest)
