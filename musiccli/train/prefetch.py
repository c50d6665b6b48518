"""A thread that prepares what the next steps need, while the device computes."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from musiccli.train.batching import Step
from musiccli.train.pair_arrays import TokenizedPair, TokenizedPairs

STEPS_AHEAD = 2  # whose pairs are read while a step is computed

Item = TypeVar("Item")


def steps_with_pairs(
    plan: Iterable[Step], pairs: TokenizedPairs, rank: int
) -> Iterator[tuple[Step, dict[int, TokenizedPair]]]:
    """Each step, and by their indices the pairs of one rank in it."""
    for step in plan:
        yield step, {index: pairs[index] for batch in step[rank] for index in batch}


class Prefetcher(Generic[Item]):
    """Yields items that a thread takes from an iterable, some of them ahead.

    An exception of the iterable is raised where its item would have come. Use it as a context, so
    that the thread ends with the loop over the items, however that ends.
    """

    def __init__(self, items: Iterable[Item], ahead: int):
        """Take at most `ahead` items that nobody has asked for yet."""
        self._items = iter(items)
        self._ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue()
        self._room = threading.Semaphore(ahead)
        self._stopped = False
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._waited, self._since = 0.0, time.perf_counter()

    def __enter__(self) -> "Prefetcher[Item]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        """The items in order."""
        while (result := self._wait()) is not None:
            if isinstance(result, BaseException):
                raise result
            self._room.release()
            yield result[0]

    def waited_share(self) -> float:
        """Which share of the time since the last call was spent in waiting for an item."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return round(share, 4)

    def _wait(self) -> tuple[Item] | BaseException | None:
        start = time.perf_counter()
        result = self._ready.get()
        self._waited += time.perf_counter() - start
        return result

    def _fill(self) -> None:
        """Put each item, in a tuple, then the exception that ended them, or None."""
        try:
            while True:
                self._room.acquire()
                if self._stopped:
                    break
                self._ready.put((next(self._items),))
        except StopIteration:
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
