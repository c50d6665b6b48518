"""Tokenized pairs on disk: made once, by one process for each core, and mapped by every rank.

The cache folder has a folder for each tokenizer with its settings. In it is a part for each batch
of records, named by their hash. So a run that was killed goes on behind the last part. For files
there is an index, too, which names the parts: while the files are the same, nothing but the index
is read.

Records that fit in one batch are tokenized in this process, and kept in memory.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import orjson

from musiccli.core import json_text
from musiccli.core.cache_folder import TOKENS, cache_folder, make_private_folder, open_private
from musiccli.core.errors import InputError
from musiccli.core.jsonl import RecordFiles
from musiccli.core.open_files import allow_many_files
from musiccli.core.partial_files import try_lock
from musiccli.core.progress import Bar
from musiccli.core.records import Record
from musiccli.core.resources import cores
from musiccli.core.run_stats import RunStats
from musiccli.train.pair_arrays import (
    DamagedArraysError,
    PairArrays,
    TokenizedPairs,
    write_private,
)
from musiccli.train.record_batches import (
    BATCH_PAIRS,
    Errors,
    LoadedPairs,
    PairCollector,
    RecordBatch,
    record_batches,
)
from musiccli.train.token_parts import (
    error_fields,
    outcome_counts,
    outcome_rows,
    read_part,
    record_error,
)
from musiccli.train.tokenized_pairs import PairTokenizer
from musiccli.train.tokenizing_processes import TokenizingProcesses, tokenizing_processes

FORMAT = 2  # of what is kept; raise it where the same records become other tokens
WAITING_PARTS = 4  # beside one for each process, so that none waits for the next
HEAD_START = 5.0  # seconds in which the main process may begin to tokenize, and show how far it is
MAX_KEPT_ERRORS = 1000  # an input with more bad records has no index

Say = Callable[[str], None]


def load_pairs(
    preferences: Iterable[Record],
    tokenizer: PairTokenizer,
    stats: RunStats,
    *,
    margin_scale: float = 1.0,
    say: Say = lambda text: None,
    progress: Bar | None = None,
    leads: bool = True,
) -> LoadedPairs:
    """Tokenize preferences, or map what was made of them before.

    Every process of a run calls this. One of them tokenizes, and the others wait.

    Args:
        preferences: records. RecordFiles that have not changed are not read again.
        tokenizer: what makes pairs of them.
        stats: counts what became of them, and takes bad records in the order of the input.
        margin_scale: the factor that multiplies each margin.
        say: told what this process waits for.
        progress: counts records.
        leads: whether this process should be the one that tokenizes.

    Raises:
        RecordError: the first bad record, unless `stats` skips them.
        InputError: the cache folder cannot be used.
    """
    collector = PairCollector(margin_scale, stats, progress or Bar())
    batches = record_batches(preferences)
    first = list(islice(batches, 2))
    if len(first) == 2:
        return _TokenCache(tokenizer, collector).load(
            preferences, chain(first, batches), say, leads
        )
    for batch in first:
        result = tokenizer.tokenize(batch.records)
        arrays = PairArrays.of(result.pairs)
        collector.add(arrays, result.outcomes, result.errors, batch.line_errors, batch.places)
    return collector.loaded()


@dataclass
class _Part:
    """A batch of records on its way to disk. `result` is None where it is there already."""

    path: Path
    line_errors: Errors
    places: list[str | None]
    result: Future[None] | None = None


class _TokenCache:
    """The folder of one tokenizer with its settings, on the way to the pairs of one input."""

    def __init__(self, tokenizer: PairTokenizer, collector: PairCollector):
        self._tokenizer, self._collector = tokenizer, collector
        self._folder = cache_folder() / TOKENS / settings_hash(tokenizer)
        self._parts: list[str] = []  # names of files

    def load(
        self, preferences: Iterable[Record], batches: Iterator[RecordBatch], say: Say, leads: bool
    ) -> LoadedPairs:
        """The pairs of all batches, whichever process tokenizes them."""
        files = preferences if isinstance(preferences, RecordFiles) else None
        open_files = allow_many_files()  # a mapped part keeps its file open
        with self._explained_failures(open_files):
            make_private_folder(self._folder.parent)
            make_private_folder(self._folder)
            hashes = files.hashes() if files else None
            key = _hash(orjson.dumps([hashes, self._collector.margin_scale]))
            index = self._folder / f"{key}.json"
            if not leads:
                _wait_for(index)
            loaded = self._load_index(index, files)
            if loaded:
                return loaded
            with _locked(self._folder / f"{key}.lock", say):
                loaded = self._load_index(index, files)
                if loaded:
                    return loaded
                self._tokenize(batches)
                loaded = self._collector.loaded(dict(hashes or ()))
                if hashes and len(self._collector.errors) <= MAX_KEPT_ERRORS:
                    self._write_index(index, loaded)
                return loaded

    def _tokenize(self, batches: Iterator[RecordBatch]) -> None:
        """Tokenize all batches, but those of which there is a part."""
        waiting: deque[_Part] = deque()
        processes = cores()
        with tokenizing_processes(self._tokenizer, processes) as workers:
            for batch in batches:
                waiting.append(self._start(batch, workers))
                if len(waiting) > processes + WAITING_PARTS:
                    self._finish(waiting.popleft())
            while waiting:
                self._finish(waiting.popleft())

    def _start(self, batch: RecordBatch, workers: TokenizingProcesses) -> _Part:
        """Let a process tokenize a batch, unless there is a part of it."""
        lines = b"\n".join(map(json_text.encode, batch.records))
        path = self._folder / f"{_hash(lines)}.pairs"
        part = _Part(path, batch.line_errors, batch.places)
        try:
            PairArrays.map(path)
        except (OSError, DamagedArraysError):
            part.result = workers.write_part(lines, path)
        return part

    def _finish(self, part: _Part) -> None:
        """Wait for a part, and add it."""
        if part.result:
            part.result.result()
        arrays, outcomes, errors = read_part(part.path)
        _mark_used(part.path)
        self._collector.add(arrays, outcomes, errors, part.line_errors, part.places)
        self._parts.append(part.path.name)

    def _write_index(self, index: Path, loaded: LoadedPairs) -> None:
        kept = {
            "parts": self._parts,
            "outcomes": outcome_rows(self._collector.outcomes),
            "errors": [error_fields(error) for error in self._collector.errors],
            "files": loaded.files,
            "hashes": loaded.hashes,
            "fingerprint": loaded.pairs.fingerprint,
            "vocabulary": loaded.pairs.vocabulary,
        }
        write_private(index, json_text.encode(kept))

    def _load_index(self, index: Path, files: RecordFiles | None) -> LoadedPairs | None:
        """The pairs that an index names; None where it, or a part, is missing or damaged."""
        try:
            kept = orjson.loads(index.read_bytes())
            paths = [self._folder / name for name in kept["parts"]]
            arrays = [PairArrays.map(path)[0] for path in paths]
        except (OSError, ValueError):
            return None
        for path in (index, *paths):
            _mark_used(path)
        self._collector.reject(map(record_error, kept["errors"]))
        self._collector.count(outcome_counts(kept["outcomes"]))
        counts = Counter(kept["files"])
        if files:
            files.read_count = counts.total()
        pairs = TokenizedPairs(
            arrays, self._collector.margin_scale, kept["fingerprint"], kept["vocabulary"]
        )
        return LoadedPairs(pairs, counts, kept["hashes"])

    @contextlib.contextmanager
    def _explained_failures(self, open_files: float) -> Iterator[None]:
        """Raise InputError where the disk, a process or the limit of open files fails."""
        try:
            yield
        except BrokenProcessPool as error:
            raise InputError(
                "a process that tokenizes was killed, perhaps for lack of memory; what was done "
                "is kept, and the same run goes on from there"
            ) from error
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise InputError(
                    f"every {BATCH_PAIRS} pairs keep a file open, and this process may open "
                    f"{open_files:,}; raise the limit (ulimit -n)"
                ) from error
            raise InputError(
                f"{self._folder}: tokenized pairs cannot be kept there: {error.strerror}; make "
                "room, or let MUSIC_CACHE name a folder elsewhere"
            ) from error


def settings_hash(tokenizer: PairTokenizer) -> str:
    """A hash of all that decides which tokens the same records become."""
    template = tokenizer.chat_template
    tokens = template.tokenizer
    backend = getattr(tokens, "backend_tokenizer", None)
    settings = {
        "format": FORMAT,
        "versions": [
            version(name) for name in ("musiccli", "transformers", "tokenizers", "jinja2")
        ],
        "tokenizer": backend.to_str() if backend else repr(sorted(tokens.get_vocab().items())),
        "kind": type(tokens).__name__,
        "special_tokens": repr(tokens.special_tokens_map),
        "template": repr(tokens.chat_template),
        "vocabulary": template.vocabulary,
        "settings": [
            tokenizer.packed,
            tokenizer.max_length,
            tokenizer.margin_field,
            tokenizer.per_turn,
        ],
    }
    return _hash(json_text.encode(settings))


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _wait_for(index: Path) -> None:
    """Let the main process begin: wait HEAD_START seconds, or until the index is there."""
    deadline = time.monotonic() + HEAD_START
    while not index.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock; wait for the process that has it. A process that ends gives it back."""
    with open(path, "ab", opener=open_private) as file:
        if try_lock(file.fileno()) is False:
            say("waiting for another process that tokenizes the same pairs")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark_used(path: Path) -> None:
    """Give a file today's date, by which `music cache` tells what nobody needs."""
    with contextlib.suppress(OSError):
        os.utime(path)
