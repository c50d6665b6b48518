"""Scored candidates for one prompt, some right and some wrong, as RM-Bench and RewardBench 2 have.

Candidates are conversations that share an id. Each has a `sample` number and `metadata.correct`, as
music sample writes these benchmarks. Candidates of an id need not stand together: all of them are
in memory, and both benchmarks fit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from musiccli.bench.stats.outcomes import check_model_count, check_reward, missing_model
from musiccli.core.errors import RecordError
from musiccli.core.messages import count_characters
from musiccli.core.records import BASELINE_PREFIX, Record, lookup, parse_candidate
from musiccli.core.run_stats import RunStats


def check_scored_candidate(record: Record, models: Sequence[str] = ()) -> Record:
    """Check a candidate that says whether it is `correct`.

    Each of `models`, or else each model of the record, must have scored it.
    """
    parse_candidate(record)
    if not isinstance(lookup(record, "correct"), bool):
        problem = "should be true or false, as music sample writes it"
        raise RecordError(problem, field="metadata.correct", record=record)
    scores = record.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise RecordError("has no scores; run music score first", record=record)
    check_model_count(record, models)
    for model in models or scores:
        if model not in scores:
            raise missing_model(record, model)
        check_reward(scores[model], f"scores.{model}", record)
    return record


class CandidateGroup:
    """The candidates for one prompt, in the order of their samples.

    Attributes:
        first: the candidate with the lowest sample number.
        right: the correct candidates.
        wrong: the others.
    """

    def __init__(self, candidates: Iterable[Record]):
        ordered = sorted(candidates, key=lambda candidate: candidate.get("sample", 0))
        self.first = ordered[0]
        self.right = [candidate for candidate in ordered if lookup(candidate, "correct")]
        self.wrong = [candidate for candidate in ordered if not lookup(candidate, "correct")]

    def models(self, wanted: Sequence[str] = ()) -> list[str]:
        """Which of the wanted models, or else of all, scored every candidate."""
        candidates = self.right + self.wrong
        return [
            model
            for model in wanted or self.first["scores"]
            if all(model in candidate["scores"] for candidate in candidates)
        ]

    def scores(self, wanted: Sequence[str] = ()) -> Iterator[tuple[str, list[float], list[float]]]:
        """(model, scores of the right, scores of the wrong candidates): models, then baselines.

        The baseline `random` scores all candidates equal: a tie earns what a random pick earns.
        """
        for model in self.models(wanted):
            right, wrong = (
                [candidate["scores"][model] for candidate in candidates]
                for candidates in (self.right, self.wrong)
            )
            yield model, right, wrong
        right, wrong = (
            [count_characters(candidate["messages"]) for candidate in candidates]
            for candidates in (self.right, self.wrong)
        )
        for name, sign in (("longest", 1), ("shortest", -1), ("random", 0)):
            yield (
                BASELINE_PREFIX + name,
                [sign * length for length in right],
                [sign * length for length in wrong],
            )


def group_candidates(
    candidates: Iterable[Record], check: Callable[[CandidateGroup], object], stats: RunStats
) -> Iterator[CandidateGroup]:
    """The candidates by id, in the order in which the ids were met.

    A group for which `check` raises RecordError goes to `stats.rejects`.
    """
    by_id: dict[object, list[Record]] = {}
    for candidate in candidates:
        by_id.setdefault(candidate["id"], []).append(candidate)
    for group in map(CandidateGroup, by_id.values()):
        is_good = False
        with stats.rejects.guard(group.first):
            check(group)
            is_good = True
        if is_good:
            yield group
