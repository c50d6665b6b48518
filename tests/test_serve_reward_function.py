"""The reward function that RL trainers call: in this process and through a server, with the same scores."""

import contextlib
import http.server
import threading

import pytest
from build import talk, weather
from test_serve import CLOSE, expected, folder, model, running  # noqa: F401  (fixtures)
from test_serve_client import pass_waits

from musiccli import InputError, MusicError, RecordError, RewardFunction
from musiccli.core.errors import CallError

PROMPTS = [talk("q"), talk("q", "a", "r"), weather()["messages"][:1]]
COMPLETIONS = [talk("", "yes")[1:], talk("", "no")[1:], weather()["messages"][1:]]
WHOLE = [[*prompt, *completion] for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]


@pytest.fixture(params=["process", "server"])
def reward(request, model):  # noqa: F811
    if request.param == "process":
        yield RewardFunction(model)
        return
    with running(model) as client:
        yield RewardFunction(client.server.address)


def test_trl_calls_it_with_messages_and_columns(reward, model):  # noqa: F811
    found = reward(
        prompts=PROMPTS,
        completions=COMPLETIONS,
        completion_ids=[[1], [2], [3]],
        trainer_state=None,
        solution=["x", "y", "z"],
    )
    wanted = expected(model, [{"messages": messages} for messages in WHOLE])
    assert found == pytest.approx(wanted, **CLOSE)
    assert len(set(found)) == 3
    assert reward.__name__ == "reward_model"


def test_texts_are_a_question_and_a_reply(reward, model):  # noqa: F811
    [right] = expected(model, [{"messages": talk("q", "a")}])
    assert reward(prompts=["q"], completions=["a"]) == [pytest.approx(right, **CLOSE)]


def test_ms_swift_gives_whole_messages_beside_completions(reward, model):  # noqa: F811
    found = reward(["yes", "no", "x"], messages=WHOLE, request_id=["1", "2", "3"])
    wanted = expected(model, [{"messages": messages} for messages in WHOLE])
    assert found == pytest.approx(wanted, **CLOSE)


def test_functions_on_offer_are_read(reward, model):  # noqa: F811
    right = expected(model, [{"messages": WHOLE[2], "tools": weather()["tools"]}])
    found = reward(PROMPTS[2:], COMPLETIONS[2:], tools=[weather()["tools"]])
    assert found == pytest.approx(right, **CLOSE)
    assert found != pytest.approx(reward(PROMPTS[2:], COMPLETIONS[2:]), **CLOSE)


def test_per_turn(reward, model):  # noqa: F811
    found = reward.turns(PROMPTS, COMPLETIONS)
    wanted = expected(model, [{"messages": messages} for messages in WHOLE], per_turn=True)
    assert [len(turns) for turns in found] == [1, 2, 1]
    for turns, right in zip(found, wanted, strict=True):
        assert turns == pytest.approx(right, **CLOSE)


def test_an_empty_reply_has_a_reward_of_its_own(reward):
    empty, blank, other = reward(["q"] * 3, ["", " \n", "a"])
    assert empty == blank != other


def test_nothing_gives_nothing(reward):
    assert reward([], []) == []


def test_a_bad_conversation_is_named(reward):
    with pytest.raises(RecordError, match=r"^conversation 1: messages"):
        reward([talk("q"), talk("q", "a")], [talk("", "a")[1:], talk("", "a")[1:]])


def test_verl_gives_the_reply_alone_and_the_prompt_in_extra_info(reward, model):  # noqa: F811
    [right] = expected(model, [{"messages": WHOLE[1]}])
    found = reward.verl("source", "no", "truth", {"prompt": PROMPTS[1]}, reward_router_address="x")
    assert found == pytest.approx(right, **CLOSE)
    with pytest.raises(RecordError, match=r"extra_info.prompt: is missing"):
        reward.verl("source", "no", "truth", {})


def test_openrlhf_gives_text_of_the_actor(model, folder):  # noqa: F811
    reward = RewardFunction(model, actor_template=str(folder))
    queries = [model.chat_template.render(messages) for messages in WHOLE[:2]]
    found = reward.openrlhf(queries, ["p", "p"], ["l", "l"])
    wanted = expected(model, [{"messages": messages} for messages in WHOLE[:2]])
    assert found["rewards"].tolist() == found["scores"].tolist() == pytest.approx(wanted, **CLOSE)
    with pytest.raises(InputError, match="`actor_template` is missing"):
        RewardFunction(model).openrlhf(queries, [], [])


def test_the_key_is_read_from_the_environment(model, monkeypatch):  # noqa: F811
    with running(model, api_key="secret") as client:
        reward = RewardFunction(client.server.address)
        with pytest.raises(CallError, match=r"Authorization: Bearer KEY \(set MUSIC_API_KEY\)$"):
            reward(["q"], ["a"])
        monkeypatch.setenv("MUSIC_API_KEY", "secret")
        assert len(reward(["q"], ["a"])) == 1


def test_a_server_that_is_away_is_asked_again_and_then_named(waits):
    with pytest.raises(MusicError, match=r"^http://127.0.0.1:9/classify: .*refused"):
        RewardFunction("http://127.0.0.1:9/")(["q"], ["a"])
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_a_busy_server_is_asked_again_when_it_said(model, monkeypatch):  # noqa: F811
    most = "musiccli.serve.server.MAX_REQUESTS"
    seconds = pass_waits(monkeypatch, lambda: monkeypatch.setattr(most, 9))
    with running(model, warm_up=False) as client:
        monkeypatch.setattr(most, 0)
        found = RewardFunction(client.server.address)(["q"], ["a"])
    assert len(found) == 1 and seconds == [1]


@pytest.fixture
def waits(monkeypatch):
    return pass_waits(monkeypatch)


@contextlib.contextmanager
def replying(status: int, body: bytes, **headers: str):
    """The address of a server that always replies so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("Fri, 27 Nov 2099 08:49:37 GMT", 30),
        ("Fri, 27 Nov 2009 08:49:37 GMT", 1),
        *(("1, 1", 1), ("-1", 1), ("0", 1), ("nan", 1), ("soon", 1), ("inf", 30), ("2.5", 2.5)),
    ],
)
def test_whatever_a_busy_server_says_of_the_wait_it_is_asked_again(waits, header, wait):
    busy = b'{"error": {"message": "busy"}}'
    with (
        replying(429, busy, Retry_After=header) as address,
        pytest.raises(CallError, match=r"/classify: busy$"),
    ):
        RewardFunction(address)(["q"], ["a"])
    assert waits[0] == wait and sum(waits) == 1800 - wait


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>ok</html>", b"", b"\xff", b"3", b"[]", b'{"error": "x"}', b'{"data": null}'),
        *(b'{"data": []}', b'{"data": [{"probs": [1]}]}', b'{"data": [1, 2]}'),
        b'{"data": [{"probs": [1]}, {}]}',
        b'{"data": [{"probs": [1]}, {"probs": []}]}',
        b'{"data": [{"probs": [1]}, {"probs": [null]}]}',
        b'{"data": [{"probs": [1]}, {"probs": [2]}, {"probs": [3]}]}',
    ],
)
def test_a_reply_that_is_not_the_servers_is_asked_for_again_and_then_an_error(waits, body):
    with replying(200, body) as address, pytest.raises(CallError, match="/classify: the reply "):
        RewardFunction(address)(["q", "q"], ["a", "b"])
    assert len(waits) == 7
