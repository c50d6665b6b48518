"""The data of a run: pairs to train on, held-out pairs, and the files that they came from."""

from collections.abc import Callable, Iterable, Mapping
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
from musiccli.train.eval_split import split_pairs
from musiccli.train.pair_arrays import TokenizedPairs
from musiccli.train.record_batches import LoadedPairs
from musiccli.train.refusals import refuse_few_pairs
from musiccli.train.token_cache import load_pairs
from musiccli.train.tokenized_pairs import pair_tokenizer


@dataclass(frozen=True)
class TrainingData:
    """All tokenized pairs of a run.

    Attributes:
        pairs: to train on, in the order of the input.
        held_out: to measure on, by the name of their set; "" is a set without a name.
        notes: for the checkpoint: `files`, `held_out_files` and `eval_split`.
    """

    pairs: TokenizedPairs
    held_out: dict[str, TokenizedPairs]
    notes: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """A hash of all, equal where the same pairs were read in the same order."""
        return "".join(pairs.fingerprint for pairs in self.all_pairs())

    def all_pairs(self) -> "list[TokenizedPairs]":
        """The pairs to train on, then those of each held-out set."""
        return [self.pairs, *self.held_out.values()]


def load_data(
    preferences: Iterable[Record],
    held_out: Mapping[str, Iterable[Record]],
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
        held_out: the pairs to measure on, by the name of their set.
        model: gives the chat template, and the size of a pair in a forward pass.
        config: of the run.
        stats: counts what became of the pairs to train on, and takes bad records of both.
        say: told what became of the pairs, and what this process waits for.
        progress: counts records.
        leads: whether this process should be the one of its machine that tokenizes.

    Raises:
        InputError: no pairs remain, or fewer than one `batch`; or `eval_split` can hold out none.
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
    pairs, sets = loaded.pairs, {}
    notes: dict[str, Any] = {"files": describe_files(loaded)}
    if config.eval_split and pairs:
        split = split_pairs(pairs, config.eval_split, config.seed)
        pairs, sets[""] = split.training, split.held_out
        notes["eval_split"] = {"pairs": len(split.held_out), "groups": split.groups}
        say(
            f"{len(split.held_out):,} of {len(loaded.pairs):,} pairs are held out, "
            f"{split.groups:,} groups with prompts of their own"
        )
    loaded_sets = {}
    for name, records in held_out.items():
        held_out_stats = RunStats(stats.rejects)
        loaded_sets[name] = load(records, tokenizer(), held_out_stats)
        label = f"`held_out` {name}".rstrip()
        _say_outcomes(held_out_stats, say, f"{label}: ")
        if not loaded_sets[name].pairs:
            raise InputError(f"{label}: no pairs to evaluate on are left")
    refuse_few_pairs(len(pairs), config)
    notes["held_out_files"] = [
        {"set": name, **file} if name else file
        for name, loaded_set in loaded_sets.items()
        for file in describe_files(loaded_set)
    ]
    sets |= {name: loaded_set.pairs for name, loaded_set in loaded_sets.items()}
    return TrainingData(pairs, sets, notes)


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
