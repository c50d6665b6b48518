"""Calls in flight: more while all is well, half when refused, none before the time a provider names."""

import asyncio
import time

import pytest

from musiccli.llm import limiter as limiter_module
from musiccli.llm.concurrency import CURRENT_ITEM, WorkItem
from musiccli.llm.endpoints import Endpoints
from musiccli.llm.limiter import CUT_INTERVAL, INITIAL_LIMIT, AdaptiveLimiter, backoff
from musiccli.llm.provider_errors import ProviderError
from musiccli.llm.remote_model import retry_delay

VLLM = "hosted_vllm/scripted"
A, B = "http://a:8000/v1", "http://b:8000/v1"


def limits_after(limiter: AdaptiveLimiter, count: int) -> list[float]:
    """The limit after each of so many successes, while as many calls are in flight as may be."""
    limits = []
    for _ in range(count):
        limiter.in_flight = int(limiter.limit)
        limiter.record_success()
        limits.append(limiter.limit)
    return limits


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at clock[0]."""
    now = [1000.0]
    monkeypatch.setattr(limiter_module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("most, first", [(64, INITIAL_LIMIT), (4, 4), (1, 1)])
def test_starts_small_and_never_above_the_most(most, first):
    assert int(AdaptiveLimiter(most).limit) == first


def test_success_after_success_opens_up_to_the_most_and_no_further():
    limiter = AdaptiveLimiter(4 * INITIAL_LIMIT)
    limits = limits_after(limiter, 300)
    assert limits == sorted(limits) and limits[-1] == 4 * INITIAL_LIMIT
    assert (
        limits[INITIAL_LIMIT - 1] == 2 * INITIAL_LIMIT
    )  # at the start, a whole window of successes doubles it


def test_after_a_refusal_a_whole_window_of_successes_is_one_place_more():
    limiter = AdaptiveLimiter(64)
    limiter.record_overload()
    limits = limits_after(limiter, 1000)
    assert limits == sorted(limits) and limits[-1] < 64
    assert limits[INITIAL_LIMIT // 2 - 1] == pytest.approx(INITIAL_LIMIT / 2 + 1, abs=0.06)


def test_after_a_refusal_a_limit_of_thousands_is_reached_again_in_dozens_of_rounds(clock):
    limiter = AdaptiveLimiter(4096)
    limits_after(limiter, 4096)
    limiter.record_overload()
    assert limiter.limit == 2048
    rounds = 0
    while limiter.limit < 4096:
        limits_after(limiter, int(limiter.limit))
        rounds += 1
    assert 25 <= rounds <= 40


def test_a_limit_that_is_not_half_used_stays():
    limiter = AdaptiveLimiter(64)
    limiter.in_flight = INITIAL_LIMIT // 2 - 1
    limiter.record_success()
    assert limiter.limit == INITIAL_LIMIT
    limiter.in_flight += 1
    limiter.record_success()
    assert limiter.limit == INITIAL_LIMIT + 1


def test_a_refusal_halves_and_those_of_the_same_moment_count_once(clock):
    limiter = AdaptiveLimiter(64)
    for _ in range(10):
        limiter.record_overload()
    assert limiter.limit == INITIAL_LIMIT / 2
    clock[0] += CUT_INTERVAL
    limiter.record_overload()
    assert limiter.limit == INITIAL_LIMIT / 4


def test_one_place_always_stays(clock):
    limiter = AdaptiveLimiter(64)
    for _ in range(20):
        clock[0] += CUT_INTERVAL
        limiter.record_overload()
    assert limiter.limit == 1


def test_places_are_given_in_order_of_asking_and_never_more_than_the_limit():
    async def run() -> tuple[list[int], int]:
        endpoints, order, most = Endpoints(VLLM, [A], concurrency=3), [], 0

        async def call(number: int) -> None:
            nonlocal most
            async with endpoints.slot():
                order.append(number)
                most = max(most, endpoints.in_flight)
                await asyncio.sleep(0.001)

        await asyncio.gather(*map(call, range(20)))
        assert endpoints.in_flight == endpoints.all[0].limiter.in_flight == 0
        return order, most

    assert asyncio.run(run()) == (list(range(20)), 3)


def test_the_oldest_item_gets_the_next_place_whoever_asked_first():
    async def run() -> list[int]:
        endpoints, order = Endpoints(VLLM, [A], concurrency=1), []

        async def call(item: int) -> None:
            CURRENT_ITEM.set(WorkItem(item))
            async with endpoints.slot():
                order.append(item)
                await asyncio.sleep(0.001)

        await asyncio.gather(*map(call, (5, 3, 1, 4, 1, 2)))
        return order

    assert asyncio.run(run()) == [5, 1, 1, 2, 3, 4]


def test_nobody_starts_before_the_time_that_the_provider_named():
    async def run() -> list[float]:
        endpoints, begun, starts = Endpoints(VLLM, [A], concurrency=4), time.monotonic(), []
        endpoints.all[0].limiter.record_overload(retry_after=0.2)

        async def call() -> None:
            async with endpoints.slot():
                starts.append(time.monotonic() - begun)

        await asyncio.gather(*(call() for _ in range(6)))
        return starts

    starts = asyncio.run(run())
    assert len(starts) == 6 and min(starts) >= 0.19


def test_a_place_is_free_again_after_an_error_or_a_cancelled_wait():
    async def run() -> None:
        endpoints = Endpoints(VLLM, [A], concurrency=1)
        with pytest.raises(ValueError):
            async with endpoints.slot():
                raise ValueError

        async def call() -> str:
            async with endpoints.slot():
                return "through"

        async with endpoints.slot():
            impatient, late, patient = (asyncio.ensure_future(call()) for _ in range(3))
            await asyncio.sleep(0)
            impatient.cancel()
            await asyncio.sleep(0)
        late.cancel()  # its place has been handed over, and it has not begun
        assert await asyncio.wait_for(patient, 120) == "through"
        assert endpoints.in_flight == endpoints.all[0].limiter.in_flight == 0

    asyncio.run(run())


def taken(endpoints: Endpoints, count: int) -> list[str | None]:
    """The addresses of so many calls that begin one after the other and do not end."""
    urls = []
    for _ in range(count):
        endpoint = endpoints._choose()
        urls.append(endpoint and endpoint.url)
        if endpoint:
            endpoints._take(endpoint)
    return urls


def test_the_most_calls_hold_for_all_addresses_together():
    urls = taken(Endpoints(VLLM, [A, B], concurrency=8), 12)
    assert (urls.count(A), urls.count(B), urls.count(None)) == (4, 4, 4)


@pytest.mark.parametrize("status", [408, 429, 504])
def test_one_address_that_is_overloaded_slows_no_other_down(clock, status):
    endpoints = Endpoints(VLLM, [A, B], concurrency=1000)
    for _ in range(2):
        clock[0] += CUT_INTERVAL
        endpoints.record_failure(endpoints.all[0], ProviderError("no answer", status))
    assert [endpoint.limiter.limit for endpoint in endpoints.all] == [4, INITIAL_LIMIT]
    urls = taken(endpoints, 15)
    assert (urls.count(A), urls.count(B)) == (3, 12)  # as much of the one limit as of the other


def test_an_address_that_asks_for_a_pause_is_left_alone_while_another_is_not_full():
    endpoints = Endpoints(VLLM, [A, B], concurrency=1000)
    endpoints.record_failure(endpoints.all[0], ProviderError("later", 429, retry_after=30))
    assert taken(endpoints, 20) == [B] * INITIAL_LIMIT + [None] * 4


def test_back_off_grows_with_full_jitter_up_to_a_minute():
    for attempt, most in [(1, 1), (2, 2), (5, 16), (20, 60)]:
        waits = [backoff(attempt) for _ in range(400)]
        assert 0 <= min(waits) < most * 0.1 and most * 0.9 < max(waits) <= most


@pytest.mark.parametrize("named", [None, 0.0, 0.5])
def test_a_quota_is_waited_for_whatever_wait_the_server_names(named):
    error = ProviderError("slow down", 429, retry_after=named)
    waits = [[retry_delay(error, attempt) for attempt in range(1, 6)] for _ in range(200)]
    assert min(map(sum, waits)) > 60 and max(map(max, waits)) <= 60


def test_a_wait_that_a_server_names_and_keeps_to_is_hardly_longer():
    error = ProviderError("slow down", 429, retry_after=20.0)
    assert [retry_delay(error, attempt) for attempt in (1, 2)] == [20.0, 20.0]
    assert 20.0 <= min(retry_delay(error, 3) for _ in range(99)) <= 24.0


def test_six_attempts_outlast_a_quota_that_comes_back_within_a_minute():
    waits = [[backoff(attempt, quota=True) for attempt in range(1, 6)] for _ in range(200)]
    assert min(map(sum, waits)) > 60 and max(map(max, waits)) <= 60
