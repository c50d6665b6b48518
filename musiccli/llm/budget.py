"""The budget of a run: an item of work starts only if the rest will probably pay for all of it."""

import asyncio
import math
from collections.abc import Callable

from musiccli.llm.concurrency import CURRENT_ITEM, UNSAID_WAIT, WorkItem

UNPRICED_ITEMS = 4  # items that start before one has finished and shown what an item costs
POLL_SECONDS = 0.05  # between two looks whether an item has finished


class LimitReached(Exception):
    """The budget is spent, or the rest of it is needed by the items that have started."""


class Budget:
    """US dollars that a run may spend.

    The expected cost of an item is the mean cost of the finished ones. An item starts only if the
    budget covers its expected cost and what the started ones are still expected to cost.

    Args:
        max_cost: US dollars; infinite for no limit.
        say: tells people something.

    Attributes:
        max_cost: the same.
        spent: US dollars spent so far.
    """

    def __init__(self, max_cost: float, say: Callable[[str], None] = lambda text: None):
        self.max_cost, self.spent, self._say = max_cost, 0.0, say
        self._is_wait_announced = False
        self._started: dict[WorkItem, float] = {}  # what each unfinished item has cost so far
        self._finished_items, self._finished_cost = 0, 0.0

    async def start_item(self) -> None:
        """Call this before every call of an item; only the first one has an effect.

        Raises:
            LimitReached: the budget would probably not finish the item.
        """
        item = CURRENT_ITEM.get()
        if self.max_cost == math.inf or item in self._started:
            return
        self._collect_finished()
        while len(self._started) >= UNPRICED_ITEMS and not self._finished_items:
            await asyncio.sleep(POLL_SECONDS)
            self._collect_finished()
        if item in self._started:  # by another of its calls meanwhile
            return
        expected = self._finished_cost / self._finished_items if self._finished_items else 0.0
        promised = sum(max(0.0, expected - cost) for cost in self._started.values())
        if self.spent + expected + promised > self.max_cost:
            raise self._limit_reached()
        self._started[item] = 0.0

    def check(self) -> None:
        """Raises LimitReached where nothing is left for another call."""
        if self.spent >= self.max_cost:
            raise self._limit_reached()

    def _limit_reached(self) -> LimitReached:
        """The error for the current item. Once the others take longer, it is said why."""
        if not self._is_wait_announced:
            self._is_wait_announced = True
            asyncio.get_running_loop().call_later(UNSAID_WAIT, self._say_wait)
        return LimitReached()

    def _say_wait(self) -> None:
        count = sum(not item.done for item in self._started)
        if count:
            begun = "1 record that has" if count == 1 else f"{count:,} records that have"
            self._say(f"`max_cost` suffices for nothing more; waiting for {begun} begun")

    def charge(self, cost: float) -> None:
        """Spend US dollars on a call of the current item."""
        self.spent += cost
        if cost and self.max_cost < math.inf:
            item = CURRENT_ITEM.get()
            self._started[item] = self._started.get(item, 0.0) + cost

    def _collect_finished(self) -> None:
        for item in [item for item in self._started if item.done]:
            self._finished_items += 1
            self._finished_cost += self._started.pop(item)
