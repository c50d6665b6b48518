"""Training curves: the logs of runs as one figure of loss, accuracy and margin over the steps."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from musiccli.core.figures import (
    COLORS,
    FAINT_COLOR,
    RC_PARAMS,
    TEXT_COLOR,
    figure_bytes,
    plot_label,
)
from musiccli.reward_model.eval_names import eval_prefix, evaluated_sets
from musiccli.train.log import LOG_FILE, read_log
from musiccli.train.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"loss": "loss", "accuracy": "accuracy", "margin": "margin (chosen - rejected)"}
MARKERS = ("o", "s", "^", "D", "v", "P")  # of the sets of held-out pairs
SMOOTHING = 20  # a running mean spans at most this fraction of the steps: 1 in 20


def read_logs(folders: Sequence[str]) -> dict[str, list[Metrics]]:
    """The logs of runs by the name of their folder, or by its path where two names are equal."""
    names = [Path(folder).resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else folder: read_log(Path(folder) / LOG_FILE)
        for name, folder in zip(names, folders, strict=True)
    }


def draw_curves(logs: Mapping[str, Sequence[Metrics]], file_format: str) -> bytes:
    """Draw logs, each in a color of its own, and return the figure's file.

    Steps are faint lines, their running mean a strong one, and held-out metrics points.

    Args:
        logs: the steps of each run by the run's name.
        file_format: "png", "svg" or "pdf".
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    with matplotlib.rc_context(RC_PARAMS), warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure = Figure(figsize=(7.2, 7.6), layout="constrained")
        panels = figure.subplots(len(PANELS), 1, sharex=True)
        for axes, metric in zip(panels, PANELS, strict=True):
            _draw_panel(axes, metric, logs)
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        _draw_legend(figure, panels[-1], _markers(logs))
        return figure_bytes(figure, file_format)


def _draw_panel(axes: "Axes", metric: str, logs: Mapping[str, Sequence[Metrics]]) -> None:
    """One metric of all runs."""
    markers = _markers(logs)
    for index, (run, steps) in enumerate(logs.items()):
        _draw_curve(axes, steps, metric, COLORS[index % len(COLORS)], plot_label(run), markers)
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_ylabel(PANELS[metric])
    if metric == "accuracy":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.axhline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)


def _draw_curve(
    axes: "Axes",
    steps: Sequence[Metrics],
    metric: str,
    color: str,
    label: str,
    markers: Mapping[str, str],
) -> None:
    """One metric of one run: every step, the running mean, and the held-out values."""
    numbers, values = [step["step"] for step in steps], [step[metric] for step in steps]
    axes.plot(numbers, values, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(numbers, running_mean(values), color=color, linewidth=1.8, label=label)
    for set_name, marker in markers.items():
        held_out_metric = eval_prefix(set_name) + metric
        held_out = [step for step in steps if held_out_metric in step]
        axes.plot(
            [step["step"] for step in held_out],
            [step[held_out_metric] for step in held_out],
            f"{marker}-",
            color=color,
            linewidth=1,
            markersize=5,
            markeredgecolor="white",
            zorder=4,
        )


def _markers(logs: Mapping[str, Sequence[Metrics]]) -> dict[str, str]:
    """The marker of each set of held-out pairs, by its name."""
    metrics = dict.fromkeys(name for steps in logs.values() for step in steps for name in step)
    sets = evaluated_sets(metrics) or [""]
    return {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(sets)}


def _draw_legend(figure: "Figure", axes: "Axes", markers: Mapping[str, str]) -> None:
    """The runs' names, and what a point means, below the panels."""
    for set_name, marker in markers.items():
        label = " ".join(filter(None, ("held out", plot_label(set_name))))
        axes.plot([], [], marker, color=TEXT_COLOR, markersize=5, label=label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, loc="outside lower center")


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbors, fewer of them at both ends."""
    reach = len(values) // SMOOTHING // 2
    means = []
    for index in range(len(values)):
        window = values[max(0, index - reach) : index + reach + 1]
        means.append(sum(window) / len(window))
    return means
