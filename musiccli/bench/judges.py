"""What judges are worth: position bias, flips, verbosity, agreement with each other and with labels.

Reads what `music judge` wrote, one file or several: votes on the same pair from several files are one panel's. A
verdict is what a judge said in both orders (votes.outcome). Where verdicts are compared, an inconsistent one counts as
a tie, as it does in `winner`, and unreadable ones are left out.

Categories of a kappa are the side that is listed first, the other one, and a tie. A preference lists its better side
first, always: as in baselines, a coin that follows from the id decides which of its sides stood first, for with
"chosen" and "rejected" as categories two judges who are both always right would agree no more than by chance.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from musiccli.bench.stats import intervals as statistics
from musiccli.bench.stats.baselines import first_listed
from musiccli.bench.stats.outcomes import metric, prompt
from musiccli.core import votes
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import (
    IDENTITY_FIELDS,
    Record,
    content_id,
    count_characters,
    lookup,
    parse_comparison,
    same_text,
    shortened,
    side_names,
)

if TYPE_CHECKING:
    import numpy as np

NAME = "judges"
PANEL, LABELS = "panel", "labels"
FIRST, SECOND, TIE, INCONSISTENT, UNREADABLE, ABSENT = range(
    6
)  # what is said of a pair; of its label, too


def judged(record: Record, human_field: str | None = None) -> Record:
    """A comparison or preference with the votes of its judges and, in `human_field`, what a person said of it."""
    parse_comparison(record)
    if not same_text(*(record[name] for name in side_names(record))) and not record.get("votes"):
        raise RecordError("is missing; music judge adds it", field="votes", record=record)
    votes.parse_votes(record)
    for index, vote in enumerate(record.get("votes") or ()):
        if vote["judge"] in (PANEL, LABELS):
            raise RecordError(
                f"is {vote['judge']}, which stands for something else here; rename the judge",
                field=f"votes[{index}].judge",
                record=record,
            )
        if vote.get("order") not in ("ab", "ba"):
            raise RecordError(
                f"is {shortened(vote.get('order'))}; it should be ab or ba",
                field=f"votes[{index}].order",
                record=record,
            )
    if label(record, human_field) not in (*side_names(record), "tie", None):
        names = ", ".join(side_names(record))
        raise RecordError(
            f"is {shortened(label(record, human_field))}; it should be one of {names}, tie, null",
            field=human_field or votes.GIVEN_WINNER,
            record=record,
        )
    return record


def label(record: Record, human_field: str | None = None) -> str | None:
    """What a person said of a pair: a side, "tie", or None where nobody is known to have said anything."""
    if human_field:
        return lookup(record, human_field)
    return record.get(votes.GIVEN_WINNER, "chosen" if "chosen" in record else None)


def judges(
    pairs: Iterable[Record],
    *,
    human_field: str | None = None,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    rejects: Rejects | None = None,
    counts: Counter | None = None,
) -> Iterator[dict]:
    """Metric records: of each judge, of every two judges, of all together, and of the panel's majority.

    A pair's label is what a person said in `human_field`; else the winner that the record had before it was judged;
    else a preference's chosen side. Intervals take pairs of one prompt as dependent. A record that adds a second vote
    of one judge, or other conversations under a known id, is bad, and for `rejects` to judge.
    """
    counts, rejects = Counter() if counts is None else counts, rejects or Rejects()
    ballot = Ballot(human_field)
    for record in pairs:
        if record.get("votes"):
            with rejects.guard(record):
                ballot.add(record)
        else:
            counts["left out (same text, nobody was asked)"] += 1
    bounds = Bounds(draws, confidence, seed)
    names = ballot.judges
    for name in names:
        yield from alone(name, ballot, bounds)
    for name in [*names, *([PANEL] if len(names) > 1 else [])]:
        yield from verdicts(name, ballot, bounds)
        yield from against_labels(name, ballot, bounds)
    for first, second in combinations(names, 2):
        yield from between(first, second, ballot, bounds)
    if len(names) > 2:
        yield from together(names, ballot, bounds)


class Bounds:
    """Intervals of one run: of shares, and of whatever follows from column sums by prompt."""

    def __init__(self, draws: int, confidence: float, seed: int):
        self.confidence = confidence
        self._bootstrap = partial(
            statistics.bootstrap, draws=draws, confidence=confidence, seed=seed
        )

    def share(
        self, name: str, model: str, values: "np.ndarray", prompts: "np.ndarray", **extra: object
    ) -> dict:
        """The metric record of a mean of zeros and ones."""
        if not len(values):
            return metric(NAME, model, "all", name, None, None, 0, **extra)
        interval = statistics.share_interval(values, prompts, self.confidence)
        return metric(NAME, model, "all", name, values.mean(), interval, len(values), **extra)

    def of_sums(
        self, name: str, model: str, columns: Sequence, prompts: "np.ndarray", statistic, **extra
    ) -> dict:
        """The metric record of a statistic of (..., columns) sums; its count is the number of values in a column."""
        rows = statistics.totals(columns, prompts)
        value = float(statistic(rows.sum(0)))
        value = None if value != value else value
        interval = self._bootstrap(rows, statistic) if value is not None else None
        return metric(NAME, model, "all", name, value, interval, len(columns[0]), **extra)


class Ballot:
    """Columns, one entry a pair: its prompt, its label, which side is longer, and what each judge said of it."""

    def __init__(self, human_field: str | None = None):
        self._human_field = human_field
        self._rows: dict[object, tuple[int, str]] = {}  # a pair's place, and what it says
        self._prompts, self._labels, self._longer = array("q"), array("b"), array("b")
        self._outcomes: dict[str, array] = {}
        self._shown: dict[
            str, tuple[array, array]
        ] = {}  # pair and whether the first shown won, of votes for a side
        self._flips: dict[
            str, tuple[array, array]
        ] = {}  # pair and whether the order decided, of pairs read twice

    @property
    def judges(self) -> list[str]:
        return list(self._outcomes)

    def add(self, record: Record) -> None:
        """Count one pair's votes, or more votes on a pair that was counted. Raises RecordError, and counts none."""
        key = tuple(record.get(name) for name in IDENTITY_FIELDS)
        text = content_id(*(record[name] for name in side_names(record)))
        row, known = self._rows.get(
            key, (len(self._prompts), text)
        )  # a new place, or that of the same pair elsewhere
        if known != text:
            raise RecordError("this id stood with another pair before", field="id", record=record)
        by_judge = {
            name: [vote for vote in record["votes"] if vote["judge"] == name]
            for name in dict.fromkeys(vote["judge"] for vote in record["votes"])
        }
        for judge, found in by_judge.items():
            column = self._outcomes.get(judge, ())
            if (row < len(column) and column[row] != ABSENT) or len(
                {vote["order"] for vote in found}
            ) < len(found):
                raise RecordError(
                    f"{judge} has voted on this pair before", field="votes", record=record
                )
        if key not in self._rows:
            self._rows[key] = row, text
            self._open(record)
        names = self._names(record)
        for judge, found in by_judge.items():
            column = self._outcomes.setdefault(judge, array("b"))
            column.extend([ABSENT] * (row + 1 - len(column)))
            column[row] = self._code(votes.judge_outcome(found), names)
            self._add_orders(judge, row, found, side_names(record))

    def column(self, judge: str) -> "np.ndarray":
        """What a judge, the panel or the labels say of each pair."""
        import numpy as np

        if judge == LABELS:
            return np.asarray(self._labels)
        if judge == PANEL:
            return self._majority()
        column = np.full(len(self._prompts), ABSENT)
        column[: len(self._outcomes[judge])] = self._outcomes[judge]
        return column

    @property
    def prompts(self) -> "np.ndarray":
        import numpy as np

        return np.asarray(self._prompts)

    @property
    def longer(self) -> "np.ndarray":
        """FIRST, SECOND, or TIE where both sides are of one length."""
        import numpy as np

        return np.asarray(self._longer)

    def shown(self, judge: str) -> tuple["np.ndarray", "np.ndarray"]:
        """Of each vote that named a side: whether it named the one shown first, and the prompt."""
        return self._by_prompt(*self._shown[judge])

    def flips(self, judge: str) -> tuple["np.ndarray", "np.ndarray"]:
        """Of each pair that the judge read in both orders: whether they made a difference, and the prompt."""
        return self._by_prompt(*self._flips[judge])

    def _by_prompt(self, rows: array, values: array) -> tuple["np.ndarray", "np.ndarray"]:
        import numpy as np

        return np.asarray(values), self.prompts[np.asarray(rows)]

    def _open(self, record: Record) -> None:
        """A row for a pair that has none yet."""
        first, second = self._names(record)
        difference = count_characters(record[first]) - count_characters(record[second])
        self._prompts.append(prompt(record))
        self._labels.append(self._label(record))
        self._longer.append(TIE if not difference else FIRST if difference > 0 else SECOND)

    def _label(self, record: Record) -> int:
        said = label(record, self._human_field)
        return ABSENT if said is None else self._code(said, self._names(record))

    def _majority(self) -> "np.ndarray":
        import numpy as np

        said = ("first", "second", votes.TIE, votes.INCONSISTENT, votes.UNREADABLE)
        columns = np.stack([self.column(judge) for judge in self.judges], axis=1)
        kinds, places = np.unique(columns, axis=0, return_inverse=True)
        of_kind = [
            said.index(votes.panel_verdict([said[one] for one in kind if one != ABSENT]))
            for kind in kinds
        ]
        return np.asarray(of_kind)[places.ravel()]

    def _add_orders(self, judge: str, row: int, found: list[dict], names: tuple[str, ...]) -> None:
        shown = self._shown.setdefault(judge, (array("q"), array("b")))
        flips = self._flips.setdefault(judge, (array("q"), array("b")))
        winners = [vote["winner"] for vote in found]
        for vote in found:
            if vote["winner"] in names:
                shown[0].append(row)
                shown[1].append(vote["winner"] == names[vote["order"] == "ba"])
        if len(winners) == 2 and None not in winners:
            flips[0].append(row)
            flips[1].append(winners[0] != winners[1])

    @staticmethod
    def _names(record: Record) -> tuple[str, str]:
        first, second = side_names(record)
        return (first, second) if first_listed(record) == first else (second, first)

    @staticmethod
    def _code(said: str, names: tuple[str, str]) -> int:
        return (*names, votes.TIE, votes.INCONSISTENT, votes.UNREADABLE).index(said)


def alone(judge: str, ballot: Ballot, bounds: Bounds) -> Iterator[dict]:
    """What the order does to one judge.

    `first_shown_wins`, of the votes that name a side, 0.5 where there is no position bias; and `flip_rate`, of the
    pairs read in both orders: how often the verdict changes when the order does, from or to a tie, too.
    """
    wins, prompts = ballot.shown(judge)
    if len(wins):
        row = bounds.of_sums("first_shown_wins", judge, [wins, wins * 0 + 1], prompts, ratio)
        if row["low"] is None:  # nothing varies: every vote, or one of every two
            row["low"], row["high"] = statistics.wilson(
                row["value"], len(set(prompts.tolist())), bounds.confidence
            )
        yield row
    else:
        yield bounds.share("first_shown_wins", judge, wins, prompts)
    yield bounds.share("flip_rate", judge, *ballot.flips(judge))


def verdicts(judge: str, ballot: Ballot, bounds: Bounds) -> Iterator[dict]:
    """How often both orders gave no winner, by why; and how often the longer side won, where a side did."""
    said = ballot.column(judge)
    here = said != ABSENT
    for name, code in (("ties", TIE), ("inconsistent", INCONSISTENT), ("unreadable", UNREADABLE)):
        yield bounds.share(name, judge, said[here] == code, ballot.prompts[here])
    decided = (said <= SECOND) & (ballot.longer != TIE)
    yield bounds.share(
        "longer_wins", judge, (said == ballot.longer)[decided], ballot.prompts[decided]
    )


def against_labels(judge: str, ballot: Ballot, bounds: Bounds) -> Iterator[dict]:
    """Agreement with the labels, where there are any.

    `agreement` on all pairs that were read, where a tie agrees with a tie only; `agreement_decided` where both judge
    and label name a side (MT-Bench's two setups, arXiv 2306.05685); `kappa`; and `longer_excess`: by how much the
    longer side wins more often with the judge than with the labels, on the pairs where both name a side.
    """
    said, labels, longer = level(ballot.column(judge)), ballot.column(LABELS), ballot.longer
    read = (said < UNREADABLE) & (labels != ABSENT)
    if not read.any():
        return
    about = {"against": LABELS}
    yield bounds.share("agreement", judge, (said == labels)[read], ballot.prompts[read], **about)
    decided = read & (said <= SECOND) & (labels <= SECOND)
    yield bounds.share(
        "agreement_decided", judge, (said == labels)[decided], ballot.prompts[decided], **about
    )
    yield cohen(judge, said, labels, read, ballot, bounds, **about)
    uneven = decided & (longer != TIE)
    if uneven.any():
        excess = ((said == longer) * 1.0 - (labels == longer))[uneven]
        yield bounds.of_sums(
            "longer_excess", judge, [excess, excess * 0 + 1], ballot.prompts[uneven], ratio, **about
        )


def between(first: str, second: str, ballot: Ballot, bounds: Bounds) -> Iterator[dict]:
    """How far two judges agree on the pairs that both read: the share, and Cohen's kappa."""
    one, other = level(ballot.column(first)), level(ballot.column(second))
    read = (one < UNREADABLE) & (other < UNREADABLE)
    if read.any():
        yield bounds.share(
            "agreement", first, (one == other)[read], ballot.prompts[read], against=second
        )
        yield cohen(first, one, other, read, ballot, bounds, against=second)


def together(names: list[str], ballot: Ballot, bounds: Bounds) -> Iterator[dict]:
    """Fleiss' kappa of all judges, on the pairs that all of them read."""
    import numpy as np

    columns = np.stack([level(ballot.column(name)) for name in names], axis=1)
    read = (columns < UNREADABLE).all(1)
    if read.any():
        counts = np.stack([(columns[read] == code).sum(1) for code in (FIRST, SECOND, TIE)], axis=1)
        yield bounds.of_sums(
            "fleiss_kappa",
            PANEL,
            statistics.fleiss_columns(counts),
            ballot.prompts[read],
            statistics.fleiss_kappa,
            judges=len(names),
        )


def cohen(
    judge: str,
    one: "np.ndarray",
    other: "np.ndarray",
    read: "np.ndarray",
    ballot: Ballot,
    bounds: Bounds,
    **about: str,
) -> dict:
    codes = (FIRST, SECOND, TIE)
    cells = [((one == left) & (other == right))[read] for left in codes for right in codes]
    return bounds.of_sums(
        "kappa",
        judge,
        cells,
        ballot.prompts[read],
        lambda sums: statistics.kappa(sums.reshape(*sums.shape[:-1], 3, 3)),
        **about,
    )


def level(said: "np.ndarray") -> "np.ndarray":
    """The same, an inconsistent verdict being a tie."""
    import numpy as np

    return np.where(said == INCONSISTENT, TIE, said)


def ratio(sums: "np.ndarray") -> "np.ndarray":
    return sums[..., 0] / sums[..., 1]
