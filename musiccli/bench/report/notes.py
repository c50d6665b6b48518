"""Sentences about metric records for which their tables have no room."""

from collections.abc import Iterable, Sequence

from musiccli.bench.report.tables import (
    ACCURACY_METRICS,
    baseline_label,
    distinct,
    percent,
    value_cell,
)
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.outcomes import SHOWN, MetricRecord

TIES_ARE_WRONG = "tied scores, counted as wrong"


def overall(rows: Iterable[MetricRecord]) -> list[MetricRecord]:
    """The metric records of all pairs."""
    return [row for row in rows if row["subset"] == "all"]


def missing_note(title: str, rows: Sequence[MetricRecord]) -> list[str]:
    """That figures are computed without some records of the benchmark, and which."""
    missing = distinct(name for row in rows for name in row.get("missing", ()))
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    names = ", ".join(missing[:3])
    return [f"partial: not {title}'s figures; other rows than its own in {names}{more}"]


def baselines_note(rows: Sequence[MetricRecord]) -> list[str]:
    """What each content-blind baseline gets right of all pairs."""
    values = [
        f"{baseline_label(row['model'])} {percent(row)}"
        for row in overall(rows)
        if is_baseline(row["model"]) and row["metric"] in ACCURACY_METRICS
    ]
    return [f"content-blind guesses overall: {', '.join(values)}"] if values else []


def ties_note(rows: Iterable[MetricRecord], text: str = TIES_ARE_WRONG) -> list[str]:
    """How many ties each model has, added up over records of subsets that do not overlap."""
    ties: dict[str, int] = {}
    for row in rows:
        if row["metric"] == "accuracy" and not is_baseline(row["model"]):
            ties[row["model"]] = ties.get(row["model"], 0) + row["ties"]
    counts = [f"{model} {count:,}" for model, count in ties.items() if count]
    more = f" and {len(counts) - SHOWN} more models" if len(counts) > SHOWN else ""
    return [f"{text}: {', '.join(counts[:SHOWN])}{more}"] if counts else []


def comparison_notes(rows: Sequence[MetricRecord], subset: str = "all") -> list[str]:
    """For every two models: how far apart they are on a subset, and what could have been shown.

    Of many models nothing: `tables.comparison_tables` has their comparisons. Nothing either where
    the records are of several benchmarks.
    """
    if len({row["benchmark"] for row in rows}) > 1:
        return []
    comparisons: dict[tuple[str, str], dict[str, MetricRecord]] = {}
    for row in rows:
        if row["subset"] != subset:
            continue
        if row["metric"] == "holm_p":
            return []
        if "against" in row:
            comparisons.setdefault((row["model"], row["against"]), {})[row["metric"]] = row
    return [
        _comparison_note(*models, metrics)
        for models, metrics in comparisons.items()
        if "accuracy_difference" in metrics
    ]


def _comparison_note(first: str, second: str, metrics: dict[str, MetricRecord]) -> str:
    difference = metrics["accuracy_difference"]
    is_repeated = difference["prompts"] < difference["count"]
    of_prompts = f" of {difference['prompts']:,} prompts" if is_repeated else ""
    note = (
        f"{first} - {second}: {value_cell(difference, number_format='+.1f')} points on "
        f"{difference['count']:,} pairs{of_prompts}"
    )
    if test := metrics.get("difference_p"):
        if "only_first" in test:
            note += f"; right alone {test['only_first']:,} : {test['only_second']:,}"
        note += f"; {test['test']} p = {test['value']:.2g}"
    if "detectable_difference" in metrics:
        note += f"; 80% power to show {percent(metrics['detectable_difference'])} points"
    return note
