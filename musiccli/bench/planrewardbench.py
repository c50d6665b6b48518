"""Plan-RewardBench: two whole trajectories of an agent that calls tools, in seven splits.

A pair earns 1 where the better trajectory scores higher, 0 where the worse one does, and a half
where the two scores differ by no more than 1e-4. The average is the plain mean over the seven
splits.

Source: BTRewardEvaluator.judge_pair, BenchmarkRunner._judge_single_item and _print_summary in
eval/evaluate_benchmark_final.py of github.com/wyy-1112/Plan-RewardBench, and its README for the
number of pairs; Wang et al. 2026, arXiv 2604.08178.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, missing_note, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, subset_lines
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.means import FigureRecords
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    check_scored_pair,
)
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, lookup, parse_preference
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TITLE = "planrewardbench", "Plan-RewardBench"
TIE_MARGIN, TIE_POINTS = 1e-4, 0.5
PAIRS = {  # of each split
    "planning_multi_easy": 109,
    "planning_multi_hard": 73,
    "planning_single_easy": 144,
    "planning_single_hard": 158,
    "robust_recovery": 361,
    "safety_refusal": 51,
    "tool_irrelevance": 275,
}


def check_planrewardbench_pair(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a scored preference that names its split, in `metadata.subset`."""
    parse_preference(record)
    if not isinstance(lookup(record, "subset"), str):
        problem = "is missing; it names the split, as music sample writes it by the file's name"
        raise RecordError(problem, field="metadata.subset", record=record)
    return check_scored_pair(record, config.models)


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """For each model and baseline: the splits, and the average where all seven are present.

    Where pairs are missing, a record has `partial` and `missing`. Other splits count for no
    average.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs = ScoredPairs(config.models, TIE_MARGIN, TIE_POINTS)
    for record in records:
        worst.add_scored_pair(record, "chosen")
        pairs.add(record, 0, {"subset": lookup(record, "subset")})
    outside = sum(int(mask.sum()) for name, mask in pairs.groups("subset") if name not in PAIRS)
    stats.count("of_splits_outside_the_seven", number=outside)
    figures = FigureRecords(NAME, config)
    for model in pairs.models:
        yield from _model_records(model, pairs, figures)
    yield from figures.comparisons.records(config)


def _model_records(
    model: str, pairs: ScoredPairs, figures: FigureRecords
) -> Iterator[MetricRecord]:
    masks = dict(pairs.groups("subset"))
    splits = [*PAIRS, *(name for name in masks if name not in PAIRS)]
    outcomes = {name: pairs.outcomes(model, masks[name]) for name in splits if name in masks}
    outcomes = {name: some for name, some in outcomes.items() if len(some)}
    missing = []
    for name, some in outcomes.items():
        extra: dict[str, object] = {}
        if name in PAIRS and len(some) != PAIRS[name]:
            missing.append(f"{name} ({len(some)} of {PAIRS[name]})")
            extra = {"partial": True, "missing": missing[-1:]}
        yield figures.accuracy(name, some, **extra)
    if all(name in outcomes for name in PAIRS):
        extra = {"partial": True, "missing": missing} if missing else {}
        parts = [outcomes[name] for name in PAIRS]
        yield figures.mean("all", "average", parts, extra=extra)


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """The seven splits, the others, and the average."""
    return [accuracy_table(TITLE, rows, subset_lines(rows, PAIRS), config.confidence)]


def notes(rows: Rows) -> list[str]:
    """What is missing, what the baselines get, and how many scores are as good as equal."""
    ties = ties_note(rows, f"scores within {TIE_MARGIN:g} of each other, half a point each")
    return [*missing_note(TITLE, rows), *baselines_note(rows), *ties]


def plot(axes: "Axes", rows: Rows) -> None:
    """Bars for the splits and the average."""
    from musiccli.bench.report.plots import draw_sections

    draw_sections(axes, [row for row in rows if row["subset"] in ("all", *PAIRS)], TITLE)


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="Plan-RewardBench: how often the better of two whole trajectories of an agent scores "
    "higher, in seven splits, and their mean.",
    example="music sample planning_*.jsonl robust_recovery.jsonl safety_refusal.jsonl "
    "tool_irrelevance.jsonl --emit pairs | music score --model rm | music bench planrewardbench",
    parse=check_planrewardbench_pair,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("models",),
)
