"""The logs of training runs as one picture: loss, accuracy and margin over the steps, with what was held out."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from musiccli.core.figures import (
    COLORS,
    FAINT_COLOR,
    RC_PARAMS,
    TEXT_COLOR,
    figure_bytes,
    plot_label,
)
from musiccli.train import log

PANELS = {"loss": "loss", "accuracy": "accuracy", "margin": "margin (chosen - rejected)"}
WINDOW = 20  # of all steps, how many a running mean spans at most: one in so many


def read(folders: Sequence[str]) -> dict[str, list[dict]]:
    """The logs in runs' folders by the folder's name, or by its path where two have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    return {
        name if names.count(name) == 1 else folder: log.read(Path(folder) / log.NAME)
        for name, folder in zip(names, folders, strict=True)
    }


def draw(logs: Mapping[str, Sequence[dict]], form: str) -> bytes:
    """Logs by name, a color each: every step faint, their running mean strong, held-out figures as points."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    with matplotlib.rc_context(RC_PARAMS), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph "
        )  # a script that the font lacks is drawn as boxes
        figure = Figure(figsize=(7.2, 7.6), layout="constrained")
        for axes, (name, label) in zip(
            figure.subplots(len(PANELS), 1, sharex=True), PANELS.items(), strict=True
        ):
            for number, (run, steps) in enumerate(logs.items()):
                _curve(axes, steps, name, COLORS[number % len(COLORS)], plot_label(run))
            axes.grid(axis="y", linewidth=0.8)
            axes.tick_params(length=0)
            axes.set_ylabel(label)
            if name == "accuracy":
                axes.set_ylim(-0.02, 1.02)
                axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
                axes.axhline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.plot([], [], "o", color=TEXT_COLOR, markersize=5, label="held out")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, ncols=4, loc="outside lower center")
        return figure_bytes(figure, form)


def _curve(axes, steps: Sequence[dict], name: str, color: str, label: str) -> None:
    places, values = [step["step"] for step in steps], [step[name] for step in steps]
    axes.plot(places, values, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(places, running_mean(values), color=color, linewidth=1.8, label=label)
    held_out = [(step["step"], step[f"eval_{name}"]) for step in steps if f"eval_{name}" in step]
    axes.plot(
        [place for place, _ in held_out],
        [value for _, value in held_out],
        "o-",
        color=color,
        linewidth=1,
        markersize=5,
        markeredgecolor="white",
        zorder=4,
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, as many on either side where there are."""
    reach = len(values) // WINDOW // 2
    around = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(near) / len(near) for near in around]
