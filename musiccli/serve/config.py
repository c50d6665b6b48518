"""The options of `music serve` with their defaults."""

from dataclasses import dataclass

from musiccli.reward_model import DEFAULT_BUDGET

MIN_MAX_BODY = 1  # megabytes, to which no server sets its limit below: clients send no more at once


@dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, how it batches, and what it refuses.

    Attributes:
        host: the address to listen on. Only this machine reaches the default.
        port: the port; 0 is any that is free.
        api_key: the key that requests must bear; None where everybody is served.
        max_length: the most tokens of a conversation; a longer one loses its oldest exchanges.
            None is the length of the model's context.
        budget: the most tokens in one forward pass.
        patience: milliseconds that an idle server waits for more requests before it computes.
        max_body: the most megabytes of one request.
        max_queue: the most tokens that wait; beyond them requests are sent away for a while.
        timeout: seconds until a request is given up.
        processes: how many compute, the server's own included.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_length: int | None = None
    budget: int = DEFAULT_BUDGET
    patience: float = 3.0
    max_body: int = 16
    max_queue: int = 1_000_000
    timeout: float = 120.0
    processes: int = 1
