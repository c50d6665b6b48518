"""Servers that mean harm: they redirect keys elsewhere, send endless bodies, or repeat what they were sent."""

import asyncio
import gzip
import os
import subprocess
import zlib

import httpx
import preloaded
import pytest
from aiohttp import web
from build import talk
from openai_server import serve
from peak_memory import RESIDENT
from scripted import no_network, words
from test_client import LITELLM, PATHS, VLLM, ask, call, client_of, server_and_client, six_words
from test_openai_provider import completion

from musiccli.core.errors import CallError, InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.judge import verdicts
from musiccli.judge.config import JudgeConfig
from musiccli.llm import limiter
from musiccli.llm.call import Reply
from musiccli.llm.provider_errors import OversizedReply, ProviderError, is_secret
from musiccli.llm.providers.bodies import MAX_ERROR_BODY, OVERHEAD, PIECE, Body, body_limit
from musiccli.llm.providers.guarded_http import guarded
from musiccli.simulate import branch
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import simulate

SECRET = "swordfish"  # looks like a word, and no variable's name tells that it is a key
MODELS = {  # one of each header that litellm sends a key in
    "anthropic/claude-3-5-sonnet-20240620": "x-api-key",
    "gemini/gemini-1.5-pro": "x-goog-api-key",
    LITELLM: "authorization",
}


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    no_network(monkeypatch)
    for name in ("ANTHROPIC", "DEEPSEEK", "GEMINI", "HOSTED_VLLM", "OPENAI"):
        monkeypatch.setenv(f"{name}_API_KEY", SECRET)
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)


def answered_by(handle, *models: str, **settings) -> list:
    """What comes of a call to each model at a server of this handler."""

    async def run() -> list:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        client = client_of(*(f"{model}={url}" for model in models), **settings)
        try:
            calls = [client.complete(call(number, model)) for number, model in enumerate(models)]
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


# Redirects


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("model", [VLLM, *MODELS])
def test_no_redirect_carries_the_key_or_the_conversation_elsewhere(model, status):
    seen = []
    with serve() as elsewhere:
        location = f"{elsewhere.base_url}/chat/completions?echo={SECRET}"

        async def handle(request: web.Request) -> web.Response:
            seen.append(request.headers)
            return web.Response(status=status, headers={"Location": location})

        [error] = answered_by(handle, model)
        assert elsewhere.calls == 0
    assert len(seen) == 1 and SECRET in seen[0][MODELS.get(model, "authorization")]
    assert isinstance(error, InputError) and "; name that address" in str(error)
    assert f"{status}: redirected to {elsewhere.base_url}" in str(error) and SECRET not in str(
        error
    )


def test_other_users_of_httpx_are_left_alone():
    """Model hubs redirect, and their library may use httpx in this process."""
    with guarded(1), serve() as server:

        def transport(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/a":
                return httpx.Response(302, headers={"Location": "http://h/b"})
            return httpx.Response(200, content=b"x" * (OVERHEAD * 2))

        client = httpx.Client(transport=httpx.MockTransport(transport), follow_redirects=True)
        with pytest.raises(ProviderError, match="redirected to http://h/b"):
            client.get("http://h/a")
        assert server.calls == 0
    assert len(client.get("http://h/a").content) == OVERHEAD * 2


# Bodies


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("fault", ["huge", "bomb"])
def test_a_reply_that_is_too_large_is_refused_by_name_and_its_record_alone_fails(model, fault):
    with server_and_client(script=[None, fault], huge=64 << 20) as (server, client):
        ask(client, call(0, model))
        [error] = ask(client, call(1, model))
        assert ask(client, call(2, model))[0].text == six_words() and server.calls == 3
    assert isinstance(error, CallError)
    assert str(error) == (
        f"{model}: a reply of more than 1.2 MB, which is more than was asked for; it was not read"
    )


@pytest.mark.parametrize("model", PATHS)
def test_of_an_error_only_the_start_is_read(model):
    with server_and_client({"attempts": 1}, script=["huge-error"], huge=64 << 20) as (_, client):
        [error] = ask(client, call(0, model))
    assert isinstance(error, CallError) and len(str(error)) < 500


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate"])
def test_a_packed_reply_is_read(model, encoding):
    raw = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(completion()[:50]) + gzip.compress(completion()[50:]),
        "deflate": zlib.compress(completion()),
        "raw deflate": raw.compress(completion()) + raw.flush(),
    }[encoding]

    async def handle(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "gzip, deflate"
        headers = {"Content-Encoding": encoding.split()[-1], "Content-Type": "application/json"}
        return web.Response(body=packed, headers=headers)

    assert answered_by(handle, model) == [Reply("A form.", "stop", 7, 3, None)]


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize(
    "encoding, body, said",
    [
        ("br", b"x", "the body is packed as br, which was not asked for"),
        ("gzip, gzip", b"x", "the body is packed as gzip, gzip, which was not asked for"),
        ("gzip", b"no gzip", "the body does not unpack"),
    ],
)
def test_a_body_that_does_not_unpack_is_named(model, encoding, body, said):
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    [error] = answered_by(handle, model, attempts=1)
    assert isinstance(error, CallError) and str(error) == f"{model}: {said}"


def test_a_bomb_is_unpacked_no_further_than_the_limit():
    bomb = gzip.compress(bytes(32 << 20))
    body = Body(200, "gzip", 1)
    with pytest.raises(OversizedReply):
        body.add(bomb)
    assert len(body.value()) <= body_limit(200, 1) + PIECE
    error = Body(500, "gzip", 1)
    assert not error.add(bomb) and len(error.value()) == MAX_ERROR_BODY


def test_longer_replies_may_have_larger_bodies_up_to_what_a_record_may_hold():
    limits = [body_limit(200, tokens) for tokens in (1, 512, 10**9)]
    assert limits == sorted(limits) and limits[-1] == 32 << 20


def test_a_reply_that_would_make_a_record_too_large_is_refused_when_it_comes(monkeypatch):
    monkeypatch.setattr(branch, "MAX_LINE", branch.OTHER_FIELDS + 1500)
    config = SimulateConfig(assistant=VLLM, turns=2, contrast="none")
    seeds = [Record({"id": n, "messages": talk("?" * (n * 600))}) for n in range(1, 3)]
    rejects = Rejects(skip=True)
    with serve(reply=lambda body: f"{words(body)} {words(body, 80)}") as server:
        client = client_of(server.base_url)
        done = list(simulate(seeds, config, client, RunStats(rejects)))
        assert server.calls == 3  # two for the first seed, one for the second
    assert ([record["id"] for record in done], rejects.count) == ([], 2)


def test_explanations_that_would_make_a_record_too_large_fail_its_record(monkeypatch):
    monkeypatch.setattr(verdicts, "MAX_LINE", verdicts.OTHER_FIELDS + 1500)
    sides = {"chosen": talk("How?", "So."), "rejected": talk("How?", "Thus.")}
    pairs = [Record({"id": n, **sides, "metadata": "x" * 1000 * n}) for n in range(2)]
    rejects = Rejects(skip=True)
    with serve(reply=lambda _: f"{'Because. ' * 10}\n[[A]]") as server:
        client, config = client_of(server.base_url), JudgeConfig(judges=(VLLM,))
        done = list(verdicts.judge(pairs, config, client, RunStats(rejects)))
    assert ([record["id"] for record in done], rejects.count) == ([0], 1)


MEMORY = (
    RESIDENT
    + """
import asyncio, sys
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.llm.limiter import AdaptiveLimiter

url, model = sys.argv[1:]
client = Client(ClientConfig(api_base=(f"{model}={url}",), attempts=1))
client.model(model).endpoints.all[0].limiter.limit = 64.0
question = ({"role": "user", "content": "What is a fugue in music?"},)
calls = [Call(model, (n, "assistant", 0), question) for n in range(64)]

async def run():
    return await asyncio.gather(*map(client.complete, calls), return_exceptions=True)

forget_peak()
before = resident("VmRSS")
results = asyncio.run(run())
print(sum("more than was asked for" in str(result) for result in results))
print((resident("VmHWM") - before) >> 20)
"""
)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is read from /proc"
)
@pytest.mark.parametrize("model", PATHS)
def test_64_bodies_of_700_mb_in_flight_take_less_than_200_mb(model):
    with serve(script=["huge", "bomb"] * 32, wait_for_calls=64) as server:
        command = [preloaded.python(), "-c", MEMORY, server.base_url, model]
        done = subprocess.run(command, capture_output=True, text=True)
        assert server.peak == 64, done.stderr
    refused, peak = map(int, done.stdout.split())
    assert refused == 64 and peak < 200


# Keys in what comes back


@pytest.mark.parametrize("model", [VLLM, *MODELS])
def test_the_key_that_was_sent_is_in_no_error_whatever_it_looks_like(model):
    async def handle(request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if SECRET in value}
        assert headers
        text = f"No such key: {headers}, {request.query_string}, Basic:{SECRET}"
        return web.json_response({"error": {"message": text}}, status=400)

    [error] = answered_by(handle, model)
    assert isinstance(error, CallError) and SECRET not in str(error) and "[key]" in str(error)


@pytest.mark.parametrize("model", PATHS)
def test_the_key_that_was_sent_is_in_no_reply(model):
    with server_and_client(reply=lambda _: f"Your key is {SECRET}.") as (_, client):
        assert ask(client, call(model=model))[0].text == "Your key is [key]."


@pytest.mark.parametrize(
    "key, secret",
    [(SECRET, True), ("sk-1234567890", True), ("EMPTY", False), ("none", False), ("ollama", False)],
)
def test_what_people_set_where_no_key_is_needed_is_no_secret(key, secret):
    assert is_secret(key) is secret


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("key", ["sword\nfish", "sword\r\nX-Other: fish"])
def test_a_key_with_a_line_break_is_one_line_before_anything_is_sent(monkeypatch, model, key):
    monkeypatch.setenv(f"{model.partition('/')[0].upper()}_API_KEY", key)
    seen = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response()

    [error] = answered_by(handle, model)
    assert isinstance(error, InputError) and "fish" not in str(error) and not seen
    assert "holds a line break" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "model, variable",
    [
        ("gemini/gemini-1.5-pro", "GEMINI_API_KEY or GOOGLE_API_KEY"),
        ("anthropic/claude-3-5-sonnet-20240620", "ANTHROPIC_API_KEY"),
        ("openai/gpt-4o", "OPENAI_API_KEY"),
        ("groq/llama", "GROQ_API_KEY"),
    ],
)
def test_a_missing_key_is_one_clear_line_before_any_call(monkeypatch, model, variable):
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    for _ in range(2):
        [error] = ask(client_of(), call(model=model))
        assert isinstance(error, InputError)
        said = f"{model}: there is no key for it; set {variable} in the environment"
        assert str(error) == said
