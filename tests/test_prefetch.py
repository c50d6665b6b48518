"""What a thread prepares comes in order, a few items ahead, and the thread ends with its reader."""

import threading

import pytest
from console import wait_until
from toys import backbone, pairs

from musiccli.core.records import Record
from musiccli.train.config import TrainConfig
from musiccli.train.pair_arrays import PairArrays
from musiccli.train.prefetch import Prefetcher
from musiccli.train.run import train


def test_items_come_in_order_from_another_thread():
    names = []

    def items():
        for number in range(100):
            names.append(threading.current_thread())
            yield number

    with Prefetcher(items(), 3) as ahead:
        assert list(ahead) == list(range(100))
    assert len(set(names)) == 1 and threading.current_thread() not in names


def test_no_more_are_taken_than_asked_for():
    taken = []
    items = (taken.append(number) or number for number in range(10))
    with Prefetcher(items, 2) as ahead:
        wait_until(lambda: len(taken) == 2)
        iterator = iter(ahead)
        for number in range(8):
            assert next(iterator) == number
            wait_until(lambda number=number: len(taken) == number + 3)
    assert taken == list(range(10))


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        raise ValueError("broken")

    with Prefetcher(items(), 5) as ahead:
        iterator = iter(ahead)
        assert next(iterator) == 1
        with pytest.raises(ValueError, match="broken"):
            next(iterator)


def test_the_thread_ends_with_its_reader():
    threads = iter(threading.current_thread, None)
    with pytest.raises(KeyboardInterrupt), Prefetcher(threads, 2) as ahead:
        thread = next(iter(ahead))
        raise KeyboardInterrupt
    assert not thread.is_alive() and thread is not threading.current_thread()


@pytest.mark.slow
def test_training_reads_each_pair_ahead_and_once_a_step(tmp_path, monkeypatch):
    real, reads = PairArrays.pair, []

    def pair(self, index):
        reads.append((threading.current_thread() is threading.main_thread(), index))
        return real(self, index)

    base = str(backbone(tmp_path / "base", num_hidden_layers=1))
    config = TrainConfig(model=base, batch=4, steps=6, budget=100)
    monkeypatch.setattr(PairArrays, "pair", pair)
    train([Record(record) for record in pairs(12)], tmp_path / "rm", config, check=False)
    assert {index for _, index in reads} == set(range(12))
    assert not any(in_main for in_main, _ in reads)
    assert len(reads) <= 24  # two epochs
