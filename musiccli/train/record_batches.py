"""Records in batches that are tokenized at once, and what becomes of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from musiccli.core.errors import RecordError
from musiccli.core.jsonl import RecordFiles, Rejects
from musiccli.core.messages import count_characters
from musiccli.core.progress import Bar
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.train.pair_arrays import (
    Fingerprint,
    PairArrays,
    TokenizedPairs,
    merge_vocabularies,
    occurring_tokens,
)
from musiccli.train.tokenized_pairs import SIDES

BATCH_PAIRS, BATCH_CHARACTERS = 512, 8_000_000  # the most: some seconds of one core

Errors = list[tuple[int, RecordError]]  # each with the index of its record, or of the next one


@dataclass
class RecordBatch:
    """Records that are tokenized at once.

    Attributes:
        records: some of them may turn out to be unusable.
        line_errors: what is wrong with lines between them that hold no record.
    """

    records: list[Record] = field(default_factory=list)
    line_errors: Errors = field(default_factory=list)

    @property
    def places(self) -> list[str | None]:
        """ "file:line" of each record, None where it was not read from a file."""
        return [getattr(record, "where", None) for record in self.records]


@dataclass(frozen=True)
class LoadedPairs:
    """The pairs of some records.

    Attributes:
        pairs: in the order of the records.
        files: how many records were read from each file.
        hashes: the SHA-256 of files, where it is known.
    """

    pairs: TokenizedPairs
    files: Counter[str]
    hashes: dict[str, str] = field(default_factory=dict)


def record_batches(preferences: Iterable[Record]) -> Iterator[RecordBatch]:
    """The records in batches. Bad lines of RecordFiles are kept with the records around them."""
    bad_lines = _CollectedRejects()
    if isinstance(preferences, RecordFiles):
        preferences = preferences.read(bad_lines)
    batch, characters = RecordBatch(), 0
    for record in preferences:
        batch.line_errors += bad_lines.take(len(batch.records))
        batch.records.append(record)
        characters += sum(count_characters(record[side]) for side in SIDES)
        count = max(len(batch.records), len(batch.line_errors))
        if count >= BATCH_PAIRS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = RecordBatch(), 0
    batch.line_errors += bad_lines.take(len(batch.records))
    if batch.records or batch.line_errors:
        yield batch


class PairCollector:
    """Collects what became of the records, batch by batch.

    Attributes:
        margin_scale: the factor that multiplies each margin.
        stats: counts outcomes, and takes bad records in the order of the input.
        progress: counts records.
        outcomes: the counts so far of these records alone.
        errors: their bad records so far.
        files: how many records came from each file.
    """

    def __init__(self, margin_scale: float, stats: RunStats, progress: Bar):
        self.margin_scale, self.stats, self.progress = margin_scale, stats, progress
        self.outcomes = RunStats()
        self.errors: list[RecordError] = []
        self.files: Counter[str] = Counter()
        self._arrays: list[PairArrays] = []
        self._fingerprint = Fingerprint(margin_scale)
        self._vocabularies: list[np.ndarray] = []

    def add(
        self,
        arrays: PairArrays,
        outcomes: RunStats,
        errors: Errors,
        line_errors: Errors,
        places: list[str | None],
    ) -> None:
        """Add a batch.

        Args:
            arrays: its pairs.
            outcomes: what became of its records.
            errors: its records that cannot be used.
            line_errors: its lines that hold no record.
            places: "file:line" of each of its records.
        """
        for index, error in errors:
            error.where = error.where or places[index]
        # A bad line stands before the record whose index it has.
        self.reject(error for _, error in sorted(line_errors + errors, key=itemgetter(0)))
        self.count(outcomes)
        self.files.update((place or "").rpartition(":")[0] for place in places)
        self._fingerprint.update(arrays)
        self._vocabularies.append(occurring_tokens(arrays.tokens))
        arrays.release()
        self._arrays.append(arrays)
        self.progress.advance(len(places))

    def reject(self, errors: Iterable[RecordError]) -> None:
        """Let `stats` skip bad records, or raise the first."""
        for error in errors:
            self.errors.append(error)
            with self.stats.rejects.guard():
                raise error

    def count(self, outcomes: RunStats) -> None:
        """Count what became of records."""
        self.outcomes.add(outcomes)
        self.stats.add(outcomes)

    def loaded(self, hashes: dict[str, str] | None = None) -> LoadedPairs:
        """All pairs, once every batch was added."""
        pairs = TokenizedPairs(
            self._arrays,
            self.margin_scale,
            self._fingerprint.text(),
            merge_vocabularies(self._vocabularies),
        )
        return LoadedPairs(pairs, self.files, hashes or {})


class _CollectedRejects(Rejects):
    """Keeps bad lines until the records before them are tokenized."""

    def __init__(self) -> None:
        super().__init__(skip=True)
        self._errors: list[RecordError] = []

    def add(self, error: Exception, record: object = None) -> None:
        assert isinstance(error, RecordError)
        self._errors.append(error)

    def take(self, index: int) -> Errors:
        """The bad lines since the last call, before the record of an index."""
        errors, self._errors = self._errors, []
        return [(index, error) for error in errors]
