"""A key-value store in one SQLite file, which several processes may use at once.

It holds the replies of finished LLM calls and the scores of finished records, so that neither is
computed or paid for twice.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from musiccli.core.cache_folder import PRIVATE_FILE, make_private, make_private_folder
from musiccli.core.errors import InputError

SUFFIXES = ("", "-wal", "-shm")  # of the store's file, and of those that SQLite keeps beside it
VERSION = 2  # version 1 had no column `model`, which is added to such files
LOCK_TIMEOUT = 30.0  # seconds to wait for another process that is writing
CREATE_TABLE = "create table if not exists calls (key blob primary key, reply blob, at real)"
FOREIGN_TABLES = (
    "select 1 from sqlite_master where tbl_name <> 'calls' or sql not like '%reply blob%'"
)
HINTS = {  # by words in SQLite's message
    "locked": "another process holds it: wait for that, name another with `cache`",
    "full": "make room, name a file elsewhere with `cache`",
    "readonly": "make it writable, name another with `cache`",
    "unable to open": "name a file that can be written with `cache`",
    "Errno": "name a file that can be written with `cache`",
}


class ModelUsage(NamedTuple):
    """What the store holds of one model.

    Attributes:
        size: the bytes of all replies.
        first: when the oldest entry was put, as a Unix time in seconds.
        last: when the newest entry was put.
    """

    model: str
    entries: int
    size: int
    first: float
    last: float


class Store:
    """JSON objects by key. Every method raises InputError where the file cannot be used."""

    def __init__(self, path: str | Path) -> None:
        """Open the file. A missing file or folder is created. Only its owner may read the file."""
        self.path = Path(path)
        self._failure = ""  # the first error: later calls raise it at once, without waiting again
        try:
            make_private_folder(self.path.parent)
            with suppress(FileExistsError):  # the files that SQLite adds get the mode of this one
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
            self._database = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT, isolation_level=None)
            self._prepare()
            for suffix in SUFFIXES:
                make_private(Path(f"{self.path}{suffix}"))
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def get(self, key: bytes) -> dict[str, Any] | None:
        """The value of a key, or None."""
        row = self._execute("select reply from calls where key = ?", key).fetchone()
        try:
            return orjson.loads(row[0]) if row else None
        except ValueError as error:
            raise self._unusable(error) from error

    def put(self, key: bytes, value: dict[str, Any], model: str = "") -> None:
        """Keep a value. It is in the file when this returns, or at the end of a transaction."""
        self._execute(
            "insert or replace into calls (key, reply, at, model) values (?, ?, ?, ?)",
            key,
            orjson.dumps(value),
            time.time(),
            model,
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everything that is put within this context, or nothing of it after an exception."""
        self._execute("begin immediate")
        try:
            yield
        except BaseException:
            self._execute("rollback")
            raise
        self._execute("commit")

    def models(self) -> list[ModelUsage]:
        """What the store holds of each model, in alphabetical order."""
        rows = self._execute(
            "select model, count(*), sum(length(reply)), min(at), max(at) from calls "
            "group by model order by model"
        )
        return [ModelUsage(*row) for row in rows.fetchall()]

    def prune(self, before: float, model: str | None = None) -> int:
        """Remove what was put before a Unix time, of one model or of all; return how many."""
        count = self._execute(
            "delete from calls where at < ? and model = coalesce(?, model)", before, model
        ).rowcount
        self._execute("vacuum")
        self._execute("pragma wal_checkpoint(truncate)").fetchall()
        return count

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _prepare(self) -> None:
        """Check that the file is a store of ours or new, and create the table if it is missing."""
        version = self._database.execute("pragma user_version").fetchone()[0]
        if version not in (0, 1, VERSION):
            raise InputError(
                f"{self.path}: a cache of version {version}, this program writes {VERSION}; "
                "name another with `cache`"
            )
        if not version and self._database.execute(FOREIGN_TABLES).fetchone():
            raise InputError(
                f"{self.path}: another program's database, not a cache; name another with `cache`"
            )
        self._set_write_ahead()
        self._database.execute("pragma synchronous = normal")
        if version != VERSION:
            self._make_table()

    def _set_write_ahead(self) -> None:
        """Let others read while one process writes.

        While another process sets this, SQLite refuses it at once and does not wait.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self._database.execute("pragma journal_mode = wal")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def _make_table(self) -> None:
        """Create the table, or add the new column to that of version 1. Other processes wait."""
        execute = self._database.execute
        execute("begin immediate")
        execute(CREATE_TABLE)
        if "model" not in {row[1] for row in execute("pragma table_info(calls)")}:
            execute("alter table calls add column model text not null default ''")
        execute(f"pragma user_version = {VERSION}")
        execute("commit")

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if self._failure:
            raise InputError(self._failure)
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            unusable = self._unusable(error)
            self._failure = str(unusable)
            raise unusable from error

    def _unusable(self, error: Exception) -> InputError:
        hints = [hint for words, hint in HINTS.items() if words in str(error)]
        hint = hints[0] if hints else "repair or remove it"
        return InputError(
            f"{self.path}: the cache cannot be used: {error}; {hint}, or set `no_cache`"
        )
