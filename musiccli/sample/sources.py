"""Where the rows of a dataset come from: files of several kinds, folders, standard input and the
Hugging Face hub.
"""

import contextlib
import difflib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from musiccli.core import jsonl
from musiccli.core.errors import InputError
from musiccli.core.hub_access import hub_name, hub_problem
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.sample.arrow_tables import BATCH_ROWS, read_arrow, read_parquet, table_rows
from musiccli.sample.delimited import read_delimited
from musiccli.sample.hub_datasets import CONTAMINATED, SHORT_NAMES, HubDataset
from musiccli.sample.json_lists import BYTE_ORDER_MARK, read_json_list

Rows = Iterator[tuple[str, Record]]  # (the name of the source, one of its rows)

DATA_FILE = re.compile(
    r"\.(?P<kind>parquet|arrow|ipc|feather|(?P<text>jsonl|ndjson|json|csv|tsv)(\.gz|\.zst)?)$"
)
# How an error of `datasets` lists the configurations, where none or an unknown one was asked for.
CONFIGS_OF_DATASETS = re.compile(r"(?:available configs|\bAvailable): \[(.*)\]")


def read_rows(
    names: Iterable[str],
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    stream: bool = False,
    stats: RunStats | None = None,
) -> Rows:
    """The rows of several datasets, one dataset after the other, each row with its source's name.

    Args:
        names: files, folders, `-` (standard input), short names or hub ids. A file or folder of
            that name comes before a short name or hub id.
        config: the configuration of a hub dataset that has several.
        split: the part of a folder or of a hub dataset to read.
        revision: the commit, branch or tag of a hub dataset.
        stream: read a hub dataset as it arrives, and keep nothing of it on the disk.
        stats: its `rejects` get the lines that are no JSON objects.

    Raises:
        InputError: a name is none of these, or its data cannot be read. Names are checked before
            the first row is read.
    """
    stats = stats or RunStats()
    chosen = HubDataset("", split, revision, config=config)
    sources = [rows for name in names for rows in _open_dataset(name, chosen, stream, stats)]
    return chain.from_iterable(sources)


def _open_dataset(name: str, chosen: HubDataset, stream: bool, stats: RunStats) -> list[Rows]:
    """Open one dataset. `chosen` holds the part and version that the user asks for."""
    path = Path(name)
    if path.is_dir():
        _check_local(name, chosen)
        return _open_folder(path, chosen.split, stats.rejects)
    if name == "-" or path.exists():
        _check_local(name, chosen)
        if chosen.split:
            raise InputError(
                f"`split` {chosen.split}: names a part of a folder or of a hub dataset; "
                f"{name} is one file"
            )
        return [_open_file(name, stats.rejects)]
    dataset = _hub_dataset(name)
    return [
        _open_hub(
            dataset._replace(
                split=chosen.split or dataset.split,
                revision=chosen.revision or dataset.revision,
                config=chosen.config or dataset.config,
            ),
            stream,
            stats,
        )
    ]


def _check_local(name: str, chosen: HubDataset) -> None:
    if chosen.revision:
        problem = f"pins a hub dataset; {name} is here on the disk"
        raise InputError(f"`revision` {chosen.revision}: {problem}")
    if chosen.config:
        problem = f"names a part of a hub dataset; {name} is here on the disk"
        raise InputError(f"`config` {chosen.config}: {problem}")


def _hub_dataset(name: str) -> HubDataset:
    """The hub dataset of a short name or a hub id."""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not DATA_FILE.search(name):
        return HubDataset(name)
    raise InputError(
        f"{name}: no such file or folder, no short name ({_similar_names(name)}) "
        "and no hub id (OWNER/NAME)"
    )


def _similar_names(name: str) -> str:
    """The short names that look like this one, or where to find all of them."""
    similar = difflib.get_close_matches(name.lower(), SHORT_NAMES)
    if similar:
        return f"perhaps {', '.join(similar)}"
    return "music help datasets lists them"


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
        raise InputError(f"{path}: holds no .jsonl, .json, .csv, .tsv, .parquet or .arrow file")
    if split:
        files = [file for file in files if split in re.split(r"\W", str(file.relative_to(path)))]
        if not files:
            raise InputError(f"`split` {split}: no data file in {path} has that name")
    return [_open_file(str(file), rejects) for file in files]


def _open_file(name: str, rejects: jsonl.Rejects) -> Rows:
    if name == "-":
        return _with_source("", _read_json("-", rejects))
    jsonl.check_readable(name)
    data_file = DATA_FILE.search(name)
    source = DATA_FILE.sub("", Path(name).name)
    kind = (data_file["text"] or data_file["kind"]) if data_file else "jsonl"
    if kind == "parquet":
        return _with_source(source, _read_table(name, "Parquet", read_parquet))
    if kind in ("arrow", "ipc", "feather"):
        return _with_source(source, _read_table(name, "Arrow", read_arrow))
    if kind in ("csv", "tsv"):
        return _with_source(source, _read_delimited(name, rejects, tabs=kind == "tsv"))
    return _with_source(source, _read_json(name, rejects))


def _with_source(source: str, rows: Iterable[Record]) -> Rows:
    return ((source, row) for row in rows)


def _unchanged(row: Record) -> Record:
    return row


def _read_json(path: str, rejects: jsonl.Rejects) -> Iterator[Record]:
    """The records of a file that is JSONL or one JSON list; its content decides, not its suffix."""
    if not _holds_json_list(path):
        yield from jsonl.read([path], _unchanged, rejects, unique=False)
        return
    with _damage_is_input_error(path), jsonl.open_input(path) as stream:
        yield from read_json_list(stream, "<stdin>" if path == "-" else path, rejects)


def _holds_json_list(path: str) -> bool:
    """Whether the first character is "[". A named pipe can be read only once, so it is JSONL."""
    if path != "-" and not Path(path).is_file():
        return False
    with _damage_is_input_error(path), jsonl.open_input(path) as stream:
        if path != "-":
            start = stream.read(64)
        else:  # what is read here would be missing later
            start = stream.peek(64) if isinstance(stream, io.BufferedReader) else b""
        return start.lstrip(BYTE_ORDER_MARK + b" \t\r\n").startswith(b"[")


def _read_delimited(path: str, rejects: jsonl.Rejects, *, tabs: bool) -> Iterator[Record]:
    with _damage_is_input_error(path), jsonl.open_input(path) as stream:
        yield from read_delimited(stream, path, rejects, tabs=tabs)


def _read_table(path: str, kind: str, read: Callable[[str], Iterator[Record]]) -> Iterator[Record]:
    with _any_error_is_input_error(f"{path}: cannot be read as {kind}"):
        yield from read(path)


@contextlib.contextmanager
def _damage_is_input_error(path: str) -> Iterator[None]:
    """Around reading a file: damage to it becomes an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not {error.encoding}: {error.reason}") from error
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


@contextlib.contextmanager
def _lists_configurations(name: str) -> Iterator[None]:
    """Around loading a hub dataset: an InputError lists its configurations where one is needed."""
    try:
        yield
    except ValueError as error:
        listed = CONFIGS_OF_DATASETS.search(str(error))
        if not listed:
            raise
        configs = ", ".join(re.findall("'(.*?)'", listed[1]))
        problem = f"choose one of its configurations with `config`: {configs}"
        raise InputError(f"{name}: {problem}") from None


def _open_saved(path: Path, split: str | None) -> Rows:
    with _any_error_is_input_error(f"{path}: cannot be read as a saved dataset"):
        table = _one_split(_datasets().load_from_disk(str(path)), str(path), split)
    return _with_source(path.name, _plain_rows(table, str(path)))


def _open_hub(dataset: HubDataset, stream: bool, stats: RunStats) -> Rows:
    """A dataset of the hub.

    It is downloaded once, and read from the local cache afterwards; or it is streamed each time.
    """
    if dataset.revision:
        is_commit = re.fullmatch(r"[0-9a-f]{8,40}", dataset.revision)
        revision = dataset.revision[:8] if is_commit else dataset.revision
        stats.say(f"reading {dataset.path} at {revision}")
    else:
        stats.say(f"reading {dataset.path} at main, which may change; `revision` COMMIT pins it")
    if dataset.path == CONTAMINATED:
        stats.say(f"{dataset.path} overlaps RewardBench; skywork (v0.2) does not")
    problem = f"{dataset.path}: no such file here, and it cannot be loaded from the hub"
    if unreachable := hub_problem():
        problem = (
            f"{dataset.path}: no such file here, and {hub_name()} cannot be reached ({unreachable})"
        )
    with _any_error_is_input_error(problem), _lists_configurations(dataset.path):
        data = _datasets().load_dataset(
            dataset.path,
            name=dataset.config,
            data_dir=dataset.folder,
            split=dataset.split,
            revision=dataset.revision,
            **({"streaming": True} if stream else {}),
        )
        table = _one_split(data, dataset.path, None)
    rows = _plain_rows(table, dataset.path)
    return _with_source(dataset.path, _streamed(rows, dataset.path) if stream else rows)


def _streamed(rows: Iterator[Record], name: str) -> Iterator[Record]:
    """Rows that come over the network: whatever ends them early is an InputError."""
    with _any_error_is_input_error(f"{name}: the stream broke off"):
        yield from rows


def _plain_rows(table: Any, name: str) -> Iterator[Record]:
    """The rows of a table of `datasets`, without decoding its features."""
    return table_rows(table.with_format("arrow").iter(BATCH_ROWS), name)


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
