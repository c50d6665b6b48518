"""How far people agree among themselves: what agreement with their labels could be at most.

The votes on one pair of conversations make a row of counts, (first side, second side, tie). Rows
with a single vote say nothing. Intervals are bootstrap intervals over prompts.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musiccli.bench.config import BenchConfig
from musiccli.bench.stats.baselines import first_listed
from musiccli.bench.stats.bootstrap import bootstrap_interval, cluster_sums
from musiccli.bench.stats.outcomes import (
    MetricRecord,
    cluster_number,
    metric_record,
    prompt_cluster,
)
from musiccli.core.records import side_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Array = np.ndarray[Any, np.dtype[Any]]

PEOPLE = "people"  # in the place of a model
TIE = 2  # the column of ties


class PeoplesVotes:
    """The votes on each pair of conversations, whichever of the two is listed first."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}  # by the texts of the two conversations
        self._first = array("q")  # the text of the side that counts as first
        self._counts = [array("i"), array("i"), array("i")]  # first side, second side, tie
        self._clusters = array("q")
        self._groups: list[tuple[tuple[str, Any], ...]] = []  # equal ones are one object
        self._known_groups: dict[tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]] = {}

    def add(
        self, record: Mapping[str, Any], winners: Sequence[str | None], groups: Mapping[str, Any]
    ) -> None:
        """Add votes on a pair; None is no vote.

        Args:
            record: the pair.
            winners: a side's name, "tie" or None.
            groups: the value of each field that pairs are grouped by.
        """
        texts = {name: cluster_number(record[name]) for name in side_names(record)}
        if len(set(texts.values())) < 2:
            return
        row = self._rows.setdefault(cluster_number(*sorted(texts.values())), len(self._first))
        if row == len(self._first):
            self._first.append(texts[first_listed(record)])
            self._clusters.append(prompt_cluster(record))
            for counts in self._counts:
                counts.append(0)
            items = tuple(groups.items())
            self._groups.append(self._known_groups.setdefault(items, items))
        for winner in winners:
            if winner is not None:
                column = TIE if winner == "tie" else int(texts[winner] != self._first[row])
                self._counts[column][row] += 1

    def records(self, benchmark: str, config: BenchConfig) -> Iterator[MetricRecord]:
        """Alpha and agreement with and without ties, of all pairs and by the values of fields.

        There are none where no pair has two votes.
        """
        import numpy as np

        counts = np.stack([np.asarray(column) for column in self._counts], axis=1)
        clusters = np.asarray(self._clusters)
        several = np.flatnonzero(counts.sum(1) > 1)
        for subset, rows in self._subsets(several.tolist()).items():
            figures = _figures(counts[rows], clusters[rows], config)
            for metric, (value, interval) in figures.items():
                yield metric_record(benchmark, PEOPLE, subset, metric, value, interval, len(rows))

    def _subsets(self, rows: Sequence[int]) -> dict[str, list[int]]:
        """The rows of all pairs, then those of each value of each field; none without rows."""
        subsets: dict[str, list[int]] = {"all": list(rows)} if rows else {}
        by_value: dict[tuple[str, Any], list[int]] = {}
        for row in rows:
            for item in self._groups[row]:
                by_value.setdefault(item, []).append(row)
        fields = list(dict.fromkeys(field for field, _ in by_value))

        def order(item: tuple[str, Any]) -> tuple[int, bool, Any]:
            field, value = item
            return fields.index(field), isinstance(value, str), value

        return subsets | {
            f"{field}={value}": by_value[field, value]
            for field, value in sorted(by_value, key=order)
        }


def _figures(
    counts: "Array", clusters: "ArrayLike", config: BenchConfig
) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """The value and the interval of each figure."""
    import numpy as np

    figures: dict[str, tuple[float | None, tuple[float, float] | None]] = {}
    for metric, columns, statistic in (
        ("krippendorff_alpha", alpha_columns(counts), krippendorff_alpha),
        ("people_agree", agreement_columns(counts), _ratio),
        ("people_agree_decided", agreement_columns(counts[:, :TIE]), _ratio),
    ):
        rows = cluster_sums(columns, clusters)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(statistic(rows.sum(0)))
        if value != value:  # nan: all votes are equal, or no pair has two votes for a side
            figures[metric] = None, None
        else:
            figures[metric] = value, bootstrap_interval(rows, statistic, config)
    return figures


def alpha_columns(counts: "ArrayLike") -> "list[Array]":
    """The columns whose sums `krippendorff_alpha` takes.

    Args:
        counts: votes, (pairs, categories), at least two on each pair.

    Returns:
        1 + categories columns of (pairs,).
    """
    import numpy as np

    counts = np.asarray(counts, float)
    votes = counts.sum(1)
    return [(counts * (counts - 1)).sum(1) / (votes - 1), *counts.T]


def krippendorff_alpha(sums: "Array") -> "Array":
    """Krippendorff's alpha for nominal data (Krippendorff 2011, Computing Alpha-Reliability).

    It is 1 - observed / expected disagreement, and does not need equally many votes on each pair.

    Args:
        sums: sums of the columns of `alpha_columns`, (..., 1 + categories).

    Returns:
        (...); nan where all votes are of one category.
    """
    agreements, categories = sums[..., 0], sums[..., 1:]
    votes = categories.sum(-1)
    expected = votes**2 - (categories**2).sum(-1)
    alpha: Array = 1 - (votes - 1) * (votes - agreements) / expected
    return alpha


def agreement_columns(counts: "ArrayLike") -> "list[Array]":
    """How many two votes on a pair are equal, and how many two there are, (pairs,) each."""
    import numpy as np

    counts = np.asarray(counts, float)
    votes = counts.sum(1)
    return [(counts * (counts - 1)).sum(1) / 2, votes * (votes - 1) / 2]


def _ratio(sums: "Array") -> "Array":
    ratio: Array = sums[..., 0] / sums[..., 1]
    return ratio
