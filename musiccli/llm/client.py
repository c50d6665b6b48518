"""The door: ask a model, get its reply, pay once. Providers answer through litellm, servers of one's own that speak
OpenAI's protocol directly, `local/` models in this process."""

import asyncio
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from musiccli.core.bundled_models import folder_fingerprint
from musiccli.core.cache_folder import cache_folder
from musiccli.core.errors import InputError
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm import limiter, prices
from musiccli.llm.budget import Budget, LimitReached  # noqa: F401  (what `ask` raises)
from musiccli.llm.call import Call, Reply
from musiccli.llm.config import ClientConfig
from musiccli.llm.endpoints import Endpoints
from musiccli.llm.limiter import AdaptiveLimiter
from musiccli.llm.model_health import ModelHealth
from musiccli.llm.provider_errors import OF_THE_QUESTION, Empty, ProviderError, keys, without
from musiccli.llm.providers.openai_server import OpenAIServer


@dataclass
class Usage:
    """Calls, tokens and US dollars of one role and model; `cached` calls were paid for by an earlier run."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unpriced: bool = False


@dataclass
class Client:
    """Asks language models, through the cache and within a budget.

    Args:
        config: how models are called.
        cache: where finished calls are kept, if anywhere.
        stats: hears what people should know meanwhile.
    """

    config: ClientConfig = field(default_factory=ClientConfig)
    cache: Store | None = None
    stats: RunStats = field(default_factory=RunStats)
    usage: dict[tuple[str, str], Usage] = field(default_factory=lambda: defaultdict(Usage))
    _standings: dict[str, ModelHealth] = field(default_factory=dict)
    _engines: dict[str, object] = field(default_factory=dict)
    _weights: dict[str, str | None] = field(default_factory=dict)  # of models in this process
    _without: dict[str, dict] = field(
        default_factory=lambda: defaultdict(dict)
    )  # what a model refuses to be told

    def __post_init__(self) -> None:
        self._budget, self._direct = Budget(self.config.max_cost), OpenAIServer(self.config.timeout)
        # In what a model says only what can be nothing but a key is taken out: not SOME_KEY=default.
        self._keys = [
            key for key in keys() if len(key) >= 16 and any(letter.isdigit() for letter in key)
        ]

    async def complete(self, call: Call) -> Reply:
        """The model's reply, from the cache where the same call was answered before.

        Raises CallError when this call failed for good, InputError when no call to this model can succeed (unknown
        model, wrong key, every call fails), LimitReached when the money is spent, or promised to what is under way.
        """
        account, local = self.usage[call.call_key[-2], call.model], call.model.startswith("local/")
        if local:
            if call.model not in self._weights:
                self._weights[call.model] = folder_fingerprint(call.model)
            call = replace(call, weights=self._weights[call.model])
        known = self.cache.get(call.key) if self.cache else None
        if known:
            account.calls, account.cached = account.calls + 1, account.cached + 1
            return Reply(**known)
        reply = await (self._local(call) if local else self._provider(call, account))
        if any(key in reply.text for key in self._keys):  # a server that repeats what it was sent
            reply = replace(reply, text=without(self._keys, reply.text))
        if reply.cost is None and not account.unpriced and self.config.max_cost < math.inf:
            self.stats.say(f"{call.model}: its price is unknown, so `max_cost` cannot count it")
        account.calls += 1
        self._pay(account, reply)
        if self.cache:
            self.cache.put(call.key, vars(reply), call.model)
        return reply

    @property
    def cost(self) -> float:
        """US dollars paid so far by this run, as far as prices are known."""
        return self._budget.spent

    def summary(self) -> list[str]:
        """For the last line: calls, tokens and money of each role and model."""
        return [
            f"{role} {model}: {spent.calls:,} calls ({spent.cached:,} from cache, {spent.retries:,} retried), "
            f"{spent.prompt_tokens + spent.completion_tokens:,} tokens, {_money([(model, spent)])}"
            for (role, model), spent in sorted(self.usage.items())
            if spent.calls or spent.retries
        ]

    def progress(self) -> str:
        """The same in few words, while it grows; another thread may ask."""
        spent = [(model, spent) for (_, model), spent in list(self.usage.items())]
        calls, retries = (
            sum(getattr(one, name) for _, one in spent) for name in ("calls", "retries")
        )
        return f"{calls:,} calls, {retries:,} retried, {_money(spent)}" if calls or retries else ""

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        if self.cache:
            self.cache.close()

    def _pay(self, account: Usage, reply: Reply) -> None:
        account.prompt_tokens += reply.prompt_tokens
        account.completion_tokens += reply.completion_tokens
        account.cost += reply.cost or 0.0
        account.unpriced |= reply.cost is None
        self._budget.pay(reply.cost or 0.0)

    async def _local(self, call: Call) -> Reply:
        from musiccli.llm.local.engine import LocalEngine, Request

        if call.model not in self._engines:
            self._engines[call.model] = LocalEngine(call.model)
        engine = self._engines[call.model]
        prompt = call.text
        if call.mode != "completion":
            prompt = engine.render(
                list(call.messages), "user" if call.mode == "turn" else "assistant"
            )
        done = await engine.complete(
            Request(
                prompt, call.max_tokens, call.temperature, call.top_p, call.call_seed, call.stop
            )
        )
        return Reply(
            done.text.strip(), done.finish, done.prompt_tokens, done.completion_tokens, 0.0
        )

    async def _provider(self, call: Call, account: Usage) -> Reply:
        if call.mode != "chat":
            raise InputError(
                f"{call.model}: only local/ models continue raw text; choose other `prompts`"
            )
        standing = self._standing(call.model)
        await self._budget.begin()
        attempt, moves = 1, 0
        while True:
            try:
                async with standing.pace.slot():
                    standing.check()  # asked here: of the calls that wait for a place, none begins
                    self._budget.check()
                    reply = await self._try(call, standing.endpoints)
            except ProviderError as refusal:
                standing.refused(refusal)
                if isinstance(refusal, Empty):  # nothing came, and that is paid for, too
                    self._pay(account, refusal.reply)
                if moves < len(standing.endpoints.all) - 1 and standing.endpoints.elsewhere(
                    refusal
                ):
                    account.retries, moves = account.retries + 1, moves + 1
                    continue
                if attempt == self.config.attempts or not standing.worth_another(refusal):
                    raise standing.failed(call, refusal, attempt) from refusal
                account.retries += 1
                standing.warn(call, refusal)
                unnamed = refusal.overloaded and refusal.retry_after is None
                await asyncio.sleep(
                    max(refusal.retry_after or 0, limiter.backoff(attempt, unnamed))
                )
                attempt, moves = attempt + 1, 0
            else:
                standing.answered()
                return reply

    def _standing(self, model: str) -> ModelHealth:
        if model not in self._standings:
            self._standings[model] = ModelHealth(
                Endpoints(model, self.config.api_base),
                AdaptiveLimiter(self.config.concurrency),
                kept=self.cache is not None,
            )
        return self._standings[model]

    async def _try(self, call: Call, endpoints: Endpoints) -> Reply:
        """One attempt. What the model refuses to be told is left out, and if that helps, from then on."""
        known = self._without[call.model]
        asked, left_out = replace(call, **known), dict(known)
        while True:
            try:
                reply = await self._send(asked, endpoints)
            except ProviderError as refusal:
                if not (name := unwanted(asked, refusal)):
                    raise
                left_out[name] = None
                asked = replace(asked, **{name: None})
            else:
                for name in left_out.keys() - known.keys() - {"schema"}:
                    self.stats.say(
                        f"{call.model}: refuses {name}={getattr(call, name):g}; asked without it from here on"
                    )
                known |= left_out
                return reply

    async def _send(self, call: Call, endpoints: Endpoints) -> Reply:
        with endpoints.one() as endpoint:
            if endpoint.direct:
                reply = await self._direct.complete(call, endpoint.url, endpoints.key)
                price = prices.price(call.model)
                paid = price and reply.prompt_tokens * price[0] + reply.completion_tokens * price[1]
                reply = replace(reply, cost=paid)
            else:
                from musiccli.llm.providers import litellm_provider as provider

                reply = await provider.complete(call, self.config.timeout, endpoint.url)
            if not reply.text:
                raise Empty(reply)
            return reply


def unwanted(call: Call, refusal: ProviderError) -> str | None:
    """The field of a call that it was refused for: one of the sampling that the refusal names (Claude takes temperature
    or top_p, a thinking model often neither), else the schema, which servers refuse in many words."""
    if refusal.status not in OF_THE_QUESTION:
        return None
    named = (name for name in ("top_p", "temperature") if name in str(refusal))
    return next((name for name in (*named, "schema") if getattr(call, name) is not None), None)


def open_client(
    config: ClientConfig = ClientConfig(),
    cache: str | None = None,
    no_cache: bool = False,
    stats: RunStats | None = None,
) -> Client:
    """A client with its cache: the file `cache`, or the usual one where that is None."""
    return Client(
        config,
        None if no_cache else Store(cache_path(cache)),
        stats or RunStats(),
    )


def cache_path(given: str | None) -> Path:
    return Path(given) if given else cache_folder() / "calls.sqlite"


def _money(spent: list[tuple[str, Usage]]) -> str:
    """What accounts of models come to, as people say it."""
    priced = [one for model, one in spent if not one.unpriced and not model.startswith("local/")]
    unknown = any(one.unpriced for _, one in spent)
    if unknown and not priced:
        return "price unknown"
    if not priced:
        return "no cost"
    return f"${sum(one.cost for one in priced):.4f}" + (" and what is unknown" if unknown else "")
