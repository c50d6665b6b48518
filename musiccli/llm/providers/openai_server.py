"""The provider for servers that speak OpenAI's protocol, such as vLLM and SGLang.

It does without litellm, which spends milliseconds of CPU on a call: more than such a server needs.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import orjson

from musiccli.core.errors import InputError
from musiccli.core.retry_after import parse_retry_after
from musiccli.llm.call import Call, Reply
from musiccli.llm.open_files import TOO_MANY_FILES
from musiccli.llm.prices import listed_prices
from musiccli.llm.provider_errors import (
    ProviderError,
    is_secret,
    redact,
    redact_keys,
    redirect_error,
)
from musiccli.llm.providers.bodies import ACCEPT_ENCODING, Body
from musiccli.llm.providers.replies import (
    Completion,
    error_message,
    parse_completion,
    same_model,
)
from musiccli.prompts import transcript

if TYPE_CHECKING:
    from aiohttp import ClientSession

# Seconds an idle connection is kept: uvicorn, under vLLM and SGLang, closes it after 5.
KEEP_ALIVE = 4.0
# Seconds to connect. A SYN that is lost in a full backlog is sent again after 1, 3 and 7 seconds.
CONNECT_TIMEOUT = 15.0
LIST_TIMEOUT = 10.0  # seconds for the list of a server's models
MAX_LISTED = 8  # of them that are named
FILES_PAUSE = 1.0  # seconds without a new call after one that could open no file


_VERSION_AT_END = re.compile(r"/v\d+\w*$")
CHAT, COMPLETIONS = "chat/completions", "completions"  # paths below /v1
# What ends a turn of the user in a plain transcript.
TURN_ENDS = ("\n\nAssistant:", "\n\nUser:", "\n\nSystem:")


class OpenAIServer:
    """Calls servers over one HTTP session for each event loop, which ends with the loop.

    The connector has no limit: the client limits the calls in flight.

    Args:
        timeout: seconds for one attempt.
        say: tells people something.
    """

    def __init__(self, timeout: float, say: Callable[[str], None] = lambda text: None):
        self.timeout, self._say = timeout, say
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: AsyncGenerator[ClientSession, None] | None = None
        self._session: ClientSession | None = None
        self._proxies: dict[str, str | None] = {}
        self._noted: set[tuple[str, str]] = set()  # model and subject of what was said

    async def complete(self, call: Call, url: str | None, key: str | None) -> Reply:
        """Send one call once. Raises ProviderError; InputError where `url` is no address."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": ACCEPT_ENCODING}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        path = CHAT if call.mode == "chat" else COMPLETIONS
        status, answered, body = await self._request(
            "POST", f"{url}/{path}", headers, request_body(call), call.max_tokens
        )
        if status >= 300:
            hint = await self._not_found_hint(call, url or "", path, headers, status)
            raise _status_error(status, body, answered, key, hint)
        completion = parse_completion(body)
        self._note(call, completion)
        reply, prices = completion.reply, listed_prices(call.model)
        if key and is_secret(key):
            reply = replace(reply, text=redact(reply.text, [key]))
        if prices is None:
            return reply
        return replace(reply, cost=prices.reply_cost(reply))

    def _note(self, call: Call, completion: Completion) -> None:
        """Say once what people should know of a server's answers."""
        name = call.model.partition("/")[2]
        if completion.model and not same_model(name, completion.model):
            self._say_once(
                call.model,
                "model",
                f"the server answers as {redact_keys(completion.model)[:80]!r}; is that the model "
                "you mean? The call cache keeps its replies under the name that was asked for",
            )
        if completion.odd_counts:
            self._say_once(
                call.model,
                "counts",
                f"the server reports impossible numbers of tokens ({completion.odd_counts}); "
                "such a number counts as 0",
            )

    def _say_once(self, model: str, subject: str, text: str) -> None:
        if (model, subject) not in self._noted:
            self._noted.add((model, subject))
            self._say(f"{model}: {text}")

    async def _not_found_hint(
        self, call: Call, url: str, path: str, headers: Mapping[str, str], status: int
    ) -> str:
        """What may be wrong where a server has nothing at an address, or no such model."""
        if status != 404:
            return ""
        if not _VERSION_AT_END.search(url):
            return f"; asked for {url}/{path}: most addresses end in /v1, as {url}/v1"
        prefix, _, name = call.model.partition("/")
        listed = await self._listed_models(url, headers)
        if listed and name not in listed:
            return f"; the server lists {', '.join(f'{prefix}/{model}' for model in listed)}"
        if path == COMPLETIONS:
            return (
                f"; asked for {url}/{path}, which prompts of raw text need: choose other `prompts`"
            )
        return ""

    async def _listed_models(self, url: str, headers: Mapping[str, str]) -> list[str]:
        """The models that a server says it has, a few of them; none where it does not answer."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                status, _, body = await self._request("GET", f"{url}/models", headers)
            models = orjson.loads(body)["data"] if status == 200 else []
            return [str(model["id"]) for model in models][:MAX_LISTED]
        except (ProviderError, InputError, TimeoutError, LookupError, TypeError, ValueError):
            return []

    async def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        max_tokens: int = 0,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The status, headers and body of the answer."""
        from aiohttp import ClientConnectorError, ClientError, InvalidURL, ServerTimeoutError

        session = await self._open_session()
        try:
            async with session.request(
                method,
                url,
                data=body,
                headers=headers,
                proxy=self._proxy(url),
                allow_redirects=False,
            ) as response:
                answer = Body(response.status, response.headers.get("Content-Encoding"), max_tokens)
                async for chunk in response.content.iter_any():
                    if not answer.add(chunk):
                        break
                return response.status, response.headers, answer.value()
        except InvalidURL as error:
            raise InputError(f"{url}: not an address") from error
        except (ClientConnectorError, ConnectionRefusedError) as error:
            if TOO_MANY_FILES in str(error):
                raise self._no_more_files() from error
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

    def _no_more_files(self) -> ProviderError:
        """The error where this process may open no more files: an overload, and of our making."""
        self._say_once(
            "open files",
            "limit",
            "this process may open no more (ulimit -n); fewer calls are in flight from here on",
        )
        return ProviderError(TOO_MANY_FILES, 429, FILES_PAUSE)

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

    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(CONNECT_TIMEOUT, timeout))
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=limits,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # `Body` unpacks within bounds
    ) as session:
        yield session


def request_body(call: Call) -> bytes:
    """The JSON body of the request."""
    fields = {
        "model": call.model.partition("/")[2],
        call.limit_field or "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "seed": call.call_seed,
        "reasoning_effort": call.reasoning,
        **_question(call),
    }
    return orjson.dumps({name: value for name, value in fields.items() if value is not None})


def _question(call: Call) -> dict[str, Any]:
    """The fields with what the model is asked.

    A server has no way to ask for the user's next message by the model's chat template. So the mode
    "turn" is the completion of a plain transcript.
    """
    if call.mode == "chat":
        stop = {"stop": call.stop} if call.stop else {}
        return {"messages": call.messages, **call.response_format, **stop}
    if call.mode == "completion":
        return {"prompt": call.text, "stop": call.stop or None}
    prompt = f"{transcript(call.messages)}\n\nUser:"
    return {"prompt": prompt, "stop": (*call.stop, *TURN_ENDS)}


def _status_error(
    status: int, body: bytes, headers: Mapping[str, str], key: str | None, hint: str
) -> ProviderError:
    """The error of an answer. `hint`: what may help, in words that follow the server's."""
    secrets = [key] if key else []
    if status < 400:  # a POST that follows a redirect would become a GET
        return redirect_error(status, headers.get("Location"), secrets)
    text = f"{status}: {error_message(body)}"
    if hint:
        text = text.rstrip(". ") + hint
    retry_after = parse_retry_after(headers.get("Retry-After"))
    return ProviderError(text, status, retry_after, secrets=secrets)
