"""Contrast policies: which turns of the rejected branch answer an altered instruction."""

from random import Random

from musiccli.core.errors import InputError

POLICIES = "all | none | first | middle | last | random:K | prob:P"
MIDDLE_TURNS = 3  # the fewest turns of which one is neither the first nor the last


def contrasted_turns(policy: str, turns: int, rng: Random) -> set[int]:
    """The numbers of the contrasted turns, from 0 to `turns` - 1.

    middle draws one turn that is neither the first nor the last. random:K draws K turns. prob:P
    draws each turn with probability P. Where it draws none, one turn is taken at random, because a
    pair without any contrast teaches nothing.

    Raises:
        InputError: the policy is not one of POLICIES, or needs more turns.
    """
    name, _, number = policy.partition(":")
    try:
        match name:
            case "all" if not number:
                return set(range(turns))
            case "none" if not number:
                return set()
            case "first" if not number:
                return {0}
            case "middle" if not number:
                if turns < MIDDLE_TURNS:
                    raise InputError(
                        f"`contrast` middle needs `turns` {MIDDLE_TURNS} or more: a turn that is "
                        "neither the first nor the last"
                    )
                return {rng.randrange(1, turns - 1)}
            case "last" if not number:
                return {turns - 1}
            case "random" if 1 <= int(number) <= turns:
                return set(rng.sample(range(turns), int(number)))
            case "prob" if 0 < float(number) <= 1:
                drawn = {turn for turn in range(turns) if rng.random() < float(number)}
                return drawn or {rng.randrange(turns)}
    except ValueError:  # K or P is not a number
        pass
    raise InputError(
        f"`contrast` {policy}: expected {POLICIES}, "
        "with K from 1 to `turns` and P above 0 and up to 1"
    )


def fewest_turns(policy: str) -> int:
    """The fewest turns in which a policy has what it contrasts."""
    name, _, number = policy.partition(":")
    if name == "random":
        return int(number)
    return MIDDLE_TURNS if name == "middle" else 1
