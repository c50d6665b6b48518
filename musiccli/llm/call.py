"""What goes through the door: one question to one model, and what came back."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import orjson


@dataclass(frozen=True)
class Call:
    """One question to one model, and for whom it is asked.

    `messages` go through the model's chat template. Models in this process can also continue raw text: mode="turn"
    continues the messages with the next user turn, mode="completion" continues `text`. `schema` is the JSON schema of the
    reply where the model can be held to one; where it cannot, the reply is what it would have been without.
    `temperature` and `top_p` are None where the model's own are to hold. `weights` tells a model of this process from
    another of the same name: a folder that was trained into again.
    """

    model: str
    call_key: tuple  # (id, branch, sample, turn, role, attempt): equal questions for others are other calls
    messages: tuple[dict, ...] = ()
    text: str = ""
    mode: str = "chat"
    max_tokens: int = 512
    temperature: float | None = 0.7
    top_p: float | None = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    schema: dict | None = None
    weights: str | None = None

    @cached_property
    def key(self) -> bytes:
        # The fields: nothing else stands there until this has been computed. A field that came later is None where it
        # is not used, and left out, so that what older caches hold is found.
        asked = {name: value for name, value in vars(self).items() if value is not None}
        # The names of these fields when the first caches were written.
        asked["whom"], asked["as_"] = asked.pop("call_key"), asked.pop("mode")
        return blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()

    @property
    def response_format(self) -> dict:
        """What to add to a request of OpenAI's protocol so that the reply keeps to the schema, if there is one."""
        form = {"name": "reply", "strict": True, "schema": self.schema}
        return (
            {"response_format": {"type": "json_schema", "json_schema": form}} if self.schema else {}
        )

    @property
    def call_seed(self) -> int:
        """A seed for this call alone, so that two samples of one conversation differ and a repeated run does not."""
        return int.from_bytes(self.key[:4], "big") >> 1


@dataclass(frozen=True)
class Reply:
    """What a model answered. `cost` is in US dollars, None where nobody knows the price."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
