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
        cost: US dollars, as far as prices are known.
        price_unknown: whether some reply had no known price.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    price_unknown: bool = False

    def add(self, reply: Reply) -> None:
        """Count the tokens and the cost of a reply."""
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost += reply.cost or 0.0
        self.price_unknown |= reply.cost is None

    def __add__(self, more: "Usage") -> "Usage":
        """The usage of two runs, or of two roles."""
        return Usage(
            self.calls + more.calls,
            self.cached + more.cached,
            self.retries + more.retries,
            self.prompt_tokens + more.prompt_tokens,
            self.completion_tokens + more.completion_tokens,
            self.cost + more.cost,
            self.price_unknown or more.price_unknown,
        )


UsageByModel = Mapping[tuple[str, str], Usage]  # by role and model


def summary(usage: UsageByModel) -> list[str]:
    """A line for each role and model: calls, tokens and money."""
    return [
        f"{role} {model}: {used.calls:,} calls ({used.cached:,} from cache, "
        f"{used.retries:,} retried), {used.prompt_tokens + used.completion_tokens:,} tokens, "
        f"{money({(role, model): used})}"
        for (role, model), used in sorted(usage.items())
        if used.calls or used.retries
    ]


def progress(usage: UsageByModel) -> str:
    """The same in a few words, for a progress bar. Another thread may call this."""
    usage = dict(usage)
    calls = sum(used.calls for used in usage.values())
    retries = sum(used.retries for used in usage.values())
    return f"{calls:,} calls, {retries:,} retried, {money(usage)}" if calls or retries else ""


def money(usage: UsageByModel) -> str:
    """The cost in words, which say where a price is unknown."""
    priced = [
        used.cost
        for (_, model), used in usage.items()
        if not used.price_unknown and not model.startswith("local/")
    ]
    unknown = any(used.price_unknown for used in usage.values())
    if unknown and not priced:
        return "price unknown"
    if not priced:
        return "no cost"
    return f"${sum(priced):.4f}" + (" and what is unknown" if unknown else "")
