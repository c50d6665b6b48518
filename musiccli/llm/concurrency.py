"""Concurrent work on many items behind a plain iterator: results in input order, bounded memory."""

import asyncio
import contextlib
import contextvars
import queue
import signal
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from musiccli.core.errors import InputError
from musiccli.core.termination import terminate

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")
# Windows of results that may wait for an older one: an item that hangs stalls the others late.
MAX_WAITING_WINDOWS = 8
UNSAID_WAIT = 0.5  # seconds for which calls are waited for without a word


@dataclass(eq=False)
class CallsUnderWay:
    """The calls of all items that are in `finish_call`.

    Attributes:
        tasks: they themselves.
        say: tells people something.
        is_announced: whether it will be or was said that the run ends with them.
        waited_for: whether it was said.
        cancelled: whether they were ended. None begins after that.
        error: the first error that ends the run. None begins after that.
        changed: set when an item has come or ended, or an error is there.
    """

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    say: Callable[[str], None] = lambda text: None
    is_announced: bool = False
    waited_for: bool = False
    cancelled: bool = False
    error: BaseException | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, error: BaseException) -> None:
        """End the run with an error: none begins from now on, those under way are finished."""
        self.error = self.error or error
        self.announce_wait()
        self.changed.set()

    def announce_wait(self) -> None:
        """Say once that the run ends when they have ended, unless they do so in a moment."""
        if self.tasks and not self.is_announced:
            self.is_announced = True
            asyncio.get_running_loop().call_later(UNSAID_WAIT, self._say_wait)

    def _say_wait(self) -> None:
        self.is_announced = self.waited_for = bool(self.tasks)
        if self.tasks and not self.cancelled:
            count = len(self.tasks)
            calls = "1 paid call that is" if count == 1 else f"{count:,} paid calls that are"
            self.say(f"waiting for {calls} under way; Ctrl-C or SIGTERM now ends the run at once")

    def cancel(self) -> None:
        """End them without their replies."""
        self.cancelled = True
        for task in self.tasks:
            task.cancel()


@dataclass(eq=False)
class WorkItem:
    """One item's work.

    Attributes:
        number: its number among all items.
        done: whether it has ended.
        calls: what it shares with all items.
    """

    number: int = 0
    done: bool = False
    calls: CallsUnderWay = field(default_factory=CallsUnderWay)


NO_ITEM = WorkItem()  # outside of map_ordered
# The item that is being worked on. Limiters serve the oldest item first.
CURRENT_ITEM: contextvars.ContextVar[WorkItem] = contextvars.ContextVar(
    "CURRENT_ITEM", default=NO_ITEM
)


def map_ordered(
    items: Iterable[Item],
    work: Callable[[Item], Coroutine[Any, Any, Result]],
    window: int,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Result]:
    """Run `work(item)` for each item, and yield the results in the order of the items.

    Items are read while work is under way, so a slow pipe and slow calls overlap. Results wait for
    older ones, at most MAX_WAITING_WINDOWS windows of them.

    An error of `items` is raised after the results of all items before it. An error of `work` ends
    the iteration at once, also where older items are under way: it is raised after the results that
    wait for none of them. Work that is then under way is cancelled, its calls in `finish_call`
    excepted, and begins no further call. Ctrl-C does the same. `say` hears when these calls are
    waited for; Ctrl-C then ends them.
    Close the iterator if you stop early: at the interpreter's exit it would wait forever.

    Args:
        items: read in a thread, no further ahead than results may wait.
        work: runs with CURRENT_ITEM set.
        window: most items under way at once.
        say: tells people something.
    """
    calls = CallsUnderWay(say=say)
    with asyncio.Runner() as runner:
        batches = _finished_batches(iter(items), work, window, calls)

        async def next_batch() -> list[Result]:
            """The next results; none at the end. Tasks are freed here, by a callback."""
            return [task.result() for task in await anext(batches, [])]

        try:
            while results := _run(runner, next_batch, calls):
                yield from results
        finally:
            # After a third interrupt the generator still runs; the runner then cancels it.
            with contextlib.suppress(RuntimeError):
                _run(runner, batches.aclose, calls)


def _run(
    runner: asyncio.Runner, start: Callable[[], Awaitable[Value]], calls: CallsUnderWay
) -> Value:
    """What `start()` returns, computed in the runner's loop. Ctrl-C and SIGTERM cancel it.

    The runner's own handler comes late: until then Ctrl-C raises KeyboardInterrupt in what happens
    to run. In a callback Python drops it; between two statements of asyncio a task never starts.

    Raises:
        KeyboardInterrupt: after what was cancelled has ended. A second Ctrl-C ends the calls, too,
            and a third one raises at once.
    """
    interrupts, running = 0, None

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 2:
            raise KeyboardInterrupt
        if interrupts > 1:
            runner.get_loop().call_soon_threadsafe(calls.cancel)
        elif running:
            runner.get_loop().call_soon_threadsafe(running.cancel)

    async def run() -> Value:
        nonlocal running
        running = asyncio.current_task()
        if interrupts:
            raise asyncio.CancelledError
        return await start()

    # A background job of a script ignores Ctrl-C, and SIGTERM raises no SIGINT that is seen here.
    handled = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, terminate))
    number = next((number for number, usual in handled if signal.getsignal(number) is usual), None)
    if threading.current_thread() is not threading.main_thread() or number is None:
        return runner.run(run())
    usual = signal.signal(number, interrupt)
    try:
        value = runner.run(run())
    except asyncio.CancelledError:
        if interrupts:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(number, usual)
    if interrupts:
        raise KeyboardInterrupt
    return value


async def gather_all(*works: Coroutine[Any, Any, Result]) -> list[Result]:
    """The results of several works. The first error cancels the others, and is raised at their end.

    Their calls in `finish_call` are finished, and they make no further ones.
    """
    item = CURRENT_ITEM.get()

    def ended(task: asyncio.Task[Result]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, InputError) and item is not NO_ITEM:  # it ends the run
            item.calls.fail(error)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            for task in tasks:
                task.add_done_callback(ended)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def finish_call(call: Coroutine[Any, Any, Value]) -> Value:
    """The result of a call that costs money, also where the task is cancelled meanwhile.

    The call will be paid for, so its reply should reach the cache. The task is cancelled where it
    next waits, and makes no further call. Only a second Ctrl-C cancels a call that is under way.
    """
    task, calls = asyncio.current_task(), CURRENT_ITEM.get().calls
    if task is None or task.cancelling() or calls.cancelled or calls.error:
        call.close()
        raise asyncio.CancelledError
    running, is_cancelled = asyncio.ensure_future(call), False
    calls.tasks.add(running)
    running.add_done_callback(calls.tasks.discard)
    try:
        while True:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.cancelled():
                    raise
                is_cancelled = True
    finally:
        if is_cancelled:
            task.cancel()


async def _finished_batches(
    items: Iterator[Item],
    work: Callable[[Item], Coroutine[Any, Any, Result]],
    window: int,
    calls: CallsUnderWay,
) -> AsyncGenerator[list[asyncio.Task[Result]], None]:
    """The finished tasks in the order of their items, as many at once as there are."""
    tasks: deque[asyncio.Task[Result]] = deque()
    reader = _Reader(items, calls.changed)
    started = under_way = 0

    def ended(task: asyncio.Task[Result]) -> None:
        nonlocal under_way
        under_way -= 1
        if error := _error_of(task):
            calls.fail(error)
        calls.changed.set()

    try:
        while tasks or reader.ready or not reader.exhausted:
            reader.request(min(window - under_way, MAX_WAITING_WINDOWS * window - len(tasks)))
            await calls.changed.wait()
            calls.changed.clear()
            while reader.ready and not calls.error:
                work_item = WorkItem(started, calls=calls)
                tasks.append(_start(work, reader.ready.popleft(), work_item))
                tasks[-1].add_done_callback(ended)
                started, under_way = started + 1, under_way + 1
            finished = []
            while tasks and tasks[0].done() and not _error_of(tasks[0]):
                finished.append(tasks.popleft())
            if finished:
                yield finished
            if calls.error:
                raise calls.error
        if reader.error:
            raise reader.error
    except asyncio.CancelledError:  # Ctrl-C
        if calls.waited_for:
            calls.cancel()
        raise
    finally:
        reader.close()
        await _end(tasks, calls)


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """The error of a task that has ended; work that cancelled itself has one, too."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _end(tasks: Iterable[asyncio.Task[Any]], calls: CallsUnderWay) -> None:
    """Cancel tasks, and wait until they have ended. Ctrl-C meanwhile ends their calls, too."""
    calls.announce_wait()
    for task in tasks:
        task.cancel()
    ends = asyncio.gather(*tasks, return_exceptions=True)
    try:
        await asyncio.shield(ends)
    except asyncio.CancelledError:
        calls.cancel()
        await ends
        raise


def _start(
    work: Callable[[Item], Coroutine[Any, Any, Result]], item: Item, work_item: WorkItem
) -> asyncio.Task[Result]:
    context = contextvars.copy_context()
    context.run(CURRENT_ITEM.set, work_item)
    task = asyncio.get_running_loop().create_task(work(item), context=context)
    task.add_done_callback(lambda _: setattr(work_item, "done", True))
    return task


class _Reader(Generic[Item]):
    """Reads items in a thread: waiting for a pipe must hold up neither the calls nor the exit."""

    def __init__(self, items: Iterator[Item], changed: asyncio.Event):
        self.ready: deque[Item] = deque()
        self.exhausted = False
        self.error: Exception | None = None
        self._changed, self._loop = changed, asyncio.get_running_loop()
        self._outstanding = 0  # items that were requested and have not come
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(items,), name="reader", daemon=True).start()

    def request(self, count: int) -> None:
        """Request items until `count` are outstanding or ready, with those requested before."""
        while self._outstanding + len(self.ready) < count and not self.exhausted:
            self._outstanding += 1
            self._requests.put(True)

    def close(self) -> None:
        self._requests.put(False)

    def _read(self, items: Iterator[Item]) -> None:
        # RuntimeError: the loop is closed, and nobody waits for items any more.
        with contextlib.suppress(RuntimeError):
            while self._requests.get():
                try:
                    item = next(items)
                except StopIteration:
                    return self._call(self._ended, None)
                except Exception as error:
                    return self._call(self._ended, error)
                self._call(self._came, item)

    def _call(self, callback: Callable[[Any], None], value: object) -> None:
        """Call a method in the loop's thread."""
        self._loop.call_soon_threadsafe(callback, value)

    def _came(self, item: Item) -> None:
        self._outstanding -= 1
        self.ready.append(item)
        self._changed.set()

    def _ended(self, error: Exception | None) -> None:
        self.exhausted, self.error = True, error
        self._changed.set()
