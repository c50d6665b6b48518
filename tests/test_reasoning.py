"""Models that think before they reply: what is asked of them, what is said of it, and what goes wrong."""

import asyncio
import os
from typing import get_args

import pytest
import toys
from build import read, talk
from console import music
from openai_server import serve
from scripted import call_at_once, jsonl, scripted_reply
from transformers import AutoTokenizer

from musiccli.core import jsonl as files
from musiccli.core.errors import CallError, InputError
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.llm.local.engine import LocalEngine
from musiccli.llm.reasoning import EFFORTS, check_reasoning, effort_of, may_think
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import simulate

VLLM, OPENAI, LITELLM = "hosted_vllm/scripted", "openai/scripted", "deepseek/scripted"
THINKER = "openai/gpt-5"  # litellm's table says so; here a server of one's own answers for it
SEEDS = [{"id": number, "messages": talk(f"Question {number}?")} for number in range(3)]
PAIR = {"id": "p", "chosen": talk("Q?", "Yes."), "rejected": talk("Q?", "No.")}
CUT_THOUGHTS = "<think>" + "once more " * 2000


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    call_at_once(monkeypatch)
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sesame-open-9876543210")


def call(model: str = VLLM, number: int = 0, **fields) -> Call:
    question = ({"role": "user", "content": "What is a fugue?"},)
    return Call(model, (f"id{number}", "chosen", 0, 0, "assistant", 0), question, **fields)


def ask(client: Client, *calls: Call) -> list:
    """The reply of each call, all asked at once, or the exception it met."""

    async def every() -> list:
        return await asyncio.gather(*map(client.complete, calls), return_exceptions=True)

    return asyncio.run(every())


def asked(*calls: Call, reply="Six words of a good reply.", messages=None, cache=None, **settings):
    """The replies, and the server that answered. `reasoning` is the client's setting."""
    config = {name: settings.pop(name) for name in ("reasoning", "attempts") if name in settings}
    with serve(reply=lambda body: reply, **settings) as server:
        addresses = (server.base_url, f"{LITELLM}={server.base_url}")
        say = [].append if messages is None else messages.append
        client = Client(ClientConfig(api_base=addresses, **config), cache, RunStats(say=say))
        return ask(client, *calls), server


# What reaches the server


@pytest.mark.parametrize(
    "model, field, sent",
    [
        (VLLM, "reasoning_effort", ["low", "none"]),
        (OPENAI, "reasoning_effort", ["low", "none"]),
        (LITELLM, "thinking", [{"type": "enabled"}, {"type": "disabled"}]),
    ],
)
def test_an_effort_reaches_the_server_in_its_own_field(model, field, sent):
    bodies = [asked(call(model), reasoning=(effort,))[1].requests[0] for effort in ("low", "none")]
    assert [body[field] for body in bodies] == sent


@pytest.mark.parametrize("model", [VLLM, OPENAI, LITELLM])
def test_without_an_effort_nothing_is_asked_for(model):
    _, server = asked(call(model))
    assert not {"reasoning_effort", "thinking", "reasoning"} & {*server.requests[0]}


def test_an_effort_is_for_one_model_or_for_all():
    settings = ("low", f"{VLLM}=none")
    assert (effort_of(VLLM, settings), effort_of(OPENAI, settings)) == ("none", "low")
    assert (effort_of(OPENAI, settings[1:]), effort_of(OPENAI, ())) == (None, None)
    _, server = asked(call(VLLM), call(OPENAI), reasoning=(f"{VLLM}=high",))
    assert sorted(body.get("reasoning_effort") or "" for body in server.requests) == ["", "high"]


def test_another_effort_is_another_call_and_no_effort_the_call_of_earlier_caches(tmp_path):
    store = Store(tmp_path / "calls.sqlite")
    counts = [
        asked(call(), cache=store, reasoning=reasoning)[1].calls
        for reasoning in ((), ("low",), ("high",), ("low",), ())
    ]
    assert counts == [1, 1, 1, 0, 0]
    assert call().key == call(limit_option="user_tokens").key != call(reasoning="none").key


# Which models take which efforts


def test_the_efforts_are_litellms():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from litellm.types.llms.openai import REASONING_EFFORT

    assert get_args(REASONING_EFFORT) == EFFORTS


@pytest.mark.parametrize(
    "model, effort, thinks",
    [
        ("gemini/gemini-2.5-flash", None, True),
        ("gemini/gemini-2.5-flash", "none", False),
        ("openai/gpt-5", None, True),
        ("openai/gpt-5.1", None, False),  # by itself it does not
        ("openai/gpt-5.1", "low", True),
        ("anthropic/claude-sonnet-4-5", None, True),
        ("openai/gpt-4o", None, False),
        ("hosted_vllm/Qwen3-8B", None, False),  # nobody knows
        ("local/smollm2", None, False),
    ],
)
def test_who_may_think_stands_in_litellms_table(model, effort, thinks):
    assert may_think(model, effort) is thinks


@pytest.mark.parametrize(
    "model, reasoning, said",
    [
        (THINKER, "hi", "`reasoning` hi: expected [MODEL=]EFFORT, with an effort of none, minimal"),
        (THINKER, f"{VLLM}=low", f"`reasoning` {VLLM}=low: no model of this run has that name; "),
        (
            THINKER,
            "none",
            f"{THINKER}: takes no `reasoning` none, but minimal, low, medium, high, ",
        ),
        ("openai/gpt-4o", "low", "openai/gpt-4o: takes no `reasoning` low, nor any other; "),
        ("gemini/gemini-2.5-flash", "max", "gemini/gemini-2.5-flash: takes no `reasoning` max, "),
        ("anthropic/claude-sonnet-5-5", "none", "anthropic/claude-sonnet-5-5: takes no `reaso"),
        ("local/smollm2", "low", "local/smollm2: takes no `reasoning` low, but none; "),
    ],
)
def test_an_effort_that_cannot_be_followed_is_refused_before_any_call(model, reasoning, said):
    with pytest.raises(InputError) as error:
        check_reasoning([reasoning], [model])
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    "model, reasoning",
    [
        (THINKER, "minimal"),
        ("gemini/gemini-2.5-flash", "none"),
        ("anthropic/claude-sonnet-4-5", "none"),
        (VLLM, "max"),
        (LITELLM, "low"),
        ("local/smollm2", "none"),
        ("openai/gpt-4o", f"{THINKER}=low"),
    ],
)
def test_an_effort_that_may_be_followed_is_taken(model, reasoning):
    addresses = ["http://127.0.0.1:1/v1"] * (model == VLLM)
    check_reasoning([reasoning], [model, *{THINKER} & {reasoning.partition("=")[0]}], addresses)


@pytest.mark.parametrize("model", [VLLM, OPENAI])
def test_a_server_that_refuses_an_effort_ends_the_run_and_nothing_is_left_out(model):
    questions = [call(model, number, schema={"type": "object"}) for number in range(40)]
    replies, server = asked(*questions, reasoning=("low",), refuses=["reasoning_effort"])
    assert {str(reply) for reply in replies} == {
        f"{model}: refuses `reasoning` low with `max_tokens` 512: 400: reasoning_effort is not "
        "supported"
    }
    assert all(isinstance(reply, InputError) for reply in replies)
    assert server.calls < 40 and all("response_format" in body for body in server.requests)


def test_a_temperature_that_a_thinking_model_refuses_is_still_left_out():
    messages: list[str] = []
    replies, _ = asked(call(), reasoning=("low",), refuses=["temperature"], messages=messages)
    assert replies[0].text.startswith("Six words")
    assert messages == [f"{VLLM}: rejects temperature=0.7; left out from here on"]


@pytest.mark.parametrize("mode", ["turn", "completion"])
def test_raw_text_is_continued_without_thoughts(mode):
    [error], server = asked(call(mode=mode, text="Once"), reasoning=("low",))
    assert isinstance(error, InputError) and server.calls == 0
    assert str(error).startswith(f"{VLLM}: `reasoning` low is for chats, and these `prompts` are ")


# Thoughts that leave no room for a reply


@pytest.mark.parametrize("model", [VLLM, LITELLM])
@pytest.mark.parametrize("behavior", [{"script": ["thoughts"]}, {"reply": CUT_THOUGHTS}])
def test_a_reply_of_thoughts_alone_that_the_limit_cut_names_the_option(model, behavior):
    [error], server = asked(call(model, max_tokens=64, limit_option="user_tokens"), **behavior)
    assert isinstance(error, CallError) and server.calls == 1
    assert str(error) == (
        f"{model}: an empty reply: all 64 tokens it may write were gone before the first word, "
        "where thoughts count, too; raise `user_tokens` or lower `reasoning`"
    )


def test_thoughts_that_end_are_no_empty_reply():
    [reply], _ = asked(call(), reply="<think>Hm.</think>A fugue is a form of music.")
    assert reply.text.endswith("A fugue is a form of music.")


@pytest.mark.parametrize(
    "seed, limits, option",
    [
        (talk("Q?"), {"assistant_tokens": 32}, "--assistant-tokens"),
        (talk("Q?", "A."), {"user_tokens": 32}, "--user-tokens"),
    ],
)
def test_simulate_names_the_limit_of_the_role_whose_reply_is_empty(seed, limits, option):
    record = {"id": "s", "messages": seed}
    with serve(reply=lambda body: CUT_THOUGHTS) as server:
        settings = [
            part
            for name, value in limits.items()
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        done = music(
            *("simulate", "--assistant", VLLM, "--api-base", server.base_url, "--no-cache"),
            *("--contrast", "none", *settings),
            given=jsonl([record]).encode(),
        )
    assert done.status == 1
    assert "all 32 tokens it may write were gone" in done.lines[0]
    assert f"; raise {option} or lower --reasoning" in done.lines[0]


# What is said beforehand


def simulate_options(*more: object) -> tuple:
    return "simulate", "--assistant", THINKER, "--no-cache", "--turns", 1, *more


def test_a_run_with_a_model_that_may_think_says_once_what_that_means():
    with serve(reply=scripted_reply) as server:
        options = ("--judge", THINKER, "--judge", VLLM, "--api-base", server.base_url, "--no-cache")
        plain = music("judge", *options, given=jsonl([PAIR]).encode())
        low = music("judge", *options, "--reasoning", "low", given=jsonl([PAIR]).encode())
    assert (plain.status, low.status) == (0, 0)
    assert plain.lines[0] == (
        f"music judge: {THINKER} may think before it replies: thoughts are paid for as replies "
        "are, and count in --max-tokens, so that a reply may be cut or empty; set --reasoning none "
        "or low, or raise --max-tokens"
    )
    assert "may think" not in "".join(plain.lines[1:]) + low.err


def tokens_out(done) -> dict[str, int]:
    """By role, what the table of a dry run says."""
    rows = [line.split() for line in done.lines if line.split()[1:2] == [THINKER]]
    return {row[0]: int(row[4].replace(",", "")) for row in rows}


def test_a_dry_run_counts_the_whole_limit_of_a_model_that_may_think(monkeypatch):
    given = jsonl(SEEDS).encode()
    limits = ("--assistant-tokens", 90, "--user-tokens", 60)
    thinking = music(*simulate_options("--dry-run", *limits), given=given)
    minimal = music(*simulate_options("--dry-run", *limits, "--reasoning", "low"), given=given)
    with serve() as server:
        options = ("--api-base", server.base_url, "--reasoning", "none")
        none = music(*simulate_options("--dry-run", *limits, *options), given=given)
    assert tokens_out(thinking) == tokens_out(minimal) == {"assistant": 270, "contrast": 450}
    assert tokens_out(none)["assistant"] == 180
    assert "may think before it replies" in thinking.lines[0]
    assert "in --assistant-tokens and --user-tokens, so that" in thinking.lines[0]
    assert thinking.lines[-1].endswith("of its limit, one with thoughts as all of it")
    assert "may think" not in minimal.err + none.err
    assert none.lines[-1].endswith("each reply counts as two thirds of its limit")


# Models in this process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.backbone(tmp_path_factory.mktemp("local") / "toy")


def local_engine(folder, template: str) -> LocalEngine:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return LocalEngine(f"local/{folder}")


def test_a_local_model_is_told_not_to_think_in_the_variable_of_its_template(folder):
    engine = local_engine(
        folder, "{% if enable_thinking is defined %}{{ enable_thinking }}{% else %}free{% endif %}"
    )
    messages = talk("Q?")
    assert engine.render(messages) == "free"
    assert engine.render(messages, reasoning="none") == "False"
    engine.close()


def test_a_local_model_whose_template_knows_no_thoughts_takes_no_effort(folder):
    engine = local_engine(folder, "{{ messages[0].content }}")
    with pytest.raises(InputError, match="takes no `reasoning`, as its chat template has no enabl"):
        engine.render(talk("Q?"), reasoning="none")
    engine.close()


def test_a_local_model_that_thinks_to_the_limit_names_the_option(folder, monkeypatch, tmp_path):
    engine, client = local_engine(folder, "{{ messages[0].content }}"), Client()
    monkeypatch.setattr(engine.tokenizer, "decode", lambda *_, **__: CUT_THOUGHTS)
    client.providers.local.engines[engine.name] = engine
    config = SimulateConfig(engine.name, assistant_tokens=8, retries=1, turns=1, contrast="none")
    rejects = files.Rejects(path=str(tmp_path / "rejects.jsonl"))
    seeds = [Record({"id": "s", "messages": talk("Q?")}, "in.jsonl:1")]
    assert list(simulate(seeds, config, client, RunStats(rejects))) == []
    client.close()
    rejects.close()
    [kept] = read((tmp_path / "rejects.jsonl").read_text())
    assert kept["error"].endswith(
        " wrote nothing but thoughts as assistant in turn 1, 2 times; raise `assistant_tokens`"
    )
