"""Small versions of what acceptance.py runs at full size."""

import pytest
from acceptance import PASSING, cache, chaos, kills, memory


@pytest.mark.slow
def test_chaos_loses_nothing_and_asks_nothing_in_vain(tmp_path):
    chaos(
        tmp_path, 40, 1, dict.fromkeys(PASSING, 0.02), most=1.5
    )  # so few calls are far from the number to expect


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429-retry-after", "truncated", "length"])
def test_each_fault_costs_what_it_must(tmp_path, fault):
    found = chaos(tmp_path, count=40, turns=1, faults={fault: 0.05}, most=1.3)
    assert found["failed"] == 0


@pytest.mark.slow
def test_killed_at_random_moments_the_output_is_the_same_and_finished_calls_are_paid_once(tmp_path):
    kills(tmp_path, count=30, turns=2, times=4, concurrency=8)


@pytest.mark.slow
def test_memory_is_bounded_by_the_window(tmp_path):
    memory(tmp_path, (500, 2000), most=1.15)


def test_a_cache_of_many_rows_stays_small_and_gives_space_back(tmp_path):
    found = cache(tmp_path, count=4000)
    assert found["removed"] > 0
