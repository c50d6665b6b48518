"""One model behind a provider: sends its calls, and retries those that fail."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from musiccli.core.errors import InputError
from musiccli.core.messages import count_characters
from musiccli.core.thoughts import without_thoughts
from musiccli.llm import limiter
from musiccli.llm.budget import Budget
from musiccli.llm.call import Call, Reply, retry_temperature
from musiccli.llm.concurrency import finish_call
from musiccli.llm.config import ClientConfig
from musiccli.llm.endpoints import Endpoint, Endpoints, speaks_openai
from musiccli.llm.model_health import ModelHealth
from musiccli.llm.open_files import within_open_files
from musiccli.llm.prices import listed_prices
from musiccli.llm.provider_errors import (
    FAILED_FINISH,
    REQUEST_SPECIFIC,
    BrokenReply,
    EmptyReply,
    ProviderError,
    UnusableReply,
)
from musiccli.llm.providers import Providers
from musiccli.llm.providers.litellm_provider import token_prices
from musiccli.llm.usage import Usage

CHARACTERS_PER_TOKEN = 4  # roughly, in English; the tokenizer of a provider is not at hand
PATIENT_ATTEMPT = 3  # after two waits that the server named and that were too short
INSTEAD = {"limit_field": "max_completion_tokens"}  # what a rejected field is replaced by
UNSUPPORTED = re.compile(
    r"support|unknown|unrecognized|unexpected|extra|not permitted|not allowed|instead",
    re.IGNORECASE,
)
# An error of a schema, and not of the request: "could not parse the JSON body" is one of a request.
ABOUT_SCHEMA = re.compile(
    r"(response|output).?(format|schema)|json.?schema|structured.?output|guided|grammar|"
    r"additionalProperties|schema\b.{0,40}\bsupport|invalid schema",
    re.IGNORECASE,
)

ABOUT_THOUGHTS = re.compile("reasoning|thinking", re.IGNORECASE)


class RemoteModel:
    """One model of a client.

    Args:
        model: the model's name.
        config: how models are called.
        providers: the ways to reach the model.
        budget: the run's money.
        health: counts the model's failures.
        say: tells people something.
    """

    def __init__(
        self,
        model: str,
        config: ClientConfig,
        providers: Providers,
        budget: Budget,
        health: ModelHealth,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._attempts = config.attempts
        self._providers, self._budget, self._say = providers, budget, say
        concurrency = within_open_files(model, config.concurrency, say)
        self.endpoints = Endpoints(model, config.api_base, say, concurrency)
        self.health = health
        listed_prices(model)  # reads a file, while no call holds all that may be open
        self._cost_unknown = False  # whether that was said
        self._left_out_once = False  # whether it was said that a schema was left out of one call
        # Field of a call -> the value with which the model takes the call; mostly None.
        self._rejected: dict[str, Any] = {}

    async def complete(self, call: Call, usage: Usage) -> Reply:
        """The reply to a call, after as many attempts as it takes; they are counted in `usage`.

        Raises:
            CallError: the call failed for good.
            InputError: no call to this model can succeed.
            LimitReached: the money is spent.
        """
        self._check_mode(call)
        await self._budget.start_item()
        attempt, failovers, question = 1, 0, call
        alike: Counter[type[ProviderError]] = Counter()  # errors of this call by their kind
        while True:
            try:
                async with self.endpoints.slot() as endpoint:
                    # Checked in the slot, so that none of the calls that wait for one starts.
                    self.health.check()
                    self._budget.check()
                    reply = await self._attempt(question, endpoint, usage)
            except ProviderError as error:
                if isinstance(error, UnusableReply):  # it costs tokens, too
                    self._charge(call, error.reply, usage)
                if failovers < len(self.endpoints.all) - 1 and self.endpoints.can_fail_over(error):
                    usage.retries, failovers = usage.retries + 1, failovers + 1
                    continue
                alike[type(error)] += 1
                last = attempt >= self._attempts or alike[type(error)] >= error.max_attempts
                if last or not error.retryable:
                    raise self.health.record_failure(call, error, attempt) from error
                usage.retries += 1
                self.health.warn(call, error)
                await asyncio.sleep(retry_delay(error, attempt))
                if isinstance(error, EmptyReply):
                    question = vary(call, alike[EmptyReply])
                attempt, failovers = attempt + 1, 0
            else:
                self.health.record_success()
                self._charge(call, reply, usage)
                return reply

    def _check_mode(self, call: Call) -> None:
        """Raises InputError for raw text that the model cannot continue, or not as it is asked."""
        if call.mode == "chat":
            return
        if call.reasoning:
            raise InputError(
                f"{call.model}: `reasoning` {call.reasoning} is for chats, and these `prompts` are "
                "raw text; leave one of the two out"
            )
        if not all(speaks_openai(call.model, endpoint.url) for endpoint in self.endpoints.all):
            raise InputError(
                f"{call.model}: only local/ models and servers of your own continue raw text; "
                "choose other `prompts`"
            )

    def _charge(self, call: Call, reply: Reply, usage: Usage) -> None:
        usage.add(reply)
        cost = self._estimate(call, reply) if reply.cost is None else reply.cost
        self._budget.charge(cost)

    def _estimate(self, call: Call, reply: Reply) -> float:
        """US dollars for a reply whose cost is unknown; 0 where its price is, too."""
        limited = self._budget.max_cost < math.inf
        prices = None if reply.has_counts else token_prices(call.model)
        if prices is None:
            if limited:
                self._say_once("its price is unknown, so `max_cost` cannot count it")
            return 0.0
        counted = "; `max_cost` counts them by their characters / 4" if limited else ""
        self._say_once(
            "replies came without a number of tokens, so what they cost is unknown" + counted
        )
        characters = count_characters(call.messages) + len(call.text)
        return prices.cost(
            characters // CHARACTERS_PER_TOKEN, len(reply.text) // CHARACTERS_PER_TOKEN
        )

    def _say_once(self, text: str) -> None:
        """Say that a cost is unknown, the first time."""
        if not self._cost_unknown:
            self._cost_unknown = True
            self._say(f"{self.endpoints.model}: {text}")

    async def _attempt(self, call: Call, endpoint: Endpoint, usage: Usage) -> Reply:
        """Make one attempt. A field that the model rejects is left out, in later calls, too.

        Where the error does not speak of the schema, that is left out of this call alone.
        """
        rejected, schema_error = dict(self._rejected), None
        while True:
            sent = replace(call, **rejected)
            if schema_error:
                sent = replace(sent, schema=None)
            try:
                reply = await self._send(sent, endpoint)
            except ProviderError as error:
                name = rejected_field(sent, error)
                if name in (None, "schema") and rejects_effort(sent, error):
                    raise self._effort_error(sent, error) from error
                if name is None:
                    raise
                usage.retries += 1
                if name == "schema" and not ABOUT_SCHEMA.search(str(error)):
                    schema_error = error
                else:
                    rejected[name] = INSTEAD.get(name)
            else:
                self._note_rejections(call, rejected, schema_error)
                return reply

    def _note_rejections(
        self, call: Call, rejected: dict[str, Any], schema_error: ProviderError | None
    ) -> None:
        """Keep for later calls what the model rejects, and say once what was left out."""
        for name in rejected:
            if name not in self._rejected:
                self._say(f"{call.model}: {_rejection(name, call)}")
        self._rejected |= rejected
        if schema_error and not self._left_out_once:
            self._left_out_once = True
            self._say(
                f"{call.model}: {schema_error}; that call was sent again without the JSON schema"
            )

    def _effort_error(self, call: Call, error: ProviderError) -> InputError:
        """The error for an effort that the model refuses. No further call is made: all have it."""
        self.health.stop_reason = (
            f"{call.model}: refuses `reasoning` {call.reasoning} with `{call.limit_option}` "
            f"{call.max_tokens}: {error}"
        )
        return InputError(self.health.stop_reason)

    async def _send(self, call: Call, endpoint: Endpoint) -> Reply:
        provider = self._providers.choose(call.model, endpoint.url)
        reply = await finish_call(provider.complete(call, endpoint.url, self.endpoints.key))
        if reply.finish in FAILED_FINISH:
            raise BrokenReply(reply)
        if not reply.text or (reply.finish == "length" and not without_thoughts(reply.text)):
            raise EmptyReply(reply, call)
        return reply


def rejected_field(call: Call, error: ProviderError) -> str | None:
    """The field of a call that a model rejects, if the error is about one.

    Claude takes temperature or top_p, thinking models often neither, and some no max_tokens but
    max_completion_tokens. Some servers take no seed. Their errors name the field. A schema is
    rejected in many words.
    """
    if error.status not in REQUEST_SPECIFIC or error.about_the_question:
        return None
    text = str(error)
    if not call.limit_field and "max_tokens" in text and UNSUPPORTED.search(text):
        return "limit_field"
    sampling = [
        name for name in ("top_p", "temperature", "seed") if re.search(rf"\b{name}\b", text)
    ]
    return next((name for name in (*sampling, "schema") if getattr(call, name) is not None), None)


def rejects_effort(call: Call, error: ProviderError) -> bool:
    """Whether a model rejects how much it is asked to think. Its error names that, in some way."""
    is_refusal = error.status in REQUEST_SPECIFIC and not error.about_the_question
    return bool(call.reasoning and is_refusal and ABOUT_THOUGHTS.search(str(error)))


def _rejection(name: str, call: Call) -> str:
    """What people should know of a field that is rejected."""
    if name == "limit_field":
        return "rejects max_tokens; asked for max_completion_tokens from here on"
    if name == "schema":
        return "rejects the JSON schema of its replies; left out from here on"
    if name == "seed":
        return "rejects seed; left out from here on, so a repeated call gets another reply"
    return f"rejects {name}={getattr(call, name):g}; left out from here on"


def vary(call: Call, retry: int) -> Call:
    """The call with another seed and a higher temperature: alike, it would get the same reply."""
    temperature = call.temperature
    if temperature is not None:
        temperature = retry_temperature(temperature, retry)
    return replace(call, retry=retry, temperature=temperature)


def retry_delay(error: ProviderError, attempt: int) -> float:
    """Seconds until the next attempt.

    Some servers name a wait of 0 or 1 second each time, whatever their quota. So from the third
    attempt on a wait that the server names is the least, and that of a quota is waited for.
    """
    quota = error.overloaded and (error.retry_after is None or attempt >= PATIENT_ATTEMPT)
    return max(error.retry_after or 0, limiter.backoff(attempt, quota))
