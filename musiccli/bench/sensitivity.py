"""Does a reward model read the whole conversation? How often the intact one scores higher than a corrupted copy of it.

Reads what `music sample --emit corruptions` wrote and `music score` scored. A model that looks at the last turn only
scores both sides equal wherever the corruption lies before it: equal scores are wrong, and `ties` counts them. Beside
every accuracy stand content-blind guesses, and `length_difference`, the mean of corrupted minus intact in characters.
Where a user message was dropped, the intact side is always the longer one, and `longest` gets all of it right: figures
over several kinds leave that kind out.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence

from musiccli.bench.stats import comparisons as compare
from musiccli.bench.stats.outcomes import Tally, accuracy, check_scores
from musiccli.core.errors import RecordError
from musiccli.core.records import Record, count_characters, parse_preference

NAME = "sensitivity"
KINDS = (
    "reply",
    "user",
    "swap",
    "drop_user",
)  # the order they are shown in; others come after them
UNMATCHED = "drop_user"  # whose sides differ in length
BEFORE_LAST = "distance>=1"  # what only a reader of the history can see


def scored(record: Record, models: Sequence[str] = ()) -> Record:
    """A scored preference that says in `corruption` what is wrong with its rejected side, and where."""
    parse_preference(record)
    about = record.get("corruption")
    if not isinstance(about, dict):
        raise RecordError(
            "is missing; music sample --emit corruptions writes it",
            field="corruption",
            record=record,
        )
    if not isinstance(about.get("kind"), str) or "," in about["kind"]:
        raise RecordError("should be a name without commas", field="corruption.kind", record=record)
    if not isinstance(about.get("distance"), int):
        raise RecordError("should be a whole number", field="corruption.distance", record=record)
    return check_scores(record, models)


def sensitivity(
    pairs: Iterable[Record],
    models: Sequence[str] = (),
    *,
    draws: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Iterator[dict]:
    """Metric records: accuracy of each model on all corruptions, before the last turn, by distance, by kind, by both.

    Intervals take the corruptions of one conversation as dependent, and those of conversations that open alike, as a
    tree's branches do. Of two models, also the difference (but not by kind and distance at once).
    """
    import numpy as np

    tally, longer = Tally(models), array("q")
    for pair in pairs:
        about = pair["corruption"]
        tally.add(pair, 0, {"kind": about["kind"], "distance": about["distance"]})
        longer.append(count_characters(pair["rejected"]) - count_characters(pair["chosen"]))
    differences = np.asarray(longer)
    resampling = {"draws": draws, "confidence": confidence, "seed": seed}
    for subset, mask in subsets(tally):
        shift = float(differences[mask].mean())
        for model in tally.models:
            if len(outcomes := tally.outcomes(model, mask)):
                yield accuracy(NAME, subset, outcomes, confidence, length_difference=shift)
        if "," not in subset:
            yield from compare.every_two(NAME, tally, subset, mask, resampling)


def subsets(tally: Tally) -> Iterator[tuple[str, object]]:
    """ "all", "distance>=1", "distance=0", ..., "kind=reply", ..., "kind=reply,distance=0", ...; with their masks."""
    import numpy as np

    by_kind, by_distance = dict(tally.members("kind")), dict(tally.members("distance"))
    nothing = np.full(len(tally), False)
    matched = sum((mask for kind, mask in by_kind.items() if kind != UNMATCHED), nothing)
    matched = matched if matched.any() else ~nothing
    before = sum((mask for distance, mask in by_distance.items() if distance >= 1), nothing)
    order = [
        *(kind for kind in KINDS if kind in by_kind),
        *(kind for kind in by_kind if kind not in KINDS),
    ]
    found = [
        ("all", matched),
        (BEFORE_LAST, before & matched),
        *((f"distance={distance}", mask & matched) for distance, mask in by_distance.items()),
        *((f"kind={kind}", by_kind[kind]) for kind in order),
        *(
            (f"kind={kind},distance={distance}", by_kind[kind] & mask)
            for kind in order
            for distance, mask in by_distance.items()
        ),
    ]
    yield from ((subset, mask) for subset, mask in found if mask.any())
