"""Pairs are tokenized once, by several processes, and every run and rank maps them from then on."""

import json
import os
import resource
import signal
import stat
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import preloaded
import psutil
import pytest
from build import read, talk, write
from console import environment, music, wait_until
from toys import backbone, pair, pairs, tokenizer, write_tokenizer

from musiccli.core.cache_folder import remove_unused
from musiccli.core.errors import InputError, RecordError
from musiccli.core.jsonl import RecordFiles, Rejects
from musiccli.core.records import Record, parse_preference
from musiccli.core.run_stats import RunStats
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.train import record_batches, token_cache
from musiccli.train.token_cache import load_pairs, settings_hash
from musiccli.train.tokenized_pairs import PairTokenizer
from musiccli.train.tokenizing_processes import TokenizingProcesses

REFUSES = (
    "{% for m in messages %}{% if m.content == 'x' %}{{ raise_exception('no x') }}{% endif %}"
    "{{ m.role }}:{{ m.content }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def pair_tokenizer():
    return PairTokenizer(ChatTemplate(tokenizer("smollm2")), packed=True, max_length=60)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer on disk, written before a test's empty cache would convert its model anew."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, "smollm2")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of tokenized pairs in an empty cache; batches have four records."""
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_batches, "BATCH_PAIRS", 4)
    monkeypatch.setattr(token_cache, "cores", lambda: 2)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def written(monkeypatch):
    """The names of the parts that processes were asked to write."""
    names, real = [], TokenizingProcesses.write_part

    def write_part(self, lines, path):
        names.append(path.name)
        return real(self, lines, path)

    monkeypatch.setattr(TokenizingProcesses, "write_part", write_part)
    return names


@pytest.fixture
def file(tmp_path):
    """18 pairs, of which some are cut and some dropped: five batches."""
    return write(tmp_path / "pairs.jsonl", *pairs(18))


def files(*paths):
    return RecordFiles([str(path) for path in paths], parse_preference, unique=False)


def load(source, pair_tokenizer, stats=None, **settings):
    return load_pairs(source, pair_tokenizer, stats or RunStats(), **settings)


def in_memory(source, pair_tokenizer, monkeypatch, stats=None, **settings):
    """The same of one batch, which no file and no other process has a part in."""
    with monkeypatch.context() as patch:
        patch.setattr(record_batches, "BATCH_PAIRS", 1000)
        return load(source, pair_tokenizer, stats, **settings)


def test_pairs_from_disk_are_those_of_memory(file, folder, pair_tokenizer, monkeypatch, written):
    counts = RunStats(), RunStats(), RunStats()
    expected = in_memory(files(file), pair_tokenizer, monkeypatch, counts[0])
    assert not folder.exists() and not written
    for stats in counts[1:]:
        loaded = load(files(file), pair_tokenizer, stats)
        assert list(loaded.pairs) == list(expected.pairs)
        assert loaded.pairs.fingerprint == expected.pairs.fingerprint
        assert loaded.pairs.vocabulary == expected.pairs.vocabulary
        assert loaded.files == expected.files == {str(file): 18}
        assert stats.phrases() == counts[0].phrases() != {}
    assert len(written) == 5


def test_files_that_have_not_changed_are_not_read_again(file, folder, pair_tokenizer, monkeypatch):
    first = load(files(file), pair_tokenizer)
    again, real, lines = files(file), RecordFiles.read, []

    def read_lines(self, rejects):
        for record in real(self, rejects):
            lines.append(record)
            yield record

    monkeypatch.setattr(RecordFiles, "read", read_lines)
    assert load(again, pair_tokenizer).pairs.fingerprint == first.pairs.fingerprint
    assert len(lines) == 8  # two batches say that the input is not small
    assert again.read_count == 18


def test_folders_and_files_are_private(file, folder, pair_tokenizer):
    load(files(file), pair_tokenizer)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700}
    assert Counter(path.suffix for path in folder.rglob("*.*")) == {
        ".pairs": 5,
        ".json": 1,
        ".lock": 1,
    }


def test_a_file_that_grew_is_tokenized_from_its_last_part_on(file, folder, pair_tokenizer, written):
    load(files(file), pair_tokenizer)
    del written[:]
    write(file, *pairs(18), pair("more", talk("q", "yes"), talk("q", "no")))
    assert load(files(file), pair_tokenizer).files.total() == 19
    assert len(written) == 1


def test_records_of_a_program_are_tokenized_once_too(folder, pair_tokenizer, written):
    records = [Record(record) for record in pairs(18)]
    first = load(records, pair_tokenizer)
    assert list(load(records, pair_tokenizer).pairs) == list(first.pairs)
    assert len(written) == 5 and first.files == {"": 18}


def test_what_decides_the_tokens_decides_the_folder(pair_tokenizer):
    template, small = (ChatTemplate(tokenizer("smollm2"), rows) for rows in (None, 100))
    template.tokenizer.chat_template = REFUSES
    added = ChatTemplate(tokenizer("smollm2"))
    added.tokenizer.add_tokens(["north south"])
    variants = [
        pair_tokenizer,
        replace(pair_tokenizer, max_length=61),
        replace(pair_tokenizer, packed=False),
        replace(pair_tokenizer, per_turn=True),
        replace(pair_tokenizer, margin_field="id"),
        *(replace(pair_tokenizer, chat_template=other) for other in (template, small, added)),
    ]
    assert len({settings_hash(variant) for variant in variants}) == len(variants)
    same = PairTokenizer(ChatTemplate(tokenizer("smollm2")), packed=True, max_length=60)
    assert settings_hash(same) == settings_hash(pair_tokenizer)


def test_other_factors_of_margins_share_the_parts(tmp_path, folder, pair_tokenizer, written):
    given = write(tmp_path / "in.jsonl", *[one | {"id": n} for n, one in enumerate(pairs(18))])
    scored = replace(pair_tokenizer, margin_field="id", max_length=2048)
    for scale in (1.0, 0.5, 0.5):
        loaded = load(files(given), scored, margin_scale=scale)
        assert [pair.margin for pair in loaded.pairs] == [scale * number for number in range(18)]
    assert len(written) == 5


# Bad records


@pytest.fixture
def flawed(tmp_path):
    """A file whose bad lines stand before, between and behind good records and bad ones."""
    good = [json.dumps(record).encode() + b"\n" for record in pairs(9)]
    refused = json.dumps(pair("r", talk("q", "x"), talk("q", "b"))).encode() + b"\n"
    path = tmp_path / "flawed.jsonl"
    path.write_bytes(
        b"".join([b"nothing\n", *good[:2], refused, b"{}\n", *good[2:], refused, b"no\n"])
    )
    return path


@pytest.fixture(scope="module")
def strict():
    template = ChatTemplate(tokenizer("smollm2"))
    template.tokenizer.chat_template = REFUSES
    return PairTokenizer(template, packed=True, max_length=2048)


def test_bad_records_are_the_same_ones_in_the_same_order(
    flawed, folder, strict, monkeypatch, tmp_path
):
    reported = []
    for number, loads in enumerate((in_memory, load, load)):
        lines = []
        rejects = Rejects(
            skip=True, path=str(tmp_path / f"bad-{number}.jsonl"), report=lines.append
        )
        more = {"monkeypatch": monkeypatch} if loads is in_memory else {}
        loaded = loads(files(flawed), strict, stats=RunStats(rejects), **more)
        rejects.close()
        reported.append((lines, read(tmp_path / f"bad-{number}.jsonl"), loaded.files))
    assert reported[0] == reported[1] == reported[2]
    lines, records, counts = reported[0]
    assert [line.split(":")[1] for line in lines] == ["1", "4", "5", "13", "14"]
    assert lines[1] == f"{flawed}:4: messages: the chat template refuses it: no x"
    assert [record.get("id") for record in records] == [None, "r", None, "r", None]
    assert counts == {str(flawed): 11}


def test_the_first_bad_record_ends_the_run(flawed, folder, strict, monkeypatch):
    flawed.write_bytes(flawed.read_bytes().split(b"\n", 1)[1])  # the first line is good now
    for _ in range(2):
        with pytest.raises(RecordError, match=f"{flawed}:3: messages: .* no x"):
            load(files(flawed), strict)
    stats = RunStats(Rejects(skip=True))
    load(files(flawed), strict, stats)  # leaves an index
    with pytest.raises(RecordError, match=f"{flawed}:3: "):
        load(files(flawed), strict)


def test_an_input_with_very_many_bad_records_is_read_anew(flawed, folder, strict, monkeypatch):
    monkeypatch.setattr(token_cache, "MAX_KEPT_ERRORS", 4)
    for _ in range(2):
        stats = RunStats(Rejects(skip=True))
        load(files(flawed), strict, stats)
        assert stats.rejects.count == 5
    assert not list(folder.rglob("*.json"))


# Interrupted, damaged, at once


def test_a_run_that_was_interrupted_goes_on_behind_its_last_part(
    file, folder, pair_tokenizer, monkeypatch, written
):
    expected = in_memory(files(file), pair_tokenizer, monkeypatch)
    real, finished = token_cache._TokenCache._finish, []

    def interrupt(self, part):
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(part)
        real(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "WAITING_PARTS", 0)
        patch.setattr(token_cache, "cores", lambda: 1)
        patch.setattr(token_cache._TokenCache, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(files(file), pair_tokenizer)
    there = {path.name for path in folder.rglob("*.pairs")}
    assert 2 <= len(there) < 5
    del written[:]
    assert list(load(files(file), pair_tokenizer).pairs) == list(expected.pairs)
    assert len(written) == 5 - len(there) and there.isdisjoint(written)


@pytest.mark.parametrize("damaged", ["*.pairs", "*.json"])
def test_what_is_damaged_is_made_anew(file, folder, pair_tokenizer, monkeypatch, written, damaged):
    expected = in_memory(files(file), pair_tokenizer, monkeypatch)
    load(files(file), pair_tokenizer)
    path = sorted(folder.rglob(damaged))[0]
    path.write_bytes(path.read_bytes()[:-7])
    del written[:]
    assert list(load(files(file), pair_tokenizer).pairs) == list(expected.pairs)
    assert written == ([path.name] if damaged == "*.pairs" else [])


def test_what_nobody_used_for_long_can_be_removed(file, folder, pair_tokenizer, written):
    load(files(file), pair_tokenizer)
    for path in folder.rglob("*.*"):
        os.utime(path, (0, 0))
    load(files(file), pair_tokenizer)  # marks the index and its parts as used
    assert remove_unused(folder, time.time() - 1000) == 0
    assert len(list(folder.rglob("*.pairs"))) == 5
    assert remove_unused(folder, time.time() + 1000) > 1000
    assert len(load(files(file), pair_tokenizer).pairs) and len(written) == 10


def test_pairs_that_are_mapped_take_no_memory_until_they_are_read(file, folder, pair_tokenizer):
    def resident():
        maps = psutil.Process().memory_maps(grouped=False)
        return sum(map_.rss for map_ in maps if map_.path.startswith(str(folder)))

    kept = [load(files(file), pair_tokenizer).pairs for _ in range(2)]
    assert resident() == 0
    part = kept[1].arrays[0]
    assert part.tokens[0] >= 0
    assert resident() > 0
    part.release()
    assert resident() == 0


@pytest.fixture
def few_open_files():
    """Room for 30 more open files, until a process asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = psutil.Process().num_fds() + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_parts_than_files_that_are_commonly_open(
    tmp_path, folder, pair_tokenizer, few_open_files
):
    many = write(tmp_path / "many.jsonl", *pairs(160))
    for _ in range(2):
        loaded = load(files(many), pair_tokenizer)
        assert len(loaded.pairs.arrays) == 40


def test_more_parts_than_files_that_may_be_open_is_one_line(
    tmp_path, folder, pair_tokenizer, few_open_files, monkeypatch
):
    monkeypatch.setattr(token_cache, "allow_many_files", lambda: few_open_files)
    many = write(tmp_path / "many.jsonl", *pairs(160))
    with pytest.raises(InputError) as raised:
        load(files(many), pair_tokenizer)
    assert str(raised.value) == (
        f"every 512 pairs keep a file open, and this process may open {few_open_files}; "
        "raise the limit (ulimit -n)"
    )


def test_a_process_that_was_killed_is_one_line(file, folder, pair_tokenizer, monkeypatch):
    monkeypatch.setattr(
        PairTokenizer, "tokenize", lambda self, records: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(InputError, match="a process that tokenizes was killed"):
        load(files(file), pair_tokenizer)


def test_a_cache_that_cannot_be_written_is_one_line(file, folder, pair_tokenizer, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match=r"tokenized pairs cannot be kept there: .*MUSIC_CACHE"):
        load(files(file), pair_tokenizer)


LOADS = """
import os, sys, time
from musiccli.core.jsonl import RecordFiles
from musiccli.core.records import parse_preference
from musiccli.core.run_stats import RunStats
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.train import record_batches, token_cache
from musiccli.train.tokenized_pairs import PairTokenizer
from transformers import AutoTokenizer

path, tokens, log, gate = sys.argv[1:]
record_batches.BATCH_PAIRS, token_cache.cores = 4, lambda: 2
real = PairTokenizer.tokenize

def tokenize(self, records):
    if len(records) == 4 or os.getpid() != main:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(gate):
            time.sleep(0.01)
    return real(self, records)

PairTokenizer.tokenize, main = tokenize, os.getpid()
tokenizer = PairTokenizer(ChatTemplate(AutoTokenizer.from_pretrained(tokens)), True, 60)
source = RecordFiles([path], parse_preference, False)
loaded = token_cache.load_pairs(source, tokenizer, RunStats(), say=lambda text: print(text, flush=True))
print(len(loaded.pairs), loaded.pairs.fingerprint, flush=True)
"""


@pytest.fixture
def started(file, folder, tokenizer_folder, tmp_path):
    """Starts a process that loads the pairs, whose tokenizing waits for the file `gate`."""
    processes = []

    def start():
        paths = (file, tokenizer_folder, tmp_path / "log", tmp_path / "gate")
        line = [preloaded.python(), "-c", LOADS, *paths]
        processes.append(
            subprocess.Popen(
                [str(word) for word in line],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_of_two_runs_at_once_one_tokenizes_and_the_other_waits(
    started, file, pair_tokenizer, monkeypatch, tmp_path
):
    expected = in_memory(files(file), pair_tokenizer, monkeypatch).pairs
    first = started()
    wait_until(lambda: first.poll() is not None or (tmp_path / "log").exists())
    second = started()
    assert second.stdout.readline() == "waiting for another process that tokenizes the same pairs\n"
    (tmp_path / "gate").touch()
    for process in (first, second):
        out, _ = process.communicate(timeout=400)
        assert (process.returncode, out) == (0, f"{len(expected)} {expected.fingerprint}\n")
    assert len((tmp_path / "log").read_text().splitlines()) == 5  # one a part


@pytest.mark.slow
def test_a_run_that_is_killed_takes_its_processes_along(started, tmp_path):
    process = started()
    log = tmp_path / "log"
    wait_until(
        lambda: (
            process.poll() is not None or (log.exists() and len(log.read_text().splitlines()) == 2)
        )
    )
    program = preloaded.program(process.pid)
    children = psutil.Process(program).children(recursive=True)
    assert {child.pid for child in children} >= set(map(int, log.read_text().splitlines()))
    os.kill(program, signal.SIGKILL)
    psutil.wait_procs(children, timeout=400)
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    (tmp_path / "gate").touch()
    again = started()
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0 and "waiting" not in out


@pytest.mark.slow
def test_ranks_map_the_files_of_one_of_them(tmp_path, monkeypatch):
    """Every process has batches of 8 pairs, of which 12 are more than one."""
    base = backbone(tmp_path / "base", num_hidden_layers=1)  # an empty cache would convert it anew
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record_batches, "BATCH_PAIRS", 8)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if batches := sys.modules.get('musiccli.train.record_batches'):\n"
        "    batches.BATCH_PAIRS = 8\n"
    )
    given = write(tmp_path / "pairs.jsonl", *pairs(12))
    line = ("train", given, "--model", base, "--batch", 4, "--steps", 2, "--lr", 1e-2)
    whole = music(*line, "--out", tmp_path / "one")
    assert whole.status == 0, whole.err
    parts = {path: path.stat().st_ino for path in (tmp_path / "cache" / "tokens").rglob("*.pairs")}
    assert len(parts) == 2
    done = subprocess.run(
        [
            *preloaded.command(),
            *map(str, line),
            "--num-processes",
            "2",
            "--out",
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        env=environment(MUSIC_CACHE=str(tmp_path / "cache-2"), PYTHONPATH=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache-2" / "tokens").rglob("*.pairs"))) == 2
    one, two = (
        json.loads(Path(tmp_path / name / "music.json").read_text()) for name in ("one", "two")
    )
    assert one["data"] == two["data"]
    assert (
        one["files"]
        == two["files"]
        == [{"name": "pairs.jsonl", "sha256": one["files"][0]["sha256"], "pairs": 12}]
    )
    losses = [
        [step["loss"] for step in read(tmp_path / name / "log.jsonl")] for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
