"""One call to a server that speaks OpenAI's protocol, over one HTTP session and without litellm, whose own work on a
call (milliseconds of CPU) is more than such a server of one's own needs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from musiccli.core.errors import InputError
from musiccli.llm.call import Call, Reply
from musiccli.llm.provider_errors import ProviderError, seconds_until, without_keys

IDLE = (
    4.0  # seconds an unused connection is kept: uvicorn, under vLLM and SGLang, closes it after 5
)
CONNECT = 15.0  # seconds for a connection; a SYN that is lost in a full backlog comes again after 1, 3 and 7


class OpenAIServer:
    """The HTTP session of a client: one per event loop, closed when that ends. How many calls are in flight is the
    pace's business, so the connector has no limit of its own."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._loop = self._holder = self._session = None
        self._proxies: dict[str, str | None] = {}

    async def complete(self, call: Call, url: str, key: str | None) -> Reply:
        """The reply of the server at `url` (up to /v1) to one call, tried once; its cost is None. Raises Refusal."""
        body, headers = request(call), {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        status, found, data = await self._post(f"{url}/chat/completions", body, headers)
        if status >= 300:
            raise _refused(status, data, found)
        return read(data)

    async def _post(self, url: str, body: bytes, headers: dict) -> tuple[int, dict, bytes]:
        from aiohttp import ClientConnectorError, ClientError, InvalidURL, ServerTimeoutError

        session = await self._opened()
        try:
            async with session.post(
                url, data=body, headers=headers, proxy=self._proxy(url), allow_redirects=False
            ) as answer:
                return answer.status, answer.headers, await answer.read()
        except InvalidURL as error:
            raise InputError(f"{url}: not an address") from error
        except (ClientConnectorError, ConnectionRefusedError) as error:
            raise ProviderError(
                f"no connection to {url}: {error.strerror or error}", unreachable=True
            ) from error
        except TimeoutError as error:
            connecting = isinstance(error, ServerTimeoutError)
            raise ProviderError(
                f"no connection to {url} within {min(CONNECT, self.timeout):g} seconds"
                if connecting
                else f"{url}: no answer within {self.timeout:g} seconds",
                408,
                unreachable=connecting,
            ) from error
        except (ClientError, OSError) as error:
            raise ProviderError(
                f"{url}: the connection broke: {str(error) or type(error).__name__}"
            ) from error

    async def _opened(self):
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._holder = _session(self.timeout)
            self._session, self._loop = await anext(self._holder), loop
        return self._session

    def _proxy(self, url: str) -> str | None:
        """The proxy that the environment names for an address, as curl and litellm would use it."""
        parts = urlsplit(url)
        if parts.netloc not in self._proxies:
            self._proxies[parts.netloc] = (
                None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
            )
        return self._proxies[parts.netloc]


async def _session(timeout: float) -> AsyncIterator:
    """A session that is closed with its event loop: a loop that ends closes the generators that it has begun."""
    import aiohttp

    allow_many_files()
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT, timeout))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)
    async with aiohttp.ClientSession(
        connector=connector, timeout=limits, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


def request(call: Call) -> bytes:
    """The body that asks for one call."""
    body = {
        "model": call.model.partition("/")[2],
        "messages": call.messages,
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "seed": call.call_seed,
        **call.response_format,
    }
    if call.stop:
        body["stop"] = call.stop
    return orjson.dumps({name: value for name, value in body.items() if value is not None})


def read(data: bytes) -> Reply:
    """A chat completion as a reply. Raises Refusal for a body that is none."""
    try:
        answer = orjson.loads(data)
    except ValueError as error:
        raise ProviderError(f"the body is no JSON: {_start(data)}") from error
    try:
        choice = answer["choices"][0]
        text, finish, usage = (
            choice["message"].get("content") or "",
            choice.get("finish_reason"),
            answer.get("usage"),
        )
        text = text if isinstance(text, str) else "".join(part.get("text") or "" for part in text)
        usage = usage or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(answer, dict) and answer.get(
            "error"
        ):  # some gateways send errors with status 200
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            raise ProviderError(
                _message(data), code if isinstance(code, int) and code >= 400 else 500
            ) from error
        raise ProviderError(f"no chat completion: {_start(data)}") from error
    return Reply(text.strip(), finish or "stop", *tokens, None)


def allow_many_files() -> None:
    """Let this process open as many files as it may: each call in flight is one, and 1,024 is a common limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _refused(status: int, data: bytes, headers: dict) -> ProviderError:
    if status < 400:  # followed, a POST would become a GET
        return ProviderError(
            f"{status}: sent on to {headers.get('Location', 'another address')}; name that address",
            404,
        )
    return ProviderError(
        f"{status}: {_message(data)}", status, seconds_until(headers.get("Retry-After"))
    )


def _start(data: bytes) -> str:
    return without_keys(data.decode(errors="replace"))[:80]


def _message(data: bytes) -> str:
    """What an error's body says, as OpenAI ({"error": {"message"}}), vLLM ({"message"}) or FastAPI ({"detail"}) do."""
    try:
        body = orjson.loads(data)
    except ValueError:
        return data.decode(errors="replace")
    while isinstance(body, dict):
        body = next(
            (body[name] for name in ("error", "message", "detail") if body.get(name)), str(body)
        )
    return str(body)
