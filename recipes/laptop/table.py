"""The table and the figure of recipes/laptop.sh: the accuracy of each arm, with intervals.

    python recipes/laptop/table.py FOLDER --arms a b c [--runs N] [--figure FILE.png]

The accuracy of an arm is the mean of its runs. Its interval counts the spread of the runs and that
of the conversations. Where there is one run, it is about that model alone. Markdown goes to
standard output.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import orjson

from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.intervals import proportion_interval, standard_error, wilson_interval
from musiccli.bench.stats.outcomes import ScoredPairs, prompt_cluster
from musiccli.bench.stats.quantiles import t_quantile
from musiccli.bench.stats.significance import detectable_difference
from musiccli.core.figures import COLORS, RC_PARAMS, figure_bytes
from musiccli.core.records import BASELINE_PREFIX

SUBSETS = ("before the last turn", "first turn", "between", "last turn")
NAMES = {"a": "a: D alone", "b": "b: D, last reply contrasted", "c": "c: D and MUSIC"}
FURTHEST = 3  # turns after the exchanged reply, from which on they count as one
MEANT = {"heldout": "held-out D", "solved": "MINT, solved over unsolved"}


def read(folder: Path, name: str) -> list[dict]:
    """The pairs of a set, with the scores of every run that has scored it."""
    pairs: dict[str, dict] = {}
    for path in sorted((folder / "scored").glob(f"{name}.*.jsonl")):
        for pair in map(orjson.loads, path.read_bytes().splitlines()):
            pairs.setdefault(pair["id"], pair)["scores"].update(pair["scores"])
    return [*pairs.values()]


def runs_of(pairs: list[dict], arm: str, runs: int) -> list[str]:
    """The names of an arm's runs that scored these pairs, of the first `runs` seeds."""
    names = [f"{arm}-{seed}" for seed in range(runs)]
    return [name for name in names if name in pairs[0]["scores"]]


def right(pairs: list[dict], names: list[str]) -> np.ndarray:
    """(runs, pairs): 1 where a run scores the chosen side strictly higher, else 0."""
    return np.asarray(
        [
            [pair["scores"][name]["chosen"] > pair["scores"][name]["rejected"] for pair in pairs]
            for name in names
        ],
        float,
    )


def clusters(pairs: list[dict]) -> np.ndarray:
    """(pairs,): equal where the prompt is, as in `music bench`."""
    return np.asarray([prompt_cluster(pair) for pair in pairs])


def parts(pair: dict) -> set[str]:
    """In which of SUBSETS a pair with one reply exchanged counts."""
    about = pair["corruption"]
    if about["distance"] == 0:
        return {"last turn"}
    return {"before the last turn", "first turn" if about["turn"] == 1 else "between"}


def error(values: np.ndarray, groups: np.ndarray) -> tuple[float, int]:
    """The standard error of the mean of (runs, pairs), and its degrees of freedom.

    Runs and conversations are both samples, so their variances add (Satterthwaite 1946, Biometrics
    2). In simulations of 3 to 8 runs that differ by 0 to 7 points, on 177 conversations of two
    pairs, 92 to 98% of the 95% intervals hold the truth. Intervals that take the runs as fixed do
    so in 61 to 97%.
    """
    within, freedom = standard_error(values.mean(axis=0), groups) ** 2, len(set(groups)) - 1
    if len(values) == 1 or freedom < 1:
        return math.sqrt(within), max(1, freedom)
    between = values.mean(axis=1).var(ddof=1) / len(values)
    parts = within**2 / freedom + between**2 / (len(values) - 1)
    return math.sqrt(within + between), max(
        1, int((within + between) ** 2 / parts)
    ) if parts else freedom


def share(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The mean of (runs, pairs) outcomes, and its interval."""
    mean, (spread, freedom) = values.mean(), error(values, groups)
    if len(values) == 1 or not 0 < mean < 1 or not spread > 0:
        return mean, *proportion_interval(values.mean(axis=0), groups)
    return mean, *wilson_interval(mean, mean * (1 - mean) / spread**2, degrees_of_freedom=freedom)


def difference(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> str:
    """How far two arms differ, in points, between runs of the same seed.

    Returns the mean, its interval, and the smallest difference that 80% power would have shown.
    """
    gaps = 100 * (first - second)
    spread, freedom = error(gaps, groups)
    half = t_quantile(0.95, freedom) * spread
    mean = gaps.mean()
    if not spread > 0:
        return f"{mean:+.1f}"
    interval = f"[{mean - half:+.1f}, {mean + half:+.1f}]"
    return f"{mean:+.1f} {interval}, {detectable_difference(spread):.1f}"


def blind(pairs: list[dict]) -> str:
    """What the best content-blind baseline gets right."""
    scored_pairs = ScoredPairs()
    for pair in pairs:
        scored_pairs.add(pair, 0, {})
    baselines = map(scored_pairs.outcomes, filter(is_baseline, scored_pairs.models))
    best = max(baselines, key=lambda outcomes: outcomes.accuracy)
    return f"{100 * best.accuracy:.1f} {best.model.removeprefix(BASELINE_PREFIX)}"


def row(
    label: str, pairs: list[dict], arms: dict[str, list[str]], against: list[tuple[str, str]]
) -> str:
    """A row of the table. Where fewer runs of an arm scored the pairs, its cell says how many."""
    groups = clusters(pairs)
    names = {
        arm: [name for name in runs if name in pairs[0]["scores"]] for arm, runs in arms.items()
    }
    found = {arm: right(pairs, own) for arm, own in names.items() if own}
    cells = [label, f"{len(pairs)} ({len(set(groups))})", blind(pairs)]
    for arm, runs in arms.items():
        mean, low, high = (
            (100 * number for number in share(found[arm], groups)) if arm in found else (0, 0, 0)
        )
        fewer = f" ({len(names[arm])} run{'s' * (len(names[arm]) > 1)})" * (
            len(names[arm]) < len(runs)
        )
        cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]{fewer}" if arm in found else "")
    for first, second in against:
        both = [
            (one, other)
            for one in names[first]
            for other in names[second]
            if one.rpartition("-")[2] == other.rpartition("-")[2]
        ]
        cells.append(
            difference(*(right(pairs, own) for own in zip(*both, strict=True)), groups)
            if both
            else ""
        )
    return f"| {' | '.join(cells)} |"


def table(folder: Path, names: list[str], others: list[str], runs: int) -> str:
    """`others` are the arms that each is compared with."""
    against = [
        (first, second)
        for first in names
        for second in others
        if second in names and first not in ("a", second)
    ]
    test = read(folder, "test")
    arms = {arm: runs_of(test, arm, runs) for arm in names}
    heads = [
        "% right [95% interval]",
        "pairs (conversations)",
        "best blind guess",
        *(f"{arm}, {len(own)} run{'s' * (len(own) != 1)}" for arm, own in arms.items()),
        *(f"{first} - {second} [95%], least to be shown" for first, second in against),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for subset in SUBSETS:
        if chosen := [pair for pair in test if subset in parts(pair)]:
            lines.append(row(f"one reply exchanged: {subset}", chosen, arms, against))
    lines += [
        row(label, pairs, arms, against)
        for name, label in MEANT.items()
        if (pairs := read(folder, name))
    ]
    if early := [pair for pair in test if SUBSETS[0] in parts(pair)]:
        each = {arm: right(early, own) for arm, own in arms.items() if own}
        said = (
            f"{arm} {', '.join(f'{100 * run.mean():.1f}' for run in values)}"
            for arm, values in each.items()
        )
        lines += ["", f"Each run by itself, {SUBSETS[0]}: {'; '.join(said)}."]
    return "\n".join(lines)


def figure(folder: Path, arms: list[str], runs: int, path: Path) -> None:
    """Draw accuracy by the turns that follow the exchanged reply: a line and a band an arm."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    by_distance, test = defaultdict(list), read(folder, "test")
    for pair in test:
        by_distance[min(pair["corruption"]["distance"], FURTHEST)].append(pair)
    with matplotlib.rc_context(RC_PARAMS):
        drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes, distances = drawn.subplots(), sorted(by_distance)
        for number, arm in enumerate(arm for arm in arms if runs_of(test, arm, runs)):
            found = [
                share(right(pairs, runs_of(pairs, arm, runs)), clusters(pairs))
                for pairs in map(by_distance.get, distances)
            ]
            means, lows, highs = (100 * np.array(column) for column in zip(*found, strict=True))
            axes.fill_between(
                distances,
                lows,
                highs,
                color=COLORS[number % len(COLORS)],
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(
                distances,
                means,
                "o-",
                color=COLORS[number % len(COLORS)],
                label=NAMES.get(arm, arm),
            )
        axes.axhline(50, color="#8a8a8a", linewidth=1)
        axes.set_xticks(
            distances, [str(one) if one < FURTHEST else f"{FURTHEST}+" for one in distances]
        )
        axes.set_xlabel("turns after the exchanged reply")
        axes.set_ylabel("% of intact conversations preferred")
        axes.grid(axis="y")
        axes.invert_xaxis()
        drawn.legend(title="trained on", loc="outside lower center", ncols=3, frameon=False)
        path.write_bytes(figure_bytes(drawn, path.suffix[1:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", default=["a", "b", "c"])
    parser.add_argument(
        "--against", nargs="*", default=["a", "b"], help="the arms that each is compared with"
    )
    parser.add_argument(
        "--runs", type=int, default=99, help="of each arm, those of the first N seeds"
    )
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    print(table(args.folder, args.arms, args.against, args.runs))
    if args.figure:
        figure(args.folder, args.arms, args.runs, args.figure)
