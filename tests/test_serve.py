"""The server of rewards: scores are those of `music score`, whoever asks, in whatever protocol, and with manners."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import aiohttp
import preloaded
import psutil
import pytest
from build import talk, unloadable, weather
from console import music, start, wait_until
from toys import JSON_CALLS, backbone, pairs, tokenizer

from musiccli.core.errors import InputError
from musiccli.core.processes import divide_threads
from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.chat_template import ChatTemplate, EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.score.config import ScoreConfig
from musiccli.score.scorer import score
from musiccli.serve.actor_template import ActorTemplate
from musiccli.serve.batcher import Batcher, BatchStats
from musiccli.serve.config import ServeConfig
from musiccli.serve.scoring import prompt_keys
from musiccli.serve.served_model import ServedModel
from musiccli.serve.server import RewardServer
from musiccli.serve.worker_process import Row, WorkerFault, WorkerSettings
from musiccli.serve.workers import PROGRAM, WorkerPool, WorkerProcess

CLOSE = {"abs": 1e-5, "rel": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm") / "toy"
    checkpoint.save(checkpoint.create(str(backbone(folder.parent / "base", "gemma2"))), folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return checkpoint.load(str(folder))


class Client:
    """A server in a thread, and requests to it."""

    def __init__(self, server, loop):
        self.server, self.loop = server, loop

    def request(self, path, body=None, headers=None):
        """Status and reply of a request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.server.address + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            self.headers = error.headers
            return error.code, json.loads(error.read())

    def post(self, path, **body):
        status, reply = self.request(path, body)
        assert status == 200, reply
        return reply

    def metric(self, name, **labels):
        with urllib.request.urlopen(self.server.address + "/metrics") as reply:
            text = reply.read().decode()
        labels = "".join(f'.*{key}="{re.escape(value)}"' for key, value in labels.items())
        return sum(
            float(value)
            for value in re.findall(rf"^music_serve_{name}\b.*{labels}.* (\S+)$", text, re.M)
        )

    def open_socket(self):
        host, port = self.server.address.removeprefix("http://").rsplit(":", 1)
        return socket.create_connection((host, int(port)))


@contextlib.contextmanager
def running(*models, actor=None, warm_up=True, folder=None, say=lambda _: None, **config):
    """A server of the models, the first by the name "rm". Processes load them from `folder`."""
    served = [
        ServedModel(
            name,
            str(folder or f"/models/{name}"),
            model,
            config.pop("max_length", model.context_length),
        )
        for name, model in zip(("rm", "other"), models, strict=False)
    ]
    server = RewardServer(served, ServeConfig(port=0, **config), actor, say)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    wait_for(server.start())
    if warm_up:
        wait_for(server.warm_up())
    try:
        yield Client(server, loop)
    finally:
        wait_for(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def client(model):
    actor = ActorTemplate(model.tokenizer)
    with running(model, model, actor=actor) as client:
        yield client


def expected(model, conversations, **config):
    """What `music score` gives, which computes everything anew."""
    network = RewardNetwork(model.network.model, packed=model.network.packed)
    model = replace(model, network=network.eval())
    records = [Record({"id": str(n), **fields}) for n, fields in enumerate(conversations)]
    found = list(score(records, model, "rm", ScoreConfig(**config)))
    key = "turn_scores" if config.get("per_turn") else "scores"
    return [record[key]["rm"] for record in found]


def mixed(count):
    """Conversations of many lengths, with shared histories, system messages and tool turns."""
    sides = [side for pair in pairs(count) for side in (pair["chosen"], pair["rejected"])]
    found = [{"messages": messages} for messages in sides[:count]]
    for number in range(0, count, 5):
        found[number] = {key: weather(f"It is {number} C.")[key] for key in ("messages", "tools")}
    for number in range(1, count, 7):
        found[number] = {"messages": talk("q", f"a {number}", system="Be brief.")}
    return found


# Scores


@pytest.mark.slow
@pytest.mark.parametrize("per_turn", [False, True])
def test_64_clients_at_once_get_the_scores_of_music_score(model, client, per_turn):
    conversations = mixed(128)

    def ask(fields):
        [item] = client.post("/classify", **fields, per_turn=per_turn)["data"]
        return item["turn_scores"] if per_turn else item["probs"][0]

    passes = client.metric("passes_total", model="rm")
    with ThreadPoolExecutor(64) as clients:
        found = list(clients.map(ask, conversations))
    wanted = expected(model, conversations, per_turn=per_turn)
    assert len({round(value if not per_turn else value[-1], 4) for value in wanted}) > 80
    for value, right in zip(found, wanted, strict=True):
        assert value == pytest.approx(right, **CLOSE)
    assert client.metric("passes_total", model="rm") - passes < len(conversations)


def test_many_conversations_in_one_request_keep_their_order(model, client):
    conversations = mixed(30)
    data = client.post("/classify", messages=conversations)["data"]
    assert [item["index"] for item in data] == list(range(30))
    found = [item["probs"][0] for item in data]
    assert found == pytest.approx(expected(model, conversations), **CLOSE)


def test_candidates_of_a_long_history_share_it(model):
    history = "a long history that all candidates share " * 8
    conversations = [
        model.chat_template.encode(talk(text, f"reply {number}", "q", "r" * number), False)
        for number in range(8)
        for text in (history, history[::-1])
    ]
    conversations.sort(key=lambda conversation: conversation.ids)
    keys = prompt_keys(conversations)
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [8, 8]


def test_a_history_that_came_before_is_not_computed_again(model):
    history = "a long history that all candidates share " * 8
    conversations = [{"messages": talk(history, f"reply {number}")} for number in range(3)]
    tokens = []
    embedding = model.network.backbone.get_input_embeddings()
    with running(model) as client:
        hook = embedding.register_forward_pre_hook(lambda _, ids: tokens.append(ids[0].numel()))
        scores = [client.post("/classify", **each)["data"][0]["probs"][0] for each in conversations]
        hook.remove()
    assert scores == pytest.approx(expected(model, conversations), **CLOSE)
    assert tokens[0] > 80 and max(tokens[1:]) < 10


def test_a_long_conversation_loses_its_oldest_exchanges_and_says_so(model):
    messages = talk("first " * 40, "second " * 40, "q", "a")
    with running(model, max_length=60) as client:
        [item] = client.post("/classify", messages=messages)["data"]
        status, reply = client.request("/classify", {"input": list(range(61))})
    assert item["truncated"] and item["reward_tokens"] == ["\n"]
    assert item["probs"] == pytest.approx(expected(model, [{"messages": messages[2:]}]), **CLOSE)
    assert status == 400
    assert reply["error"]["message"] == (
        "input: has 61 tokens, more than the limit of 60; messages would be cut to fit"
    )


# Protocols


@pytest.fixture(scope="module")
def text(model):
    return model.chat_template.render(talk("q", "a", "r", "b"))


@pytest.fixture(scope="module")
def wanted(model):
    return pytest.approx(expected(model, [{"messages": talk("q", "a", "r", "b")}])[0], **CLOSE)


def test_vllm_classify_takes_messages_text_and_token_ids(model, client, text, wanted):
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for field, value in {"messages": talk("q", "a", "r", "b"), "input": text}.items():
        reply = client.post("/classify", model="rm", **{field: value})
        assert reply["object"] == "list" and reply["usage"]["prompt_tokens"] == len(ids)
        [item] = reply["data"]
        assert item.pop("probs") == [wanted]
        assert item == {
            "index": 0,
            "label": "reward",
            "num_classes": 1,
            "truncated": False,
            "reward_tokens": ["\n"],
        }
    for value in ([text, ids], [ids, ids], ids):
        data = client.post("/v1/classify", input=value)["data"]
        assert {item["probs"][0] for item in data} == {data[0]["probs"][0]}
        assert data[0]["probs"] == [wanted]


def aiohttp_post(url, payload):
    """The reply as OpenRLHF 0.11 and verl 0.9 ask for it."""

    async def ask():
        async with aiohttp.ClientSession() as session, session.post(url, json=payload) as response:
            response.raise_for_status()
            return await response.json()

    return asyncio.run(ask())


def test_verl_sends_text_without_bos_and_gets_it_back_once(model):
    """The payloads of verl 0.9's RewardLoopWorker.compute_score_disrm.

    SmolLM2's BOS is <|im_start|>, with which its template begins.
    """
    text = model.chat_template.render(talk("q", "a"))
    bos = model.tokenizer.bos_token
    [right] = expected(model, [{"messages": talk("q", "a")}])
    assert text.startswith(bos)
    prompt = text[len(bos) :]
    with running(model) as client:
        payload = {"model": "/models/rm", "input": prompt, "use_activation": False}
        output = aiohttp_post(f"{client.server.address}/classify", payload)
        assert output["data"][-1]["probs"][-1] == pytest.approx(right, **CLOSE)
        payload = {"model": "/models/rm", "input": prompt}
        output = aiohttp_post(f"{client.server.address}/v1/embeddings", payload)
        assert output["data"][-1]["embedding"][-1] == pytest.approx(right, **CLOSE)
        whole = client.post("/classify", input=text)["data"][0]["probs"][0]
        assert whole == pytest.approx(right, **CLOSE)
        body = {"input": prompt, "add_special_tokens": False}
        without = client.post("/classify", **body)["data"][0]["probs"][0]
        assert abs(without - right) > 1e-3


def test_sglang_classify_replies_to_one_with_one_and_to_several_with_a_list(
    model, client, text, wanted
):
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for body in ({"text": text}, {"input_ids": ids}):
        reply = client.post("/classify", **body)
        assert reply["embedding"] == [wanted] and reply["meta_info"]["prompt_tokens"] == len(ids)
    for body in ({"text": [text, text]}, {"input_ids": [ids, ids]}):
        assert [item["embedding"] for item in client.post("/classify", **body)] == [[wanted]] * 2


def test_vllm_pooling_and_score(model, client, text, wanted):
    assert client.post("/pooling", input=[text], task="classify")["data"][0]["data"] == [wanted]
    replies = ["yes", "no, not at all"]
    right = expected(model, [{"messages": talk("q", reply)} for reply in replies])
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        data = client.post("/v1/score", **dict(zip(names, ("q", replies), strict=True)))["data"]
        assert [item["score"] for item in data] == pytest.approx(right, **CLOSE)


def test_openrlhf_sends_text_of_the_actor_and_gets_null_for_what_cannot_be_read(
    client, text, wanted
):
    """The payload of OpenRLHF 0.11's SingleTurnAgentExecutor._fetch_rewards_via_http."""
    payload = {"query": [text], "prompts": ["p"], "labels": ["l"]}
    reply = aiohttp_post(f"{client.server.address}/get_reward", payload)
    assert reply["rewards"] == reply["scores"] == [wanted] and "errors" not in reply
    assert reply["extra_logs"]["truncated"] == [0.0]
    query = [text, "something else"]
    reply = client.post("/get_reward", query=query, prompts=["p", "p"], labels=["l", None])
    assert reply["rewards"] == reply["scores"] == [wanted, None]
    [error] = reply["errors"]
    assert error["index"] == 1


def test_openrlhf_sends_tool_turns_as_the_actor_writes_them(model):
    """The reward model reads them as its own template writes them."""
    tokens = tokenizer("smollm2")
    tokens.chat_template = JSON_CALLS
    text = ChatTemplate(tokens).render(weather()["messages"], weather()["tools"])
    [right] = expected(model, [weather()])
    with running(model, actor=ActorTemplate(tokens)) as client:
        [reward] = client.post("/get_reward", query=[text])["rewards"]
    assert reward == pytest.approx(right, **CLOSE)


def test_openrlhf_scores_an_empty_reply(model, client):
    text = model.chat_template.render(talk("q", "REPLY")).replace("REPLY", "")
    [reward] = client.post("/get_reward", query=[text])["rewards"]
    [direct] = client.post("/classify", input=text)["data"][0]["probs"]
    assert reward == pytest.approx(direct, **CLOSE)


def test_llamafactory_sends_texts_as_messages(client, text, wanted):
    reply = client.post("/v1/score/evaluation", model="model", messages=[text, text])
    assert reply["scores"] == [wanted, wanted]
    status, reply = client.request(
        "/v1/score/evaluation", {"model": "model", "messages": [text, "x"]}
    )
    assert status == 400 and reply["error"]["errors"][0]["index"] == 1


def test_models_have_names_and_the_first_is_meant_by_none(client):
    models = client.request("/v1/models")[1]["data"]
    assert [model["id"] for model in models] == ["rm", "other"]
    messages = talk("q", "a")
    for name, right in (("other", "other"), ("/models/other", "other"), (None, "rm")):
        assert client.post("/classify", model=name, messages=messages)["model"] == right
    status, reply = client.request("/classify", {"model": "gpt-4", "messages": messages})
    assert status == 404
    assert reply["error"]["message"] == "no such model; there are: rm, other"


@pytest.mark.parametrize(
    "fields",
    [
        {"use_activation": True},
        {"softmax": True},
        {"add_generation_prompt": True},
        {"chat_template": "{{ x }}"},
        {"truncate_prompt_tokens": 5},
        {"add_special_tokens": True},
    ],
)
def test_what_would_be_another_score_is_refused(client, fields):
    status, reply = client.request("/classify", {"messages": talk("q", "a"), **fields})
    assert status == 400
    assert reply["error"]["message"] == f"{next(iter(fields))}: is not supported; leave it out"


# Bad requests


def test_one_bad_conversation_among_many_is_an_error_of_its_own(model, client):
    messages = [talk("q", "a"), talk("q"), 3, talk("q", "b")]
    data = client.post("/classify", messages=messages)["data"]
    assert [item.get("error", {}).get("message") for item in data] == [
        None,
        "messages: ends with the user; there is no reply to score",
        "is a number; a conversation is a list of messages",
        None,
    ]
    right = expected(model, [{"messages": talk("q", "a")}, {"messages": talk("q", "b")}])
    assert [item["probs"] for item in data] == [
        [pytest.approx(right[0], **CLOSE)],
        [],
        [],
        [pytest.approx(right[1], **CLOSE)],
    ]


HOSTILE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"3",
    b"[" * 100_000,
    b'{"messages": ' + b"[" * 300 + b"]" * 300 + b"}",
    {},
    {"messages": []},
    {"messages": "q"},
    {"messages": {}},
    {"messages": [[]]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "robot", "content": "a"}]},
    {"messages": [{"role": "user", "content": {"a": 1}}, {"role": "assistant", "content": "a"}]},
    {"messages": talk("q", "a"), "tools": 3},
    {"messages": talk("q", "a"), "tools": [{}]},
    {"messages": talk("q", "a"), "per_turn": "yes"},
    {"messages": [{"messages": 3}]},
    {"input": []},
    {"input": ""},
    {"input": [-1]},
    {"input": [1 << 40]},
    {"input": [1.5]},
    {"input": [[True]]},
    {"input": [None]},
    {"input": {}},
    {"input": "x", "per_turn": True},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_body_is_one_line_of_400(client, number):
    status, reply = client.request("/classify", HOSTILE[number])
    assert status == 400 and reply["error"]["code"] == 400
    assert "\n" not in reply["error"]["message"]
    assert client.request("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/get_reward", "/v1/score/evaluation", "/v1/score", "/pooling"])
@pytest.mark.parametrize("value", [None, [], {}, 3, [3], [[]], [{}]])
def test_every_protocol_refuses_what_it_cannot_read(client, path, value):
    names = ("query", "messages", "text_1", "text_2", "input")
    status, _ = client.request(path, dict.fromkeys(names, value))
    assert status == 400


def test_unknown_paths_and_methods_are_json_and_one_metric(client):
    before = client.metric("requests_total", path="other")
    assert client.request("/v1/chat/completions", {})[0] == 404
    assert client.request("/nothing/" + "x" * 500)[0] == 404
    assert client.metric("requests_total", path="other") == before + 2
    status, reply = client.request("/classify")
    assert (status, reply["error"]["type"]) == (405, "Method Not Allowed")


# Manners


def test_a_key_is_asked_for_but_not_for_health(model):
    with running(model, api_key="secret") as client:
        body = {"messages": talk("q", "a")}
        assert client.request("/health")[0] == 200
        assert client.request("/classify", body)[0] == 401
        assert client.request("/v1/models")[0] == 401
        assert client.request("/classify", body, {"Authorization": "Bearer wrong"})[0] == 401
        assert client.request("/classify", body, {"Authorization": "Bearer secret"})[0] == 200


def test_a_body_that_is_too_large_is_413_with_and_without_its_length(model):
    with running(model, max_body=1) as client:
        body = b" " * (1 << 20) + b"{}"
        assert client.request("/classify", body)[0] == 413
        with client.open_socket() as connection:
            head = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    connection.sendall(b"20000\r\n" + b" " * 0x20000 + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert client.request("/health")[0] == 200


def test_a_body_that_does_not_come_is_408(model):
    with running(model, timeout=0.2) as client, client.open_socket() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.fixture
def gate(model, monkeypatch):
    """Holds every forward pass until it is opened."""
    gate, real = threading.Event(), model.network.forward

    def forward(groups, **settings):
        assert gate.wait(60)
        return real(groups, **settings)

    monkeypatch.setattr(model.network, "forward", forward)
    yield gate
    gate.set()


# Several processes


@pytest.fixture
def preloaded_processes(monkeypatch):
    """The processes of a server start in a moment."""
    monkeypatch.setattr(sys, "executable", preloaded.python())


@contextlib.contextmanager
def two_processes(model, folder, gate, **settings):
    """A server of which every forward pass waits but those of its second process.

    The server's own thread is the first to get a row, and waits with the row of one request.
    """
    gate.set()
    with running(model, folder=folder, processes=2, **settings) as client:
        assert client.metric("processes") == 2
        gate.clear()
        with ThreadPoolExecutor(1) as clients:
            body = {"messages": talk("first", "a")}
            waiting = clients.submit(client.request, "/classify", body)
            wait_until(lambda: client.server._batchers["rm"]._passes)
            yield client
            gate.set()
            assert waiting.result()[0] == 200


@pytest.mark.slow
def test_another_process_gives_the_scores_of_music_score(model, folder, gate, preloaded_processes):
    conversations = mixed(40)
    with two_processes(model, folder, gate, budget=512) as client:
        data = client.post("/classify", messages=conversations)["data"]
        assert client.metric("passes_total", model="rm") > 1
        gate.set()
        right = expected(model, conversations)
    assert [item["probs"][0] for item in data] == pytest.approx(right, **CLOSE)


@pytest.mark.slow
def test_a_process_that_ends_is_replaced_and_only_its_row_is_lost(
    model, folder, gate, preloaded_processes
):
    lines = []
    body = {"messages": talk("q", "a")}

    with (
        two_processes(model, folder, gate, say=lines.append) as client,
        ThreadPoolExecutor(1) as clients,
    ):
        first = worker_of(client)
        os.kill(first, signal.SIGSTOP)
        lost = clients.submit(client.request, "/classify", body)
        wait_until(lambda: len(client.server._batchers["rm"]._passes) == 2)
        os.kill(first, signal.SIGKILL)
        status, reply = lost.result()
        assert (status, client.headers["Retry-After"]) == (503, "1")
        message = "the process that computed this has ended; try again"
        assert reply["error"]["message"] == message
        assert client.request("/classify", body)[0] == 200  # waits for the process in its place
        second = worker_of(client)
        assert second != first
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: client.metric("processes") == 1)
        assert client.request("/classify", body)[0] == 200  # idle, so nothing was lost
        assert client.metric("processes") == 2
    line = "process 1 ended by SIGKILL; its requests get 503, another one starts"
    assert lines == [line, line]


def worker_of(client):
    """The number of the program that computes beside a server."""
    return preloaded.program(client.server._workers._processes[1]._process.pid)


def started_processes():
    """The numbers of the processes that servers of this process have started."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if PROGRAM in child.cmdline():
                found.add(child.pid)
    return found


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_loads_is_started_again(
    model, folder, monkeypatch, preloaded_processes
):
    lines = []
    monkeypatch.setattr("musiccli.serve.workers.LONGEST_WAIT", 0.01)
    with running(model, folder=folder, processes=2, say=lines.append) as client:
        killed = set()
        while len(killed) < 4:
            for process in started_processes() - killed:
                os.kill(process, signal.SIGKILL)
                killed.add(process)
        wait_until(lambda: client.metric("processes") == 2)
        assert len(started_processes()) == 1
    ended = "process 1 ended by SIGKILL before it could compute; is there memory for 2 processes?"
    assert set(lines) <= {
        "process 1 ended by SIGKILL; its requests get 503, another one starts",
        f"{ended}; process 1 is started again in 0.01 s",
    }


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "changed", "no program"])
def test_a_process_that_cannot_be_started_is_tried_again_and_nothing_of_it_stays(
    model, folder, fault, tmp_path, monkeypatch, preloaded_processes
):
    lines = []
    monkeypatch.setattr("musiccli.serve.workers.LONGEST_WAIT", 0.01)
    there, away, python = tmp_path / "toy", tmp_path / "away", sys.executable
    shutil.copytree(folder, there)
    own = checkpoint.load(str(there))
    with running(own, folder=there, processes=2, say=lines.append) as client:
        there.rename(away)
        if fault == "changed":
            shutil.copytree(folder, there, copy_function=shutil.copyfile)  # with other times
        elif fault == "no program":
            away.rename(there)
            monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        first = worker_of(client)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(lines) >= 3)
        assert client.metric("processes") == 1
        assert client.request("/classify", {"messages": talk("q", "a")})[0] == 200
        if fault != "no program":
            shutil.rmtree(there, ignore_errors=True)
            away.rename(there)
        monkeypatch.setattr(sys, "executable", python)
        wait_until(lambda: client.metric("processes") == 2)
        assert len(started_processes()) == 1
    problem = {
        "gone": f"{there}: no such folder",
        "changed": f"{there}: has changed since the server loaded it; start that anew",
        "no program": "process 1 cannot be started: No such file or directory",
    }[fault]
    assert lines[1].startswith(problem)
    assert lines[1].endswith("; process 1 is started again in 0.01 s")


@pytest.mark.slow
def test_a_fault_in_a_process_is_named_and_the_process_goes_on(model, folder, preloaded_processes):
    good = model.chat_template.encode(talk("q", "a"), False)
    worker = WorkerProcess(WorkerSettings({"rm": (str(folder), model.identity)}, 1))

    async def ask():
        await worker.start()
        with pytest.raises(WorkerFault, match=r"^IndexError$"):
            await worker.score(Row("rm", [EncodedConversation([1 << 30], [0])], 4096))
        rewards = await worker.score(Row("rm", [good], 4096))
        await worker.close()
        return rewards

    right = expected(model, [{"messages": talk("q", "a")}])
    assert asyncio.run(ask()) == [pytest.approx(right, **CLOSE)]


def test_processes_divide_the_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("musiccli.core.processes.cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS")
    divide_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    divide_threads(16)
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.slow
def test_a_model_that_a_process_cannot_load_is_an_error_of_the_start(model, preloaded_processes):
    served = ServedModel("rm", "/nowhere", model, model.context_length)

    async def start_workers():
        workers = WorkerPool([served], 2, 4096, lambda _: None)
        try:
            await workers.start()
        finally:
            await workers.close()

    with pytest.raises(InputError, match=r"^/nowhere: no such folder"):
        asyncio.run(start_workers())


def test_a_full_queue_is_429_with_retry_after_and_goes_on_later(model, gate):
    with running(model, warm_up=False, max_queue=40) as client, ThreadPoolExecutor(1) as other:
        body = {"messages": talk("q", "a")}
        first = other.submit(client.request, "/classify", body)
        wait_until(lambda: client.metric("waiting_tokens", model="rm"))
        status, reply = client.request("/classify", body)
        assert status == 429 and reply["error"]["message"].startswith("too many tokens are waiting")
        assert int(client.headers["Retry-After"]) >= 1
        gate.set()
        assert first.result()[0] == 200
        assert client.request("/classify", body)[0] == 200


def test_what_would_not_be_done_in_time_is_429(model, gate):
    """Two tokens in a second are known, and a minute is left; an empty queue takes all the same."""
    with running(model, warm_up=False, timeout=60) as client, ThreadPoolExecutor(1) as other:
        client.server._batchers["rm"].stats.speeds.append(2.0)
        body = {"messages": talk("word " * 90, "a")}
        first = other.submit(client.request, "/classify", body)
        wait_until(lambda: client.metric("waiting_tokens", model="rm"))
        status, reply = client.request("/classify", body)
        gate.set()
        assert status == 429 and reply["error"]["message"].startswith("too many tokens are waiting")
        assert first.result()[0] == 200
        assert client.request("/classify", body)[0] == 200


def test_what_is_not_done_in_time_is_504(model, gate):
    with running(model, warm_up=False, timeout=0.2) as client:
        status, reply = client.request("/classify", {"messages": talk("q", "a")})
        assert (status, reply["error"]["message"]) == (504, "not done within 0.2 s")
        gate.set()


def test_what_a_client_has_left_is_not_computed(model, gate):
    with running(model, warm_up=False) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.request, "/classify", {"messages": talk("q", "a")})
        wait_until(lambda: client.metric("waiting_tokens", model="rm"))
        body = json.dumps({"messages": talk("r", "b")}).encode()
        connection = client.open_socket()
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        before = client.metric("waiting_tokens", model="rm")
        connection.sendall(head.encode() + body)
        wait_until(lambda: client.metric("waiting_tokens", model="rm") > before)
        connection.close()
        wait_until(lambda: client.metric("requests_total", path="/classify", status="499"))
        gate.set()
        assert first.result()[0] == 200
        wait_until(lambda: not client.metric("waiting_tokens", model="rm"))
        assert client.metric("abandoned_total", model="rm") == 1
        assert client.metric("conversations_total", model="rm") == 1


def test_health_is_ready_after_the_warm_up_alone(model, gate):
    with running(model, warm_up=False) as client:
        assert client.request("/health") == (503, {"status": "starting"})
        warm = asyncio.run_coroutine_threadsafe(client.server.warm_up(), client.loop)
        assert client.request("/health")[0] == 503
        gate.set()
        warm.result(60)
        assert client.request("/health") == (200, {"status": "ok"})


def test_a_reward_that_is_no_number_is_that_items_error(folder):
    broken = checkpoint.load(str(folder))
    broken.network.core.score.weight.data.fill_(float("nan"))
    with running(broken) as client:
        status, reply = client.request("/classify", {"messages": talk("q", "a")})
    assert status == 400 and reply["error"]["message"].startswith("the reward is not a number")


def test_memory_that_does_not_suffice_is_503_and_the_server_goes_on(model, monkeypatch):
    with running(model) as client:
        with monkeypatch.context() as patch:
            error = RuntimeError("can't allocate memory")
            patch.setattr(model.network, "_packed", lambda *_: (_ for _ in ()).throw(error))
            status, reply = client.request("/classify", {"messages": talk("q", "a")})
        assert status == 503 and reply["error"]["message"].startswith("memory does not suffice")
        assert client.request("/classify", {"messages": talk("q", "a")})[0] == 200


def test_a_fault_of_ours_is_500_and_its_line_holds_no_conversation(model, monkeypatch):
    said = []
    served = ServedModel("rm", "rm", model, model.context_length)
    monkeypatch.setattr(served.model.network, "_packed", lambda *_: 1 / 0)
    server = RewardServer([served], ServeConfig(port=0), say=said.append)

    async def ask():
        await server.start()
        client = Client(server, None)
        body = {"messages": talk("a secret", "another secret")}
        answer = await asyncio.to_thread(client.request, "/classify", body)
        await server.stop()
        return answer

    status, reply = asyncio.run(ask())
    assert status == 500 and "secret" not in json.dumps(reply)
    assert said == ["/classify: ZeroDivisionError (a fault of ours)"]


def test_a_padded_model_gives_the_same_scores(folder):
    padded = checkpoint.load(str(folder))
    wanted = expected(padded, mixed(12))
    padded.network.packed = False
    padded.network.core.config._attn_implementation = "eager"
    padded.network.backbone.config._attn_implementation = "eager"
    with running(padded) as client:
        data = client.post("/classify", messages=mixed(12))["data"]
    assert [item["probs"][0] for item in data] == pytest.approx(wanted, abs=1e-4)


def batcher_of(model, budget=4096, **settings):
    served = ServedModel("rm", "/models/rm", model, model.context_length)
    workers = WorkerPool([served], 1, budget, lambda _: None)
    return Batcher("rm", model.network, workers, budget, 1 << 20, patience=0, **settings)


def test_requests_that_are_being_read_join_those_that_wait(model):
    """No longer than a forward pass takes; here, one is said to have taken a minute."""
    first, second = (model.chat_template.encode(talk(text, "a"), False) for text in ("q", "r"))

    async def ask():
        reading = asyncio.get_running_loop().create_future()
        batcher = batcher_of(model, reading={reading}, stats=BatchStats(passes=1, seconds=60))
        loop = asyncio.create_task(batcher.run())
        early = asyncio.create_task(batcher.score([first]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not early.done() and batcher.stats.passes == 1
        late = asyncio.create_task(batcher.score([second]))
        reading.set_result(None)
        rewards = await asyncio.gather(early, late)
        loop.cancel()
        return rewards, batcher.stats

    rewards, stats = asyncio.run(ask())
    assert (stats.passes, stats.conversations) == (2, 2)
    right = expected(model, [{"messages": talk(text, "a")} for text in ("q", "r")])
    assert [value for [[value]] in rewards] == pytest.approx(right, **CLOSE)


def test_the_oldest_is_never_passed_over(model):
    """Small ones come all the time, and a large one that waits must be in the next pass."""
    loop = asyncio.new_event_loop()

    async def fill():
        batcher = batcher_of(model, budget=64)
        tasks = [
            asyncio.create_task(batcher.score([model.chat_template.encode(talk(text, "a"), False)]))
            for text in ("word " * 90, "q", "r", "s")
        ]
        await asyncio.sleep(0)
        batch = batcher._next_batch()
        for task in tasks:
            task.cancel()
        return batch

    [item] = loop.run_until_complete(fill())
    loop.close()
    assert len(item.conversation.ids) > 90


def test_what_came_first_is_computed_first_with_what_begins_like_it(model):
    """A system message that all have lets none pass the others; a history that two share does."""
    history = talk(*["a history that two of them share"] * 8, "q")
    texts = [f"{letter} " * 30 for letter in "zyxwvutsrqponm"]

    async def fill():
        batcher = batcher_of(model, budget=400)
        waiting = [
            history + talk("", "a")[1:],
            *map(talk, texts, texts),
            history + talk("", "b")[1:],
        ]
        encoded = [model.chat_template.encode(messages, False) for messages in waiting]
        score = asyncio.create_task(batcher.score(encoded))
        await asyncio.sleep(0)
        batches = []
        while batch := batcher._next_batch():
            batches.append([encoded.index(item.conversation) for item in batch])
        score.cancel()
        return batches

    first, *batches = asyncio.run(fill())
    assert batches and [*first, *chain(*batches)] == [0, 15, *range(1, 15)]


def test_a_fault_of_the_queue_is_500_and_the_server_goes_on(model, monkeypatch):
    body = {"messages": talk("q", "a")}
    with running(model) as client:
        with monkeypatch.context() as patch:
            patch.setattr(model.network, "token_count", lambda _: 1 / 0)
            status, reply = client.request("/classify", body)
        assert status == 500
        assert reply["error"]["message"] == "ZeroDivisionError (a fault of the server)"
        assert client.request("/classify", body)[0] == 200


# The command


def spawn(folder, *options):
    server = start("serve", "--model", folder, "--port", 0, *options, command=preloaded.command())
    line = server.stderr.readline().decode()
    while "ready at" not in line:
        assert line, "it ended"
        line = server.stderr.readline().decode()
    return server, re.search(r"ready at (http://\S+): (.*)", line).groups()


def worker_processes(server):
    """The numbers of the processes that compute for a server that was spawned."""
    clients = psutil.Process(preloaded.program(server.pid)).children()
    programs = [client.pid for client in clients if PROGRAM in client.cmdline()]
    return [preloaded.program(client) for client in programs]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_what_is_begun_and_ends_well(folder, processes):
    """Also where all its processes get it, as some supervisors do."""
    server, (address, names) = spawn(folder, "--patience", 300, "--num-processes", processes)
    assert names == "toy"
    bodies = [json.dumps({"messages": talk(f"q {n}", "a")}).encode() for n in range(8)]

    def ask(body):
        with urllib.request.urlopen(f"{address}/classify", body, timeout=60) as reply:
            return json.loads(reply.read())["data"][0]["probs"]

    def in_flight():
        with urllib.request.urlopen(f"{address}/metrics") as reply:
            return int(re.search(rb"requests_in_flight (\d+)", reply.read())[1])

    with ThreadPoolExecutor(8) as clients:
        replies = [clients.submit(ask, body) for body in bodies]
        wait_until(lambda: in_flight() == 9 or all(reply.done() for reply in replies))
        for worker in worker_processes(server):
            os.kill(worker, signal.SIGTERM)
        server.send_signal(signal.SIGTERM)
        assert all(len(reply.result()) == 1 for reply in replies)
    _, err = server.communicate(timeout=60)
    assert (server.returncode, err.decode()) == (
        0,
        "music serve: finishing the requests that have come\n",
    )


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once(folder):
    """Also while a forward pass is computed that takes long."""
    server, (address, _) = spawn(folder, "--budget", 1 << 20, "--num-processes", 2)
    [worker] = worker_processes(server)
    host, port = address.removeprefix("http://").rsplit(":", 1)
    messages = [talk(f"{number} north " * 200, "a") for number in range(400)]
    body = json.dumps({"messages": messages}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

        def is_waiting():
            with urllib.request.urlopen(f"{address}/metrics") as reply:
                return re.search(rb"waiting_tokens\S* [1-9]", reply.read())

        wait_until(is_waiting)
        server.send_signal(signal.SIGTERM)
        lines = [server.stderr.readline()]
        server.send_signal(signal.SIGTERM)
        lines += server.stderr.readlines()
    assert server.wait() == 130
    assert b"".join(lines).decode() == (
        "music serve: finishing the requests that have come\nmusic serve: interrupted\n"
    )
    wait_until(lambda: not psutil.pid_exists(worker))


@pytest.mark.slow
def test_processes_end_with_a_server_that_is_killed(folder):
    server, _ = spawn(folder, "--num-processes", 2)
    [worker] = worker_processes(server)
    server.kill()
    server.communicate(timeout=60)
    wait_until(lambda: not psutil.pid_exists(worker))


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = music("serve", "--model", folder, "--port", port)
    assert done.status == 2
    assert done.lines[-1].startswith(
        f"music serve: error: 127.0.0.1:{port}: cannot be listened on: "
    )


def test_two_models_of_one_name_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        unloadable(tmp_path / name / "rm")
    done = music("serve", "--model", tmp_path / "a" / "rm", "--model", tmp_path / "b" / "rm")
    assert done.lines == [
        f"music serve: error: --model {tmp_path / 'b' / 'rm'}: another one is called rm; write "
        "NAME=DIR"
    ]


# Nothing is written


def test_a_server_writes_nothing(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    with running(model) as client:
        client.post("/classify", messages=talk("q", "a"))
    assert list(tmp_path.iterdir()) == []
