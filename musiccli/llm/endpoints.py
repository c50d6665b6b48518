"""The addresses of one model. Calls are shared among them, except those that are down."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from musiccli.core.errors import InputError
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
        in_flight: calls in flight.
        failures: failures since its last reply.
        down_until: monotonic time in seconds; None while the endpoint is up.
    """

    url: str | None
    in_flight: int = 0
    failures: int = 0
    down_until: float | None = None

    @property
    def up(self) -> bool:
        """Whether it may be called. One that was down is tried with a single call first."""
        return self.down_until is None or (
            time.monotonic() >= self.down_until and not self.in_flight
        )


class Endpoints:
    """The addresses of one model.

    Args:
        model: the model's name.
        api_base: addresses of servers, each "URL" or "MODEL=URL".
        say: tells people something.

    Attributes:
        all: every endpoint, at least one.
        key: the key for servers that speak OpenAI's protocol, if there is one.

    Raises:
        InputError: the model has no address.
    """

    def __init__(
        self,
        model: str,
        api_base: Sequence[str] = (),
        say: Callable[[str], None] = lambda text: None,
    ):
        self.model, self._say = model, say
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
        self.all = [Endpoint(url) for url in urls or [None]]

    @contextmanager
    def least_busy(self) -> Iterator[Endpoint]:
        """The endpoint for one call. How the call ends tells whether the endpoint is up."""
        up = [endpoint for endpoint in self.all if endpoint.up]
        if up:
            endpoint = min(up, key=lambda endpoint: endpoint.in_flight)
        else:
            endpoint = min(self.all, key=lambda endpoint: endpoint.down_until or 0)
        endpoint.in_flight += 1
        try:
            yield endpoint
            endpoint.failures, endpoint.down_until = 0, None
        except ProviderError as error:
            self._record_failure(endpoint, error)
            raise
        finally:
            endpoint.in_flight -= 1

    def can_fail_over(self, error: ProviderError) -> bool:
        """Whether a call that failed may succeed at once at another endpoint."""
        return (
            len(self.all) > 1
            and (error.unreachable or error.fatal)
            and any(endpoint.up for endpoint in self.all)
        )

    def _record_failure(self, endpoint: Endpoint, error: ProviderError) -> None:
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
