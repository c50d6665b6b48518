"""Several addresses of one model: the load is shared, one that is down is left alone, the others carry on."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace

import pytest
from build import read
from openai_server import serve
from scripted import jsonl, no_network, scripted_reply
from test_client import call, client_of

from musiccli.core.errors import CallError, InputError
from musiccli.llm import endpoints, limiter
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.llm.endpoints import Endpoints, check_api_base, model_urls, parse_api_base
from musiccli.llm.provider_errors import ProviderError
from musiccli.llm.providers import Providers
from musiccli.llm.providers.openai_server import OpenAIServer

VLLM, OTHER, GEMINI = "hosted_vllm/scripted", "hosted_vllm/other", "gemini/gemini-1.5-pro"
A, B = "http://a:8000/v1", "http://b:8000/v1"


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for variables in endpoints.OPENAI_COMPATIBLE.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.01)


def ask(client: Client, count: int, model: str = VLLM) -> list:
    async def every() -> list:
        return await asyncio.gather(
            *(client.complete(call(number, model)) for number in range(count)),
            return_exceptions=True,
        )

    return asyncio.run(every())


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with serve() as server:
        return server.base_url


@pytest.mark.parametrize(
    "given, name, url",
    [
        ("http://h:8000/v1", None, "http://h:8000/v1"),
        ("https://h/v1/", None, "https://h/v1"),
        ("hosted_vllm/m=http://h/v1", "hosted_vllm/m", "http://h/v1"),
        ("http://[::1]:80/v1", None, "http://[::1]:80/v1"),
        ("http://h/v1/chat/completions", None, "http://h/v1"),
    ],
)
def test_an_address_may_be_for_one_model(given, name, url):
    assert parse_api_base(given) == (name, url)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "h:8000/v1",
        "http://",
        "ftp://h/v1",
        "m=",
        "m=h/v1",
        "http://h:port/v1",
        "http://h:99999/v1",
        "http://a /v1",
        "=http://",
    ],
)
def test_what_is_no_address_is_said(given):
    with pytest.raises(InputError, match=r"expected .MODEL=.http://HOST:PORT/v1"):
        parse_api_base(given)


@pytest.mark.parametrize(
    "given",
    [
        "http://me:secret@h/v1",
        "me:secret@h/v1",
        "http://h/v1?key=secret",
        "http://h/v1#secret",
        "openai/m=http://h/v1?api_key=secret",
        "https://h/v1/chat/completions?token=secret",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(given):
    with pytest.raises(InputError) as met:
        parse_api_base(given)
    assert "secret" not in str(met.value) and "HOSTED_VLLM_API_KEY" in str(met.value)


def test_a_secret_in_what_is_no_address_is_not_repeated():
    with pytest.raises(InputError) as met:
        parse_api_base("h:8000/v1?key=secret")
    assert "secret" not in str(met.value)


@pytest.mark.parametrize("key", ["one\ntwo", "one\r\nX-Header: two", "one\ttwo"])
def test_a_key_with_a_control_character_is_one_line(monkeypatch, key):
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", key)
    with pytest.raises(InputError, match="HOSTED_VLLM_API_KEY: the key holds a line break") as met:
        Endpoints(VLLM, [A])
    assert "two" not in str(met.value)


@pytest.mark.parametrize(
    "base, hint",
    [
        ("", "; asked for {0}/chat/completions: most addresses end in /v1, as {0}/v1"),
        ("/nowhere/v1", ""),
    ],
)
def test_a_missing_version_in_the_address_is_named(base, hint):
    with serve() as server:
        root = server.base_url.removesuffix("/v1")
        [error] = ask(client_of(root + base), 1)
    expected = f"{VLLM}: 404: 404: Not Found{hint.format(root)}; no call to it has succeeded"
    assert isinstance(error, InputError) and str(error).startswith(expected)


@pytest.mark.parametrize(
    "model, given, expected",
    [
        (VLLM, [A], [A]),
        (VLLM, [A, B], [A, B]),
        ("openai/x", [A], [A]),
        (GEMINI, [A], []),
        ("local/smollm2", [A], []),
        (GEMINI, [f"{GEMINI}={A}"], [A]),
        (VLLM, [f"{VLLM}={A}", B], [A]),
        (OTHER, [f"{VLLM}={A}", B], [B]),
        (OTHER, [f"{VLLM}={A}"], []),
        (VLLM, [f"{VLLM}={A}", f"{VLLM}={B}"], [A, B]),
    ],
)
def test_which_addresses_a_model_has(model, given, expected):
    assert model_urls(model, given) == expected


@pytest.mark.parametrize(
    "model, variable",
    [
        (VLLM, "HOSTED_VLLM_API_BASE"),
        ("openai/x", "OPENAI_API_BASE"),
        ("openai/x", "OPENAI_BASE_URL"),
        ("lm_studio/x", "LM_STUDIO_API_BASE"),
    ],
)
def test_litellms_variable_serves_where_no_address_is_given(monkeypatch, model, variable):
    monkeypatch.setenv(variable, f"{A}/")
    [endpoint] = Endpoints(model).all
    assert endpoint.url == A
    assert isinstance(Providers(1).choose(model, endpoint.url), OpenAIServer)
    assert Endpoints(model, [B]).all[0].url == B


@pytest.mark.parametrize(
    "model, given, direct",
    [
        ("openai/gpt-4o", [], False),
        ("openai/gpt-4o", ["https://api.openai.com/v1"], False),
        ("openai/gpt-4o", [A], True),
        (GEMINI, [f"{GEMINI}={A}"], False),
        (VLLM, [A], True),
    ],
)
def test_only_servers_of_ones_own_are_called_directly(model, given, direct):
    [endpoint] = Endpoints(model, given).all
    assert isinstance(Providers(1).choose(model, endpoint.url), OpenAIServer) is direct


@pytest.mark.parametrize(
    "given, said",
    [
        (
            f"{OTHER}={A}",
            f"`api_base` {OTHER}=...: no model of this run has that name; there is {GEMINI}, gpt-4o",
        ),
        (A, f"`api_base` {A}: an address without a name is only for the models "),
    ],
)
def test_an_address_that_nobody_would_use_is_said(given, said):
    with pytest.raises(InputError) as met:
        check_api_base([given], [GEMINI, "gpt-4o"])
    assert str(met.value).startswith(said)
    check_api_base([A, f"{GEMINI}={B}"], [GEMINI, VLLM])


def test_calls_are_shared_among_the_addresses():
    with serve(wait_for_calls=4) as one, serve(wait_for_calls=4) as other:
        replies = ask(client_of(one.base_url, other.base_url, concurrency=8), 40)
        assert {type(reply) for reply in replies} == {Reply}
        assert one.peak == other.peak == 4
        assert one.calls + other.calls == 40


def test_addresses_that_are_equally_fast_get_equally_many_calls():
    client, urls = client_of(A, B, concurrency=8), []

    async def complete(call, url, key) -> Reply:
        urls.append(url)
        await asyncio.sleep(0)
        return Reply("A form.", "stop", 8, 8, None)

    client.providers.openai_server.complete = complete
    assert {type(reply) for reply in ask(client, 40)} == {Reply}
    assert urls.count(A) == urls.count(B) == 20


def test_an_address_that_does_not_answer_in_time_does_not_hold_the_others_back():
    client, urls = client_of(A, B, concurrency=256, attempts=20), []

    async def complete(call, url, key) -> Reply:
        urls.append(url)
        await asyncio.sleep(0)
        if url == A:
            raise ProviderError("no answer within 120 seconds", 408)
        return Reply("A form.", "stop", 8, 8, None)

    client.providers.openai_server.complete = complete
    assert {type(reply) for reply in ask(client, 400)} == {Reply}
    slow, fast = client.model(VLLM).endpoints.all
    assert slow.limiter.limit <= limiter.INITIAL_LIMIT / 2
    assert fast.limiter.limit >= 4 * limiter.INITIAL_LIMIT
    assert urls.count(B) == 400 and urls.count(A) < 100


def test_two_models_live_in_two_places():
    with serve() as one, serve() as other:
        client = client_of(f"{VLLM}={one.base_url}", other.base_url)
        ask(client, 3), ask(client, 2, OTHER)
        assert (one.calls, other.calls) == (3, 2)


def test_where_nobody_listens_is_left_alone_and_the_other_carries_on(nobody):
    messages: list[str] = []
    with serve() as server:
        client = client_of(nobody, server.base_url, attempts=1, messages=messages)
        assert {type(reply) for reply in ask(client, 20)} == {Reply}
        assert server.calls == 20
    [message] = messages
    assert message.startswith(f"{VLLM}: no connection to {nobody}")
    assert message.endswith("; no call goes there for 10 seconds, then it is tried again")


def test_a_server_that_dies_in_the_middle_costs_no_call():
    with ExitStack() as stack:
        one, other = (stack.enter_context(serve(delay=0.02)) for _ in range(2))
        client = client_of(one.base_url, other.base_url, concurrency=8)
        ask(client, 8)
        one.script = ["reset"] * 1000
        assert {type(reply) for reply in ask(client, 100)} == {Reply}
        assert other.calls > 80


def test_a_server_with_another_model_does_not_attract_the_calls():
    with serve(delay=0.02) as good, serve() as wrong:
        nowhere = wrong.base_url.replace("/v1", "/nowhere")
        client = client_of(nowhere, good.base_url, attempts=1)
        assert {type(reply) for reply in ask(client, 30)} == {Reply}
        assert good.calls == 30


def test_a_server_that_comes_back_is_found_again(monkeypatch):
    monkeypatch.setattr(endpoints, "DOWN_SECONDS", 0.05)
    with serve(script=["500"] * 3) as one, serve(delay=0.01) as other:
        client = client_of(one.base_url, other.base_url, concurrency=4)
        ask(client, 100)
        assert one.calls - one.finished == 3
        assert one.finished > 20


def test_where_all_are_down_the_call_fails_with_the_reason(nobody):
    client = client_of(nobody, nobody.replace("127.0.0.1", "localhost"), attempts=2)
    [error] = ask(client, 1)
    assert isinstance(error, CallError) and "no connection to" in str(error)


def test_a_question_that_every_address_refuses_does_not_go_round_between_them(monkeypatch):
    with serve(delay=0.02) as one, serve(delay=0.02) as other:
        client = client_of(one.base_url, other.base_url, concurrency=8)
        provider, refused, answered = client.providers.openai_server, [], []
        answer = provider.complete

        async def complete(asked: Call, *address: str | None) -> Reply:
            if asked.text == "flagged":
                refused.append(address)
                # By then both addresses have answered, and count as up.
                until = min(len(answered) + 8, 4 + 60)
                while len(answered) < until:
                    await asyncio.sleep(0.001)
                raise ProviderError("403: flagged", 403)
            reply = await answer(asked, *address)
            answered.append(reply)
            return reply

        monkeypatch.setattr(provider, "complete", complete)
        ask(client, 4)

        async def every() -> list:
            calls = [
                replace(call(99, VLLM), text="flagged"),
                *(call(number, VLLM) for number in range(60)),
            ]
            return await asyncio.gather(*map(client.complete, calls), return_exceptions=True)

        error, *replies = asyncio.run(every())
    assert (type(error), len(refused)) == (CallError, 2)
    assert {type(reply) for reply in replies} == {Reply}


def test_a_wrong_key_at_every_address_ends_the_run():
    with serve(api_key="a") as one, serve(api_key="b") as other:
        [error] = ask(client_of(one.base_url, other.base_url), 1)
        assert isinstance(error, InputError) and "Incorrect API key" in str(error)
        assert (one.calls, other.calls) == (1, 1)


@pytest.mark.slow
def test_simulate_asks_each_model_where_it_lives(music):
    seeds = jsonl(
        [{"id": "one", "messages": [{"role": "user", "content": "What is a fugue in music?"}]}]
    )
    with serve(reply=scripted_reply) as one, serve(reply=scripted_reply) as other:
        done = music(
            "simulate",
            "--assistant",
            VLLM,
            "--user",
            OTHER,
            "--turns",
            2,
            "--contrast",
            "none",
            "--api-base",
            f"{VLLM}={one.base_url}",
            "--api-base",
            f"{OTHER}={other.base_url}",
            stdin=seeds,
        )
        assert (done.returncode, len(read(done.stdout))) == (0, 1), done.stderr
        assert (one.calls, other.calls) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, said",
    [
        (("--api-base", "localhost:8000/v1"), "expected [MODEL=]http://HOST:PORT/v1"),
        (("--api-base", "openai/x=http://h/v1"), "no model of this run has that name"),
        ((), "where is the server? set --api-base or HOSTED_VLLM_API_BASE"),
    ],
)
def test_an_address_that_cannot_serve_is_one_line(music, options, said):
    seeds = jsonl(
        [{"id": "one", "messages": [{"role": "user", "content": "What is a fugue in music?"}]}]
    )
    done = music("simulate", "--assistant", VLLM, *options, stdin=seeds)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr
