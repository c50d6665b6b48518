"""Turn scored candidates into Best-of-N contests between the picks of two reward models."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any

from musiccli.core import records
from musiccli.core.errors import RecordError
from musiccli.core.messages import count_characters
from musiccli.core.records import BASELINE_PREFIX, Record
from musiccli.core.run_stats import RunStats


def _length(candidate: Record) -> int:
    return count_characters(candidate["messages"])


BASELINE_PICKS: dict[str, Callable[[list[Record], Random], Record]] = {
    BASELINE_PREFIX + "random": lambda pool, rng: rng.choice(pool),
    BASELINE_PREFIX + "first": lambda pool, rng: pool[0],
    BASELINE_PREFIX + "longest": lambda pool, rng: max(pool, key=_length),
    BASELINE_PREFIX + "shortest": lambda pool, rng: min(pool, key=_length),
}  # baselines that may take the place of a model; none reads the texts


def best_of(
    candidates: Iterable[Record],
    sizes: Sequence[int],
    a: str,
    b: str,
    stats: RunStats | None = None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """For each id and pool size N, a contest between the picks that two models make from one pool.

    The first max(sizes) candidates of each id are used. The pool of size N holds those N with the
    lowest sample numbers, so smaller pools are parts of larger ones. Candidates of one id may be
    anywhere in the input. An id with too few candidates gives the contests of the smaller sizes.
    Candidates with a fault take part.

    Args:
        candidates: conversations that passed `check_scored_candidate` for `a` and `b`.
        sizes: pool sizes, ascending.
        a: name of the model whose pick is side a, or a key of `BASELINE_PICKS`.
        b: likewise for side b.
        stats: counts unused candidates, faulty candidates, ids with too few candidates, and
            contests in which both sides pick the same candidate.
        seed: for the random baseline.
    """
    stats = stats or RunStats()
    pools: dict[object, list[Record]] = {}
    full = set()
    for candidate in candidates:
        if candidate["id"] in full:
            stats.count("candidates_beyond_largest_size")
            continue
        stats.count("candidates_with_faults", number=bool(candidate.get("faults")))
        pool = pools.setdefault(candidate["id"], [])
        pool.append(candidate)
        if len(pool) == max(sizes):
            full.add(candidate["id"])
            yield from _contests(pools.pop(candidate["id"]), sizes, a, b, stats, seed)
    for pool in pools.values():
        stats.count("ids_with_too_few_candidates", record=pool[0])
        yield from _contests(pool, [n for n in sizes if n <= len(pool)], a, b, stats, seed)


def check_scored_candidate(candidate: Record, names: Iterable[str]) -> Record:
    """Check a candidate: a conversation with a score by each of `names` that is not a baseline.

    Raises:
        RecordError: a score is missing or no number, or the candidate is a rejected branch.
    """
    records.parse_candidate(candidate)
    scores = candidate.get("scores") or {}
    if not isinstance(scores, dict):
        raise RecordError(
            "should be an object, with a number by each model", field="scores", record=candidate
        )
    for name in [name for name in names if name not in BASELINE_PICKS]:
        if type(scores.get(name)) not in (int, float, type(None)):  # true is an int, too
            raise RecordError("should be a number", field=f"scores.{name}", record=candidate)
        if scores.get(name) is None:
            raise RecordError(
                f"no score by {name!r} (scores by: {', '.join(scores) or 'none'}); "
                "music score adds scores",
                field="scores",
                record=candidate,
            )
    return candidate


def pick(pool: list[Record], name: str, seed: int) -> Record:
    """The candidate that a model or a baseline picks from a pool; of equal ones, the first."""
    if name in BASELINE_PICKS:
        return BASELINE_PICKS[name](pool, Random(f"{seed} {pool[0]['id']} {len(pool)}"))
    return max(pool, key=lambda candidate: candidate["scores"][name])


def _contests(
    pool: list[Record], sizes: Sequence[int], a: str, b: str, stats: RunStats, seed: int
) -> Iterator[dict[str, Any]]:
    """A contest for each size, also where both sides pick the same candidate."""
    pool = sorted(pool, key=lambda candidate: candidate.get("sample", 0))
    for size in sizes:
        picks = {side: pick(pool[:size], name, seed) for side, name in (("a", a), ("b", b))}
        stats.count("same_pick", number=picks["a"] is picks["b"])
        yield {
            "id": pool[0]["id"],
            "best_of": size,
            "a": picks["a"]["messages"],
            "b": picks["b"]["messages"],
            **({"tools": pool[0]["tools"]} if "tools" in pool[0] else {}),
            "models": {"a": a, "b": b},
            "picks": {side: candidate.get("sample", 0) for side, candidate in picks.items()},
            "metadata": pool[0].get("metadata", {}),
        }
