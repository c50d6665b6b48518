"""Win rates from judged contests: how often side a beats side b, at each pool size N."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from musiccli.bench.stats import intervals as statistics
from musiccli.bench.stats.outcomes import metric, number, prompt
from musiccli.core import records, votes
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, side_names

NAME = "winrate"
POINTS = {
    "win": 1.0,
    "loss": 0.0,
    "tie": 0.5,
    "inconsistent": 0.5,
    "same_pick": 0.5,
}  # unreadable earns no points
SHAPES = {"models": (dict, "an object"), "best_of": (int, "a whole number")}


class Contest(NamedTuple):
    """Who met whom, in pools of which size; `size` is None where the sides were not picked from pools."""

    first: str
    second: str
    size: int | None


class Games:
    """The readable contests of one kind, two numbers each, and how all of them ended."""

    def __init__(self) -> None:
        self.prompts, self.points = array("q"), array("d")
        self.endings: Counter[str] = Counter()


def judged(record: Record) -> Record:
    """A judged record; a contest in which both models picked the same conversation needs no judge."""
    if same_pick(record):
        record.setdefault("winner", "tie")
    for field, (kind, expected) in SHAPES.items():
        if record.get(field) is not None and not isinstance(record[field], kind):
            raise RecordError(f"should be {expected}", field=field, record=record)
    return votes.parse_votes(records.parse_judged(record))


def winrate(
    contests: Iterable[Record],
    *,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    counts: Counter | None = None,
) -> Iterator[dict]:
    """Metric records: side a's win rate for each N, and its change from the smallest N to each larger one.

    A tie is half a win, and so are a verdict that turned with the order of the sides and a contest in which both
    models picked the same conversation; what could not be read is left out. Intervals take contests of one prompt as
    dependent.
    """
    counts = Counter() if counts is None else counts
    kinds: dict[Contest, Games] = {}
    for record in contests:
        ending = outcome(record)
        counts[f"{ending.replace('_', ' ')}"] += ending not in ("win", "loss", "tie")
        games = kinds.setdefault(contest(record), Games())
        games.endings[ending] += 1
        if ending in POINTS:
            games.prompts.append(number(record["id"]) if "best_of" in record else prompt(record))
            games.points.append(POINTS[ending])
    resampling = {"draws": draws, "confidence": confidence, "seed": seed}
    ordered = sorted(kinds, key=lambda kind: (kind.first, kind.second, kind.size or 0))
    for kind in ordered:
        yield from rate(kind, kinds[kind], resampling)
    for kind in ordered:
        smallest = next(other for other in ordered if other[:2] == kind[:2])
        if kind.size and smallest.size and kind is not smallest:
            yield from change(kind, smallest, kinds, resampling)


def outcome(record: Record) -> str:
    """How a contest ended for its first side: win, loss, tie, inconsistent, same_pick or unreadable."""
    first, second = side_names(record)
    if same_pick(record):
        return "same_pick"
    if record["winner"] in (first, second):
        return "win" if record["winner"] == first else "loss"
    if record["winner"] is None:
        return "unreadable"
    outcomes = votes.outcomes_by_judge(record.get("votes") or []).values()
    return "inconsistent" if votes.panel_verdict(outcomes) == votes.INCONSISTENT else "tie"


def same_pick(record: Record) -> bool:
    picks = record.get("picks")
    return isinstance(picks, dict) and "a" in picks and picks["a"] == picks.get("b")


def contest(record: Record) -> Contest:
    names = record.get("models") or {}
    first, second = (str(names.get(side, side)) for side in side_names(record))
    return Contest(first, second, record.get("best_of"))


def rate(kind: Contest, games: Games, resampling: dict) -> Iterator[dict]:
    """The win rate of one kind of contest, with the count of every ending.

    Beside it, what a choice between the two picks could have won against the second: `oracle`, the one that the judge
    prefers each time, and `random`, the toss of a coin.
    """
    import numpy as np

    endings = {
        name: games.endings[name]
        for name in ("win", "loss", "tie", "inconsistent", "same_pick", "unreadable")
    }
    subset = f"best_of={kind.size}" if kind.size else "all"
    if not games.points:
        yield metric(
            NAME, kind.first, subset, "win_rate", None, None, 0, against=kind.second, **endings
        )
        return
    points = np.asarray(games.points)
    interval = statistics.share_interval(points, games.prompts, resampling["confidence"])
    yield metric(
        NAME,
        kind.first,
        subset,
        "win_rate",
        points.mean(),
        interval,
        len(points),
        against=kind.second,
        oracle=float(np.maximum(points, 0.5).mean()),
        random=float((points.mean() + 0.5) / 2),
        **endings,
    )


def change(
    kind: Contest, smallest: Contest, kinds: dict[Contest, Games], resampling: dict
) -> Iterator[dict]:
    """How the win rate moves from the smallest N to this one, on the prompts that have both.

    Pools are nested, so the two rates are dependent: they are resampled together, by prompt.
    """
    import numpy as np

    large, small = kinds[kind], kinds[smallest]
    both = np.intersect1d(large.prompts, small.prompts)
    if not len(both):
        return
    parts = []
    for games in (large, small):
        kept = np.isin(games.prompts, both)
        points = np.asarray(games.points)[kept]
        parts.append(statistics.totals([points, points * 0 + 1], np.asarray(games.prompts)[kept]))
    rows = np.concatenate(parts, axis=1)

    def moved(sums: "np.ndarray") -> "np.ndarray":
        return sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]

    yield metric(
        NAME,
        kind.first,
        f"best_of={smallest.size}->{kind.size}",
        "win_rate_change",
        moved(rows.sum(0)),
        statistics.bootstrap(rows, moved, **resampling),
        len(both),
        against=kind.second,
    )
