"""One request to a language model, and its reply."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import orjson

from musiccli.core.messages import Message

RETRY_TEMPERATURE_STEP = 0.2  # per retry: the same temperature would often give the same reply
MAX_RETRY_TEMPERATURE = 1.0  # some providers refuse more


@dataclass(frozen=True)
class Call:
    """One request to one model.

    Attributes:
        model: the model's name, as "gemini/gemini-2.5-flash" or "local/smollm2".
        call_key: what it is for, as (id, branch, sample, turn, role, attempt). The role stands last
            but one. Equal requests with different keys are different calls.
        messages: the conversation, written with the model's chat template.
        text: the text to continue, for mode "completion".
        mode: "chat" asks for the assistant's next message. Models in this process also have "turn",
            which asks for the user's next message, and "completion", which continues `text`.
        max_tokens: longest reply in tokens.
        temperature: sampling temperature; None for the model's own.
        top_p: nucleus sampling (arXiv 1904.09751); None for the model's own.
        stop: strings that end the reply and are not part of it.
        seed: the run's seed; None for a model that takes none.
        schema: JSON schema of the reply, for models that can be held to one. Others ignore it.
        weights: tells a local model from an earlier one in the same folder, and one that OpenVINO
            computes from one that PyTorch does.
        retry: 1, 2, ... where the same call is sent again for another reply; it changes the seed.
        limit_field: the name of the field for `max_tokens` in a request; None for "max_tokens".
        reasoning: how much the model thinks first, one of `reasoning.EFFORTS`; None for its
            own way.
        limit_option: the parameter that sets `max_tokens`, for messages. It is no part of the key.
    """

    model: str
    call_key: tuple[object, ...]
    messages: tuple[Message, ...] = ()
    text: str = ""
    mode: str = "chat"
    max_tokens: int = 512
    temperature: float | None = 0.7
    top_p: float | None = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = 0
    schema: dict[str, Any] | None = None
    weights: str | None = None
    retry: int | None = None
    limit_field: str | None = None
    reasoning: str | None = None
    limit_option: str = "max_tokens"

    @property
    def role(self) -> str:
        """The role that the model plays in this call, as "assistant" or "judge"."""
        return str(self.call_key[-2])

    @cached_property
    def key(self) -> bytes:
        """The key of the call in the cache: a hash of its fields that are not None.

        A field that is added later must default to None, so that existing caches are still found.
        """
        fields = {name: value for name, value in vars(self).items() if value is not None}
        # The names of these fields when the first caches were written.
        del fields["limit_option"]
        fields["whom"], fields["as_"] = fields.pop("call_key"), fields.pop("mode")
        return blake2b(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()

    @property
    def response_format(self) -> dict[str, Any]:
        """The field that a request of OpenAI's protocol needs for the schema; empty without one."""
        if not self.schema:
            return {}
        json_schema = {"name": "reply", "strict": True, "schema": self.schema}
        return {"response_format": {"type": "json_schema", "json_schema": json_schema}}

    @property
    def call_seed(self) -> int | None:
        """A seed of this call alone: samples of a conversation differ, a repeated run does not."""
        if self.seed is None:
            return None
        return int.from_bytes(self.key[:4], "big") >> 1


# Other servers' words for "stop" and for "length": Anthropic, TGI, SGLang, Mistral, Gemini.
STOPPED = {
    *("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "finished"),
    "finish_reason_unspecified",
}
LENGTHS = {"length", "max_tokens", "model_length", "max_output_tokens", "max_length"}

INTERRUPTIONS = {
    "content_filter": "content filter",
    "tool_calls": "tool call",
    "function_call": "tool call",
}


@dataclass(frozen=True)
class Reply:
    """What a model answered. The cache stores the fields under these names.

    Attributes:
        text: the reply, without white space around it.
        finish: OpenAI's finish_reason: "stop", "length", "content_filter", ...
        prompt_tokens: tokens of the request; 0 where nobody counted them.
        completion_tokens: tokens of the reply; 0 where nobody counted them.
        cost: US dollars; None where the price or the number of tokens is unknown.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    @property
    def has_counts(self) -> bool:
        """Whether the tokens were counted: neither a prompt nor a text has none of them."""
        return self.prompt_tokens > 0 and (self.completion_tokens > 0 or not self.text)

    @property
    def interruption(self) -> str | None:
        """Why the reply ends before its end, if neither the model nor the limit ended it."""
        if self.finish in ("stop", "length"):
            return None
        return INTERRUPTIONS.get(self.finish, "interrupted")


def retry_temperature(first: float, retry: int) -> float:
    """The temperature of a retry. Retry 0 is the first attempt, at the temperature `first`."""
    if not retry:
        return first
    highest = max(first, MAX_RETRY_TEMPERATURE)
    return min(round(first + RETRY_TEMPERATURE_STEP * retry, 2), highest)


def finish_reason(value: object) -> str:
    """A server's finish_reason in OpenAI's words. A server that names none has finished."""
    if isinstance(value, dict):  # SGLang's own form
        value = value.get("type")
    name = str(value or "stop").strip().lower()[:40]
    return "stop" if name in STOPPED else "length" if name in LENGTHS else name
