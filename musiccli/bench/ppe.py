"""PPE, Preference Proxy Evaluations: people's votes on LLMs' replies, and graded samples.

Votes: accuracy on the votes for a side, and how well the leaderboard of LLMs that the rewards make
agrees with that of people's votes (stats/leaderboards.py). The latter figures have no interval.

Samples: best of K is the chance that the sample with the highest reward among K of a prompt's N is
right, exactly, over all draws without replacement; of equal rewards one is taken at random. The
area is the mean of that curve over K from 1 to N. `roc_auc` is the share of a prompt's right and
wrong samples in the right order, equal ones counting half, over the prompts that have both. A
benchmark's figure is the mean over its prompts, and the average the plain mean over benchmarks.

Source: Frick et al. 2024, arXiv 2410.14872 (github.com/lmarena/PPE), sections on the metrics of
human preference and of correctness. That code draws the curve's samples at random, we do not.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, overall, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.bootstrap import cluster_sums
from musiccli.bench.stats.bradley_terry import player_strengths
from musiccli.bench.stats.candidates import (
    check_scored_candidate,
    group_candidates,
)
from musiccli.bench.stats.comparisons import compare_models
from musiccli.bench.stats.intervals import combine_proportions, proportion_interval
from musiccli.bench.stats.leaderboards import (
    pair_brier,
    rank_correlations,
    row_wise_pearson,
    separations,
    win_rates,
)
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    accuracy_record,
    check_scored_pair,
    metric_record,
    prompt_cluster,
)
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, lookup, parse_judged, record_kind, side_names
from musiccli.core.run_stats import RunStats
from musiccli.core.votes import TIE

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "ppe", "PPE"
SAMPLES = 1000  # leaderboards of battles drawn with replacement
FIGURES = {  # of leaderboards
    "row_wise_pearson": "row-wise Pearson",
    "confidence_agreement": "confidence agreement",
    "separability": "separability",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "brier": "Brier",
}
CURVE = tuple(2**power for power in range(11))  # the numbers of samples that are shown


def check_ppe_record(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a scored vote with `model_a` and `model_b` in the metadata, or a scored sample."""
    if record_kind(record) == "conversation":
        if not isinstance(lookup(record, "source"), str):
            problem = "is missing; PPE's samples name their benchmark, as music sample writes them"
            raise RecordError(problem, field="metadata.source", record=record)
        return check_scored_candidate(record, config.models)
    check_scored_pair(parse_judged(record), config.models)
    if record_kind(record) != "comparison":
        problem = "is missing; PPE's votes are comparisons, with ties and both models"
        raise RecordError(problem, field="a", record=record)
    for name in ("model_a", "model_b"):
        if not isinstance(lookup(record, name), str):
            problem = "is missing, as music sample writes it"
            raise RecordError(problem, field=f"metadata.{name}", record=record)
    return record


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Accuracy and leaderboards from votes; curves, areas and ROC from graded samples."""
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs, battles, samples = ScoredPairs(config.models), Battles(), []
    for record in records:
        if record_kind(record) == "conversation":
            samples.append(record)
        elif record["winner"] is None:
            stats.count("left_out", "label_is_null", record=record)
        else:
            battles.add(record, config.models)
            worst.add_scored_pair(record, record["winner"])
            if record["winner"] != TIE:
                pairs.add(record, side_names(record).index(record["winner"]), {})
    for model in pairs.models:
        yield accuracy_record(NAME, "votes", pairs.outcomes(model), config.confidence)
    if pairs.models:
        yield from compare_models(NAME, pairs, "votes", None, config)
    yield from battles.records(config)
    yield from _sample_records(samples, config, stats, worst)


class Battles:
    """Votes on two LLMs: what people and each reward model say of the first, 1, 0.5 or 0."""

    def __init__(self) -> None:
        self._llms: dict[str, int] = {}
        self._sides: list[tuple[int, int]] = []
        self._clusters: list[int] = []
        self._people: list[float] = []
        self._models: dict[str, dict[int, float]] = {}  # by model, by battle

    def add(self, record: Record, models: Sequence[str]) -> None:
        """Add a vote; one on two replies of the same LLM says nothing about leaderboards."""
        names = lookup(record, "model_a"), lookup(record, "model_b")
        if names[0] == names[1]:
            return
        battle = len(self._sides)
        first, second = (self._llms.setdefault(name, len(self._llms)) for name in names)
        self._sides.append((first, second))
        self._clusters.append(prompt_cluster(record))
        self._people.append({"a": 1.0, "b": 0.0}.get(record["winner"], 0.5))
        for model in models or record["scores"]:
            scores = record["scores"][model]
            self._models.setdefault(model, {})[battle] = _outcome(scores["a"] - scores["b"])

    def records(self, config: BenchConfig) -> Iterator[MetricRecord]:
        """FIGURES of each reward model, from the votes that it scored."""
        import numpy as np

        for model, outcomes in self._models.items():
            used = np.array(list(outcomes))
            sides, clusters = np.array(self._sides)[used], np.array(self._clusters)[used]
            people, rewards = np.array(self._people)[used], np.array(list(outcomes.values()))
            llms, sides = np.unique(sides, return_inverse=True)
            if len(llms) < 3:
                continue
            sides = sides.reshape(-1, 2)
            columns = [_win_columns(sides, values, len(llms)) for values in (people, rewards)]
            figures = _leaderboard_figures(columns, clusters, len(llms), config)
            for name, value in figures.items():
                yield metric_record(
                    NAME, model, "votes", name, value, None, len(used), llms=len(llms)
                )


def _outcome(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _win_columns(sides: "Array", outcomes: "Array", llms: int) -> "Array":
    """Who beat whom in each battle, (battles, LLMs x LLMs); a tie is half a win for both."""
    import numpy as np

    columns: Array = np.zeros((len(sides), llms, llms))
    battles = np.arange(len(sides))
    columns[battles, sides[:, 0], sides[:, 1]] = outcomes
    columns[battles, sides[:, 1], sides[:, 0]] = 1 - outcomes
    return columns.reshape(len(sides), -1)


def _leaderboard_figures(
    columns: "Sequence[Array]", clusters: "Array", llms: int, config: BenchConfig
) -> dict[str, float | None]:
    """FIGURES from the battles by people (first) and by rewards (second)."""
    import numpy as np

    battles = np.concatenate(columns, axis=1)
    sums = battles.sum(0).reshape(2, llms, llms)
    people, rewards = player_strengths(sums)
    samples = _sampled_strengths(cluster_sums(list(battles.T), clusters), llms, config)
    signs = [separations(samples[:, index], config.confidence) for index in (0, 1)]
    spearman, kendall = rank_correlations(people, rewards)
    return {
        "row_wise_pearson": row_wise_pearson(win_rates(sums[0]), win_rates(sums[1])),
        "confidence_agreement": float((signs[0] * signs[1]).mean()),
        "separability": float(np.abs(signs[1]).mean()),
        "spearman": spearman,
        "kendall": kendall,
        "brier": pair_brier(samples[:, 1], people),
    }


def _sampled_strengths(rows: "Array", llms: int, config: BenchConfig) -> "Array":
    """Strengths by people and by rewards from battles drawn by cluster, (SAMPLES, 2, LLMs)."""
    import numpy as np

    distinct_rows, counts = np.unique(rows, axis=0, return_counts=True)
    generator = np.random.default_rng(config.seed)
    drawn = generator.multinomial(len(rows), counts / len(rows), size=SAMPLES) @ distinct_rows
    return player_strengths(drawn.reshape(SAMPLES, 2, llms, llms))


def best_of_k(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """The chance that the highest-scored of k samples is right, over all draws of k of them.

    Samples of equal score are highest together: one of those drawn is taken at random.
    """
    by_score: dict[float, list[bool]] = {}
    for score, flag in zip(scores, right, strict=True):
        by_score.setdefault(score, []).append(flag)
    expected, lower = 0.0, 0
    for score in sorted(by_score):
        equal = by_score[score]
        highest = math.comb(lower + len(equal), k) - math.comb(lower, k)
        expected += highest / math.comb(len(scores), k) * sum(equal) / len(equal)
        lower += len(equal)
    return expected


def roc_auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """The share of pairs of a right and a wrong sample in which the right one scores higher."""
    points = sum(_outcome(first - second) for first in right for second in wrong)
    return points / (len(right) * len(wrong))


def _sample_records(
    samples: Iterable[Record], config: BenchConfig, stats: RunStats, worst: WorstRecords
) -> Iterator[MetricRecord]:
    """For each benchmark its curve, area and ROC, and their plain means over benchmarks."""
    values: dict[str, dict[str, dict[str, list[tuple[float, int]]]]] = {}
    for group in group_candidates(samples, lambda group: None, stats):
        worst.add_candidates(group)
        benchmark, cluster = str(lookup(group.first, "source")), prompt_cluster(group.first)
        for model, right, wrong in group.scores(config.models):
            by_metric = values.setdefault(model, {}).setdefault(benchmark, {})
            for metric, value in _prompt_values(right, wrong).items():
                by_metric.setdefault(metric, []).append((value, cluster))
    for model in sorted(values, key=is_baseline):
        rows = [
            _mean_of_prompts(model, benchmark, metric, some, config)
            for benchmark, by_metric in values[model].items()
            for metric, some in by_metric.items()
        ]
        yield from rows
        if len(values[model]) > 1:
            yield from _means_of_benchmarks(model, rows)


def _prompt_values(right: Sequence[float], wrong: Sequence[float]) -> dict[str, float]:
    """The curve at the numbers of CURVE, its area, and the ROC where there are both kinds."""
    scores, flags = [*right, *wrong], [True] * len(right) + [False] * len(wrong)
    curve = [best_of_k(scores, flags, k) for k in range(1, len(scores) + 1)]
    values = {f"best_of_{k}": curve[k - 1] for k in CURVE if k <= len(curve)}
    values["area"] = sum(curve) / len(curve)
    if right and wrong:
        values["roc_auc"] = roc_auc(right, wrong)
    return values


def _mean_of_prompts(
    model: str,
    benchmark: str,
    metric: str,
    values: Sequence[tuple[float, int]],
    config: BenchConfig,
) -> MetricRecord:
    numbers, clusters = zip(*values, strict=True)
    interval = proportion_interval(numbers, clusters, config.confidence)
    value = sum(numbers) / len(numbers)
    return metric_record(NAME, model, benchmark, metric, value, interval, len(numbers))


def _means_of_benchmarks(model: str, rows: Sequence[MetricRecord]) -> Iterator[MetricRecord]:
    """The plain mean over the benchmarks that have a metric."""
    for metric in distinct(row["metric"] for row in rows):
        some = [row for row in rows if row["metric"] == metric]
        value, interval = combine_proportions(
            [row["value"] for row in some],
            [(row["low"], row["high"]) for row in some],
            [1 / len(some)] * len(some),
        )
        count = sum(row["count"] for row in some)
        yield metric_record(NAME, model, "all", metric, value, interval, count)


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """Accuracy on votes, leaderboards, and a table of the curve for each benchmark."""
    votes = [row for row in rows if row["metric"] == "accuracy"]
    lines = [("votes", "people's votes")]
    tables = [accuracy_table(TITLE, rows, lines, config.confidence)] if votes else []
    cells = {(row["model"], row["subset"], row["metric"]): row for row in rows}
    board = [
        [model, *(value_cell(cells.get((model, "votes", name)), 1, ".3f") for name in FIGURES)]
        for model in distinct(row["model"] for row in rows if row["metric"] == "separability")
    ]
    tables.append(Table(f"{TITLE}: leaderboards of LLMs", ["", *FIGURES.values()], board))
    samples = [row for row in rows if row["metric"] not in FIGURES and row["subset"] != "votes"]
    for subset in distinct(row["subset"] for row in samples):
        tables.append(_curve_table(subset, samples, cells, config))
    return tables


def _curve_table(
    subset: str,
    rows: Rows,
    cells: Mapping[tuple[str, str, str], MetricRecord],
    config: BenchConfig,
) -> Table:
    """Models and baselines down, the curve, the area and the ROC across."""
    columns = distinct(row["metric"] for row in rows if row["subset"] == subset)
    models = distinct(row["model"] for row in rows if row["subset"] == subset)
    lines = [
        [model, *(value_cell(cells.get((model, subset, name))) for name in columns)]
        for model in models
    ]
    name = "mean of benchmarks" if subset == "all" else subset
    title = f"{TITLE}: {name}, % right [{100 * config.confidence:g}% interval]"
    return Table(title, ["", *(column.replace("_", " ") for column in columns)], lines)


def notes(rows: Rows) -> list[str]:
    """The baselines and the ties of votes."""
    votes = [row | {"subset": "all"} for row in rows if row["metric"] == "accuracy"]
    return [*baselines_note(votes), *ties_note(votes)]


def plot(axes: "Axes", rows: Rows) -> None:
    """The curve over benchmarks, or of the only one; without samples, accuracy on votes."""
    from musiccli.bench.report import plots

    curve = [row for row in rows if row["metric"].startswith("best_of_")]
    shown = overall(curve) or curve
    names = distinct(row["metric"] for row in shown)
    if not shown:
        shown = [row | {"metric": "votes"} for row in rows if row["metric"] == "accuracy"]
        names = ["votes"]
    shown = [row | {"subset": row["metric"]} for row in shown]
    plots.draw_best_baselines(axes, shown, names)
    models = plots.models_of(shown)
    for number, model in enumerate(models):
        of_model = [row for row in shown if row["model"] == model]
        width = min(0.14, 0.7 / len(models))
        places = plots.x_places(of_model, names, number, len(models), width)
        plots.draw_points(axes, places, of_model, number, model)
    axes.set_xticks(range(len(names)), [name.removeprefix("best_of_") for name in names])
    axes.set(xlim=plots.x_limits(names), ylim=(0, 1.02), title=TITLE, ylabel="right")
    if curve:
        axes.set_xlabel("samples that the best is chosen from")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="PPE: agreement with people's votes and with the leaderboard that they make, and how "
    "often the best of K graded samples is right.",
    example="""music sample ppe-human --emit comparisons | music score --model rm | music bench ppe
music sample ppe-math --emit conversations | music score --model rm | \
music bench ppe""",
    parse=check_ppe_record,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("models", "bootstrap", "seed"),
)
