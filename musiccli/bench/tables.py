"""Metric records as tables for people: a title, column names and rows of cells. Accuracies are in percent."""

from collections.abc import Iterable

from musiccli.bench.baselines import PREFIX
from musiccli.bench.rewardbench import SECTIONS

Table = tuple[str, list[str], list[list[str]]]
ACCURACIES = ("accuracy", "section", "average")


def rewardbench(rows: list[dict], confidence: float) -> Table:
    """Each section with its subsets under it, then subsets of no section, then the average."""
    lines = []
    for section, weights in SECTIONS.items():
        lines += [(section, section), *((subset, f"  {subset}") for subset in weights)]
    known = {subset for subset, _ in lines} | {"all"}
    lines += [(subset, subset) for subset in unique(row["subset"] for row in rows) if subset not in known]
    lines.append(("all", "Average"))
    partial = {row["subset"] for row in rows if row.get("partial")}
    named = [(subset, f"{label} (partial)" if subset in partial else label) for subset, label in lines]
    return f"RewardBench, % right [{100 * confidence:g}% interval]", *accuracies(rows, named)


def agreement(rows: list[dict], confidence: float) -> Table:
    """A line a subset."""
    lines = [(subset, subset) for subset in unique(row["subset"] for row in rows)]
    return f"Agreement with labels, % right [{100 * confidence:g}% interval]", *accuracies(rows, lines)


def winrate(rows: list[dict], confidence: float) -> Table:
    """A line for each N, with how its contests ended, and a line for each change."""
    endings = ("win", "loss", "tie", "inconsistent", "same_pick", "unreadable")
    contests = unique(f"{row['model']} against {row['against']}" for row in rows)
    cells = []
    for row in rows:
        share = interval(row, form="+.1f" if row["metric"] == "win_rate_change" else ".1f")
        label = row["subset"] if len(contests) == 1 else f"{row['model']} against {row['against']}, {row['subset']}"
        ended = [f"{row[name]:,}" if name in row else "" for name in endings]
        cells.append([label, share, f"{row['count']:,}", *ended])
    title = f"Win rate of {'; '.join(contests)}, % [{100 * confidence:g}% interval]; a tie is half a win"
    return title, ["", "won", "read", *(name.replace("_", " ") for name in endings)], cells


def notes(rows: list[dict]) -> list[str]:
    """What a table of accuracies has no room for, a sentence each."""
    overall = [row for row in rows if row["subset"] == "all"]
    return [*shortfalls(rows), *guesses(overall), *tied(rows), *kappas(overall), *comparisons(overall)]


def shortfalls(rows: list[dict]) -> list[str]:
    """That some section is not RewardBench's own, and what is missing of it."""
    missing = unique(name for row in rows for name in row.get("missing", ()))
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"partial: not RewardBench's figures; other rows than its own in {', '.join(missing[:3])}{more}"]


def guesses(overall: list[dict]) -> list[str]:
    found = [f"{blind(row)} {percent(row)}" for row in overall
             if row["model"].startswith(PREFIX) and row["metric"] in ACCURACIES]
    return [f"content-blind guesses on all pairs: {', '.join(found)}"] if found else []


def tied(rows: list[dict]) -> list[str]:
    """How many pairs each model scored equal on both sides; they are not right."""
    ties: dict[str, int] = {}
    for row in rows:
        if row["metric"] == "accuracy" and (row["benchmark"] == "rewardbench" or row["subset"] == "all"):
            ties[row["model"]] = ties.get(row["model"], 0) + row["ties"]
    found = [f"{model} {count:,}" for model, count in ties.items() if count and not model.startswith(PREFIX)]
    return [f"tied scores, counted as wrong: {', '.join(found)}"] if found else []


def kappas(overall: list[dict]) -> list[str]:
    found = [f"{row['model']} {interval(row, 1, '.2f')}" for row in overall if row["metric"] == "kappa"]
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
        pairs = f"{difference['count']:,} pairs" + f" of {difference['prompts']:,} prompts" * repeated
        text = (f"{first} - {second}: {interval(difference, form='+.1f')} points on {pairs}; "
                f"right alone {test['only_first']:,} : {test['only_second']:,}, McNemar p = {test['value']:.2g}"
                + " (were no prompt repeated)" * repeated)
        if "detectable_difference" in metrics:
            text += f"; 80% power to show {percent(metrics['detectable_difference'])} points"
        said.append(text)
    return said


def accuracies(rows: list[dict], lines: Iterable[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Subsets down, models across, and last the best that a content-blind guess gets."""
    scored = [row for row in rows if row["metric"] in ACCURACIES]
    models = unique(row["model"] for row in scored if not row["model"].startswith(PREFIX))
    cells = []
    for subset, label in lines:
        here = {row["model"]: row for row in scored if row["subset"] == subset}
        if here:
            best = max((row for row in here.values() if row["model"].startswith(PREFIX)), key=lambda row: row["value"])
            count = max(row["count"] for row in here.values())
            cells.append([label, f"{count:,}", *(interval(here[model]) if model in here else "" for model in models),
                          f"{blind(best)} {percent(best)}"])
    return ["", "pairs", *models, "best blind guess"], cells


def blind(row: dict) -> str:
    return row["model"].removeprefix(PREFIX).replace("-", " ")


def percent(row: dict) -> str:
    return f"{100 * row['value']:.1f}"


def interval(row: dict, scale: int = 100, form: str = ".1f") -> str:
    """ "61.5 [52.0, 70.2]"; without brackets where there is no interval, and nothing where there is no value."""
    if row["value"] is None:
        return ""
    value, low, high = (format(scale * row[name], form) if row[name] is not None else "" for name in
                        ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if low else value


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
