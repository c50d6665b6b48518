"""The rows of datasets become the records that the other commands read."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import count_turns
from musiccli.core.records import Record, side_names
from musiccli.core.run_stats import RunStats
from musiccli.sample import emitters, formats
from musiccli.sample.columns import Row
from musiccli.sample.config import Emit, Ranked, SampleConfig
from musiccli.sample.corruptions import MessagePool
from musiccli.sample.emitters import Dropped, Emitter
from musiccli.sample.exclusion import ExcludedPrompts
from musiccli.sample.formats.mint import is_trajectory, pair_trajectories
from musiccli.sample.replies import keep_best_over_worst
from musiccli.sample.row_groups import join_rows
from musiccli.sample.row_notes import RowNotes
from musiccli.sample.selection import RowIds, choose, drop_duplicates, drop_repeated_conversations
from musiccli.sample.sources import read_rows

MAX_RECORDS_OF_ROW = 10_000  # a row of a published dataset gives a few hundred at most


def sample(
    rows: Iterable[tuple[str, Record]],
    config: SampleConfig = SampleConfig(),
    *,
    excluded: ExcludedPrompts | None = None,
    stats: RunStats | None = None,
) -> Iterator[dict[str, Any]]:
    """Turn rows into records of the kind `config.emit`, in the order of the rows.

    Results that are too long, that repeat another or that overlap `excluded` are dropped. Then
    `config.count` of them are chosen at random. Without a count all are yielded as they are read.

    Args:
        rows: pairs of a source's name and one of its rows, as `read_rows` gives them.
        config: what to make of the rows, and how many results to keep.
        excluded: prompts of benchmarks, which no result may overlap.
        stats: counts the rows and what is dropped; its `rejects` get rows that cannot be read.

    Raises:
        RecordError: a row cannot be read, and `stats.rejects` does not skip such rows.
    """
    stats = stats or RunStats()
    pairs = config.emit in (Emit.pairs, Emit.comparisons)
    records = read_records(
        rows,
        stats,
        pairs=pairs,
        label=config.label,
        ranked=config.ranked,
        notes=RowNotes(),
    )
    if excluded:
        records = excluded.drop_overlaps(records, stats)
    results = drop_duplicates(_emit(records, config, stats), stats)
    return results if config.count is None else choose(results, config.count, config.seed, stats)


def _emit(
    records: Iterable[Record], config: SampleConfig, stats: RunStats
) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
    """Each record with its results."""
    if config.emit in (Emit.corruptions, Emit.contrasts):
        records = _hold(records, stats)
        emit = _altering_emitter(config, MessagePool(records, stats))
    else:
        emit = _emitter(config)
    for record in records:
        results = []
        try:
            results = emit(record, Random(f"{config.seed} {record['id']}"))
        except Dropped as reason:
            stats.count("dropped", str(reason), record=record)
        short = [result for result in results if not _is_too_long(result, config.max_tokens)]
        too_many = len(results) - len(short)
        stats.count("dropped", "longer_than_max_tokens", too_many, record=record)
        yield record, short


def _hold(records: Iterable[Record], stats: RunStats) -> list[Record]:
    """All records without repeated conversations, in memory: each may lend messages to others."""
    once: Iterator[tuple[Record, list[dict[str, Any]]]] = (
        (record, [record]) for record in drop_repeated_conversations(records, stats)
    )
    results = drop_duplicates(once, stats)
    return [Record(result, getattr(result, "where", None)) for result in results]


def _altering_emitter(config: SampleConfig, pool: MessagePool) -> Emitter:
    """The emitter of results that hold messages of other conversations."""
    if config.emit == Emit.corruptions:
        return partial(emitters.corruptions, pool=pool, kinds=config.kinds)
    return partial(emitters.contrasts, pool=pool, turn=config.turn)


def _emitter(config: SampleConfig) -> Emitter:
    """The emitter of results that follow from one record alone."""
    seeds = partial(emitters.seeds, next_speaker=config.next_speaker, max_tokens=config.max_tokens)
    by_kind: dict[Emit, Emitter] = {
        Emit.seeds: seeds,
        Emit.prompts: emitters.prompts,
        Emit.pairs: emitters.pairs,
        Emit.comparisons: emitters.comparisons,
        Emit.conversations: emitters.conversations,
    }
    return by_kind[config.emit]


def _is_too_long(result: dict[str, Any], max_tokens: int | None) -> bool:
    return max_tokens is not None and any(
        emitters.count_tokens(result[side]) > max_tokens for side in side_names(result)
    )


def read_records(
    rows: Iterable[tuple[str, Record]],
    stats: RunStats,
    *,
    pairs: bool = False,
    label: str | None = None,
    ranked: Ranked = Ranked.all,
    notes: RowNotes | None = None,
) -> Iterator[Record]:
    """Read the records of all rows, whatever their formats.

    Args:
        rows: pairs of a source's name and one of its rows.
        stats: counts the rows; its `rejects` get the rows that cannot be read.
        pairs: whether to yield preferences where rows can become either conversations or
            preferences. Solved and unsolved trajectories are then held until the last row.
        label: the label that ranks replies, where rows have several.
        ranked: which pairs a row with several ranked replies gives.
        notes: says after the last row which columns were not read, and which scores contradict
            the choice.
    """
    trajectories, ids = [], RowIds(stats)
    for source, row in join_rows(rows, stats):
        records: list[Record] = []
        row = Row(row, row.where)
        with stats.rejects.guard(row):
            records = _read_row(row, source, pairs, label, hint=not stats.rejects.skip)
            if notes:
                notes.add(row, records)
            if not records:
                stats.count("dropped", "no_pair" if pairs else "no_conversation", record=row)
        if ranked is Ranked.best_worst:
            kept = keep_best_over_worst(records)
            stats.count("dropped", "between_best_and_worst", len(records) - len(kept))
            records = kept
        ids.make_unique(records)
        for record in records:
            if not (pairs and is_trajectory(record)):
                yield record
            elif count_turns(record["messages"]):
                trajectories.append(record)
            else:
                stats.count("dropped", "no_reply", record=record)
    yield from pair_trajectories(trajectories, stats)
    if notes:
        notes.report(stats)


def _read_row(row: Record, source: str, pairs: bool, label: str | None, hint: bool) -> list[Record]:
    try:
        # Memory holds them all, and the pairs of a row's replies grow with the square of these.
        records = list(
            islice(formats.read(row, source, pairs=pairs, label=label), MAX_RECORDS_OF_ROW + 1)
        )
        if len(records) > MAX_RECORDS_OF_ROW:
            kind = "pairs" if pairs else "conversations"
            raise RecordError(f"gives more than {MAX_RECORDS_OF_ROW:,} {kind}", record=row)
        return records
    except RecordError as error:
        if hint:
            error.problem += " (`on_error` skip leaves such rows out)"
        raise


def read_excluded(names: Iterable[str], stats: RunStats) -> ExcludedPrompts:
    """The prompts of the named datasets. Their rows are not counted in `stats`."""
    separate = RunStats(stats.rejects, stats.say)
    return ExcludedPrompts(read_records(read_rows(names, stats=separate), separate))
