"""Conversations with calls and their results go through every command as they are."""

import re
from random import Random

import pytest
from build import assistant, call, result, system, talk, user, weather
from openai_server import serve
from scripted import no_network, role, roles, scripted_reply
from toys import QWEN, THINKING, backbone, gemma_template, with_chat_template

from musiccli.bench.audit import ContrastedTurns
from musiccli.bench.report.worst_records import WorstRecords
from musiccli.core.errors import RecordError
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import tools_text
from musiccli.core.records import Record, parse_branch, parse_preference
from musiccli.core.run_stats import RunStats
from musiccli.judge.config import JudgeConfig
from musiccli.judge.verdicts import judge
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig
from musiccli.pair.best_of import best_of
from musiccli.pair.preferences import join_branches
from musiccli.reward_model import checkpoint
from musiccli.sample.config import Emit, SampleConfig, Speaker
from musiccli.sample.corruptions import MessagePool, corrupt, replace_one_reply
from musiccli.sample.sampler import sample
from musiccli.score.config import ScoreConfig
from musiccli.score.scorer import score
from musiccli.show.html import record_html
from musiccli.show.terminal import terminal_text
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import simulate
from musiccli.train import checks
from musiccli.train.tokenized_pairs import diverging_exchange, tokenize_pairs

MODEL = "openai/scripted"


@pytest.fixture
def loopback(monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


TOOLS = weather()["tools"]
LONG = weather(
    messages=[
        *weather()["messages"],
        *talk("And in Rome?"),
        call("weather", city="Rome"),
        result("20 C"),
        assistant("It is 20 C."),
    ]
)
PREFERENCE = {
    "id": "p",
    "chosen": weather()["messages"],
    "rejected": weather(found="4 C")["messages"],
    "tools": TOOLS,
}


def sampled(row: dict, emit: Emit, **settings) -> list[dict]:
    rows = [("file", Record(row, "file:1"))]
    return list(sample(rows, SampleConfig(emit=emit, **settings), stats=RunStats()))


def test_sample_keeps_calls_results_and_what_is_on_offer():
    (conversation,) = sampled(LONG, Emit.conversations)
    assert conversation["messages"] == LONG["messages"]
    assert conversation["metadata"]["turns"] == 2
    (pair,) = sampled(PREFERENCE, Emit.pairs)
    assert (pair["chosen"], pair["rejected"]) == (PREFERENCE["chosen"], PREFERENCE["rejected"])
    sides = sampled(PREFERENCE, Emit.conversations)
    (comparison,) = sampled(PREFERENCE, Emit.comparisons)
    (prompt,) = sampled(LONG, Emit.prompts)
    for record in (conversation, pair, comparison, prompt, *sides):
        assert record["tools"] == TOOLS
    assert len(sides) == 2  # they differ by a result alone


def test_a_row_without_our_fields_keeps_them_too():
    row = {"prompt": "How warm is it?", "completion": PREFERENCE["chosen"][1:], "tools": TOOLS}
    (conversation,) = sampled(row, Emit.conversations)
    assert conversation["messages"][1:] == PREFERENCE["chosen"][1:]
    assert conversation["tools"] == TOOLS


def test_a_seed_ends_where_somebody_can_go_on():
    ends = {speaker: set() for speaker in Speaker}
    for speaker, seen in ends.items():
        for seed in range(40):
            (record,) = sampled(LONG, Emit.seeds, seed=seed, next_speaker=speaker)
            seen.add(len(record["messages"]))
    assert ends[Speaker.user] == {4, 8}  # never before the result of a call
    assert ends[Speaker.assistant] == {1, 3, 5, 7}
    assert ends[Speaker.any] == {1, 3, 4, 5, 7, 8}


def test_corruptions_change_whole_turns_and_never_a_call():
    record = Record(LONG)
    lender = Record({"id": "lender", "messages": talk("U" * 20, "A" * 10, "U" * 12, "A" * 11)})
    pool = MessagePool([record, lender], RunStats())
    rejected = {
        corruption["id"]: corruption["rejected"]
        for corruption in corrupt(record, Random(0), pool=pool)
    }
    first, second = LONG["messages"][:4], LONG["messages"][4:]
    assert rejected["w/swap-1"] == second + first
    assert rejected["w/reply-2"][:7] == first + second[:3]
    assert rejected["w/reply-2"][7] == assistant("A" * 11)
    assert rejected["w/user-2"] == [*first, user("U" * 12), *second[1:]]
    joined = {**second[1], "content": first[3]["content"]}
    assert rejected["w/drop_user-2"] == [*first[:3], joined, *second[2:]]
    assert all(corruption["tools"] == TOOLS for corruption in corrupt(record, Random(0), pool=pool))

    contrast = replace_one_reply(record, Random(0), pool=pool)
    index = contrast["first_divergence"]
    assert index in (3, 7) and contrast["rejected"][index]["content"].startswith("A")
    assert contrast["corruption"]["turn"] == (index + 1) // 4
    assert contrast["contrast"][0]["instruction"].startswith("U")


def simulated(seed: Record, reply=scripted_reply, **settings):
    stats = RunStats(Rejects())
    config = SimulateConfig(assistant=MODEL, user=MODEL, turns=1, **settings)
    with serve(reply=reply) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5))
        return list(simulate([seed], config, client, stats)), stats.phrases(), server


def asked(server, name: str) -> list[dict]:
    """The messages of the only call in a role."""
    (body,) = (body for body in server.requests if role(body) == name)
    return body["messages"]


def test_simulate_goes_on_in_text_and_shows_the_user_no_calls(loopback):
    seed = Record(weather())
    seed["messages"][1]["reasoning_content"] = "Which city?"
    records, _, server = simulated(seed)
    chosen, _ = records
    for branch in records:
        parse_branch(Record(branch))
        assert branch["messages"][:4] == seed["messages"]
        assert branch["tools"] == TOOLS
        assert [message.keys() for message in branch["messages"][4:]] == [{"role", "content"}] * 2
    assert asked(server, "assistant")[:4] == [
        user("How warm is it in Oslo?"),
        assistant('<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'),
        user("<tool_response>\n3 C\n</tool_response>"),
        assistant("It is 3 C."),
    ]
    for name in ("user", "contrast"):
        text = asked(server, name)[0]["content"]
        assert "User: How warm is it in Oslo?\n\nAssistant: It is 3 C." in text
        assert "tool_call" not in text and "Which city?" not in text
    (pair,) = join_branches(map(Record, records))
    assert pair["tools"] == TOOLS and pair["first_divergence"] == 5
    assert parse_preference(Record(pair))["chosen"] == chosen["messages"]


@pytest.mark.parametrize("contrast_calls", [1, 2])
def test_a_seed_that_ends_with_a_result_is_answered_and_its_instruction_contrasted(
    loopback, contrast_calls
):
    seed = Record(weather(messages=weather()["messages"][:3]))
    records, _, server = simulated(seed, contrast_calls=contrast_calls)
    for branch in records:
        assert len(branch["messages"]) == 4
        assert branch["messages"][3]["role"] == "assistant"
    assert roles(server)["user"] == 0
    prompt = "contrast" if contrast_calls == 1 else "rewrite"
    assert "How warm is it in Oslo?" in asked(server, prompt)[0]["content"]
    if contrast_calls == 2:
        replies = [body["messages"] for body in server.requests if role(body) == "assistant"]
        altered = min(replies, key=len)  # the result would answer another instruction
        assert len(altered) == 1 and "Oslo" not in altered[0]["content"]


def test_a_call_that_a_model_writes_as_text_is_asked_for_again(loopback):
    replies = iter(["<tool_call>\n{}\n</tool_call>", "It will rain."])

    def reply(body):
        return next(replies) if role(body) == "assistant" else scripted_reply(body)

    (record,), counts, _ = simulated(Record(weather()), reply, contrast="none")
    assert record["messages"][-1] == assistant("It will rain.")
    assert "faults" not in record and counts == {"retried (assistant tool call)": 1}


def test_a_judge_reads_calls_results_and_what_is_on_offer(loopback):
    def reply(body):
        text = body["messages"][0]["content"]
        assert text.count(tools_text(TOOLS)) == 2
        assert text.count('{"name": "weather", "arguments": {"city": "Oslo"}}') == 2
        first, _ = re.findall(r"^\[\w+ tool\]\n(.*)$", text, re.MULTILINE)
        return f"[[{'A' if first == '3 C' else 'B'}]]"

    with serve(reply=reply) as server:
        client = Client(ClientConfig(api_base=(server.base_url,), timeout=5))
        (judged,) = judge([Record(PREFERENCE)], JudgeConfig(judges=(MODEL,)), client)
    assert judged["winner"] == judged["verdict"] == "chosen"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return backbone(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.mark.slow
@pytest.mark.parametrize("template", [gemma_template(), QWEN], ids=["gemma", "qwen"])
def test_sides_that_differ_in_a_result_alone_get_different_rewards(base, template):
    model = checkpoint.create(str(with_chat_template(base, template)))
    model.network.eval()
    offered = [*TOOLS, {"type": "function", "function": {"name": "clock"}}]
    other_offer = {**PREFERENCE, "id": "o", "tools": offered}
    longer = {**PREFERENCE, "id": "l", "chosen": LONG["messages"]}
    rows = [Record(row) for row in (PREFERENCE, other_offer, longer)]
    first, second, turns = score(rows, model, "rm", ScoreConfig(per_turn=True))
    assert abs(first["scores"]["rm"]["chosen"] - first["scores"]["rm"]["rejected"]) > 1e-3
    assert abs(first["scores"]["rm"]["chosen"] - second["scores"]["rm"]["chosen"]) > 1e-3
    assert list(map(len, turns["turn_scores"]["rm"].values())) == [2, 1]
    (last,) = score([Record(LONG)], model, "rm", ScoreConfig(last_only=True))
    only = {**LONG, "messages": LONG["messages"][4:]}
    assert last["scores"]["rm"] == pytest.approx(model.score([only])[0], abs=1e-4)

    (pair,) = tokenize_pairs([Record(PREFERENCE)], model, 2048, per_turn=True)
    assert (pair.turns, pair.divergence, pair.sides[0].reward_positions[:-1]) == (1, "last", [])
    assert "calls and results of tools reach the tokens" in checks.check_tool_turns(model, [])


@pytest.mark.slow
def test_the_checks_say_what_a_template_leaves_out(base):
    model = checkpoint.create(str(with_chat_template(base, THINKING)))
    assert checks.check_earlier_turns(model, []).endswith("without thoughts of earlier turns")
    assert "as text in <tool_call>" in checks.check_tool_turns(model, [])
    last = "{% for m in messages[-1:] %}{{ m.role + m.content }};{% endfor %}"
    model = checkpoint.create(str(with_chat_template(base, last)))
    with pytest.raises(checks.CheckWarning, match="leaves out earlier turns and"):
        checks.check_earlier_turns(model, [])
    with pytest.raises(checks.CheckWarning, match="results of tools do not reach the tokens"):
        checks.check_tool_turns(model, [])


def test_an_exchange_is_all_that_follows_a_message_of_the_user():
    chosen = LONG["messages"]
    for index, expected in ((2, "first"), (3, "first"), (4, "middle"), (6, "last"), (7, "last")):
        changed = {**chosen[index], "content": "another"}
        assert diverging_exchange(chosen, [*chosen[:index], changed, *chosen[index + 1 :]]) == (
            expected
        )


def test_a_conversation_that_ends_with_a_result_has_no_reply_to_score():
    from musiccli.reward_model.scoring import encode_sides

    with pytest.raises(RecordError, match="messages: ends with the tool; there is no reply"):
        encode_sides(None, {"messages": weather()["messages"][:3]}, 100)


def test_a_contest_keeps_what_is_on_offer():
    candidates = [
        Record({**LONG, "id": "w", "sample": sample, "scores": {"x": sample, "y": -sample}})
        for sample in (0, 1)
    ]
    (contest,) = best_of(candidates, [2], "x", "y")
    assert contest["tools"] == TOOLS and contest["a"] == contest["b"] == LONG["messages"]


def test_show_displays_calls_results_and_thoughts():
    record = Record(PREFERENCE)
    record["chosen"] = [system("Be brief."), *record["chosen"]]
    record["rejected"] = [system("Be brief."), *record["rejected"]]
    record["chosen"][4] = assistant("It is 3 C.") | {"reasoning_content": "So it is \x1b cold."}
    record["chosen"][3] = result("3 C", name="weather")
    text = "".join(terminal_text([record], width=100))
    assert "tools: weather" in text and "tool · weather" in text
    assert "assistant\n  calls weather\n    city: Oslo\n" in text
    assert "thinks" in text and "So it is ␛ cold." in text
    html = str(record_html(record))
    assert '<p class="part">calls weather</p><p class="text call" dir="auto">city: Oslo</p>' in html
    assert '<p class="text" dir="auto"><mark>3</mark> C</p>' in html
    odd = Record(weather(messages=[user(), call("w")]))
    odd["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{broken"
    assert "calls w\n    {broken\n" in "".join(terminal_text([odd], width=100))


def test_the_audit_counts_turns_and_not_messages():
    chosen, fork = LONG["messages"], 3
    rejected = [*chosen[:3], assistant("Red."), *chosen[4:7], assistant("Blue.")]
    contrast = [{"message": index, "instruction": "Name a color."} for index in (fork, 7)]
    pair = Record({**PREFERENCE, "chosen": chosen, "rejected": rejected, "contrast": contrast})
    columns = ContrastedTurns()
    first, second = columns.read([pair], WorstRecords())
    assert list(columns.turns) == [1, 2]
    assert second["rejected"] == rejected[4:8] and second["tools"] == TOOLS
    assert first["rejected"] == rejected[:4]
