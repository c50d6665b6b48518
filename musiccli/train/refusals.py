"""What a run's settings and first records make impossible, without torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from musiccli.core import jsonl
from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Record, lookup
from musiccli.reward_model import NOTES
from musiccli.train.config import TrainConfig

BEGUN_FILE = ".music-train"  # marks a run's folder until it holds a reward model
MARGIN_SAMPLE = 100  # records: where none of them has the margin's field, its name is wrong


def refuse_impossible(
    config: TrainConfig,
    held_out: Mapping[str, Iterable[Record]],
    eval_every: int | None = None,
    save_every: int | None = None,
) -> None:
    """Raise InputError for settings that are wrong whatever the model and the data are."""
    if not config.steps and not 0 < config.epochs < math.inf:
        raise InputError(
            f"`epochs` {config.epochs:g}: trains nothing; give a number above 0, or `steps`"
        )
    if config.layers and config.init_from:
        raise InputError(
            f"`layers` {config.layers}: the head of `init_from` reads all its layers; leave one out"
        )
    if config.qlora and not config.lora:
        raise InputError("`qlora`: needs `lora`, the rank of the adapters that are trained")
    if config.qlora and not find_spec("bitsandbytes"):
        raise InputError("`qlora`: needs bitsandbytes; pip install 'musiccli[qlora]'")
    if config.steps and config.epochs != TrainConfig.epochs:
        raise InputError(f"`epochs` {config.epochs:g}: `steps` says how long already")
    if config.eval_split is not None:
        if not 0 < config.eval_split < 1:
            raise InputError(f"`eval_split` {config.eval_split:g}: give a number between 0 and 1")
        if "" in held_out:
            raise InputError(
                f"`eval_split` {config.eval_split:g}: takes the place of a set without a name; "
                "write `held_out` NAME=FILE"
            )
    measured = held_out or config.eval_split
    if config.patience and not measured:
        raise InputError(f"`patience` {config.patience}: needs `held_out` or `eval_split`")
    if config.patience and not (eval_every or save_every):
        raise InputError(f"`patience` {config.patience}: needs `eval_every`")
    if eval_every and not measured:
        raise InputError(f"`eval_every` {eval_every}: needs `held_out` or `eval_split`")
    if not 0 < config.margin_scale < math.inf:
        raise InputError(f"`margin_scale` {config.margin_scale:g}: give a number above 0")
    if config.margin_scale != 1 and not config.margin_field:
        raise InputError(
            f"`margin_scale` {config.margin_scale:g}: needs `margin_field`, whose margins it "
            "multiplies"
        )


def refuse_small_batch(config: TrainConfig, processes: int) -> None:
    """Raise InputError where there are more processes than pairs in a batch."""
    if config.batch < processes:
        raise InputError(f"`batch` {config.batch}: every one of {processes} processes needs a pair")


def refuse_first_records(
    preferences: Iterable[Record],
    held_out: Mapping[str, Iterable[Record]],
    config: TrainConfig,
    *,
    skip: bool,
) -> None:
    """Refuse what the first records tell, before a model is loaded.

    Records that can be read only once are not looked at.

    Args:
        preferences: the pairs to train on.
        held_out: the pairs to measure on, by the name of their set.
        config: of the run.
        skip: whether the run goes on after a bad record.

    Raises:
        InputError: there are too few pairs, or the field of the margin is in none.
        RecordError: one of the records is bad.
    """
    for records in held_out.values():
        _first(records, 1, skip)
    first = _first(preferences, max(config.batch, MARGIN_SAMPLE), skip)
    if first is None:
        return
    refuse_few_pairs(len(first), config)
    field = config.margin_field
    if field and all(lookup(record, field) is None for record in first):
        raise InputError(f"`margin_field` {field}: none of the first {len(first):,} pairs has it")


def _first(records: Iterable[Record], count: int, skip: bool) -> Sequence[Record] | None:
    """The first records; None where they can be read only once, or a bad one is skipped later."""
    if isinstance(records, Sequence):
        return records[:count]
    if not isinstance(records, jsonl.RecordFiles):
        return None
    try:
        return records.first(count)
    except RecordError:
        if skip:
            return None
        raise


def refuse_few_pairs(count: int, config: TrainConfig) -> None:
    """Raise InputError where so many pairs do not fill a batch."""
    if not count:
        raise InputError("no pairs to train on are left")
    if count < config.batch:
        raise InputError(
            f"`batch` {config.batch}: there are {count} pairs; a step would hold some twice"
        )


def refuse_other_contents(out: Path) -> None:
    """Raise InputError for a folder that holds what no run has written, or cannot be read."""
    if not out.is_dir():
        return
    try:
        names = sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"{out}: cannot be read: {error.strerror}") from error
    if names and not any((out / mark).exists() for mark in (BEGUN_FILE, NOTES)):
        raise InputError(
            f"{out}: holds something else ({', '.join(names)[:60]}); name another `out`"
        )
