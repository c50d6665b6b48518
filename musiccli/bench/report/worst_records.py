"""The records on which each model is most wrong, to be read by people: a few, chosen while all of them pass by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappush, heappushpop
from itertools import count

from musiccli.bench.stats.candidates import Group
from musiccli.core import votes
from musiccli.core.records import Record, side_names

RECOMPUTE_ABOVE = 8  # a model


class Worst:
    """Passes records through and remembers, for each model, the KEPT with the largest wrong margins.

    A margin is how much higher the worse side scores; margins of two models are on different scales and never compared.
    """

    def __init__(self, models: Sequence[str] = ()):
        self._wanted, self._order = models, count()
        self._heaps: dict[str, list[tuple[float, int, str, Record]]] = {}

    def found(self) -> Iterator[tuple[str, str, Record]]:
        """(model, how it is wrong, record): a model's worst one first, and of two alike the one met first."""
        for model, heap in self._heaps.items():
            for _, _, how, record in sorted(heap, key=lambda entry: entry[:2], reverse=True):
                yield model, how, record

    def add(self, model: str, margin: float, record: Record, how: str = "wrong by {:.3g}") -> None:
        """Remember a record on which the model is wrong by `margin`; nothing where it is not."""
        heap = self._heaps.setdefault(model, [])
        if margin > 0:
            entry = (margin, -next(self._order), how.format(margin), record)
            (heappush if len(heap) < RECOMPUTE_ABOVE else heappushpop)(heap, entry)

    def pairs(
        self, found: Iterable[Record], better: Callable[[Record], str | None]
    ) -> Iterator[Record]:
        """Scored pairs, of which `better` names the better side, or None."""
        for record in found:
            names = side_names(record)
            label = better(record)
            if label in names:
                worse = names[1 - names.index(label)]
                for model in self._wanted or record["scores"]:
                    scores = record["scores"][model]
                    self.add(model, scores[worse] - scores[label], record)
            yield record

    def candidates(self, found: Iterable[Record]) -> Iterator[Record]:
        """Scored candidates; of each prompt the right one that scores lowest, and the wrong one that scores highest."""
        by_id: dict[object, list[Record]] = {}
        for record in found:
            by_id.setdefault(record["id"], []).append(record)
            yield record
        for group in map(Group, by_id.values()):
            if group.right and group.wrong:
                for model in group.models(self._wanted):
                    self._add_group(group, model)

    def _add_group(self, group: Group, model: str) -> None:
        right = min(group.right, key=lambda candidate: candidate["scores"][model])
        wrong = max(group.wrong, key=lambda candidate: candidate["scores"][model])
        scores = {
            side: candidate["scores"][model]
            for side, candidate in (("chosen", right), ("rejected", wrong))
        }
        about = {
            name: value
            for name, value in (right.get("metadata") or {}).items()
            if name != "correct"
        }
        self.add(
            model,
            scores["rejected"] - scores["chosen"],
            Record(
                {
                    "id": right["id"],
                    "chosen": right["messages"],
                    "rejected": wrong["messages"],
                    "metadata": about,
                    "scores": {model: scores},
                }
            ),
        )

    def contests(self, found: Iterable[Record]) -> Iterator[Record]:
        """Judged contests; those that the first side's model lost, from the largest pools first."""
        for record in found:
            first, second = side_names(record)
            size = record.get("best_of")
            if record["winner"] == second:
                self.add(
                    str((record.get("models") or {}).get(first, first)),
                    size or 1,
                    record,
                    f"lost, best of {size}" if size else "lost",
                )
            yield record

    def verdicts(
        self, found: Iterable[Record], label: Callable[[Record], str | None]
    ) -> Iterator[Record]:
        """Judged pairs; of each judge those on which both its votes contradict the label, then those it turned on."""
        for record in found:
            better = label(record)
            for judge, said in votes.outcomes_by_judge(record.get("votes") or []).items():
                if said == votes.INCONSISTENT:
                    self.add(judge, 1, record, "turned with the order")
                elif better in side_names(record) and said in side_names(record) and said != better:
                    self.add(judge, 2, record, f"said {said}, the label says {better}")
            yield record

    def turns(self, found: Iterable[Record]) -> Iterator[Record]:
        """Contrasted turns; those with most flaws first."""
        for record in found:
            self.add(
                "contrast",
                len(record["flaws"]),
                record,
                ", ".join(record["flaws"]).replace("_", " "),
            )
            yield record
