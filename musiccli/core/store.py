"""Finished calls on disk, so that no call is paid for twice: one SQLite file that several processes may share."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from musiccli.core.errors import InputError

VERSION = 2  # 1 had no model column; such a file gets one
PATIENCE = 30.0  # seconds to wait for another process that is writing
FOREIGN = "select 1 from sqlite_master where tbl_name <> 'calls' or sql not like '%reply blob%'"
HINTS = {  # by SQLite's words, what helps
    "locked": "another process holds it: wait for that, name another with --cache",
    "full": "make room, name a file elsewhere with --cache",
    "readonly": "make it writable, name another with --cache",
    "unable to open": "name a file that can be written with --cache",
    "Errno": "name a file that can be written with --cache",
}


class Store:
    """Replies by key. Raises InputError, in one line, where the file cannot be used."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._failed: str | None = (
            None  # what went wrong for good: the other calls in flight need not wait for it, too
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        found = self._database.execute("pragma user_version").fetchone()[0]
        if found not in (0, 1, VERSION):
            raise InputError(
                f"{self.path}: a call cache of version {found}, this program writes {VERSION}; "
                "name another with --cache"
            )
        if not found and self._database.execute(FOREIGN).fetchone():
            raise InputError(
                f"{self.path}: another program's database, not a call cache; name another with --cache"
            )
        self._write_ahead()
        self._database.execute("pragma synchronous = normal")
        if found != VERSION:
            self._make()

    def _make(self) -> None:
        """The table, in a new file or one of version 1; of several processes one makes it, and the others wait."""
        do = self._database.execute
        do("begin immediate")
        do("create table if not exists calls (key blob primary key, reply blob, at real)")
        if "model" not in {row[1] for row in do("pragma table_info(calls)")}:
            do("alter table calls add column model text not null default ''")
        do(f"pragma user_version = {VERSION}")
        do("commit")

    def _write_ahead(self) -> None:
        """Let others read while one writes. SQLite refuses this switch at once, without waiting, while another process
        makes it, too."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._database.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def get(self, key: bytes) -> dict | None:
        row = self._execute("select reply from calls where key = ?", key).fetchone()
        try:
            return orjson.loads(row[0]) if row else None
        except ValueError as error:
            raise self._unusable(error) from error

    def put(self, key: bytes, reply: dict, model: str = "") -> None:
        """Keep a reply. It is in the file when this returns: a killed process loses nothing that was put."""
        self._execute(
            "insert or replace into calls (key, reply, at, model) values (?, ?, ?, ?)",
            key,
            orjson.dumps(reply),
            time.time(),
            model,
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is put within it is in the file together, or, where that ends early, not at all."""
        self._execute("begin immediate")
        try:
            yield
        except BaseException:
            self._execute("rollback")
            raise
        self._execute("commit")

    def models(self) -> list[tuple[str, int, int, float, float]]:
        """Of each model: its name, calls, bytes of replies, and when the first and the last came (Unix time)."""
        return self._execute(
            "select model, count(*), sum(length(reply)), min(at), max(at) from calls group by model "
            "order by model"
        ).fetchall()

    def prune(self, before: float, model: str | None = None) -> int:
        """Remove calls that came before a moment (Unix time), of one model or of all; how many."""
        count = self._execute(
            "delete from calls where at < ? and model = coalesce(?, model)", before, model
        ).rowcount
        self._execute("vacuum")
        self._execute("pragma wal_checkpoint(truncate)").fetchall()
        return count

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if self._failed:
            raise InputError(self._failed)
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            failure = self._unusable(error)
            self._failed = str(failure)
            raise failure from error

    def close(self) -> None:
        self._database.close()

    def _unusable(self, error: Exception) -> InputError:
        hint = next(
            (hint for words, hint in HINTS.items() if words in str(error)), "mend or remove it"
        )
        return InputError(
            f"{self.path}: the call cache cannot be used: {error}; {hint}, or run with --no-cache"
        )
