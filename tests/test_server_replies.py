"""What servers send beside plain replies: no reply, half of one, a refused field, an odd count, another model."""

import json
from dataclasses import replace

import pytest
from build import talk
from openai_server import serve
from scripted import no_network, role
from test_client import (
    KEY,
    LITELLM,
    PATHS,
    VLLM,
    ask,
    call,
    client_of,
    server_and_client,
    six_words,
)
from test_openai_provider import answer_of, answering, completion

from musiccli.core.errors import CallError, InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import judge
from musiccli.llm import limiter
from musiccli.llm.budget import LimitReached
from musiccli.llm.call import Reply
from musiccli.llm.model_health import MAX_FAILURES
from musiccli.llm.prices import TokenPrices
from musiccli.llm.provider_errors import EMPTY_ATTEMPTS, ProviderError
from musiccli.llm.providers.replies import parse_completion, same_model
from musiccli.llm.usage import Usage, money, summary
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import simulate


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    no_network(monkeypatch)
    for name in ("OPENAI", "HOSTED_VLLM", "DEEPSEEK"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)


def simulated(reply, script=(), **settings) -> tuple[list[dict], RunStats]:
    """The branches that a server with these replies gives, and the counts."""
    stats, config = RunStats(), {"assistant": VLLM, "turns": 1, "contrast": "none", **settings}
    seed = Record({"id": "s", "messages": talk("What is Everest made of?")})
    with serve(reply=reply, script=script) as server:
        client = client_of(server.base_url)
        return list(simulate([seed], SimulateConfig(**config), client, stats)), stats


# Empty replies


@pytest.mark.parametrize("model", PATHS)
@pytest.mark.parametrize(
    "fault, cause",
    [
        ("refusal", "the model refused to answer"),
        ("reasoning", "it holds reasoning alone, and no answer"),
        ("content_filter", "the provider's filter held it back"),
        ("tool_calls", "it calls a tool and says nothing"),
    ],
)
def test_an_empty_reply_names_its_cause(model, fault, cause):
    script = [fault] * EMPTY_ATTEMPTS
    with server_and_client(script=script, reply=lambda _: "") as (server, client):
        [error] = ask(client, call(model=model))
        assert server.calls == EMPTY_ATTEMPTS
    assert isinstance(error, CallError)
    assert str(error) == f"{model}: an empty reply: {cause} (after {EMPTY_ATTEMPTS} attempts)"


@pytest.mark.parametrize("model", PATHS)
def test_after_an_empty_reply_another_seed_and_a_higher_temperature_are_asked_for(model):
    with server_and_client(script=["empty", "empty"]) as (server, client):
        assert ask(client, call(model=model, temperature=0.0))[0].text == six_words()
    assert [body["temperature"] for body in server.requests] == [0.0, 0.2, 0.4]
    assert len({body["seed"] for body in server.requests}) == 3


def test_attempts_that_failed_otherwise_leave_an_empty_reply_its_own():
    script = ["500", "429", "empty", "reset", "empty"]
    with server_and_client(script=script) as (server, client):
        [reply] = ask(client, call(temperature=0.7))
        assert (reply.text, server.calls) == (six_words(), 6)
        temperatures = [body["temperature"] for body in server.requests]
    assert temperatures == [0.7, 0.7, 0.7, 0.9, 0.9, 1.0]
    with server_and_client(script=[*script, "empty"]) as (server, client):
        [error] = ask(client, call())
    assert isinstance(error, CallError) and "(after 6 attempts)" in str(error)


def test_after_an_error_the_same_is_asked_for():
    with server_and_client(script=["500", "429"]) as (server, client):
        ask(client, call())
    assert server.requests[0] == server.requests[1] == server.requests[2]


def test_filtered_and_refused_questions_at_the_start_say_nothing_of_the_others():
    count = 2 * MAX_FAILURES
    with server_and_client(script=["refusal"] * EMPTY_ATTEMPTS * count) as (_, client):
        met = [ask(client, call(number))[0] for number in range(count + 1)]
    assert [type(one) for one in met] == [CallError] * count + [Reply]


# Replies that were broken off


@pytest.mark.parametrize("model", PATHS)
def test_a_reply_that_the_server_broke_off_is_asked_for_again(model):
    with server_and_client({"attempts": 2}, script=["abort", None, "abort", "abort"]) as (
        _,
        client,
    ):
        assert ask(client, call(model=model))[0].text == six_words()
        [error] = ask(client, call(1, model))
    assert isinstance(error, CallError) and "broke off its reply (finish_reason abort)" in str(
        error
    )
    assert client.usage["assistant", model].completion_tokens > 8


@pytest.mark.parametrize(
    "reason, name",
    [("content_filter", "content filter"), ("tool_calls", "tool call"), ("odd", "interrupted")],
)
def test_a_message_that_was_interrupted_is_asked_for_again_and_else_a_fault(reason, name):
    text, fault = "The mountain is made of limestone.", f"assistant {name}"
    [branch], stats = simulated(lambda _: text, script=[reason] * 2)
    assert branch["messages"][1]["content"] == text and "faults" not in branch
    assert stats.number("retried", fault) == 2
    [branch], stats = simulated(lambda _: text, script=[reason] * 9, retries=1)
    assert branch["faults"] == [{"message": 1, "fault": fault}]


@pytest.mark.parametrize(
    "given, finish",
    [
        *[(word, "stop") for word in ("stop", "STOP", "eos", "eos_token", "end_turn", None, "")],
        *[(word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length")],
        ({"type": "length", "length": 512}, "length"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons_of_other_servers_are_told_in_openais_words(given, finish):
    assert parse_completion(completion(finish=given)).reply.finish == finish


# Thoughts


def test_thoughts_of_which_only_the_end_arrives_are_left_out():
    [branch], _ = simulated(lambda _: "They ask about rock.\n</think>\n\nMostly limestone.")
    assert branch["messages"][1]["content"] == "Mostly limestone."


def test_a_draft_in_the_thoughts_is_not_the_contrast():
    def reply(body: dict) -> str:
        if role(body) != "contrast":
            return "Mostly limestone."
        draft = "<instruction>Draft?</instruction><reply>A draft.</reply>"
        final = "<instruction>How high is K2?</instruction>\n<reply>It is 8,611 m high.</reply>"
        return f"{draft} Hm, no.\n</think>\n{final}"

    [_, rejected], _ = simulated(reply, contrast="all")
    assert rejected["messages"][1]["content"] == "It is 8,611 m high."
    assert rejected["contrast"] == [{"message": 1, "instruction": "How high is K2?"}]


def test_a_finish_reason_that_an_earlier_version_kept_is_read_as_now(tmp_path):
    store = Store(tmp_path / "c")
    kept = Reply("A form.", "eos_token", 7, 3, None)
    store.put(call(model=VLLM).key, vars(kept), VLLM)
    assert ask(client_of("http://h/v1", cache=store), call(model=VLLM))[0].interruption is None


# Fields that a server refuses


def test_a_refused_max_tokens_is_asked_for_under_its_newer_name():
    model = VLLM  # litellm knows which of its providers want which name
    messages: list[str] = []
    with server_and_client({"messages": messages}, refuses=["max_tokens"]) as (server, client):
        replies = ask(client, call(1, model, max_tokens=77)) + ask(client, call(2, model))
    assert [reply.text for reply in replies] == [six_words()] * 2
    bodies = [body for body in server.requests if "max_completion_tokens" in body]
    assert [body["max_completion_tokens"] for body in bodies] == [77, 512]
    assert not any("max_tokens" in body for body in bodies) and server.calls == 3
    assert messages == [
        f"{model}: rejects max_tokens; asked for max_completion_tokens from here on"
    ]


@pytest.mark.parametrize("top_p", [0, -0.5, 1.5, float("nan")])
def test_a_top_p_that_servers_refuse_is_refused_before_any_call(top_p):
    with pytest.raises(InputError, match=r"`top_p` .*: should be above 0 and at most 1"):
        SimulateConfig(top_p=top_p)


@pytest.mark.parametrize("model", PATHS)
def test_a_refused_seed_is_left_out(model):
    messages: list[str] = []
    with server_and_client({"messages": messages}, refuses=["seed"]) as (server, client):
        replies = ask(client, call(1, model)) + ask(client, call(2, model))
    assert [reply.text for reply in replies] == [six_words()] * 2
    assert ["seed" in body for body in server.requests] == [True, False, False]
    assert messages == [
        f"{model}: rejects seed; left out from here on, so a repeated call gets another reply"
    ]


# Questions that are too long


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 9000 tokens.",
        "prompt is too long: 208310 tokens > 200000 maximum",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048575).",
        "the request exceeds the available context size. try increasing it",
        "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
        "The response was filtered due to Azure OpenAI's content management policy.",
    ],
)
def test_a_refusal_of_the_question_says_nothing_of_other_questions(text):
    assert ProviderError(f"400: {text}", 400).about_the_question
    assert not ProviderError(f"500: {text}", 500).about_the_question


@pytest.mark.parametrize("text", ["max_tokens is not supported", "Unknown field: user", "no"])
def test_a_refusal_of_a_field_is_not_one_of_the_question(text):
    assert not ProviderError(f"400: {text}", 400).about_the_question


def test_long_questions_at_the_start_do_not_end_the_run():
    rejects = Rejects(skip=True)

    def pair(number: int, text: str) -> Record:
        sides = {"chosen": talk(text, "One."), "rejected": talk(text, "Two.")}
        return Record({"id": number, **sides})

    pairs = [pair(number, "Long? " * 1000) for number in range(20)] + [pair(20, "Short?")]
    with serve(reply=lambda _: "[[A]]", longest=9000) as server:
        stats, client = RunStats(rejects), client_of(server.base_url)
        done = list(judge(pairs, JudgeConfig(judges=(VLLM,)), client, stats))
    assert ([record["id"] for record in done], rejects.count) == ([20], 20)


# Odd bodies


@pytest.mark.parametrize(
    "written, text",
    [
        (rb"Nice \ud83d", "Nice \ufffd"),
        (rb"\ude00 nice", "\ufffd nice"),
        (rb"Nice \ud83d\ude00", "Nice \U0001f600"),
        (b"Nice \xed\xa0\xbd", "Nice \ufffd\ufffd\ufffd"),
    ],
)
def test_half_of_a_pair_of_surrogates_is_replaced(written, text):
    body = completion("TEXT").replace(b"TEXT", written)
    assert parse_completion(body).reply.text == text


@pytest.mark.parametrize("model", PATHS)
def test_half_of_a_pair_is_paid_for_once_and_kept(model, tmp_path):
    with server_and_client({"cache": Store(tmp_path / "c")}, reply=lambda _: "Nice \ud83d") as (
        server,
        client,
    ):
        replies = [ask(client, call(model=model))[0].text for _ in range(2)]
        assert (replies, server.calls) == (["Nice \ufffd"] * 2, 1)


@pytest.mark.parametrize("count", ["1e300", "-5", "1e999", '"many"', "[]", "NaN"])
def test_an_impossible_number_of_tokens_counts_as_none_and_is_named(count):
    body = completion(usage={"prompt_tokens": 7, "completion_tokens": "COUNT"})
    parsed = parse_completion(body.replace(b'"COUNT"', count.encode()))
    assert parsed.reply == Reply("A form.", "stop", 7, 0, None)
    assert parsed.odd_counts.startswith("completion_tokens ")


def test_an_impossible_number_is_said_once_and_the_reply_is_kept():
    messages: list[str] = []
    with server_and_client({"messages": messages}, completion_tokens=-1e300) as (_, client):
        replies = ask(client, call(1), call(2))
    assert {reply.text for reply in replies} == {six_words()} and client.cost == 0
    assert [message for message in messages if "impossible numbers" in message] == messages
    assert len(messages) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, prices",
    [("openai/gpt-4o", (2.5e-06, 1e-05)), ("deepseek/deepseek-chat", (2.8e-07, 4.2e-07))],
)
def test_replies_without_numbers_of_tokens_have_no_known_cost_and_max_cost_still_stops(
    model, prices
):
    """The question has 25 characters and the reply 27: six tokens each, as a rough count."""
    estimate, messages = 6 * sum(prices), []
    settings = {"max_cost": 1.5 * estimate, "messages": messages}
    with server_and_client(settings, counted=False) as (server, client):
        met = [ask(client, call(number, model))[0] for number in range(3)]
        assert server.calls == 2
    assert [getattr(one, "cost", "none") for one in met] == [None, None, "none"]
    assert isinstance(met[2], LimitReached)
    assert client.usage["assistant", model] == Usage(calls=2, unpriced=2)
    assert client.summary() == [
        f"assistant {model}: 2 calls (0 from cache, 0 retried), 0 tokens, price unknown"
    ]
    assert messages == [
        f"{model}: replies came without a number of tokens, so what they cost is unknown; "
        "`max_cost` counts them by their characters / 4"
    ]


@pytest.mark.parametrize("text, completion_tokens", [("A form.", 0), ("", 0), ("A form.", 9)])
def test_a_model_that_costs_nothing_costs_nothing_without_numbers_of_tokens(
    text, completion_tokens
):
    reply = Reply(text, "stop", 0, completion_tokens, None)
    assert TokenPrices(0.0, 0.0).reply_cost(reply) == 0.0
    assert TokenPrices(0.0, 1.0).reply_cost(reply) is None


def test_a_prompt_that_was_counted_and_got_no_reply_has_its_price():
    prices = TokenPrices(0.5, 1.0)
    assert prices.reply_cost(Reply("", "stop", 8, 0, None)) == 4.0
    assert prices.reply_cost(Reply("A form.", "stop", 8, 0, None)) is None
    assert prices.reply_cost(Reply("A form.", "stop", 8, 3, None)) == 7.0


def test_an_impossible_number_of_tokens_has_no_known_cost():
    messages: list[str] = []
    settings = {"messages": messages}
    with server_and_client(settings, completion_tokens=-5) as (_, client):
        [reply] = ask(client, call(model="openai/gpt-4o"))
    assert reply.cost is None and client.usage["assistant", "openai/gpt-4o"].unpriced == 1
    assert messages[-1] == (
        "openai/gpt-4o: replies came without a number of tokens, so what they cost is unknown"
    )


def test_the_known_cost_is_shown_beside_how_many_replies_have_none():
    used = {
        ("user", "openai/gpt-4o"): Usage(calls=9, cost=0.5, unpriced=1),
        ("judge", VLLM): Usage(calls=1200, unpriced=1200),
    }
    assert [line.rpartition("tokens, ")[2] for line in summary(used)] == [
        "price unknown",
        "$0.5000 and 1 reply of unknown cost",
    ]
    assert money(used) == "$0.5000 and 1,201 replies of unknown cost"
    assert Usage(unpriced=2) + Usage(unpriced=3) == Usage(unpriced=5)


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100_000])
def test_a_body_that_no_reader_takes_is_one_error(body):
    with pytest.raises(ProviderError, match="the body is no JSON"):
        parse_completion(body.encode())


@pytest.mark.parametrize("value", ["inf", "1" * 5000, "1e400", "9" * 400])
def test_an_endless_wait_is_one_named_failure(value):
    met = answer_of(answering(429, "slow down", **{"Retry-After": value}))
    assert met.wait_too_long and not met.retryable
    with serve(faults={"429-retry-after": 1}, retry_after=float("inf")) as server:
        [error] = ask(client_of(server.base_url), call(model=VLLM))
    assert "it asks for a wait of more than 1000 h 0 min, and 5 min is the most" in str(error)


@pytest.mark.parametrize(
    "value", ["nan", "((((((", "Wed, 21 Oct 99999 07:28:00 GMT", "1,2", "-inf"]
)
def test_a_wait_that_is_none_is_not_waited(value):
    met = answer_of(answering(429, "slow down", **{"Retry-After": value}))
    assert met.retryable and not met.retry_after


def test_a_wait_of_too_many_digits_in_a_text_is_too_long():
    assert ProviderError(f"try again in {'9' * 5000}h", 429).wait_too_long


# Another model


@pytest.mark.parametrize(
    "name, served, same",
    [
        ("smollm2", "smollm2", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("smollm2", "/models/SmolLM2.gguf", True),
        ("meta-llama/Llama-3-8B", "llama-3-8b", True),
        ("llama-70b", "smollm2", False),
    ],
)
def test_a_longer_form_of_a_name_is_the_same_model(name, served, same):
    assert same_model(name, served) is same


def test_a_server_that_answers_for_any_name_is_noticed_once():
    messages: list[str] = []
    with server_and_client({"messages": messages}, model="tiny") as (_, client):
        ask(client, call(1), call(2), call(3, LITELLM))
    assert len(messages) == 1 and "the server answers as 'tiny'" in messages[0]


# Raw text on a server


def test_a_small_model_on_a_server_writes_the_users_message_by_a_plain_transcript():
    texts = iter(["A form of music.", " Who wrote fugues?\n", "Bach did."])
    seed = Record({"id": "s", "messages": talk("What is a fugue?")})
    config = SimulateConfig(
        assistant=VLLM, turns=2, contrast="none", prompts="small", contrast_calls=2
    )
    with serve(reply=lambda _: next(texts)) as server:
        [branch] = simulate([seed], config, client_of(server.base_url), RunStats())
    assert [message["content"] for message in branch["messages"]] == [
        *("What is a fugue?", "A form of music.", "Who wrote fugues?", "Bach did.")
    ]
    asked = server.requests[1]
    assert asked["prompt"] == "User: What is a fugue?\n\nAssistant: A form of music.\n\nUser:"
    assert "\n\nAssistant:" in asked["stop"]


def test_the_price_warning_is_said_once_for_a_model_of_several_roles():
    messages: list[str] = []
    with server_and_client({"max_cost": 1.0, "messages": messages}) as (_, client):
        other_role = replace(call(2), call_key=("id2", "chosen", 0, 0, "user", 0))
        ask(client, call(1)), ask(client, other_role)
    assert len(messages) == 1 and "its price is unknown" in messages[0]


def test_a_call_without_the_new_fields_keeps_its_place_in_the_cache():
    """The key of a call as it was before there were other seeds and other names of the limit."""
    assert call().key.hex() == "9e743f5556091e977ef9c65fef6907c4"


def test_a_key_in_place_of_a_number_of_tokens_is_not_shown(monkeypatch):
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "swordfish")
    usage = {"completion_tokens": "swordfish"}
    body = {"choices": [{"message": {"content": "a"}}], "usage": usage}
    assert parse_completion(json.dumps(body).encode()).odd_counts == "completion_tokens [key]"
