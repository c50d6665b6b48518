"""Metric files of several runs and benchmarks, joined into one table.

It reads what the other benchmarks wrote, and computes nothing anew: models are rows, benchmarks are
columns. A star needs paired tests, so it stands only where models were measured in one run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import missing_note
from musiccli.bench.report.tables import (
    ACCURACY_METRICS,
    Table,
    accuracy_table,
    distinct,
    percent,
    value_cell,
)
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.comparisons import undistinguished
from musiccli.bench.stats.outcomes import MetricRecord, is_number
from musiccli.core.errors import RecordError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TITLE = "table", "Models and benchmarks"
SHOWN_FILES = 3  # in the name of a column


def check_metric(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a metric record, as every benchmark writes it."""
    for field in ("benchmark", "model", "subset", "metric"):
        if not isinstance(record.get(field), str):
            problem = "should be text, as music bench writes it"
            raise RecordError(problem, field=field, record=record)
    for field in ("value", "low", "high"):
        if record.get(field) is not None and not is_number(record[field]):
            raise RecordError("should be a number or null", field=field, record=record)
    if not isinstance(record.get("count"), int):
        raise RecordError("should be a whole number", field="count", record=record)
    for field in ("low", "high", "value"):
        record.setdefault(field, None)
    return record


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """The records of all files as they are, of the wanted models and the baselines.

    Where the files of a benchmark measured different records, or one model in several files,
    `benchmark` says which files each is from: "agreement (votes)".
    """
    kept = [
        record
        for record in records
        if not config.models or record["model"] in config.models or is_baseline(record["model"])
    ]
    by_benchmark = _grouped(kept, lambda record: record["benchmark"])
    labels = {id(record): label for group in by_benchmark for record, label in _labeled(group)}
    for record in kept:
        yield {**record, "benchmark": record["benchmark"] + labels[id(record)]}


def _labeled(records: Sequence[Record]) -> Iterator[tuple[Record, str]]:
    """The metric records of one benchmark, each with what tells its column from the others."""
    columns = _columns(records)
    origins = [_listed(distinct(map(_source, column))) for column in columns]
    for column, origin in zip(columns, origins, strict=True):
        if origins.count(origin) > 1:  # one file holds several runs
            origin += f", data {column[0]['data'][:6]}"
        label = f" ({origin})" if len(columns) > 1 else ""
        yield from ((record, label) for record in column)


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(files[:SHOWN_FILES]) + more


def _columns(records: Sequence[Record]) -> list[list[Record]]:
    """The metric records of one benchmark, divided into those that can be compared.

    They are of the same data, by `data` or else by the number of all pairs. Where a model then has
    figures from several files, each file stands for itself.
    """
    columns: list[list[Record]] = []
    for comparable in _grouped(records, _data_key(records)):
        files: dict[str, set[str]] = {}  # by model
        for record in comparable:
            if not is_baseline(record["model"]):
                files.setdefault(record["model"], set()).add(_source(record))
        is_repeated = any(len(names) > 1 for names in files.values())
        columns += _grouped(comparable, _source) if is_repeated else [comparable]
    return columns


def _data_key(records: Sequence[Record]) -> Callable[[Record], object]:
    """What is equal in records of the same data."""
    if all("data" in record for record in records):
        return lambda record: record["data"]
    counts = {
        _source(record): record["count"]
        for record in records
        if record["subset"] == "all" and record["metric"] in ACCURACY_METRICS
    }
    return lambda record: counts.get(_source(record))


def _grouped(records: Sequence[Record], key: Callable[[Record], object]) -> list[list[Record]]:
    """The records with an equal key together, in the order in which the keys come first."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _source(record: Record) -> str:
    """The name of the file that a record was read from, without folder and suffix."""
    path, _, _ = (record.where or "").rpartition(":")
    return Path(path).name.removesuffix(".gz").removesuffix(".zst").removesuffix(".jsonl")


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """The figures of all pairs of every benchmark, then each benchmark's subsets."""
    benchmarks = distinct(row["benchmark"] for row in rows)
    by_benchmark = {name: [row for row in rows if row["benchmark"] == name] for name in benchmarks}
    detailed = []
    for name, its_rows in by_benchmark.items():
        subsets = distinct(row["subset"] for row in its_rows if row["metric"] in ACCURACY_METRICS)
        if len(subsets) > 1:
            lines = [(subset, "Average" if subset == "all" else subset) for subset in subsets]
            detailed.append(accuracy_table(name, its_rows, lines, config.confidence))
    return [_summary(by_benchmark, config.confidence), *detailed]


def _summary(by_benchmark: Mapping[str, Rows], confidence: float) -> Table:
    """A row per model, the best mean first, and a column per benchmark.

    A mean over benchmarks is shown where a model has a figure of each.
    """
    columns: dict[str, dict[str, MetricRecord]] = {}
    starred: dict[str, set[str]] = {}
    for name, rows in by_benchmark.items():
        for column, by_model in _headlines(name, rows).items():
            columns[column] = by_model
            starred[column] = undistinguished(rows, confidence).get("all", set())
    models = distinct(model for by_model in columns.values() for model in by_model)
    models = [model for model in models if not is_baseline(model)]
    means = {model: _mean(model, columns) for model in models}
    models.sort(key=lambda model: (means[model] is None, -(means[model] or 0)))
    cells = []
    for model in models:
        cells.append([model])
        for name, by_model in columns.items():
            value, _, interval = value_cell(by_model.get(model)).partition(" ")
            cells[-1].append(f"{value}{'*' * (model in starred[name])} {interval}".strip())
        mean = means[model]
        cells[-1].append("" if mean is None else f"{100 * mean:.1f}")
    baselines = ["best blind guess"]
    for by_model in columns.values():
        guesses = [row for model, row in by_model.items() if is_baseline(model)]
        best = max(guesses, key=lambda row: row["value"], default=None)
        baselines.append(percent(best) if best else "")
    if any(baselines[1:]):
        cells.append([*baselines, ""])
    title = f"{TITLE}, % [{100 * confidence:g}% interval as each run wrote it]"
    if any(starred.values()):
        title += "; * the best of a run, and what Holm's test does not tell from it"
    return Table(title, ["", *columns, "mean"], cells)


def _headlines(benchmark: str, rows: Rows) -> dict[str, dict[str, MetricRecord]]:
    """The columns of a benchmark, each with a record per model: all pairs, or each pool size."""
    columns: dict[str, dict[str, MetricRecord]] = {}
    for row in rows:
        if row["value"] is None:
            continue
        if row["metric"] in ACCURACY_METRICS and row["subset"] == "all":
            columns.setdefault(benchmark, {})[row["model"]] = row
        elif row["metric"] == "win_rate":
            name = f"{benchmark} {row['subset']} against {row.get('against')}"
            columns.setdefault(name, {})[row["model"]] = row
    return columns


def _mean(model: str, columns: dict[str, dict[str, MetricRecord]]) -> float | None:
    """The plain mean over the columns; None where the model has no figure in one of them."""
    values: list[float] = [
        by_model[model]["value"] for by_model in columns.values() if model in by_model
    ]
    return sum(values) / len(values) if len(values) == len(columns) else None


def notes(rows: Rows) -> list[str]:
    """What is missing of the benchmarks, and which files measured different records."""
    return [*missing_note("a benchmark", rows), *_apart_notes(rows)]


def _apart_notes(rows: Rows) -> Iterator[str]:
    """Which columns of a benchmark are of different data, and how much each holds."""
    by_benchmark: dict[str, dict[str, tuple[str, int]]] = {}  # the data and its size, by column
    for row in rows:
        name, opening, origin = row["benchmark"].removesuffix(")").partition(" (")
        if opening:
            columns = by_benchmark.setdefault(name, {})
            _, count = columns.get(origin, ("", 0))
            columns[origin] = str(row.get("data")), max(count, row["count"])
    for name, columns in by_benchmark.items():
        if len(set(columns.values())) > 1:
            sizes = [f"{origin} ({count:,})" for origin, (_, count) in columns.items()]
            yield f"{name}: not the same records in {', '.join(sizes)}; a column for each"


def panels(rows: Rows) -> list[Rows]:
    """A panel for each column of the summary. `number` tells a model's place and color in all."""
    models = distinct(row["model"] for row in rows if not is_baseline(row["model"]))
    numbers = {model: number for number, model in enumerate(models)}
    columns: list[Rows] = []
    for name in distinct(row["benchmark"] for row in rows):
        its_rows = [row for row in rows if row["benchmark"] == name]
        for column, by_model in _headlines(name, its_rows).items():
            columns.append(
                [
                    row | {"column": column, "number": numbers[row["model"]]}
                    for row in by_model.values()
                    if row["model"] in numbers
                ]
            )
    return columns


def plot(axes: "Axes", rows: Rows) -> None:
    """One benchmark: a point with its interval per model."""
    from musiccli.bench.report import plots

    for row in sorted(rows, key=lambda row: row["number"]):
        plots.draw_points(axes, [row["number"]], [row], row["number"], row["model"])
    axes.set_xticks([])
    axes.set(ylim=(0, 1.02), title=rows[0]["column"])


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="Joins the metric files of several runs and benchmarks into one table and one page: "
    "models are rows, benchmarks are columns.",
    example="music bench agreement scored.jsonl | music bench table - rewardbench.jsonl",
    parse=check_metric,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    panels=panels,
    options=("models",),
    measured=None,
    unique_ids=False,
)
