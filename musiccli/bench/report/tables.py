"""Metric records as tables for people: a title, column names and rows of cells. Accuracies are in percent."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from musiccli.bench import rewardbench2, rmbench
from musiccli.bench.rewardbench import SECTIONS
from musiccli.bench.sensitivity import BEFORE_LAST
from musiccli.bench.stats.baselines import PREFIX

ACCURACIES = ("accuracy", "section", "ties_score", "average")
TITLES = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rmbench": "RM-Bench",
    "agreement": "Agreement with labels",
    "sensitivity": "Sensitivity to corruptions",
    "winrate": "Best-of-N win rate",
    "judges": "Judges",
    "audit": "Contrast audit",
}


class Table(NamedTuple):
    title: str
    columns: list[str]
    cells: list[list[str]]


def tables(rows: list[dict], confidence: float) -> list[Table]:
    """The tables of one benchmark's metric records; without rows none."""
    if not rows:
        return []
    make = {
        "rewardbench": of_rewardbench,
        "rewardbench2": of_rewardbench2,
        "rmbench": of_rmbench,
        "agreement": of_agreement,
        "sensitivity": of_sensitivity,
        "winrate": of_winrate,
        "judges": of_judges,
        "audit": of_audit,
    }[rows[0]["benchmark"]]
    return [table for table in make(rows, confidence) if table.cells]


def of_rewardbench(rows: list[dict], confidence: float) -> list[Table]:
    """Each section with its subsets under it, then subsets of no section, then the average."""
    lines = []
    for section, weights in SECTIONS.items():
        lines += [(section, section), *((subset, f"  {subset}") for subset in weights)]
    known = {subset for subset, _ in lines} | {"all"}
    lines += [
        (subset, subset) for subset in unique(row["subset"] for row in rows) if subset not in known
    ]
    return [accuracies(rows, [*lines, ("all", "Average")], confidence)]


def of_rewardbench2(rows: list[dict], confidence: float) -> list[Table]:
    """The six subsets, then others, then the average."""
    names = [
        *rewardbench2.SUBSETS,
        *(
            name
            for name in unique(row["subset"] for row in rows)
            if name != "all" and name not in rewardbench2.SUBSETS
        ),
    ]
    return [
        accuracies(
            rows, [*((name, name) for name in names), ("all", "Average")], confidence, "prompts"
        )
    ]


def of_rmbench(rows: list[dict], confidence: float) -> list[Table]:
    """Each domain with its levels under it, the levels over all domains, the average; then a matrix for each model."""
    lines = []
    for name in rmbench.DOMAINS:
        lines += [(name, name), *((f"{name}/{level}", f"  {level}") for level in rmbench.LEVELS)]
    lines += [*((level, level) for level in rmbench.LEVELS), ("all", "Average")]
    cells = {(row["model"], row["subset"]): percent(row) for row in rows if row["metric"] == "cell"}
    matrices = [
        Table(
            f"{model}, %: right reply down, wrong one across",
            ["", *rmbench.STYLES],
            [
                [right, *(cells[model, f"{right} over {wrong}"] for wrong in rmbench.STYLES)]
                for right in rmbench.STYLES
            ],
        )
        for model in unique(model for model, _ in cells)
        if not model.startswith(PREFIX)
    ]
    return [accuracies(rows, lines, confidence, "comparisons"), *matrices]


def of_agreement(rows: list[dict], confidence: float) -> list[Table]:
    """A line a subset."""
    return [
        accuracies(
            rows, [(subset, subset) for subset in unique(row["subset"] for row in rows)], confidence
        )
    ]


def of_sensitivity(rows: list[dict], confidence: float) -> list[Table]:
    """All kinds and then each, with the distances from the end under it; and what lies before the last turn."""
    subsets = unique(row["subset"] for row in rows)
    lines = [("all", "all"), (BEFORE_LAST, "  before the last turn")]
    lines += [
        (subset, f"  {plainly(subset)}") for subset in subsets if subset.startswith("distance=")
    ]
    for kind in (subset for subset in subsets if subset.startswith("kind=") and "," not in subset):
        lines += [
            (kind, plainly(kind)),
            *(
                (subset, f"  {plainly(subset)}")
                for subset in subsets
                if subset.startswith(f"{kind},")
            ),
        ]
    return [accuracies(rows, lines, confidence)]


def plainly(subset: str) -> str:
    """ "kind=reply" is "reply", and "kind=reply,distance=0" is "0 turns from the end" under it."""
    name, _, value = subset.rpartition(",")[2].partition("=")
    return f"{value} turn{'s' * (value != '1')} from the end" if name == "distance" else value


def of_winrate(rows: list[dict], confidence: float) -> list[Table]:
    """A line for each N, with how its contests ended, and a line for each change."""
    endings = ("win", "loss", "tie", "inconsistent", "same_pick", "unreadable")
    contests = unique(f"{row['model']} against {row['against']}" for row in rows)
    cells = []
    for row in rows:
        share = interval(row, form="+.1f" if row["metric"] == "win_rate_change" else ".1f")
        label = (
            row["subset"]
            if len(contests) == 1
            else f"{row['model']} against {row['against']}, {row['subset']}"
        )
        ended = [f"{row[name]:,}" if name in row else "" for name in endings]
        bounds = [f"{100 * row[name]:.1f}" for name in ("random", "oracle") if name in row]
        cells.append([label, share, ", ".join(bounds), f"{row['count']:,}", *ended])
    title = f"Win rate of {'; '.join(contests)}, % [{100 * confidence:g}% interval]; a tie is half a win"
    columns = ["", "won", "coin, oracle", "read", *(name.replace("_", " ") for name in endings)]
    return [Table(title, columns, cells)]


def of_judges(rows: list[dict], confidence: float) -> list[Table]:
    """What the order and the length do to each judge; agreement with labels; agreement with each other."""
    found = {(row["model"], row.get("against"), row["metric"]): row for row in rows}
    names = unique(row["model"] for row in rows if row["metric"] == "ties")

    def cells(judge: str, against: str | None, metrics: dict[str, str]) -> list[str]:
        """One metric a cell, each in its form: kappas as they are, all else in percent."""
        here = [(found.get((judge, against, metric)), form) for metric, form in metrics.items()]
        return [
            interval(row, 1 if form == ".2f" else 100, form) if row else "" for row, form in here
        ]

    def counted(judge: str, against: str | None, metric: str) -> str:
        return f"{found[judge, against, metric]['count']:,}"

    said = f"% [{100 * confidence:g}% interval]"
    swayed = dict.fromkeys(("first_shown_wins", "flip_rate", "longer_wins"), ".1f")
    undecided = dict.fromkeys(("ties", "inconsistent", "unreadable"), ".1f")
    labelled = {
        "agreement": ".1f",
        "agreement_decided": ".1f",
        "kappa": ".2f",
        "longer_excess": "+.1f",
    }
    mutual = {"agreement": ".1f", "kappa": ".2f"}
    both = [
        (row["model"], row["against"])
        for row in rows
        if row["metric"] == "kappa" and row["against"] != "labels"
    ]
    return [
        Table(
            f"Judges: what sways them, {said}",
            ["", "pairs", "first shown wins", "order flips", "longer side wins"],
            [[name, counted(name, None, "ties"), *cells(name, None, swayed)] for name in names],
        ),
        Table(
            f"Judges: no winner, {said}",
            ["", "pairs", *undecided],
            [[name, counted(name, None, "ties"), *cells(name, None, undecided)] for name in names],
        ),
        Table(
            f"Judges against labels, {said}",
            [
                "",
                "pairs",
                "same verdict",
                "where both decide",
                "kappa",
                "longer wins, judge - labels",
            ],
            [
                [name, counted(name, "labels", "agreement"), *cells(name, "labels", labelled)]
                for name in names
                if (name, "labels", "agreement") in found
            ],
        ),
        Table(
            f"Judges against each other, {said}",
            ["", "pairs", "same verdict", "kappa"],
            [
                [f"{one} and {other}", counted(one, other, "kappa"), *cells(one, other, mutual)]
                for one, other in both
            ]
            + [
                [f"all {row['judges']}, Fleiss", f"{row['count']:,}", "", interval(row, 1, ".2f")]
                for row in rows
                if row["metric"] == "fleiss_kappa"
            ],
        ),
    ]


def of_audit(rows: list[dict], confidence: float) -> list[Table]:
    """What contrasted replies give away, how long they are, and what each judge makes of them: a line a turn."""
    found = {(row["model"], row["subset"], row["metric"]): row for row in rows}
    subsets = [
        subset for subset in unique(row["subset"] for row in rows) if subset != "conversations"
    ]
    said = f"% [{100 * confidence:g}% interval]"

    def cells(model: str, subset: str, metrics: Iterable[str]) -> list[str]:
        here = [found.get((model, subset, name)) for name in metrics]
        return [
            interval(row, 1, ".2f")
            if row and row["metric"] == "length_ratio"
            else interval(row)
            if row
            else ""
            for row in here
        ]

    def lines(model: str, metrics: Sequence[str]) -> list[list[str]]:
        counted = [
            (subset, found[model, subset, metrics[0]]["count"])
            for subset in subsets
            if (model, subset, metrics[0]) in found
        ]
        return [
            [
                "all" if subset == "all" else f"  turn {subset.removeprefix('turn=')}",
                f"{count:,}",
                *cells(model, subset, metrics),
            ]
            for subset, count in counted
        ]

    given = ("leak", "refusal", "not_rewritten", "same")
    longer = [
        [*line, *cells(f"{PREFIX}longest", subset, ["accuracy"])]
        for line, subset in zip(
            lines(
                "contrast",
                ("length_ratio", "rejected_shorter", "chosen_truncated", "rejected_truncated"),
            ),
            subsets,
            strict=True,
        )
    ]
    judged = ("prefers_chosen", "prefers_rejected", "tie", "inconsistent", "label_noise")
    return [
        Table(
            f"Contrasted replies, {said}",
            ["", "turns", "leak", "refuse", "not altered", "as the chosen"],
            lines("contrast", given),
        ),
        Table(
            f"Lengths, {said}",
            [
                "",
                "turns",
                "rejected / chosen",
                "rejected shorter",
                "chosen cut",
                "rejected cut",
                "longest is chosen",
            ],
            longer,
        ),
        *(
            Table(
                f"{judge} in both orders, {said}",
                ["", "turns", "for chosen", "for rejected", "tie", "inconsistent", "label noise"],
                lines(judge, judged),
            )
            for judge in unique(row["model"] for row in rows if row["metric"] == "label_noise")
        ),
    ]


def notes(rows: list[dict]) -> list[str]:
    """What a table of accuracies has no room for, a sentence each."""
    if rows and rows[0]["benchmark"] == "judges":
        return []  # its tables say it all
    if rows and rows[0]["benchmark"] == "audit":
        return by_length(rows)
    overall = [row for row in rows if row["subset"] == "all"]
    return [
        *shortfalls(rows),
        *guesses(overall),
        *tied(rows),
        *lengths(rows),
        *kappas(overall),
        *comparisons(overall),
    ]


def by_length(rows: list[dict]) -> list[str]:
    """What length alone says of whole conversations, and that it must not."""
    whole = [row for row in rows if row["subset"] == "conversations"]
    telling = [row for row in whole if row["low"] is not None and row["low"] > 0.5]
    guessed = ", ".join(f"{blind(row)} {interval(row)}" for row in whole)
    said = [f"whole conversations, % right by length alone: {guessed}"] if whole else []
    if telling:
        best = max(telling, key=lambda row: row["value"])
        said.append(
            f"length gives the label away: whoever always takes the {blind(best)} is right on {percent(best)}%"
        )
    return said


def shortfalls(rows: list[dict]) -> list[str]:
    """That some figure is not the benchmark's own, and what is missing of it."""
    missing = unique(name for row in rows for name in row.get("missing", ()))
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    title = TITLES[rows[0]["benchmark"]]
    return [
        f"partial: not {title}'s figures; other rows than its own in {', '.join(missing[:3])}{more}"
    ]


def guesses(overall: list[dict]) -> list[str]:
    found = [
        f"{blind(row)} {percent(row)}"
        for row in overall
        if row["model"].startswith(PREFIX) and row["metric"] in ACCURACIES
    ]
    return [f"content-blind guesses overall: {', '.join(found)}"] if found else []


def tied(rows: list[dict]) -> list[str]:
    """How many pairs each model scored equal on both sides; they are not right. Firsts of several share a point."""
    ties: dict[str, int] = {}
    for row in rows:
        whole = row["benchmark"] in ("agreement", "sensitivity")  # "all" holds the other subsets
        if row["metric"] == "accuracy" and (row["subset"] == "all" or not whole):
            ties[row["model"]] = ties.get(row["model"], 0) + row["ties"]
    found = [
        f"{model} {count:,}"
        for model, count in ties.items()
        if count and not model.startswith(PREFIX)
    ]
    said = (
        "equal highest scores, sharing the point"
        if rows and rows[0]["benchmark"] == rewardbench2.NAME
        else "tied scores, counted as wrong"
    )
    return [f"{said}: {', '.join(found)}"] if found else []


def lengths(rows: list[dict]) -> list[str]:
    """How much longer corrupted sides are, by kind."""
    found = {
        plainly(row["subset"]): row["length_difference"]
        for row in rows
        if "length_difference" in row
        and row["subset"].startswith("kind=")
        and "," not in row["subset"]
    }
    said = ", ".join(
        f"{kind} {round(shift, 1) + 0.0:+g}" for kind, shift in found.items()
    )  # no "-0"
    return [f"corrupted minus intact, mean difference in characters: {said}"] if found else []


def kappas(overall: list[dict]) -> list[str]:
    found = [
        f"{row['model']} {interval(row, 1, '.2f')}" for row in overall if row["metric"] == "kappa"
    ]
    return [f"Cohen's kappa: {', '.join(found)}"] if found else []


def comparisons(overall: list[dict]) -> list[str]:
    """For each two models: how far apart they are on all pairs, and what could have been seen."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in overall:
        if "against" in row and row["metric"] != "win_rate":  # a win rate's own table says it all
            found.setdefault((row["model"], row["against"]), {})[row["metric"]] = row
    said = []
    for (first, second), metrics in found.items():
        difference, test = metrics["accuracy_difference"], metrics["mcnemar_p"]
        repeated = difference["prompts"] < difference["count"]
        pairs = (
            f"{difference['count']:,} pairs" + f" of {difference['prompts']:,} prompts" * repeated
        )
        text = (
            f"{first} - {second}: {interval(difference, form='+.1f')} points on {pairs}; "
            f"right alone {test['only_first']:,} : {test['only_second']:,}, McNemar p = {test['value']:.2g}"
            + " (were no prompt repeated)"
            * repeated
        )
        if "detectable_difference" in metrics:
            text += f"; 80% power to show {percent(metrics['detectable_difference'])} points"
        said.append(text)
    return said


def accuracies(
    rows: list[dict], lines: Iterable[tuple[str, str]], confidence: float, counted: str = "pairs"
) -> Table:
    """(subset, label) down, models across, and last the best that a content-blind guess gets.

    A model that scored only some of what is counted has its own number in its cell: "100.0 [51.0, 100.0] of 4".
    """
    scored = [row for row in rows if row["metric"] in ACCURACIES]
    models = unique(row["model"] for row in scored if not row["model"].startswith(PREFIX))
    cells = []
    for subset, label in lines:
        here = {row["model"]: row for row in scored if row["subset"] == subset}
        if here:
            best = max(
                (row for row in here.values() if row["model"].startswith(PREFIX)),
                key=lambda row: row["value"],
            )
            count = max(row["count"] for row in here.values())
            label += " (partial)" * any(row.get("partial", False) for row in here.values())
            own = [
                interval(row) + f" of {row['count']:,}" * (row["count"] < count) if row else ""
                for row in map(here.get, models)
            ]
            cells.append([label, f"{count:,}", *own, f"{blind(best)} {percent(best)}"])
    title = f"{TITLES[rows[0]['benchmark']]}, % right [{100 * confidence:g}% interval]"
    return Table(title, ["", counted, *models, "best blind guess"], cells)


def blind(row: dict) -> str:
    return row["model"].removeprefix(PREFIX).replace("-", " ")


def percent(row: dict) -> str:
    return f"{100 * row['value']:.1f}"


def interval(row: dict, scale: int = 100, form: str = ".1f") -> str:
    """ "61.5 [52.0, 70.2]"; without brackets where there is no interval, and nothing where there is no value."""
    if row["value"] is None:
        return ""
    value, low, high = (
        format(scale * row[name], form) if row[name] is not None else ""
        for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]" if low else value


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
