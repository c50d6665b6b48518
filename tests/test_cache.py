"""The store on disk: what is kept and shared, and files that cannot be used."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager

import orjson
import pytest
from console import music

from musiccli.core.cache_folder import cache_folder, make_private_folder
from musiccli.core.errors import InputError
from musiccli.core.store import VERSION, Store

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


def test_a_switch_that_another_process_makes_at_the_same_moment_is_waited_for(
    tmp_path, monkeypatch
):
    class Busy:
        refusals = 3

        def execute(self, statement: str) -> None:
            assert statement == "pragma journal_mode = wal"
            if self.refusals:
                self.refusals -= 1
                raise sqlite3.OperationalError("database is locked")

    cache = Store(tmp_path / "calls.sqlite")
    cache._database = Busy()
    cache._set_write_ahead()
    assert cache._database.refusals == 0
    cache._database.refusals = 99
    monkeypatch.setattr("musiccli.core.store.LOCK_TIMEOUT", 0.1)
    with pytest.raises(sqlite3.OperationalError):
        cache._set_write_ahead()


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


def test_a_cache_of_version_1_is_read_and_goes_on(tmp_path):
    database = sqlite3.connect(tmp_path / "c")
    database.execute("create table calls (key blob primary key, reply blob, at real)")
    database.execute("insert into calls values (?, ?, 0)", (b"one", b'{"text": "old"}'))
    database.execute("pragma user_version = 1")
    database.commit()
    database.close()
    for number in range(2):
        cache = Store(tmp_path / "c")
        cache.put(b"%d" % number, REPLY, "m")
        assert (cache.get(b"one"), cache.get(b"0")) == ({"text": "old"}, REPLY)
        cache.close()


def full_disk_error(cache: Store) -> str:
    """The message of the error that a full disk raises."""
    cache._database.execute("pragma max_page_count = 8")
    with pytest.raises(InputError) as raised:
        for number in range(100):
            cache.put(b"%d" % number, {"text": "x" * 1000})
    return str(raised.value)


def test_a_full_disk_is_said_in_one_line_and_what_was_kept_stays(tmp_path):
    cache = Store(tmp_path / "c")
    assert full_disk_error(cache) == (
        f"{tmp_path}/c: the cache cannot be used: database or disk is full; make room, name "
        "a file elsewhere with `cache`, or set `no_cache`"
    )
    cache.close()
    assert Store(tmp_path / "c").get(b"0") == {"text": "x" * 1000}


def test_a_cache_that_another_process_locks_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr("musiccli.core.store.LOCK_TIMEOUT", 0.2)
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
    cache._database.execute("insert into calls (key, reply) values (?, ?)", (b"one", b"{oops"))
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
    store = Store(cache_folder() / "calls.sqlite")
    store.put(b"key", {"text": "private"})
    modes = {file.name: mode(file) for file in (tmp_path / "cache").iterdir()}
    assert mode(tmp_path / "cache") == "0o700"
    assert modes == dict.fromkeys(("calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm"), "0o600")
    store.close()


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
