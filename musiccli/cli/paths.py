"""The paths that a command reads and writes, and the refusal to use a path twice."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from musiccli.core import jsonl
from musiccli.core.cache_folder import cache_folder
from musiccli.core.errors import InputError

STORE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # SQLite's files of one database


@dataclass(frozen=True)
class PathUse:
    """What a command does with the path of an option: part of the option's annotation.

    Attributes:
        written: whether it writes there; else it reads.
        store: the name of a database in the cache folder, used where the option is left out.
        replaces: the option whose output this one's takes the place of.
        whole: whether all files in a folder are read.
    """

    written: bool = False
    store: str = ""
    replaces: str = ""
    whole: bool = False


READ, WRITTEN = PathUse(), PathUse(written=True)


class UsedPath(NamedTuple):
    """A path in use. Two of the same `real` or the same `file` are one."""

    option: str
    path: str
    use: PathUse
    real: str
    file: tuple[int, int] | None  # device and inode of a regular file or folder


def path_uses(annotations: Mapping[str, Any]) -> dict[str, PathUse]:
    """The uses that annotations of options hold, by the option."""
    return {
        option: use
        for option, annotation in annotations.items()
        for use in get_args(annotation)[1:]
        if isinstance(use, PathUse)
    }


def refuse_same_paths(uses: Mapping[str, PathUse], values: Mapping[str, Any]) -> None:
    """Raise InputError where an output is also an input or another output.

    Args:
        uses: of the command's options.
        values: of all options, as typed; those of paths are a string, a list of them, or None.
    """
    replaced = {use.replaces for option, use in uses.items() if use.replaces and values[option]}
    used = [
        path
        for option, use in uses.items()
        if option not in replaced
        for path in _used_paths(option, use, values[option])
    ]
    taken = [path for path in used if not path.use.written]
    for path in used:
        if path.use.written:
            if any(_is_same(path, earlier) for earlier in taken):
                raise InputError(
                    f"`{path.option}` {path.path}: this run's own input or output; name another "
                    "file"
                )
            taken.append(path)


def _used_paths(option: str, use: PathUse, value: str | list[str] | None) -> Iterator[UsedPath]:
    for path in _typed_paths(option, use, value):
        if use.store:
            yield from (_used_path(option, path + suffix, use) for suffix in STORE_SUFFIXES)
        elif used := _used_path(option, path, use):
            yield used


def _typed_paths(option: str, use: PathUse, value: str | list[str] | None) -> Iterable[str]:
    """The option's paths. Without any, records are read from and written to the streams."""
    if value:
        return [value] if isinstance(value, str) else value
    if use.store:
        return [str(cache_folder() / use.store)]
    return ["-"] if option in ("files", "output") else []


def _used_path(option: str, path: str, use: PathUse) -> UsedPath:
    real = os.path.realpath(path)
    if path == "-":
        real = "<stdout>" if use.written else "<stdin>"
    return UsedPath(option, path, use, real, _file(path, use))


def _file(path: str, use: PathUse) -> tuple[int, int] | None:
    """Device and inode of a regular file or folder; None for a device, a pipe or nothing."""
    try:
        if path != "-":
            status = os.stat(path)
        else:
            stream = sys.stdout if use.written else jsonl.standard_input()
            status = os.fstat(stream.fileno())  # type: ignore[union-attr]  # AttributeError
    except (OSError, ValueError, AttributeError):  # missing, or a stream that is closed
        return None
    kinds = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if any(kinds) else None


def _is_same(written: UsedPath, earlier: UsedPath) -> bool:
    if written.file and earlier.use.whole and Path(earlier.real) in Path(written.real).parents:
        return True  # a file of the folder that is read
    if written.file and written.file == earlier.file:
        return True
    return written.real == earlier.real and not _is_device(written.path)


def _is_device(path: str) -> bool:
    """Whether it is a device such as /dev/null, which takes whatever comes."""
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
