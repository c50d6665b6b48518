"""Async work behind a plain iterator: order, window, errors in their place, nothing left behind."""

import asyncio
import gc
import itertools
import signal
import threading

import pytest
from scripted import wait_until

from musiccli.llm.concurrency import (
    CURRENT_ITEM,
    MAX_WAITING_WINDOWS,
    _Reader,
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


def test_an_error_in_work_comes_in_its_place_and_ends_what_is_in_flight():
    cancelled, all_started, never = [], asyncio.Event(), asyncio.Event()

    async def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        if item == 4:
            all_started.set()
        try:
            await (all_started if item < 2 else never).wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

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


def test_an_error_waits_for_the_works_beside_it():
    finished = []

    async def work(item: int) -> None:
        if item == 0:
            raise ValueError("at once")
        await asyncio.sleep(0.02)
        finished.append(item)

    async def both():
        await gather_all(work(0), work(1))

    with pytest.raises(ValueError, match="at once"):
        asyncio.run(both())
    assert finished == [1]


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
