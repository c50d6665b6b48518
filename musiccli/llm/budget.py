"""How far the money goes: what is begun should also be finished."""

import math

from musiccli.llm.inflight import PLACE, Place


class LimitReached(Exception):
    """The run has spent what `--max-cost` allows, or will have when what is under way is finished."""


class Budget:
    """US dollars that may be spent, `most` in all.

    An item of work begins only while the money is enough for it and for those under way, each reckoned at what a
    finished one has cost on average.
    """

    def __init__(self, most: float):
        self.most, self.spent = most, 0.0
        self._paid: dict[Place, float] = {}  # by the items under way
        self._finished, self._cost = 0, 0.0  # items that are done, and what they cost together

    def check(self) -> None:
        """Raises LimitReached where the item being worked on may not make another call."""
        if self.most == math.inf:
            return
        place = PLACE.get()
        if self.spent >= self.most or (place not in self._paid and self.spent + self._promised(place) > self.most):
            raise LimitReached
        self._paid.setdefault(place, 0.0)

    def pay(self, cost: float) -> None:
        self.spent += cost
        if cost and self.most < math.inf:
            self._paid[PLACE.get()] = self._paid.get(PLACE.get(), 0.0) + cost

    def _promised(self, new: Place) -> float:
        """What those under way will still cost, and a new one; until one has finished, nobody can know."""
        for place in [place for place in self._paid if place.done]:
            self._finished, self._cost = self._finished + 1, self._cost + self._paid.pop(place)
        usual = self._cost / self._finished if self._finished else 0.0
        return sum(max(0.0, usual - paid) for paid in (self._paid | {new: 0.0}).values())
