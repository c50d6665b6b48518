"""Whether a reward model reads the whole conversation.

It measures how often an intact conversation scores higher than a corrupted copy of it, from
what music sample corrupts and music score scores. A model that reads the last turn only scores both
sides equal wherever the corruption lies before it. Equal scores are wrong, and `ties` counts them.

Beside every accuracy stand content-blind baselines and `length_difference`, the mean of corrupted
minus intact in characters. Where a user message was dropped, the intact side is always the longer
one, so the baseline "longest" gets all of it right. Figures over several kinds leave that kind out.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, comparison_notes, overall, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, distinct
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.comparisons import compare_models
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    accuracy_record,
    check_scored_pair,
)
from musiccli.core.errors import RecordError
from musiccli.core.messages import count_characters
from musiccli.core.records import Record, parse_preference
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "sensitivity", "Sensitivity to corruptions"
KINDS = ("reply", "user", "swap", "drop_user")  # in the order of the tables; others come after
UNMATCHED_KIND = "drop_user"  # the kind whose sides differ in length
BEFORE_LAST = "distance>=1"  # corruptions that only a reader of the history can see
MIN_PAIRS = 10  # that a point in the figure stands for


def check_corruption_pair(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a scored preference that says in `corruption` how its rejected side is corrupted."""
    parse_preference(record)
    corruption = record.get("corruption")
    if not isinstance(corruption, dict):
        problem = "is missing; music sample writes it where it corrupts conversations"
        raise RecordError(problem, field="corruption", record=record)
    kind = corruption.get("kind")
    if not isinstance(kind, str) or "," in kind:
        raise RecordError("should be a name without commas", field="corruption.kind", record=record)
    if not isinstance(corruption.get("distance"), int):
        raise RecordError("should be a whole number", field="corruption.distance", record=record)
    return check_scored_pair(record, config.models)


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Each model's accuracy on all corruptions, before the last turn, by distance and by kind.

    Corruptions of one conversation are taken as dependent, and so are those of conversations that
    open alike, as the branches of a tree do. Every two models are compared, but not by kind and
    distance at once.
    """
    import numpy as np

    worst = worst or WorstRecords(config.models)
    pairs, differences = ScoredPairs(config.models), array("q")
    for record in records:
        worst.add_scored_pair(record, "chosen")
        corruption = record["corruption"]
        pairs.add(record, 0, {name: corruption[name] for name in ("kind", "distance")})
        differences.append(
            count_characters(record["rejected"]) - count_characters(record["chosen"])
        )
    length_differences = np.asarray(differences)
    for subset, mask in _subsets(pairs):
        mean = float(length_differences[mask].mean())
        for model in pairs.models:
            if len(outcomes := pairs.outcomes(model, mask)):
                yield accuracy_record(
                    NAME, subset, outcomes, config.confidence, length_difference=mean
                )
        if "," not in subset:
            yield from compare_models(NAME, pairs, subset, mask, config)


def _subsets(pairs: ScoredPairs) -> "Iterator[tuple[str, Array]]":
    """The subsets that have pairs, with their masks.

    They are "all", "distance>=1", "distance=0" and so on, "kind=reply" and so on, and
    "kind=reply,distance=0" and so on.
    """
    import numpy as np

    by_kind, by_distance = dict(pairs.groups("kind")), dict(pairs.groups("distance"))
    nothing = np.full(len(pairs), False)
    matched = sum((mask for kind, mask in by_kind.items() if kind != UNMATCHED_KIND), nothing)
    matched = matched if matched.any() else ~nothing
    before_last = sum((mask for distance, mask in by_distance.items() if distance >= 1), nothing)
    kinds = [kind for kind in KINDS if kind in by_kind]
    kinds += [kind for kind in by_kind if kind not in KINDS]
    subsets = [
        ("all", matched),
        (BEFORE_LAST, before_last & matched),
        *((f"distance={distance}", mask & matched) for distance, mask in by_distance.items()),
        *((f"kind={kind}", by_kind[kind]) for kind in kinds),
        *(
            (f"kind={kind},distance={distance}", by_kind[kind] & mask)
            for kind in kinds
            for distance, mask in by_distance.items()
        ),
    ]
    yield from ((subset, mask) for subset, mask in subsets if mask.any())


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """All kinds and then each of several, with their distances from the end below them."""
    subsets = distinct(row["subset"] for row in rows)
    lines = [("all", "all"), (BEFORE_LAST, f"  {subset_words(BEFORE_LAST)}")]
    lines += [(name, f"  {_label(name)}") for name in subsets if name.startswith("distance=")]
    kinds = _kind_subsets(rows)
    for kind in kinds if len(kinds) > 1 else ():
        lines.append((kind, _label(kind)))
        lines += [(name, f"  {_label(name)}") for name in subsets if name.startswith(f"{kind},")]
    return [
        accuracy_table(TITLE, rows, lines, config.confidence),
    ]


def _kind_subsets(rows: Rows) -> list[str]:
    """The subsets that are one kind at all distances."""
    subsets = distinct(row["subset"] for row in rows)
    return [subset for subset in subsets if subset.startswith("kind=") and "," not in subset]


def subset_words(subset: str) -> str:
    """A subset in the table's words: "reply, 2 turns from the end" for "kind=reply,distance=2"."""
    if subset == BEFORE_LAST:
        return "before the last turn"
    return ", ".join(map(_label, subset.split(",")))


def _label(subset: str) -> str:
    """As people read it: "reply" for "kind=reply", "1 turn from the end" for "...distance=1"."""
    name, _, value = subset.rpartition(",")[2].partition("=")
    if name != "distance":
        return value
    return f"{value} turn from the end" if value == "1" else f"{value} turns from the end"


def notes(rows: Rows) -> list[str]:
    """The baselines, ties and lengths, and how two models differ before the last turn."""
    return [
        *baselines_note(rows),
        *ties_note(overall(rows)),
        *_lengths_note(rows),
        *(f"{subset_words(BEFORE_LAST)}: {note}" for note in comparison_notes(rows, BEFORE_LAST)),
    ]


def _lengths_note(rows: Rows) -> list[str]:
    """How much longer corrupted sides are, by kind."""
    differences = {
        row["subset"]: row["length_difference"] for row in rows if "length_difference" in row
    }
    # Adding 0.0 turns "-0" into "+0".
    texts = [
        f"{_label(kind)} {round(differences[kind], 1) + 0.0:+g}"
        for kind in _kind_subsets(rows)
        if kind in differences
    ]
    title = "corrupted minus intact, mean difference in characters"
    return [f"{title}: {', '.join(texts)}"] if texts else []


def panels(rows: Rows) -> list[Rows]:
    """For each kind, the metric records of that kind by distance."""
    return [
        [row for row in rows if row["subset"].startswith(f"{kind},")]
        for kind in _kind_subsets(rows)
    ]


def plot(axes: "Axes", rows: Rows) -> None:
    """Accuracy over the distance of one kind of corruption, a line with a band per model.

    Distances of fewer than MIN_PAIRS pairs are left out, unless all have so few.
    """
    from musiccli.bench.report import plots
    from musiccli.core.figures import FAINT_COLOR

    kind = _label(rows[0]["subset"].partition(",")[0])
    rows = [row for row in rows if row["metric"] == "accuracy"]
    rows = [row | {"subset": row["subset"].partition("distance=")[2]} for row in rows]
    distances = distinct(row["subset"] for row in rows)
    counts = {distance: plots.largest_count(rows, distance) for distance in distances}
    distances = [name for name in distances if counts[name] >= MIN_PAIRS] or distances
    rows = [row for row in rows if row["subset"] in distances]
    for number, model in enumerate(plots.models_of(rows)):
        shown = [row for row in rows if row["model"] == model]
        places, color = plots.x_places(shown, distances), plots.color_of(number)
        values = plots.values_of(shown)
        axes.plot(
            places, values, marker=plots.marker_of(number), markersize=4, color=color, label=model
        )
        low, high = [row["low"] for row in shown], [row["high"] for row in shown]
        axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    plots.draw_best_baselines(axes, rows, distances)
    axes.axhline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)
    labels = [f"{distance}\n{counts[distance]:,}" for distance in distances]
    axes.set_xticks(range(len(distances)), labels, fontsize=8)
    axes.set(xlim=plots.x_limits(distances), ylim=(0, 1.02), title=kind)
    axes.set_xlabel("turns from the end, pairs", fontsize=8)
    place = axes.get_subplotspec()
    if place and place.is_first_col():
        axes.set_ylabel("intact scores higher")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="Whether a model reads the whole conversation: how often it notices that one turn is "
    "wrong, by how far back.",
    example="""music sample talks.jsonl --emit corruptions | music score --model rm | \
music score --model rm --last-only |
    music bench sensitivity --html sensitivity.html""",
    parse=check_corruption_pair,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    panels=panels,
    options=("models", "bootstrap", "seed"),
)
