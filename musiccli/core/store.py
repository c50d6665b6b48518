"""A key-value store in one SQLite file, which several processes may use at once.

It holds the replies of finished LLM calls and the scores of finished records, so that neither is
computed or paid for twice. It is made for ten million rows and more.
"""

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from musiccli.core.errors import InputError
from musiccli.core.jsonl.compression import compress, decompress
from musiccli.core.store_file import PAGE_CACHE, open_database

COMPRESSED_FROM = 256  # bytes of JSON; shorter ones gain little
BATCH = 100_000  # rows that are removed or copied in one transaction
# KiB of page cache while rows are removed: a batch touches about as many random index pages.
PRUNE_PAGE_CACHE = 200 << 10
VACUUM_PAGES = 20_000  # pages that are given back in one transaction
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
        size: the bytes of all replies, compressed as they are.
        first: when the oldest entry was put, as a Unix time in seconds.
        last: when the newest entry was put.
    """

    model: str
    entries: int
    size: int
    first: int
    last: int


class Store:
    """JSON objects by key. Every method raises InputError where the file cannot be used."""

    def __init__(self, path: str | Path) -> None:
        """Open the file. A missing file or folder is created. Only its owner may read the file."""
        self.path = Path(path)
        self._failure = ""  # the first error: later calls raise it at once, without waiting again
        self._model_ids: dict[str, int] = {}
        try:
            self._database = open_database(self.path)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def get(self, key: bytes) -> dict[str, Any] | None:
        """The value of a key, or None."""
        row = self.execute("select reply from calls where key = ?", key).fetchone()
        try:
            return orjson.loads(decompress(row[0])) if row else None
        except ValueError as error:
            raise self._unusable(error) from error

    def put(self, key: bytes, value: dict[str, Any], model: str = "") -> None:
        """Keep a value. It is in the file when this returns, or at the end of a transaction."""
        model_id = self._model_ids.get(model) or self._find_model(model)
        data = orjson.dumps(value)
        if len(data) >= COMPRESSED_FROM:
            data = min(compress(data), data, key=len)
        self.execute(
            "insert or replace into calls values (?, ?, ?, ?, ?)",
            key,
            model_id,
            int(time.time()),
            len(data),
            data,
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everything that is put within this context, or nothing of it after an exception."""
        self.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._model_ids.clear()  # those that were added are gone, too
            self.execute("rollback")
            raise
        self.execute("commit")

    def models(self) -> list[ModelUsage]:
        """What the store holds of each model, in alphabetical order."""
        rows = self.execute(
            "select name, entries, size, first, last from models join (select model, "
            "count(*) as entries, sum(size) as size, min(at) as first, max(at) as last from calls "
            "group by model) on model = id order by name"
        )
        return [ModelUsage(*row) for row in rows.fetchall()]

    def prune(self, before: float, model: str | None = None) -> int:
        """Remove what was put before a Unix time, of one model or of all; return how many."""
        models = self.execute("select id from models where name = coalesce(?, name)", model)
        count = 0
        self.execute(f"pragma cache_size = -{PRUNE_PAGE_CACHE}")
        for (model_id,) in models.fetchall():
            while removed := self._remove_batch(model_id, before):
                count += removed
        self._give_space_back()
        self.execute(f"pragma cache_size = -{PAGE_CACHE}")
        return count

    @contextmanager
    def attached(self, path: str | Path) -> Iterator[None]:
        """Let statements read another store under the name `other`."""
        Store(path).close()  # brings an older version to the present form
        self.execute("attach database ? as other", str(path))
        try:
            yield
        finally:
            self._database.execute("detach database other")

    def add_attached(self) -> int:
        """Copy what the attached store holds and this one does not; return how many rows."""
        last = self.execute("select coalesce(max(rowid), 0) from other.calls").fetchone()[0]
        self.execute("insert or ignore into models (name) select name from other.models")
        return sum(
            self.execute(
                "insert or ignore into calls select key, mine.id, at, size, reply "
                "from other.calls as calls join other.models as theirs on calls.model = theirs.id "
                "join main.models as mine on mine.name = theirs.name "
                "where calls.rowid > ? and calls.rowid <= ? order by calls.rowid",
                start,
                start + BATCH,
            ).rowcount
            for start in range(0, last, BATCH)
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        """Run a statement of SQL. After an error, every later one raises the same error."""
        return self._run(self._database.execute, statement, values)

    def _run(self, function: Callable[..., sqlite3.Cursor], *arguments: Any) -> sqlite3.Cursor:
        if self._failure:
            raise InputError(self._failure)
        try:
            return function(*arguments)
        except sqlite3.Error as error:
            unusable = self._unusable(error)
            self._failure = str(unusable)
            raise unusable from error

    def _find_model(self, model: str) -> int:
        """The number of a model, which is added where it is new."""
        row = self.execute("select id from models where name = ?", model).fetchone()
        if not row:
            self.execute("insert or ignore into models (name) values (?)", model)
            row = self.execute("select id from models where name = ?", model).fetchone()
        self._model_ids[model] = row[0]
        return int(row[0])

    def _remove_batch(self, model_id: int, before: float) -> int:
        return self.execute(
            "delete from calls where rowid in "
            "(select rowid from calls where model = ? and at < ? limit ?)",
            model_id,
            before,
            BATCH,
        ).rowcount

    def _give_space_back(self) -> None:
        """Make the file as small as what it holds.

        A file of an older version must be written anew once. Where the disk has no room for that,
        it stays as large as it is, and new calls fill it.
        """
        # The new content stands in a temporary file and in the log before it takes its place.
        has_room = shutil.disk_usage(self.path.parent).free > 2 * self.path.stat().st_size
        if not self._number("auto_vacuum") and has_room:
            self.execute("pragma auto_vacuum = incremental")
            self.execute("vacuum")
        while self._number("auto_vacuum") and self._number("freelist_count"):
            # A row for each page, but without columns: `execute` would end after the first page.
            self._run(self._database.executescript, f"pragma incremental_vacuum({VACUUM_PAGES})")
            self.execute("pragma wal_checkpoint(passive)").fetchall()
        self.execute("pragma wal_checkpoint(truncate)").fetchall()

    def _number(self, pragma: str) -> int:
        return int(self.execute(f"pragma {pragma}").fetchone()[0])

    def _unusable(self, error: Exception) -> InputError:
        hints = [hint for words, hint in HINTS.items() if words in str(error)]
        hint = hints[0] if hints else "repair or remove it"
        return InputError(
            f"{self.path}: the cache cannot be used: {error}; {hint}, or set `no_cache`"
        )
