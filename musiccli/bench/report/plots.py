"""Metric records as one picture: bars by section, accuracy by turns or distance, or win rate over N, with intervals."""

import warnings
from typing import TYPE_CHECKING

from musiccli.bench import rewardbench2
from musiccli.bench.report.tables import TITLES, plainly
from musiccli.bench.stats.baselines import PREFIX
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

GUESS = "best content-blind guess"
FEWEST = 10  # pairs that a point of a line stands for
BEHIND = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 0.6,
}  # a number, where a line runs through it


def draw(rows: list[dict], form: str, **style: object) -> bytes:
    """The picture of one benchmark's metric records, in one of FORMATS; `style` stands over matplotlib's settings."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    names = ("model", "subset", "against")
    rows = [row | {name: plot_label(row[name]) for name in names if name in row} for row in rows]
    with matplotlib.rc_context(RC_PARAMS | style), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph "
        )  # a script that the font lacks is drawn as boxes
        panels = kinds(rows) if rows[0]["benchmark"] == "sensitivity" else [""]
        across, down = min(2, len(panels)), (len(panels) + 1) // 2
        figure = Figure(figsize=(7.2, 1.4 + 2.8 * down), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False).flat
        for spare in grid[len(panels) :]:
            spare.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            axes.grid(axis="y", linewidth=0.8)
            axes.tick_params(length=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
            fill = {
                "agreement": turns,
                "winrate": rates,
                "sensitivity": distances,
                "judges": leanings,
                "audit": contrasts,
            }
            fill.get(rows[0]["benchmark"], sections)(
                axes, [row for row in rows if not panel or row["subset"].startswith(f"{panel},")]
            )
        legend(figure)
        return figure_bytes(figure, form)


def legend(figure: "Figure") -> None:
    """Each name once, under the picture, where it covers nothing; the guess comes last."""
    named = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    labels = sorted(named, key=lambda label: label == GUESS)
    figure.legend([named[label] for label in labels], labels, ncols=4, loc="outside lower center")


def sections(axes: "Axes", rows: list[dict]) -> None:
    """A group of bars a section and one for the average, their values above them."""
    title = TITLES[rows[0]["benchmark"]]
    own = rewardbench2.SUBSETS if rows[0]["benchmark"] == rewardbench2.NAME else ()
    rows = [row for row in rows if row["metric"] in ("section", "average") or row["subset"] in own]
    names, models = unique(rows, "subset"), own_models(rows)
    width = min(0.8 / max(1, len(models)), 0.38)
    for number, model in enumerate(models):
        here = [row for row in rows if row["model"] == model]
        places = spread(here, names, number, models, width)
        values = [row["value"] for row in here]
        axes.bar(places, values, width * 0.92, label=model, color=COLORS[number % len(COLORS)])
        axes.errorbar(
            places, values, reach(here), fmt="none", ecolor=TEXT_COLOR, elinewidth=1, capsize=2
        )
        for place, row in zip(places, here, strict=True):
            axes.annotate(
                f"{100 * row['value']:.1f}",
                (place, row["high"]),
                xytext=(0, 3),
                ha="center",
                zorder=4,
                textcoords="offset points",
                fontsize=8 if len(models) < 3 else 6,
                bbox=BEHIND,
            )
    best_guesses(axes, rows, names)
    partial = {row["subset"] for row in rows if row.get("partial")}
    lines = "\n(partial)" if len(names) < 7 else "\n(part)"
    axes.set_xticks(
        range(len(names)),
        [("Average" if name == "all" else name) + lines * (name in partial) for name in names],
        fontsize=10 if len(names) < 7 else 8,
    )
    axes.set(
        xlim=(-0.6, len(names) - 0.4),
        ylim=(0, 1.05),
        ylabel="accuracy",
        title=title + " (partial)" * bool(partial),
    )


def kinds(rows: list[dict]) -> list[str]:
    """The kinds of corruption, a panel each."""
    return [
        subset
        for subset in unique(rows, "subset")
        if subset.startswith("kind=") and "," not in subset
    ]


def distances(axes: "Axes", rows: list[dict]) -> None:
    """Accuracy over the distance of one kind of corruption from the end, a line with its band a model.

    Distances of fewer than FEWEST pairs are left to the table.
    """
    kind = plainly(rows[0]["subset"].partition(",")[0])
    rows = [
        row | {"subset": row["subset"].partition("distance=")[2]}
        for row in rows
        if row["metric"] == "accuracy"
    ]
    names = [name for name in unique(rows, "subset") if most(rows, name) >= FEWEST] or unique(
        rows, "subset"
    )
    rows = [row for row in rows if row["subset"] in names]
    for number, model in enumerate(own_models(rows)):
        here = [row for row in rows if row["model"] == model]
        places, color = spread(here, names), COLORS[number % len(COLORS)]
        axes.plot(
            places,
            [row["value"] for row in here],
            marker="o",
            markersize=4,
            color=color,
            label=model,
        )
        axes.fill_between(
            places,
            [row["low"] for row in here],
            [row["high"] for row in here],
            color=color,
            alpha=0.18,
            linewidth=0,
        )
    best_guesses(axes, rows, names)
    axes.axhline(0.5, color=FAINT_COLOR, linewidth=1, zorder=1)
    axes.set_xticks(
        range(len(names)), [f"{name}\n{most(rows, name):,}" for name in names], fontsize=8
    )
    axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.02), title=kind)
    axes.set_xlabel("turns from the end, pairs", fontsize=8)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("intact scores higher")


def turns(axes: "Axes", rows: list[dict]) -> None:
    """Accuracy at each number of turns, the models beside each other; all pairs at once where nothing is by turns."""
    rows = [row for row in rows if row["metric"] == "accuracy"]
    by_turns = [row for row in rows if row["subset"].startswith("turns=")]
    rows = by_turns or [row for row in rows if row["subset"] == "all"]
    names, models = unique(rows, "subset"), own_models(rows)
    for number, model in enumerate(models):
        here = [row for row in rows if row["model"] == model]
        places, color = spread(here, names, number, models, 0.14), COLORS[number % len(COLORS)]
        axes.plot(places, [row["value"] for row in here], color=color, linewidth=1, alpha=0.5)
        axes.errorbar(
            places,
            [row["value"] for row in here],
            reach(here),
            fmt="o",
            label=model,
            markersize=6,
            color=color,
            elinewidth=1.6,
            capsize=3,
        )
    best_guesses(axes, rows, names)
    even(axes, "chance")
    axes.set_xticks(
        range(len(names)),
        [f"{name.removeprefix('turns=')}\n{most(rows, name):,} pairs" for name in names],
    )
    axes.set(
        xlim=(-0.6, len(names) - 0.4),
        ylim=(0, 1.02),
        title=TITLES["agreement"],
        ylabel="accuracy",
        xlabel="assistant turns" if names[0] != "all" else None,
    )


def rates(axes: "Axes", rows: list[dict]) -> None:
    """The win rate over N, with a band, between what chance and what the judge would make of both picks."""
    rows = [
        row | {"contest": f"{row['model']} against {row['against']}"}
        for row in rows
        if row["metric"] == "win_rate" and row["value"] is not None
    ]
    names = sorted(unique(rows, "subset"), key=pool)
    for number, contest in enumerate(unique(rows, "contest")):
        here = [row for row in rows if row["contest"] == contest]
        places, color = spread(here, names), COLORS[number % len(COLORS)]
        axes.plot(
            places,
            [row["value"] for row in here],
            marker="o",
            color=color,
            linewidth=2,
            label=contest,
        )
        below, above = reach(here)
        if len(here) > 1:
            values = [row["value"] for row in here]
            axes.fill_between(
                places,
                [value - less for value, less in zip(values, below, strict=True)],
                [value + more for value, more in zip(values, above, strict=True)],
                color=color,
                alpha=0.18,
                linewidth=0,
            )
        else:
            axes.errorbar(
                places,
                [row["value"] for row in here],
                [below, above],
                fmt="none",
                ecolor=color,
                elinewidth=1.6,
                capsize=4,
            )
        for pick, line in (("oracle", "--"), ("random", ":")):
            axes.plot(
                places,
                [row[pick] for row in here],
                line,
                marker="_",
                color=color,
                linewidth=1,
                label=f"{pick} of the two picks" if number == 0 else None,
            )
    even(axes, "even")
    axes.set_xticks(
        range(len(names)),
        [f"{name.removeprefix('best_of=')}\n{most(rows, name):,} contests" for name in names],
    )
    ends = [
        row[end]
        for row in rows
        for end in ("value", "low", "high", "oracle")
        if row[end] is not None
    ]
    far = max([0.15, *(abs(end - 0.5) for end in ends)]) + 0.02
    axes.set(
        xlim=(-0.4, len(names) - 0.6),
        ylim=(max(0, 0.5 - far), min(1.02, 0.5 + far)),
        title=TITLES["winrate"],
        ylabel="win rate, a tie is half",
        xlabel="N, candidates to pick from" if names != ["all"] else None,
    )


LEANINGS = {
    "first_shown_wins": "first shown\nwins",
    "longer_wins": "longer side\nwins",
    "flip_rate": "order\nflips",
    "ties": "ties",
    "unreadable": "unreadable",
    "agreement_decided": "agrees with\nlabels",
}


def leanings(axes: "Axes", rows: list[dict]) -> None:
    """What sways each judge, and how often it is right, with intervals; judges beside each other."""
    rows = [
        row | {"subset": row["metric"]}
        for row in rows
        if row["metric"] in LEANINGS
        and row["value"] is not None
        and row.get("against", "labels") == "labels"
    ]
    names, judges = (
        [name for name in LEANINGS if name in unique(rows, "subset")],
        unique(rows, "model"),
    )
    for number, judge in enumerate(judges):
        here = [row for row in rows if row["model"] == judge]
        places = spread(here, names, number, judges, min(0.14, 0.7 / len(judges)))
        axes.errorbar(
            places,
            [row["value"] for row in here],
            reach(here),
            fmt="o",
            label=judge,
            markersize=6,
            color=COLORS[number % len(COLORS)],
            elinewidth=1.6,
            capsize=3,
        )
    even(axes, "even")
    axes.set_xticks(range(len(names)), [LEANINGS[name] for name in names], fontsize=9)
    axes.set(
        xlim=(-0.6, len(names) - 0.4), ylim=(-0.02, 1.02), title=TITLES["judges"], ylabel="share"
    )


def contrasts(axes: "Axes", rows: list[dict]) -> None:
    """What contrasted replies give away, and what judges make of them, over the turns from the fork."""
    wanted = {
        "leak": "leak",
        "same": "as the chosen",
        "rejected_shorter": "rejected shorter",
        "label_noise": "label noise by ",
    }
    rows = [
        row | {"line": wanted[row["metric"]] + row["model"] * (row["metric"] == "label_noise")}
        for row in rows
        if row["metric"] in wanted and row["subset"].startswith("turn=")
    ]
    names = unique(rows, "subset")
    for number, line in enumerate(lines := unique(rows, "line")):
        here = [row for row in rows if row["line"] == line]
        places, color = spread(here, names, number, lines, 0.08), COLORS[number % len(COLORS)]
        axes.plot(places, [row["value"] for row in here], color=color, linewidth=1, alpha=0.5)
        axes.errorbar(
            places,
            [row["value"] for row in here],
            reach(here),
            fmt="o",
            label=line,
            markersize=5,
            color=color,
            elinewidth=1.4,
            capsize=3,
        )
    even(axes, "even")
    axes.set_xticks(
        range(len(names)), [f"{name.removeprefix('turn=')}\n{most(rows, name):,}" for name in names]
    )
    axes.set(
        xlim=(-0.6, len(names) - 0.4),
        ylim=(-0.02, 1.02),
        title=TITLES["audit"],
        ylabel="share of the turns",
        xlabel="turn from the fork, contrasted replies",
    )


def unique(rows: list[dict], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def own_models(rows: list[dict]) -> list[str]:
    return [model for model in unique(rows, "model") if not model.startswith(PREFIX)]


def most(rows: list[dict], subset: str) -> int:
    return max(row["count"] for row in rows if row["subset"] == subset)


def spread(
    rows: list[dict],
    names: list[str],
    number: int = 0,
    models: list[str] = ("",),
    width: float = 0.0,
) -> list[float]:
    """Where on the x axis each row stands: its subset's place, moved aside to make room for the other models."""
    return [names.index(row["subset"]) + (number - (len(models) - 1) / 2) * width for row in rows]


def reach(rows: list[dict]) -> list[list[float]]:
    """How far each interval reaches below and above its value, as matplotlib's error bars want it: (2, rows)."""
    known = [
        (row["value"], row["low"], row["high"]) if row["low"] is not None else (0, 0, 0)
        for row in rows
    ]
    return [
        [max(0, value - low) for value, low, _ in known],
        [max(0, high - value) for value, _, high in known],
    ]


def pool(subset: str) -> int:
    return int(subset.removeprefix("best_of=")) if subset.startswith("best_of=") else 0


def best_guesses(axes: "Axes", rows: list[dict], names: list[str]) -> None:
    """A dashed line at each subset where the best content-blind guess stands."""
    guesses = [row for row in rows if row["model"].startswith(PREFIX)]
    for place, name in enumerate(names):
        best = max(row["value"] for row in guesses if row["subset"] == name)
        axes.hlines(
            best,
            place - 0.42,
            place + 0.42,
            color=TEXT_COLOR,
            linewidth=1.3,
            linestyle=(0, (3, 2)),
            label=GUESS if place == 0 else None,
        )


def even(axes: "Axes", label: str) -> None:
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
