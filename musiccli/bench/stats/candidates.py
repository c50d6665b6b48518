"""Scored candidates for one prompt, some right and some wrong: what RM-Bench and RewardBench 2 are made of.

They are conversations that share an id, each with a `sample` number and `metadata.correct`, as `music sample --emit
conversations` writes those benchmarks. Both fit into memory whole, so candidates of an id need not stand together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from musiccli.bench.stats.baselines import PREFIX
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record, count_characters, lookup, parse_conversation


def scored(record: Record, models: Sequence[str] = ()) -> Record:
    """A conversation that says whether it is `correct`, with a score by each of `models`, or else by each there is."""
    parse_conversation(record)
    if not isinstance(lookup(record, "correct"), bool):
        raise RecordError(
            "should be true or false; music sample --emit conversations writes it",
            field="metadata.correct",
            record=record,
        )
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    for model in models or scores:
        if model not in scores:
            raise RecordError(
                f"no score by {model!r} (scores by: {', '.join(scores)}); music score --as NAME adds one",
                field="scores",
                record=record,
            )
        if not isinstance(scores[model], int | float) or isinstance(scores[model], bool):
            raise RecordError("should be a number", field=f"scores.{model}", record=record)
    return record


class Group:
    """The candidates for one prompt: those that are `right`, those that are `wrong`, each in the order of samples."""

    def __init__(self, found: list[Record]):
        found = sorted(found, key=lambda candidate: candidate.get("sample", 0))
        self.first = found[0]
        self.right, self.wrong = (
            [one for one in found if lookup(one, "correct") is wanted] for wanted in (True, False)
        )

    def models(self, wanted: Sequence[str]) -> list[str]:
        """Which models scored every candidate."""
        return [
            model
            for model in wanted or self.first["scores"]
            if all(model in one["scores"] for one in self.right + self.wrong)
        ]

    def scores(self, wanted: Sequence[str]) -> Iterator[tuple[str, list[float], list[float]]]:
        """(model, scores of the right ones, scores of the wrong ones), models first and then guesses that read nothing.

        `random` scores all equal: what a tie earns is what a random pick earns.
        """
        for model in self.models(wanted):
            yield (
                model,
                *([one["scores"][model] for one in side] for side in (self.right, self.wrong)),
            )
        lengths = [
            [count_characters(one["messages"]) for one in side] for side in (self.right, self.wrong)
        ]
        for name, sign in (("longest", 1), ("shortest", -1), ("random", 0)):
            yield PREFIX + name, *([sign * length for length in side] for side in lengths)


def grouped(
    found: Iterable[Record], rejects: Rejects, check: Callable[[Group], object]
) -> Iterator[Group]:
    """All candidates by id, in the order in which ids were met. A group that `check` refuses goes to `rejects`."""
    by_id: dict[object, list[Record]] = {}
    for candidate in found:
        by_id.setdefault(candidate["id"], []).append(candidate)
    for group in map(Group, by_id.values()):
        good = False
        with rejects.guard(group.first):
            check(group)
            good = True
        if good:
            yield group
