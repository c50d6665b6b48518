"""Metric records as tables for people. Accuracies are in percent."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.outcomes import MetricRecord
from musiccli.core.records import BASELINE_PREFIX

ACCURACY_METRICS = ("accuracy", "section", "ties_score", "average")


class Table(NamedTuple):
    """A title, the names of the columns, and rows of cells. An indented first cell is a part."""

    title: str
    columns: list[str]
    cells: list[list[str]]


def accuracy_table(
    title: str,
    rows: Sequence[MetricRecord],
    lines: Iterable[tuple[str, str]],
    confidence: float,
    counted: str = "pairs",
) -> Table:
    """Subsets down, models across, and in the last column the best content-blind baseline.

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
    baselines = [row for model, row in by_model.items() if is_baseline(model)]
    best = max(baselines, key=lambda row: row["value"])
    count = max(row["count"] for row in by_model.values())
    if any(row.get("partial") for row in by_model.values()):
        label += " (partial)"
    cells = []
    for row in map(by_model.get, models):
        fewer = f" of {row['count']:,}" if row and row["count"] < count else ""
        cells.append(value_cell(row) + fewer)
    return [label, f"{count:,}", *cells, f"{baseline_label(best['model'])} {percent(best)}"]


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
