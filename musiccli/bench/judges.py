"""How far LLM judges can be trusted: what sways them, and whom they agree with.

It reads what music judge wrote, one file or several. Votes on the same pair from several files are
those of one panel. A verdict is a judge's two votes taken together (votes.judge_outcome). Where
verdicts are compared, an inconsistent one counts as a tie, as it does in `winner`, and unreadable
ones are left out.

The categories of a kappa are the side that is listed first, the other side, and a tie. A preference
always lists its better side first, so there a coin decides (baselines.first_listed). Otherwise two
judges who are both always right would agree no more than by chance.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, FieldCheck, Rows, option
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, distinct, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.baselines import first_listed
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.intervals import proportion_interval, wilson_interval
from musiccli.bench.stats.kappa import cohen_kappa, fleiss_columns, fleiss_kappa
from musiccli.bench.stats.outcomes import MetricRecord, metric_record, prompt_cluster
from musiccli.core import votes
from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import count_characters, same_text
from musiccli.core.records import (
    Record,
    content_id,
    identity_key,
    lookup,
    parse_comparison,
    record_kind,
    side_names,
)
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "judges", "Judges"
PANEL, LABELS = "panel", "labels"  # names in the place of a judge's
# Verdicts and labels of a pair; the sides are those that are listed first and second.
FIRST, SECOND, TIE, INCONSISTENT, UNREADABLE, ABSENT = range(6)
PLOTTED_METRICS = {
    "first_shown_wins": "first shown\nwins",
    "longer_wins": "longer side\nwins",
    "flip_rate": "order\nflips",
    "ties": "ties",
    "unreadable": "unreadable",
    "agreement_decided": "agrees with\nlabels",
}


@dataclass(frozen=True)
class JudgesConfig(BenchConfig):
    """The common settings, and `human_field`: the field that holds a person's verdict."""

    human_field: str | None = option(
        None,
        metavar="FIELD",
        help="The field (or metadata field) with a person's verdict: a side's name, tie or null. "
        "Default: the winner that a record had when judge read it, else the chosen side.",
    )


def check_judged_pair(record: Record, config: JudgesConfig = JudgesConfig()) -> Record:
    """Check a comparison or preference that has votes, and its label if there is one."""
    parse_comparison(record)
    names = side_names(record)
    if not same_text(*(record[name] for name in names)) and not record.get("votes"):
        raise RecordError("is missing; music judge adds it", field="votes", record=record)
    votes.parse_votes(record)
    for index, vote in enumerate(record.get("votes") or ()):
        if vote["judge"] in (PANEL, LABELS):
            problem = f"is {vote['judge']}, which stands for something else here; rename the judge"
            raise RecordError(problem, field=f"votes[{index}].judge", record=record)
        if vote.get("order") not in ("ab", "ba"):
            problem = f"is {shortened(vote.get('order'))}; it should be ab or ba"
            raise RecordError(problem, field=f"votes[{index}].order", record=record)
    label = human_label(record, config)
    if label not in (*names, "tie", None):
        problem = f"is {shortened(label)}; it should be one of {', '.join(names)}, tie, null"
        field = config.human_field or votes.GIVEN_WINNER
        raise RecordError(problem, field=field, record=record)
    return record


def human_label(record: Mapping[str, Any], config: JudgesConfig) -> str | None:
    """The label of a pair: a side's name, "tie", or None where there is none.

    It is a person's verdict in `human_field`. Without that setting it is the winner that the record
    had before it was judged, or else the chosen side.
    """
    default = "chosen" if record_kind(record) == "preference" else None
    label: str | None = (
        lookup(record, config.human_field)
        if config.human_field
        else record.get(votes.GIVEN_WINNER, default)
    )
    return label


def metrics(
    records: Iterable[Record],
    config: JudgesConfig = JudgesConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
) -> Iterator[MetricRecord]:
    """Of each judge, of the panel's majority, of every two judges, and of all judges together.

    Intervals take pairs of one prompt as dependent. A record that holds a second vote of one judge,
    or another pair under a known id, is bad and goes to `stats.rejects`.
    """
    stats, worst = stats or RunStats(), worst or WorstRecords()
    verdicts = Verdicts(config)
    fields = FieldCheck("human_field", [config.human_field] if config.human_field else [])
    for record in records:
        fields.add(record)
        if not record.get("votes"):
            stats.count("left_out", "same_text", record=record)
            continue
        with stats.rejects.guard(record):
            verdicts.add(record)
            worst.add_verdicts(record, human_label(record, config))
    fields.check()
    judges = verdicts.judges
    for judge in judges:
        yield from _order_records(judge, verdicts)
    for judge in [*judges, *([PANEL] if len(judges) > 1 else [])]:
        yield from _verdict_records(judge, verdicts)
        yield from _label_records(judge, verdicts)
    for first, second in combinations(judges, 2):
        yield from _agreement_records(first, second, verdicts)
    if len(judges) > 2:
        yield from _panel_records(verdicts)


class _PairFlags:
    """Pairs, by their row, and a flag of each; a pair may occur more than once."""

    def __init__(self) -> None:
        self.rows, self.flags = array("q"), array("b")

    def add(self, row: int, flag: bool) -> None:
        self.rows.append(row)
        self.flags.append(flag)


class Verdicts:
    """Columns with one entry per pair: its prompt, its label, its longer side, and each verdict."""

    def __init__(self, config: JudgesConfig):
        self.config = config
        self._pairs: dict[object, tuple[int, str]] = {}  # by identity: row, and the text's id
        self._prompts, self._labels, self._longer = array("q"), array("b"), array("b")
        self._verdicts: dict[str, array[int]] = {}  # by judge
        self._first_shown_wins: dict[str, _PairFlags] = {}  # by judge: of votes for a side
        self._flips: dict[str, _PairFlags] = {}  # by judge: of pairs that it read in both orders

    @property
    def judges(self) -> list[str]:
        """The judges, in the order in which they were met."""
        return list(self._verdicts)

    def add(self, record: Record) -> None:
        """Add the votes on one pair, which may be known.

        Raises:
            RecordError: the id is that of another pair, or a judge has voted before. Then nothing
                is added.
        """
        identity = identity_key(record)
        text = content_id(*(record[name] for name in side_names(record)))
        row, known_text = self._pairs.get(identity, (len(self._prompts), text))
        if known_text != text:
            problem = "this id stood with another pair before"
            raise RecordError(problem, field="id", record=record)
        by_judge: dict[str, list[Mapping[str, Any]]] = {}
        for vote in record["votes"]:
            by_judge.setdefault(vote["judge"], []).append(vote)
        for judge, votes_of_judge in by_judge.items():
            orders = {vote["order"] for vote in votes_of_judge}
            if self._verdict(judge, row) != ABSENT or len(orders) < len(votes_of_judge):
                problem = f"{judge} has voted on this pair before"
                raise RecordError(problem, field="votes", record=record)
        if identity not in self._pairs:
            self._pairs[identity] = row, text
            self._add_pair(record)
        for judge, votes_of_judge in by_judge.items():
            self._add_votes(judge, row, record, votes_of_judge)

    def column(self, judge: str) -> "Array":
        """The verdicts of a judge or of the PANEL, or the LABELS, (pairs,)."""
        import numpy as np

        if judge == LABELS:
            return np.asarray(self._labels)
        if judge == PANEL:
            return self._majority()
        column = np.full(len(self._prompts), ABSENT)
        column[: len(self._verdicts[judge])] = self._verdicts[judge]
        return column

    @property
    def prompts(self) -> "Array":
        """The cluster of each pair."""
        import numpy as np

        return np.asarray(self._prompts)

    @property
    def longer(self) -> "Array":
        """The longer side of each pair, FIRST or SECOND, or TIE."""
        import numpy as np

        return np.asarray(self._longer)

    def first_shown_wins(self, judge: str) -> "tuple[Array, Array]":
        """Of each vote for a side: whether it is the side shown first, and the prompt."""
        return self._with_prompts(self._first_shown_wins[judge])

    def flips(self, judge: str) -> "tuple[Array, Array]":
        """Of each pair read in both orders: whether the two votes differ, and the prompt."""
        return self._with_prompts(self._flips[judge])

    def _with_prompts(self, pairs: _PairFlags) -> "tuple[Array, Array]":
        import numpy as np

        return np.asarray(pairs.flags), self.prompts[np.asarray(pairs.rows)]

    def _verdict(self, judge: str, row: int) -> int:
        column = self._verdicts.get(judge, ())
        return column[row] if row < len(column) else ABSENT

    def _add_pair(self, record: Record) -> None:
        first, second = _listed_sides(record)
        difference = count_characters(record[first]) - count_characters(record[second])
        label = human_label(record, self.config)
        self._prompts.append(prompt_cluster(record))
        self._labels.append(ABSENT if label is None else _code(label, record))
        self._longer.append(FIRST if difference > 0 else SECOND if difference else TIE)

    def _add_votes(
        self, judge: str, row: int, record: Record, votes_of_judge: Sequence[Mapping[str, Any]]
    ) -> None:
        column = self._verdicts.setdefault(judge, array("b"))
        column.extend([ABSENT] * (row + 1 - len(column)))
        column[row] = _code(votes.judge_outcome(votes_of_judge), record)
        first_shown_wins = self._first_shown_wins.setdefault(judge, _PairFlags())
        flips = self._flips.setdefault(judge, _PairFlags())
        names = side_names(record)
        for vote in votes_of_judge:
            if vote["winner"] in names:
                shown_first = names[1 if vote["order"] == "ba" else 0]
                first_shown_wins.add(row, vote["winner"] == shown_first)
        winners = [vote["winner"] for vote in votes_of_judge]
        if len(winners) == 2 and None not in winners:
            flips.add(row, winners[0] != winners[1])

    def _majority(self) -> "Array":
        """The panel's verdicts, computed once for each combination of verdicts that occurs."""
        import numpy as np

        outcomes = ("first", "second", votes.TIE, votes.INCONSISTENT, votes.UNREADABLE)
        columns = np.stack([self.column(judge) for judge in self.judges], axis=1)
        combinations_, index = np.unique(columns, axis=0, return_inverse=True)
        verdicts = [
            votes.panel_verdict([outcomes[code] for code in combination if code != ABSENT])
            for combination in combinations_
        ]
        codes = np.asarray([outcomes.index(verdict) for verdict in verdicts])
        return codes[index.ravel()]


def _listed_sides(record: Record) -> tuple[str, str]:
    first, second = side_names(record)
    return (first, second) if first_listed(record) == first else (second, first)


def _code(outcome: str, record: Record) -> int:
    outcomes = (*_listed_sides(record), votes.TIE, votes.INCONSISTENT, votes.UNREADABLE)
    return outcomes.index(outcome)


def _order_records(judge: str, verdicts: Verdicts) -> Iterator[MetricRecord]:
    """What the order does to one judge.

    - `first_shown_wins`, of the votes for a side: 0.5 where there is no position bias.
    - `flip_rate`, of the pairs read in both orders: how often the verdict changes when the order
      does, also from or to a tie.
    """
    wins, prompts = verdicts.first_shown_wins(judge)
    config = verdicts.config
    if len(wins):
        columns = [wins, wins * 0 + 1]
        record = _sums_record("first_shown_wins", judge, columns, prompts, _ratio, config)
        if record["low"] is None:  # nothing varies: all votes are such, or one of each two
            count = len(set(prompts.tolist()))
            interval = wilson_interval(record["value"], count, config.confidence)
            record["low"], record["high"] = interval
        yield record
    else:
        yield _share_record("first_shown_wins", judge, wins, prompts, config)
    yield _share_record("flip_rate", judge, *verdicts.flips(judge), config)


def _verdict_records(judge: str, verdicts: Verdicts) -> Iterator[MetricRecord]:
    """How often there was no winner, and how often the longer side won where one did."""
    column, prompts, config = verdicts.column(judge), verdicts.prompts, verdicts.config
    present = column != ABSENT
    for name, code in (("ties", TIE), ("inconsistent", INCONSISTENT), ("unreadable", UNREADABLE)):
        yield _share_record(name, judge, column[present] == code, prompts[present], config)
    decided = (column <= SECOND) & (verdicts.longer != TIE)
    longer_wins = (column == verdicts.longer)[decided]
    yield _share_record("longer_wins", judge, longer_wins, prompts[decided], config)


def _label_records(judge: str, verdicts: Verdicts) -> Iterator[MetricRecord]:
    """Agreement with the labels, where there are any.

    - `agreement` on all pairs that were read; a tie agrees with a tie only.
    - `agreement_decided` where both judge and label name a side (MT-Bench's two setups, arXiv
      2306.05685).
    - `kappa`, on the same pairs as `agreement`.
    - `longer_excess`: how much more often the longer side wins with the judge than with the labels,
      on the pairs where both name a side.
    """
    column, labels = _with_inconsistent_as_ties(verdicts.column(judge)), verdicts.column(LABELS)
    prompts, longer, config = verdicts.prompts, verdicts.longer, verdicts.config
    read = (column < UNREADABLE) & (labels != ABSENT)
    if not read.any():
        return
    agree = column == labels
    yield _share_record("agreement", judge, agree[read], prompts[read], config, against=LABELS)
    decided = read & (column <= SECOND) & (labels <= SECOND)
    yield _share_record(
        "agreement_decided", judge, agree[decided], prompts[decided], config, against=LABELS
    )
    yield _kappa_record(judge, LABELS, column[read], labels[read], prompts[read], config)
    uneven = decided & (longer != TIE)
    if uneven.any():
        excess = ((column == longer) * 1.0 - (labels == longer))[uneven]
        columns = [excess, excess * 0 + 1]
        yield _sums_record(
            "longer_excess", judge, columns, prompts[uneven], _ratio, config, against=LABELS
        )


def _agreement_records(first: str, second: str, verdicts: Verdicts) -> Iterator[MetricRecord]:
    """Agreement and Cohen's kappa of two judges, on the pairs that both read."""
    first_column = _with_inconsistent_as_ties(verdicts.column(first))
    second_column = _with_inconsistent_as_ties(verdicts.column(second))
    read = (first_column < UNREADABLE) & (second_column < UNREADABLE)
    if not read.any():
        return
    prompts, config = verdicts.prompts[read], verdicts.config
    agree = (first_column == second_column)[read]
    yield _share_record("agreement", first, agree, prompts, config, against=second)
    yield _kappa_record(first, second, first_column[read], second_column[read], prompts, config)


def _panel_records(verdicts: Verdicts) -> Iterator[MetricRecord]:
    """Fleiss' kappa of all judges, on the pairs that all of them read."""
    import numpy as np

    columns = [_with_inconsistent_as_ties(verdicts.column(judge)) for judge in verdicts.judges]
    stacked = np.stack(columns, axis=1)
    read = (stacked < UNREADABLE).all(1)
    if not read.any():
        return
    counts = [(stacked[read] == code).sum(1) for code in (FIRST, SECOND, TIE)]
    yield _sums_record(
        "fleiss_kappa",
        PANEL,
        fleiss_columns(np.stack(counts, axis=1)),
        verdicts.prompts[read],
        fleiss_kappa,
        verdicts.config,
        judges=len(columns),
    )


def _with_inconsistent_as_ties(column: "Array") -> "Array":
    import numpy as np

    return np.where(column == INCONSISTENT, TIE, column)


def _share_record(
    metric: str,
    judge: str,
    values: "Array",
    prompts: "Array",
    config: BenchConfig,
    **extra: object,
) -> MetricRecord:
    """The metric record of the mean of zeros and ones."""
    if not len(values):
        return metric_record(NAME, judge, "all", metric, None, None, 0, **extra)
    interval = proportion_interval(values, prompts, config.confidence)
    value, count = float(values.mean()), len(values)
    return metric_record(NAME, judge, "all", metric, value, interval, count, **extra)


def _sums_record(
    metric: str,
    judge: str,
    columns: "Sequence[Array]",
    prompts: "Array",
    statistic: "Callable[[Array], Array]",
    config: BenchConfig,
    **extra: object,
) -> MetricRecord:
    """The metric record of a statistic of sums, (..., columns), of the columns."""
    rows, count = cluster_sums(columns, prompts), len(columns[0])
    value = float(statistic(rows.sum(0)))
    if value != value:  # nan
        return metric_record(NAME, judge, "all", metric, None, None, count, **extra)
    interval = bootstrap_interval(rows, statistic, config)
    return metric_record(NAME, judge, "all", metric, value, interval, count, **extra)


def _kappa_record(
    judge: str,
    against: str,
    first: "Array",
    second: "Array",
    prompts: "Array",
    config: BenchConfig,
) -> MetricRecord:
    """Cohen's kappa of two columns of verdicts."""
    codes = (FIRST, SECOND, TIE)
    cells = [
        (first == first_code) & (second == second_code)
        for first_code in codes
        for second_code in codes
    ]

    def kappa(sums: "Array") -> "Array":
        return cohen_kappa(sums.reshape(*sums.shape[:-1], 3, 3))

    return _sums_record("kappa", judge, cells, prompts, kappa, config, against=against)


def _ratio(sums: "Array") -> "Array":
    ratio: Array = sums[..., 0] / sums[..., 1]
    return ratio


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """What sways each judge, how often it names no winner, and its agreement with others."""
    by_metric = {(row["model"], row.get("against"), row["metric"]): row for row in rows}
    judges = distinct(row["model"] for row in rows if row["metric"] == "ties")
    interval = f"% [{100 * config.confidence:g}% interval]"

    def line(judge: str, names: Iterable[str]) -> list[str]:
        cells = [value_cell(by_metric.get((judge, None, name))) for name in names]
        return [judge, f"{by_metric[judge, None, 'ties']['count']:,}", *cells]

    swayed = {
        "first_shown_wins": "first shown wins",
        "flip_rate": "order flips",
        "longer_wins": "longer side wins",
    }
    undecided = ("ties", "inconsistent", "unreadable")
    return [
        Table(
            f"Judges: what sways them, {interval}",
            ["", "pairs", *swayed.values()],
            [line(judge, swayed) for judge in judges],
        ),
        Table(
            f"Judges: no winner, {interval}",
            ["", "pairs", *undecided],
            [line(judge, undecided) for judge in judges],
        ),
        _labels_table(f"Judges against labels, {interval}", by_metric, judges),
        _mutual_table(f"Judges against each other, {interval}", by_metric, rows),
    ]


ByMetric = Mapping[tuple[str, str | None, str], MetricRecord]  # (judge, against, metric)


def _agreement_cells(
    by_metric: ByMetric, judge: str, against: str, number_formats: Mapping[str, str]
) -> list[str]:
    """The count, then a cell per metric: kappas as they are, all others in percent."""
    count = by_metric[judge, against, next(iter(number_formats))]["count"]
    cells = [
        value_cell(
            by_metric.get((judge, against, metric)), 1 if metric == "kappa" else 100, number_format
        )
        for metric, number_format in number_formats.items()
    ]
    return [f"{count:,}", *cells]


def _labels_table(title: str, by_metric: ByMetric, judges: Iterable[str]) -> Table:
    columns = ["pairs", "same verdict", "where both decide", "kappa", "longer wins, judge - labels"]
    number_formats = {
        "agreement": ".1f",
        "agreement_decided": ".1f",
        "kappa": ".2f",
        "longer_excess": "+.1f",
    }
    lines = [
        [judge, *_agreement_cells(by_metric, judge, LABELS, number_formats)]
        for judge in judges
        if (judge, LABELS, "agreement") in by_metric
    ]
    return Table(title, ["", *columns], lines)


def _mutual_table(title: str, by_metric: ByMetric, rows: Rows) -> Table:
    number_formats = {"agreement": ".1f", "kappa": ".2f"}
    lines = [
        [
            f"{row['model']} and {row['against']}",
            *_agreement_cells(by_metric, row["model"], row["against"], number_formats),
        ]
        for row in rows
        if row["metric"] == "kappa" and row["against"] != LABELS
    ]
    lines += [
        [f"all {row['judges']}, Fleiss", f"{row['count']:,}", "", value_cell(row, 1, ".2f")]
        for row in rows
        if row["metric"] == "fleiss_kappa"
    ]
    return Table(title, ["", "pairs", "same verdict", "kappa"], lines)


def plot(axes: "Axes", rows: Rows) -> None:
    """What sways each judge and how often it agrees with the labels, judges beside each other."""
    from musiccli.bench.report import plots

    rows = [
        row | {"subset": row["metric"]}
        for row in rows
        if row["metric"] in PLOTTED_METRICS
        and row["value"] is not None
        and row.get("against", LABELS) == LABELS
    ]
    present = {row["subset"] for row in rows}
    names = [name for name in PLOTTED_METRICS if name in present]
    judges = distinct(row["model"] for row in rows)
    for number, judge in enumerate(judges):
        shown = [row for row in rows if row["model"] == judge]
        width = min(0.14, 0.7 / len(judges))
        places = plots.x_places(shown, names, number, len(judges), width)
        plots.draw_points(axes, places, shown, number, judge)
    plots.draw_half_line(axes, "even")
    axes.set_xticks(range(len(names)), [PLOTTED_METRICS[name] for name in names], fontsize=9)
    axes.set(xlim=plots.x_limits(names), ylim=(-0.02, 1.02), title=TITLE, ylabel="share")


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="How far judges can be trusted: what order and length do to them, agreement with "
    "labels and with each other.",
    example="""music judge pairs.jsonl --judge openai/gpt-4o --judge gemini/gemini-2.5-flash | \
music bench judges
music bench judges by-gpt.jsonl by-gemini.jsonl --human-field metadata.human""",
    parse=check_judged_pair,
    metrics=metrics,
    tables=tables,
    plot=plot,
    config=JudgesConfig,
    options=("bootstrap", "seed"),
    unique_ids=False,
)
