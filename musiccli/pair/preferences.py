"""Two branches become one preference; scored candidates become Best-of-N contests between two reward models."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from musiccli.core import records
from musiccli.core.errors import RecordError
from musiccli.core.records import (
    BASELINE_PREFIX,
    Record,
    count_characters,
    first_divergence,
    same_text,
)


def join(
    branches: Iterable[Record],
    counts: Counter | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    drop: Callable[[Record, Record], str | None] | None = None,
) -> Iterator[dict]:
    """Preferences from branches: the chosen and the rejected branch of the same id and sample.

    Branches that stand together stream; a branch whose partner comes later is held until then, and `say` is told
    once. `drop` names why a pair should not be, drop_reason if left out; these are counted. What is a preference
    already passes through.
    """
    counts = Counter() if counts is None else counts
    waiting: dict[tuple, Record] = {}
    held = False
    for branch in branches:
        if "chosen" in branch:
            yield branch
            continue
        key = (branch["id"], branch["sample"])
        partner = waiting.pop(key, None)
        if partner is None:
            waiting[key] = branch
            if len(waiting) > 1 and not held:
                held = True
                say(
                    f"{branch.where}: branches of one id do not stand together; holding each until its partner comes"
                )
            continue
        chosen, rejected = (branch, partner) if branch["branch"] == "chosen" else (partner, branch)
        reason = (drop or drop_reason)(chosen, rejected)
        if reason:
            counts[f"dropped ({reason})"] += 1
            continue
        if truncated(chosen, rejected):
            counts["with a truncated message"] += 1
        yield preference(chosen, rejected)
    if waiting:
        counts["dropped (other branch missing)"] += len(waiting)


def drop_reason(chosen: Record, rejected: Record, drop_truncated: bool = False) -> str | None:
    """Why a pair of branches would be a bad preference, one that teaches nothing or something wrong; or None.

    A message that the token limit cut, and that now ends with a whole sentence, is no reason unless it is said to be
    one: with long-winded models hardly a pair has none. One that ends in the middle is a fault.
    """
    faults = chosen.get("faults", []) + rejected.get("faults", [])
    if faults:
        return faults[0]["fault"]
    if same_text(chosen["messages"], rejected["messages"]):
        return "same text"
    if first_divergence(chosen["messages"], rejected["messages"]) < chosen.get("seed_messages", 0):
        return "different seeds"
    if "contrast" in rejected and not rejected["contrast"]:
        return "nothing contrasted"
    for branch in (chosen, rejected):
        if branch["messages"][-1]["role"] != "assistant":
            return "ends with the user"
    return "truncated" if drop_truncated and truncated(chosen, rejected) else None


def truncated(chosen: Record, rejected: Record) -> dict[str, list[int]]:
    """Which messages of which branch the token limit has cut: {side: indices}, without sides that have none."""
    return {
        name: branch["truncated"]
        for name, branch in (("chosen", chosen), ("rejected", rejected))
        if branch.get("truncated")
    }


def preference(chosen: Record, rejected: Record) -> dict:
    """The preference two branches make, with the scores that both have. Fields that only simulate's bookkeeping needs
    are left behind."""
    kept = {name: value for name, value in chosen.items() if name not in BOOKKEEPING}
    optional = {"truncated": truncated(chosen, rejected)} | {
        field: {
            name: {"chosen": score, "rejected": rejected[field][name]}
            for name, score in (chosen.get(field) or {}).items()
            if name in (rejected.get(field) or {})
        }
        for field in SCORES
    }
    return (
        kept
        | {name: value for name, value in optional.items() if value}
        | {
            "chosen": chosen["messages"],
            "rejected": rejected["messages"],
            "first_divergence": first_divergence(chosen["messages"], rejected["messages"]),
            "contrast": rejected.get("contrast", []),
        }
    )


SCORES = ("scores", "turn_scores")
BOOKKEEPING = {"messages", "branch", "faults", "truncated", "usage", "cost", "contrast", *SCORES}


def best_of(
    candidates: Iterable[Record],
    sizes: Sequence[int],
    a: str,
    b: str,
    counts: Counter | None = None,
    seed: int = 0,
) -> Iterator[dict]:
    """Contests: for each id and each pool size N, the candidate that model `a` scores highest against `b`'s.

    In place of a model may stand one of `PICKS`, which reads nothing; `seed` is for the random one.

    Pools are nested: the pool of N is the first N candidates by sample number, among as many as the largest N needs, in
    input order; what comes beyond is counted. Candidates of an id need not stand together; an id whose pool stays
    smaller than the largest N gives the contests it can, and is counted. Every candidate must be `scored` by both; one
    with a fault of the simulation takes part, and is counted.
    """
    counts = Counter() if counts is None else counts
    pools: dict[object, list[Record]] = {}
    full = set()
    for candidate in candidates:
        if candidate["id"] in full:
            counts["candidates beyond the largest N"] += 1
            continue
        counts["candidates with a fault"] += bool(candidate.get("faults"))
        pool = pools.setdefault(candidate["id"], [])
        pool.append(candidate)
        if len(pool) == max(sizes):
            full.add(candidate["id"])
            yield from contests(pools.pop(candidate["id"]), sizes, a, b, counts, seed)
    for pool in pools.values():
        counts["ids with fewer candidates than the largest N"] += 1
        yield from contests(pool, [n for n in sizes if n <= len(pool)], a, b, counts, seed)


def scored(candidate: Record, names: Iterable[str]) -> Record:
    """A conversation with a score by each of `names` that is a model's. Raises RecordError where one is missing, and
    for a branch that was made to be the worse one."""
    if records.parse_branch(candidate)["branch"] == "rejected":
        raise RecordError(
            "is rejected, which answers altered instructions; candidates come from music simulate "
            "--contrast none",
            field="branch",
            record=candidate,
        )
    scores = candidate.get("scores") or {}
    if not isinstance(scores, dict):
        raise RecordError(
            "should be an object, with a number by each model", field="scores", record=candidate
        )
    for name in [name for name in names if name not in PICKS]:
        if not isinstance(scores.get(name), int | float):
            raise RecordError(
                f"no score by {name!r} (scores by: {', '.join(scores) or 'none'}); music score --as NAME "
                "adds one",
                field="scores",
                record=candidate,
            )
    return candidate


def _length(candidate: Record) -> int:
    return count_characters(candidate["messages"])


PICKS: dict[str, Callable[[list[Record], Random], Record]] = {
    BASELINE_PREFIX + "random": lambda pool, rng: rng.choice(pool),
    BASELINE_PREFIX + "first": lambda pool, rng: pool[0],
    BASELINE_PREFIX + "longest": lambda pool, rng: max(pool, key=_length),
    BASELINE_PREFIX + "shortest": lambda pool, rng: min(pool, key=_length),
}


def pick(pool: list[Record], name: str, seed: int) -> Record:
    """The candidate that a model, or one of `PICKS`, takes from a pool; the first of several that it finds equal."""
    if name in PICKS:
        return PICKS[name](pool, Random(f"{seed} {pool[0]['id']} {len(pool)}"))
    return max(pool, key=lambda candidate: candidate["scores"][name])


def contests(
    pool: list[Record], sizes: Sequence[int], a: str, b: str, counts: Counter, seed: int
) -> Iterator[dict]:
    """One contest for each pool size; where both pick the same candidate it is still a contest, and a tie."""
    pool = sorted(pool, key=lambda candidate: candidate.get("sample", 0))
    for size in sizes:
        picks = {side: pick(pool[:size], name, seed) for side, name in (("a", a), ("b", b))}
        counts["same pick"] += picks["a"] is picks["b"]
        yield {
            "id": pool[0]["id"],
            "best_of": size,
            "a": picks["a"]["messages"],
            "b": picks["b"]["messages"],
            "models": {"a": a, "b": b},
            "picks": {side: found.get("sample", 0) for side, found in picks.items()},
            "metadata": pool[0].get("metadata", {}),
        }
