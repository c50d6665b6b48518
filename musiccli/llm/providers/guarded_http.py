"""What litellm sends for a call: over httpx, to one host, and with bounds on the answer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from musiccli.core.errors import InputError
from musiccli.llm.provider_errors import ProviderError, redirect_error
from musiccli.llm.providers.bodies import ACCEPT_ENCODING, Body

if TYPE_CHECKING:
    import httpx

_SECRET_NAME = re.compile("key|token|auth|secret", re.IGNORECASE)  # of a header or a parameter


@dataclass
class Guard:
    """One guarded call.

    Attributes:
        max_tokens: the longest reply that was asked for.
        secrets: the keys that were sent.
        error: why the call was stopped; litellm would wrap it into an error of its own.
    """

    max_tokens: int
    secrets: list[str] = field(default_factory=list)
    error: ProviderError | InputError | None = None


_GUARD: ContextVar[Guard | None] = ContextVar("_GUARD", default=None)


@contextmanager
def guarded(max_tokens: int) -> Iterator[Guard]:
    """Guard every request that httpx sends within this context, in threads of asyncio, too."""
    _guard_httpx()
    guard = Guard(max_tokens)
    token = _GUARD.set(guard)
    try:
        yield guard
    finally:
        _GUARD.reset(token)


@cache
def _guard_httpx() -> None:
    """Let httpx's clients look for a guard. Without one they work as before.

    litellm makes its clients in many places, and most of them follow redirects.
    """
    import httpx

    async_send, sync_send = httpx.AsyncClient.send, httpx.Client.send

    async def send_async(
        client: httpx.AsyncClient, request: httpx.Request, **options: Any
    ) -> httpx.Response:
        guard = _GUARD.get()
        if guard is None:
            return await async_send(client, request, **options)
        with _keeping(guard):
            _prepare(request, guard)
            options |= {"stream": True, "follow_redirects": False}
            response = await async_send(client, request, **options)
            try:
                body = _begin(response, guard)
                async for chunk in response.aiter_raw():
                    if not body.add(chunk):
                        break
            finally:
                await response.aclose()
            return _whole(response, body)

    def send_sync(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        guard = _GUARD.get()
        if guard is None:
            return sync_send(client, request, **options)
        with _keeping(guard):
            _prepare(request, guard)
            options |= {"stream": True, "follow_redirects": False}
            response = sync_send(client, request, **options)
            try:
                body = _begin(response, guard)
                for chunk in response.iter_raw():
                    if not body.add(chunk):
                        break
            finally:
                response.close()
            return _whole(response, body)

    httpx.AsyncClient.send = send_async  # type: ignore[method-assign, assignment]
    httpx.Client.send = send_sync  # type: ignore[method-assign, assignment]


@contextmanager
def _keeping(guard: Guard) -> Iterator[None]:
    """Keep the guard's own error."""
    try:
        yield
    except (ProviderError, InputError) as error:
        guard.error = error
        raise


def _prepare(request: "httpx.Request", guard: Guard) -> None:
    """Note the keys of a request, and ask for what `Body` can unpack."""
    request.headers["accept-encoding"] = ACCEPT_ENCODING
    query = parse_qsl(urlsplit(str(request.url)).query)
    for name, value in (*request.headers.items(), *query):
        if not _SECRET_NAME.search(name):
            continue
        if any(letter < " " for letter in value):
            raise InputError(
                "the key in the environment holds a line break or another control character; "
                "set the key alone"
            )
        guard.secrets.append(value.rpartition(" ")[2])  # "Bearer KEY"


def _begin(response: "httpx.Response", guard: Guard) -> Body:
    """The empty body of an answer. Raises ProviderError for a redirect."""
    if 300 <= response.status_code < 400:
        location = response.headers.get("location")
        raise redirect_error(response.status_code, location, guard.secrets)
    encoding = response.headers.get("content-encoding")
    return Body(response.status_code, encoding, guard.max_tokens)


def _whole(response: "httpx.Response", body: Body) -> "httpx.Response":
    """The answer with its unpacked body, as httpx gives it to a caller that does not stream."""
    import httpx

    dropped = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, text) for name, text in response.headers.multi_items() if name not in dropped]
    whole = httpx.Response(
        response.status_code,
        headers=headers,
        content=body.value(),
        request=response.request,
        extensions=response.extensions,
    )
    whole.elapsed = response.elapsed
    return whole
