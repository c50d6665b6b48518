"""Where a dataset's rows come from: JSON, JSONL and Parquet files, folders, standard input, the hub."""

import contextlib
import glob
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record

Rows = Iterator[tuple[str, Record]]  # a source's name and one of its rows


class Hub(NamedTuple):
    path: str
    split: str | None = None
    revision: str | None = None  # None: whatever main holds on the day
    folder: str | None = None


SHORT_NAMES = {
    "skywork": Hub(
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        "train",
        "196326738b67b9c3e6aa6829cab639d8401ad385",
    ),
    "ultrafeedback": Hub(
        "HuggingFaceH4/ultrafeedback_binarized",
        "train_prefs",
        "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
    ),
    "ultrainteract": Hub(
        "openbmb/UltraInteract_pair", "train", "3692843c72c3a297c7914cdf76c0ffce5e38a234"
    ),
    "hh": Hub("Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"),
    "hh-helpful": Hub(
        "Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "helpful-base"
    ),
    "hh-harmless": Hub(
        "Anthropic/hh-rlhf", "train", "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa", "harmless-base"
    ),
    "rewardbench": Hub(
        "allenai/reward-bench", "filtered", "168d848cdbbea9764fae4a544dc9ca1e6cca4931"
    ),
    "rewardbench2": Hub(
        "allenai/reward-bench-2", "test", "7ff08853b0d5686e79b13fda8677024f566a104a"
    ),
    "mt-bench-human": Hub(
        "lmsys/mt_bench_human_judgments", "human", "f7d2896d2cc5d80f8b55c2bbc722613555233c25"
    ),
}
SUFFIX = re.compile(r"\.(parquet|(jsonl|ndjson|json)(\.gz|\.zst)?)$")
CONTAMINATED = "Skywork/Skywork-Reward-Preference-80K-v0.1"


def rows(
    names: Iterable[str],
    rejects: jsonl.Rejects,
    *,
    split: str | None = None,
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Rows:
    """The rows of several datasets, one after the other, each with the name of its source.

    A name is a file, a folder, `-`, a short name or a hub id; what exists on the disk comes first. Lines that are no
    JSON objects go to `rejects`. Raises InputError, before the first row, for a name that is none of these.
    """
    found = [opened for name in names for opened in _open(name, rejects, split, revision, say)]
    return (row for opened in found for row in opened)


def _open(
    name: str,
    rejects: jsonl.Rejects,
    split: str | None,
    revision: str | None,
    say: Callable[[str], None],
) -> list[Rows]:
    path = Path(name)
    local = name == "-" or path.exists()
    if local and revision:
        raise InputError(f"--revision {revision}: pins a hub dataset; {name} is here on the disk")
    if local and split and not path.is_dir():
        raise InputError(
            f"--split {split}: names a part of a folder or of a hub dataset; {name} is one file"
        )
    if path.is_dir():
        return _folder(path, rejects, split)
    if local:
        return [_file(name, rejects)]
    hub = SHORT_NAMES.get(name) or (Hub(name) if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None)
    if hub is None or SUFFIX.search(name):
        known = ", ".join(SHORT_NAMES)
        raise InputError(
            f"{name}: no such file or folder, no short name ({known}) and no hub id (OWNER/NAME)"
        )
    return [_hub(hub._replace(split=split or hub.split, revision=revision or hub.revision), say)]


def _folder(path: Path, rejects: jsonl.Rejects, split: str | None) -> list[Rows]:
    """A folder's data files in the order of their names, or a dataset that `datasets` saved there."""
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return [_saved(path, split)]
    files = sorted(
        file
        for file in path.rglob("*")
        if SUFFIX.search(file.name)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise InputError(f"{path}: holds no .json, .jsonl or .parquet file")
    if split:
        files = [file for file in files if split in re.split(r"\W", str(file.relative_to(path)))]
        if not files:
            raise InputError(f"--split {split}: no data file in {path} has that name")
    return [_file(str(file), rejects) for file in files]


def _file(name: str, rejects: jsonl.Rejects) -> Rows:
    if name == "-":
        return _named("", jsonl.read(["-"], _as_it_is, rejects, unique=False))
    jsonl.check_readable(name)
    stem = SUFFIX.sub("", Path(name).name)
    if name.endswith(".parquet"):
        return _named(stem, _parquet(name))
    if _holds_a_list(name):
        return _named(stem, _list(name, rejects))
    return _named(stem, jsonl.read([name], _as_it_is, rejects, unique=False))


def _named(source: str, found: Iterable[Record]) -> Rows:
    return ((source, row) for row in found)


def _as_it_is(row: Record) -> Record:
    return row


def _holds_a_list(path: str) -> bool:
    """Whether a file is one JSON list; if not it is JSONL, whatever its suffix. A named pipe can be read only once."""
    if not Path(path).is_file():
        return False
    with _readable(path), jsonl.open_input(path) as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _list(path: str, rejects: jsonl.Rejects) -> Iterator[Record]:
    """The items of a file that is one JSON list; it is read whole."""
    with _readable(path), jsonl.open_input(path) as stream:
        data = stream.read()
    try:
        items = orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"{path}: is not JSON: {error.msg} (line {error.lineno} column {error.colno})"
        ) from None
    for index, item in enumerate(items):
        row = None
        with rejects.guard():
            if not isinstance(item, dict):
                raise RecordError(
                    "is no object; a row is {...}", where=f"{path}[{index}]", record=item
                )
            row = Record(item, f"{path}[{index}]")
        if row is not None:
            yield row


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Around reading a file whole: what is damaged is an InputError."""
    try:
        yield
    except jsonl.READ_ERRORS as error:
        raise InputError(f"{path}: damaged: {error}") from error


def _datasets():
    """The library, told to keep its log and its bars from people who did not ask for them."""
    import datasets

    for name in (
        "datasets",
        "huggingface_hub",
    ):  # their retries and laments, a line each; one error follows anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


@contextlib.contextmanager
def _input_error(problem: str) -> Iterator[None]:
    """Around the library's work: it raises kinds of its own, pyarrow's and the network's, a dozen in all."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{problem}: {first_line}") from error


def _parquet(path: str) -> Iterator[Record]:
    with _input_error(f"{path}: cannot be read as Parquet"):
        data = _datasets().load_dataset(
            "parquet", data_files=glob.escape(path), split="train", streaming=True
        )
        yield from _records(data, path)


def _saved(path: Path, split: str | None) -> Rows:
    with _input_error(f"{path}: cannot be read as a saved dataset"):
        data = _one_split(_datasets().load_from_disk(str(path)), str(path), split)
    return _named(path.name, _records(data, str(path)))


def _hub(hub: Hub, say: Callable[[str], None]) -> Rows:
    """A dataset of the hub; it is downloaded once and found in the cache from then on."""
    say(
        f"reading {hub.path} at {hub.revision[:8]}"
        if hub.revision
        else f"reading {hub.path} at main, which may change; --revision COMMIT pins it"
    )
    if hub.path == CONTAMINATED:
        say(f"{hub.path} overlaps RewardBench; skywork (v0.2) does not")
    with _input_error(f"{hub.path}: no such file here, and it cannot be had from the hub"):
        data = _datasets().load_dataset(
            hub.path, data_dir=hub.folder, split=hub.split, revision=hub.revision
        )
        data = _one_split(data, hub.path, None)
    return _named(hub.path, _records(data, hub.path))


def _records(data: Iterable[dict], name: str) -> Iterator[Record]:
    """A table's rows as JSON has them: dates are strings, and what it cannot hold (bytes, pictures) is null."""
    for number, row in enumerate(data):
        plain = orjson.dumps(row, default=lambda _: None, option=orjson.OPT_NON_STR_KEYS)
        yield Record(orjson.loads(plain), f"{name}[{number}]")


def _one_split(data, name: str, split: str | None):
    """The split asked for; without one "train", or the only one there is."""
    if not isinstance(data, dict):
        if split:
            raise InputError(f"--split {split}: {name} has no splits")
        return data
    chosen = split or ("train" if "train" in data else next(iter(data)) if len(data) == 1 else None)
    if chosen not in data:
        raise InputError(f"{name}: choose one of its splits with --split: {', '.join(data)}")
    return data[chosen]
