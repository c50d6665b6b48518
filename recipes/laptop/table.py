"""The table and the figure of recipes/laptop.sh: each arm's accuracy, the mean of its runs, with intervals.

    python recipes/laptop/table.py FOLDER --arms a b c [--figure FILE.png]

Runs of one arm are judged on the same conversations, so their mean is taken for each pair, and conversations are what
is resampled: a seed more does not make a conversation more. Markdown goes to standard output.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import orjson

from musiccli.bench.statistics import bootstrap, detectable, share_interval, standard_error, totals
from musiccli.picture import COLOURS, STYLE, rendered

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


def runs_of(pairs: list[dict], arm: str) -> list[str]:
    return [name for name in pairs[0]["scores"] if name.rpartition("-")[0] == arm]


def right(pairs: list[dict], arm: str) -> np.ndarray:
    """(pairs,): the share of an arm's runs that score the chosen side strictly higher."""
    return np.mean([picks(pairs, run) for run in runs_of(pairs, arm)], axis=0)


def picks(pairs: list[dict], run: str) -> np.ndarray:
    """(pairs,): 1 where a run scores the chosen side strictly higher, else 0."""
    scores = [pair["scores"][run] for pair in pairs]
    return np.asarray([score["chosen"] > score["rejected"] for score in scores], float)


def clusters(pairs: list[dict]) -> np.ndarray:
    """(pairs,): equal where pairs come from one conversation, or begin with the same message."""
    keys = [(pair.get("metadata") or {}).get("conversation") or pair["chosen"][0]["content"] for pair in pairs]
    return np.unique(keys, return_inverse=True)[1]


def parts(pair: dict) -> set[str]:
    """In which of SUBSETS a pair with one reply exchanged counts."""
    about = pair["corruption"]
    if about["distance"] == 0:
        return {"last turn"}
    return {"before the last turn", "first turn" if about["turn"] == 1 else "between"}


def measure(pairs: list[dict], arms: list[str]) -> dict:
    """Of each arm that scored them (mean, low, high), and against each other (difference, low, high, what could have
    been shown)."""
    shares, groups = {arm: right(pairs, arm) for arm in arms if runs_of(pairs, arm)}, clusters(pairs)
    found = {arm: (share.mean(), *share_interval(share, groups)) for arm, share in shares.items()}
    for first in shares:
        for second in shares:
            if first != second:
                gaps = shares[first] - shares[second]
                rows = totals([gaps, np.ones(len(gaps))], groups)
                interval = bootstrap(rows, lambda sums: sums[:, 0] / sums[:, 1]) or (gaps.mean(), gaps.mean())
                found[first, second] = (gaps.mean(), *interval, detectable(standard_error(gaps, groups)))
    return found


def row(label: str, pairs: list[dict], arms: list[str], against: list[tuple[str, str]]) -> str:
    found = measure(pairs, arms)
    forms = dict.fromkeys(arms, "{:.1f} [{:.1f}, {:.1f}]") | \
        dict.fromkeys(against, "{:+.1f} [{:+.1f}, {:+.1f}], {:.1f}")
    cells = [form.format(*(100 * number for number in found[what])) if what in found else ""
             for what, form in forms.items()]
    return f"| {label} | {len(pairs)} ({len(set(clusters(pairs)))}) | " + " | ".join(cells) + " |"


def table(folder: Path, arms: list[str], others: list[str]) -> str:
    """`others` are the arms that each is compared with."""
    against = [(first, second) for first in arms for second in others
               if second in arms and first not in ("a", second)]
    lines = ["| % right [95% interval] | pairs (conversations) | " +
             " | ".join([*arms, *(f"{first} - {second} [95%], least to be shown" for first, second in against)]) + " |",
             "|---" * (2 + len(arms) + len(against)) + "|"]
    test = read(folder, "test")
    for subset in SUBSETS:
        if chosen := [pair for pair in test if subset in parts(pair)]:
            lines.append(row(f"one reply exchanged: {subset}", chosen, arms, against))
    lines += [row(label, pairs, arms, against) for name, label in MEANT.items() if (pairs := read(folder, name))]
    if early := [pair for pair in test if SUBSETS[0] in parts(pair)]:
        runs = ("{} {}".format(arm, ", ".join(f"{100 * picks(early, run).mean():.1f}" for run in runs_of(early, arm)))
                for arm in arms if runs_of(early, arm))
        lines += ["", f"Each run by itself, {SUBSETS[0]}: {'; '.join(runs)}."]
    return "\n".join(lines)


def figure(folder: Path, arms: list[str], path: Path) -> None:
    """Accuracy over how many turns follow the exchanged reply, a line an arm, its interval as a band."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("agg")
    by_distance, test = defaultdict(list), read(folder, "test")
    for pair in test:
        by_distance[min(pair["corruption"]["distance"], FURTHEST)].append(pair)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes, distances = drawn.subplots(), sorted(by_distance)
        for number, arm in enumerate(arm for arm in arms if runs_of(test, arm)):
            found = [measure(by_distance[distance], [arm])[arm] for distance in distances]
            means, lows, highs = (100 * np.array(column) for column in zip(*found, strict=True))
            axes.fill_between(distances, lows, highs, color=COLOURS[number % len(COLOURS)], alpha=0.15, linewidth=0)
            axes.plot(distances, means, "o-", color=COLOURS[number % len(COLOURS)],
                      label=NAMES.get(arm, arm))
        axes.axhline(50, color="#8a8a8a", linewidth=1)
        axes.set_xticks(distances, [str(one) if one < FURTHEST else f"{FURTHEST}+" for one in distances])
        axes.set_xlabel("turns after the exchanged reply")
        axes.set_ylabel("% of intact conversations preferred")
        axes.grid(axis="y")
        axes.invert_xaxis()
        axes.legend(title="trained on", loc="lower right", frameon=True, framealpha=1, edgecolor="none")
        path.write_bytes(rendered(drawn, path.suffix[1:]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", default=["a", "b", "c"])
    parser.add_argument("--against", nargs="*", default=["a", "b"], help="the arms that each is compared with")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    print(table(args.folder, args.arms, args.against))
    if args.figure:
        figure(args.folder, args.arms, args.figure)
