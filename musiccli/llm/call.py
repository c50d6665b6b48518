"""What goes through the door: one question to one model, and what came back."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import orjson


@dataclass(frozen=True)
class Call:
    """One question to one model, and for whom it is asked.

    `messages` go through the model's chat template. Models in this process can also continue raw text: as="turn"
    continues the messages with the next user turn, as="completion" continues `text`.
    """

    model: str
    whom: tuple  # (id, branch, sample, turn, role, attempt): equal questions for others are other calls
    messages: tuple[dict, ...] = ()
    text: str = ""
    as_: str = "chat"
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @cached_property
    def key(self) -> bytes:
        asked = vars(self)  # the fields: nothing else stands there until this has been computed
        return blake2b(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()

    @property
    def own_seed(self) -> int:
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
