"""litellm's real path against a loopback server: replies, money, retries, and when a run is given up."""

import asyncio
import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count

import pytest
from console import music
from openai_server import serve
from scripted import no_network

from musiccli.core.errors import CallError, InputError
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm import budget as budgets
from musiccli.llm import ledger, limiter
from musiccli.llm.budget import UNPRICED_ITEMS, Budget
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client, LimitReached
from musiccli.llm.concurrency import gather_all, map_ordered
from musiccli.llm.config import ClientConfig
from musiccli.llm.ledger import Ledger
from musiccli.llm.model_health import MAX_FAILURES
from musiccli.llm.provider_errors import ProviderError
from musiccli.llm.providers.litellm_provider import token_prices
from musiccli.llm.remote_model import ABOUT_SCHEMA, rejected_field
from musiccli.llm.usage import Usage

KEY = "sesame-open-9876543210"
PRICE = (
    8 * 2.5e-06 + 8 * 1e-05
)  # openai/gpt-4o: six words are eight tokens, in and out, on this server
OPENAI = "openai/scripted"
VLLM = "hosted_vllm/scripted"
LITELLM = "deepseek/scripted"  # a provider of litellm's, at another address
PATHS = [VLLM, LITELLM]
six_words = "one two three four five six".format


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """No other network, a key, and no waiting between attempts."""
    no_network(monkeypatch)
    for name in ("OPENAI", "HOSTED_VLLM", "DEEPSEEK"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
    monkeypatch.delenv("HOSTED_VLLM_API_BASE", raising=False)
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)


def call(number: int = 0, model: str = OPENAI, **fields) -> Call:
    question = ({"role": "user", "content": "What is a fugue in music?"},)
    return Call(model, (f"id{number}", "chosen", 0, 0, "assistant", 0), question, **fields)


def ask(client: Client, *calls: Call) -> list:
    """The reply of each call, all asked at once, or the exception it met."""

    async def every() -> list:
        return await asyncio.gather(*map(client.complete, calls), return_exceptions=True)

    return asyncio.run(every())


def client_of(*urls: str, cache=None, messages: list[str] | None = None, **config) -> Client:
    """A client of the servers at these addresses; what it says goes to `messages`."""
    stats = RunStats(say=[].append if messages is None else messages.append)
    return Client(ClientConfig(api_base=urls, **config), cache, stats)


@contextmanager
def server_and_client(settings: dict | None = None, **behavior):
    with serve(**{"reply": lambda _: six_words(), **behavior}) as server:
        yield server, client_of(*addresses(server), **(settings or {}))


def addresses(server) -> tuple[str, ...]:
    return server.base_url, *(
        f"{model}={server.base_url}" for model in (LITELLM, "deepseek/deepseek-chat")
    )


def nowhere(server) -> tuple[str, ...]:
    return tuple(address.replace("/v1", "/nowhere") for address in addresses(server))


def test_a_reply_has_its_text_its_end_and_its_tokens():
    with server_and_client() as (server, client):
        assert ask(client, call()) == [Reply(six_words(), "stop", 8, 8, None)]
        assert server.calls == 1


@pytest.mark.parametrize("fault", [None, "400"])
def test_equal_calls_at_once_get_one_reply_as_they_would_one_after_the_other(tmp_path, fault):
    replies = iter(range(9))
    behavior = {"reply": lambda _: f"reply {next(replies)}", "delay": 0.05, "script": [fault]}
    with server_and_client({"cache": Store(tmp_path / "c")}, **behavior) as (server, client):
        first = ask(client, call(), call())
        assert server.calls == (2 if fault else 1)  # an error of the one is none of the other
        assert (first[0] == first[1]) != bool(fault)
        assert ask(client, call(), call()) == [first[1], first[1]]
    assert not client._locks


def test_what_is_asked_reaches_the_server():
    asked = call(max_tokens=77, temperature=0.25, top_p=0.75, stop=("\n\n",), seed=5)
    with server_and_client() as (server, client):
        ask(client, asked)
    [body] = server.requests
    assert body == {
        "model": "scripted",
        "messages": list(asked.messages),
        "max_tokens": 77,
        "temperature": 0.25,
        "top_p": 0.75,
        "stop": ["\n\n"],
        "seed": asked.call_seed,
    }
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_two_samples_of_one_question_have_different_seeds_and_a_repeated_one_its_own():
    other = replace(call(), call_key=("id0", "chosen", 1, 0, "assistant", 0))
    assert call().call_seed == call().call_seed != other.call_seed
    assert call().key != other.key != replace(other, temperature=0.1).key
    assert 0 <= call().call_seed < 2**31


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, cost",
    [
        ("openai/gpt-4o", pytest.approx(PRICE)),
        (OPENAI, None),
        (VLLM, None),
        (LITELLM, None),
        ("deepseek/deepseek-chat", pytest.approx(8 * 2.8e-07 + 8 * 4.2e-07)),
    ],
)
def test_cost_is_in_dollars_and_none_where_the_price_is_unknown(model, cost):
    with server_and_client() as (_, client):
        [reply] = ask(client, call(model=model))
    assert reply.cost == cost
    assert client.cost == (0 if cost is None else cost)
    assert ("price unknown" in client.summary()[0]) is (cost is None)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["openai/gpt-4o", "deepseek/deepseek-chat"])
def test_an_empty_reply_is_paid_for_too(model):
    with server_and_client() as (server, client):
        ask(client, call(1, model))
        once, server.script = client.cost, [None, "empty"]
        ask(client, call(2, model))
    used = client.usage["assistant", model]
    assert (used.calls, used.retries, used.prompt_tokens, used.completion_tokens) == (
        2,
        1,
        24,
        16,
    )
    assert 2 * once < client.cost == used.cost < 3 * once


def test_the_summary_names_role_model_calls_tokens_and_money():
    with server_and_client({"cache": None}, script=["500"]) as (_, client):
        ask(client, call(1, "openai/gpt-4o"), call(2, "openai/gpt-4o"))
    assert client.summary() == [
        "assistant openai/gpt-4o: 2 calls (0 from cache, 1 retried), 32 tokens, $0.0002"
    ]


def test_money_for_calls_that_all_failed_at_once_is_in_the_last_lines_and_in_the_ledger(
    tmp_path, monkeypatch
):
    """The server's thoughts take 512 tokens, and leave none for the reply."""
    monkeypatch.setattr(ledger, "SAVE_SECONDS", 0.0)  # else the first is saved after 10 seconds
    store, model = Store(tmp_path / "c"), "openai/gpt-4o"
    with server_and_client({"cache": store}, script=["thoughts"] * 2) as (_, client):
        errors = ask(client, call(1, model), call(2, model))
    assert [type(error) for error in errors] == [CallError] * 2
    used = Usage(prompt_tokens=16, completion_tokens=1024, cost=pytest.approx(0.01028))
    assert client.usage["assistant", model] == used
    assert [entry.used for entry in Ledger(store).entries()] == [used]
    assert client.summary() == [
        f"assistant {model}: 0 calls (0 from cache, 0 retried), 1,040 tokens, $0.0103"
    ]
    assert client.progress() == "0 calls, 0 retried, $0.0103"
    client.close()
    shown = music("cache", "--cache", tmp_path / "c", "--runs")
    assert [record["cost"] for record in shown.records] == [pytest.approx(0.01028)]
    assert re.search(r"assistant openai/gpt-4o +0 +0 +0 +16 +1,024 +\$0\.0103", shown.err)


@pytest.mark.parametrize("most", [float("nan"), -1.0, float("-inf")])
def test_a_limit_that_is_no_sum_of_money_is_refused(most):
    with pytest.raises(InputError, match=f"^`max_cost` {most:g}: should be a number of dollars"):
        ClientConfig(max_cost=most)


def test_who_was_never_asked_is_not_in_the_summary():
    client = client_of(max_cost=0)
    ask(client, call())
    assert client.summary() == []


def test_a_reply_that_the_limit_cut_says_length():
    with server_and_client(script=["length"]) as (_, client):
        assert ask(client, call())[0].finish == "length"


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize("fault", ["429", "500", "reset", "truncated", "invalid-json", "empty"])
def test_a_passing_fault_is_tried_again(model, fault, capfd):
    silent = (
        model == LITELLM and fault == "reset"
    )  # litellm itself tries a reset connection a second time
    with server_and_client(script=[fault, fault, *[fault] * silent, *[fault] * silent]) as (
        server,
        client,
    ):
        assert ask(client, call(model=model))[0].text == six_words()
        assert server.calls == 3 + 2 * silent
    assert client.usage["assistant", model].retries == 2
    assert capfd.readouterr().out == ""  # litellm likes to print advice where records go


def test_a_slow_body_is_no_fault():
    with server_and_client(script=["slow"]) as (server, client):
        assert ask(client, call())[0].text == six_words()
        assert server.calls == 1


def test_nothing_within_the_token_limit_is_not_asked_for_again():
    with server_and_client(script=["thoughts"]) as (server, client):
        [error] = ask(client, call())
        assert isinstance(error, CallError) and server.calls == 1
    assert str(error) == (
        f"{OPENAI}: an empty reply: all 512 tokens it may write were gone before the first word, "
        "where thoughts count, too; raise `max_tokens` or lower `reasoning`"
    )


@pytest.mark.parametrize("fault", ["429", "500", "reset", "empty"])
def test_after_every_attempt_the_call_has_failed(fault):
    with server_and_client({"attempts": 3}, script=[fault] * 9) as (server, client):
        [error] = ask(client, call())
        assert isinstance(error, CallError)
        assert str(error).startswith(f"{OPENAI}: ") and str(error).endswith(" (after 3 attempts)")
        assert server.calls == 3


@pytest.mark.slow
@pytest.mark.parametrize("model", PATHS)
def test_retry_after_is_waited_for_by_all_calls_to_that_model(model):
    with server_and_client(script=["429-retry-after"], retry_after=0.5) as (server, client):

        async def run() -> list[float]:
            begun = time.monotonic()
            first = asyncio.ensure_future(client.complete(call(1, model)))
            while not client.usage["assistant", model].retries:
                await asyncio.sleep(0.005)
            await client.complete(call(2, model))
            late = time.monotonic() - begun
            await first
            return [late, time.monotonic() - begun]

        assert min(asyncio.run(run())) >= 0.5
        assert server.calls == 3


def test_a_hanging_call_times_out_and_is_tried_again():
    # So many attempts that one of them is in time on any machine.
    settings = {"timeout": 0.5, "attempts": 100}
    with server_and_client(settings, script=["hang"]) as (server, client):
        start = time.monotonic()
        assert ask(client, call())[0].text == six_words()
        assert time.monotonic() - start >= 0.5
        assert server.calls >= 2


@pytest.mark.parametrize(
    "status, slower",
    [(408, True), (504, True), (524, True), (429, True), (500, False), (400, False)],
)
def test_a_server_that_does_not_answer_in_time_gets_fewer_calls_at_once(status, slower):
    model = client_of("http://h/v1").model(VLLM)
    [endpoint] = model.endpoints.all
    before = endpoint.limiter.limit
    model.endpoints.record_failure(endpoint, ProviderError("no answer", status))
    assert endpoint.limiter.limit == (before / 2 if slower else before)


def test_a_time_out_of_ones_own_is_one_of_the_server():
    with server_and_client({"timeout": 0.2, "attempts": 1}, script=["hang"]) as (_, client):
        [error] = ask(client, call())
    assert isinstance(error, CallError)
    assert client.model(OPENAI).endpoints.all[0].limiter.limit < limiter.INITIAL_LIMIT


def test_the_first_retry_of_a_silent_model_is_said_once():
    messages: list[str] = []
    with server_and_client({"messages": messages}, script=["500"] * 4) as (_, client):
        ask(client, call(1), call(2))
    [message] = messages
    assert message.startswith(f"{OPENAI}: ")
    assert message.endswith("The server had an error; trying again")


@pytest.mark.parametrize("model", PATHS)
def test_a_wrong_key_ends_the_run_at_once(model):
    with server_and_client(api_key="another") as (server, client):
        [error] = ask(client, call(model=model))
        assert isinstance(error, InputError)
        assert str(error).endswith("no call to it has succeeded, so the run stops here")
        assert server.calls == 1


@pytest.mark.parametrize("model", PATHS)
def test_an_address_where_nothing_is_ends_the_run_at_once(model):
    with server_and_client() as (server, client):
        client.config = replace(client.config, api_base=nowhere(server))
        [error] = ask(client, call(model=model))
    assert isinstance(error, InputError) and "404" in str(error)


def test_a_refusal_after_a_success_fails_its_call_only():
    with server_and_client() as (server, client):
        ask(client, call(1))
        server.api_key = "another"
        [error] = ask(client, call(2))
    assert isinstance(error, CallError)


def test_one_models_success_does_not_excuse_another_model():
    with server_and_client() as (server, client):
        ask(client, call(1))
        client.config = replace(client.config, api_base=nowhere(server))
        [error] = ask(client, call(2, model="openai/mistyped"))
    assert isinstance(error, InputError)


def test_an_unusable_request_fails_without_another_attempt():
    with server_and_client() as (server, client):
        [error] = ask(client, replace(call(), messages=()))
        assert isinstance(error, CallError) and "must be JSON with messages" in str(error)
        assert server.calls == 1


def test_calls_that_all_fail_end_the_run_after_a_few():
    with server_and_client({"attempts": 2}, faults={"500": 1}) as (server, client):
        met = [ask(client, call(number))[0] for number in range(MAX_FAILURES + 1)]
        assert [type(error) for error in met] == [CallError] * (MAX_FAILURES - 1) + [InputError] * 2
        assert server.calls == 2 * MAX_FAILURES


def test_a_server_that_is_not_there_is_named(unused_port):
    client = client_of(f"http://127.0.0.1:{unused_port}/v1", attempts=2)
    [error] = ask(client, call(model=VLLM))
    assert isinstance(error, CallError) and f"127.0.0.1:{unused_port}" in str(error)


@pytest.fixture
def unused_port() -> int:
    with serve() as server:
        return server.port


def test_the_limit_stops_before_the_next_call_and_cached_calls_stay_free(tmp_path):
    with server_and_client({"cache": Store(tmp_path / "c"), "max_cost": 1.5 * PRICE}) as (
        server,
        client,
    ):
        met = [ask(client, call(number, "openai/gpt-4o"))[0] for number in (0, 1, 2, 0)]
        assert [type(one) for one in met] == [Reply, Reply, LimitReached, Reply]
        assert server.calls == 2
        assert client.cost == pytest.approx(2 * PRICE)


def test_of_the_calls_that_wait_for_a_place_none_begins_when_the_money_is_spent():
    with server_and_client({"max_cost": 2.5 * PRICE, "concurrency": 2}) as (server, client):
        met = ask(client, *(call(number, "openai/gpt-4o") for number in range(20)))
        assert server.calls <= 3 + 1  # the one that brought the limit, and the one beside it
    assert [type(one) for one in met].count(Reply) == server.calls
    assert {type(one) for one in met} == {Reply, LimitReached}


def conversation(client: Client, calls: int):
    """Work as the stages do it: some calls one after the other for one item; which are answered, or LimitReached."""

    async def work(item: int) -> int | LimitReached:
        try:
            for turn in range(calls):
                await client.complete(
                    replace(
                        call(item, "openai/gpt-4o"), call_key=(f"id{item}", turn, "assistant", 0)
                    )
                )
        except LimitReached as reached:
            return reached
        return item

    return work


@pytest.mark.slow
def test_the_oldest_conversations_are_finished_first():
    with server_and_client({"concurrency": 4}, delay=0.005) as (server, client):
        results = map_ordered(range(64), conversation(client, 5), window=64)
        assert next(results) == 0
        assert (
            server.calls < 60
        )  # with everybody in step, the first would be done after 4 rounds of 64
        assert list(results) == list(range(1, 64))


def test_a_conversation_that_hangs_does_not_stall_the_others():
    with server_and_client({"concurrency": 4}) as (server, client):
        provider, others_done, finished = client.providers.openai_server, asyncio.Event(), []
        complete, attempts = provider.complete, count()

        async def hang_once(call: Call, *address: str | None) -> Reply:
            """The first call of item 0 gets no answer before all other items are done."""
            if call.call_key[0] == "id0" and next(attempts) == 0:
                await asyncio.wait_for(others_done.wait(), 120)
                raise ProviderError("no answer", 408)
            return await complete(call, *address)

        async def work(item: int) -> int | LimitReached:
            result = await conversation(client, 5)(item)
            finished.append(item)
            if len(finished) == 11:
                others_done.set()
            return result

        provider.complete = hang_once
        results = map_ordered(range(12), work, window=4)
        assert next(results) == 0
        assert sorted(finished[:11]) == list(range(1, 12)) and server.finished == 12 * 5
        results.close()


@pytest.mark.parametrize("paid_for", [12.2, 20.5, 37.0])
def test_what_the_money_began_it_finishes(paid_for):
    most = paid_for * 5 * PRICE  # so many conversations
    with server_and_client({"concurrency": 4, "max_cost": most}, delay=0.002) as (server, client):
        done = list(map_ordered(range(64), conversation(client, 5), window=64))
        finished = [item for item in done if isinstance(item, int)]
        assert len(finished) >= paid_for - 2
        assert server.calls - 5 * len(finished) <= 4  # one of those begun, at most, is not finished
        assert client.cost <= most + 4 * PRICE


@pytest.mark.parametrize("paid_for", [4.5, 10.0, 30.0])
def test_also_of_little_money_and_with_everybody_in_flight(paid_for):
    with server_and_client({"max_cost": paid_for * 5 * PRICE}, delay=0.002) as (server, client):
        done = list(map_ordered(range(100), conversation(client, 5), window=128))
        finished = sum(isinstance(item, int) for item in done)
        assert paid_for - 1 <= finished <= paid_for and server.calls == 5 * finished


@pytest.mark.parametrize(
    ("slow", "begun"), [(0, []), (1, ["1 record that has"]), (2, ["2 records that have"])]
)
def test_a_run_that_the_money_stops_says_what_it_waits_for(slow, begun, monkeypatch):
    monkeypatch.setattr(budgets, "UNSAID_WAIT", 0.05)
    said, all_said = [], asyncio.Event()
    budget = Budget(3.5, lambda text: (said.append(text), all_said.set()))

    async def work(number: int) -> None:
        with suppress(LimitReached):
            await budget.start_item()
            budget.charge(1.0)
            if number and number <= slow:
                await asyncio.wait_for(all_said.wait(), 120)

    list(map_ordered(range(9), work, window=9))
    assert said == [
        f"`max_cost` suffices for nothing more; waiting for {records} begun" for records in begun
    ]


def test_an_item_whose_calls_begin_at_once_starts_once():
    budget, started = Budget(10.8), []

    async def work(number: int) -> int:
        await gather_all(budget.start_item(), budget.start_item())
        started.append(number)
        await asyncio.sleep(0.01)
        budget.charge(1.0)
        return number

    async def priced(number: int) -> int | None:
        with suppress(LimitReached):
            return await work(number)

    assert list(map_ordered(range(12), priced, window=12)) == [*range(10), None, None]
    assert sorted(started) == [*range(10)] and budget.spent == 10


def test_a_limit_does_not_slow_down_what_costs_nothing():
    with server_and_client({"max_cost": 1.0}) as (server, client):

        async def work(item: int) -> None:
            await client.complete(call(item, VLLM))

        list(map_ordered(range(UNPRICED_ITEMS), work, window=64))
        server.wait_for_calls = server.calls + 9
        list(map_ordered(range(40), work, window=64))
        assert server.peak > 8


def test_a_limit_that_cannot_be_held_is_said():
    messages: list[str] = []
    with server_and_client({"max_cost": 1.0, "messages": messages}) as (_, client):
        ask(client, call(1))
        ask(client, call(2))
    assert messages == [f"{OPENAI}: its price is unknown, so `max_cost` cannot count it"]


def test_concurrency_is_the_most_calls_in_flight():
    with server_and_client({"concurrency": 3}, wait_for_calls=3) as (server, client):
        ask(client, *map(call, range(12)))
        assert (server.peak, server.calls) == (3, 12)


def test_refused_calls_slow_the_run_down_and_all_come_through(monkeypatch):
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.1)
    with server_and_client({"attempts": 30}, limit=4, delay=0.01) as (server, client):
        replies = ask(client, *map(call, range(40)))
        assert {type(reply) for reply in replies} == {Reply}
        assert server.finished == 40
        assert client.model(OPENAI).endpoints.all[0].limiter.limit < 16


def test_a_second_client_finds_every_reply_and_asks_nobody(tmp_path):
    with server_and_client({"cache": Store(tmp_path / "calls.sqlite")}) as (server, client):
        first = ask(client, *map(call, range(5)))
        client.close()
        again = client_of(server.base_url, cache=Store(tmp_path / "calls.sqlite"))
        assert ask(again, *map(call, range(5))) == first
        assert server.calls == 5
    assert again.summary() == [
        f"assistant {OPENAI}: 5 calls (5 from cache, 0 retried), 0 tokens, $0.0000"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "openai/other"},
        {"max_tokens": 5},
        {"temperature": 0.1},
        {"top_p": 0.2},
        {"stop": ("x",)},
        {"seed": 1},
        {"call_key": ("id0", "chosen", 1, 0, "assistant", 0)},
        {"call_key": ("id0", "chosen", 0, 0, "assistant", 1)},
        {"messages": ({"role": "user", "content": "What else?"},)},
    ],
    ids=str,
)
def test_another_question_is_another_call(tmp_path, change):
    with server_and_client({"cache": Store(tmp_path / "c")}) as (server, client):
        ask(client, call())
        ask(client, replace(call(), **change))
        ask(client, call())
        assert server.calls == 2


def test_a_failed_call_is_not_kept(tmp_path):
    with server_and_client({"cache": Store(tmp_path / "c"), "attempts": 1}, script=["500"]) as (
        _,
        client,
    ):
        assert [type(ask(client, call())[0]) for _ in range(2)] == [CallError, Reply]


def test_keys_do_not_stand_in_the_cache(tmp_path):
    with server_and_client({"cache": Store(tmp_path / "calls.sqlite")}) as (_, client):
        ask(client, call())
        client.close()
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_a_reply_loses_keys_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "default")
    monkeypatch.setenv("OTHER_TOKEN", "indistinguishable")
    said = f"By default an indistinguishable sk-like-thing-12345678, and {KEY}"
    with server_and_client(reply=lambda _: said) as (_, client):
        assert ask(client, call())[0].text == said.replace(KEY, "[key]")


@pytest.mark.parametrize(
    "model, named",
    [
        ("gemini/gemini-1.5-pro", "GEMINI_API_KEY"),
        ("openai/gpt-4o", "OPENAI_API_KEY"),
        ("gpt-4o", "OPENAI_API_KEY"),
        ("anthropic/claude-3-haiku-20240307", "ANTHROPIC_API_KEY"),
    ],
)
def test_a_missing_key_ends_the_run_at_once_and_names_the_variable(
    monkeypatch, model, named, capfd
):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    messages: list[str] = []
    client = client_of(messages=messages)
    [error] = ask(client, call(model=model))
    assert isinstance(error, InputError) and named in str(error)
    assert "\n" not in str(error) and "Traceback" not in str(error)
    assert client.usage["assistant", model].retries == 0
    assert (capfd.readouterr(), messages) == (("", ""), [])


SCHEMA = {"type": "object", "properties": {"verdict": {"type": "string"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize(
    "fields, key",
    [
        (
            {"messages": ({"role": "user", "content": "Hi"},), "seed": 3},
            "657000e0d25155949f48c7be95bdfb72",
        ),
        ({"text": "Hi", "mode": "completion", "stop": ("\n",)}, "c945fb0008e299284768804f6840203d"),
    ],
)
def test_what_older_caches_hold_is_found(fields, key):
    """Keys as version 0.1 wrote them: a field that came later changes none where it is not used."""
    assert Call("openai/x", ("id0", "chosen", 0, 0, "assistant", 0), **fields).key.hex() == key


def test_a_schema_makes_another_call():
    assert call().key != call(schema=SCHEMA).key != call(schema={}).key


@pytest.mark.parametrize("model", [OPENAI, VLLM])
def test_a_server_of_ones_own_is_sent_the_schema(model):
    with server_and_client() as (server, client):
        ask(client, call(model=model, schema=SCHEMA), call(1, model))
    assert [body.get("response_format") for body in server.requests] == [FORM, None]


def test_a_provider_is_sent_the_schema_if_litellm_knows_that_it_takes_one():
    models = ("deepseek/deepseek-chat", LITELLM)
    with server_and_client() as (server, client):
        ask(client, *(call(model=model, schema=SCHEMA) for model in models))
        ask(client, *(call(model=model) for model in models))
    asked = {(body["model"], "response_format" in body) for body in list(server.requests)[:2]}
    assert asked == {("deepseek-chat", True), ("scripted", False)}
    assert not any("response_format" in body for body in list(server.requests)[2:])


def test_a_model_that_refuses_a_schema_is_asked_without_and_not_offered_one_again():
    with server_and_client(refuses=["response_format"]) as (server, client):
        [first] = ask(client, call(schema=SCHEMA))
        [second] = ask(client, call(1, schema=SCHEMA))
    assert (first.text, second.text) == (six_words(), six_words())
    assert ["response_format" in body for body in server.requests] == [True, False, False]
    assert client.usage["assistant", OPENAI].calls == 2


@pytest.mark.parametrize("model", [VLLM, LITELLM])
def test_sampling_that_a_model_refuses_is_left_out_and_said_once(model):
    messages: list[str] = []
    refuses = ["top_p", "temperature", "response_format"]
    with server_and_client({"messages": messages}, refuses=refuses) as (server, client):
        asked = [call(number, model, schema=SCHEMA, top_p=0.9) for number in range(3)]
        replies = ask(client, asked[0]) + ask(client, *asked[1:])
    assert [reply.text for reply in replies] == [six_words()] * 3
    assert not {"top_p", "temperature", "response_format"} & {
        *server.requests[-1],
        *server.requests[-2],
    }
    assert server.calls == 3 + 3 - (model == LITELLM)  # litellm does not offer this model a schema
    names = ["temperature=0.7", "top_p=0.9"]
    if model == VLLM:
        names = ["temperature=0.7", "the JSON schema of its replies", "top_p=0.9"]
    assert sorted(messages) == [f"{model}: rejects {name}; left out from here on" for name in names]
    assert client.usage["assistant", model].retries == len(names)


@pytest.mark.parametrize(
    "text, field",
    [
        (
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
            "top_p",
        ),
        ("Unsupported value: 'temperature' does not support 0.7 with this model.", "temperature"),
        ("no", "schema"),
    ],
)
def test_what_a_refusal_names_is_what_is_left_out(text, field):
    assert rejected_field(call(schema=SCHEMA), ProviderError(text, 400)) == field
    assert rejected_field(call(schema=SCHEMA), ProviderError(text, 500)) is None
    assert rejected_field(call(temperature=None, top_p=None), ProviderError(text, 400)) is None


def test_a_refusal_that_does_not_speak_of_the_schema_leaves_it_out_of_one_call_alone():
    messages: list[str] = []
    with server_and_client({"messages": messages}, script=[None, "400", None, "400"]) as (
        server,
        client,
    ):
        replies = [ask(client, call(number, schema=SCHEMA))[0] for number in range(4)]
    assert [reply.text for reply in replies] == [six_words()] * 4
    sent = ["response_format" in body for body in server.requests]
    assert sent == [True, True, False, True, False, True]
    assert client.usage["assistant", OPENAI].retries == 2
    assert messages == [
        f"{OPENAI}: 400: We could not parse the JSON body of your request; that call was sent "
        "again without the JSON schema"
    ]


@pytest.mark.parametrize(
    "text, about",
    [
        ("We could not parse the JSON body of your request.", False),
        ("Bad request", False),
        ("Invalid JSON: EOF while parsing a value", False),
        ("Invalid parameter: 'response_format' of type 'json_schema' is not supported", True),
        ("This response_format type is unavailable now", True),
        ("Failed to compile the grammar", True),
        ("structured outputs are not enabled on this server", True),
        ("guided_json is not a valid option", True),
        ('Unknown name "additionalProperties" at generation_config.response_schema', True),
        ("JSON schema is not supported", True),
    ],
)
def test_which_refusals_speak_of_the_schema(text, about):
    assert bool(ABOUT_SCHEMA.search(text)) is about


def test_a_provider_is_not_sent_a_top_p_that_cuts_nothing():
    with server_and_client() as (server, client):
        ask(client, call(model=LITELLM), call(1, LITELLM, top_p=0.9))
    assert sorted("top_p" in body for body in server.requests) == [False, True]


def test_a_call_that_is_bad_without_its_schema_too_says_nothing_of_the_model():
    with server_and_client() as (server, client):
        [error] = ask(
            client, replace(call(schema=SCHEMA), messages=())
        )  # the server refuses a call without messages
        ask(client, call(1, schema=SCHEMA))
    assert isinstance(error, CallError)
    assert ["response_format" in body for body in server.requests if body] == [True]


def test_a_model_without_a_provider_is_explained(capfd):
    [error] = ask(client_of(), call(model="llama"))
    assert isinstance(error, InputError) and "name the provider, as in gemini/" in str(error)
    assert capfd.readouterr().out == ""


def test_a_server_of_ones_own_is_never_mistaken_for_openai():
    [error] = ask(client_of(), call(model=VLLM))
    assert isinstance(error, InputError) and "`api_base`" in str(error)


def test_only_models_in_this_process_continue_raw_text():
    [error] = ask(client_of(), replace(call(), mode="turn"))
    assert isinstance(error, InputError) and "`prompts`" in str(error)


@pytest.mark.parametrize(
    "model, prices",
    [
        ("openai/gpt-4o", (2.5e-06, 1e-05)),
        ("local/smollm2", (0.0, 0.0)),
        ("openai/scripted", None),
        ("nonsense", None),
    ],
)
def test_prices_are_known_or_none(model, prices):
    assert token_prices(model) == prices


def test_litellm_is_imported_only_when_a_provider_is_asked():
    script = (
        "import sys; from musiccli.cli import main; from musiccli.core import store; from musiccli.llm import client, concurrency; "
        "from musiccli.simulate import simulator; from musiccli.judge import verdicts; "
        "from musiccli.llm.providers import litellm_provider; litellm_provider.token_prices('local/x'); "
        "heavy = {'litellm', 'torch', 'transformers', 'openai'} & sys.modules.keys(); print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
