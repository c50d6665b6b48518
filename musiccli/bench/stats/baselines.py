"""Content-blind baselines: the accuracy of rules that do not read the text.

An accuracy means little without them. On MT-Bench's human votes, the longer conversation wins about
68% of the time. Of one solved and one unsolved trajectory of MINT, the shorter one is solved in 89%
of the pairs. A baseline that cannot tell two sides apart guesses, and earns half a point. A reward
model whose two scores are equal earns none.
"""

from collections.abc import Mapping
from typing import Any

from musiccli.core.messages import count_characters, count_turns
from musiccli.core.records import BASELINE_PREFIX, side_names


def is_baseline(model: str) -> bool:
    """Whether the name of a model is that of a baseline."""
    return model.startswith(BASELINE_PREFIX)


def baseline_scores(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Each baseline's score of each side, {baseline: {side: score}}, as `scores` of a record."""
    names = side_names(record)
    first = first_listed(record)
    characters = {name: count_characters(record[name]) for name in names}
    turns = {name: count_turns(record[name]) for name in names}
    last_reply = {name: count_characters(record[name][-1:]) for name in names}
    scores = {
        "longest": characters,
        "shortest": _negated(characters),
        "most-turns": turns,
        "fewest-turns": _negated(turns),
        "longest-last-reply": last_reply,
        "shortest-last-reply": _negated(last_reply),
        "first-listed": {name: int(name == first) for name in names},
    }
    return {BASELINE_PREFIX + name: dict(by_side) for name, by_side in scores.items()}


def first_listed(record: Mapping[str, Any]) -> str:
    """The side that counts as listed first: `a` of a comparison.

    A preference always lists its better side first. So a hash of its id chooses a side at random.
    """
    from hashlib import blake2b

    names = side_names(record)
    if names == ("a", "b"):
        return "a"
    return names[blake2b(str(record["id"]).encode(), digest_size=1).digest()[0] & 1]


def _negated(scores: Mapping[str, int]) -> dict[str, int]:
    return {name: -score for name, score in scores.items()}
