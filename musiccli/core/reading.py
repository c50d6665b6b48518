"""Read a slow input ahead in a thread, while other work goes on."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Entry = tuple[Item | None, BaseException | None]  # an item, or the error that ended them
AHEAD = 2  # items that wait


def read_ahead(items: Iterable[Item], pauses: int) -> Iterator[Item | None]:
    """The items, read in a thread, with pauses in which the caller can finish what it began.

    Args:
        items: whose iteration takes long, as that of a pipe.
        pauses: how often None is yielded before a wait for the next item, and after the last.

    Raises:
        Exception: whatever the iteration of `items` raises, after the items before it.
    """
    ready: queue.Queue[Entry[Item]] = queue.Queue(AHEAD)
    closed = threading.Event()
    arguments = (items, ready, closed)
    # A daemon: at the interpreter's exit nobody may wait for a pipe that stays open.
    threading.Thread(target=_read, args=arguments, name="reader", daemon=True).start()
    try:
        while True:
            for _ in range(pauses):
                if ready.empty():
                    yield None
            item, error = ready.get()
            if error:
                break
            yield item
        for _ in range(pauses):
            yield None
        if not isinstance(error, StopIteration):
            raise error
    finally:
        closed.set()


def _read(
    items: Iterable[Item], ready: "queue.Queue[Entry[Item]]", closed: threading.Event
) -> None:
    """Put the items into the queue, and at last the error that ended them."""
    iterator = iter(items)
    while not closed.is_set():
        entry: Entry[Item]
        try:
            entry = (next(iterator), None)
        except BaseException as error:
            entry = (None, error)
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.5)
                break
            except queue.Full:  # the caller is busy, or has gone
                continue
        if entry[1] is not None:
            return
