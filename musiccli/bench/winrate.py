"""Win rates from judged contests: how often side a beats side b, at each pool size N.

A tie is half a win. So is an inconsistent verdict, which changed with the order of the sides, and a
contest in which both models picked the same conversation. Contests without a readable verdict are
left out.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.comparisons import MANY_MODELS
from musiccli.bench.stats.contests import is_same_pick
from musiccli.bench.stats.intervals import proportion_interval
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    cluster_number,
    metric_record,
    prompt_cluster,
)
from musiccli.core import votes
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, parse_judged, side_names
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "winrate", "Best-of-N win rate"
ENDINGS = ("win", "loss", "tie", "inconsistent", "same_pick", "unreadable")
POINTS = {"win": 1.0, "loss": 0.0, "tie": 0.5, "inconsistent": 0.5, "same_pick": 0.5}
FIELD_TYPES = {"models": (dict, "an object"), "best_of": (int, "a whole number")}


class Matchup(NamedTuple):
    """The models of a contest and the size of their pools; None where there are no pools."""

    first: str
    second: str
    size: int | None

    @property
    def subset(self) -> str:
        """The name of its subset."""
        return f"best_of={self.size}" if self.size else "all"


class Contests:
    """The contests of one matchup: how many ended how, and the id, cluster and points of each."""

    def __init__(self) -> None:
        self.ids, self.clusters = array("q"), array("q")  # without the unreadable ones
        self.points = array("d")
        self.endings: Counter[str] = Counter()


def check_contest(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a judged record. A contest in which both models picked the same needs no judge."""
    if is_same_pick(record):
        record.setdefault("winner", "tie")
    for field, (kind, expected) in FIELD_TYPES.items():
        if record.get(field) is not None and not isinstance(record[field], kind):
            raise RecordError(f"should be {expected}", field=field, record=record)
    return votes.parse_votes(parse_judged(record))


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """The first side's win rate at each N, and its change from the smallest N to each larger one.

    Intervals take contests of one id as dependent, and those that open with the same prompt.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    matchups: dict[Matchup, Contests] = {}
    clusters: dict[object, int] = {}  # by id
    for record in records:
        worst.add_contest(record)
        ending = _ending(record)
        if ending in ("inconsistent", "same_pick", "unreadable"):
            stats.count(ending)
        contests = matchups.setdefault(_matchup(record), Contests())
        contests.endings[ending] += 1
        if ending in POINTS:
            contests.ids.append(cluster_number(record["id"]))
            contests.clusters.append(clusters.setdefault(record["id"], prompt_cluster(record)))
            contests.points.append(POINTS[ending])
    ordered = sorted(matchups, key=lambda matchup: (*matchup[:2], matchup.size or 0))
    for matchup in ordered:
        yield _rate_record(matchup, matchups[matchup], config)
    for matchup in ordered:
        smallest = next(smaller for smaller in ordered if smaller[:2] == matchup[:2])
        if matchup.size and smallest.size and matchup is not smallest:
            yield from _change_records(matchup, smallest, matchups, config)


def _ending(record: Record) -> str:
    """How a contest ended for its first side, one of ENDINGS."""
    first, second = side_names(record)
    if is_same_pick(record):
        return "same_pick"
    if record["winner"] in (first, second):
        return "win" if record["winner"] == first else "loss"
    if record["winner"] is None:
        return "unreadable"
    outcomes = votes.outcomes_by_judge(record.get("votes") or []).values()
    return "inconsistent" if votes.panel_verdict([*outcomes]) == votes.INCONSISTENT else "tie"


def _matchup(record: Record) -> Matchup:
    models = record.get("models") or {}
    first, second = (str(models.get(side, side)) for side in side_names(record))
    return Matchup(first, second, record.get("best_of"))


def _rate_record(matchup: Matchup, contests: Contests, config: BenchConfig) -> MetricRecord:
    """The win rate of one matchup, with the count of every ending.

    Beside it stands what a choice between the two picks would win against the second pick:
    `oracle` takes the pick that the judge prefers each time, `random` tosses a coin.
    """
    import numpy as np

    extra: dict[str, Any] = {"against": matchup.second}
    endings = {ending: contests.endings[ending] for ending in ENDINGS}
    value = interval = None
    points = np.asarray(contests.points)
    if len(points):
        value = points.mean()
        interval = proportion_interval(points, contests.clusters, config.confidence)
        extra["oracle"] = float(np.maximum(points, 0.5).mean())
        extra["random"] = float((points.mean() + 0.5) / 2)
    extra |= endings
    return metric_record(
        NAME, matchup.first, matchup.subset, "win_rate", value, interval, len(points), **extra
    )


def _change_records(
    matchup: Matchup,
    smallest: Matchup,
    matchups: Mapping[Matchup, Contests],
    config: BenchConfig,
) -> Iterator[MetricRecord]:
    """How the win rate changes from the smallest N to this one, on the ids that have both.

    Pools are nested, so the two rates are dependent. The bootstrap draws them together, by prompt.
    """
    import numpy as np

    large, small = matchups[matchup], matchups[smallest]
    shared_ids = np.intersect1d(large.ids, small.ids)
    if not len(shared_ids):
        return
    columns = []
    for contests in (large, small):
        is_shared = np.isin(contests.ids, shared_ids)
        points = np.asarray(contests.points)[is_shared]
        clusters = np.asarray(contests.clusters)[is_shared]
        columns.append(cluster_sums([points, points * 0 + 1], clusters))
    rows = np.concatenate(columns, axis=1)
    value, interval = _rate_change(rows.sum(0)), bootstrap_interval(rows, _rate_change, config)
    yield metric_record(
        NAME,
        matchup.first,
        f"best_of={smallest.size}->{matchup.size}",
        "win_rate_change",
        float(value),
        interval,
        len(shared_ids),
        against=matchup.second,
    )


def _rate_change(sums: "Array") -> "Array":
    """The difference of two rates, of (..., 4) sums: points and count of the large and small N."""
    change: Array = sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]
    return change


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """A line for each N, with how its contests ended, and a line for each change."""
    matchups = distinct(f"{row['model']} against {row['against']}" for row in rows)
    cells = []
    for row in rows:
        label = row["subset"]
        if len(matchups) > 1:
            label = f"{row['model']} against {row['against']}, {label}"
        number_format = "+.1f" if row["metric"] == "win_rate_change" else ".1f"
        picks = [f"{100 * row[name]:.1f}" for name in ("random", "oracle") if name in row]
        endings = [f"{row[name]:,}" if name in row else "" for name in ENDINGS]
        rate = value_cell(row, number_format=number_format)
        cells.append([label, rate, ", ".join(picks), f"{row['count']:,}", *endings])
    interval = f"[{100 * config.confidence:g}% interval]"
    subject = "; ".join(matchups) if len(matchups) < 3 else f"{len(matchups)} matchups"
    title = f"Win rate of {subject}, % {interval}; a tie is half a win"
    columns = ["", "won", "coin, oracle", "read", *(name.replace("_", " ") for name in ENDINGS)]
    return [Table(title, columns, cells)]


def plot(axes: "Axes", rows: Rows) -> None:
    """The win rate over N with its interval, between what a coin and the judge would make of it."""
    from musiccli.bench.report import plots

    rows = [
        row | {"matchup": f"{row['model']}{_separator(row)}against {row['against']}"}
        for row in rows
        if row["metric"] == "win_rate" and row["value"] is not None
    ]
    subsets = sorted(distinct(row["subset"] for row in rows), key=_pool_size)
    matchups = distinct(row["matchup"] for row in rows)
    for number, matchup in enumerate(matchups):
        shown = [row for row in rows if row["matchup"] == matchup]
        if len(matchups) < MANY_MODELS:
            _draw_matchup(axes, shown, subsets, number, matchup)
        else:  # bands and lines of so many would cover each other
            places = plots.x_places(shown, subsets, number, len(matchups), 0.7 / len(matchups))
            plots.draw_points(axes, places, shown, number, matchup)
    plots.draw_half_line(axes, "even")
    labels = [
        f"{subset.removeprefix('best_of=')}\n{plots.largest_count(rows, subset):,} contests"
        for subset in subsets
    ]
    axes.set_xticks(range(len(subsets)), labels)
    drawn = ("value", "low", "high", *(["oracle"] if len(matchups) < MANY_MODELS else []))
    ends = [row[name] for row in rows for name in drawn]
    reach = max([0.15, *(abs(end - 0.5) for end in ends if end is not None)]) + 0.02
    axes.set(
        xlim=(-0.4, len(subsets) - 0.6),
        ylim=(max(0, 0.5 - reach), min(1.02, 0.5 + reach)),
        title=TITLE,
        ylabel="win rate, a tie is half",
    )
    if subsets != ["all"]:
        axes.set_xlabel("N, candidates to pick from")


def _separator(row: MetricRecord) -> str:
    """What stands between two models in a legend; names of several lines stand apart."""
    return "\n" if "\n" in row["model"] + row["against"] else " "


def _draw_matchup(axes: "Axes", rows: Rows, subsets: list[str], number: int, label: str) -> None:
    from musiccli.bench.report import plots

    places, color = plots.x_places(rows, subsets), plots.color_of(number)
    values, (below, above) = plots.values_of(rows), plots.error_bars(rows)
    axes.plot(places, values, marker=plots.marker_of(number), color=color, linewidth=2, label=label)
    if len(rows) > 1:
        low = [value - less for value, less in zip(values, below, strict=True)]
        high = [value + more for value, more in zip(values, above, strict=True)]
        axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    else:
        bars = [below, above]
        axes.errorbar(places, values, bars, fmt="none", ecolor=color, elinewidth=1.6, capsize=4)
    for pick, line in (("oracle", "--"), ("random", ":")):
        axes.plot(
            places,
            [row[pick] for row in rows],
            line,
            marker="_",
            color=color,
            linewidth=1,
            label=f"{pick} of the two picks" if number == 0 else None,
        )


def _pool_size(subset: str) -> int:
    return int(subset.removeprefix("best_of=")) if subset.startswith("best_of=") else 0


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="How often side a wins, for each N of Best-of-N.",
    example="music pair --best-of 2,4,8 --a music --b base scored.jsonl | "
    "music judge --judge MODEL | music bench winrate",
    parse=check_contest,
    metrics=metrics,
    tables=tables,
    plot=plot,
    measured=prompt_cluster,  # the replies are the models' own
    options=("bootstrap", "seed"),
)
