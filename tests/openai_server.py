"""A loopback server that speaks OpenAI's chat completions, with scripted replies, latency and faults.

    python tests/openai_server.py --port 8000 --delay-ms 20 --fault 429=0.05 --fault reset=0.01

Then: music simulate seeds.jsonl --assistant hosted_vllm/any --api-base http://127.0.0.1:8000/v1. What it answers is
nonsense in the form that each prompt of `music` asks for. The first line on stdout is the port; the base URL is
http://127.0.0.1:PORT/v1. In a test, in a thread of its own:

    with serve(script=["429", "500"]) as server:    # the first two calls fail, the others do not
        ...                                         # call server.base_url, look at server.calls, server.requests

Faults: 429 (without Retry-After), 429-retry-after, 400 (a body that arrived damaged), 500, reset (connection reset before the answer), truncated (the
connection ends in the middle of the body), invalid-json (a whole body that does not parse), empty (no content),
length (half of the reply, finish_reason length), slow (the body comes in pieces), hang (no answer at all), echo-key (a
401 that quotes the caller's key), content_filter, abort, tool_calls and odd (half of the reply, with this finish_reason),
refusal and reasoning (no content, but that), huge and huge-error (a body of `huge` bytes), bomb (the same, packed).
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import logging
import math
import random
import re
import signal
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

FAULTS = (
    "429",
    "429-retry-after",
    "400",
    "500",
    "reset",
    "truncated",
    "invalid-json",
    "empty",
    "thoughts",
    "length",
    "slow",
    "hang",
    "echo-key",
    "content_filter",
    "abort",
    "tool_calls",
    "odd",
    "refusal",
    "reasoning",
    "huge",
    "huge-error",
    "bomb",
)
INTERRUPTED = ("content_filter", "abort", "tool_calls", "odd")
PIECE = bytes(1 << 20)  # of a huge body
WORDS_PER_TOKEN = 0.75
NONSENSE = (Path(__file__).parent.parent / "README.md").read_text("utf-8")  # any text does
NONSENSE = sorted({word.lower() for word in NONSENSE.split() if word.isalpha() and len(word) > 3})


def echo(body: dict) -> str:
    """The default reply: other messages get another reply, the same messages always the same one."""
    last = [text(message) for message in body["messages"] if message["role"] == "user"][-1:]
    return f"Answer {digest(json.dumps(body['messages']).encode())} to: {' '.join(''.join(last).split()[:12])}"


def play(body: dict) -> str:
    """Nonsense in the form that the prompt asks for: a contrast, a verdict, or a message."""
    asked, chance = text(body["messages"][-1]), random.Random(digest(json.dumps(body).encode()))

    def nonsense(count: int) -> str:
        return " ".join(chance.choices(NONSENSE, k=count)).capitalize()

    if "<reply>" in asked:
        return f"<instruction>{nonsense(9)}?</instruction>\n<reply>{nonsense(40)}.</reply>"
    if "[[A]]" in asked:
        return f"{nonsense(20)}.\n[[{chance.choice('ABC')}]]"
    return nonsense(chance.randint(8, 40)) + chance.choice(".?")


@dataclass
class Server:
    """What the server does, and what it has seen. The logs hold one entry a call, in order of arrival."""

    reply: Callable[[dict], str] = echo  # from a request's body
    delay: float = 0.0  # seconds before every answer
    wait_for_calls: int = 0  # no answer, refusals apart, before so many calls have come
    faults: dict[str, float] = field(default_factory=dict)  # fault -> probability
    script: Sequence[
        str | None
    ] = ()  # the first calls' faults, in order of arrival; None is a good answer
    seed: int = (
        0  # a call's fault follows from seed, body and attempt, whatever order the calls come in
    )
    retry_after: float = 1.0  # seconds that 429-retry-after asks for
    pause: float = 0.05  # seconds between two pieces of a slow body
    huge: int = 700 << 20  # bytes of a huge body
    longest: int | None = None  # 400 for a question of more characters
    model: str | None = None  # the name under which it answers, whatever was asked for
    completion_tokens: float | None = None  # what it reports of every reply
    counted: bool = True  # whether replies say how many tokens they took
    limit: int | None = None  # 429 for a call that would be one more than this in flight
    api_key: str | None = None  # 401 for a call without it
    refuses: Sequence[str] = ()  # 400 for a call that has one of these fields
    models: Sequence[str] | None = None  # what /v1/models lists; 404 for a call to another one
    keep: int | None = None  # how many entries the logs keep, the latest ones; None keeps all
    port: int = 0  # 0 takes a free one and stands here as soon as the server runs

    calls: int = field(init=False, default=0)
    finished: int = field(init=False, default=0)  # completions sent whole, empty ones included
    in_flight: int = field(init=False, default=0)
    peak: int = field(init=False, default=0)  # most calls ever in flight, the refused ones included
    attempts: Counter = field(
        init=False, default_factory=Counter
    )  # how often the same body came, by its digest

    def __post_init__(self) -> None:
        unknown = [
            fault
            for fault in (*self.faults, *self.script)
            if fault is not None and fault not in FAULTS
        ]
        if unknown:
            raise ValueError(f"no such fault: {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
        self.requests, self.headers = deque(maxlen=self.keep), deque(maxlen=self.keep)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> web.AppRunner:
        """Listen on loopback. The runner's cleanup() ends it, hanging calls included."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.chat)
        app.router.add_get("/v1/models", self.list_models)
        # A client that is killed in the middle of a call makes aiohttp 3.14 log an InvalidStateError of its own.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096).start()
        self.port = runner.addresses[0][1]
        return runner

    async def list_models(self, request: web.Request) -> web.Response:
        """The models of a server that has some; one that answers for any name lists none."""
        if self.models is None:
            return failure(404, "Not Found")
        data = [{"id": name, "object": "model"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One call, counted while it is in flight."""
        raw = await request.read()
        self.calls += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._answer(request, parsed(raw), self._fault(raw))
        finally:
            self.in_flight -= 1

    async def _answer(
        self, request: web.Request, body: dict | None, fault: str | None
    ) -> web.StreamResponse:
        self.requests.append(body)
        self.headers.append(request.headers)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return failure(401, "Incorrect API key provided.")
        if body is None:
            return failure(400, "The body must be JSON with messages, and n must be 1.")
        if self.models is not None and body.get("model") not in self.models:
            return failure(404, f"The model `{body.get('model')}` does not exist.")
        if refused := [name for name in self.refuses if name in body]:
            return failure(400, f"{refused[0]} is not supported.")
        if self.longest is not None and sum(map(len, map(text, body["messages"]))) > self.longest:
            return failure(400, f"This model's maximum context length is {self.longest} tokens.")
        if self.limit is not None and self.in_flight > self.limit:
            return failure(429, "Too many calls in flight.")
        while self.calls < self.wait_for_calls:
            await asyncio.sleep(0.001)
        await asyncio.sleep(math.inf if fault == "hang" else self.delay)
        if fault in ("429", "429-retry-after"):
            wait = {"Retry-After": f"{self.retry_after:g}"} if fault == "429-retry-after" else None
            return failure(429, "Rate limit reached.", wait)
        if fault == "400":
            return failure(400, "We could not parse the JSON body of your request.")
        if fault == "500":
            return failure(500, "The server had an error.")
        if fault == "echo-key":
            return failure(
                401, f"Incorrect API key provided: {request.headers.get('Authorization')}."
            )
        if fault == "reset":
            return reset(request)
        if fault in ("huge", "huge-error", "bomb"):
            return await self._send_huge(request, fault)
        reply = "" if fault in ("empty", "thoughts", "refusal", "reasoning") else self.reply(body)
        room = body.get("max_completion_tokens") or body.get("max_tokens")
        half = fault in ("length", *INTERRUPTED)
        answer = completion(body, reply, tokens(reply) // 2 if half else room)
        choice = answer["choices"][0]
        answer["model"] = self.model or answer["model"]
        if self.completion_tokens is not None:
            answer["usage"]["completion_tokens"] = self.completion_tokens
        if not self.counted:
            answer["usage"] = None
        if fault in INTERRUPTED:
            choice["finish_reason"] = fault
        if fault == "refusal":
            choice["message"] |= {"content": None, "refusal": "I cannot help with that."}
        if fault == "reasoning":
            choice["message"]["reasoning_content"] = "The first is better."
        if (
            fault == "thoughts"
        ):  # which the caller does not see, and which leave room for nothing else
            answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"] = (
                "length",
                room,
            )
        if request.path == "/v1/completions":
            choice["text"] = choice.pop("message")["content"]
        return await self._send(request, body, answer, fault)

    async def _send_huge(self, request: web.Request, fault: str) -> web.StreamResponse:
        """Send a body of `huge` bytes, as long as the caller reads."""
        packed = {"Content-Encoding": "gzip"} if fault == "bomb" else None
        response = web.StreamResponse(status=500 if fault == "huge-error" else 200, headers=packed)
        piece = gzip.compress(PIECE) if packed else PIECE
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            for _ in range(self.huge // len(PIECE)):
                await response.write(piece)
            await response.write_eof()
        return response

    def _fault(self, raw: bytes) -> str | None:
        """The fault that this call meets: the script's while there is one, then by chance."""
        if self.calls <= len(self.script):
            return self.script[self.calls - 1]
        if not self.faults:
            return None
        key = digest(raw)
        self.attempts[key] += 1
        draw = random.Random(f"{self.seed} {key} {self.attempts[key]}").random()
        for fault, probability in self.faults.items():
            if draw < probability:
                return fault
            draw -= probability
        return None

    async def _send(
        self, request: web.Request, body: dict, answer: dict, fault: str | None
    ) -> web.StreamResponse:
        """Send a completion, as one JSON body or as events, whole or as the fault wants it."""
        stream = bool(body.get("stream"))
        pieces = events(answer, body) if stream else [json.dumps(answer).encode()]
        if fault == "invalid-json":
            pieces = [piece[: len(piece) // 2] + (b"\n\n" if stream else b"") for piece in pieces]
        if fault in ("slow", "truncated") and not stream:
            pieces = [pieces[0][start : start + 64] for start in range(0, len(pieces[0]), 64)]
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream" if stream else "application/json"}
        )
        if not stream:
            response.content_length = sum(map(len, pieces))
        await response.prepare(request)
        *early, last = pieces[: len(pieces) // 2] if fault == "truncated" else pieces
        for piece in early:
            await response.write(piece)
            await asyncio.sleep(self.pause if fault == "slow" else 0)
        if fault == "truncated":
            request.transport.close()
            return response
        self.finished += (
            fault != "invalid-json"
        )  # before the last bytes: whoever has read them may look here
        await response.write_eof(last)
        return response


def completion(body: dict, reply: str, room: int | None) -> dict:
    """A chat completion; a reply of more than `room` tokens is cut, and its finish_reason says so."""
    cut = room is not None and tokens(reply) > room
    content = " ".join(reply.split()[: int(room * WORDS_PER_TOKEN)]) if cut else reply
    prompt, answer = sum(tokens(text(message)) for message in body["messages"]), tokens(content)
    return {
        "id": f"chatcmpl-{digest(content.encode(errors='replace'))}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "scripted"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        },
    }


def events(answer: dict, body: dict) -> list[bytes]:
    """The same completion as server-sent events, one word an event; usage only where stream_options asks for it."""
    choice = answer["choices"][0]
    words = re.findall(r"\S+\s*|\s+", choice["message"]["content"])
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words), {}]
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks[-1]["choices"][0]["finish_reason"] = choice["finish_reason"]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({"choices": [], "usage": answer["usage"]})
    common = {name: answer[name] for name in ("id", "created", "model")} | {
        "object": "chat.completion.chunk"
    }
    return [f"data: {json.dumps(common | chunk)}\n\n".encode() for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]


def failure(status: int, message: str, headers: dict | None = None) -> web.Response:
    error = {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": None}
    return web.json_response({"error": error}, status=status, headers=headers)


def reset(request: web.Request) -> web.Response:
    """Drop the connection: with SO_LINGER at zero, closing sends a reset instead of an end."""
    request.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    request.transport.abort()
    return web.Response()


def parsed(raw: bytes) -> dict | None:
    """The request, or None where it is none that can be answered. A raw text is the user's message."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        body = json.loads(raw)
        if "prompt" in body:
            body["messages"] = [{"role": "user", "content": body["prompt"]}]
        if (
            body["messages"]
            and body.get("n") in (None, 1)
            and all(message["role"] for message in body["messages"])
        ):
            return body


def text(message: dict) -> str:
    """A message's text; OpenAI's content is a string, a list of parts, or null."""
    content = message.get("content") or ""
    return (
        content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    )


def tokens(words: str) -> int:
    return math.ceil(len(words.split()) / WORDS_PER_TOKEN)


def digest(raw: bytes) -> str:
    return blake2b(raw, digest_size=6).hexdigest()


@contextlib.contextmanager
def serve(**behaviour) -> Iterator[Server]:
    """A running Server, in a thread of its own; `behaviour` is Server's fields."""
    server, loop = Server(**behaviour), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def allow_many_connections() -> None:
    """Raise the number of files that this process may open as far as it may be raised."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share(value: str) -> tuple[str, float]:
    fault, _, probability = value.partition("=")
    if fault not in FAULTS:
        raise argparse.ArgumentTypeError(f"no such fault: {fault}; there are: {', '.join(FAULTS)}")
    try:
        return fault, float(probability)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{value}: expected a share of the calls, as in {fault}=0.05"
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A loopback server that speaks OpenAI's chat completions. The first "
        "line on stdout is its port; Ctrl-C ends it."
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0, the default, takes a free one and prints it")
    add("--delay-ms", type=float, default=0, help="before every answer")
    add(
        "--fault",
        type=share,
        action="append",
        default=[],
        metavar="FAULT=P",
        help=f"share of the calls that meet a fault, 0 to 1; again for more faults: {', '.join(FAULTS)}",
    )
    add("--seed", type=int, default=0, help="which calls fail follows from it")
    add("--retry-after", type=float, default=1, metavar="S", help="what 429-retry-after asks for")
    add("--limit", type=int, metavar="N", help="answer 429 beyond N calls in flight")
    add("--pause", type=float, default=0.05, metavar="S", help="between two pieces of a slow body")
    add("--api-key", metavar="KEY", help="answer 401 without it")
    add(
        "--reply",
        metavar="TEXT",
        help="answer this to everything; left out: nonsense in the form asked for",
    )
    given = parser.parse_args()
    allow_many_connections()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reply = play if given.reply is None else lambda _: given.reply
    try:
        with serve(
            reply=reply,
            delay=given.delay_ms / 1000,
            faults=dict(given.fault),
            seed=given.seed,
            keep=0,
            pause=given.pause,
            retry_after=given.retry_after,
            limit=given.limit,
            api_key=given.api_key,
            port=given.port,
        ) as server:
            print(server.port, flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
