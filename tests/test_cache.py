"""The store on disk: what is kept and shared, and files that cannot be used."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import orjson
import pytest
from console import music

from musiccli.core import store, store_file
from musiccli.core.cache_folder import cache_folder, make_private_folder
from musiccli.core.errors import InputError
from musiccli.core.store import Store
from musiccli.core.store_file import VERSION
from musiccli.llm.ledger import Ledger
from musiccli.llm.usage import Usage

REPLY = {"text": "hé", "finish": "stop", "prompt_tokens": 3, "completion_tokens": 1, "cost": None}
OPEN_AT_ONCE = """
import os, sys, time
from musiccli.core.store import Store
path, gate, name = sys.argv[1], sys.argv[2], sys.argv[3].encode()
print("ready", flush=True)
while not os.path.exists(gate):
    time.sleep(0.001)
cache = Store(path)
for number in range(50):
    cache.put(name + b"%d" % number, {"number": number})
"""


def open_error(path) -> str:
    """The message of the error that opening the store raises; it is one line."""
    with pytest.raises(InputError) as raised:
        Store(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_was_put_is_got_and_nothing_else(tmp_path):
    cache = Store(tmp_path / "calls.sqlite")
    cache.put(b"one", REPLY)
    assert (cache.get(b"one"), cache.get(b"two")) == (REPLY, None)


def test_a_reply_put_again_replaces_the_first(tmp_path):
    cache = Store(tmp_path / "calls.sqlite")
    cache.put(b"one", {"text": "old"})
    cache.put(b"one", {"text": "new"})
    assert cache.get(b"one") == {"text": "new"}


def test_replies_outlive_the_process_and_folders_are_made(tmp_path):
    first = Store(tmp_path / "deep" / "er" / "calls.sqlite")
    first.put(b"one", REPLY)
    first.close()
    assert Store(tmp_path / "deep" / "er" / "calls.sqlite").get(b"one") == REPLY


@pytest.mark.slow
def test_processes_that_open_a_new_cache_at_the_same_moment_share_it(tmp_path):
    for attempt in range(3):
        path, gate = tmp_path / f"{attempt}.sqlite", tmp_path / f"{attempt}.go"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", OPEN_AT_ONCE, path, gate, name],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in "abc"
        ]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        gate.touch()
        assert [process.communicate()[1] for process in processes] == ["", "", ""]
        cache = Store(path)
        assert [
            cache.get(f"{name}{number}".encode()) for name in "abc" for number in range(50)
        ] == [{"number": number} for number in range(50)] * 3


def test_a_cache_that_another_process_makes_at_the_same_moment_is_no_other_programs(tmp_path):
    real, steps = sqlite3.connect(tmp_path / "c"), []

    class Racing:
        def execute(self, statement: str) -> SimpleNamespace:
            row = real.execute(statement).fetchone()
            if not steps:
                Store(tmp_path / "c").close()
            steps.append(statement)
            return SimpleNamespace(fetchone=lambda: row)

    assert store_file._check_version(Racing(), tmp_path / "c") == VERSION
    assert len(steps) == 2


def test_a_switch_that_another_process_makes_at_the_same_moment_is_waited_for(monkeypatch):
    class Busy:
        refusals = 3

        def execute(self, statement: str) -> None:
            assert statement == "pragma journal_mode = wal"
            if self.refusals:
                self.refusals -= 1
                raise sqlite3.OperationalError("database is locked")

    database = Busy()
    store_file.set_write_ahead(database)
    assert database.refusals == 0
    database.refusals = 99
    monkeypatch.setattr(store_file, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(sqlite3.OperationalError):
        store_file.set_write_ahead(database)


def test_another_process_sees_a_reply_as_soon_as_it_is_put(tmp_path):
    first, second = Store(tmp_path / "calls.sqlite"), Store(tmp_path / "calls.sqlite")
    first.put(b"key", REPLY)
    assert second.get(b"key") == REPLY


def test_a_killed_process_leaves_what_it_had_put(tmp_path):
    path = tmp_path / "calls.sqlite"
    script = (
        "import sys, time; from musiccli.core.store import Store; cache = Store(sys.argv[1]); "
        "cache.put(b'one', {'text': 'kept'}); print('put', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert Store(path).get(b"one") == {"text": "kept"}


@pytest.mark.parametrize(
    "content",
    [b"no database\n" * 100, b"\0" * 5000, b"SQLite format 3\0" + b"\xff" * 4000],
    ids=["text", "zeros", "broken header"],
)
def test_a_file_that_is_no_cache_is_named_with_what_to_do(tmp_path, content):
    path = tmp_path / "calls.sqlite"
    path.write_bytes(content)
    message = open_error(path)
    assert message.startswith(f"{path}: the cache cannot be used: ")
    assert message.endswith("; repair or remove it, or set `no_cache`")
    assert path.read_bytes() == content


def test_a_damaged_page_is_said_when_it_is_met(tmp_path):
    path = tmp_path / "calls.sqlite"
    cache = Store(path)
    for number in range(2000):
        cache.put(b"%d" % number, {"text": "x" * 100})
    cache._database.execute("pragma wal_checkpoint(truncate)")
    cache.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 200_000)
    cache = Store(path)
    with pytest.raises(InputError, match="the cache cannot be used"):
        for number in range(2000):
            cache.get(b"%d" % number)


def test_a_cache_of_another_version_is_left_alone(tmp_path):
    path = tmp_path / "calls.sqlite"
    database = sqlite3.connect(path)
    database.execute("pragma user_version = 7")
    database.close()
    before = path.read_bytes()
    assert open_error(path) == (
        f"{path}: a cache of version 7, this program writes {VERSION}; name another with `cache`"
    )
    assert path.read_bytes() == before


@contextmanager
def without_root_rights():
    """Around code that root could run without an error, since root may write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path_factory, exists):
    folder = tmp_path_factory.mktemp("readonly")
    for parent in folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    if exists:
        cache = Store(folder / "calls.sqlite")
        cache.close()
    folder.chmod(0o555)
    with without_root_rights():
        message = open_error(folder / "calls.sqlite")
    assert message.startswith(f"{folder}/calls.sqlite: the cache cannot be used: ")


def test_a_path_below_a_file_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "the cache cannot be used" in open_error(tmp_path / "file" / "calls.sqlite")


def test_a_folder_in_the_place_of_the_cache_is_said_in_one_line(tmp_path):
    assert "unable to open database file" in open_error(tmp_path)


def test_another_programs_database_is_left_alone(tmp_path):
    for name, table in (("one", "invoices (reply text)"), ("two", "calls (phone text)")):
        database = sqlite3.connect(tmp_path / name)
        database.execute(f"create table {table}")
        database.close()
        before = (tmp_path / name).read_bytes()
        assert open_error(tmp_path / name) == (
            f"{tmp_path / name}: another program's database, not a cache; name another with `cache`"
        )
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("version", [1, 2])
def test_a_cache_of_an_older_version_is_read_and_goes_on(tmp_path, version):
    database = sqlite3.connect(tmp_path / "c")
    database.execute("create table calls (key blob primary key, reply blob, at real)")
    database.execute("insert into calls values (?, ?, 1000.5)", (b"one", b'{"text": "old"}'))
    database.execute("insert into calls (key, reply) values (?, ?)", (b"two", b"{}"))
    if version == 2:
        database.execute("alter table calls add column model text not null default ''")
        database.execute("update calls set model = 'm' where key = ?", (b"one",))
    database.execute(f"pragma user_version = {version}")
    database.commit()
    database.close()
    for number in range(2):
        cache = Store(tmp_path / "c")
        cache.put(b"%d" % number, REPLY, "m")
        assert (cache.get(b"one"), cache.get(b"0")) == ({"text": "old"}, REPLY)
        cache.close()
    cache = Store(tmp_path / "c")
    assert sum(used.entries for used in cache.models()) == 4
    assert cache.models()[0][:5] == (("", 1, 2, 0, 0) if version == 2 else ("", 2, 17, 0, 1000))
    assert (cache.prune(2000), cache.get(b"one"), cache.get(b"1")) == (2, None, REPLY)


def filled(path, count: int, model: str = "m") -> Store:
    """A store with replies of a thousand random letters each, which do not compress to nothing."""
    cache = Store(path)
    generator = random.Random(0)
    with cache.transaction():
        for number in range(count):
            letters = "".join(generator.choices("abcdefghijklmnop", k=1000))
            cache.put(b"%d" % number, {"text": letters}, model)
    return cache


def test_long_replies_are_compressed_and_short_ones_are_not(tmp_path):
    cache, replies = Store(tmp_path / "c"), [{"text": "Why? " * 200}, {"text": "Because."}]
    for number, reply in enumerate(replies):
        cache.put(b"%d" % number, reply)
    sizes = cache._database.execute("select size, length(reply) from calls order by key").fetchall()
    assert sizes[0][0] == sizes[0][1] < 100 and sizes[1] == (19, 19)
    assert [cache.get(b"0"), cache.get(b"1")] == replies


def test_pruning_makes_the_file_smaller_without_writing_it_anew(tmp_path):
    path = tmp_path / "c"
    cache = filled(path, 2000)
    cache._database.execute("update calls set at = 1000 where rowid <= 1000")
    cache._database.execute("pragma wal_checkpoint(truncate)")
    before = path.stat().st_size
    statements: list[str] = []
    cache._database.set_trace_callback(statements.append)
    assert cache.prune(2000) == 1000
    assert path.stat().st_size < 0.8 * before and "vacuum" not in statements
    assert sum("incremental_vacuum" in statement for statement in statements) == 1  # not one a page
    assert cache._database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_pruning_removes_in_batches_and_leaves_no_row_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 7)
    cache = filled(tmp_path / "c", 100)
    cache._database.execute("update calls set at = 1000 where rowid <= 50")
    assert (cache.prune(2000), cache.models()[0].entries) == (50, 50)


def test_an_old_file_that_the_disk_has_no_room_to_write_anew_stays_as_large(tmp_path, monkeypatch):
    database = sqlite3.connect(tmp_path / "c")
    database.execute("create table calls (key blob primary key, reply blob, at real)")
    rows = [(b"%d" % number, b'{"text":"%s"}' % (b"x" * 2000), 0) for number in range(200)]
    database.executemany("insert into calls values (?, ?, ?)", rows)
    database.execute("pragma user_version = 1")
    database.commit()
    database.close()
    cache, usage = Store(tmp_path / "c"), shutil.disk_usage(tmp_path)
    cache._database.execute("pragma wal_checkpoint(truncate)")
    before = (tmp_path / "c").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=before))
    assert (cache.prune(1), (tmp_path / "c").stat().st_size) == (200, before)
    monkeypatch.undo()
    assert cache.prune(1) == 0 and (tmp_path / "c").stat().st_size < 0.2 * before


def test_what_each_model_holds_is_read_from_an_index_alone(tmp_path):
    cache = filled(tmp_path / "c", 10)
    statements: list[str] = []
    cache._database.set_trace_callback(statements.append)
    cache.models(), cache.prune(0)
    reads = [sql for sql in statements if "from calls" in sql]
    plans = [cache._database.execute(f"explain query plan {sql}").fetchall() for sql in reads]
    assert len(plans) == 2 and "calls_by_model" in str(plans[1])
    assert "COVERING INDEX calls_by_model" in str(plans[0])
    assert not any(
        "SCAN calls'" in str(plan) or "TEMP B-TREE FOR GROUP" in str(plan) for plan in plans
    )


def test_another_cache_is_added_once_and_what_is_kept_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 4)
    mine, theirs = Store(tmp_path / "mine"), filled(tmp_path / "theirs", 10, model="b")
    theirs.put(b"a", REPLY, "a")
    mine.put(b"0", REPLY, "a")
    theirs.close()
    with mine.attached(tmp_path / "theirs"):
        assert [mine.add_attached(), mine.add_attached()] == [10, 0]
    assert [(used.model, used.entries) for used in mine.models()] == [("a", 2), ("b", 9)]
    assert (mine.get(b"0"), mine.get(b"a")) == (REPLY, REPLY)


def full_disk_error(cache: Store) -> str:
    """The message of the error that a full disk raises."""
    cache._database.execute("pragma max_page_count = 16")
    with pytest.raises(InputError) as raised:
        for number in range(1000):
            cache.put(b"%d" % number, {"text": "x" * 200})
    return str(raised.value)


def test_a_full_disk_is_said_in_one_line_and_what_was_kept_stays(tmp_path):
    cache = Store(tmp_path / "c")
    assert full_disk_error(cache) == (
        f"{tmp_path}/c: the cache cannot be used: database or disk is full; make room, name "
        "a file elsewhere with `cache`, or set `no_cache`"
    )
    cache.close()
    assert Store(tmp_path / "c").get(b"0") == {"text": "x" * 200}


def test_a_cache_that_another_process_locks_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store_file, "LOCK_TIMEOUT", 0.2)
    cache = Store(tmp_path / "c")
    holder = sqlite3.connect(tmp_path / "c", isolation_level=None)
    holder.execute("begin exclusive")
    messages, waits = set(), []
    for _ in range(20):
        begun = time.monotonic()
        with pytest.raises(InputError) as raised:
            cache.put(b"one", REPLY)
        waits.append(time.monotonic() - begun)
        messages.add(str(raised.value))
    assert waits[0] >= 0.2 and sum(waits[1:]) < 19 * 0.2  # had each waited, it would be more
    assert messages == {
        f"{tmp_path}/c: the cache cannot be used: database is locked; another process holds it: "
        "wait for that, name another with `cache`, or set `no_cache`"
    }


def test_a_reply_that_does_not_parse_is_said(tmp_path):
    cache = Store(tmp_path / "c")
    cache.put(b"one", REPLY)
    cache._database.execute("update calls set reply = ?", (b"{oops",))
    with pytest.raises(InputError, match=r"the cache cannot be used: .*; repair or remove it"):
        cache.get(b"one")


def test_what_is_kept_is_counted_by_model_and_old_calls_can_be_removed(tmp_path):
    cache = Store(tmp_path / "c")
    for number, model in enumerate(("a", "a", "b")):
        cache.put(b"%d" % number, {"n": number}, model)
    cache._database.execute("update calls set at = 1000 where key in (?, ?)", (b"0", b"2"))
    assert [(model, calls, size) for model, calls, size, *_ in cache.models()] == [
        ("a", 2, 14),
        ("b", 1, 7),
    ]
    assert [
        cache.prune(2000, "b"),
        cache.prune(2000, "b"),
        cache.prune(2000),
        cache.prune(2000),
    ] == [1, 0, 1, 0]
    assert [cache.get(key) for key in (b"0", b"1", b"2")] == [None, {"n": 1}, None]


def test_the_command_shows_and_prunes(tmp_path):
    path = tmp_path / "calls.sqlite"
    none = music("cache", "--cache", path)
    assert (none.status, none.out, none.err) == (
        0,
        b"",
        f"music cache: {path}: no calls are kept there yet\n",
    )
    cache = Store(path)
    for number in range(1200):
        cache.put(b"%d" % number, REPLY, "gemini/x")
    cache.close()
    shown = music("cache", "--cache", path)
    [record] = map(json.loads, shown.out.splitlines())
    assert (shown.status, record["model"], record["calls"]) == (0, "gemini/x", 1200)
    assert record["bytes"] == 1200 * len(orjson.dumps(REPLY)) and record["first"] <= record["last"]
    assert (
        re.search(r"gemini/x +1,200 +0\.1", shown.err) and f"music cache: {path}, 0." in shown.err
    )
    pruned = music("cache", "--cache", path, "--prune", 0, "--model", "gemini/x")
    assert "music cache: 1,200 calls removed\n" in pruned.err and Store(path).models() == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "x"], "--model says whose calls --prune removes; give both"),
        (["--prune", "-1"], "--prune"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(tmp_path, options, message):
    done = music("cache", "--cache", tmp_path / "c", *options)
    assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1


# What each run has used


def used_by(cache: Store, command: str, **numbers: float) -> Ledger:
    """The ledger of a run, saved."""
    ledger = Ledger(cache, command)
    ledger.save({("judge", "gemini/x"): Usage(**numbers)})
    return ledger


def test_the_ledgers_of_several_machines_add_up_however_often_they_are_joined(tmp_path):
    mine, theirs = (Store(tmp_path / name) for name in ("mine", "theirs"))
    used_by(mine, "judge 1/2", calls=3, cached=1, prompt_tokens=5, cost=0.5)
    used_by(theirs, "judge 2/2", calls=4, retries=2, completion_tokens=7, cost=0.25)
    theirs.close()
    for _ in range(2):
        with mine.attached(tmp_path / "theirs"):
            Ledger(mine).add_attached()
    entries = Ledger(mine).entries()
    assert {(entry.command, entry.role, entry.model) for entry in entries} == {
        ("judge 1/2", "judge", "gemini/x"),
        ("judge 2/2", "judge", "gemini/x"),
    }
    assert entries[0].used + entries[1].used == Usage(7, 1, 2, 5, 7, 0.75)


def test_a_run_that_has_grown_since_takes_the_place_of_what_was_joined(tmp_path):
    mine, theirs = (Store(tmp_path / name) for name in ("mine", "theirs"))
    ledger = used_by(theirs, "judge", calls=1)
    for calls, ended in ((1, 10), (9, 20), (5, 15)):  # the last is an older copy
        ledger.save({("judge", "gemini/x"): Usage(calls=calls)})
        theirs.execute("update runs set ended = ?", ended)
        with mine.attached(tmp_path / "theirs"):
            Ledger(mine).add_attached()
    assert [(entry.used.calls, entry.ended) for entry in Ledger(mine).entries()] == [(9, 20)]


def test_a_cache_without_runs_is_added(tmp_path):
    filled(tmp_path / "theirs", 3).close()
    done = music("cache", "--cache", tmp_path / "mine", "--add", tmp_path / "theirs")
    assert done.lines[0] == f"music cache: {tmp_path}/theirs: 3 calls and 0 lines of runs added"
    assert [record["calls"] for record in done.records] == [3]


def test_the_command_shows_runs_and_their_sum(tmp_path):
    calls = Store(tmp_path / "c")
    for number in (1, 2):
        used_by(calls, f"judge {number}/2", calls=600, prompt_tokens=5, cost=0.5)
    calls.close()
    done = music("cache", "--cache", tmp_path / "c", "--runs")
    # Both began in one second, so either may come first.
    assert {record["command"] for record in done.records} == {"judge 1/2", "judge 2/2"}
    assert len(done.records) == 2
    assert sum(record["cost"] for record in done.records) == 1.0
    assert re.search(r"judge gemini/x +1,200 +0 +0 +10 +0 +\$1\.0000", done.err)


def test_a_cost_that_nobody_knows_is_null_and_not_zero(tmp_path):
    calls = Store(tmp_path / "c")
    used_by(calls, "judge", calls=1, unpriced=1)
    calls.close()
    [record] = music("cache", "--cache", tmp_path / "c", "--runs").records
    assert (record["cost"], record["price_unknown"]) == (None, True)


def test_a_file_that_is_not_there_is_not_made_by_adding_it(tmp_path):
    done = music("cache", "--cache", tmp_path / "c", "--add", tmp_path / "none")
    assert (done.status, done.lines) == (
        2,
        [f"music cache: error: --add {tmp_path}/none: no such file"],
    )
    assert list(tmp_path.iterdir()) == []


# Who may read it


def mode(path) -> str:
    return oct(path.stat().st_mode & 0o777)


@pytest.fixture
def loose_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_new_cache_is_read_by_its_owner_alone(tmp_path, monkeypatch, loose_umask):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    opened = Store(cache_folder() / "calls.sqlite")
    opened.put(b"key", {"text": "private"})
    modes = {file.name: mode(file) for file in (tmp_path / "cache").iterdir()}
    assert mode(tmp_path / "cache") == "0o700"
    assert modes == dict.fromkeys(("calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm"), "0o600")
    opened.close()


def test_a_cache_that_others_could_read_is_tightened(tmp_path, monkeypatch, loose_umask):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    Store(cache_folder() / "calls.sqlite").close()
    (tmp_path / "cache").chmod(0o755)
    (tmp_path / "cache" / "calls.sqlite").chmod(0o644)
    make_private_folder(cache_folder() / "models").chmod(0o777)
    Store(cache_folder() / "calls.sqlite").close()
    make_private_folder(cache_folder() / "models")
    assert mode(tmp_path / "cache" / "models") == mode(tmp_path / "cache") == "0o700"
    assert mode(tmp_path / "cache" / "calls.sqlite") == "0o600"


def test_a_folder_of_other_things_keeps_its_mode(tmp_path, monkeypatch, loose_umask):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path))
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    Store(cache_folder() / "calls.sqlite").close()
    assert (mode(tmp_path), mode(tmp_path / "calls.sqlite")) == ("0o755", "0o600")
    Store(tmp_path / "elsewhere" / "mine.sqlite").close()
    assert mode(tmp_path / "elsewhere") == "0o700"


def test_a_foreign_file_keeps_its_mode(tmp_path):
    (tmp_path / "records.jsonl").write_bytes(b"{}")
    (tmp_path / "records.jsonl").chmod(0o644)
    with pytest.raises(InputError):
        Store(tmp_path / "records.jsonl")
    assert mode(tmp_path / "records.jsonl") == "0o644"


def test_tokenized_pairs_are_shown_and_removed_with_the_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "tokens" / "settings"
    folder.mkdir(parents=True)
    for name, age in (("old.pairs", 20), ("new.pairs", 2)):
        (folder / name).write_bytes(bytes(500_000))
        os.utime(folder / name, (0, time.time() - age * 86400))
    size = f"music cache: {folder.parent}, 1.0 MB of tokenized pairs"
    assert music("cache").lines[0] == size
    Store(tmp_path / "cache" / "calls.sqlite").close()
    for more in (["--cache", tmp_path / "cache" / "calls.sqlite"], ["--model", "m"]):
        music("cache", "--prune", 7, *more)
    assert len(os.listdir(folder)) == 2
    pruned = music("cache", "--prune", 7)
    assert (pruned.status, pruned.lines[:2]) == (
        0,
        [
            "music cache: 0.5 MB of tokenized pairs removed",
            f"music cache: {folder.parent}, 0.5 MB of tokenized pairs",
        ],
    )
    assert os.listdir(folder) == ["new.pairs"]
