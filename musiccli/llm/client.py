"""The client of language models: replies from the cache, from providers, or from models here."""

import asyncio
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from musiccli.core.cache_folder import cache_folder
from musiccli.core.errors import CallError, InputError
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm import usage
from musiccli.llm.budget import Budget, LimitReached
from musiccli.llm.call import Call, Reply, finish_reason
from musiccli.llm.config import ClientConfig
from musiccli.llm.ledger import Ledger
from musiccli.llm.model_health import ModelHealth
from musiccli.llm.provider_errors import environment_keys, redact
from musiccli.llm.providers import Providers
from musiccli.llm.reasoning import effort_of
from musiccli.llm.remote_model import RemoteModel
from musiccli.llm.usage import Usage

__all__ = ["Client", "LimitReached", "cache_path", "open_client"]

MIN_KEY = 16  # characters of a key that is taken out of replies


class Client:
    """Calls language models, and counts what they cost.

    Args:
        config: how models are called.
        cache: keeps finished calls, so that none is paid for twice, and what each run has used;
            None keeps nothing.
        stats: tells people what they should know meanwhile.
        command: what runs, as the ledger in the cache names it.

    Attributes:
        usage: what each role used of each model.
        providers: the ways to reach a model.
    """

    def __init__(
        self,
        config: ClientConfig | None = None,
        cache: Store | None = None,
        stats: RunStats | None = None,
        command: str = "",
    ):
        self.config, self.cache = config or ClientConfig(), cache
        self._ledger = Ledger(cache, command) if cache else None
        self.usage: dict[tuple[str, str], Usage] = defaultdict(Usage)
        self._say = (stats or RunStats()).say
        self.providers = Providers(self.config.timeout, self._say)
        self._budget = Budget(self.config.max_cost, self._say)
        self._models: dict[str, RemoteModel] = {}
        # By the keys of the calls that are asked now; each is there as long as somebody uses it.
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        # Of models whose replies all came from the cache, too; they may have no address any more.
        self._health: dict[str, ModelHealth] = defaultdict(
            lambda: ModelHealth(cache is not None, self._say)
        )
        # A short value, or one without a digit, may be an ordinary word: SOME_KEY=default.
        self._keys = [
            key
            for key in environment_keys()
            if len(key) >= MIN_KEY and any(letter.isdigit() for letter in key)
        ]

    async def complete(self, call: Call) -> Reply:
        """The model's reply, from the cache if the same call was answered before.

        Of equal calls at once the first is made, and the others wait for its reply: the cache
        holds one, and another run would get it for all of them.

        Raises:
            CallError: this call failed for good.
            InputError: no call to this model can succeed, as with a wrong name or key.
            LimitReached: the money is spent, or the rest is needed by the items that have started.
        """
        if effort := effort_of(call.model, self.config.reasoning):
            call = replace(call, reasoning=effort)
        local = self.providers.choose(call.model, None) is self.providers.local
        if local:
            call = replace(call, weights=self.providers.local.fingerprint(call.model))
        if self.cache is None:
            return await self._complete(call, local)
        async with self._locks.setdefault(call.key, asyncio.Lock()):
            return await self._complete(call, local)

    async def _complete(self, call: Call, local: bool) -> Reply:
        used = self.usage[call.role, call.model]
        stored = self.cache.get(call.key) if self.cache else None
        if stored:
            used.calls, used.cached = used.calls + 1, used.cached + 1
            self._health[call.model].has_replied_before = True
            # Earlier versions kept the server's own word.
            return Reply(**{**stored, "finish": finish_reason(stored["finish"])})
        if local:
            reply = await self.providers.local.complete(call)
            used.add(reply)
        else:
            try:
                reply = await self.model(call.model).complete(call, used)
            except (CallError, InputError):
                self._save_if_due()  # it may have cost money, too
                raise
        used.calls += 1
        if any(key in reply.text for key in self._keys):  # some servers repeat what they were sent
            reply = replace(reply, text=redact(reply.text, self._keys))
        if self.cache:
            self.cache.put(call.key, vars(reply), call.model)
        self._save_if_due()
        return reply

    def _save_if_due(self) -> None:
        if self._ledger:
            self._ledger.save_if_due(self.usage)

    @property
    def cost(self) -> float:
        """US dollars that this client has spent, as far as prices are known."""
        return self._budget.spent

    def model(self, name: str) -> RemoteModel:
        """The state of one model behind a provider. Raises InputError where it has no address."""
        if name not in self._models:
            self._models[name] = RemoteModel(
                name, self.config, self.providers, self._budget, self._health[name], self._say
            )
        return self._models[name]

    def summary(self) -> list[str]:
        """A line for each role and model: calls, tokens and money."""
        return usage.summary(self.usage)

    def progress(self) -> str:
        """The same in a few words, for a progress bar. Another thread may call this."""
        return usage.progress(self.usage)

    def close(self) -> None:
        """End the models in this process, save what was used, and close the cache."""
        self.providers.local.close()
        if self.cache and self._ledger:
            try:
                self._ledger.save(self.usage)
            finally:
                self.cache.close()


def open_client(
    config: ClientConfig | None = None,
    cache: str | None = None,
    no_cache: bool = False,
    stats: RunStats | None = None,
    command: str = "",
) -> Client:
    """A client that keeps finished calls in the file `cache`, or in the usual one."""
    return Client(config, None if no_cache else Store(cache_path(cache)), stats, command)


def cache_path(cache: str | None) -> Path:
    """The file with the finished calls; None stands for the usual one."""
    return Path(cache) if cache else cache_folder() / "calls.sqlite"
