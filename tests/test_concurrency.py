"""Async work behind a plain iterator: order, window, errors in their place, nothing left behind."""

import asyncio
import contextlib
import gc
import itertools
import signal
import threading

import pytest
from scripted import wait_until

from musiccli.core.errors import InputError
from musiccli.llm import concurrency
from musiccli.llm.concurrency import (
    CURRENT_ITEM,
    MAX_WAITING_WINDOWS,
    _Reader,
    finish_call,
    gather_all,
    map_ordered,
)


async def echo(item):
    await asyncio.sleep(0)
    return item


@pytest.mark.parametrize("window", [1, 3, 100])
def test_results_keep_input_order_whatever_finishes_first(window):
    async def work(item: int) -> int:
        await asyncio.sleep((20 - item) / 2000)
        return item * 10

    assert list(map_ordered(range(20), work, window)) == [item * 10 for item in range(20)]


def test_no_items_no_results():
    assert list(map_ordered([], echo, 4)) == []


def test_at_most_the_window_is_under_way():
    under_way, most, full = 0, 0, asyncio.Event()

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 5:
            full.set()
        await asyncio.wait_for(full.wait(), 120)
        await asyncio.sleep(0.001 * (item % 3))
        under_way -= 1
        return item

    assert list(map_ordered(range(40), work, window=5)) == list(range(40))
    assert most == 5


def test_items_that_have_come_and_not_begun_count_in_the_window():
    read = []

    async def request_twice() -> int:
        changed = asyncio.Event()
        reader = _Reader((read.append(item) or item for item in itertools.count()), changed)
        for _ in range(2):
            reader.request(3)
            while len(reader.ready) < 3:
                await changed.wait()
                changed.clear()
        reader.close()
        return reader._outstanding

    assert (asyncio.run(request_twice()), read) == (0, [0, 1, 2])


def test_one_item_that_hangs_does_not_stall_the_others_up_to_a_bound():
    begun, freed = [], threading.Event()

    async def work(item: int) -> int:
        begun.append(item)
        while item == 0 and not freed.is_set():
            await asyncio.sleep(0.002)
        return item

    results, got = map_ordered(itertools.count(), work, window=3), []
    reader = threading.Thread(target=lambda: got.extend(itertools.islice(results, 100)))
    reader.start()
    wait_until(lambda: len(begun) == MAX_WAITING_WINDOWS * 3)
    assert got == []
    freed.set()
    reader.join()
    assert got == list(range(100))
    results.close()


def test_work_knows_its_items_place_and_so_do_the_tasks_it_starts():
    async def work(item: str) -> tuple[str, int, int]:
        async def inner() -> int:
            return CURRENT_ITEM.get().number

        return item, CURRENT_ITEM.get().number, (await gather_all(inner(), inner()))[1]

    assert list(map_ordered("abc", work, window=2)) == [("a", 0, 0), ("b", 1, 1), ("c", 2, 2)]


def test_endless_input_is_read_no_further_than_the_window():
    read = []
    results = map_ordered((read.append(item) or item for item in itertools.count()), echo, window=7)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(read) <= 10 + 7 * MAX_WAITING_WINDOWS + 1
    results.close()


def test_a_result_comes_while_the_input_is_still_waited_for():
    seen = threading.Event()

    def slow_pipe():
        yield "first"
        assert seen.wait(120), "the first result should not wait for the second item"
        yield "second"

    results = map_ordered(slow_pipe(), echo, window=8)
    assert next(results) == "first"
    seen.set()
    assert list(results) == ["second"]


def test_work_goes_on_while_the_input_is_waited_for():
    finished = threading.Event()

    async def work(item: int) -> int:
        await asyncio.sleep(0.01)
        finished.set()
        return item

    def slow_pipe():
        yield 1
        assert finished.wait(120)
        yield 2

    assert list(map_ordered(slow_pipe(), work, window=8)) == [1, 2]


def test_an_error_in_the_input_comes_after_the_results_before_it():
    def items():
        yield from range(3)
        raise ValueError("line 4 is bad")

    got = []
    with pytest.raises(ValueError, match="line 4"):
        got.extend(
            [
                result
                for result in map_ordered(items(), echo, window=8)
                if got.append(result) or True
            ]
        )
    assert got == [0, 1, 2]


def test_an_error_in_work_ends_what_is_in_flight_after_the_results_before_it():
    cancelled, all_started, never = [], asyncio.Event(), asyncio.Event()

    async def work(item: int) -> int:
        if item == 4:
            all_started.set()
        if item < 2:
            return item
        try:
            await (all_started if item == 2 else never).wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        raise ValueError("two")

    got = []
    with pytest.raises(ValueError, match="two"):
        for result in map_ordered(range(5), work, window=5):
            got.append(result)
    assert (got, sorted(cancelled)) == ([0, 1], [3, 4])


def test_closing_early_cancels_what_is_in_flight():
    cancelled = []

    async def work(item: int) -> int:
        try:
            if item:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    results = map_ordered(range(4), work, window=4)
    assert next(results) == 0
    results.close()
    assert set(cancelled) <= {1, 2, 3}
    assert list(results) == []


def test_an_interrupt_while_the_loop_starts_is_not_lost(monkeypatch):
    run, interrupts = asyncio.Runner.run, [signal.SIGINT]

    class Interrupting:
        def __del__(self):  # Python drops what a finalizer raises
            signal.raise_signal(interrupts.pop())

    def interrupted(*arguments):
        if interrupts:
            Interrupting()
        return run(*arguments)

    monkeypatch.setattr(asyncio.Runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(map_ordered(range(3), echo, 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_reader_that_is_left_waiting_ends_without_a_word(monkeypatch):
    said, left = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", said.append)

    def slow_pipe():
        yield "first"
        left.wait(120)
        yield "second"

    results = map_ordered(slow_pipe(), echo, window=8)
    next(results)
    readers = set(threading.enumerate()) - {threading.main_thread()}
    results.close()
    left.set()
    wait_until(lambda: not any(reader.is_alive() for reader in readers if "read" in reader.name))
    assert said == []


def test_works_that_belong_together_give_their_results_in_order():
    async def work(item: int) -> int:
        await asyncio.sleep((3 - item) / 500)
        return item

    async def both():
        return await gather_all(*map(work, range(3)))

    assert asyncio.run(both()) == [0, 1, 2]


class PaidCalls:
    """Calls that take their time; `begun` and `finished` hold their names in order."""

    def __init__(self, seconds: float = 0.05):
        self.seconds, self.begun, self.finished = seconds, [], []

    async def __call__(self, *names: object) -> object:
        """One call after the other."""
        for name in names:
            await finish_call(self._call(name))
        return names

    async def _call(self, name: object) -> None:
        self.begun.append(name)
        await asyncio.sleep(self.seconds)
        self.finished.append(name)


def test_an_error_finishes_the_calls_beside_it_and_begins_no_further_ones():
    calls = PaidCalls()

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("at once")

    async def both():
        await gather_all(calls("first", "second"), fails())

    with pytest.raises(ValueError, match="at once"):
        asyncio.run(both())
    assert calls.finished == calls.begun == ["first"]


def test_a_call_that_fails_after_its_task_was_cancelled_is_not_waited_for_again():
    waited = []

    async def refused() -> None:
        await asyncio.sleep(0.02)
        raise ValueError("refused")

    async def retries() -> None:
        with contextlib.suppress(ValueError):
            await finish_call(refused())
        await asyncio.sleep(0.01)
        waited.append("a wait before another attempt")

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("at once")

    async def both():
        await gather_all(retries(), fails())

    with pytest.raises(ValueError, match="at once"):
        asyncio.run(both())
    assert waited == []


def items_with_an_error(calls: PaidCalls, say=lambda text: None):
    async def work(item: int) -> None:
        if item == 0:
            await asyncio.sleep(0.01)
            raise ValueError("the first item")
        await gather_all(calls(f"{item}a", f"{item}a again"), calls(f"{item}b"))

    return map_ordered(range(4), work, 4, say)


def test_an_error_in_work_finishes_the_calls_of_other_items_and_begins_no_further_ones():
    calls = PaidCalls()
    with pytest.raises(ValueError, match="the first item"):
        list(items_with_an_error(calls))
    assert sorted(calls.finished) == ["1a", "1b", "2a", "2b", "3a", "3b"]
    assert sorted(calls.begun) == sorted(calls.finished)


@pytest.mark.parametrize("in_its_call", [False, True])
def test_no_call_of_any_item_begins_after_an_error_that_ends_the_run(in_its_call):
    """Neither one of an older item, nor of a new one, nor while the item itself has calls."""
    calls, begun, at_work = PaidCalls(seconds=0.1), [], asyncio.Event()

    async def fails() -> None:
        await at_work.wait()
        raise InputError("a wrong key")

    async def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            await (gather_all(calls("own"), fails()) if in_its_call else fails())
        if item == 2:
            return item
        if item == 3:
            at_work.set()
        await calls(item, f"after {item}")
        return item

    with pytest.raises(InputError, match="a wrong key"):
        list(map_ordered(range(9), work, window=4))
    assert {*calls.begun} == ({0, 3, "own"} if in_its_call else {0, 3})
    assert sorted(map(str, calls.finished)) == sorted(map(str, calls.begun))
    assert begun == [0, 1, 2, 3]


def test_an_error_outside_of_a_run_ends_no_later_one():
    calls = PaidCalls()

    async def fails() -> None:
        raise InputError("a wrong key")

    with pytest.raises(InputError, match="a wrong key"):
        asyncio.run(gather_all(fails()))
    assert asyncio.run(gather_all(calls("later"))) == [("later",)]


def test_work_that_cancels_itself_ends_the_run():
    async def work(item: int) -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        list(map_ordered(range(3), work, window=2))


def test_closing_early_finishes_the_calls_under_way():
    calls = PaidCalls()

    async def work(item: int) -> int:
        if item:
            await calls(item, f"after {item}")
        return item

    results = map_ordered(range(4), work, window=4)
    assert next(results) == 0
    results.close()
    assert calls.finished == calls.begun and {*calls.begun} <= {1, 2, 3}


WAITS = "waiting for {} under way; Ctrl-C or SIGTERM now ends the run at once"


@pytest.fixture
def say_at_once(monkeypatch):
    monkeypatch.setattr(concurrency, "UNSAID_WAIT", 0)


ONE, TWO = WAITS.format("1 paid call that is"), WAITS.format("2 paid calls that are")


def interrupt_in(seconds: float) -> None:
    asyncio.get_running_loop().call_later(seconds, signal.raise_signal, signal.SIGINT)


def test_ctrl_c_finishes_the_calls_under_way_and_says_so(say_at_once):
    calls, said = PaidCalls(), []

    async def work(item: int) -> None:
        if item == 0:
            interrupt_in(0.02)
        await calls(item, f"after {item}")

    with pytest.raises(KeyboardInterrupt):
        list(map_ordered(range(2), work, 2, said.append))
    assert (calls.begun, calls.finished, said) == ([0, 1], [0, 1], [TWO])


def test_calls_that_end_in_a_moment_are_not_talked_about():
    calls, said = PaidCalls(seconds=0.05), []
    with pytest.raises(ValueError, match="the first item"):
        list(items_with_an_error(calls, said.append))
    assert len(calls.finished) == 6 and said == []


def test_a_second_ctrl_c_waits_for_no_call(say_at_once):
    calls, said = PaidCalls(seconds=120), []

    async def work(item: int) -> None:
        interrupt_in(0.02)
        interrupt_in(0.06)
        await calls(item)

    with pytest.raises(KeyboardInterrupt):
        list(map_ordered(range(1), work, 1, said.append))
    assert (calls.begun, calls.finished, said) == ([0], [], [ONE])


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_between_two_results_is_as_any_other(say_at_once, again):
    calls, said = PaidCalls(seconds=120 if again else 0.05), []

    def say(text: str) -> None:
        said.append(text)
        if again:
            interrupt_in(0.01)

    async def work(item: int) -> None:
        await (calls(item) if item else asyncio.sleep(0.01))

    def stage():  # as stages read it, in a loop of their own
        yield from map_ordered(range(2), work, 2, say)

    with pytest.raises(KeyboardInterrupt), contextlib.closing(stage()) as results:
        next(results)
        signal.raise_signal(signal.SIGINT)
    assert (calls.finished, said) == ([] if again else [1], [ONE])


def test_ctrl_c_ends_the_wait_for_calls_after_an_error(say_at_once):
    calls, said = PaidCalls(seconds=120), []

    async def interrupted() -> None:
        await asyncio.sleep(0.02)
        interrupt_in(0.05)
        raise ValueError("the first item")

    async def work(item: int) -> None:
        await (gather_all(calls("a"), calls("b")) if item else interrupted())

    with pytest.raises(KeyboardInterrupt):
        list(map_ordered(range(2), work, 2, said.append))
    assert (sorted(calls.begun), calls.finished, said) == (["a", "b"], [], [TWO])


def test_the_wait_is_told_before_older_calls_have_ended(say_at_once):
    """And before those of the item itself; a call that fails for its own record ends no run."""
    calls, said = PaidCalls(seconds=120), []

    async def fails(error: Exception) -> None:
        await asyncio.sleep(0.02)
        raise error

    def say(text: str) -> None:
        said.append(text)
        interrupt_in(0.01)

    for error in (InputError("a wrong key"), ValueError("of its item")):
        own = isinstance(error, InputError)

        async def work(item: int, error: Exception = error, own: bool = own) -> None:
            if own:
                await gather_all(calls("own"), fails(error))
            await (fails(error) if item else calls("older"))

        with pytest.raises(KeyboardInterrupt):
            list(map_ordered(range(1 if own else 2), work, 2, say))
    assert (calls.begun, calls.finished, said) == (["own", "older"], [], [ONE, ONE])


@pytest.mark.slow
def test_errors_after_the_first_are_not_talked_about(capfd, caplog):
    async def work(item: int) -> None:
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        list(map_ordered(range(5), work, window=5))
    gc.collect()
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_what_is_read_while_nobody_asks_is_not_lost():
    seen = threading.Event()

    def items():
        yield 0
        seen.wait(120)
        yield from (1, 2)

    others = set(threading.enumerate())
    results = map_ordered(items(), echo, window=8)
    assert next(results) == 0
    [reader] = set(threading.enumerate()) - others
    seen.set()
    wait_until(lambda: not reader.is_alive())  # both items and the end come while nobody asks
    assert list(results) == [1, 2]
