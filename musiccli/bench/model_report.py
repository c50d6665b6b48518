"""What the metric records of one model say, in sentences for the page beside a release."""

from collections.abc import Iterable, Sequence

from musiccli.bench.report.tables import ACCURACY_METRICS, baseline_label, percent, value_cell
from musiccli.bench.sensitivity import BEFORE_LAST, subset_words
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.outcomes import MetricRecord

MIN_PAIRS = 10  # that a subset needs to be named as the weakest
LAST_ONLY = "/last-only"  # the end of the name of scores by the last exchange alone


def findings(
    agreement: Sequence[MetricRecord], sensitivity: Sequence[MetricRecord], model: str
) -> list[str]:
    """Sentences on what a model is good for, what it reads, and where it fails.

    Args:
        agreement: metric records of `model` and of its last-only scores on labeled pairs.
        sensitivity: the same on corruptions of those pairs; may be empty.
        model: the name of the scores.
    """
    return [
        *_what_it_is_good_for(agreement, model),
        *_what_it_reads(agreement, sensitivity, model),
        *_where_it_fails([*agreement, *sensitivity], model),
    ]


def _accuracy(rows: Iterable[MetricRecord], model: str, subset: str) -> MetricRecord | None:
    matches = (
        row
        for row in rows
        if row["metric"] == "accuracy" and (row["model"], row["subset"]) == (model, subset)
    )
    return next(matches, None)


def _what_it_is_good_for(rows: Sequence[MetricRecord], model: str) -> list[str]:
    accuracy = _accuracy(rows, model, "all")
    guesses = [
        row
        for row in rows
        if is_baseline(row["model"])
        and row["subset"] == "all"
        and row["metric"] in ACCURACY_METRICS
    ]
    if accuracy is None or not guesses:
        return []
    best = max(guesses, key=lambda row: row["value"])
    guess = f"{baseline_label(best['model'])}, {percent(best)}%"
    verdict = (
        "is better than" if accuracy["low"] > best["value"] else "is not shown to be better than"
    )
    return [
        f"Good for: it prefers the better side of {value_cell(accuracy)}% of "
        f"{accuracy['count']:,} pairs, which {verdict} the best guess that reads nothing ({guess})."
    ]


def _what_it_reads(
    agreement: Sequence[MetricRecord], sensitivity: Sequence[MetricRecord], model: str
) -> list[str]:
    """How it does without the history, and whether it notices what is wrong in the history."""
    sentences = []
    full, last = (_accuracy(agreement, name, "all") for name in (model, model + LAST_ONLY))
    if full and last:
        sentences.append(
            f"Reads: shown only the last exchange it is right on {value_cell(last)}% of the pairs, "
            f"shown all on {value_cell(full)}%."
        )
    noticed = _accuracy(sensitivity, model, BEFORE_LAST)
    if noticed:
        sentences.append(
            f"Reads: of corrupted earlier turns it notices {value_cell(noticed)}%; one half is "
            "what a coin notices, and a model that reads the last exchange alone notices none."
        )
    return sentences


def _where_it_fails(rows: Sequence[MetricRecord], model: str) -> list[str]:
    """The subset with the lowest accuracy."""
    parts = [
        row
        for row in rows
        if row["model"] == model
        and row["metric"] == "accuracy"
        and "=" in row["subset"]
        and row["count"] >= MIN_PAIRS
    ]
    if not parts:
        return []
    lowest = min(parts, key=lambda row: row["value"])
    benchmark, subset = lowest["benchmark"], lowest["subset"]
    where = subset_words(subset) if benchmark == "sensitivity" else subset
    return [
        f"Fails: most often in {benchmark}, {where}: "
        f"{value_cell(lowest)}% of {lowest['count']:,} pairs are right."
    ]
