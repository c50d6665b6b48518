"""How many calls may be in flight to one address: more after a success, half after an overload."""

import random
import time

INITIAL_LIMIT = 16  # calls in flight
CUT_INTERVAL = 1.0  # seconds in which several overloads count as one
# Part of the most calls in flight that a round of calls adds after an overload, at least one. A
# round may take half a minute: one call at a time, thousands would take days.
GROWTH = 1 / 64


class AdaptiveLimiter:
    """The limit of the calls in flight to one address, between 1 and `max_limit`.

    Additive increase, multiplicative decrease (Chiu and Jain, 1989). Until the first overload the
    limit doubles with every round of calls, as TCP's slow start does (RFC 5681).

    Attributes:
        max_limit: most calls ever in flight.
        limit: most calls in flight now; its whole part counts.
        in_flight: calls in flight now.
    """

    def __init__(self, max_limit: int):
        self.max_limit, self.in_flight = max_limit, 0
        self.limit = float(min(INITIAL_LIMIT, max_limit))
        self._slow_start = True
        self._last_cut = self._paused_until = 0.0  # monotonic time, in seconds

    @property
    def has_room(self) -> bool:
        """Whether another call may begin."""
        return self.in_flight < int(self.limit)

    @property
    def load(self) -> float:
        """The calls in flight as a part of the limit."""
        return self.in_flight / self.limit

    @property
    def pause(self) -> float:
        """Seconds until calls may begin again; 0 or less for now."""
        return self._paused_until - time.monotonic()

    def record_success(self) -> None:
        """Raise the limit after a call that succeeded and is still counted as in flight.

        A limit that is not half used stays: nothing shows that the server would take more
        (RFC 7661).
        """
        if 2 * self.in_flight >= int(self.limit):
            growth = max(1.0, GROWTH * self.max_limit)  # calls a round
            step = 1 if self._slow_start else min(1, growth / self.limit)
            self.limit = min(self.max_limit, self.limit + step)

    def record_overload(self, retry_after: float | None = None) -> None:
        """Halve the limit; no call starts before `retry_after` seconds have passed."""
        now, self._slow_start = time.monotonic(), False
        if now - self._last_cut >= CUT_INTERVAL:
            self.limit, self._last_cut = max(1.0, self.limit / 2), now
        self._paused_until = max(self._paused_until, now + (retry_after or 0))


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
