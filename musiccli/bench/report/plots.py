"""Metric records as a figure, and what the plots of several benchmarks have in common."""

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.report.tables import ACCURACY_METRICS, distinct
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.comparisons import MANY_MODELS
from musiccli.bench.stats.outcomes import MetricRecord
from musiccli.core.figures import (
    COLORS,
    FAINT_COLOR,
    RC_PARAMS,
    TEXT_COLOR,
    figure_bytes,
    plot_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_WIDTH, LINE_HEIGHT = 7.2, 0.18  # inches
LABEL_WIDTH = 40  # characters in a line of a model's name
LEGEND_CHARACTERS = 88  # that fit into a line of a legend
MARKERS = "os^Dv"
DASHES = (0, (3, 2))
BASELINE_LABEL = "best content-blind guess"
# The background of a number that is drawn over a line.
NUMBER_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def draw_figure(benchmark: Benchmark[Any], rows: Rows, file_format: str, **rc: object) -> bytes:
    """The file of a benchmark's figure.

    Args:
        benchmark: it divides the metric records among panels, and draws each.
        rows: its metric records, at least one.
        file_format: one of core.figures.FORMATS.
        rc: settings of matplotlib, beside those of core.figures.
    """
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(RC_PARAMS | rc), warnings.catch_warnings():
        # Scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph ")
        rows = [_with_plot_labels(row) for row in rows]
        models = _main_accuracies(rows)
        if len(models_of(models)) >= MANY_MODELS:
            figure = _models_figure(models, benchmark.title)
        else:
            figure = _panels_figure(benchmark, rows)
        return figure_bytes(figure, file_format)


def _panels_figure(benchmark: Benchmark[Any], rows: Rows) -> "Figure":
    """The benchmark's panels, two in a line, and the legend below them."""
    from matplotlib.figure import Figure

    panels = benchmark.panels(rows)
    columns, lines = min(2, len(panels)), (len(panels) + 1) // 2
    figure = Figure(figsize=(FIGURE_WIDTH, 1.4 + 2.8 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    for unused in grid[len(panels) :]:
        unused.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        axes.grid(axis="y", linewidth=0.8)
        axes.tick_params(length=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        benchmark.plot(axes, panel)
    _draw_legend(figure)
    return figure


def _with_plot_labels(row: MetricRecord) -> MetricRecord:
    labels = {
        name: plot_label(row[name], LABEL_WIDTH)
        for name in ("model", "against", "benchmark")
        if name in row
    }
    return row | labels | {"subset": plot_label(row["subset"])}


def _draw_legend(figure: "Figure") -> None:
    """Each label once, below the panels; the baseline comes last. The figure makes room for it."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        axes_handles, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, axes_handles, strict=True))
    labels = sorted(handles, key=lambda label: label == BASELINE_LABEL)
    if not labels:
        return
    longest = max(len(line) for label in labels for line in label.splitlines() or [""])
    columns = max(1, min(4, LEGEND_CHARACTERS // (longest + 6)))
    legend_lines = [label.count("\n") + 1 for label in labels]
    height = LINE_HEIGHT * (sum(legend_lines) / columns + max(legend_lines))
    figure.set_figheight(figure.get_figheight() + max(0, height - 2 * LINE_HEIGHT))
    figure.legend(
        [handles[label] for label in labels], labels, ncols=columns, loc="outside lower center"
    )


def _main_accuracies(rows: Rows) -> list[MetricRecord]:
    """The accuracies of all pairs; of the first subset, where there is none of all pairs.

    None where the records are of several benchmarks.
    """
    accuracies = [row for row in rows if row["metric"] in ACCURACY_METRICS]
    subsets = distinct(row["subset"] for row in accuracies)
    main = "all" if "all" in subsets else next(iter(subsets), None)
    if len(distinct(row["benchmark"] for row in accuracies)) > 1:
        return []
    return [row for row in accuracies if row["subset"] == main]


def _models_figure(rows: Rows, title: str) -> "Figure":
    """Many models, one below the other, the best first: their accuracies and intervals."""
    from matplotlib.figure import Figure

    shown = sorted(
        (row for row in rows if not is_baseline(row["model"])), key=lambda row: row["value"]
    )
    height = sum(0.16 + LINE_HEIGHT * len(row["model"].splitlines()) for row in shown)
    figure = Figure(figsize=(FIGURE_WIDTH, 1.6 + height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="x", linewidth=0.8)
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    places = range(len(shown))
    axes.errorbar(
        values_of(shown),
        places,
        xerr=error_bars(shown),
        fmt="o",
        color=color_of(0),
        elinewidth=1.6,
        capsize=3,
    )
    baselines = [row["value"] for row in rows if is_baseline(row["model"])]
    if baselines:
        axes.axvline(
            max(baselines), color=TEXT_COLOR, linewidth=1.3, linestyle=DASHES, label=BASELINE_LABEL
        )
    axes.axvline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)
    axes.set_yticks(places, [row["model"] for row in shown], fontsize=8)
    axes.set(ylim=(-0.6, len(shown) - 0.4), xlabel="accuracy", title=title)
    _draw_legend(figure)
    return figure


def draw_sections(axes: "Axes", rows: Rows, title: str) -> None:
    """A group of bars per subset, the average last, with each value above its bar."""
    subsets, models = distinct(row["subset"] for row in rows), models_of(rows)
    width = min(0.8 / max(1, len(models)), 0.38)
    for number, model in enumerate(models):
        shown = [row for row in rows if row["model"] == model]
        places, values = x_places(shown, subsets, number, len(models), width), values_of(shown)
        axes.bar(places, values, width * 0.92, label=model, color=color_of(number))
        axes.errorbar(
            places,
            values,
            error_bars(shown),
            fmt="none",
            ecolor=TEXT_COLOR,
            elinewidth=1,
            capsize=2,
        )
        for place, row in zip(places, shown, strict=True):
            axes.annotate(
                f"{100 * row['value']:.1f}",
                (place, row["high"]),
                xytext=(0, 3),
                ha="center",
                zorder=4,
                textcoords="offset points",
                fontsize=8 if len(models) < 3 else 6,
                bbox=NUMBER_BOX,
            )
    draw_best_baselines(axes, rows, subsets)
    partial = {row["subset"] for row in rows if row.get("partial")}
    few = len(subsets) < 7
    mark = "\n(partial)" if few else "\n(part)"
    labels = [
        ("Average" if subset == "all" else subset) + mark * (subset in partial)
        for subset in subsets
    ]
    axes.set_xticks(range(len(subsets)), labels, fontsize=10 if few else 8)
    title += " (partial)" if partial else ""
    axes.set(xlim=x_limits(subsets), ylim=(0, 1.05), ylabel="accuracy", title=title)


def draw_points(axes: "Axes", places: Sequence[float], rows: Rows, number: int, label: str) -> None:
    """The values as points with their intervals; `number` chooses the color."""
    axes.errorbar(
        places,
        values_of(rows),
        error_bars(rows),
        fmt=marker_of(number),
        label=label,
        markersize=6,
        color=color_of(number),
        elinewidth=1.6,
        capsize=3,
    )


def draw_best_baselines(axes: "Axes", rows: Rows, subsets: Sequence[str]) -> None:
    """A dashed line at each subset, at the value of the best content-blind baseline."""
    for place, subset in enumerate(subsets):
        axes.hlines(
            max(
                row["value"]
                for row in rows
                if row["subset"] == subset and is_baseline(row["model"])
            ),
            place - 0.42,
            place + 0.42,
            color=TEXT_COLOR,
            linewidth=1.3,
            linestyle=DASHES,
            label=BASELINE_LABEL if place == 0 else "",
        )


def draw_half_line(axes: "Axes", label: str) -> None:
    """A faint line at one half, with a label at its end."""
    axes.axhline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)
    axes.annotate(
        label,
        (1, 0.5),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=FAINT_COLOR,
    )


def models_of(rows: Iterable[MetricRecord]) -> list[str]:
    """The models of metric records, baselines left out."""
    return distinct(row["model"] for row in rows if not is_baseline(row["model"]))


def values_of(rows: Iterable[MetricRecord]) -> list[float]:
    """The value of each record."""
    return [row["value"] for row in rows]


def largest_count(rows: Iterable[MetricRecord], subset: str) -> int:
    """The largest count that a record of the subset has."""
    return max(int(row["count"]) for row in rows if row["subset"] == subset)


def color_of(number: int) -> str:
    """The color of the model with this number."""
    return COLORS[number % len(COLORS)]


def marker_of(number: int) -> str:
    """The marker of the model with this number. It changes where the colors start again."""
    return MARKERS[number // len(COLORS) % len(MARKERS)]


def x_limits(subsets: Sequence[str]) -> tuple[float, float]:
    """The limits of an x axis with one place per subset."""
    return -0.6, len(subsets) - 0.4


def x_places(
    rows: Rows, subsets: Sequence[str], number: int = 0, models: int = 1, width: float = 0.0
) -> list[float]:
    """The place of each record on the x axis: that of its subset, beside the other models'.

    Args:
        rows: the records of one model.
        subsets: the subsets in the order of the axis.
        number: the number of the model.
        models: how many models there are.
        width: the distance between two models.
    """
    shift = (number - (models - 1) / 2) * width
    places = {subset: place for place, subset in enumerate(subsets)}
    return [places[row["subset"]] + shift for row in rows]


def error_bars(rows: Rows) -> list[list[float]]:
    """How far each interval reaches below and above its value, (2, rows), for matplotlib."""
    bounds = [
        (0, 0, 0) if row["low"] is None else (row["value"], row["low"], row["high"]) for row in rows
    ]
    return [
        [max(0, value - low) for value, low, _ in bounds],
        [max(0, high - value) for value, _, high in bounds],
    ]
