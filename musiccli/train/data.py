"""The data of a run: pairs to train on, held-out pairs, and the files that they came from."""

from collections.abc import Callable, Iterable
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
from musiccli.train.pair_arrays import TokenizedPairs
from musiccli.train.record_batches import LoadedPairs
from musiccli.train.token_cache import load_pairs
from musiccli.train.tokenized_pairs import pair_tokenizer


@dataclass(frozen=True)
class TrainingData:
    """All tokenized pairs of a run.

    Attributes:
        pairs: to train on, in the order of the input.
        held_out: to measure on, empty where there are none.
        files: for the notes of the checkpoint, `files` and `held_out_files`.
    """

    pairs: TokenizedPairs
    held_out: TokenizedPairs
    files: dict[str, list[dict[str, Any]]]

    @property
    def fingerprint(self) -> str:
        """A hash of both, equal where the same pairs were read in the same order."""
        return self.pairs.fingerprint + self.held_out.fingerprint


def load_data(
    preferences: Iterable[Record],
    held_out: Iterable[Record] | None,
    model: RewardModel,
    config: TrainConfig,
    stats: RunStats,
    say: Callable[[str], None],
    progress: Bar,
    leads: bool = True,
) -> TrainingData:
    """Tokenize all pairs, or map what was kept of them, and say how many were cut and dropped.

    Held-out pairs have no margins and are compared at their last turn.

    Args:
        preferences: the pairs to train on.
        held_out: the pairs to measure on.
        model: gives the chat template, and the size of a pair in a forward pass.
        config: of the run.
        stats: counts what became of the pairs to train on, and takes bad records of both.
        say: told what became of the pairs, and what this process waits for.
        progress: counts records.
        leads: whether this process should be the one of its machine that tokenizes.

    Raises:
        InputError: no pairs remain, or fewer than one `batch`.
    """
    tokenizer = partial(pair_tokenizer, model, min(config.max_length, model.context_length))
    load = partial(load_pairs, say=say, progress=progress, leads=leads)
    loaded = load(
        preferences,
        tokenizer(margin_field=config.margin_field, per_turn=config.per_turn),
        stats,
        margin_scale=config.margin_scale,
    )
    _say_outcomes(stats, say)
    held_out_stats = RunStats(stats.rejects)
    loaded_held_out = load(held_out or (), tokenizer(), held_out_stats)
    _say_outcomes(held_out_stats, say, "`held_out`: ")
    pairs, held_out_pairs = loaded.pairs, loaded_held_out.pairs
    if not pairs:
        raise InputError("no pairs to train on are left")
    if len(pairs) < config.batch:
        raise InputError(
            f"`batch` {config.batch}: there are {len(pairs)} pairs; a step would hold some twice"
        )
    if held_out is not None and not held_out_pairs:
        raise InputError("no pairs to evaluate on are left")
    described = {
        "files": describe_files(loaded),
        "held_out_files": describe_files(loaded_held_out),
    }
    return TrainingData(pairs, held_out_pairs, described)


def describe_files(loaded: LoadedPairs) -> list[dict[str, Any]]:
    """Each file's name, hash and number of pairs; a pipe has no hash."""
    return [
        {
            "name": Path(name).name or "given by a program",
            "sha256": loaded.hashes.get(name) or jsonl.sha256(name),
            "pairs": count,
        }
        for name, count in loaded.files.items()
    ]


def _say_outcomes(stats: RunStats, say: Callable[[str], None], prefix: str = "") -> None:
    """Say what became of pairs that are not used as they are, a line for each outcome."""
    for phrase, count in stats.phrases().items():
        say(f"{prefix}{count:,} {phrase}")
