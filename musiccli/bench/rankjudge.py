"""RankJudge: two whole conversations, one of which has a flaw in one round.

Rewards: how often the conversation without the flaw scores higher, by domain, by kind of flaw and
by how many rounds follow the flawed one. From `--per-turn` rewards: how often the reward falls at
the flawed round, and how often elsewhere. This is a measure of our own, not RankJudge's.

Judges: a judge is right where its verdict is and, as far as it names them, the flawed round and the
kind of flaw are, too. Ratings are Bradley-Terry's over judges and pairs (stats/bradley_terry.py).
The judgments are votes of music judge, or rows of RankJudge's published matches. A vote names a
`round`, counted from 1, and a `flaw` where the prompt asks for them. A judge that read both orders
must be right in both; that rule is ours, as RankJudge asks in one order.

Source: run_match in code/matches.py and code/metrics.py of github.com/layer6ai-labs/RankJudge; Tang
et al. 2026, arXiv 2605.21748.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.notes import baselines_note, overall, ties_note
from musiccli.bench.report.tables import Table, accuracy_table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import is_baseline
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.bradley_terry import rate_judges
from musiccli.bench.stats.comparisons import compare_models
from musiccli.bench.stats.intervals import proportion_interval
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    accuracy_record,
    check_scored_pair,
    cluster_number,
    is_number,
    metric_record,
    prompt_cluster,
)
from musiccli.bench.stats.vote_scores import better_side
from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import count_turns
from musiccli.core.records import Record, lookup, parse_comparison, side_names
from musiccli.core.run_stats import RunStats
from musiccli.core.votes import parse_votes

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "rankjudge", "RankJudge"
FIELDS = {"domain": "domain", "flaw": "assistant_behavior_type"}  # subset: metadata
JUDGE_METRICS = {
    "joint_accuracy": "all right",
    "verdict_accuracy": "verdict",
    "round_accuracy": "round",
    "flaw_accuracy": "flaw",
}
TURN_METRICS = {
    "falls_at_flaw": "falls at the flaw",
    "falls_elsewhere": "falls elsewhere",
    "fall_difference": "difference",
    "largest_fall_at_flaw": "largest fall is there",
}


def check_rankjudge_record(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a pair that was scored or judged, or a row of RankJudge's matches."""
    if _is_match(record):
        return _check_match(record)
    parse_votes(parse_comparison(record))
    if better_side(record) not in side_names(record):
        problem = "names no side; RankJudge says which conversation has no flaw"
        raise RecordError(problem, field="winner", record=record)
    for name in FIELDS.values():
        if not isinstance(lookup(record, name), str):
            problem = "is missing, as music sample writes it"
            raise RecordError(problem, field=f"metadata.{name}", record=record)
    turns, flawed_round = count_turns(record[_flawed_side(record)]), _flawed_round(record)
    if not isinstance(flawed_round, int) or not 1 <= flawed_round <= turns:
        problem = f"should be a whole number from 1 to {turns}, the rounds of the conversation"
        raise RecordError(problem, field="metadata.bad_round_index", record=record)
    for model, by_side in (record.get("turn_scores") or {}).items():
        numbers = by_side.get(_flawed_side(record)) if isinstance(by_side, dict) else None
        if (
            not isinstance(numbers, list)
            or len(numbers) != turns
            or not all(map(is_number, numbers))
        ):
            problem = f"should hold {turns} numbers for the conversation with the flaw"
            raise RecordError(problem, field=f"turn_scores.{model}", record=record)
    if record.get("votes") and not record.get("scores"):
        return record
    return check_scored_pair(record, config.models)


def _is_match(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("judge"), dict) and isinstance(record.get("model"), dict)


def _check_match(record: Record) -> Record:
    name, answers = record["model"].get("name"), record["judge"]
    if not isinstance(record.get("id"), str | int) or not isinstance(name, str):
        raise RecordError("should have an id and a model.name", field="id", record=record)
    for field in ("correct_verdict", "correct_bad_round", "correct_behavior_type"):
        if not isinstance(answers.get(field), bool | None):
            raise RecordError(
                "should be true, false or null", field=f"judge.{field}", record=record
            )
    return record


def _flawed_side(record: Record) -> str:
    first, second = side_names(record)
    return second if better_side(record) == first else first


def _flawed_round(record: Record) -> Any:
    """The number of the round with the flaw, counted from 1."""
    return lookup(record, "bad_round_index")


@dataclass(frozen=True)
class Judgment:
    """What one judge got right about one pair; None stands for what it did not say."""

    pair: str | int
    cluster: int
    groups: Mapping[str, str]
    verdict: bool
    round: bool | None
    flaw: bool | None

    @property
    def all_right(self) -> bool:
        """Whether everything that the judge said is right."""
        return self.verdict and self.round is not False and self.flaw is not False


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Accuracies of rewards, where rewards fall, accuracies of judges, and their ratings."""
    stats, worst = stats or RunStats(), worst or WorstRecords(config.models)
    pairs, falls = ScoredPairs(config.models), Falls()
    judgments: dict[str, dict[str | int, Judgment]] = {}  # by judge, by pair
    scored_ids: set[str | int] = set()
    for record in records:
        with stats.rejects.guard(record):
            for judge, judgment in _judgments(record, stats):
                if judgment.pair in judgments.setdefault(judge, {}):
                    problem = f"{judge} has judged this pair before"
                    raise RecordError(problem, field="id", record=record)
                judgments[judge][judgment.pair] = judgment
            if _is_match(record):
                continue
            label = better_side(record)
            worst.add_verdicts(record, label)
            if not record.get("scores"):
                continue
            if record["id"] in scored_ids:
                problem = (
                    f"{shortened(record['id'])} names an earlier record, too; ids must be unique"
                )
                raise RecordError(problem, field="id", record=record)
            scored_ids.add(record["id"])
            worst.add_scored_pair(record, label)
            pairs.add(record, side_names(record).index(label), _groups(record))
            falls.add(record, config.models, stats)
    yield from _accuracy_records(pairs, config)
    yield from falls.records(config)
    for judge, by_pair in judgments.items():
        yield from _judge_records(judge, list(by_pair.values()), config)
    yield from _rating_records(judgments, config)


def _groups(record: Record) -> dict[str, str | int]:
    rounds_after = count_turns(record[_flawed_side(record)]) - _flawed_round(record)
    groups: dict[str, str | int] = {name: lookup(record, field) for name, field in FIELDS.items()}
    return groups | {"rounds_after": rounds_after}


def _accuracy_records(pairs: ScoredPairs, config: BenchConfig) -> Iterator[MetricRecord]:
    subsets: list[tuple[str, Array | None]] = [("all", None)]
    for field in (*FIELDS, "rounds_after"):
        subsets += [(f"{field}={value}", mask) for value, mask in pairs.groups(field)]
    for subset, mask in subsets:
        for model in pairs.models:
            if len(outcomes := pairs.outcomes(model, mask)):
                yield accuracy_record(NAME, subset, outcomes, config.confidence)
    yield from compare_models(NAME, pairs, "all", None, config)


class Falls:
    """Where the reward falls from one round to the next, in conversations with a flaw.

    Columns of `_columns`: whether it falls at the flawed round; the share of the other rounds where
    it falls; whether there are other rounds; whether no other round has so large a fall.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[tuple[float, float, float, float]]] = {}  # by model
        self._clusters: dict[str, list[int]] = {}

    def add(self, record: Record, models: Sequence[str], stats: RunStats) -> None:
        """Add the flawed conversation of a pair; one whose first round is flawed says nothing."""
        turn_scores = record.get("turn_scores") or {}
        flawed = _flawed_round(record)
        if turn_scores and flawed == 1:
            stats.count("flaw_in_the_first_round", record=record)
            return
        for model in models or turn_scores:
            if model not in turn_scores:
                continue
            scores = turn_scores[model][_flawed_side(record)]
            changes = [after - before for before, after in pairwise(scores)]
            at_flaw = changes.pop(flawed - 2)
            elsewhere = sum(change < 0 for change in changes) / len(changes) if changes else 0.0
            is_largest = bool(changes) and at_flaw < min(0.0, *changes)
            row = float(at_flaw < 0), elsewhere, float(bool(changes)), float(is_largest)
            self._columns.setdefault(model, []).append(row)
            self._clusters.setdefault(model, []).append(prompt_cluster(record))

    def records(self, config: BenchConfig) -> Iterator[MetricRecord]:
        """For each model the shares of TURN_METRICS; all but the first need other rounds."""
        import numpy as np

        for model, rows in self._columns.items():
            columns, clusters = np.array(rows), np.array(self._clusters[model])
            has_others = columns[:, 2] > 0
            shares = {"falls_at_flaw": (columns[:, 0], clusters)}
            if has_others.any():
                columns, clusters = columns[has_others], clusters[has_others]
                shares["falls_elsewhere"] = columns[:, 1], clusters
                shares["largest_fall_at_flaw"] = columns[:, 3], clusters
            for metric, (values, some) in shares.items():
                interval = proportion_interval(values, some, config.confidence)
                value = float(values.mean())
                yield metric_record(NAME, model, "all", metric, value, interval, len(values))
            if has_others.any():
                difference = columns[:, 0] - columns[:, 1]
                sums = cluster_sums([difference, difference * 0 + 1], clusters)
                interval_or_none = bootstrap_interval(
                    sums, lambda sums: sums[:, 0] / sums[:, 1], config
                )
                value, count = float(difference.mean()), len(difference)
                yield metric_record(
                    NAME, model, "all", "fall_difference", value, interval_or_none, count
                )


def _judgments(record: Record, stats: RunStats) -> Iterator[tuple[str, Judgment]]:
    """Each judge and what it got right; a judge that cannot be read is left out and counted."""
    if _is_match(record):
        answers = record["judge"]
        if answers.get("correct_verdict") is None:
            stats.count("left_out", "unreadable", record=record)
            return
        groups = {
            "domain": record.get("domain"),
            "flaw": lookup(record, "pair.assistant_behavior_type"),
        }
        yield (
            record["model"]["name"],
            Judgment(
                record["id"],
                cluster_number(record["id"]),
                {name: value for name, value in groups.items() if isinstance(value, str)},
                answers["correct_verdict"],
                answers.get("correct_bad_round"),
                answers.get("correct_behavior_type"),
            ),
        )
        return
    votes_by_judge: dict[str, list[Mapping[str, Any]]] = {}
    for vote in record.get("votes") or ():
        votes_by_judge.setdefault(vote["judge"], []).append(vote)
    for judge, votes in votes_by_judge.items():
        if any(vote["winner"] is None for vote in votes):
            stats.count("left_out", "unreadable", record=record)
            continue
        yield (
            judge,
            Judgment(
                record["id"],
                prompt_cluster(record),
                {name: lookup(record, field) for name, field in FIELDS.items()},
                all(vote["winner"] == better_side(record) for vote in votes),
                _all_equal([vote.get("round") for vote in votes], _flawed_round(record)),
                _all_equal([vote.get("flaw") for vote in votes], lookup(record, FIELDS["flaw"])),
            ),
        )


def _all_equal(answers: Sequence[object], truth: object) -> bool | None:
    """Whether all answers are right; None where there is none."""
    named = [answer for answer in answers if answer is not None]
    return all(answer == truth for answer in named) if named else None


def _judge_records(
    judge: str, judgments: Sequence[Judgment], config: BenchConfig
) -> Iterator[MetricRecord]:
    """The shares of JUDGE_METRICS of all pairs, and the joint one by domain and flaw."""
    subsets: dict[str, list[Judgment]] = {"all": list(judgments)}
    for field in FIELDS:
        values = sorted({some.groups[field] for some in judgments if field in some.groups})
        for value in values:
            subsets[f"{field}={value}"] = [
                some for some in judgments if some.groups.get(field) == value
            ]
    for subset, some in subsets.items():
        yield _share_record(judge, subset, "joint_accuracy", some, "all_right", config)
    for metric, name in (
        ("verdict_accuracy", "verdict"),
        ("round_accuracy", "round"),
        ("flaw_accuracy", "flaw"),
    ):
        answered = [judgment for judgment in judgments if getattr(judgment, name) is not None]
        if answered:
            yield _share_record(judge, "all", metric, answered, name, config)


def _share_record(
    judge: str,
    subset: str,
    metric: str,
    judgments: Sequence[Judgment],
    name: str,
    config: BenchConfig,
) -> MetricRecord:
    flags = [getattr(judgment, name) for judgment in judgments]
    clusters = [judgment.cluster for judgment in judgments]
    interval = proportion_interval(flags, clusters, config.confidence)
    return metric_record(NAME, judge, subset, metric, sum(flags) / len(flags), interval, len(flags))


def _rating_records(
    judgments: Mapping[str, Mapping[str | int, Judgment]], config: BenchConfig
) -> Iterator[MetricRecord]:
    """The rating of each judge, from the pairs that every judge read; none of a single judge."""
    import numpy as np

    judges = list(judgments)
    if len(judges) < 2:
        return
    shared = [
        pair for pair in judgments[judges[0]] if all(pair in judgments[judge] for judge in judges)
    ]
    if not shared:
        return
    right = np.array([[judgments[judge][pair].all_right for judge in judges] for pair in shared])
    clusters = [judgments[judges[0]][pair].cluster for pair in shared]
    values, intervals, count = rate_judges(right, clusters, config)
    for judge, value, interval in zip(judges, values, intervals, strict=True):
        yield metric_record(NAME, judge, "all", "bradley_terry", value, interval, count)


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """Accuracies of rewards, where they fall, and judges."""
    interval = f"% [{100 * config.confidence:g}% interval]"
    accuracies = [row for row in rows if row["metric"] == "accuracy"]
    subsets = distinct(row["subset"] for row in accuracies)
    lines = [(subset, subset.replace("=", " ").replace("_", " ")) for subset in subsets]
    tables = [accuracy_table(TITLE, rows, lines, config.confidence)] if accuracies else []
    title = f"{TITLE}: where the reward of the flawed conversation falls (our measure), {interval}"
    return [
        *tables,
        _shares_table(title, rows, TURN_METRICS),
        _shares_table(
            f"{TITLE}: judges, right in {interval}", rows, JUDGE_METRICS, with_rating=True
        ),
    ]


def _shares_table(
    title: str, rows: Rows, names: Mapping[str, str], with_rating: bool = False
) -> Table:
    """A line per model or judge, from the metric records of all pairs."""
    by_metric = {(row["model"], row["metric"]): row for row in overall(rows)}
    first = next(iter(names))
    lines = []
    for model in distinct(model for model, metric in by_metric if metric == first):
        cells = [value_cell(by_metric.get((model, name))) for name in names]
        if with_rating:
            cells.append(value_cell(by_metric.get((model, "bradley_terry")), 1, ".0f"))
        lines.append([model, f"{by_metric[model, first]['count']:,}", *cells])
    columns = ["", "pairs", *names.values(), *(["Bradley-Terry"] if with_rating else [])]
    return Table(title, columns, lines)


def notes(rows: Rows) -> list[str]:
    """The baselines and ties of all pairs, and why there are no ratings."""
    return [*baselines_note(rows), *ties_note(overall(rows)), *_ratings_note(rows)]


def _ratings_note(rows: Rows) -> list[str]:
    """A note where judges were compared, and none could be rated."""
    values = [row["value"] for row in rows if row["metric"] == "bradley_terry"]
    if not values or any(value is not None for value in values):
        return []
    return [
        "no Bradley-Terry ratings: some judges are right wherever they differ from the others, so "
        "no finite ratings fit"
    ]


def plot(axes: "Axes", rows: Rows) -> None:
    """Accuracy by how many rounds follow the flaw; without scores, what judges get right."""
    from musiccli.bench.report import plots

    start = "rounds_after="
    shown = [row for row in rows if row["metric"] == "accuracy" and row["subset"].startswith(start)]
    if shown:
        plots.draw_best_baselines(axes, shown, distinct(row["subset"] for row in shown))
    else:
        shown = [
            row | {"subset": JUDGE_METRICS[row["metric"]]}
            for row in overall(rows)
            if row["metric"] in JUDGE_METRICS
        ]
    subsets = distinct(row["subset"] for row in shown)
    models = [model for model in distinct(row["model"] for row in shown) if not is_baseline(model)]
    for number, model in enumerate(models):
        of_model = [row for row in shown if row["model"] == model]
        width = min(0.14, 0.7 / len(models))
        places = plots.x_places(of_model, subsets, number, len(models), width)
        plots.draw_points(axes, places, of_model, number, model)
    axes.set_xticks(range(len(subsets)), [subset.removeprefix(start) for subset in subsets])
    axes.set(xlim=plots.x_limits(subsets), ylim=(0, 1.02), title=TITLE, ylabel="right")
    if subsets and subsets[0].startswith(start):
        axes.set_xlabel("rounds after the flawed one")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="RankJudge: how often the conversation without the flaw scores higher, whether the "
    "reward falls at the flawed round, and what judges get right.",
    example="""music sample rankjudge --emit comparisons | music score --model rm --per-turn | \
music bench rankjudge
music sample rankjudge --emit comparisons | music judge --judge MODEL --prompts rankjudge | \
music bench rankjudge""",
    parse=check_rankjudge_record,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("models", "bootstrap", "seed"),
    unique_ids=False,
)
