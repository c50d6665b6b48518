"""What the contrast of simulated pairs teaches: leaks, equal replies, lengths, and label noise.

Every contrasted reply of a rejected branch is compared with the reply in the same place of the
chosen branch. Turn 1 is the turn at which the branches part. There both replies answer the same
user message; later replies answer different ones. A judge, if there is one, knows nothing of the
contrast. At the fork it sees the whole conversation and the two replies. Later it sees each
branch's last user message and the reply to it.
"""

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from musiccli.bench.benchmark import Benchmark, Rows
from musiccli.bench.config import BenchConfig
from musiccli.bench.report.tables import Table, baseline_label, distinct, percent, value_cell
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.bench.stats.intervals import (
    median_interval,
    proportion_interval,
)
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    ScoredPairs,
    accuracy_record,
    metric_record,
    prompt_cluster,
)
from musiccli.core import text_checks, votes
from musiccli.core.errors import RecordError
from musiccli.core.messages import Message, first_divergence, last_user_message
from musiccli.core.records import (
    BASELINE_PREFIX,
    Record,
    parse_branch,
    parse_preference,
    record_kind,
)
from musiccli.core.run_stats import RunStats

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    Array = np.ndarray[Any, np.dtype[Any]]

NAME, TITLE = "audit", "Contrast audit"
CONTRAST = "contrast"  # in the place of a model's name
CONVERSATIONS = "conversations"  # the subset of whole conversations; the others are of turns
SIDES = ("chosen", "rejected")
TEXT_CHECKS = (  # what is found out about a contrasted turn without a judge
    "leak",
    "names_instruction",
    "quotes_instruction",
    "refusal",
    "not_rewritten",
    "same",
    "identical",
    "rejected_shorter",
    "chosen_truncated",
    "rejected_truncated",
)
FLAWS = ("leak", "refusal", "not_rewritten", "same")  # what makes a contrasted reply useless
LENGTH_BASELINES = ("longest", "shortest", "longest-last-reply")

# Adds votes to preferences.
JudgePairs = Callable[[Iterable[Record]], Generator[Mapping[str, Any], None, None]]


def check_contrast(record: Record, config: BenchConfig = BenchConfig()) -> Record:
    """Check a branch, or a preference made of two.

    Its `contrast` says which replies answer an altered instruction. A chosen branch needs none.
    """
    is_branch = record_kind(record) == "conversation"
    if is_branch:
        messages, contrast = parse_branch(record)["messages"], record.get("contrast", [])
    else:
        messages, contrast = parse_preference(record)["rejected"], record.get("contrast")
    if contrast is None:
        raise RecordError("is missing; music simulate writes it", field="contrast", record=record)
    if not isinstance(contrast, list):
        raise RecordError("should be a list", field="contrast", record=record)
    for number, entry in enumerate(contrast):
        _check_contrasted_reply(record, messages, entry, f"contrast[{number}]")
    truncated = {} if is_branch else record.get("truncated") or {}  # parse_branch checks its own
    if not isinstance(truncated, dict) or not all(
        isinstance(indices, list) for indices in truncated.values()
    ):
        problem = "should name, for each side, the messages that were cut"
        raise RecordError(problem, field="truncated", record=record)
    return record


def _check_contrasted_reply(
    record: Record, messages: Sequence[Message], entry: object, field: str
) -> None:
    fields = entry if isinstance(entry, dict) else {}
    index = fields.get("message")
    if not isinstance(index, int) or not isinstance(fields.get("instruction"), str):
        problem = "should hold a message's index and an instruction"
        raise RecordError(problem, field=field, record=record)
    if not 0 < index < len(messages) or messages[index]["role"] != "assistant":
        problem = "is not the index of an assistant's message"
        raise RecordError(problem, field=f"{field}.message", record=record)


class ContrastedTurns:
    """Columns with one entry per contrasted turn, and the outcomes of judges for each turn."""

    def __init__(self) -> None:
        self.turns, self.prompts = array("i"), array("q")
        self.checks = {name: array("b") for name in TEXT_CHECKS}
        self.lengths = {side: array("l") for side in SIDES}  # characters
        self.replies, self.conversations = ScoredPairs(), ScoredPairs()  # for baselines
        self.outcomes: dict[str, dict[int, str]] = {}  # by judge, by the turn's row

    def read(self, pairs: Iterable[Record], worst: WorstRecords) -> Iterator[Record]:
        """Add each contrasted turn of preferences; yield it as a preference for a judge.

        Its `row` is the turn's row, and its `flaws` are those of FLAWS that it has.
        """
        for pair in pairs:
            fork = first_divergence(pair["chosen"], pair["rejected"])
            self.conversations.add({**pair, "scores": {}}, 0, {})
            for reply in pair["contrast"]:
                if reply["message"] < len(pair["chosen"]):
                    turn = self._add(pair, reply["message"], reply["instruction"], fork)
                    flaws = turn["flaws"]
                    problem = ", ".join(flaws).replace("_", " ")
                    worst.add(CONTRAST, len(flaws), problem, turn)
                    yield turn

    def add_votes(self, turn: Mapping[str, Any], judges: Iterable[str]) -> None:
        """Keep the outcome of each judge that voted on a turn.

        Without votes the two sides are equal and nobody was asked: a tie of all judges.
        """
        ties = dict.fromkeys(judges, votes.TIE)
        for judge, outcome in (votes.outcomes_by_judge(turn["votes"]) or ties).items():
            self.outcomes.setdefault(judge, {})[turn["row"]] = outcome

    def _add(self, pair: Record, index: int, instruction: str, fork: int) -> Record:
        row, rejected = len(self.turns), pair["rejected"]
        checks = _check_turn(pair, index, instruction)
        for name in TEXT_CHECKS:
            self.checks[name].append(checks[name])
        for side in SIDES:
            self.lengths[side].append(len(pair[side][index]["content"]))
        prompt = prompt_cluster(pair)
        replies = {side: pair[side][index : index + 1] for side in SIDES}
        self.replies.add({"id": pair["id"], **replies, "scores": {}}, 0, {}, prompt)
        users_since_fork = _user_messages(rejected, index) - _user_messages(rejected, fork + 1)
        self.turns.append(max(1, users_since_fork + 1))
        self.prompts.append(prompt)
        return Record(
            {
                "id": f"{pair['id']}/{index}",
                **{name: pair[name] for name in ("sample", "metadata", "tools") if name in pair},
                **{side: _shown_messages(pair[side], index, fork) for side in SIDES},
                "flaws": [name for name in FLAWS if checks[name]],
                "row": row,
            },
            getattr(pair, "where", None),
        )


def _user_messages(conversation: Sequence[Message], end: int) -> int:
    """How many of the first `end` messages are the user's."""
    return sum(message["role"] == "user" for message in conversation[:end])


def _check_turn(pair: Record, index: int, instruction: str) -> dict[str, bool]:
    """Each of TEXT_CHECKS, of the reply at `index` that answers the altered instruction."""
    chosen, rejected = (pair[side][index]["content"] for side in SIDES)
    history = pair["rejected"][:index]
    user_message = history[last_user_message(history)]["content"]
    names_instruction = text_checks.names_an_instruction(rejected)
    quotes_instruction = text_checks.quotes(rejected, instruction)
    truncated = pair.get("truncated") or {}
    return {
        "leak": names_instruction or quotes_instruction,
        "names_instruction": names_instruction,
        "quotes_instruction": quotes_instruction,
        "refusal": text_checks.refuses(rejected),
        "not_rewritten": not text_checks.is_altered(instruction, user_message),
        "same": text_checks.alike(chosen, rejected),
        "identical": chosen == rejected,
        "rejected_shorter": len(rejected) < len(chosen),
        **{f"{side}_truncated": index in truncated.get(side, ()) for side in SIDES},
    }


def _shown_messages(conversation: Sequence[Message], index: int, fork: int) -> list[Message]:
    """What a judge sees of a turn.

    At the fork, that is all messages so far; later, those from the user's message to the reply.
    """
    start = 0 if index <= fork else last_user_message(conversation[:index])
    return list(conversation[start : index + 1])


def metrics(
    records: Iterable[Record],
    config: BenchConfig = BenchConfig(),
    stats: RunStats | None = None,
    worst: WorstRecords | None = None,
    judge_pairs: JudgePairs | None = None,
    judges: Sequence[str] = (),
) -> Iterator[MetricRecord]:
    """Of all contrasted turns, of each turn from the fork on, and of whole conversations.

    Of turns: the shares of TEXT_CHECKS; `length_ratio`, the median of rejected over chosen in
    characters, where the chosen reply has text; and the accuracy of the length baselines, which
    should be near one half.

    Of each judge: how often it prefers either side in both orders, sees no difference (`tie`,
    `inconsistent`) or cannot be read. `label_noise` is the share of labels that it would call
    wrong: those where it prefers the rejected side, and half of those where it sees no difference,
    since there a label is right as often as a coin. Intervals take turns of one prompt as
    dependent.

    Args:
        records: preferences with `contrast`.
        config: the confidence of the intervals.
        stats: not used: nothing is left out.
        worst: gets the turns with flaws, and those that judges call wrong.
        judge_pairs: adds votes to preferences; None where no judge is asked.
        judges: the names of the judges.
    """
    import numpy as np

    worst = worst or WorstRecords()
    contrasted = ContrastedTurns()
    preferences = contrasted.read(records, worst)
    if judge_pairs:
        with closing(judge_pairs(preferences)) as judged:
            for turn in judged:
                contrasted.add_votes(turn, judges)
                worst.add_verdicts(turn, "chosen")
    else:
        for _ in preferences:  # which adds them
            pass
    turns = np.asarray(contrasted.turns)
    subsets = [("all", turns > 0), *((f"turn={turn}", turns == turn) for turn in np.unique(turns))]
    for subset, mask in subsets:
        if mask.any():
            yield from _text_records(contrasted, subset, mask, config)
            yield from _baseline_records(contrasted.replies, subset, mask, config)
            for judge in contrasted.outcomes:
                yield from _judge_records(contrasted, judge, subset, mask, config)
    if len(contrasted.conversations):
        yield from _baseline_records(contrasted.conversations, CONVERSATIONS, None, config)


def _text_records(
    contrasted: ContrastedTurns, subset: str, mask: "Array", config: BenchConfig
) -> Iterator[MetricRecord]:
    import numpy as np

    prompts = np.asarray(contrasted.prompts)[mask]
    for name in TEXT_CHECKS:
        values = np.asarray(contrasted.checks[name])[mask]
        yield _share_record(CONTRAST, subset, name, values, prompts, config)
    chosen, rejected = (np.asarray(contrasted.lengths[side])[mask] for side in SIDES)
    has_text = chosen > 0  # a reply may be calls alone
    if not has_text.any():
        return
    ratios = rejected[has_text] / chosen[has_text]
    interval = median_interval(ratios, prompts[has_text], config.confidence)
    median, count = float(np.median(ratios)), len(ratios)
    yield metric_record(NAME, CONTRAST, subset, "length_ratio", median, interval, count)


def _baseline_records(
    pairs: ScoredPairs, subset: str, mask: "Array | None", config: BenchConfig
) -> Iterator[MetricRecord]:
    """How often the longer, and how often the shorter side is the chosen one; a tie is half."""
    for name in LENGTH_BASELINES:
        if subset == CONVERSATIONS or name != "longest-last-reply":
            outcomes = pairs.outcomes(BASELINE_PREFIX + name, mask)
            yield accuracy_record(NAME, subset, outcomes, config.confidence)


def _judge_records(
    contrasted: ContrastedTurns, judge: str, subset: str, mask: "Array", config: BenchConfig
) -> Iterator[MetricRecord]:
    import numpy as np

    by_row = contrasted.outcomes[judge]
    rows = [int(row) for row in np.flatnonzero(mask) if int(row) in by_row]
    if not rows:
        return
    outcomes = np.array([by_row[row] for row in rows])
    prompts = np.asarray(contrasted.prompts)[rows]
    is_read = outcomes != votes.UNREADABLE
    yield _share_record(judge, subset, "unreadable", ~is_read, prompts, config)
    if not is_read.any():
        return
    outcomes, prompts = outcomes[is_read], prompts[is_read]
    for name, outcome in (
        ("prefers_chosen", "chosen"),
        ("prefers_rejected", "rejected"),
        ("tie", votes.TIE),
        ("inconsistent", votes.INCONSISTENT),
    ):
        yield _share_record(judge, subset, name, outcomes == outcome, prompts, config)
    sees_no_difference = np.isin(outcomes, (votes.TIE, votes.INCONSISTENT))
    noise = (outcomes == "rejected") + 0.5 * sees_no_difference
    yield _share_record(judge, subset, "label_noise", noise, prompts, config)


def _share_record(
    model: str, subset: str, metric: str, values: "Array", prompts: "Array", config: BenchConfig
) -> MetricRecord:
    """The metric record of the mean of values from 0 to 1."""
    interval = proportion_interval(values, prompts, config.confidence)
    value, count = float(values.mean()), len(values)
    return metric_record(NAME, model, subset, metric, value, interval, count)


ByMetric = Mapping[tuple[str, str, str], MetricRecord]  # (model, subset, metric)


def tables(rows: Rows, config: BenchConfig) -> list[Table]:
    """Text checks, lengths, and the verdicts of each judge; a line per turn."""
    by_metric = {(row["model"], row["subset"], row["metric"]): row for row in rows}
    interval = f"% [{100 * config.confidence:g}% interval]"
    judges = distinct(row["model"] for row in rows if row["metric"] == "label_noise")
    return [
        _turns_table(
            f"Contrasted replies, {interval}",
            CONTRAST,
            {
                "leak": "leak",
                "refusal": "refuse",
                "not_rewritten": "not altered",
                "same": "as the chosen",
            },
            by_metric,
        ),
        _lengths_table(f"Lengths, {interval}", by_metric),
        *(
            _turns_table(
                f"{judge} in both orders, {interval}",
                judge,
                {
                    "prefers_chosen": "for chosen",
                    "prefers_rejected": "for rejected",
                    "tie": "tie",
                    "inconsistent": "inconsistent",
                    "label_noise": "label noise",
                },
                by_metric,
            )
            for judge in judges
        ),
    ]


def _turns_table(title: str, model: str, columns: Mapping[str, str], by_metric: ByMetric) -> Table:
    """A line per turn and a column per metric, {metric: label}."""
    counted = next(iter(columns))
    lines = []
    for subset in distinct(subset for _, subset, _ in by_metric):
        if row := by_metric.get((model, subset, counted)):
            cells = [_turn_cell(by_metric.get((model, subset, metric))) for metric in columns]
            lines.append([_turn_label(subset), f"{row['count']:,}", *cells])
    return Table(title, ["", "turns", *columns.values()], lines)


def _lengths_table(title: str, by_metric: ByMetric) -> Table:
    columns = {
        "length_ratio": "rejected / chosen",
        "rejected_shorter": "rejected shorter",
        "chosen_truncated": "chosen cut",
        "rejected_truncated": "rejected cut",
    }
    table = _turns_table(title, CONTRAST, columns, by_metric)
    subsets = [subset for model, subset, name in by_metric if (model, name) == (CONTRAST, "leak")]
    baseline = f"{BASELINE_PREFIX}longest"
    for line, subset in zip(table.cells, subsets, strict=True):
        line.append(_turn_cell(by_metric.get((baseline, subset, "accuracy"))))
    return table._replace(columns=[*table.columns, "longest is chosen"])


def _turn_label(subset: str) -> str:
    return "all" if subset == "all" else f"  turn {subset.removeprefix('turn=')}"


def _turn_cell(row: MetricRecord | None) -> str:
    if row and row["metric"] == "length_ratio":
        return value_cell(row, 1, ".2f")
    return value_cell(row)


def notes(rows: Rows) -> list[str]:
    """What length alone says of whole conversations, and that it must not."""
    whole = [row for row in rows if row["subset"] == CONVERSATIONS]
    if not whole:
        return []
    values = ", ".join(f"{baseline_label(row['model'])} {value_cell(row)}" for row in whole)
    sentences = [f"whole conversations, % right by length alone: {values}"]
    telling = [row for row in whole if row["low"] is not None and row["low"] > 0.5]
    if telling:
        best = max(telling, key=lambda row: row["value"])
        sentences.append(
            "length gives the label away: whoever always takes the "
            f"{baseline_label(best['model'])} is right on {percent(best)}%"
        )
    return sentences


def plot(axes: "Axes", rows: Rows) -> None:
    """Text checks and label noise over the turns from the fork on."""
    from musiccli.bench.report import plots

    lines = {"leak": "leak", "same": "as the chosen", "rejected_shorter": "rejected shorter"}
    shown_rows = []
    for row in rows:
        if row["subset"].startswith("turn="):
            if row["metric"] in lines:
                shown_rows.append(row | {"line": lines[row["metric"]]})
            elif row["metric"] == "label_noise":
                shown_rows.append(row | {"line": f"label noise by {row['model']}"})
    subsets = distinct(row["subset"] for row in shown_rows)
    labels = distinct(row["line"] for row in shown_rows)
    for number, label in enumerate(labels):
        shown = [row for row in shown_rows if row["line"] == label]
        places = plots.x_places(shown, subsets, number, len(labels), 0.08)
        color = plots.color_of(number)
        axes.plot(places, plots.values_of(shown), color=color, linewidth=1, alpha=0.5)
        plots.draw_points(axes, places, shown, number, label)
    plots.draw_half_line(axes, "even")
    ticks = [
        f"{subset.removeprefix('turn=')}\n{plots.largest_count(shown_rows, subset):,}"
        for subset in subsets
    ]
    axes.set_xticks(range(len(subsets)), ticks)
    axes.set(
        xlim=plots.x_limits(subsets),
        ylim=(-0.02, 1.02),
        title=TITLE,
        ylabel="share of the turns",
        xlabel="turn from the fork, contrasted replies",
    )


BENCHMARK = Benchmark(
    name=NAME,
    title=TITLE,
    summary="""What the contrast teaches, turn by turn: leaks, equal replies, lengths; with a \
judge, how noisy the labels are.

Reads branches, all of them, or the pairs that music pair kept.""",
    example="music simulate seeds.jsonl | music pair | "
    "music bench audit --judge gemini/gemini-2.5-flash --html audit.html",
    parse=check_contrast,
    metrics=metrics,
    tables=tables,
    notes=notes,
    plot=plot,
    options=("seed",),
    reads_branches=True,
    asks_judges=True,
)
