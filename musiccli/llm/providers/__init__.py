"""The ways to reach a model, and the choice between them.

To add a provider, write a class with the method `complete` of `Provider` in a module beside this
one, and choose it in `Providers.choose`.
"""

from collections.abc import Callable
from typing import Protocol

from musiccli.llm.call import Call, Reply
from musiccli.llm.endpoints import speaks_openai
from musiccli.llm.providers.litellm_provider import LiteLLMProvider
from musiccli.llm.providers.local_provider import LocalProvider
from musiccli.llm.providers.openai_server import OpenAIServer


class Provider(Protocol):
    """One way to reach a model."""

    async def complete(self, call: Call, url: str | None, key: str | None) -> Reply:
        """Send one call once. Retries, limits and the cache are the client's business.

        Args:
            call: the request.
            url: the address up to /v1; None for the provider's own.
            key: the key for the address, if there is one.

        Raises:
            ProviderError: there is no usable reply; its status says whether to try again.
            InputError: no call to this model can succeed.
        """
        ...


class Providers:
    """The providers of one client.

    Args:
        timeout: seconds for one attempt.
        say: tells people something.
    """

    def __init__(self, timeout: float, say: Callable[[str], None] = lambda text: None):
        self.local = LocalProvider(say)
        self.litellm = LiteLLMProvider(timeout)
        self.openai_server = OpenAIServer(timeout, say)

    def choose(self, model: str, url: str | None) -> Provider:
        """The provider for a model at an address."""
        if model.startswith("local/"):
            return self.local
        if speaks_openai(model, url):
            return self.openai_server
        return self.litellm
