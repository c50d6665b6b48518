"""How far the money goes: what is begun should also be finished."""

import asyncio
import math

from musiccli.llm.concurrency import CURRENT_ITEM, WorkItem

FIRST = 4  # items that begin before one has finished: until then nobody knows what an item costs
LOOK = 0.05  # seconds between two looks whether one has


class LimitReached(Exception):
    """The run has spent what `--max-cost` allows, or will have when what is under way is finished."""


class Budget:
    """US dollars that may be spent, `most` in all.

    An item of work begins only while the money is enough for it and for those under way, each reckoned at what a
    finished one has cost on average.
    """

    def __init__(self, most: float):
        self.most, self.spent = most, 0.0
        self._paid: dict[WorkItem, float] = {}  # by the items under way
        self._finished, self._cost = 0, 0.0  # items that are done, and what they cost together

    async def begin(self) -> None:
        """Before an item's first call, and without effect before its others. Raises LimitReached where the money would
        not finish it."""
        place = CURRENT_ITEM.get()
        if self.most == math.inf or place in self._paid:
            return
        self._settle()
        while len(self._paid) >= FIRST and not self._finished:
            await asyncio.sleep(LOOK)
            self._settle()
        usual = self._cost / self._finished if self._finished else 0.0
        if (
            self.spent + usual + sum(max(0.0, usual - paid) for paid in self._paid.values())
            > self.most
        ):
            raise LimitReached
        self._paid[place] = 0.0

    def check(self) -> None:
        """Raises LimitReached where nothing is left for another call."""
        if self.spent >= self.most:
            raise LimitReached

    def pay(self, cost: float) -> None:
        self.spent += cost
        if cost and self.most < math.inf:
            self._paid[CURRENT_ITEM.get()] = self._paid.get(CURRENT_ITEM.get(), 0.0) + cost

    def _settle(self) -> None:
        for place in [place for place in self._paid if place.done]:
            self._finished, self._cost = self._finished + 1, self._cost + self._paid.pop(place)
