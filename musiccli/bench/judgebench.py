"""JudgeBench: pairs of answers of which one is correct, for reward models and for judges.

A reward model is right where the correct answer scores strictly higher. A judge reads a pair in
both orders: each vote for the correct answer counts 1, each for the wrong one -1, a tie or an
unreadable vote 0. The judge is right where the sum is above 0. Accuracies are of all pairs and of
the four kinds of questions.

Source: compute_final_metrics in utils/metrics.py and the kinds of questions in run_judge.py of
github.com/ScalerLab/JudgeBench; Tan et al. 2024, arXiv 2410.12784.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, overall, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, percent, subset_lines
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.comparisons import compare_models
from musiccli.bench.stats.intervals import proportion_interval
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    accuracy_record,
    check_scored_pair,
    metric_record,
    prompt_cluster,
)
from musiccli.bench.stats.vote_scores import better_side, with_vote_scores
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, lookup, parse_comparison, side_names
from musiccli.core.run_stats import RunStats
from musiccli.core.votes import parse_votes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TITLE = "judgebench", "JudgeBench"
KINDS = {  # what `source` begins with
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}


def check_judgebench_pair(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a pair with `metadata.source` that was scored or judged."""
    parse_votes(parse_comparison(record))
    if not isinstance(lookup(record, "source"), str):
        problem = "is missing; JudgeBench's records name theirs, as music sample writes them"
        raise RecordError(problem, field="metadata.source", record=record)
    if better_side(record) not in side_names(record):
        problem = "names no side; JudgeBench says which answer is correct"
        raise RecordError(problem, field="winner", record=record)
    return check_scored_pair(with_vote_scores(record), config.models)


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """The accuracy of each model, judge and baseline, of all pairs and by kind of question.

    Of judges also `inconsistent`: how often the votes on a pair differ, unreadable ones included.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs = ScoredPairs(config.models)
    differ: dict[str, tuple[list[bool], list[int]]] = {}  # by judge: flags and clusters
    for record in records:
        label = better_side(record)
        worst.add_scored_pair(record, label)
        pairs.add(record, side_names(record).index(label), {"kind": _kind(record)})
        for judge, winners in _winners_by_judge(record).items():
            flags, clusters = differ.setdefault(judge, ([], []))
            flags.append(len(set(winners)) > 1)
            clusters.append(prompt_cluster(record))
    masks = dict(pairs.groups("kind"))
    kinds = sorted(masks, key=lambda kind: [*KINDS.values(), kind].index(kind))
    for subset, mask in [("all", None), *((kind, masks[kind]) for kind in kinds)]:
        for model in pairs.models:
            if len(outcomes := pairs.outcomes(model, mask)):
                yield accuracy_record(NAME, subset, outcomes, config.confidence)
    yield from compare_models(NAME, pairs, "all", None, config)
    for judge, (flags, clusters) in differ.items():
        interval = proportion_interval(flags, clusters, config.confidence)
        value, count = sum(flags) / len(flags), len(flags)
        yield metric_record(NAME, judge, "all", "inconsistent", value, interval, count)


def _kind(record: Record) -> str:
    """The kind of question; the set's own name where it is none of JudgeBench's."""
    source: str = lookup(record, "source")
    return next((kind for start, kind in KINDS.items() if source.startswith(start)), source)


def _winners_by_judge(record: Record) -> dict[str, list[str | None]]:
    """The winner of each vote of the judges that voted more than once."""
    winners: dict[str, list[str | None]] = {}
    for vote in record.get("votes") or ():
        winners.setdefault(vote["judge"], []).append(vote["winner"])
    return {judge: some for judge, some in winners.items() if len(some) > 1}


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """The kinds of questions, and all pairs."""
    lines = subset_lines(rows, overall="All pairs")
    return [accuracy_table(TITLE, rows, lines, config.confidence)]


def notes(rows: Rows) -> list[str]:
    """The baselines, ties and inconsistent judges."""
    shares = [f"{row['model']} {percent(row)}" for row in rows if row["metric"] == "inconsistent"]
    return [
        *baselines_note(rows),
        *ties_note(overall(rows)),
        *([f"verdict changes with the order, %: {', '.join(shares)}"] if shares else []),
    ]


def plot(axes: "Axes", rows: Rows) -> None:
    """Bars for the kinds of questions and all pairs."""
    from musiccli.bench.report.plots import draw_sections

    accuracies = [row for row in rows if row["metric"] == "accuracy"]
    draw_sections(axes, sorted(accuracies, key=lambda row: row["subset"] == "all"), TITLE)


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="JudgeBench: how often a reward model, or a judge that reads both orders, names the "
    "correct one of two answers.",
    example="""music sample judgebench --emit comparisons | music score --model rm | \
music bench judgebench
music sample judgebench --emit comparisons | music judge --judge MODEL | \
music bench judgebench""",
    parse=check_judgebench_pair,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("models", "bootstrap", "seed"),
)
