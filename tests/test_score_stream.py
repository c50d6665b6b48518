"""Scoring as a stream: shares of lines, windows in flight, bad lines, and a run that goes on."""

import json
import threading

import pytest
from build import lines, talk, write
from console import wait_until
from toys import backbone

from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Identities, Line, Rejects, read_lines
from musiccli.core.processes import ProcessGroup
from musiccli.core.reading import read_ahead
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.reward_model import checkpoint
from musiccli.score import scorer
from musiccli.score.config import ScoreConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    base = backbone(folder / "base", "llama", num_hidden_layers=1)
    checkpoint.save(checkpoint.create(str(base)), folder / "toy")
    return checkpoint.load(str(folder / "toy"))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(scorer, "WINDOW", 4)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "scores.sqlite")
    yield opened
    opened.close()


def record(number: int, text: str = "") -> dict:
    return {"id": f"c{number}", "messages": talk(text or "why " * (1 + number % 7), "yes")}


def stream(path, model, store=None, stats=None):
    return scorer.score_lines(
        read_lines([str(path)]),
        model,
        "rm",
        ScoreConfig(),
        store=store,
        process_group=ProcessGroup(),
        stats=stats or RunStats(),
    )


def test_every_process_gets_as_many_windows_and_no_line_twice():
    given = [Line(f"x:{number}", b"{}") for number in range(21)]
    shares = [list(scorer._share(given, ProcessGroup(3, rank))) for rank in range(3)]
    assert [[len(window) for window in share] for share in shares] == [[4, 4], [4, 4], [4, 1]]
    turns = zip(*shares, strict=True)
    assert [line for turn in turns for window in turn for line in window] == given
    uneven = [list(scorer._share(given[:9], ProcessGroup(2, rank))) for rank in range(2)]
    assert [[len(window) for window in share] for share in uneven] == [[4, 1], [4, 0]]


def test_lines_are_scored_as_records_are(model, tmp_path):
    path = write(tmp_path / "in.jsonl", *map(record, range(11)))
    records = [scorer.parse_any(scorer.decode(line.data, "x")) for line in read_lines([str(path)])]
    expected = list(scorer.score(records, model, "rm"))
    assert [json.loads(line) for line in stream(path, model)] == expected


def test_a_run_that_ended_early_goes_on_with_the_same_bytes(model, store, tmp_path):
    """Some texts come again: in the window after, which is begun before their scores are kept."""
    records = [record(n, "the same" if n % 3 == 0 else f"another {'so ' * n}") for n in range(30)]
    path = write(tmp_path / "in.jsonl", *records)
    other = Store(tmp_path / "whole.sqlite")
    whole = list(stream(path, model, other))
    other.close()
    broken = stream(path, model, store)
    first = [next(broken) for _ in range(9)]
    broken.close()
    stats = RunStats()
    again = list(stream(path, model, store, stats))
    assert again == whole and again[:9] == first
    assert 0 < stats.number("sequences_from_the_cache") < 30
    assert len({json.loads(line)["scores"]["rm"] for line in again[::3]}) == 1


def test_bad_lines_are_named_once_and_keep_the_order(model, tmp_path):
    said: list[str] = []
    bad = [record(1), b"{", {"id": "u", "messages": talk("ends with the user")}, record(2)]
    path = write(tmp_path / "in.jsonl", *map(record, range(3, 8)), *bad, record(1), record(9))
    stats = RunStats(Rejects(skip=True, report=said.append))
    ids = [json.loads(line)["id"] for line in stream(path, model, stats=stats)]
    assert ids == ["c3", "c4", "c5", "c6", "c7", "c1", "c2", "c9"]
    assert [text.split(": ")[0] for text in said] == [f"{path}:{line}" for line in (7, 8, 10)]
    assert said[2].endswith("id: 'c1' names an earlier record, too; ids must be unique")


def test_a_bad_line_stops_the_run_behind_the_records_before_it(model, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(record(1), record(2)) + b"{\n" + lines(record(3)))
    written = []
    with pytest.raises(RecordError, match=r"in\.jsonl:3: is not JSON"):
        written += iter(stream(path, model))
        pytest.fail("it did not stop")
    results = stream(path, model)
    assert [json.loads(next(results))["id"] for _ in range(2)] == ["c1", "c2"]


def test_a_window_is_finished_while_the_next_one_is_awaited(model, tmp_path):
    released = threading.Event()

    def slow():
        yield from read_lines([str(path)])
        released.wait()

    path = write(tmp_path / "in.jsonl", *map(record, range(4)))
    group, stats = ProcessGroup(), RunStats()
    results = scorer.score_lines(
        slow(), model, "rm", ScoreConfig(), store=None, process_group=group, stats=stats
    )
    assert [json.loads(next(results))["id"] for _ in range(4)] == ["c0", "c1", "c2", "c3"]
    released.set()
    assert list(results) == []


def test_what_is_read_ahead_keeps_its_order_and_ends_with_its_error():
    def items():
        yield from range(5)
        raise ValueError("damaged")

    read = []
    with pytest.raises(ValueError, match="damaged"):
        for item in read_ahead(items(), 2):
            read.append(item)
    assert [item for item in read if item is not None] == list(range(5))
    assert read[-2:] == [None, None]


def test_the_reader_ends_with_the_one_it_reads_for():
    endless = read_ahead(iter(threading.current_thread, None), 0)
    reader = next(endless)
    assert reader is not threading.current_thread()
    endless.close()
    wait_until(lambda: not reader.is_alive())


def test_identities_are_told_apart_by_all_their_fields():
    seen = Identities()
    for fields in ({"id": "1"}, {"id": 1}, {"id": "1", "sample": 1}, {"id": "1", "branch": "a"}):
        seen.add(fields)
    with pytest.raises(RecordError, match="id: '1' names an earlier record"):
        seen.add({"id": "1", "sample": 1, "messages": []})
