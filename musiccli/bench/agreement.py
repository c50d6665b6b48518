"""Agreement of scores with labels: how often the better side scores higher, where, and by which of two models more."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from musiccli.bench.stats import baselines
from musiccli.bench.stats import comparisons as compare
from musiccli.bench.stats import intervals as statistics
from musiccli.bench.stats.outcomes import Outcomes, Tally, accuracy, check_scores, metric
from musiccli.core import records
from musiccli.core.records import Record, side_names

NAME = "agreement"
BY = ("turns", "first_divergence")


def scored(record: Record, models: Sequence[str] = ()) -> Record:
    """A scored pair with a label: the `winner` that a judge or a person named, else that chosen is better."""
    parse = (
        records.parse_preference
        if "chosen" in record and "winner" not in record
        else records.parse_judged
    )
    return check_scores(parse(record), models)


def agreement(
    pairs: Iterable[Record],
    models: Sequence[str] = (),
    *,
    by: Sequence[str] = BY,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    counts: Counter | None = None,
) -> Iterator[dict]:
    """Metric records: each model's accuracy, kappa and, for two models, their difference; overall and by each field.

    A pair is right only if the better side scores strictly higher. Pairs whose label names no side are left out, and
    counted. `by` holds fields of the record or of its metadata, and "turns" and "first_divergence".
    """
    counts = Counter() if counts is None else counts
    tally = Tally(models)
    for pair in pairs:
        winner = pair.get("winner", "chosen")
        if winner in ("tie", None):
            counts["left out (label is a tie)" if winner else "left out (label is null)"] += 1
            continue
        tally.add(pair, side_names(pair).index(winner), {field: group(pair, field) for field in by})
    resampling = {"draws": draws, "confidence": confidence, "seed": seed}
    for subset, mask in subsets(tally, by):
        outcomes = [found for model in tally.models if len(found := tally.outcomes(model, mask))]
        yield from (accuracy(NAME, subset, one, confidence) for one in outcomes)
        yield from kappas(subset, outcomes, resampling)
        yield from compare.every_two(NAME, tally, subset, mask, resampling)


def group(pair: Record, field: str) -> int | str:
    """The value of one field that a pair is grouped by."""
    sides = [pair[name] for name in side_names(pair)]
    if field == "turns":
        return max(records.count_turns(side) for side in sides)
    if field == "first_divergence":
        return records.first_divergence(*sides)
    value = records.lookup(pair, field)
    return (
        value
        if isinstance(value, int | str) and not isinstance(value, bool)
        else str(value).lower()
    )


def subsets(tally: Tally, by: Sequence[str]) -> Iterator[tuple[str, object]]:
    """ "all", and each value of each field."""
    yield "all", None
    for field in by:
        for value, mask in tally.members(field):
            yield f"{field}={value}", mask


def kappas(subset: str, outcomes: list[Outcomes], resampling: dict) -> Iterator[dict]:
    """Cohen's kappa between picks and labels; a tied score is a category of its own.

    Only where the labels name now one side, now the other: against the constant label of a preference, kappa is 0
    whatever the model does.
    """
    import numpy as np

    for one in outcomes:
        if len(np.unique(one.labels)) < 2 or one.model.startswith(baselines.PREFIX):
            continue
        cells = [
            (one.picks == pick) & (one.labels == label) for pick in range(3) for label in range(3)
        ]
        rows = statistics.totals(cells, one.prompts)
        value = statistics.kappa(rows.sum(0).reshape(3, 3))
        interval = statistics.bootstrap(
            rows, lambda sums: statistics.kappa(sums.reshape(-1, 3, 3)), **resampling
        )
        yield metric(NAME, one.model, subset, "kappa", value, interval, len(one))
