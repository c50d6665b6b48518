"""A large batch through a server: in pieces that servers and proxies take, and rewards keep their order."""

import contextlib
import http.server
import json
import multiprocessing
import pickle
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from build import talk
from test_serve import CLOSE, expected, folder, mixed, model, running, spawn  # noqa: F401  (fixtures)

from musiccli import InputError, RecordError, RewardFunction
from musiccli.core.errors import CallError
from musiccli.serve import client as serve_client


def pass_waits(monkeypatch, then=lambda: None):
    """The seconds that are waited for between attempts, which pass at once; each does `then`."""
    waits = []

    class Stopped(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            then()
            return self.is_set()

    monkeypatch.setattr(serve_client, "Event", Stopped)
    return waits


@pytest.fixture
def waits(monkeypatch):
    return pass_waits(monkeypatch)


def replies(count):
    """So many conversations, each with a reward of its own."""
    return [talk("q", f"a reply with the number {number}") for number in range(count)]


@contextlib.contextmanager
def proxy(address, most, status, path="/classify"):
    """A proxy that refuses bodies of more than `most` bytes, and the sizes of those that came."""
    sizes = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sizes.append(len(body))
            if len(body) > most:
                self.answer(status, b"<html>not so large</html>")
                return
            request = urllib.request.Request(address + self.path, body)
            try:
                with urllib.request.urlopen(request) as reply:
                    self.answer(reply.status, reply.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sizes
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_batch_above_the_servers_limit_is_scored(model, folder):  # noqa: F811
    """By a server of its own, as it starts without options: it refuses bodies of 16 MB."""
    conversations = replies(170)
    for _, answer in conversations:
        answer["note"] = "x" * 100_000  # which no template reads
    assert len(json.dumps(conversations)) > 16 << 20
    server, (address, _) = spawn(folder)
    try:
        found = RewardFunction(address)(messages=conversations)
    finally:
        server.terminate()
        server.communicate()
    wanted = expected(model, [{"messages": messages} for messages in replies(170)])
    assert found == pytest.approx(wanted, **CLOSE) and len(set(found)) > 160


@pytest.mark.parametrize("status", [408, 413, 504, 524])
@pytest.mark.parametrize("per_turn", [False, True])
def test_what_a_proxy_finds_too_much_is_halved(model, status, per_turn):  # noqa: F811
    conversations = mixed(70)
    columns = {
        "messages": [each["messages"] for each in conversations],
        "tools": [each.get("tools") for each in conversations],
    }
    wanted = expected(model, conversations, per_turn=per_turn)
    with running(model) as client, proxy(client.server.address, 20_000, status) as (address, sizes):
        reward = RewardFunction(address)
        found = reward.turns(**columns) if per_turn else reward(**columns)
        first = len(sizes)
        again = reward.turns(**columns) if per_turn else reward(**columns)
    for values in (found, again):
        for value, right in zip(values, wanted, strict=True):
            assert value == pytest.approx(right, **CLOSE)
    assert max(sizes[:first]) > 20_000
    if status != 413:  # the size of a slow one is remembered
        assert max(sizes[first:]) <= 20_000 and len(sizes) - first < 10


def test_a_conversation_that_alone_is_too_much_is_named(model):  # noqa: F811
    conversations = [*replies(70), talk("x " * (1 << 20), "a")]
    with running(model, max_body=1) as client, pytest.raises(RecordError) as error:
        RewardFunction(client.server.address)(messages=conversations)
    assert str(error.value) == "conversation 70: the body is larger than 1 MB"


def test_a_conversation_that_alone_takes_too_long_is_asked_for_again(model, waits):  # noqa: F811
    with (
        running(model) as client,
        proxy(client.server.address, 0, 504) as (address, sizes),
        pytest.raises(CallError, match=r"/classify: HTTP status 504$"),
    ):
        RewardFunction(address)(messages=replies(2))
    assert waits == [1, 2, 4, 8, 16, 30, 30] and len(sizes) == 9


@pytest.mark.parametrize("bad", [[100], [100, 140], range(64, 128), range(150)])
def test_a_bad_conversation_is_named_by_its_place_in_the_whole_batch(model, bad):  # noqa: F811
    conversations = replies(150)
    for number in bad:
        conversations[number] = talk("q")
    with running(model) as client, pytest.raises(RecordError) as error:
        RewardFunction(client.server.address)(messages=conversations)
    problem = "messages: ends with the user; there is no reply to score"
    assert str(error.value) == f"conversation {bad[0]}: {problem}"


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan")])
def test_what_is_no_json_is_named(model, value):  # noqa: F811
    conversations = [*replies(1), [{"role": "user", "content": value}, talk("q", "a")[1]]]
    with running(model) as client, pytest.raises(RecordError, match=r"^conversation 1: "):
        RewardFunction(client.server.address)(messages=conversations)


def test_half_of_an_emoji_is_scored_as_by_a_model_in_this_process(model):  # noqa: F811
    conversations = [talk("q", "a \ud83d"), talk("q", "a \ufffd"), talk("q", "größer 大")]
    with running(model) as client:
        found = RewardFunction(client.server.address)(messages=conversations)
    assert found == pytest.approx(RewardFunction(model)(messages=conversations), **CLOSE)


def test_after_an_error_nothing_more_is_asked(model):  # noqa: F811
    conversations = [talk("q"), *replies(2000)]
    with running(model) as client:
        with pytest.raises(RecordError, match=r"^conversation 0: "):
            RewardFunction(client.server.address)(messages=conversations)
        time.sleep(0.5)
        assert client.metric("requests_total", path="/classify") < 16  # of 32


def test_a_busy_server_is_asked_for_longer_than_one_that_is_away(model, waits, monkeypatch):  # noqa: F811
    monkeypatch.setattr(serve_client, "LONGEST_BUSY", 60)
    with running(model, warm_up=False) as client:
        monkeypatch.setattr("musiccli.serve.server.MAX_REQUESTS", 0)
        with pytest.raises(CallError, match="too many requests are in flight"):
            RewardFunction(client.server.address)(["q"], ["a"])
    assert waits == [1] * 59


def test_several_threads_share_a_function(model):  # noqa: F811
    conversations = replies(400)
    wanted = expected(model, [{"messages": messages} for messages in conversations])
    with running(model) as client, ThreadPoolExecutor(2) as callers:
        reward = RewardFunction(client.server.address)
        both = callers.map(lambda messages: reward(messages=messages), [conversations] * 2)
        for found in both:
            assert found == pytest.approx(wanted, **CLOSE)


def ask(reward, conversations, results):
    results.put(reward(messages=conversations))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_can_use_a_function(model, method):  # noqa: F811
    """As workers of a DataLoader are forked, and those of Ray get it pickled."""
    conversations = replies(130)
    wanted = expected(model, [{"messages": messages} for messages in conversations])
    context = multiprocessing.get_context(method)
    with running(model) as client:
        reward = RewardFunction(client.server.address)
        assert reward(messages=conversations[:1]) == pytest.approx(wanted[:1], **CLOSE)
        results = context.Queue()
        process = context.Process(target=ask, args=(reward, conversations, results))
        process.start()
        found = results.get(timeout=300)
        process.join()
    assert found == pytest.approx(wanted, **CLOSE)
    assert pickle.loads(pickle.dumps(reward)).__name__ == "reward_model"


@pytest.mark.parametrize("address", ["http://", "https://:80", "http://a:b", "http://[::1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="expected the address of a server"):
        RewardFunction(address)
