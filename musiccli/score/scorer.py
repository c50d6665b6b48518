"""A reward model's scores for any record: one number per side and, on request, one per turn."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

from musiccli.core import json_text
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Identities, Line, decode
from musiccli.core.processes import ProcessGroup
from musiccli.core.reading import read_ahead
from musiccli.core.records import Record, identity_key, parse_any, side_names
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.score.config import ScoreConfig
from musiccli.score.windows import PAUSES, ScoredRecord, WindowScorer

WINDOW = 256  # records that one process scores together: enough to sort conversations by length
Item = TypeVar("Item")


def score(
    records: Iterable[Record],
    model: RewardModel,
    name: str,
    config: ScoreConfig | None = None,
    *,
    store: Store | None = None,
    stats: RunStats | None = None,
) -> Iterator[dict[str, Any]]:
    """Add `scores[name]` to records, and where `per_turn` is set also `turn_scores[name]`.

    A score is a number; of a record with sides, {side: number}. A turn score has a list in place
    of each number. Both sides of a pair lose the same oldest exchanges where one is too long;
    turn scores are then those of the turns that are left.

    Args:
        records: conversations, preferences or comparisons.
        model: a loaded reward model.
        name: the key of the scores.
        config: how to score.
        store: scores that were computed before; new ones are added.
        stats: counts what was cut, replaced and found in the store. A record that cannot be
            scored goes to its rejects.

    Yields:
        The records, in their order.
    """
    config, stats = config or ScoreConfig(), stats or RunStats()
    windows = chain(_windows(records), [None] * PAUSES)
    for window in WindowScorer(model, config, store).score(windows, lambda record: record):
        stats.count("sequences_from_the_cache", number=window.stored)
        for result in window.results:
            with stats.rejects.guard():
                if isinstance(result, RecordError):
                    raise result
                _count(stats, result.was_cut, _replaces(result.record, name))
                yield _with_scores(result, name, config.per_turn)


def score_lines(
    lines: Iterable[Line],
    model: RewardModel,
    name: str,
    config: ScoreConfig,
    *,
    store: Store | None,
    process_group: ProcessGroup,
    stats: RunStats,
) -> Iterator[bytes]:
    """Score the records in lines of JSONL, as `score` does, by several processes.

    Each process parses and scores its share of the windows of lines, and the first yields all. So
    scores do not depend on the number of processes, and no process holds more than some windows.

    Args:
        lines: the whole input; each process must be given all lines.
        model: a loaded reward model.
        name: the key of the scores.
        config: how to score.
        store: scores that were computed before; new ones are added.
        process_group: the processes that share the work.
        stats: as in `score`, of the first process. Lines that hold no record, and second records
            of one identity, go to its rejects.

    Yields:
        In the first process the records with their scores as JSON, in their order; in others
        nothing.
    """
    identities = Identities()
    windows = read_ahead(_share(lines, process_group), PAUSES)
    for window in WindowScorer(model, config, store).score(windows, _parse):
        outcomes = [_scored_line(result, name, config.per_turn) for result in window.results]
        for results, stored in process_group.gather_to_first((outcomes, window.stored)):
            stats.count("sequences_from_the_cache", number=stored)
            for result in results:
                with stats.rejects.guard():
                    if isinstance(result, RecordError):
                        raise result
                    result.refuse_duplicate(identities)
                    _count(stats, result.was_cut, result.replaces)
                    yield result.line


@dataclass(frozen=True)
class _ScoredLine:
    """A record with its scores as JSON, and what the first process must know of it."""

    line: bytes
    where: str
    identity: int
    was_cut: bool
    replaces: bool

    def refuse_duplicate(self, identities: Identities) -> None:
        """Raises RecordError where an earlier record has the same identity."""
        if not identities.add_key(self.identity):
            raise identities.error(decode(self.line, self.where))


def _scored_line(
    result: ScoredRecord | RecordError, name: str, per_turn: bool
) -> _ScoredLine | RecordError:
    if isinstance(result, RecordError):
        return result
    record = result.record
    return _ScoredLine(
        json_text.encode(_with_scores(result, name, per_turn)),
        record.where or "",
        identity_key(record),
        result.was_cut,
        _replaces(record, name),
    )


def _parse(line: Line) -> Record:
    return parse_any(decode(line.data, line.where))


def _windows(items: Iterable[Item]) -> Iterator[list[Item]]:
    items = iter(items)
    while window := list(islice(items, WINDOW)):
        yield window


def _share(lines: Iterable[Line], process_group: ProcessGroup) -> Iterator[list[Line]]:
    """The windows of this process. Every process gets as many; its last one may be empty."""
    windows = _windows(lines)
    while turn := list(islice(windows, process_group.size)):
        yield turn[process_group.rank] if process_group.rank < len(turn) else []


def _count(stats: RunStats, was_cut: bool, replaces: bool) -> None:
    stats.count("cut_to_fit", number=was_cut)
    stats.count("scores_of_this_name_replaced", number=replaces)


def _replaces(record: Record, name: str) -> bool:
    return name in (record.get("scores") or {})


def _with_scores(result: ScoredRecord, name: str, per_turn: bool) -> dict[str, Any]:
    """The record with new scores, and without turn scores of an earlier run under this name."""
    record, sides = result.record, result.rewards
    names = side_names(record)
    last: Any = sides[0][-1]
    turns: Any = sides[0]
    if len(names) == 2:
        last = {side: rewards[-1] for side, rewards in zip(names, sides, strict=True)}
        turns = dict(zip(names, sides, strict=True))
    added = {"scores": (record.get("scores") or {}) | {name: last}}
    turn_scores: Mapping[str, Any] = record.get("turn_scores") or {}
    if per_turn:
        added["turn_scores"] = {**turn_scores, name: turns}
    elif name in turn_scores:
        added["turn_scores"] = {
            model: scores for model, scores in turn_scores.items() if model != name
        }
    return {**record, **added}
