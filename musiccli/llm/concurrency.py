"""Many records in flight at once, results in input order, in a bounded window: async work behind a plain iterator."""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
HELD = 8  # windows of results that may wait for an older one, so that an item that hangs stalls the others late
_END = object()


@dataclass(eq=False)
class WorkItem:
    """Where an item stands among all, and whether its work has ended."""

    number: int = 0
    done: bool = False


NO_ITEM = WorkItem()  # of work outside of in_order
CURRENT_ITEM = contextvars.ContextVar(
    "CURRENT_ITEM", default=NO_ITEM
)  # of the item being worked on; the oldest is served first


def map_ordered(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], window: int
) -> Iterator[Result]:
    """`work(item)` for each item, at most `window` under way, in the order of `items`.

    Results that are done wait for older ones, at most HELD windows of them. What asks for a place among the calls in
    flight does so under PLACE, its item's. Input is read while work is under way, so a slow pipe and slow calls
    overlap. An error in `items` is raised after everything begun before it has been yielded; an error in `work` is
    raised in its item's place. Whoever may stop early closes the iterator: left to the interpreter's exit, it would
    wait there for ever.
    """
    with asyncio.Runner() as runner:
        results = _results(iter(items), work, window)
        try:
            while (ready := runner.run(anext(results, _END))) is not _END:
                for task in ready:
                    yield task.result()
        finally:
            with contextlib.suppress(
                RuntimeError
            ):  # an interrupt left it running: the runner stops it
                runner.run(results.aclose())


async def _results(items: Iterator, work: Callable, window: int):
    """Tasks that are done, in the order of their items, as many at once as there are."""
    tasks: deque[asyncio.Task] = deque()
    changed = asyncio.Event()
    reader = _Reader(items, changed)
    begun = under_way = 0

    def ended(_: asyncio.Task) -> None:
        nonlocal under_way
        under_way -= 1
        changed.set()

    try:
        while tasks or reader.found or not reader.exhausted:
            reader.ask_for(min(window - under_way, HELD * window - len(tasks)))
            await changed.wait()
            changed.clear()
            while reader.found:
                tasks.append(_begin(work, reader.found.popleft(), begun))
                tasks[-1].add_done_callback(ended)
                begun, under_way = begun + 1, under_way + 1
            ready = []
            while tasks and tasks[0].done():
                ready.append(tasks.popleft())
                if ready[-1].exception():
                    break  # nobody will ask for more
            if ready:
                yield ready
        if reader.error:
            raise reader.error
    finally:
        reader.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _begin(work: Callable, item: object, number: int) -> asyncio.Task:
    context, place = contextvars.copy_context(), WorkItem(number)
    context.run(CURRENT_ITEM.set, place)
    task = asyncio.get_running_loop().create_task(work(item), context=context)
    task.add_done_callback(lambda _: setattr(place, "done", True))
    return task


async def gather_all(*works: Awaitable[Result]) -> list[Result]:
    """The results of works that belong together. An error waits until all have ended: a call that is under way will be
    paid for, so its answer should reach the cache."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class _Reader:
    """Reads items in a thread of its own: waiting for a pipe must not hold up the calls, nor the exit."""

    def __init__(self, items: Iterator, changed: asyncio.Event):
        self.found: deque = deque()
        self.exhausted, self.error = False, None
        self._changed, self._loop = changed, asyncio.get_running_loop()
        self._asked = 0  # items that were asked for and have not come
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(items,), name="reader", daemon=True).start()

    def ask_for(self, count: int) -> None:
        """Let `count` items come, those that were asked for before included."""
        while self._asked < count and not self.exhausted:
            self._asked += 1
            self._requests.put(True)

    def close(self) -> None:
        self._requests.put(False)

    def _read(self, items: Iterator) -> None:
        error = item = None
        with contextlib.suppress(
            RuntimeError
        ):  # the loop has been closed: nobody waits for items any more
            while item is not _END and self._requests.get():
                try:
                    item = next(items, _END)
                except Exception as raised:
                    item, error = _END, raised
                self._loop.call_soon_threadsafe(self._came, item, error)

    def _came(self, item: object, error: Exception | None) -> None:
        self._asked -= 1
        if item is _END:
            self.exhausted, self.error = True, error
        else:
            self.found.append(item)
        self._changed.set()
