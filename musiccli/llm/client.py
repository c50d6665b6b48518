"""The door: ask a model, get its reply, pay once. Providers answer through litellm, `local/` models in this process."""

import asyncio
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from musiccli.errors import CallError, InputError, MusicError
from musiccli.llm.cache import Cache
from musiccli.llm.call import Call, Reply
from musiccli.llm.embedded import cache_folder
from musiccli.llm.pace import Pace, backoff
from musiccli.progress import say

GIVE_UP_AFTER = 8  # failed calls to a model without a single answer: its key, name or server is wrong, not the input


class LimitReached(Exception):
    """The run has spent what `--max-cost` allows; no further call is made."""


@dataclass
class Spent:
    """Calls, tokens and US dollars of one role and model; `cached` calls were paid for by an earlier run."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: bool = False


@dataclass
class _Standing:
    """How one provider's model has fared in this run."""

    pace: Pace
    answered: int = 0
    failed: int = 0
    warned: bool = False


@dataclass
class Client:
    """Settings, cache and accounts of one run.

    `concurrency` is the most calls in flight to one model; `attempts` counts the first try; `max_cost` is in US
    dollars, paid by this run.
    """

    cache: Cache | None = None
    concurrency: int = 64
    timeout: float = 120.0
    attempts: int = 6
    max_cost: float = math.inf
    api_base: str | None = None
    spent: dict[tuple[str, str], Spent] = field(default_factory=lambda: defaultdict(Spent))
    _standings: dict[str, _Standing] = field(default_factory=dict)
    _engines: dict[str, object] = field(default_factory=dict)

    async def ask(self, call: Call) -> Reply:
        """The model's reply, from the cache where the same call was answered before.

        Raises CallError when this call failed for good, InputError when no call to this model can succeed (unknown
        model, wrong key, every call fails), LimitReached when the money is spent.
        """
        account = self.spent[call.whom[-2], call.model]
        known = self.cache.get(call.key) if self.cache else None
        if known:
            account.calls, account.cached = account.calls + 1, account.cached + 1
            return Reply(**known)
        reply = await (self._local(call) if call.model.startswith("local/") else self._provider(call, account))
        if reply.cost is None and not account.unpriced and self.max_cost < math.inf:
            say(f"{call.model}: its price is unknown, so --max-cost cannot count it")
        self._book(account, reply)
        if self.cache:
            self.cache.put(call.key, asdict(reply))
        return reply

    @property
    def cost(self) -> float:
        """US dollars paid so far by this run, as far as prices are known."""
        return sum(account.cost for account in self.spent.values())

    def summary(self) -> list[str]:
        """For the last line: calls, tokens and money of each role and model."""
        return [f"{role} {model}: {spent.calls:,} calls ({spent.cached:,} from cache, {spent.retries:,} retried), "
                f"{spent.prompt_tokens + spent.completion_tokens:,} tokens, {_money(model, spent)}"
                for (role, model), spent in sorted(self.spent.items()) if spent.calls or spent.retries]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        if self.cache:
            self.cache.close()

    def _book(self, account: Spent, reply: Reply) -> None:
        account.calls += 1
        account.prompt_tokens += reply.prompt_tokens
        account.completion_tokens += reply.completion_tokens
        account.cost += reply.cost or 0.0
        account.unpriced |= reply.cost is None

    async def _local(self, call: Call) -> Reply:
        from musiccli.llm.local import LocalEngine, Request

        if call.model not in self._engines:
            self._engines[call.model] = LocalEngine(call.model)
        engine = self._engines[call.model]
        prompt = call.text
        if call.as_ != "completion":
            prompt = engine.render(list(call.messages), "user" if call.as_ == "turn" else "assistant")
        done = await engine.complete(Request(prompt, call.max_tokens, call.temperature, call.top_p, call.own_seed,
                                             call.stop))
        return Reply(done.text.strip(), done.finish, done.prompt_tokens, done.completion_tokens, 0.0)

    async def _provider(self, call: Call, account: Spent) -> Reply:
        if call.as_ != "chat":
            raise InputError(f"{call.model}: only local/ models continue raw text; choose other prompts with --prompts")
        from musiccli.llm import provider

        standing = self._standings.setdefault(call.model, _Standing(Pace(self.concurrency)))
        for attempt in range(1, self.attempts + 1):
            try:
                async with standing.pace.place():
                    if self.cost >= self.max_cost:  # asked here: of the calls that wait for a place, none begins
                        raise LimitReached
                    reply = await provider.complete(call, self.timeout, self.api_base)
            except provider.Refusal as refusal:
                if refusal.overloaded:
                    standing.pace.refused(refusal.retry_after)
                if not refusal.passing or attempt == self.attempts:
                    raise _failure(call, standing, refusal, attempt) from refusal
                account.retries += 1
                _warn(call, standing, refusal)
                await asyncio.sleep(max(refusal.retry_after or 0, backoff(attempt)))
            else:
                standing.pace.succeeded()
                standing.answered += 1
                return reply
        raise AssertionError("unreachable")


def _warn(call: Call, standing: _Standing, refusal: Exception) -> None:
    """Say once why a model that has not answered yet is asked again: nobody should wait for it in the dark."""
    if not standing.answered and not standing.warned:
        standing.warned = True
        say(f"{call.model}: {refusal}; trying again")


def _failure(call: Call, standing: _Standing, refusal: Exception, attempts: int) -> MusicError:
    """What a call that failed for good means: for its record, or, if no call to its model succeeds, for the run."""
    standing.failed += 1
    text = f"{call.model}: {refusal}" + (f" (after {attempts} attempts)" if attempts > 1 else "")
    if not standing.answered and (refusal.fatal or standing.failed >= GIVE_UP_AFTER):
        return InputError(f"{text}; no call to it has succeeded, so the run stops here")
    return CallError(text)


def open_client(cache: str | None, no_cache: bool, **settings) -> Client:
    """A client with its cache: at `cache`, or where finished calls are kept by default."""
    path = Path(cache) if cache else cache_folder() / "calls.sqlite"
    return Client(cache=None if no_cache else Cache(path), **settings)


def _money(model: str, spent: Spent) -> str:
    if model.startswith("local/"):
        return "no cost"
    return "price unknown" if spent.unpriced else f"${spent.cost:.4f}"
