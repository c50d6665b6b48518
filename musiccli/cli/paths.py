"""The paths that a command reads and writes, and the refusal to use a path twice."""

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from musiccli.core import jsonl
from musiccli.core.cache_folder import cache_folder
from musiccli.core.errors import InputError
from musiccli.core.partial_files import partial_path

NAMED_PATH = re.compile(r"([\w.-]+)=(.+)")  # ./a=b.jsonl is a path
STORE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # SQLite's files of one database

FileId = tuple[int, int]  # device and inode of a regular file or folder


@dataclass(frozen=True)
class PathUse:
    """What a command does with the path of an option: part of the option's annotation.

    Attributes:
        written: whether it writes there; else it reads.
        store: the name of a database in the cache folder, used where the option is left out.
        replaces: the option whose path this one's takes the place of.
        records: whether it is read as a file of records, which must be there.
        names: what the option's values name: a file or folder; a folder that is new or this
            command's own; a reward model or backbone; one that may have NAME= before it; a model
            of which only the tokenizer is read; a model that is called, which is a folder only
            behind `local/`; a set of prompts or a folder; a file, with or without NAME= before it.
    """

    written: bool = False
    store: str = ""
    replaces: str = ""
    records: bool = False
    names: Literal[
        "path", "folder", "model", "named model", "tokenizer", "chat model", "prompts", "named path"
    ] = "path"


READ, WRITTEN = PathUse(), PathUse(written=True)
RECORDS_READ = PathUse(records=True)
NAMED_READ = PathUse(records=True, names="named path")
FOLDER_WRITTEN = PathUse(written=True, names="folder")
MODEL_READ, CHAT_MODEL_READ = PathUse(names="model"), PathUse(names="chat model")
OTHER_MODEL_READ = PathUse(names="model", replaces="model")
NAMED_MODEL_READ, TOKENIZER_READ = PathUse(names="named model"), PathUse(names="tokenizer")


def split_name(value: str) -> tuple[str, str]:
    """The name and the path of NAME=PATH; the name is empty where there is none."""
    match = NAMED_PATH.fullmatch(value)
    return (match[1], match[2]) if match else ("", value)


class UsedPath(NamedTuple):
    """A path in use. Two of the same `real` or the same `file` are one."""

    option: str
    path: str
    use: PathUse
    real: Path
    file: FileId | None


@dataclass
class Folder:
    """A path in use that is, or will be, a folder."""

    used: UsedPath
    files: set[FileId] = field(default_factory=set)  # those at its top; some may be links

    def contains(self, path: UsedPath) -> bool:
        return self.used.real in path.real.parents or path.file in self.files


def path_uses(annotations: Mapping[str, Any]) -> dict[str, PathUse]:
    """The uses that annotations of options hold, by the option."""
    return {
        option: use
        for option, annotation in annotations.items()
        for use in get_args(annotation)[1:]
        if isinstance(use, PathUse)
    }


def refuse_unusable_paths(uses: Mapping[str, PathUse], values: Mapping[str, Any]) -> None:
    """Raise InputError for what the run could not read or write: before anything large is imported.

    Args:
        uses: of the command's options.
        values: of all options, as typed; those of paths are a string, a list of them, or None.
    """
    for option, use in _uses_that_count(uses, values).items():
        for value in _listed(values[option]):
            if use.names in ("model", "named model", "tokenizer", "chat model"):
                _refuse_missing_model(use, value)
            elif use.records and value != "-":
                jsonl.check_readable(split_name(value)[1] if use.names == "named path" else value)
            elif use.names == "folder":
                _refuse_impossible_folder(option, Path(value))


def _uses_that_count(uses: Mapping[str, PathUse], values: Mapping[str, Any]) -> dict[str, PathUse]:
    """The uses without those of options that another one replaces."""
    replaced = {use.replaces for option, use in uses.items() if use.replaces and values[option]}
    return {option: use for option, use in uses.items() if option not in replaced}


def _refuse_missing_model(use: PathUse, model: str) -> None:
    from musiccli.core.bundled_models import refuse_missing_model, refuse_other_folder

    if use.names == "named model":
        model = model.partition("=")[2] or model
    if use.names != "chat model" or model.startswith("local/"):
        refuse_missing_model(model)
        if use.names in ("model", "named model"):
            refuse_other_folder(model)


def _refuse_impossible_folder(option: str, folder: Path) -> None:
    """Raise InputError for a folder that cannot be made, or whose place is taken by a file."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; `{option}` names a folder")
    if not place.is_dir():
        raise InputError(f"{folder}: cannot be written: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written: no permission in {place}")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def refuse_same_paths(uses: Mapping[str, PathUse], values: Mapping[str, Any]) -> None:
    """Raise InputError where an output is another path of the run, or lies in its folder.

    A path that is read may not lie in a folder that is written, either. A folder that is written
    may lie in one that is read: it takes no file's place.

    Args:
        uses: of the command's options.
        values: of all options, as typed; those of paths are a string, a list of them, or None.
    """
    used = [
        path
        for option, use in _uses_that_count(uses, values).items()
        for path in _used_paths(option, use, values[option])
    ]
    _refuse_equal(used)
    _refuse_nested(used)


def _refuse_equal(used: list[UsedPath]) -> None:
    taken = [path for path in used if not path.use.written]
    for path in used:
        if path.use.written:
            if any(_is_same(path, earlier) for earlier in taken):
                raise InputError(
                    f"`{path.option}` {path.path}: this run's own input or output; name another "
                    "file"
                )
            taken.append(path)


def _refuse_nested(used: list[UsedPath]) -> None:
    folders = [Folder(path, _files_in(path.real)) for path in used]
    for path in used:
        for folder in folders:
            outer = folder.used
            changed = outer.use.written or (path.use.written and path.use.names != "folder")
            if changed and path.option != outer.option and folder.contains(path):
                does = "writes" if outer.use.written else "reads"
                raise InputError(
                    f"`{path.option}` {path.path}: lies in `{outer.option}` {outer.path}, which "
                    f"this run {does}; name a place elsewhere"
                )


def _files_in(folder: Path) -> set[FileId]:
    """The files at the top of a folder: a link there may point to one that lies elsewhere."""
    try:
        with os.scandir(folder) as entries:
            states = [entry.stat() for entry in entries if entry.is_file()]
    except OSError:  # no folder, or none yet
        return set()
    return {(state.st_dev, state.st_ino) for state in states}


def _used_paths(option: str, use: PathUse, value: str | list[str] | None) -> Iterator[UsedPath]:
    for path in _typed_paths(option, use, value):
        suffixes = STORE_SUFFIXES if use.store else ("",)
        for suffix in suffixes:
            yield _used_path(option, path + suffix, use)
        if use.written and not use.store and path != "-":
            partial = partial_path(Path(os.path.realpath(path)))
            yield UsedPath(option, path, use, partial, _file_at(partial))


def _typed_paths(option: str, use: PathUse, value: str | list[str] | None) -> list[str]:
    """The option's paths. Without any, records are read from and written to the streams."""
    if not value:
        if use.store:
            return [str(cache_folder() / use.store)]
        return ["-"] if option in ("files", "output") else []
    values = _listed(value)
    if use.names == "prompts":
        from musiccli.prompts import SETS

        return [value for value in values if value not in SETS]
    if use.names == "named path":
        return [split_name(value)[1] for value in values]
    if use.names == "named model":
        values = [value.partition("=")[2] or value for value in values]
    if use.names == "chat model":
        values = [value for value in values if value.startswith("local/")]
    return (
        [_model_path(value) for value in values]
        if "model" in use.names or use.names == "tokenizer"
        else values
    )


def _model_path(model: str) -> str:
    """The folder of a model. That of a bundled one is in the cache; a hub id is none."""
    from musiccli.core.bundled_models import BUNDLED_MODELS, MODELS_FOLDER

    name = model.removeprefix("local/")
    is_bundled = name != model and name in BUNDLED_MODELS
    return str(cache_folder() / MODELS_FOLDER) if is_bundled else name


def _used_path(option: str, path: str, use: PathUse) -> UsedPath:
    if path != "-":
        return UsedPath(option, path, use, Path(os.path.realpath(path)), _file_at(path))
    stream = _descriptor(use)
    file = None if stream is None else _file_at(stream)
    # On Linux, the link tells which file a stream was redirected to.
    real = os.path.realpath(f"/dev/fd/{stream}") if file else ""
    return UsedPath(
        option, path, use, Path(real or ("<stdout>" if use.written else "<stdin>")), file
    )


def _descriptor(use: PathUse) -> int | None:
    """Of the stream that "-" is; None where it is closed."""
    try:
        stream = sys.stdout if use.written else jsonl.standard_input()
        return stream.fileno()  # type: ignore[union-attr]  # AttributeError
    except (OSError, ValueError, AttributeError):
        return None


def _file_at(path: str | Path | int) -> FileId | None:
    """Device and inode of a regular file or folder; None for a device, a pipe or nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    kinds = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
    return (status.st_dev, status.st_ino) if any(kinds) else None


def _is_same(written: UsedPath, earlier: UsedPath) -> bool:
    if written.file and written.file == earlier.file:
        return True
    return written.real == earlier.real and not _is_device(written.path)


def _is_device(path: str) -> bool:
    """Whether it is a device such as /dev/null, which takes whatever comes."""
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
