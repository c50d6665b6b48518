"""Finished calls on disk, so that no call is paid for twice: one SQLite file that several processes may share."""

import os
import sqlite3
import time
from pathlib import Path

import orjson

from musiccli.errors import InputError

VERSION = 1
PATIENCE = 30.0  # seconds to wait for another process that is writing


class Cache:
    """Replies by key. Raises InputError, in one line, where the file cannot be used."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        found = self._database.execute("pragma user_version").fetchone()[0]
        if found not in (0, VERSION):
            raise InputError(f"{self.path}: a call cache of version {found}, this program writes {VERSION}; "
                             "name another with --cache")
        self._write_ahead()
        self._database.execute("pragma synchronous = normal")
        if not found:
            self._database.execute("create table if not exists calls (key blob primary key, reply blob, at real)")
            self._database.execute(f"pragma user_version = {VERSION}")

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
        try:
            row = self._database.execute("select reply from calls where key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return orjson.loads(row[0]) if row else None

    def put(self, key: bytes, reply: dict) -> None:
        try:
            self._database.execute("insert or replace into calls values (?, ?, ?)",
                                   (key, orjson.dumps(reply), time.time()))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        self._database.close()

    def _unusable(self, error: Exception) -> InputError:
        hint = "another process holds it" if "locked" in str(error) else "mend or remove it, or run with --no-cache"
        return InputError(f"{os.fspath(self.path)}: the call cache cannot be used: {error}; {hint}")
