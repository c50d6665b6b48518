"""Files and folders that are written beside their target, and renamed when they are complete.

A partial file is private, marked and locked. So a second run into the same target is refused, and
what a killed run left behind is known to be nobody's: its lock ended with it. Something without the
mark is somebody's own, whatever its name, and stays unless it is empty.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from musiccli.core.cache_folder import PRIVATE_FOLDER
from musiccli.core.errors import InputError

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
NEVER_WAIT = os.O_NOFOLLOW | os.O_NONBLOCK
# The sticky bit is the mark. It means nothing on files, and on folders of one user. The call that
# creates them sets it, and nobody sets it by accident.
MARK = stat.S_ISVTX
PARTIAL_FILE, PARTIAL_FOLDER = 0o600 | MARK, 0o700 | MARK


def partial_path(target: Path) -> Path:
    """Where a file or folder is written before it is complete."""
    return target.with_name(f".{target.name}.partial")


def create_partial(target: Path, name: str) -> tuple[Path, int]:
    """Create the partial file of a target: private, marked, locked, and not there before.

    Args:
        target: the file to write, not a link.
        name: what the user calls it, for errors.

    Returns:
        The path, and the descriptor, which holds the lock until it is closed.

    Raises:
        InputError: another run writes the target, or something else has the partial file's name.
        OSError: it cannot be created.
    """
    partial = partial_path(target)
    while True:
        try:
            descriptor = os.open(partial, NEW_FILE, PARTIAL_FILE)
        except FileExistsError:
            _remove_stale(partial, name)
            continue
        if try_lock(descriptor) is not False and is_at(partial, descriptor):
            return partial, descriptor
        os.close(descriptor)  # another run looked whether it is stale, between the two calls


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A private, locked folder beside a target folder, removed at the end of this context.

    Raises:
        InputError: another run writes the target, or something else has the partial folder's name.
        OSError: it cannot be created.
    """
    from shutil import rmtree

    partial = partial_path(target)
    while True:
        try:
            _make_marked(partial)
        except FileExistsError:
            _remove_stale(partial, str(target))
            continue
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if try_lock(descriptor) is not False and is_at(partial, descriptor):
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        rmtree(partial, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs from writing into a folder within this context.

    Raises:
        InputError: another run writes there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if try_lock(descriptor) is False:
            raise _written_by_another_run(str(folder))
        yield
    finally:
        os.close(descriptor)


def empty_folder(folder: Path) -> Path:
    """Make a private, marked folder in place of the one that a killed run left, and return it.

    Raises:
        InputError: something else is there.
    """
    if os.path.lexists(folder):
        if not _is_ours(folder):
            raise _in_the_way(str(folder.parent), folder)
        _remove(folder)
    _make_marked(folder)
    return folder


def complete_folder(partial: Path, target: Path) -> None:
    """Give a folder that `empty_folder` made, and that is written, its name."""
    os.rename(partial, target)
    target.chmod(PRIVATE_FOLDER)  # it is complete, and no longer marked


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns:
        False where another run holds the lock; None where the file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the path still names the file or folder that is open."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_stale(partial: Path, name: str) -> None:
    """Remove what a killed run left. Nothing is written to it, and no link is followed.

    Raises InputError where it belongs to a run that goes on, or is no partial file of ours.
    """
    try:
        mode = os.lstat(partial).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise _in_the_way(name, partial)
        access = os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR
        descriptor = os.open(partial, access | NEVER_WAIT)
    except FileNotFoundError:  # that run has ended since
        return
    try:
        locked = try_lock(descriptor)
        if locked is False:
            raise _written_by_another_run(name)
        if locked is None:
            raise InputError(f"{name}: {partial} is another run's; remove it if that run has ended")
        if is_at(partial, descriptor):
            if not _is_ours(partial):
                raise _in_the_way(name, partial)
            _remove(partial)
    finally:
        os.close(descriptor)


def _make_marked(folder: Path) -> None:
    folder.mkdir(mode=PARTIAL_FOLDER)
    if not folder.stat().st_mode & MARK:  # macOS sets it only so
        with contextlib.suppress(OSError):  # without the mark nobody removes it but this run
            folder.chmod(PARTIAL_FOLDER)


def _is_ours(path: Path) -> bool:
    """Whether a file or folder bears the mark, or is empty, so that nothing is lost with it."""
    state = os.lstat(path)
    if state.st_mode & MARK and state.st_uid == os.geteuid():
        return True
    if stat.S_ISDIR(state.st_mode):
        return not os.listdir(path)
    return stat.S_ISREG(state.st_mode) and state.st_size == 0


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    from shutil import rmtree

    if path.is_dir() and not path.is_symlink():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _in_the_way(name: str, path: Path) -> InputError:
    return InputError(
        f"{name}: cannot be written: {path} is in the way; no run left it there, so move it away"
    )


def _written_by_another_run(name: str) -> InputError:
    return InputError(f"{name}: another run is writing it; wait for that, or name another")
