"""One call to a provider through litellm, and what its refusals mean."""

import os
import re
from functools import cache

from musiccli.core.errors import InputError
from musiccli.llm import prices
from musiccli.llm.call import Call, Reply
from musiccli.llm.endpoints import OWN
from musiccli.llm.provider_errors import ProviderError, seconds_until

HOPELESS = re.compile(
    r"missing .*(api.?key|credentials)|no module named", re.IGNORECASE
)  # litellm calls these 500


async def complete(call: Call, timeout: float, api_base: str | None) -> Reply:
    """The provider's reply to one call, tried once. Raises Refusal."""
    litellm = _litellm()
    options = {"stop": list(call.stop)} if call.stop else {}
    if call.schema and litellm.supports_response_schema(call.model):
        options |= call.response_format
    top_p = (
        None if call.top_p == 1 else call.top_p
    )  # 1 is everybody's own, and Claude takes none beside a temperature
    try:
        answer = await litellm.acompletion(
            model=call.model,
            messages=list(call.messages),
            max_tokens=call.max_tokens,
            temperature=call.temperature,
            top_p=top_p,
            seed=call.call_seed,
            timeout=timeout,
            api_base=api_base,
            num_retries=0,
            max_retries=0,
            **options,
        )
    except Exception as error:
        raise _refusal(error) from None  # its own text may quote the key, and --debug would show it
    choice = answer.choices[0] if answer.choices else None
    text = (choice.message.content if choice else "") or ""
    text = text.strip()
    usage = getattr(answer, "usage", None)
    return Reply(
        text,
        (choice and choice.finish_reason) or "stop",
        getattr(usage, "prompt_tokens", 0) or 0,
        getattr(usage, "completion_tokens", 0) or 0,
        _cost(litellm, answer, call.model),
    )


def price(model: str) -> tuple[float, float] | None:
    """US dollars per prompt token and per completion token; None where nobody knows. litellm knows names that its table
    does not list, but not those of one's own server."""
    known = prices.price(model)
    if known or model.partition("/")[0] in OWN:
        return known
    try:
        known = _litellm().get_model_info(model)
    except Exception:  # litellm raises a bare Exception for a model it does not list
        return None
    found = known.get("input_cost_per_token"), known.get("output_cost_per_token")
    return None if None in found else found


@cache
def _litellm():
    """litellm, imported when a provider is first called (it takes seconds), kept from the network and the screen."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import logging
    import warnings

    import litellm

    litellm.suppress_debug_info, litellm.drop_params, litellm.telemetry = True, True, False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # When a run is interrupted, litellm leaves a coroutine behind that it had not begun.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return litellm


def _refusal(error: Exception) -> ProviderError | InputError:
    status = getattr(error, "status_code", None)
    status = (
        int(status) if str(status).isdigit() and int(status) >= 400 else 500
    )  # 200: a body that does not parse
    name = type(error).__name__
    if name == "BadRequestError" and "LLM Provider NOT provided" in str(error):
        return InputError(
            f"{getattr(error, 'model', None) or 'model'}: name the provider, as in "
            "gemini/gemini-1.5-pro or hosted_vllm/NAME; local/NAME runs in this process"
        )
    text = str(error).partition("Traceback (most recent call last)")[0]
    if HOPELESS.search(text):
        status = 401
    return ProviderError(text, status, _retry_after(error))


def _retry_after(error: Exception) -> float | None:
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    ):
        if value := (headers or {}).get("retry-after"):
            return seconds_until(value)
    return None


def _cost(litellm, answer, model: str) -> float | None:
    reckoned = getattr(answer, "_hidden_params", {})
    if (
        "response_cost" in reckoned
    ):  # litellm has done so by itself; once more would take a quarter of a call's time
        return reckoned["response_cost"]
    try:
        return litellm.completion_cost(answer, model=model)
    except Exception:  # litellm raises a bare Exception for a model it does not list
        return None
