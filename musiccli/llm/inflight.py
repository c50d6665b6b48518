"""Many records in flight at once, results in input order, in a bounded window: async work behind a plain iterator."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


def in_order(items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], window: int) -> Iterator[Result]:
    """`work(item)` for each item, at most `window` begun and not yet yielded, in the order of `items`.

    Input is read while work is under way, so a slow pipe and slow calls overlap. An error in `items` is raised after
    everything begun before it has been yielded; an error in `work` is raised in its item's place. Whoever may stop
    early closes the iterator: left to the interpreter's exit, it would wait there for ever.
    """
    with asyncio.Runner() as runner:
        results = _results(iter(items), work, window)
        try:
            while (result := runner.run(anext(results, _END))) is not _END:
                yield result
        finally:
            with contextlib.suppress(RuntimeError):  # an interrupt left it running: the runner stops it
                runner.run(results.aclose())


async def _results(items: Iterator, work: Callable, window: int):
    tasks: deque[asyncio.Task] = deque()
    reading, error = None, None
    exhausted = False
    try:
        while tasks or not exhausted:
            if not exhausted and reading is None and len(tasks) < window:
                reading = _read_one(items)
            await asyncio.wait({*list(tasks)[:1], *([reading] if reading else [])}, return_when=asyncio.FIRST_COMPLETED)
            if reading and reading.done():
                try:
                    item = reading.result()
                except Exception as raised:
                    item, error = _END, raised
                reading = None
                if item is _END:
                    exhausted = True
                else:
                    tasks.append(asyncio.ensure_future(work(item)))
            while tasks and tasks[0].done():
                yield tasks.popleft().result()
        if error:
            raise error
    finally:
        if reading and not reading.cancel():
            reading.exception()  # what the input said meanwhile interests nobody; unasked, asyncio would print it
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(*works: Awaitable[Result]) -> list[Result]:
    """The results of works that belong together. An error waits until all have ended: a call that is under way will be
    paid for, so its answer should reach the cache."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _read_one(items: Iterator) -> asyncio.Future:
    """The next item, read in a thread of its own: waiting for a pipe must not hold up the calls, nor the exit."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(set_it: Callable, value: object) -> None:
        if not future.done():
            set_it(value)

    def read() -> None:
        try:
            done = (future.set_result, next(items, _END))
        except Exception as error:
            done = (future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits for this item any more
            loop.call_soon_threadsafe(settle, *done)

    threading.Thread(target=read, daemon=True).start()
    return future
