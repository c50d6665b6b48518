"""One call to a provider through litellm, and what its refusals mean."""

import os
import re
from functools import cache

from musiccli.errors import InputError
from musiccli.llm.call import Call, Reply

PASSING = {408, 409, 425, 429}  # and everything from 500 up: worth another try
OVERLOADED = {429, 503, 529}
FATAL = {401, 403, 404}  # no other call to this model would fare better
SECRET = re.compile(r"\b(?:sk|pk|gsk|hf|AIza)[-_]?[-_A-Za-z0-9*]{8,}")
SECRET_NAME = re.compile(r"_(API_)?(KEY|TOKEN|SECRET)$")  # of an environment variable
HOPELESS = re.compile(r"missing .*(api.?key|credentials)|no module named", re.IGNORECASE)  # litellm calls these 500


class Refusal(Exception):
    """A call that brought no usable reply. `retry_after` is in seconds, if the provider named any."""

    def __init__(self, text: str, status: int = 500, retry_after: float | None = None):
        super().__init__(text)
        self.status, self.retry_after = status, retry_after
        self.passing = status in PASSING or status >= 500
        self.overloaded = status in OVERLOADED
        self.fatal = status in FATAL


async def complete(call: Call, timeout: float, api_base: str | None) -> Reply:
    """The provider's reply to one call, tried once. Raises Refusal."""
    litellm = _litellm()
    _check_address(call.model, api_base)
    options = {"stop": list(call.stop)} if call.stop else {}
    try:
        answer = await litellm.acompletion(
            model=call.model, messages=list(call.messages), max_tokens=call.max_tokens, temperature=call.temperature,
            top_p=call.top_p, seed=call.own_seed, timeout=timeout, api_base=api_base, num_retries=0, max_retries=0,
            **options)
    except Exception as error:
        raise _refusal(error) from error
    choice = answer.choices[0] if answer.choices else None
    text = (choice.message.content if choice else "") or ""
    text = text.strip()
    if not text:
        raise Refusal("an empty reply")
    usage = getattr(answer, "usage", None)
    return Reply(text, choice.finish_reason or "stop", getattr(usage, "prompt_tokens", 0) or 0,
                 getattr(usage, "completion_tokens", 0) or 0, _cost(litellm, answer, call.model))


def price(model: str) -> tuple[float, float] | None:
    """US dollars per prompt token and per completion token, from litellm's table; None where it has none."""
    if model.startswith("local/"):
        return 0.0, 0.0
    try:
        known = _litellm().get_model_info(model)
    except Exception:  # litellm raises a bare Exception for a model it does not list
        return None
    prices = known.get("input_cost_per_token"), known.get("output_cost_per_token")
    return None if None in prices else prices


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


def _check_address(model: str, api_base: str | None) -> None:
    """Without an address litellm would send what is meant for a server of one's own to OpenAI."""
    if model.startswith("hosted_vllm/") and not (api_base or os.environ.get("HOSTED_VLLM_API_BASE")):
        raise InputError(f"{model}: where is the server? name it by --api-base URL or HOSTED_VLLM_API_BASE")


def _refusal(error: Exception) -> Refusal | InputError:
    status = getattr(error, "status_code", None)
    status = int(status) if str(status).isdigit() and int(status) >= 400 else 500  # 200: a body that does not parse
    name = type(error).__name__
    if name == "BadRequestError" and "LLM Provider NOT provided" in str(error):
        return InputError(f"{getattr(error, 'model', None) or 'model'}: name the provider, as in "
                          "gemini/gemini-1.5-pro or hosted_vllm/NAME; local/NAME runs in this process")
    text = " ".join(str(error).partition("Traceback (most recent call last)")[0].split())
    if HOPELESS.search(text):
        status = 401
    return Refusal(_without_keys(text)[:300].rstrip(". "), status, _retry_after(error))


def _without_keys(text: str) -> str:
    """The text without anything that looks like a key, or stands in the environment as one."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 6:
            text = text.replace(value, "[key]")
    return SECRET.sub("[key]", text)


def _retry_after(error: Exception) -> float | None:
    for headers in (getattr(error, "litellm_response_headers", None),
                    getattr(getattr(error, "response", None), "headers", None)):
        value = (headers or {}).get("retry-after")
        if value:
            try:
                return max(0.0, float(value))
            except ValueError:
                return None  # a date; the back-off's own wait serves
    return None


def _cost(litellm, answer, model: str) -> float | None:
    try:
        return litellm.completion_cost(answer, model=model)
    except Exception:  # litellm raises a bare Exception for a model it does not list
        return None
