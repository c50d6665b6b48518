"""Calls, tokens and money of a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from musiccli.llm.call import Reply


@dataclass
class Usage:
    """What one role used of one model.

    Attributes:
        calls: finished calls, those from the cache included.
        cached: calls that an earlier run had paid for.
        retries: attempts after the first one.
        cost: US dollars of the other replies.
        unpriced: replies whose cost is unknown.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0

    def add(self, reply: Reply) -> None:
        """Count the tokens and the cost of a reply."""
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost += reply.cost or 0.0
        self.unpriced += reply.cost is None

    def __add__(self, more: "Usage") -> "Usage":
        """The usage of two runs, or of two roles."""
        return Usage(
            self.calls + more.calls,
            self.cached + more.cached,
            self.retries + more.retries,
            self.prompt_tokens + more.prompt_tokens,
            self.completion_tokens + more.completion_tokens,
            self.cost + more.cost,
            self.unpriced + more.unpriced,
        )


UsageByModel = Mapping[tuple[str, str], Usage]  # by role and model


def summary(usage: UsageByModel) -> list[str]:
    """A line for each role and model: calls, tokens and money."""
    return [
        f"{role} {model}: {used.calls:,} calls ({used.cached:,} from cache, "
        f"{used.retries:,} retried), {used.prompt_tokens + used.completion_tokens:,} tokens, "
        f"{money({(role, model): used})}"
        for (role, model), used in sorted(usage.items())
        if used != Usage()
    ]


def progress(usage: UsageByModel) -> str:
    """The same in a few words, for a progress bar. Another thread may call this."""
    usage = dict(usage)
    calls = sum(used.calls for used in usage.values())
    retries = sum(used.retries for used in usage.values())
    if all(used == Usage() for used in usage.values()):
        return ""
    return f"{calls:,} calls, {retries:,} retried, {money(usage)}"


def money(usage: UsageByModel) -> str:
    """The known cost in words, and how many replies have none."""
    priced = [
        used.cost
        for (_, model), used in usage.items()
        if (used.cost or not used.unpriced) and not model.startswith("local/")
    ]
    unpriced = sum(used.unpriced for used in usage.values())
    if not priced:
        return "price unknown" if unpriced else "no cost"
    replies = "reply" if unpriced == 1 else "replies"
    rest = f" and {unpriced:,} {replies} of unknown cost" if unpriced else ""
    return f"${sum(priced):.4f}{rest}"
