"""Metric records as tables for people. Accuracies are in percent."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.comparisons import MANY_MODELS, undistinguished
from musiccli.bench.stats.outcomes import MetricRecord
from musiccli.core.records import BASELINE_PREFIX

ACCURACY_METRICS = ("accuracy", "section", "ties_score", "average")


class Table(NamedTuple):
    """A title, the names of the columns, and rows of cells. An indented first cell is a part.

    A table that is `page_only` is too large for a terminal or a paper.
    """

    title: str
    columns: list[str]
    cells: list[list[str]]
    page_only: bool = False


def accuracy_table(
    title: str,
    rows: Sequence[MetricRecord],
    lines: Iterable[tuple[str, str]],
    confidence: float,
    counted: str = "pairs",
) -> Table:
    """Subsets down, models across, and in the last column the best content-blind baseline.

    From MANY_MODELS models on, models stand down and subsets across (`_models_table`).

    Where a model scored only some of what is counted, its cell has its own count:
    "100.0 [51.0, 100.0] of 4".

    Args:
        title: the benchmark's.
        rows: metric records.
        lines: (subset, label) of each line; a line without records is left out.
        confidence: of the intervals.
        counted: what a line counts.
    """
    accuracies = [row for row in rows if row["metric"] in ACCURACY_METRICS]
    models = distinct(row["model"] for row in accuracies if not is_baseline(row["model"]))
    if len(models) >= MANY_MODELS:
        return _models_table(title, rows, accuracies, lines, confidence, counted)
    by_subset: dict[str, dict[str, MetricRecord]] = {}
    for row in accuracies:
        by_subset.setdefault(row["subset"], {})[row["model"]] = row
    cells = [
        _accuracy_line(label, by_subset[subset], models)
        for subset, label in lines
        if subset in by_subset
    ]
    title = f"{title}, % right [{100 * confidence:g}% interval]"
    return Table(title, ["", counted, *models, "best blind guess"], cells)


def _accuracy_line(
    label: str, by_model: dict[str, MetricRecord], models: Iterable[str]
) -> list[str]:
    count = max(row["count"] for row in by_model.values())
    if any(row.get("partial") for row in by_model.values()):
        label += " (partial)"
    cells = []
    for row in map(by_model.get, models):
        fewer = f" of {row['count']:,}" if row and row["count"] < count else ""
        cells.append(value_cell(row) + fewer)
    return [label, f"{count:,}", *cells, _best_baseline(by_model.values(), with_name=True)]


def _models_table(
    title: str,
    rows: Sequence[MetricRecord],
    accuracies: Sequence[MetricRecord],
    lines: Iterable[tuple[str, str]],
    confidence: float,
    counted: str,
) -> Table:
    """Models down, the best first, subsets across, and in the last rows baselines and counts.

    The first column is that of all pairs, where there is one, and has intervals. A star marks the
    best model of a column, and those that the paired tests do not tell from it.
    """
    by_subset: dict[str, dict[str, MetricRecord]] = {}
    for row in accuracies:
        by_subset.setdefault(row["subset"], {})[row["model"]] = row
    shown = [(subset, label) for subset, label in lines if subset in by_subset]
    shown.sort(key=lambda line: line[0] != "all")
    starred = undistinguished(rows, confidence)
    main = by_subset[shown[0][0]]
    models = distinct(row["model"] for row in accuracies if not is_baseline(row["model"]))
    models.sort(key=lambda model: -main[model]["value"] if model in main else 1)
    cells = []
    for model in models:
        cells.append([model])
        for index, (subset, _) in enumerate(shown):
            star = "*" if model in starred.get(subset, ()) else ""
            cells[-1].append(_model_cell(model, by_subset[subset], star, with_interval=index == 0))
    baselines, counts = ["best blind guess"], [counted]
    for index, (subset, _) in enumerate(shown):
        baselines.append(_best_baseline(by_subset[subset].values(), with_name=index == 0))
        counts.append(f"{max(row['count'] for row in by_subset[subset].values()):,}")
    labels = [
        label.strip() + " (partial)" * any(row.get("partial") for row in by_subset[subset].values())
        for subset, label in shown
    ]
    title = f"{title}, % right [{100 * confidence:g}% interval]"
    if starred:
        title += "; * the best, and what a paired test with Holm's correction does not tell from it"
    return Table(title, ["", *labels], [*cells, baselines, counts])


def _model_cell(
    model: str, by_model: dict[str, MetricRecord], star: str, with_interval: bool
) -> str:
    """A model's accuracy, the star, and the interval; its count where that is not everybody's."""
    row = by_model.get(model)
    if row is None:
        return ""
    value, _, interval = value_cell(row).partition(" ")
    fewer = row["count"] < max(row["count"] for row in by_model.values())
    parts = [value + star, interval if with_interval else ""]
    parts.append(f"of {row['count']:,}" if fewer else "")
    return " ".join(filter(None, parts))


def _best_baseline(rows: Iterable[MetricRecord], with_name: bool) -> str:
    """The accuracy of the best content-blind baseline; "" where there is none."""
    baselines = [row for row in rows if is_baseline(row["model"])]
    best = max(baselines, key=lambda row: row["value"], default=None)
    if best is None:
        return ""
    return f"{baseline_label(best['model'])} {percent(best)}" if with_name else percent(best)


def comparison_tables(rows: Sequence[MetricRecord], confidence: float) -> list[Table]:
    """Of many models: each against the best, and every two of them; of fewer models nothing.

    They are about all pairs, and there are none where the records are of several benchmarks.
    `notes.comparison_notes` has the comparisons of fewer models.
    """
    if len({row["benchmark"] for row in rows}) > 1:
        return []
    rows = [row for row in rows if row["subset"] == "all" and "against" in row]
    best = next((row["against"] for row in rows if row["metric"] == "holm_p"), None)
    if best is None:
        return []
    differences = signed_differences(rows)
    models = distinct(model for model, _ in differences)
    against = {model: differences[model, best] for model in models if (model, best) in differences}
    ranked = [best, *sorted(against, key=lambda model: -against[model]["value"])]
    ranked += [model for model in models if model not in ranked]
    p_values = {row["model"]: row["value"] for row in rows if row["metric"] == "holm_p"}
    interval = f"[{100 * confidence:g}% interval]"
    cells = [
        [
            model,
            value_cell(against[model], number_format="+.1f"),
            f"{against[model]['count']:,}",
            f"{p_values[model]:.2g}",
        ]
        for model in ranked
        if model in against
    ]
    numbers = {model: str(number) for number, model in enumerate(ranked, 1)}
    matrix = [
        [
            f"{numbers[model]} {model}",
            *(_difference_cell(differences.get((model, column))) for column in ranked),
        ]
        for model in ranked
    ]
    return [
        Table(
            f"Against {best}, in points {interval}",
            ["", "difference", "pairs", "Holm's p"],
            cells,
        ),
        Table(
            "Every two models: the row's % right minus the column's, in points",
            ["", *numbers.values()],
            matrix,
            page_only=True,
        ),
    ]


def signed_differences(rows: Iterable[MetricRecord]) -> dict[tuple[str, str], MetricRecord]:
    """The records of `accuracy_difference` by their two models, in both orders."""
    differences = {}
    for row in rows:
        if row["metric"] == "accuracy_difference":
            low, high = row["low"], row["high"]
            turned = row | {
                "value": -row["value"],
                "low": None if high is None else -high,
                "high": None if low is None else -low,
            }
            differences[row["model"], row["against"]] = row
            differences[row["against"], row["model"]] = turned
    return differences


def _difference_cell(row: MetricRecord | None) -> str:
    return "" if row is None else f"{100 * row['value'] + 0.0:+.1f}"


def narrow_tables(table: Table, width: int = 116) -> list[Table]:
    """The table in parts that a terminal or a paper has room for, each with the first column.

    Args:
        table: it stays whole where it fits.
        width: characters in a line, with two between columns.
    """
    columns = list(zip(table.columns, *table.cells, strict=True))
    widths = [2 + max(map(len, column)) for column in columns]
    parts: list[list[int]] = [[]]
    room = width - widths[0]
    for index in range(1, len(columns)):
        if parts[-1] and sum(widths[part] for part in parts[-1]) + widths[index] > room:
            parts.append([])
        parts[-1].append(index)
    return [
        Table(
            table.title,
            [table.columns[0], *(table.columns[index] for index in part)],
            [[row[0], *(row[index] for index in part)] for row in table.cells],
        )
        for part in parts
    ]


def subset_lines(
    rows: Sequence[MetricRecord], first: Iterable[str] = (), overall: str = "Average"
) -> list[tuple[str, str]]:
    """The lines of an accuracy table: `first`, the other subsets of the rows, and all together."""
    subsets = distinct([*first, *(row["subset"] for row in rows if row["subset"] != "all")])
    return [*((subset, subset) for subset in subsets), ("all", overall)]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they were met."""
    return list(dict.fromkeys(values))


def baseline_label(model: str) -> str:
    """The name of a baseline as people read it: "longest last reply"."""
    return model.removeprefix(BASELINE_PREFIX).replace("-", " ")


def percent(row: MetricRecord) -> str:
    """The value in percent: "61.5"."""
    return f"{100 * row['value']:.1f}"


def value_cell(row: MetricRecord | None, scale: int = 100, number_format: str = ".1f") -> str:
    """The value and its interval: "61.5 [52.0, 70.2]", or "61.5" where there is no interval.

    It is empty where there is no record or no value.
    """
    if row is None or row["value"] is None:
        return ""
    value, low, high = (
        "" if row[name] is None else format(scale * row[name], number_format)
        for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]" if low else value
