"""The provider for everything that litellm knows how to call."""

import asyncio
import logging
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from musiccli.core.errors import InputError
from musiccli.core.retry_after import parse_retry_after
from musiccli.core.text_safety import valid_text
from musiccli.llm.call import Call, Reply, finish_reason
from musiccli.llm.endpoints import OPENAI_COMPATIBLE
from musiccli.llm.prices import TokenPrices, listed_prices, prices_of
from musiccli.llm.provider_errors import (
    KEY_VARIABLE,
    ProviderError,
    is_secret,
    redact,
)
from musiccli.llm.providers.guarded_http import guarded
from musiccli.llm.providers.replies import empty_cause, token_count

# litellm gives these errors status 500; no later attempt helps.
UNUSABLE = re.compile(r"missing .{0,200}(api.?key|credentials)|no module named", re.IGNORECASE)

# "litellm.APIError: APIError: ", which litellm writes before a provider's words.
_ERROR_NAMES = re.compile(r"^litellm\.(\w+): (?:\1: )?")
OVERHEAD = 30.0  # seconds that litellm may take for itself, mostly to load a provider's code


class LiteLLMProvider:
    """Calls a provider through litellm, which finds the key in the environment.

    Args:
        timeout: seconds for one attempt.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout

    async def complete(self, call: Call, url: str | None = None, key: str | None = None) -> Reply:
        """Send one call once. Raises ProviderError; InputError where the name has no provider."""
        litellm = _litellm()
        if url is None:
            _check_key(call.model)
        with guarded(call.max_tokens) as guard:
            try:
                # litellm's time-out is for each piece of an answer: one that drips never ends.
                async with asyncio.timeout(self.timeout + OVERHEAD):
                    response = await litellm.acompletion(**self._request(call, url))
            except TimeoutError:
                raise ProviderError(f"no answer within {self.timeout:g} seconds", 408) from None
            except Exception as error:
                # Not `from error`: its text may quote the key, and --debug would show it.
                raise guard.error or provider_error(error, guard.secrets) from None
        reply = _read(litellm, response, call.model)
        return replace(reply, text=redact(reply.text, [*filter(is_secret, guard.secrets)]))

    def _request(self, call: Call, url: str | None) -> dict[str, Any]:
        """The arguments for litellm."""
        options: dict[str, Any] = {"stop": list(call.stop)} if call.stop else {}
        if call.reasoning:
            options["reasoning_effort"] = call.reasoning
        if call.schema and _litellm().supports_response_schema(call.model):
            options |= call.response_format
        return options | {
            "model": call.model,
            "messages": list(call.messages),
            call.limit_field or "max_tokens": call.max_tokens,
            "temperature": call.temperature,
            # 1 is everybody's default, and Claude takes none beside a temperature.
            "top_p": None if call.top_p == 1 else call.top_p,
            "seed": call.call_seed,
            "timeout": self.timeout,
            "api_base": url,
            "num_retries": 0,
            "max_retries": 0,
        }


def token_prices(model: str) -> TokenPrices | None:
    """The prices of a model; None where nobody knows them.

    litellm also knows names that its table does not list, but not those of the user's own servers.
    """
    prices = listed_prices(model)
    if prices or model.partition("/")[0] in OPENAI_COMPATIBLE:
        return prices
    try:
        return prices_of(_litellm().get_model_info(model))
    except Exception:  # litellm raises a bare Exception for a model that it does not list
        return None


def takes_effort(model: str, effort: str) -> bool:
    """Whether litellm lets a provider's model think as little or as much as this.

    It leaves an effort out of requests without a word where it knows that the model takes none.
    """
    litellm: Any = _litellm()
    litellm.drop_params = False
    try:
        name, provider, *_ = litellm.get_llm_provider(model)
        litellm.get_optional_params(
            model=name, custom_llm_provider=provider, reasoning_effort=effort
        )
    except litellm.UnsupportedParamsError:
        return False
    except Exception:  # a name that litellm does not know is told from others when it is called
        return True
    finally:
        litellm.drop_params = True
    return True


def provider_error(error: Exception, secrets: Sequence[str] = ()) -> ProviderError | InputError:
    """What an exception of litellm means. `secrets`: the keys that were sent."""
    text = _ERROR_NAMES.sub("", str(error).partition("Traceback (most recent call last)")[0])
    if type(error).__name__ == "BadRequestError" and "LLM Provider NOT provided" in text:
        return InputError(
            f"{getattr(error, 'model', None) or 'model'}: name the provider, as in "
            "gemini/gemini-2.5-flash or hosted_vllm/NAME; local/NAME runs in this process"
        )
    code = str(getattr(error, "status_code", None))
    # A status below 400 comes with a body that does not parse.
    status = int(code) if code.isdigit() and int(code) >= 400 else 500
    if UNUSABLE.search(text):
        status = 401
    return ProviderError(text, status, _retry_after(error), secrets=secrets)


@cache
def _check_key(model: str) -> None:
    """Raises InputError where the environment has no key for a provider that needs one.

    litellm would send some calls without a key, and describes the lack of one in other words for
    each provider. It does not list every name of a key, so any that begins like the provider does.
    """
    missing = _litellm().validate_environment(model)["missing_keys"]
    if not missing or not all(name.endswith("_API_KEY") for name in missing):
        return  # a provider that needs none, or credentials that may lie in a file
    provider = model.partition("/")[0].upper()[:4]
    if any(name.startswith(provider) and KEY_VARIABLE.search(name) for name in os.environ):
        return
    raise InputError(
        f"{model}: there is no key for it; set {' or '.join(sorted(missing))} in the environment"
    )


@cache
def _litellm() -> ModuleType:
    """litellm, kept from the network and the screen. Importing it takes seconds."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    litellm.suppress_debug_info, litellm.drop_params, litellm.telemetry = True, True, False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # When a run is interrupted, litellm leaves a coroutine that it has not started.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    module: ModuleType = litellm
    return module


def _read(litellm: ModuleType, response: Any, model: str) -> Reply:
    choice = response.choices[0] if response.choices else None
    text = valid_text((choice.message.content if choice else "") or "").strip()
    usage = getattr(response, "usage", None)
    reply = Reply(
        text,
        _finish(choice, text) if choice else "stop",
        token_count(getattr(usage, "prompt_tokens", 0)) or 0,
        token_count(getattr(usage, "completion_tokens", 0)) or 0,
        _cost(litellm, response, model),
    )
    if reply.has_counts:
        return reply
    prices = token_prices(model)  # litellm takes tokens that nobody counted for none
    return replace(reply, cost=prices.reply_cost(reply) if prices else None)


def _finish(choice: Any, text: str) -> str:
    """Why the reply ended. litellm calls it "stop" where it does not know the provider's word."""
    native = (getattr(choice, "provider_specific_fields", None) or {}).get("native_finish_reason")
    finish = finish_reason(choice.finish_reason)
    if finish == "stop" and native:
        finish = finish_reason(native)
    if text:
        return finish
    message = choice.message
    refusal = (getattr(message, "provider_specific_fields", None) or {}).get("refusal")
    return "refusal" if refusal else empty_cause(vars(message), finish)


def _cost(litellm: ModuleType, response: Any, model: str) -> float | None:
    computed = getattr(response, "_hidden_params", {})
    if "response_cost" in computed:  # computing it again would take a quarter of a call's time
        cost: float | None = computed["response_cost"]
        return None if cost is None else max(0.0, cost)
    try:
        return float(litellm.completion_cost(response, model=model))
    except Exception:  # litellm raises a bare Exception for a model that it does not list
        return None


def _retry_after(error: Exception) -> float | None:
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    ):
        if value := (headers or {}).get("retry-after"):
            return parse_retry_after(value)
    return None
