"""Where the rows of a dataset come from: JSON, JSONL and Parquet files, folders, standard input
and the Hugging Face hub.
"""

import contextlib
import glob
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.hub_datasets import CONTAMINATED, SHORT_NAMES, HubDataset

Rows = Iterator[tuple[str, Record]]  # (the name of the source, one of its rows)


DATA_FILE = re.compile(r"\.(parquet|(jsonl|ndjson|json)(\.gz|\.zst)?)$")


def read_rows(
    names: Iterable[str],
    *,
    split: str | None = None,
    revision: str | None = None,
    stats: RunStats | None = None,
) -> Rows:
    """The rows of several datasets, one dataset after the other, each row with its source's name.

    Args:
        names: files, folders, `-` (standard input), short names or hub ids. A file or folder of
            that name comes before a short name or hub id.
        split: the part of a folder or of a hub dataset to read.
        revision: the commit, branch or tag of a hub dataset.
        stats: its `rejects` get the lines that are no JSON objects.

    Raises:
        InputError: a name is none of these, or its data cannot be read. Names are checked before
            the first row is read.
    """
    stats = stats or RunStats()
    sources = [rows for name in names for rows in _open_dataset(name, split, revision, stats)]
    return chain.from_iterable(sources)


def _open_dataset(
    name: str, split: str | None, revision: str | None, stats: RunStats
) -> list[Rows]:
    path = Path(name)
    if path.is_dir():
        _check_local(name, revision)
        return _open_folder(path, split, stats.rejects)
    if name == "-" or path.exists():
        _check_local(name, revision)
        if split:
            raise InputError(
                f"`split` {split}: names a part of a folder or of a hub dataset; {name} is one file"
            )
        return [_open_file(name, stats.rejects)]
    dataset = _hub_dataset(name)
    return [
        _open_hub(
            dataset._replace(split=split or dataset.split, revision=revision or dataset.revision),
            stats,
        )
    ]


def _check_local(name: str, revision: str | None) -> None:
    if revision:
        raise InputError(f"`revision` {revision}: pins a hub dataset; {name} is here on the disk")


def _hub_dataset(name: str) -> HubDataset:
    """The hub dataset of a short name or a hub id."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not DATA_FILE.search(name):
        return HubDataset(name)
    raise InputError(
        f"{name}: no such file or folder, no short name ({', '.join(SHORT_NAMES)}) "
        "and no hub id (OWNER/NAME)"
    )


def _open_folder(path: Path, split: str | None, rejects: jsonl.Rejects) -> list[Rows]:
    """A folder's data files, sorted by name, or a dataset that `datasets` saved there."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return [_open_saved(path, split)]
    files = sorted(
        file
        for file in path.rglob("*")
        if DATA_FILE.search(file.name)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise InputError(f"{path}: holds no .json, .jsonl or .parquet file")
    if split:
        files = [file for file in files if split in re.split(r"\W", str(file.relative_to(path)))]
        if not files:
            raise InputError(f"`split` {split}: no data file in {path} has that name")
    return [_open_file(str(file), rejects) for file in files]


def _open_file(name: str, rejects: jsonl.Rejects) -> Rows:
    if name == "-":
        return _with_source("", jsonl.read(["-"], _unchanged, rejects, unique=False))
    jsonl.check_readable(name)
    source = DATA_FILE.sub("", Path(name).name)
    if name.endswith(".parquet"):
        return _with_source(source, _read_parquet(name))
    if _holds_json_list(name):
        return _with_source(source, _read_json_list(name, rejects))
    return _with_source(source, jsonl.read([name], _unchanged, rejects, unique=False))


def _with_source(source: str, rows: Iterable[Record]) -> Rows:
    return ((source, row) for row in rows)


def _unchanged(row: Record) -> Record:
    return row


def _holds_json_list(path: str) -> bool:
    """Whether a file is one JSON list; any other file is JSONL, whatever its suffix.

    A named pipe can be read only once, so it is always JSONL.
    """
    if not Path(path).is_file():
        return False
    with _damage_is_input_error(path), jsonl.open_input(path) as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read_json_list(path: str, rejects: jsonl.Rejects) -> Iterator[Record]:
    """The items of a file that is one JSON list. The file is read whole."""
    with _damage_is_input_error(path), jsonl.open_input(path) as stream:
        data = stream.read()
    try:
        items = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path}: is not JSON: {error.msg} (line {error.lineno} column {error.colno})"
        ) from None
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        if isinstance(item, dict):
            yield Record(item, where)
            continue
        with rejects.guard():
            raise RecordError("is no object; a row is {...}", where=where, record=item)


@contextlib.contextmanager
def _damage_is_input_error(path: str) -> Iterator[None]:
    """Around reading a file whole: damage to it becomes an InputError."""
    try:
        yield
    except jsonl.read_errors() as error:
        raise InputError(f"{path}: damaged: {error}") from error


def _datasets() -> Any:
    """The `datasets` library, without its log, and without progress bars outside a terminal."""
    import datasets

    for name in ("datasets", "huggingface_hub"):  # log a line for each retry; an error follows
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _any_error_is_input_error(problem: str) -> Iterator[None]:
    """Around calls of `datasets`, which raises errors of a dozen classes (pyarrow, network)."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{problem}: {first_line}") from error


def _read_parquet(path: str) -> Iterator[Record]:
    with _any_error_is_input_error(f"{path}: cannot be read as Parquet"):
        table = _datasets().load_dataset(
            "parquet", data_files=glob.escape(path), split="train", streaming=True
        )
        yield from _table_rows(table, path)


def _open_saved(path: Path, split: str | None) -> Rows:
    with _any_error_is_input_error(f"{path}: cannot be read as a saved dataset"):
        table = _one_split(_datasets().load_from_disk(str(path)), str(path), split)
    return _with_source(path.name, _table_rows(table, str(path)))


def _open_hub(dataset: HubDataset, stats: RunStats) -> Rows:
    """A dataset of the hub. It is downloaded once, and read from the local cache afterwards."""
    if dataset.revision:
        stats.say(f"reading {dataset.path} at {dataset.revision[:8]}")
    else:
        stats.say(f"reading {dataset.path} at main, which may change; `revision` COMMIT pins it")
    if dataset.path == CONTAMINATED:
        stats.say(f"{dataset.path} overlaps RewardBench; skywork (v0.2) does not")
    with _any_error_is_input_error(
        f"{dataset.path}: no such file here, and it cannot be loaded from the hub"
    ):
        data = _datasets().load_dataset(
            dataset.path,
            name=dataset.config,
            data_dir=dataset.folder,
            split=dataset.split,
            revision=dataset.revision,
        )
        table = _one_split(data, dataset.path, None)
    return _with_source(dataset.path, _table_rows(table, dataset.path))


def _table_rows(table: Iterable[dict[str, Any]], name: str) -> Iterator[Record]:
    """A table's rows as JSON: dates become strings, and values without a JSON form become null."""
    for number, row in enumerate(table):
        encoded = orjson.dumps(row, default=lambda _: None, option=orjson.OPT_NON_STR_KEYS)
        yield Record(orjson.loads(encoded), f"{name}[{number}]")


def _one_split(data: Any, name: str, split: str | None) -> Any:
    """The requested split; without a request "train", or the only split there is."""
    if not isinstance(data, dict):
        if split:
            raise InputError(f"`split` {split}: {name} has no splits")
        return data
    if not split:
        split = next(iter(data)) if len(data) == 1 else "train"
    if split not in data:
        raise InputError(f"{name}: choose one of its splits with `split`: {', '.join(data)}")
    return data[split]
