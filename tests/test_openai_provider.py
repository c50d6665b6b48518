"""The direct path to a server that speaks OpenAI's protocol: what is asked, what is read, what it costs to load."""

import asyncio
import gc
import subprocess
import sys
import warnings

import orjson
import pytest
from aiohttp import web
from openai_server import serve

from musiccli.core.errors import InputError
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.llm.provider_errors import ProviderError
from musiccli.llm.providers.openai_server import (
    OpenAIServer,
    request_body,
)
from musiccli.llm.providers.replies import parse_completion

VLLM = "hosted_vllm/some/model"
QUESTION = ({"role": "user", "content": "What is a fugue in music?"},)


def call(**fields) -> Call:
    return Call(
        **{"model": VLLM, "call_key": ("id", 0, "assistant", 0), "messages": QUESTION, **fields}
    )


def completion(content: object = "A form.", finish: str | None = "stop", **fields) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": finish,
    }
    return orjson.dumps(
        {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}} | fields
    )


def test_the_request_is_openais():
    asked = call(max_tokens=77, temperature=0.25, top_p=0.75, stop=("\n\n",), seed=5)
    assert orjson.loads(request_body(asked)) == {
        "model": "some/model",
        "messages": list(QUESTION),
        "max_tokens": 77,
        "temperature": 0.25,
        "top_p": 0.75,
        "stop": ["\n\n"],
        "seed": asked.call_seed,
    }
    assert "stop" not in orjson.loads(request_body(call()))


@pytest.mark.parametrize(
    "body, reply",
    [
        (completion(), Reply("A form.", "stop", 7, 3, None)),
        (completion(" A form.\n", "length"), Reply("A form.", "length", 7, 3, None)),
        (
            completion([{"type": "text", "text": "A "}, {"type": "text", "text": "form."}], None),
            Reply("A form.", "stop", 7, 3, None),
        ),
        (completion(usage=None), Reply("A form.", "stop", 0, 0, None)),
        (completion(usage={"prompt_tokens": None}), Reply("A form.", "stop", 0, 0, None)),
    ],
)
def test_a_completion_is_read(body, reply):
    assert parse_completion(body).reply == reply


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "the body is no JSON"),
        (b"<html>Bad gateway</html>", "the body is no JSON: <html>Bad gateway</html>"),
        (b"[]", "no chat completion: []"),
        (b'{"choices": []}', 'no chat completion: {"choices": []}'),
        (b'{"choices": [{}]}', "no chat completion"),
        (b'{"choices": [{"message": null}]}', "no chat completion"),
        (b'{"choices": [{"message": {"content": 7}}]}', "no chat completion"),
        (b'{"error": {"message": "Upstream overloaded", "code": 503}}', "Upstream overloaded"),
        (b'{"error": "no model loaded"}', "no model loaded"),
    ],
)
def test_another_body_is_refused_and_tried_again(body, said):
    with pytest.raises(
        ProviderError, match="^" + said.replace("[", r"\[").replace("{", r"\{")
    ) as met:
        parse_completion(body)
    assert met.value.retryable


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_a_completion_without_text_still_has_its_tokens(content):
    assert parse_completion(completion(content, "length")).reply == Reply("", "length", 7, 3, None)


def test_an_error_with_status_200_keeps_its_code():
    with pytest.raises(ProviderError) as met:
        parse_completion(b'{"error": {"message": "slow down", "code": 429}}')
    assert met.value.overloaded


def answer_of(respond, timeout: float = 120, models: str | None = None) -> Reply | Exception:
    """What comes of one call to a server that answers with `respond()`, and lists `models`."""

    async def run() -> Reply:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", lambda _: respond())
        if models is not None:
            app.router.add_get("/v1/models", lambda _: answering(200, models)())
        runner = web.AppRunner(app, shutdown_timeout=0.05)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            return await OpenAIServer(timeout).complete(
                call(), f"http://127.0.0.1:{runner.addresses[0][1]}/v1", None
            )
        finally:
            await runner.cleanup()

    try:
        return asyncio.run(run())
    except ProviderError as refusal:
        return refusal


def answering(status: int, body: str, **headers: str):
    async def respond() -> web.Response:
        return web.Response(status=status, text=body, headers=headers)

    return respond


@pytest.mark.parametrize(
    "status, body, said",
    [
        (400, '{"error": {"message": "too long", "code": 400}}', "400: too long"),
        (400, '{"object": "error", "message": "too long", "code": 400}', "400: too long"),
        (422, '{"detail": [{"msg": "field required"}]}', "422: [{'msg': 'field required'}]"),
        (404, '{"detail": "Not Found"}', "404: Not Found"),
        (500, '{"error": {}}', "500: {'error': {}}"),
        (502, "<html>Bad\n gateway</html>", "502: <html>Bad gateway</html>"),
        (503, "", "503:"),
    ],
)
def test_an_errors_own_words_are_said(status, body, said):
    met = answer_of(answering(status, body))
    assert (str(met), met.status) == (said, status)


EIGHT = [f"m{number}" for number in range(8)]


@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize(
    "models, named",
    [
        (["Qwen/Qwen3-8B", "b"], "hosted_vllm/Qwen/Qwen3-8B, hosted_vllm/b"),
        ([*EIGHT, "m8"], ", ".join(f"hosted_vllm/{name}" for name in EIGHT)),
    ],
)
def test_a_server_without_the_model_is_asked_which_ones_it_has(models, named, mode):
    question = call(mode=mode, text="Once")
    with serve(models=models, api_key="sesame") as server, pytest.raises(ProviderError) as met:
        asyncio.run(OpenAIServer(120).complete(question, server.base_url, "sesame"))
    assert str(met.value) == f"404: The model `some/model` does not exist; the server lists {named}"


@pytest.mark.parametrize(
    "models",
    [
        None,
        "[]",
        '{"data": 3}',
        '{"data": [{}]}',
        '{"data": [{"id": "some/model"}]}',
        "no JSON",
        "[" * 99999,
    ],
)
def test_a_list_of_models_that_says_nothing_adds_nothing(models):
    met = answer_of(answering(404, "No such thing."), models=models)
    assert str(met) == "404: No such thing"


def test_a_place_elsewhere_is_named_and_not_followed():
    met = answer_of(answering(307, "", Location="https://other/v1"))
    assert met.fatal and str(met) == "307: redirected to https://other/v1; name that address"


def test_retry_after_of_an_error_is_kept():
    assert answer_of(answering(429, "slow", **{"Retry-After": "7"})).retry_after == 7


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_said_to():
    async def respond() -> None:
        await asyncio.Event().wait()

    met = answer_of(respond, timeout=1)
    assert met.retryable and not met.unreachable and str(met).endswith("no answer within 1 seconds")


def test_nobody_there_is_unreachable():
    with serve() as server:
        url = server.base_url
    with pytest.raises(ProviderError, match=r"no connection to http://127\.0\.0\.1") as met:
        asyncio.run(OpenAIServer(120).complete(call(), url, None))
    assert met.value.unreachable and met.value.retryable


@pytest.mark.parametrize("key, header", [("sesame", "Bearer sesame"), (None, None)])
def test_the_key_is_sent_where_there_is_one(key, header):
    with serve() as server:
        asyncio.run(OpenAIServer(120).complete(call(), server.base_url, key))
        assert server.headers[0].get("Authorization") == header


def test_one_session_serves_a_loop_and_ends_with_it():
    with serve() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Client(ClientConfig(api_base=(server.base_url,)))

        async def two() -> set:
            await asyncio.gather(*(client.complete(call(seed=seed)) for seed in (1, 2)))
            return {client.providers.openai_server._session}

        first, second = asyncio.run(two()), asyncio.run(two())
        assert [session.closed for session in (*first, *second)] == [True, True]
        del first, second
        gc.collect()


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    with serve() as server:
        monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        met = asyncio.run(OpenAIServer(120).complete(call(), server.base_url, None))
        assert isinstance(met, Reply)
        asyncio.run(OpenAIServer(120).complete(call(), "http://vllm.example/v1", None))
        assert server.headers[1]["Host"] == "vllm.example"


def test_litellm_is_not_loaded():
    with serve() as server:
        script = (
            "import asyncio, sys; from musiccli.llm.call import Call; from musiccli.llm.client import Client; "
            "from musiccli.llm.config import ClientConfig; "
            f"client = Client(ClientConfig(api_base=({server.base_url!r},))); "
            f"call = Call('openai/scripted', ('id', 'user', 0), {QUESTION!r}); "
            "print(asyncio.run(client.complete(call)).cost, client.summary()[0].rpartition(', ')[2]); client.close(); "
            "print(sorted({'litellm', 'torch', 'openai', 'httpx'} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("None price unknown\n[]\n", "")


def test_an_address_that_is_none_ends_the_run():
    with pytest.raises(InputError, match="not an address"):
        asyncio.run(OpenAIServer(120).complete(call(), "http://", None))
