"""How many calls may be under way: more while all is well, half as many when a provider says it is too much."""

import asyncio
import random
import time
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count

from musiccli.llm.concurrency import CURRENT_ITEM

FIRST, CUT_EVERY = 16, 1.0  # calls at the start; seconds in which several refusals count as one


class AdaptiveLimiter:
    """Additive increase, multiplicative decrease, between 1 and `most` calls in flight, after a start that doubles with
    every round until the first refusal (as TCP does)."""

    def __init__(self, most: int):
        self.most, self.limit, self.in_flight = most, float(min(FIRST, most)), 0
        self._waiting: list[
            tuple[int, int, asyncio.Future]
        ] = []  # a heap: the oldest item, then who asked first
        self._asked = count()
        self._starting = True
        self._last_cut = self._not_before = 0.0

    @asynccontextmanager
    async def slot(self):
        """A place among the calls in flight; of those that wait, the one for the oldest item gets it."""
        if self.in_flight < int(self.limit):
            self.in_flight += 1
        else:
            await self._turn()
        try:
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield
        finally:
            self._leave()

    async def _turn(self) -> None:
        """Wait until somebody hands over a place; it is counted as taken from that moment."""
        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (CURRENT_ITEM.get().number, next(self._asked), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def succeeded(self) -> None:
        self.limit = min(self.most, self.limit + (1 if self._starting else 1 / self.limit))
        self._wake()

    def refused(self, retry_after: float | None = None) -> None:
        """The provider said it is too much; nobody starts before `retry_after` seconds have passed."""
        now, self._starting = time.monotonic(), False
        if now - self._last_cut >= CUT_EVERY:
            self.limit, self._last_cut = max(1.0, self.limit / 2), now
        self._not_before = max(self._not_before, now + (retry_after or 0))

    def _wake(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            *_, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self.in_flight += 1


def backoff(attempt: int, quota: bool = False, most: float = 60.0) -> float:
    """Seconds to wait before attempt 1, 2, ...: exponential with full jitter. Where a `quota` is spent that comes back
    within a minute, as most do, six attempts last longer than one: six times as long, and at least half of that."""
    longest = min(most, (3.0 if quota else 0.5) * 2**attempt)
    return random.uniform(longest / 2 if quota else 0, longest)
