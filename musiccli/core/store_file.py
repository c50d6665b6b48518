"""Opens the SQLite file of a store, and brings older versions to the present form."""

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from musiccli.core.cache_folder import PRIVATE_FILE, make_private, make_private_folder
from musiccli.core.errors import InputError

SUFFIXES = ("", "-wal", "-shm")  # of the store's file, and of those that SQLite keeps beside it
# 1 had no column `model`; 2 had the model's name in each row, and no index by model and time.
VERSION = 3
LOCK_TIMEOUT = 30.0  # seconds to wait for another process that is writing
PAGE_CACHE = 32 << 10  # KiB: the inner pages of ten million rows
# Pages of 4 KiB in the write-ahead log before they are written to their places. That costs a
# hundred random writes and two waits for the disk, so it is done for many calls at once.
CHECKPOINT_PAGES = 4000
CREATE = (
    "create table models (id integer primary key, name text not null unique)",
    "create table calls (key blob primary key, model integer not null, at integer not null, "
    "size integer not null, reply blob not null)",
    "create index calls_by_model on calls (model, at, size)",
)
FOREIGN_TABLES = (
    "select 1 from sqlite_master where tbl_name <> 'calls' or sql not like '%reply blob%'"
)


def open_database(path: Path) -> sqlite3.Connection:
    """The database in a file. A missing file or folder is created, for its owner alone.

    Raises:
        InputError: it is another program's, or of a later version.
        sqlite3.Error, OSError: it cannot be used.
    """
    make_private_folder(path.parent)
    with suppress(FileExistsError):  # the files that SQLite adds get the mode of this one
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
    version = _check_version(database, path)
    database.execute("pragma auto_vacuum = incremental")  # of a new file; others keep theirs
    set_write_ahead(database)
    database.execute("pragma synchronous = normal")
    database.execute("pragma secure_delete = fast")  # clears no page that is not written anyway
    database.execute(f"pragma cache_size = -{PAGE_CACHE}")
    database.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if version != VERSION:
        _make_tables(database)
    for suffix in SUFFIXES:
        make_private(Path(f"{path}{suffix}"))
    return database


def set_write_ahead(database: sqlite3.Connection) -> None:
    """Let others read while one process writes.

    While another process sets this, SQLite refuses it at once and does not wait.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            database.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _check_version(database: sqlite3.Connection, path: Path) -> int:
    """The version of the file; 0 for a new one."""
    # Looked up first: another process may make its tables, and set the version, between the two.
    is_foreign = database.execute(FOREIGN_TABLES).fetchone()
    version: int = database.execute("pragma user_version").fetchone()[0]
    if version > VERSION or version < 0:
        raise InputError(
            f"{path}: a cache of version {version}, this program writes {VERSION}; "
            "name another with `cache`"
        )
    if not version and is_foreign:
        raise InputError(
            f"{path}: another program's database, not a cache; name another with `cache`"
        )
    return version


def _make_tables(database: sqlite3.Connection) -> None:
    """Create the tables, and move what an older version holds. Other processes wait."""
    database.execute("begin immediate")
    version = database.execute("pragma user_version").fetchone()[0]
    if version != VERSION:  # else another process was first
        if version:
            database.execute("alter table calls rename to old_calls")
        for statement in CREATE:
            database.execute(statement)
        if version:
            _move_old_calls(database)
        database.execute(f"pragma user_version = {VERSION}")
    database.execute("commit")


def _move_old_calls(database: sqlite3.Connection) -> None:
    """Move the rows of version 1 or 2. Their replies stay as they are, JSON."""
    columns = {row[1] for row in database.execute("pragma table_info(old_calls)")}
    model = "old_calls.model" if "model" in columns else "''"
    database.execute(f"insert into models (name) select distinct {model} from old_calls")
    database.execute(
        "insert into calls select key, models.id, coalesce(cast(at as integer), 0), "
        f"length(reply), reply from old_calls join models on models.name = {model} "
        "order by old_calls.rowid"
    )
    database.execute("drop table old_calls")
