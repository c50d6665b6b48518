"""Agreement of scores with labels: how often the better side scores higher.

A pair is right only if its better side scores strictly higher. Accuracies are given for all pairs
and for the values of some fields. Two models of one input are compared on the pairs of both. Beside
them stand how far margins are probabilities, what they are where the label is a tie, and how far
people agree among themselves, which is the most that agreement with them can mean.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, FieldCheck, Rows, option
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, overall, ties_note
from musiccli.bench.report.tables import (
    Table,
    accuracy_table,
    distinct,
    value_cell,
)
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.calibration import LabeledMargins
from musiccli.bench.stats.ceiling import PEOPLE, PeoplesVotes
from musiccli.bench.stats.comparisons import MANY_MODELS, compare_models
from musiccli.bench.stats.kappa import cohen_kappa
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ModelOutcomes,
    ScoredPairs,
    accuracy_record,
    check_scored_pair,
    metric_record,
)
from musiccli.core.errors import RecordError
from musiccli.core.messages import count_turns, first_divergence
from musiccli.core.records import (
    Record,
    lookup,
    parse_judged,
    parse_preference,
    record_kind,
    side_names,
)
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "agreement", "Agreement with labels"
COMPUTED_FIELDS = {"turns", "first_divergence"}  # of every pair
COLUMN_NAMES = {
    "ece": "ECE",
    "brier": "Brier",
    "accuracy_with_ties": "% right with ties",
    "tie_margin": "margin of ties",
    "decided_margin": "margin of others",
    "krippendorff_alpha": "Krippendorff's alpha",
    "people_agree": "% equal votes",
    "people_agree_decided": "% without ties",
}


@dataclass(frozen=True)
class AgreementConfig(BenchConfig):
    """The common settings, and two of its own.

    Attributes:
        group_by: the fields by whose values accuracies are given: of the record or its metadata,
            "turns" or "first_divergence".
        human_votes: the field with people's verdicts on a pair.
    """

    group_by: tuple[str, ...] = option(
        ("turns", "first_divergence"),
        "--by",
        metavar="FIELD",
        help="Also by each value of a field, like metadata.category; may be repeated. Default: "
        "turns, first_divergence.",
    )
    human_votes: str | None = option(
        None,
        metavar="FIELD",
        help="The field (or metadata field) with a list of people's verdicts on the pair, for how "
        "far people agree. Default: records of the same two conversations are such votes.",
    )


def check_labeled_pair(record: Record, config: AgreementConfig = AgreementConfig()) -> Record:
    """Check a scored pair with a label: its `winner`, or else the chosen side of a preference."""
    if record_kind(record) == "preference" and "winner" not in record:
        check_scored_pair(parse_preference(record), config.models)
    else:
        check_scored_pair(parse_judged(record), config.models)
    allowed = (*side_names(record), "tie", None)
    winners = _human_votes(record, config)
    if not isinstance(winners, list) or any(winner not in allowed for winner in winners):
        problem = f"should be a list of verdicts: {', '.join(side_names(record))}, tie or null"
        raise RecordError(problem, field=config.human_votes, record=record)
    return record


def _human_votes(record: Record, config: AgreementConfig) -> Any:
    """People's verdicts on a pair: those in `human_votes`, else the label of the record."""
    if config.human_votes is None:
        return [record.get("winner", "chosen")]
    votes = lookup(record, config.human_votes)
    return [] if votes is None else votes


def metrics(
    records: Iterable[Record],
    config: AgreementConfig = AgreementConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Each model's accuracy and kappa and every two models' difference, of all pairs and by field.

    Pairs whose label names no side are left out of these and counted. Then each model's calibration
    on all pairs, and how far people agree among themselves.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs, margins = ScoredPairs(config.models), LabeledMargins(config.models)
    people = PeoplesVotes()
    fields = FieldCheck(
        "group_by", [name for name in config.group_by if name not in COMPUTED_FIELDS]
    )
    votes = FieldCheck("human_votes", [config.human_votes] if config.human_votes else [])
    for record in records:
        fields.add(record)
        votes.add(record)
        label = record.get("winner", "chosen")
        values = {field: _field_value(record, field) for field in config.group_by}
        people.add(record, _human_votes(record, config), values)
        if label is not None:
            margins.add(record, [*side_names(record), "tie"].index(label))
        if label in ("tie", None):
            reason = "label_is_a_tie" if label else "label_is_null"
            stats.count("left_out", reason, record=record)
            continue
        worst.add_scored_pair(record, label)
        pairs.add(record, side_names(record).index(label), values)
    fields.check()
    votes.check()
    for subset, mask in _subsets(pairs, config.group_by):
        all_outcomes = [pairs.outcomes(model, mask) for model in pairs.models]
        outcomes = [some for some in all_outcomes if len(some)]
        for some in outcomes:
            yield accuracy_record(NAME, subset, some, config.confidence)
        for some in outcomes:
            yield from _kappa_records(subset, some, config)
        yield from compare_models(NAME, pairs, subset, mask, config)
    if len(pairs):
        yield from margins.records(NAME, config)
        yield from people.records(NAME, config)


def _field_value(pair: Record, field: str) -> int | str:
    """The value of a field by which pairs are grouped."""
    sides = [pair[name] for name in side_names(pair)]
    if field == "turns":
        return max(count_turns(side) for side in sides)
    if field == "first_divergence":
        return first_divergence(*sides)
    value = lookup(pair, field)
    is_plain = isinstance(value, int | str) and not isinstance(value, bool)
    return value if is_plain else str(value).lower()


def _subsets(pairs: ScoredPairs, group_by: Sequence[str]) -> "Iterator[tuple[str, Array | None]]":
    """All pairs, then the pairs of each value of each field, with their masks."""
    yield "all", None
    for field in group_by:
        for value, mask in pairs.groups(field):
            yield f"{field}={value}", mask


def _kappa_records(
    subset: str, outcomes: ModelOutcomes, config: BenchConfig
) -> Iterator[MetricRecord]:
    """Cohen's kappa between picks and labels; equal scores are a category of their own.

    There is none where all labels are the same side, as in preferences: kappa is 0 there, whatever
    the model does. Nor is there any for baselines.
    """
    import numpy as np

    if len(np.unique(outcomes.labels)) < 2 or is_baseline(outcomes.model):
        return
    cells = [
        (outcomes.picks == pick) & (outcomes.labels == label)
        for pick in range(3)
        for label in range(3)
    ]
    rows = cluster_sums(cells, outcomes.prompts)
    value = float(cohen_kappa(rows.sum(0).reshape(3, 3)))
    interval = bootstrap_interval(rows, lambda sums: cohen_kappa(sums.reshape(-1, 3, 3)), config)
    yield metric_record(NAME, outcomes.model, subset, "kappa", value, interval, len(outcomes))


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """A line per subset."""
    subsets = distinct(row["subset"] for row in rows)
    lines = [(subset, subset) for subset in subsets]
    return [
        accuracy_table(TITLE, rows, lines, config.confidence),
        *_kappa_table(rows, config.confidence),
        _calibration_table(rows, config.confidence),
        _people_table(rows, config.confidence),
    ]


def _kappa_table(rows: Rows, confidence: float) -> list[Table]:
    """The kappas of all pairs, where there are too many for a note."""
    kappas = [row for row in overall(rows) if row["metric"] == "kappa"]
    if len(kappas) < MANY_MODELS:
        return []
    kappas.sort(key=lambda row: -row["value"])
    cells = [[row["model"], value_cell(row, 1, ".2f")] for row in kappas]
    title = f"Cohen's kappa with the labels [{100 * confidence:g}% interval]"
    return [Table(title, ["", "kappa"], cells)]


def _calibration_table(rows: Rows, confidence: float) -> Table:
    """A line per model: margins as probabilities, and ties where there are any.

    The intervals of the margins stand in the metric records; the table has no room for them.
    """
    columns = {
        "temperature": (1, ".3g"),
        "brier": (1, ".3f"),
        "ece": (1, ".3f"),
        "accuracy_with_ties": (100, ".1f"),
        "tie_margin": (1, ".3g"),
        "decided_margin": (1, ".3g"),
    }
    return _cells_table(
        f"Calibration of margins, and ties [{100 * confidence:g}% interval]",
        "brier",
        "model",
        columns,
        [
            row | {"low": None, "high": None} if row["metric"].endswith("_margin") else row
            for row in overall(rows)
            if not is_baseline(row["model"])
        ],
    )


def _people_table(rows: Rows, confidence: float) -> Table:
    """A line per subset: how far people agree, the most that agreement with them can mean."""
    columns = {
        "krippendorff_alpha": (1, ".3f"),
        "people_agree": (100, ".1f"),
        "people_agree_decided": (100, ".1f"),
    }
    return _cells_table(
        f"People among themselves, where several voted [{100 * confidence:g}% interval]",
        "people_agree",
        "subset",
        columns,
        [row for row in rows if row["model"] == PEOPLE],
    )


def _cells_table(
    title: str, counted: str, line: str, columns: Mapping[str, tuple[int, str]], rows: Rows
) -> Table:
    """A line per value of a field of the rows, and a column per metric that any row has."""
    cells = {(row[line], row["metric"]): row for row in rows}
    names = [name for name in columns if any(metric == name for _, metric in cells)]
    lines = [
        [
            value,
            f"{cells[value, counted]['count']:,}",
            *(value_cell(cells.get((value, name)), *columns[name]) for name in names),
        ]
        for value in distinct(value for value, metric in cells if metric == counted)
    ]
    heads = [COLUMN_NAMES.get(name, name.replace("_", " ")) for name in names]
    return Table(title, ["", "pairs", *heads], lines)


def notes(rows: Rows) -> list[str]:
    """The baselines, ties and kappas of all pairs."""
    kappas = [
        f"{row['model']} {value_cell(row, 1, '.2f')}"
        for row in overall(rows)
        if row["metric"] == "kappa"
    ]
    return [
        *baselines_note(rows),
        *ties_note(overall(rows)),
        *([f"Cohen's kappa: {', '.join(kappas)}"] if 0 < len(kappas) < MANY_MODELS else []),
    ]


def plot(axes: "Axes", rows: Rows) -> None:
    """Accuracy at each number of turns; of all pairs, where nothing is given by turns."""
    from musiccli.bench.report import plots

    rows = [row for row in rows if row["metric"] == "accuracy"]
    rows = [row for row in rows if row["subset"].startswith("turns=")] or overall(rows)
    subsets, models = distinct(row["subset"] for row in rows), plots.models_of(rows)
    for number, model in enumerate(models):
        shown = [row for row in rows if row["model"] == model]
        places = plots.x_places(shown, subsets, number, len(models), 0.14)
        color = plots.color_of(number)
        axes.plot(places, plots.values_of(shown), color=color, linewidth=1, alpha=0.5)
        plots.draw_points(axes, places, shown, number, model)
    plots.draw_best_baselines(axes, rows, subsets)
    plots.draw_half_line(axes, "chance")
    labels = [
        f"{subset.removeprefix('turns=')}\n{plots.largest_count(rows, subset):,} pairs"
        for subset in subsets
    ]
    axes.set_xticks(range(len(subsets)), labels)
    axes.set(xlim=plots.x_limits(subsets), ylim=(0, 1.02), title=TITLE, ylabel="accuracy")
    if subsets[0] != "all":
        axes.set_xlabel("assistant turns")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="How often scores agree with labels. Of two models in one file, which agrees more.",
    example="music score votes.jsonl --model rm | music score --model base | "
    "music bench agreement --by metadata.category",
    parse=check_labeled_pair,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    config=AgreementConfig,
    options=("models", "bootstrap", "seed"),
)
