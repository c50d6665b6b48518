"""Join the two branches of a simulated conversation into one preference."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from musiccli.core.messages import first_divergence, same_text
from musiccli.core.records import Record, record_kind
from musiccli.core.run_stats import RunStats

SCORE_FIELDS = ("scores", "turn_scores")
BRANCH_FIELDS = {  # these describe one branch, so they are not copied to the preference of two
    *("messages", "branch", "contrast", "faults", "truncated", "usage", "cost"),
    *SCORE_FIELDS,
}


def drop_reason(chosen: Record, rejected: Record, drop_truncated: bool = False) -> str | None:
    """Why two branches would make a preference that teaches nothing or something wrong.

    A message that the token limit cut is no reason by default. It was shortened to whole sentences,
    and models that write long replies leave few pairs without one. A message that still ends in
    the middle of a sentence has a fault, and so is dropped.

    Args:
        drop_truncated: whether a message that was cut is a reason, too.

    Returns:
        The name of the first fault or of another reason, or None for a good pair.
    """
    faults = chosen.get("faults", []) + rejected.get("faults", [])
    if faults:
        return str(faults[0]["fault"])
    if same_text(chosen["messages"], rejected["messages"]):
        return "same_text"
    if first_divergence(chosen["messages"], rejected["messages"]) < chosen.get("seed_messages", 0):
        return "different_seeds"
    if "contrast" in rejected and not rejected["contrast"]:
        return "nothing_contrasted"
    if any(branch["messages"][-1]["role"] != "assistant" for branch in (chosen, rejected)):
        return "ends_with_user"
    return "truncated" if drop_truncated and truncated_messages(chosen, rejected) else None


def join_branches(
    branches: Iterable[Record],
    stats: RunStats | None = None,
    *,
    drop: Callable[[Record, Record], str | None] = drop_reason,
) -> Iterator[dict[str, Any]]:
    """Preferences from branches: the chosen and the rejected branch of one id and sample.

    Branches that follow each other are joined at once. A branch whose partner comes later is held
    in memory until then. A record that already is a preference passes through.

    Args:
        stats: counts the pairs that are dropped, by reason, and the kept ones with a cut message.
        drop: returns the reason to drop a pair (chosen, rejected), or None to keep it.
    """
    stats = stats or RunStats()
    waiting: dict[tuple[object, int], Record] = {}
    reported = False
    for branch in branches:
        if record_kind(branch) == "preference":
            yield branch
            continue
        key = (branch["id"], branch["sample"])
        partner = waiting.pop(key, None)
        if partner is None:
            waiting[key] = branch
            if len(waiting) > 1 and not reported:
                reported = True
                stats.say(
                    f"{branch.where}: branches of one id do not stand together; "
                    "holding each until its partner comes"
                )
            continue
        chosen, rejected = (branch, partner) if branch["branch"] == "chosen" else (partner, branch)
        if reason := drop(chosen, rejected):
            stats.count("dropped", reason, record=branch)
            continue
        if truncated_messages(chosen, rejected):
            stats.count("pairs_with_truncated_messages")
        yield preference(chosen, rejected)
    if waiting:
        alone = next(iter(waiting.values()))
        stats.count("dropped", "other_branch_missing", len(waiting), record=alone)


def truncated_messages(chosen: Record, rejected: Record) -> dict[str, list[int]]:
    """Indices of the messages that the token limit cut, by side; a side without any is left out."""
    return {
        side: branch["truncated"]
        for side, branch in (("chosen", chosen), ("rejected", rejected))
        if branch.get("truncated")
    }


def preference(chosen: Record, rejected: Record) -> dict[str, Any]:
    """The preference of two branches, with the scores that both have.

    Fields of the chosen branch that simulate did not write are kept.
    """
    optional = {"truncated": truncated_messages(chosen, rejected)} | {
        field: _scores_of_both(chosen.get(field) or {}, rejected.get(field) or {})
        for field in SCORE_FIELDS
    }
    return (
        {name: value for name, value in chosen.items() if name not in BRANCH_FIELDS}
        | {name: value for name, value in optional.items() if value}
        | {
            "chosen": chosen["messages"],
            "rejected": rejected["messages"],
            "first_divergence": first_divergence(chosen["messages"], rejected["messages"]),
            "contrast": rejected.get("contrast", []),
        }
    )


def _scores_of_both(chosen: dict[str, Any], rejected: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"chosen": score, "rejected": rejected[name]}
        for name, score in chosen.items()
        if name in rejected
    }
