"""The provider for servers that speak OpenAI's protocol, such as vLLM and SGLang.

It does without litellm, which spends milliseconds of CPU on a call: more than such a server needs.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from musiccli.core.errors import InputError
from musiccli.llm.call import Call, Reply
from musiccli.llm.prices import listed_prices
from musiccli.llm.provider_errors import ProviderError, parse_retry_after, redact_keys

if TYPE_CHECKING:
    from aiohttp import ClientSession

# Seconds an idle connection is kept: uvicorn, under vLLM and SGLang, closes it after 5.
KEEP_ALIVE = 4.0
# Seconds to connect. A SYN that is lost in a full backlog is sent again after 1, 3 and 7 seconds.
CONNECT_TIMEOUT = 15.0


class OpenAIServer:
    """Calls servers over one HTTP session for each event loop, which ends with the loop.

    The connector has no limit: the client limits the calls in flight.

    Args:
        timeout: seconds for one attempt.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: AsyncGenerator[ClientSession, None] | None = None
        self._session: ClientSession | None = None
        self._proxies: dict[str, str | None] = {}

    async def complete(self, call: Call, url: str | None, key: str | None) -> Reply:
        """Send one call once. Raises ProviderError; InputError where `url` is no address."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        status, answered, body = await self._post(
            f"{url}/chat/completions", request_body(call), headers
        )
        if status >= 300:
            raise _status_error(status, body, answered)
        reply, prices = parse_completion(body), listed_prices(call.model)
        if prices is None:
            return reply
        return replace(reply, cost=prices.cost(reply.prompt_tokens, reply.completion_tokens))

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The status, headers and body of the answer."""
        from aiohttp import ClientConnectorError, ClientError, InvalidURL, ServerTimeoutError

        session = await self._open_session()
        try:
            async with session.post(
                url, data=body, headers=headers, proxy=self._proxy(url), allow_redirects=False
            ) as response:
                return response.status, response.headers, await response.read()
        except InvalidURL as error:
            raise InputError(f"{url}: not an address") from error
        except (ClientConnectorError, ConnectionRefusedError) as error:
            raise ProviderError(
                f"no connection to {url}: {error.strerror or error}", unreachable=True
            ) from error
        except ServerTimeoutError as error:
            seconds = min(CONNECT_TIMEOUT, self.timeout)
            raise ProviderError(
                f"no connection to {url} within {seconds:g} seconds", 408, unreachable=True
            ) from error
        except TimeoutError as error:
            raise ProviderError(f"{url}: no answer within {self.timeout:g} seconds", 408) from error
        except (ClientError, OSError) as error:
            raise ProviderError(
                f"{url}: the connection broke: {str(error) or type(error).__name__}"
            ) from error

    async def _open_session(self) -> "ClientSession":
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._sessions = _session(self.timeout)
            self._session, self._loop = await anext(self._sessions), loop
        return self._session

    def _proxy(self, url: str) -> str | None:
        """The proxy that the environment names for an address, as curl and litellm use it."""
        parts = urlsplit(url)
        if parts.netloc not in self._proxies:
            bypass = proxy_bypass(parts.hostname or "")
            self._proxies[parts.netloc] = None if bypass else getproxies().get(parts.scheme)
        return self._proxies[parts.netloc]


async def _session(timeout: float) -> AsyncGenerator["ClientSession", None]:
    """A session that ends with its event loop: a loop that ends closes its generators."""
    import aiohttp

    allow_many_files()
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT_TIMEOUT, timeout))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


def request_body(call: Call) -> bytes:
    """The JSON body of the request."""
    fields = {
        "model": call.model.partition("/")[2],
        "messages": call.messages,
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "seed": call.call_seed,
        **call.response_format,
    }
    if call.stop:
        fields["stop"] = call.stop
    return orjson.dumps({name: value for name, value in fields.items() if value is not None})


def parse_completion(body: bytes) -> Reply:
    """The reply in a chat completion, without a cost. Raises ProviderError for any other body."""
    try:
        completion = orjson.loads(body)
    except ValueError as error:
        raise ProviderError(f"the body is no JSON: {_beginning(body)}") from error
    try:
        choice = completion["choices"][0]
        content = choice["message"].get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text") or "" for part in content)
        usage = completion.get("usage") or {}
        return Reply(
            content.strip(),
            choice.get("finish_reason") or "stop",
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            None,
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _body_error(completion, body) from error


def allow_many_files() -> None:
    """Let this process open as many files as it may: 1,024 is a common limit, and a call is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _status_error(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    if status < 400:  # a POST that follows a redirect would become a GET
        location = headers.get("Location", "another address")
        return ProviderError(f"{status}: redirected to {location}; name that address", 404)
    retry_after = parse_retry_after(headers.get("Retry-After"))
    return ProviderError(f"{status}: {_error_message(body)}", status, retry_after)


def _body_error(completion: Any, body: bytes) -> ProviderError:
    """What a body means that is no completion. Some gateways send errors with status 200."""
    error = completion.get("error") if isinstance(completion, dict) else None
    if not error:
        return ProviderError(f"no chat completion: {_beginning(body)}")
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and code >= 400 else 500
    return ProviderError(_error_message(body), status)


def _beginning(body: bytes) -> str:
    return redact_keys(body.decode(errors="replace"))[:80]


def _error_message(body: bytes) -> str:
    """The message in an error's body.

    OpenAI has it in {"error": {"message"}}, vLLM in {"message"}, FastAPI in {"detail"}.
    """
    try:
        message = orjson.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    while isinstance(message, dict):
        names = ("error", "message", "detail")
        message = next((message[name] for name in names if message.get(name)), str(message))
    return str(message)
