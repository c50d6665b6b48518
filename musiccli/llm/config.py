"""Settings of a client of language models."""

import math
from dataclasses import dataclass

from musiccli.core.errors import InputError


@dataclass(frozen=True)
class ClientConfig:
    """How language models are called.

    Attributes:
        concurrency: most calls in flight to one model.
        timeout: seconds for one attempt.
        attempts: how often one call is tried, the first time included.
        max_cost: US dollars that the client may spend; infinite for no limit.
        api_base: addresses of servers that speak OpenAI's protocol, each "URL" or "MODEL=URL".
        reasoning: how much models think before they reply, each "EFFORT" or "MODEL=EFFORT", as
            `llm.reasoning` has them; a model without one is asked for none in particular.
    """

    concurrency: int = 64
    timeout: float = 120.0
    attempts: int = 6
    max_cost: float = math.inf
    api_base: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.max_cost >= 0:
            raise InputError(f"`max_cost` {self.max_cost:g}: should be a number of dollars, from 0")
