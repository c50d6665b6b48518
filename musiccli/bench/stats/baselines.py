"""What a judge would get right without reading: content-blind guesses, printed beside every accuracy.

On MT-Bench's human votes the longer conversation wins about 68%, of MINT's solved trajectories over unsolved ones the
shorter 89%: an accuracy means little until it is seen beside these. A baseline that cannot tell two sides apart
guesses, so it earns half a point there; a reward model whose two scores are equal earns none.
"""

from hashlib import blake2b

from musiccli.core.records import BASELINE_PREFIX, Record, count_characters, count_turns, side_names

PREFIX = BASELINE_PREFIX


def scores(record: Record) -> dict[str, dict[str, float]]:
    """One score a side for each baseline, in the shape that `score` writes: {baseline: {side: number}}."""
    names = side_names(record)
    sides = {name: record[name] for name in names}
    first = first_listed(record)
    length = {name: count_characters(side) for name, side in sides.items()}
    count = {name: count_turns(side) for name, side in sides.items()}
    last = {name: len(side[-1]["content"]) for name, side in sides.items()}
    return {
        PREFIX + baseline: by_side
        for baseline, by_side in {
            "longest": length,
            "shortest": least(length),
            "most-turns": count,
            "fewest-turns": least(count),
            "longest-last-reply": last,
            "shortest-last-reply": least(last),
            "first-listed": {name: int(name == first) for name in names},
        }.items()
    }


def least(measured: dict[str, int]) -> dict[str, int]:
    """Scores by which the side that has least of something is taken."""
    return {name: -number for name, number in measured.items()}


def first_listed(record: Record) -> str:
    """The side a reader meets first: `a`. A preference lists its better side first, always, which would be cheating:

    a coin that follows from the record's id decides which of its sides stood first.
    """
    names = side_names(record)
    if names == ("a", "b"):
        return "a"
    return names[blake2b(str(record["id"]).encode(), digest_size=1).digest()[0] & 1]
