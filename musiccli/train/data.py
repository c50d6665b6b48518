"""The data of a run: pairs to train on, held-out pairs, and the files that they came from."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from musiccli.core import jsonl
from musiccli.core.errors import InputError
from musiccli.core.progress import Bar
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.train.config import TrainConfig
from musiccli.train.tokenized_pairs import TokenizedPair, fingerprint, tokenize_pairs


@dataclass(frozen=True)
class TrainingData:
    """All tokenized pairs of a run.

    Attributes:
        pairs: to train on, in the order of the input.
        held_out: to measure on, empty where there are none.
        files: for the notes of the checkpoint, `files` and `held_out_files`.
    """

    pairs: list[TokenizedPair]
    held_out: list[TokenizedPair]
    files: dict[str, list[dict[str, Any]]]

    @property
    def fingerprint(self) -> str:
        """A hash of both, equal where the same pairs were read in the same order."""
        return fingerprint(self.pairs) + fingerprint(self.held_out)

    def token_ids(self) -> Iterator[list[int]]:
        """The tokens of every side of every pair."""
        for pair in (*self.pairs, *self.held_out):
            yield from (side.ids for side in pair.sides)


def load_data(
    preferences: Iterable[Record],
    held_out: Iterable[Record] | None,
    model: RewardModel,
    config: TrainConfig,
    stats: RunStats,
    say: Callable[[str], None],
    progress: Bar,
) -> TrainingData:
    """Read and tokenize all pairs, and say how many were cut and dropped.

    Held-out pairs have no margins and are compared at their last turn.

    Raises:
        InputError: no pairs remain, or fewer than one `batch`.
    """
    tokenize = partial(
        tokenize_pairs, model=model, max_length=min(config.max_length, model.context_length)
    )
    files: Counter[str] = Counter()
    pairs = tokenize(
        progress.track(count_files(preferences, files)),
        stats=stats,
        margin_field=config.margin_field,
        margin_scale=config.margin_scale,
        per_turn=config.per_turn,
    )
    _say_outcomes(stats, say)
    held_out_files: Counter[str] = Counter()
    held_out_stats = RunStats(stats.rejects)
    held_out_pairs = tokenize(
        progress.track(count_files(held_out or (), held_out_files)), stats=held_out_stats
    )
    _say_outcomes(held_out_stats, say, "`held_out`: ")
    if not pairs:
        raise InputError("no pairs to train on are left")
    if len(pairs) < config.batch:
        raise InputError(
            f"`batch` {config.batch}: there are {len(pairs)} pairs; a step would hold some twice"
        )
    if held_out is not None and not held_out_pairs:
        raise InputError("no pairs to evaluate on are left")
    described = {
        "files": describe_files(files),
        "held_out_files": describe_files(held_out_files),
    }
    return TrainingData(pairs, held_out_pairs, described)


def count_files(records: Iterable[Record], files: Counter[str]) -> Iterator[Record]:
    """The same records; `files` counts how many were read from each file."""
    for record in records:
        files[(getattr(record, "where", None) or "").rpartition(":")[0]] += 1
        yield record


def describe_files(files: Counter[str]) -> list[dict[str, Any]]:
    """Each file's name, hash and number of pairs; a pipe has no hash."""
    return [
        {
            "name": Path(name).name or "given by a program",
            "sha256": jsonl.sha256(name),
            "pairs": count,
        }
        for name, count in files.items()
    ]


def _say_outcomes(stats: RunStats, say: Callable[[str], None], prefix: str = "") -> None:
    """Say what became of pairs that are not used as they are, a line for each outcome."""
    for phrase, count in stats.phrases().items():
        say(f"{prefix}{count:,} {phrase}")
