"""The records on which each model is most wrong, a few per model, for people to read."""

from collections.abc import Iterator, Mapping, Sequence
from heapq import heappush, heappushpop
from itertools import count
from typing import Any

from musiccli.bench.stats.candidates import CandidateGroup
from musiccli.core import votes
from musiccli.core.records import Record, side_names

RECORDS_PER_MODEL = 8


class WorstRecords:
    """Keeps, for each model, the RECORDS_PER_MODEL records with the largest margins.

    A margin is by how much a model is wrong. Those of different models are on different scales.
    """

    def __init__(self, models: Sequence[str] = ()):
        self._wanted_models, self._order = models, count()
        self._heaps: dict[str, list[tuple[float, int, str, Mapping[str, Any]]]] = {}

    def __iter__(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """(model, how it is wrong, record), by model; the worst first, of equal ones the first."""
        for model, heap in self._heaps.items():
            for _, _, problem, record in sorted(heap, key=lambda kept: kept[:2], reverse=True):
                yield model, problem, record

    def add(self, model: str, margin: float, problem: str, record: Mapping[str, Any]) -> None:
        """Keep a record on which a model is wrong; where the margin is 0 or less it is not."""
        heap = self._heaps.setdefault(model, [])
        if margin > 0:
            kept = (margin, -next(self._order), problem, record)
            (heappush if len(heap) < RECORDS_PER_MODEL else heappushpop)(heap, kept)

    def add_scored_pair(self, pair: Mapping[str, Any], label: str | None) -> None:
        """Add a scored pair whose better side is `label`; None or "tie" says nothing."""
        names = side_names(pair)
        if label not in names:
            return
        worse = names[1 - names.index(label)]
        for model in self._wanted_models or pair["scores"]:
            scores = pair["scores"][model]
            self._add_margin(model, scores[worse] - scores[label], pair)

    def add_candidates(self, group: CandidateGroup) -> None:
        """Add the lowest-scored right candidate and the highest-scored wrong one as a pair."""
        if not (group.right and group.wrong):
            return
        for model in group.models(self._wanted_models):
            right = min(group.right, key=lambda candidate: candidate["scores"][model])
            wrong = max(group.wrong, key=lambda candidate: candidate["scores"][model])
            metadata = dict(right.get("metadata") or {})
            metadata.pop("correct", None)
            scores = {"chosen": right["scores"][model], "rejected": wrong["scores"][model]}
            pair = Record(
                {
                    "id": right["id"],
                    "chosen": right["messages"],
                    "rejected": wrong["messages"],
                    **({"tools": right["tools"]} if "tools" in right else {}),
                    "metadata": metadata,
                    "scores": {model: scores},
                }
            )
            self._add_margin(model, scores["rejected"] - scores["chosen"], pair)

    def add_contest(self, contest: Mapping[str, Any]) -> None:
        """Add a judged contest that the first side lost; the largest pools are the worst."""
        first, second = side_names(contest)
        if contest["winner"] == second:
            model = str((contest.get("models") or {}).get(first, first))
            size = contest.get("best_of")
            self.add(model, size or 1, f"lost, best of {size}" if size else "lost", contest)

    def add_verdicts(self, pair: Mapping[str, Any], label: str | None) -> None:
        """Add a judged pair for each judge that contradicts the label or turned with the order."""
        names = side_names(pair)
        for judge, outcome in votes.outcomes_by_judge(pair.get("votes") or []).items():
            if outcome == votes.INCONSISTENT:
                self.add(judge, 1, "turned with the order", pair)
            elif label in names and outcome in names and outcome != label:
                self.add(judge, 2, f"said {outcome}, the label says {label}", pair)

    def _add_margin(self, model: str, margin: float, pair: Mapping[str, Any]) -> None:
        self.add(model, margin, f"wrong by {margin:.3g}", pair)
