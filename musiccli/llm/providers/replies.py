"""What stands in a model's reply as it came, in the forms that servers send."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from musiccli.core.text_safety import valid_text
from musiccli.llm.call import Reply, finish_reason
from musiccli.llm.provider_errors import ProviderError, redact_keys
from musiccli.llm.providers.bodies import MAX_ERROR_BODY

MAX_TOKEN_COUNT = 1e9  # a server that reports more tokens counts wrongly


@dataclass(frozen=True)
class Completion:
    """What a server answered.

    Attributes:
        reply: the reply, without a cost.
        model: the name of the model that answers, if the server says it.
        odd_counts: numbers of tokens that cannot be, as the server wrote them; empty if none.
    """

    reply: Reply
    model: str | None = None
    odd_counts: str = ""


def parse_completion(body: bytes) -> Completion:
    """What stands in the body of a completion. Raises ProviderError for any other body."""
    completion = _load(body)
    try:
        choice = completion["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        text = valid_text(_text(message.get("content"))).strip()
        finish = finish_reason(choice.get("finish_reason"))
        usage, model = completion.get("usage") or {}, completion.get("model")
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    except (LookupError, TypeError, AttributeError) as error:
        raise _body_error(completion, body) from error
    prompt, written = (token_count(count) for count in counts.values())
    odd = [
        f"{name} {redact_keys(str(count))[:40]}"
        for (name, count), number in zip(counts.items(), (prompt, written), strict=True)
        if number is None
    ]
    return Completion(
        Reply(
            text, finish if text else empty_cause(message, finish), prompt or 0, written or 0, None
        ),
        model if isinstance(model, str) else None,
        ", ".join(odd),
    )


def token_count(value: object) -> int | None:
    """A reported number of tokens: 0 where none is reported, None for one that cannot be."""
    if value is None:
        return 0
    if not isinstance(value, int | float) or not 0 <= value <= MAX_TOKEN_COUNT:
        return None
    return int(value)


def empty_cause(message: Mapping[str, Any], finish: str) -> str:
    """The finish reason of an empty reply; where that is "stop", what its message holds instead."""
    if message.get("refusal"):
        return "refusal"
    if finish == "stop" and message.get("tool_calls"):
        return "tool_calls"
    if finish == "stop" and (message.get("reasoning_content") or message.get("reasoning")):
        return "reasoning"
    return finish


def same_model(name: str, served: str) -> bool:
    """Whether a server that calls itself `served` may be the model that was asked for.

    Providers add a date to a name ("gpt-4o-2024-08-06"), and servers name a folder or a file.
    """
    name, served = name.lower(), served.lower()
    return name in served or served in name


def _text(content: Any) -> str:
    """A message's text; some servers send it in parts. Raises TypeError for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text") or "" for part in content)


def _load(body: bytes) -> Any:
    """The JSON of a body. Python's reader takes lone surrogates, which orjson refuses."""
    with contextlib.suppress(ValueError):
        return orjson.loads(body)
    try:
        return json.loads(body.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"the body is no JSON: {_beginning(body)}") from error


def _body_error(completion: Any, body: bytes) -> ProviderError:
    """What a body means that is no completion. Some gateways send errors with status 200."""
    error = completion.get("error") if isinstance(completion, dict) else None
    if not error:
        return ProviderError(f"no chat completion: {_beginning(body)}")
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and code >= 400 else 500
    return ProviderError(error_message(body), status)


def _beginning(body: bytes) -> str:
    return redact_keys(body[:MAX_ERROR_BODY].decode(errors="replace"))[:80]


def error_message(body: bytes) -> str:
    """The message in an error's body.

    OpenAI has it in {"error": {"message"}}, vLLM in {"message"}, FastAPI in {"detail"}.
    """
    try:
        message = _load(body)
    except ProviderError:
        return body.decode(errors="replace")
    while isinstance(message, dict):
        names = ("error", "message", "detail")
        message = next((message[name] for name in names if message.get(name)), str(message))
    return str(message)
