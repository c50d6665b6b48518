"""The addresses of one model. Calls are shared among them, except those that are down."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from urllib.parse import urlsplit

from musiccli.core.errors import InputError
from musiccli.llm.concurrency import CURRENT_ITEM
from musiccli.llm.config import ClientConfig
from musiccli.llm.limiter import AdaptiveLimiter
from musiccli.llm.provider_errors import ProviderError

# Prefixes of models on servers that speak OpenAI's protocol, and litellm's environment variables
# for their address. PREFIX_API_KEY holds the key.
OPENAI_COMPATIBLE = {
    "hosted_vllm": ("HOSTED_VLLM_API_BASE",),
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"),  # also OpenAI's own address
    "litellm_proxy": ("LITELLM_PROXY_API_BASE",),
    "lm_studio": ("LM_STUDIO_API_BASE",),
    "llamafile": ("LLAMAFILE_API_BASE",),
}
DOWN_SECONDS = 10.0  # for which no call goes to an address that is down
MAX_FAILURES = 3  # in a row; then an address is down. One where nobody listens is down at once.


@dataclass(eq=False)
class Endpoint:
    """One address of a model.

    Attributes:
        url: the address up to /v1; None for the provider's own address, which litellm knows.
        limiter: its calls in flight, and how many there may be.
        failures: failures since its last reply.
        down_until: monotonic time in seconds; None while the endpoint is up.
    """

    url: str | None
    limiter: AdaptiveLimiter
    failures: int = 0
    down_until: float | None = None

    @property
    def up(self) -> bool:
        """Whether it may be called. One that was down is tried with a single call first."""
        return self.down_until is None or (
            time.monotonic() >= self.down_until and not self.limiter.in_flight
        )


class Endpoints:
    """The addresses of one model, and the calls that wait for one of them.

    Each address has a limit of its own: one that is slow or refuses calls slows no other down.

    Args:
        model: the model's name.
        api_base: addresses of servers, each "URL" or "MODEL=URL".
        say: tells people something.
        concurrency: most calls in flight to all addresses together.

    Attributes:
        all: every endpoint, at least one.
        in_flight: calls in flight to all of them.
        key: the key for servers that speak OpenAI's protocol, if there is one.

    Raises:
        InputError: the model has no address.
    """

    def __init__(
        self,
        model: str,
        api_base: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
        concurrency: int = ClientConfig.concurrency,
    ):
        self.model, self.in_flight = model, 0
        self._say, self._concurrency = say, concurrency
        # A heap: the oldest item goes first, then whoever asked first.
        self._waiting: list[tuple[int, int, asyncio.Future[Endpoint]]] = []
        self._ticket = count()
        prefix = model.partition("/")[0]
        variable = f"{prefix.upper()}_API_KEY"
        key = os.environ.get(variable, "").strip()
        if prefix in OPENAI_COMPATIBLE and any(letter < " " for letter in key):
            raise InputError(
                f"{variable}: the key holds a line break or another control character; set the "
                "key alone"
            )
        self.key = key if prefix in OPENAI_COMPATIBLE and key else None
        urls: list[str | None] = [*model_urls(model, api_base)]
        if not urls and prefix in OPENAI_COMPATIBLE and prefix != "openai":
            raise InputError(
                f"{model}: where is the server? set `api_base` or {OPENAI_COMPATIBLE[prefix][0]}"
            )
        self.all = [Endpoint(url, AdaptiveLimiter(concurrency)) for url in urls or [None]]

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Endpoint]:
        """An endpoint for one call. How the call ends tells whether the endpoint takes more.

        The oldest item's call gets the next free slot. An error that is no ProviderError says
        nothing of the endpoint.
        """
        endpoint = await self._take_slot()
        try:
            while (pause := endpoint.limiter.pause) > 0:
                await asyncio.sleep(pause)
            yield endpoint
            endpoint.failures, endpoint.down_until = 0, None
            endpoint.limiter.record_success()
        except ProviderError as error:
            self.record_failure(endpoint, error)
            raise
        finally:
            self._release(endpoint)

    def can_fail_over(self, error: ProviderError) -> bool:
        """Whether a call that failed may succeed at once at another endpoint."""
        return (
            len(self.all) > 1
            and (error.unreachable or error.fatal)
            and any(endpoint.up for endpoint in self.all)
        )

    def record_failure(self, endpoint: Endpoint, error: ProviderError) -> None:
        """Slow an endpoint down after an overload, and leave it alone where it is down.

        A time-out is an overload, too: a server that shares its speed among all calls in flight
        would answer none of them in time.
        """
        if error.overloaded or error.timed_out:
            pause = None if error.wait_too_long else error.retry_after
            endpoint.limiter.record_overload(pause)
        if len(self.all) == 1 or error.request_specific:
            return
        endpoint.failures += 1
        if error.unreachable or error.fatal or endpoint.failures >= MAX_FAILURES:
            if endpoint.down_until is None:
                self._say(
                    f"{self.model}: {error}; no call goes there for {DOWN_SECONDS:g} seconds, "
                    "then it is tried again"
                )
            endpoint.down_until = time.monotonic() + DOWN_SECONDS

    async def _take_slot(self) -> Endpoint:
        """Wait for a slot. It counts as taken from the moment at which it is handed over."""
        if endpoint := self._choose():
            self._take(endpoint)
            return endpoint
        turn: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (CURRENT_ITEM.get().number, next(self._ticket), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _choose(self) -> Endpoint | None:
        """The endpoint for the next call, that with the least load; None where no slot is free.

        An endpoint that is down or paused is chosen where all are. Else some call is in flight, and
        its end hands out the next slot.
        """
        if self.in_flight >= self._concurrency:
            return None
        up = [endpoint for endpoint in self.all if endpoint.up]
        up = up or [min(self.all, key=lambda endpoint: endpoint.down_until or 0)]
        ready = [endpoint for endpoint in up if endpoint.limiter.pause <= 0] or up
        free = [endpoint for endpoint in ready if endpoint.limiter.has_room]
        return min(free, key=lambda endpoint: endpoint.limiter.load, default=None)

    def _take(self, endpoint: Endpoint) -> None:
        endpoint.limiter.in_flight += 1
        self.in_flight += 1

    def _release(self, endpoint: Endpoint) -> None:
        endpoint.limiter.in_flight -= 1
        self.in_flight -= 1
        while self._waiting and (free := self._choose()):
            *_, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(free)
                self._take(free)


def speaks_openai(model: str, url: str | None) -> bool:
    """Whether a model is called at a server of the user that speaks OpenAI's protocol."""
    if url is None or urlsplit(url).hostname == "api.openai.com":
        return False
    return model.partition("/")[0] in OPENAI_COMPATIBLE


def model_urls(model: str, api_base: Sequence[str]) -> list[str]:
    """The addresses of a model.

    These are the ones for it by name, else the ones for all OpenAI-compatible servers, else the one
    in its environment variable.
    """
    prefix = model.partition("/")[0]
    pairs = [parse_api_base(text) for text in api_base]
    by_name = [url for name, url in pairs if name == model]
    if by_name or prefix not in OPENAI_COMPATIBLE:
        return by_name
    shared = [url for name, url in pairs if name is None]
    if shared:
        return shared
    values = (os.environ.get(name, "").strip() for name in OPENAI_COMPATIBLE[prefix])
    return [parse_api_base(value)[1] for value in values if value][:1]


def check_api_base(api_base: Sequence[str], models: Sequence[str]) -> None:
    """Raises InputError for an address that none of the models would use."""
    for text in api_base:
        name, url = parse_api_base(text)
        if name and name not in models:
            raise InputError(
                f"`api_base` {name}=...: no model of this run has that name; there is "
                f"{', '.join(dict.fromkeys(models))}"
            )
        if not any(url in model_urls(model, [text]) for model in models):
            raise InputError(
                f"`api_base` {url}: an address without a name is only for the models "
                f"{', '.join(f'{prefix}/...' for prefix in OPENAI_COMPATIBLE)}; for another write "
                "MODEL=URL"
            )


def parse_api_base(text: str) -> tuple[str | None, str]:
    """Split "MODEL=URL" or "URL" into the model, or None, and the URL up to /v1.

    Raises:
        InputError: the text is no address, or one with a password or a key in it.
    """
    before, equals, after = text.partition("=")
    is_name = equals and "://" not in before and "?" not in before
    name, url = (before, after) if is_name else (None, text)
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if "@" in url:
        raise InputError(
            "`api_base`: an address with a password in it; set a key in the environment, as "
            "HOSTED_VLLM_API_KEY or OPENAI_API_KEY"
        )
    plain = text[: len(text) - len(url)] + url.partition("?")[0].partition("#")[0]
    if not usable or any(letter.isspace() for letter in url):
        raise InputError(f"`api_base` {plain}: expected [MODEL=]http://HOST:PORT/v1")
    if plain != text:
        raise InputError(
            f"`api_base` {plain}: an address with a query behind it; set a key in the environment, "
            "as HOSTED_VLLM_API_KEY or OPENAI_API_KEY"
        )
    return name, url.rstrip("/").removesuffix("/chat/completions")
