"""The folder for what can be computed again: converted models, replies of calls, scores.

Conversations and replies are in it, so nobody else may read what we write there.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600  # modes
TOKENS = "tokens"  # in the cache folder: tokenized training data


def cache_folder() -> Path:
    """The folder $MUSIC_CACHE, or $XDG_CACHE_HOME/musiccli, or ~/.cache/musiccli."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MUSIC_CACHE") or caches / "musiccli")


def make_private_folder(folder: Path) -> Path:
    """Make a folder that only its user may enter; a folder of the cache is tightened.

    The folder $MUSIC_CACHE itself keeps its mode where it holds other things than a cache.

    Raises:
        OSError: it cannot be made.
    """
    root = cache_folder()
    if root in folder.parents:
        make_private_folder(root)
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    if root in folder.parents or (folder == root and _is_cache_alone(root)):
        make_private(folder)
    return folder


def make_private(path: Path) -> None:
    """Take a file or folder from everybody but its owner, where it is ours to do so."""
    mode = PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)


def open_private(path: str, flags: int) -> int:
    """An opener for `open` that lets only the owner read a new file."""
    return os.open(path, flags, PRIVATE_FILE)


def folder_size(folder: Path) -> int:
    """The bytes of all files in a folder and in those below it."""
    return sum(size for _, size, _ in _files(folder))


def remove_unused(folder: Path, before: float) -> int:
    """Remove files in a folder, and in those below it, that were last used before a Unix time.

    Returns:
        How many bytes they had.
    """
    removed = 0
    for path, size, used in _files(folder):
        if used < before:
            path.unlink(missing_ok=True)
            removed += size
    return removed


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Each file, how many bytes it has, and when it was last changed."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was removed just now
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size, status.st_mtime


def _is_cache_alone(folder: Path) -> bool:
    """Whether a folder holds nothing but a cache: not a home folder, nor one of all users."""
    with contextlib.suppress(OSError):
        if folder.stat().st_mode & stat.S_ISVTX:
            return False
        names = {entry.name.lstrip(".").partition(".")[0] for entry in folder.iterdir()}
        return names <= {"calls", "scores", "models", TOKENS}
    return False
