"""Where a model is asked: its addresses, how calls are shared between them, and what is done about one that is down."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from musiccli.core.errors import InputError
from musiccli.core.progress import say
from musiccli.llm.provider_errors import ProviderError

# Prefixes of models that a server of one's own offers by OpenAI's protocol, and litellm's variables for its address.
# PREFIX_API_KEY holds its key.
OWN = {
    "hosted_vllm": ("HOSTED_VLLM_API_BASE",),
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"),  # unless it is OpenAI's own address
    "litellm_proxy": ("LITELLM_PROXY_API_BASE",),
    "lm_studio": ("LM_STUDIO_API_BASE",),
    "llamafile": ("LLAMAFILE_API_BASE",),
}
AWAY = 10.0  # seconds for which an address that is down is left alone
FAILURES = 3  # in a row, until an address counts as down; one where nobody listens does at once


@dataclass(eq=False)
class Endpoint:
    """One address of a model. `url` is None where litellm knows the provider's."""

    url: str | None
    direct: bool = False
    in_flight: int = 0
    failures: int = 0  # since its last answer
    away_until: float | None = None  # while it is down

    @property
    def up(self) -> bool:
        """Whether it may be called; one that was down is tried with a single call first."""
        return self.away_until is None or (
            time.monotonic() >= self.away_until and not self.in_flight
        )


class Endpoints:
    """The addresses of one model. Raises InputError where there is none to be called."""

    def __init__(self, model: str, given: Sequence[str] = ()):
        self.model = model
        prefix = model.partition("/")[0]
        key = os.environ.get(f"{prefix.upper()}_API_KEY", "").strip()
        self.key = key if prefix in OWN and key else None
        urls = addresses(model, given)
        if not urls and prefix in OWN and prefix != "openai":
            raise InputError(
                f"{model}: where is the server? name it by --api-base URL or {OWN[prefix][0]}"
            )
        self.all = [Endpoint(url, prefix in OWN and not _openais(url)) for url in urls] or [
            Endpoint(None)
        ]

    @contextmanager
    def one(self) -> Iterator[Endpoint]:
        """The address with the fewest calls in flight, for one call; how that ends says whether the address is up."""
        up = [one for one in self.all if one.up]
        chosen = (
            min(up, key=lambda one: one.in_flight)
            if up
            else min(self.all, key=lambda one: one.away_until or 0)
        )
        chosen.in_flight += 1
        try:
            yield chosen
            chosen.failures, chosen.away_until = 0, None
        except ProviderError as refusal:
            self._refused(chosen, refusal)
            raise
        finally:
            chosen.in_flight -= 1

    def elsewhere(self, refusal: ProviderError) -> bool:
        """Whether a refused call would fare better at once, at another address."""
        return (
            len(self.all) > 1
            and (refusal.unreachable or refusal.fatal)
            and any(one.up for one in self.all)
        )

    def _refused(self, endpoint: Endpoint, refusal: ProviderError) -> None:
        if len(self.all) == 1 or not refusal.of_the_server:
            return
        endpoint.failures += 1
        if refusal.unreachable or refusal.fatal or endpoint.failures >= FAILURES:
            if endpoint.away_until is None:
                say(f"{self.model}: {refusal}; left alone for {AWAY:g} seconds, then tried again")
            endpoint.away_until = time.monotonic() + AWAY


def addresses(model: str, given: Sequence[str]) -> list[str]:
    """The addresses of a model: those given for it by name, else those given for every server of one's own, else its
    environment variable's."""
    prefix = model.partition("/")[0]
    pairs = [split(one) for one in given]
    named = [url for name, url in pairs if name == model]
    if named or prefix not in OWN:
        return named
    variable = next(
        (value for name in OWN[prefix] if (value := os.environ.get(name, "").strip())), None
    )
    return [url for name, url in pairs if name is None] or (
        [split(variable)[1]] if variable else []
    )


def check(given: Sequence[str], models: Sequence[str]) -> None:
    """Raises InputError for an address that no model of the run would use."""
    for one in given:
        name, url = split(one)
        if name and name not in models:
            raise InputError(
                f"--api-base {name}=...: no model of this run has that name; there is {', '.join(models)}"
            )
        if not any(url in addresses(model, [one]) for model in models):
            raise InputError(
                f"--api-base {url}: only models on a server of one's own ({', '.join(OWN)}) go to an "
                "address without a name; for another write MODEL=URL"
            )


def split(given: str) -> tuple[str | None, str]:
    """ "MODEL=URL" or "URL" as the model, or None, and the URL up to /v1. Raises InputError for what is no address."""
    before, equals, after = given.partition("=")
    name, url = (before, after) if equals and "://" not in before else (None, given)
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if "@" in parts.netloc:
        raise InputError(
            "--api-base: an address with a password in it; keys belong into the environment, as "
            "HOSTED_VLLM_API_KEY or OPENAI_API_KEY"
        )
    if not usable or any(letter.isspace() for letter in url):
        raise InputError(f"--api-base {given}: expected [MODEL=]http://HOST:PORT/v1")
    return name, url.rstrip("/").removesuffix("/chat/completions")


def _openais(url: str) -> bool:
    return urlsplit(url).hostname == "api.openai.com"
