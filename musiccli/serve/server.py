"""The HTTP server: requests in, replies out. Workers compute.

Three threads share the work. The event loop moves bytes; a second thread makes tokens of bodies;
a third computes, as do processes where they are asked for. Nothing is written, and no line that is
logged holds what a request held.
"""

import asyncio
import errno
import hmac
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from operator import attrgetter
from typing import Any

import orjson
from aiohttp import web

from musiccli.core.errors import ExitStatus, InputError, RecordError, kind_of
from musiccli.core.json_text import decode
from musiccli.core.open_files import allow_many_files
from musiccli.serve.actor_template import ActorTemplate
from musiccli.serve.batcher import Batcher, QueueFull
from musiccli.serve.config import ServeConfig
from musiccli.serve.metrics import CONTENT_TYPE, Metrics
from musiccli.serve.protocol import (
    Body,
    Context,
    Protocol,
    Result,
    choose_protocol,
    is_per_turn,
    protocols_by_path,
)
from musiccli.serve.served_model import EncodedItem, Reward, ServedModel
from musiccli.serve.worker_process import WorkerFault
from musiccli.serve.workers import WorkerEnded, WorkerPool

MAX_REQUESTS = 4096  # in flight; each may be a slow one
BODIES_IN_MEMORY = 16  # of the largest size; beyond that requests are sent away for a while
CLIENT_LEFT = 499  # how proxies count a request whose client did not wait
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
ACCEPT_AGAIN = "_start_serving"  # asyncio's callback a second later, which may find the port closed
SILENCE = 60.0  # seconds from one line about connections that cannot be accepted to the next
GRACE = 0.2  # seconds in which requests that are being sent still come in, once the port is closed


class HttpError(Exception):
    """A reply that is no success.

    Attributes:
        status: the HTTP status.
        retry_after: seconds after which the client should try again; None where that is useless.
        errors: what is wrong with which item.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        errors: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.status, self.retry_after, self.errors = status, retry_after, list(errors)
        super().__init__(message)


@dataclass(frozen=True)
class Prepared:
    """A request whose items are tokens.

    Attributes:
        protocol: the form of its body.
        body: its body.
        served: the model that it asks for.
        items: its items, or errors in their place.
    """

    protocol: Protocol
    body: Body
    served: ServedModel
    items: list[EncodedItem | RecordError]


class RewardServer:
    """A server of rewards.

    Attributes:
        models: the models; the first one is meant where a request names none.
        config: where it listens, and what it refuses.
        actor_template: the template of the model in training, where its text may come.
        metrics: what was counted so far.
        address: where it listens, once it has started.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        config: ServeConfig,
        actor_template: ActorTemplate | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.models, self.config = list(models), config
        self.actor_template, self._say = actor_template, say
        self.metrics = Metrics()
        self.address = ""
        self._status = "starting"
        self._in_flight = 0
        self._body_bytes = 0
        self._body_limit = config.max_body << 20
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._reading: set[asyncio.Future[Prepared]] = set()
        self._workers = WorkerPool(self.models, config.processes, config.budget, say)
        self._batchers = {
            served.name: Batcher(
                served.name,
                served.model.network,
                self._workers,
                config.budget,
                config.max_queue,
                config.patience / 1000,
                self._reading,
            )
            for served in self.models
        }
        self._loops: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._said_no_room = -SILENCE

    async def start(self) -> None:
        """Listen.

        Raises:
            InputError: the address cannot be used.
        """
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/metrics", self._show_metrics)
        for path in protocols_by_path():
            app.router.add_post(path, self._score)
        for name in ("aiohttp.server", "aiohttp.web", "aiohttp.access"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # they would quote requests
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=self.config.timeout,
            lingering_time=1.0,
        )
        allow_many_files()
        asyncio.get_running_loop().set_exception_handler(self._report_no_room)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self.config.host, self.config.port, backlog=1024)
        try:
            await self._site.start()
        except OSError as error:
            await self._runner.cleanup()
            where = f"{self.config.host}:{self.config.port}"
            raise InputError(f"{where}: cannot be listened on: {error.strerror or error}") from None
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._loops = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]

    async def warm_up(self) -> None:
        """Start the workers, each with a first row: whatever is compiled or built then is.

        Raises:
            MusicError: a worker cannot be started.
        """
        run = asyncio.get_running_loop().run_in_executor
        for served in self.models:
            await run(self._readers, attrgetter("first_conversation"), served)
        await self._workers.start()
        if self._status == "starting":
            self._status = "ok"

    async def stop(self) -> None:
        """Close the port, finish the requests that have come, and end."""
        self._status = "stopping"
        await asyncio.sleep(0)  # connections that the system has accepted come in
        if self._site:
            await self._site.stop()
        await asyncio.sleep(GRACE)
        if self._runner:
            await self._runner.cleanup()
        for loop in self._loops:
            loop.cancel()
        self._readers.shutdown(cancel_futures=True)
        await self._workers.close()

    # Requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Answer a request, also where it cannot be served, and count it."""
        started = time.monotonic()
        self._in_flight += 1
        status = CLIENT_LEFT
        try:
            response = await self._checked(request, handler)
            status = response.status
        except HttpError as error:
            status = error.status
            response = _failure(error)
        except web.HTTPException as error:
            status = error.status
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            response = _failure(HttpError(status, error.reason), allowed)
        except Exception as error:
            status = 500
            name = str(error) if isinstance(error, WorkerFault) else type(error).__name__
            self._say(f"{_path(request)}: {name} (a fault of ours)")
            response = _failure(HttpError(500, f"{name} (a fault of the server)"))
        finally:
            self._in_flight -= 1
            self.metrics.count(_path(request), status, time.monotonic() - started)
        if self._status == "stopping" or status in (408, 413):
            response.force_close()
        return response

    def _report_no_room(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say in one line that connections cannot be accepted; asyncio tries again every second."""
        error = context.get("exception")
        if self._status == "stopping" and ACCEPT_AGAIN in context["message"]:
            return
        if not isinstance(error, OSError) or error.errno not in NO_ROOM:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_no_room >= SILENCE:
            self._said_no_room = time.monotonic()
            self._say(f"new connections wait: {error.strerror} (ulimit -n)")

    async def _checked(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path != "/health":
            self._refuse_without_key(request)
        if self._in_flight > MAX_REQUESTS:
            raise HttpError(429, "too many requests are in flight", retry_after=1)
        response: web.StreamResponse = await handler(request)
        return response

    def _refuse_without_key(self, request: web.Request) -> None:
        if self.config.api_key is None:
            return
        sent = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, f"Bearer {self.config.api_key}".encode()):
            raise HttpError(401, "the request needs the header Authorization: Bearer KEY")

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": self._status}, 200 if self._status == "ok" else 503)

    async def _list_models(self, _: web.Request) -> web.Response:
        models = [
            {
                "id": served.name,
                "object": "model",
                "created": int(self.metrics.started),
                "owned_by": "music",
                "max_model_len": served.max_length,
            }
            for served in self.models
        ]
        return _json({"object": "list", "data": models})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        running = self._workers.running
        text = self.metrics.text(self._batchers, self._in_flight, running)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _score(self, request: web.Request) -> web.Response:
        abandoned = threading.Event()
        deadline = time.monotonic() + self.config.timeout
        raw: bytes | None = None
        try:
            async with asyncio.timeout(self.config.timeout):
                raw = await self._read_body(request)
                try:
                    prepared = await self._read(request.path, raw, deadline, abandoned)
                    return _json(await self._reply(prepared, deadline))
                finally:
                    self._body_bytes -= len(raw)
        except TimeoutError:
            if raw is None:
                raise HttpError(408, "the body did not come in time") from None
            raise HttpError(504, f"not done within {self.config.timeout:g} s") from None
        except QueueFull as error:
            raise HttpError(429, str(error), retry_after=error.retry_after) from None
        except RecordError as error:
            raise HttpError(400, str(error)) from None
        except WorkerEnded as error:
            raise HttpError(503, str(error), retry_after=1) from None
        except InputError as error:
            raise HttpError(503, str(error)) from None
        finally:
            abandoned.set()

    async def _read_body(self, request: web.Request) -> bytes:
        """The body; its bytes are counted until the caller has subtracted them."""
        too_large = HttpError(413, f"the body is larger than {self.config.max_body} MB")
        if (request.content_length or 0) > self._body_limit:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                self._body_bytes += len(chunk)
                if len(body) > self._body_limit:
                    raise too_large
                if self._body_bytes > BODIES_IN_MEMORY * self._body_limit:
                    raise HttpError(429, "too many bodies are being read", retry_after=1)
        except BaseException as error:
            self._body_bytes -= len(body)
            if isinstance(error, HttpError | asyncio.CancelledError):
                raise
            raise HttpError(400, "the body cannot be read") from None
        return bytes(body)

    async def _read(
        self, path: str, raw: bytes, deadline: float, abandoned: threading.Event
    ) -> Prepared:
        """Make tokens of a body in the thread that reads. Errors are those of `_prepare`."""
        run = asyncio.get_running_loop().run_in_executor
        reading = run(self._readers, self._prepare, path, raw, deadline, abandoned)
        self._reading.add(reading)
        try:
            return await reading
        finally:
            self._reading.discard(reading)

    def _prepare(
        self, path: str, raw: bytes, deadline: float, abandoned: threading.Event
    ) -> Prepared:
        """Make tokens of a body.

        Raises:
            QueueFull: there is no room for any.
            RecordError: the body has no form that is known at this path.
            HttpError: it names a model that is not served.
        """
        body = _parse_body(raw)
        protocol = choose_protocol(path, body)
        served = self._find_model(body, protocol)
        self._batchers[served.name].check_room(0, deadline)  # before the work of making tokens
        per_turn = is_per_turn(body)
        with_bos = body.get("add_special_tokens") is not False
        items: list[EncodedItem | RecordError] = []
        for item in protocol.read(body, Context(self.actor_template)):
            if abandoned.is_set():
                break
            try:
                if isinstance(item, RecordError):
                    raise item
                items.append(served.encode(item, per_turn=per_turn, add_special_tokens=with_bos))
            except RecordError as error:
                items.append(error)
        return Prepared(protocol, body, served, items)

    def _find_model(self, body: Body, protocol: Protocol) -> ServedModel:
        name = body.get("model")
        for served in self.models:
            if name in (served.name, served.path):
                return served
        if name is None or protocol.any_model_name:
            return self.models[0]
        names = ", ".join(served.name for served in self.models)
        raise HttpError(404, f"no such model; there are: {names}")

    async def _reply(self, prepared: Prepared, deadline: float) -> Any:
        """Compute the rewards of a request, and write them as its protocol does."""
        errors = [
            {"index": index, "message": str(item)}
            for index, item in enumerate(prepared.items)
            if isinstance(item, RecordError)
        ]
        self.metrics.failed_items += len(errors)
        if errors and (len(errors) == len(prepared.items) or not prepared.protocol.names_errors):
            raise _bad_items(errors, len(prepared.items))
        results = await self._compute(prepared, deadline)
        return prepared.protocol.write(prepared.body, prepared.served.name, results)

    async def _compute(self, prepared: Prepared, deadline: float) -> list[Result]:
        """The result of each item.

        Raises:
            HttpError: one cannot be computed, and the protocol cannot say so.
        """
        good = [item for item in prepared.items if isinstance(item, EncodedItem)]
        batcher = self._batchers[prepared.served.name]
        computed = iter(await batcher.score([item.conversation for item in good], deadline))
        results: list[Result] = []
        for item in prepared.items:
            rewards = item if isinstance(item, RecordError) else next(computed)
            if isinstance(item, RecordError) or isinstance(rewards, RecordError):
                assert isinstance(rewards, RecordError)
                results.append(rewards)
            else:
                results.append(Reward(rewards, item))
        failed = [
            {"index": index, "message": str(result)}
            for index, result in enumerate(results)
            if isinstance(result, RecordError)
        ]
        if failed and (len(failed) == len(results) or not prepared.protocol.names_errors):
            raise _bad_items(failed, len(results))
        return results


async def run(server: RewardServer, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what was begun. A second one ends at once.

    Raises:
        InputError: the address cannot be used.
    """
    loop, ending = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        if ending.is_set():
            say("interrupted")
            os._exit(ExitStatus.INTERRUPTED)  # an exit would wait for the pass that is computed
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await server.start()
    warm_up = asyncio.create_task(server.warm_up())
    waiting = asyncio.create_task(ending.wait())
    await asyncio.wait([warm_up, waiting], return_when=asyncio.FIRST_COMPLETED)
    if warm_up.done():
        if warm_up.exception():
            await server.stop()
        warm_up.result()
        names = ", ".join(served.name for served in server.models)
        say(f"ready at {server.address}: {names}")
    await waiting
    say("finishing the requests that have come")
    warm_up.cancel()
    await server.stop()


def _parse_body(raw: bytes) -> Body:
    try:
        body = decode(raw)
    except ValueError:
        raise RecordError("the body is not JSON") from None
    if not isinstance(body, dict):
        raise RecordError(f"the body is {kind_of(body)}; it should be an object")
    return body


def _bad_items(errors: list[dict[str, Any]], count: int) -> HttpError:
    """The error of a request of `count` items, some of which cannot be scored."""
    first = errors[0]
    where = f"item {first['index']}: " if count > 1 else ""
    more = f" ({len(errors)} of {count} items are bad)" if len(errors) > 1 else ""
    return HttpError(400, f"{where}{first['message']}{more}", errors=errors)


def _failure(error: HttpError, headers: dict[str, str] | None = None) -> web.Response:
    """An error as vLLM and OpenAI write it."""
    fields: dict[str, Any] = {
        "message": str(error),
        "type": HTTPStatus(error.status).phrase,
        "param": None,
        "code": error.status,
    }
    if error.errors:
        fields["errors"] = error.errors
    headers = headers or {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return _json({"error": fields}, error.status, headers)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def _path(request: web.Request) -> str:
    """The path of a request as it is counted: one that is not served is "other"."""
    known_paths = ("/health", "/v1/models", "/metrics", *protocols_by_path())
    return request.path if request.path in known_paths else "other"
