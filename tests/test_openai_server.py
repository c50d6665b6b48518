"""The scripted server does over real HTTP what its docstring says."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from openai_server import allow_many_connections, play, serve
from scripted import wait_until

SCRIPT = str(Path(__file__).with_name("openai_server.py"))


def ask(content: str = "What is a fugue?", **fields) -> dict:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **fields}


def post(
    server, *bodies: dict | bytes, headers: dict | None = None, timeout: float = 120
) -> list[tuple]:
    """Post all bodies at once; (status, headers, text) of each answer, or the exception that the client met."""

    async def one(session: aiohttp.ClientSession, body: dict | bytes) -> tuple:
        data = body if isinstance(body, bytes) else json.dumps(body)
        async with session.post(
            f"{server.base_url}/chat/completions", data=data, headers=headers
        ) as response:
            return response.status, response.headers, await response.text()

    async def every() -> list:
        limits = aiohttp.ClientTimeout(total=timeout)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=limits
        ) as session:
            return await asyncio.gather(
                *(one(session, body) for body in bodies), return_exceptions=True
            )

    return asyncio.run(every())


def contents(answers: list[tuple]) -> list[str]:
    return [json.loads(text)["choices"][0]["message"]["content"] for _, _, text in answers]


def streamed(text: str) -> list[dict]:
    """The events of a stream that ended as it should."""
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_same_request_gets_the_same_reply_and_another_request_another():
    with serve() as server:
        first, again, other = contents(
            post(server, ask("What is a fugue?"), ask("What is a fugue?"), ask("A canon?"))
        )
    assert first == again != other
    assert first.endswith(" to: What is a fugue?")


def test_reply_is_a_function_of_the_request_and_usage_counts_four_tokens_for_three_words():
    with serve(reply=lambda body: f"temperature {body['temperature']} it is") as server:
        [(status, headers, text)] = post(
            server, ask("one two three four five six", temperature=0.5)
        )
    answer = json.loads(text)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert (answer["object"], answer["model"]) == ("chat.completion", "scripted")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "temperature 0.5 it is"},
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_reply_beyond_the_token_limit_is_cut_and_says_so(limit):
    with serve(reply=lambda _: "one two three four five six") as server:
        [(_, _, cut), (_, _, whole)] = post(server, ask(**{limit: 4}), ask(**{limit: 8}))
    cut, whole = (json.loads(text)["choices"][0] for text in (cut, whole))
    assert (cut["message"]["content"], cut["finish_reason"]) == ("one two three", "length")
    assert (whole["message"]["content"], whole["finish_reason"]) == (
        "one two three four five six",
        "stop",
    )


def test_stream_gives_the_same_text_word_by_word_with_usage_where_asked():
    with serve(reply=lambda _: "two\n\nwords  here") as server:
        [(_, headers, text)] = post(
            server, ask(stream=True, stream_options={"include_usage": True})
        )
    *steps, usage = streamed(text)
    assert headers["Content-Type"] == "text/event-stream"
    assert [step["choices"][0]["delta"].get("content") for step in steps] == [
        "",
        "two\n\n",
        "words  ",
        "here",
        None,
    ]
    assert [step["choices"][0]["finish_reason"] for step in steps] == [
        None,
        None,
        None,
        None,
        "stop",
    ]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)


def test_stream_has_no_usage_unless_asked():
    with serve(reply=lambda _: "word") as server:
        [(_, _, text)] = post(server, ask(stream=True))
    assert all("usage" not in event for event in streamed(text))


def test_calls_requests_and_headers_are_logged_in_order_of_arrival():
    with serve() as server:
        post(server, ask("first"), headers={"X-Try": "1"})
        post(server, ask("second"), headers={"X-Try": "2"})
        assert (server.calls, server.finished, server.peak) == (2, 2, 1)
        assert list(server.requests) == [ask("first"), ask("second")]
        assert [headers["X-Try"] for headers in server.headers] == ["1", "2"]


@pytest.mark.parametrize(
    "fault, status, retry_after",
    [("429", 429, None), ("429-retry-after", 429, "0.5"), ("500", 500, None)],
)
def test_error_faults_have_a_status_and_openais_error_body(fault, status, retry_after):
    with serve(script=[fault], retry_after=0.5) as server:
        [(got, headers, text)] = post(server, ask())
        assert (got, headers.get("Retry-After")) == (status, retry_after)
        assert json.loads(text)["error"]["message"]
        assert (server.calls, server.finished) == (1, 0)


def test_echo_key_quotes_the_callers_key():
    with serve(script=["echo-key"]) as server:
        [(status, _, text)] = post(server, ask(), headers={"Authorization": "Bearer sesame"})
    assert status == 401 and "Bearer sesame" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    "asked, form",
    [
        (
            "Write <instruction>it</instruction> <reply>it</reply>",
            r"<instruction>.+\?</instruction>\n<reply>.+\.</reply>",
        ),
        ("End with [[A]], [[B]] or [[C]].", r".+\.\n\[\[[ABC]\]\]"),
        ("What is a fugue?", r"[\w ]+[.?]"),
    ],
)
def test_play_answers_nonsense_in_the_form_that_is_asked_for(asked, form):
    assert re.fullmatch(form, play(ask(asked)))
    assert play(ask(asked)) == play(ask(asked)) != play(ask(asked, seed=1))


@pytest.mark.parametrize(
    "option, said",
    [
        (["--fault", "418=1"], "no such fault: 418"),
        (["--fault", "429"], "429: expected a share of the calls, as in 429=0.05"),
        (["--fault", "429=often"], "429=often: expected a share"),
    ],
)
def test_script_says_what_is_wrong_with_its_options(option, said):
    done = subprocess.run([sys.executable, SCRIPT, *option], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr


def test_reset_ends_the_connection_before_any_answer():
    with serve(script=["reset"]) as server:
        [error] = post(server, ask())
        assert isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
        assert server.finished == 0


@pytest.mark.parametrize("stream", [False, True])
def test_truncated_body_ends_early(stream):
    with serve(script=["truncated"]) as server:
        [error] = post(server, ask(stream=stream))
        assert isinstance(error, aiohttp.ClientPayloadError)
        assert server.finished == 0


def test_invalid_json_is_a_whole_body_that_does_not_parse():
    with serve(script=["invalid-json"]) as server:
        [(status, headers, text)] = post(server, ask())
        assert (status, int(headers["Content-Length"])) == (200, len(text))
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
        assert server.finished == 0


def test_empty_is_a_completion_without_content():
    with serve(script=["empty"]) as server:
        assert contents(post(server, ask())) == [""]


def test_length_fault_gives_half_the_reply():
    with serve(script=["length"], reply=lambda _: "one two three four five six") as server:
        [(_, _, text)] = post(server, ask())
    choice = json.loads(text)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two three", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_slow_body_comes_in_pieces_and_is_whole(stream):
    with serve(script=["slow"], pause=0.02, reply=lambda _: "one two three") as server:
        start = time.monotonic()
        [(status, _, text)] = post(server, ask(stream=stream))
        assert time.monotonic() - start > 0.08
        assert (status, server.finished) == (200, 1)
    assert streamed(text) if stream else json.loads(text)


@pytest.mark.slow
def test_hanging_call_is_freed_when_the_client_leaves():
    with serve(script=["hang"]) as server:
        [error] = post(server, ask(), timeout=2)
        assert isinstance(error, TimeoutError)
        wait_until(lambda: not server.in_flight)
        assert (server.calls, server.in_flight) == (1, 0)


def test_delay_is_waited_before_an_answer():
    with serve(delay=0.1) as server:
        start = time.monotonic()
        post(server, ask(), ask("two"), ask("three"))
        assert time.monotonic() - start >= 0.1


def test_no_answer_comes_before_as_many_calls_as_it_waits_for():
    with serve(wait_for_calls=3) as server:
        post(server, ask(), ask("two"), ask("three"))
        assert server.peak == 3


def test_script_serves_the_first_calls_and_then_all_is_well():
    with serve(script=["500", None, "429"]) as server:
        assert [post(server, ask())[0][0] for _ in range(5)] == [500, 200, 429, 200, 200]


@pytest.mark.slow
def test_faults_follow_from_the_seed_in_whatever_order_calls_come():
    def statuses(seed: int, *, backwards: bool = False) -> list[int]:
        bodies = [ask(f"question {number}") for number in range(200)]
        with serve(faults={"429": 0.2, "500": 0.1}, seed=seed) as server:
            answers = post(server, *(reversed(bodies) if backwards else bodies))
        found = [status for status, _, _ in answers]
        return found[::-1] if backwards else found

    first = statuses(1)
    assert first == statuses(1, backwards=True) != statuses(2)
    assert 20 <= first.count(429) <= 60 and 8 <= first.count(500) <= 35  # 40 and 20 expected


def test_same_call_tried_again_meets_another_fate():
    with serve(faults={"500": 0.5}) as server:
        assert {post(server, ask())[0][0] for _ in range(12)} == {200, 500}


def test_calls_beyond_the_limit_are_refused_at_once():
    with serve(limit=2, wait_for_calls=5) as server:
        answers = post(server, *(ask(f"question {number}") for number in range(5)))
    assert sorted(status for status, _, _ in answers) == [200, 200, 429, 429, 429]


def test_api_key_is_required_where_one_is_set():
    with serve(api_key="sesame") as server:
        statuses = [
            post(server, ask(), headers=headers)[0][0]
            for headers in (
                None,
                {"Authorization": "Bearer guess"},
                {"Authorization": "Bearer sesame"},
            )
        ]
    assert statuses == [401, 401, 200]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", {}, {"messages": []}, {"messages": ["hi"]}, ask(n=2)]
)
def test_unusable_request_is_refused(body):
    with serve() as server:
        assert post(server, body)[0][0] == 400


def test_unknown_fault_is_named():
    with pytest.raises(ValueError, match="no such fault: 418"), serve(faults={"418": 1}):
        pass


@pytest.mark.slow
def test_thousand_calls_are_in_flight_at_once():
    allow_many_connections()
    with serve(wait_for_calls=1000) as server:
        answers = post(server, *(ask(f"question {number}") for number in range(1000)))
        assert [status for status, _, _ in answers] == [200] * 1000
        assert len(set(contents(answers))) == server.peak == server.finished == 1000


@pytest.mark.slow
def test_script_prints_its_port_serves_and_ends_quietly():
    command = [sys.executable, SCRIPT, "--delay-ms", "1", "--reply", "[[A]]"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        server = type("Remote", (), {"base_url": f"http://127.0.0.1:{port}/v1"})
        assert contents(post(server, ask())) == ["[[A]]"]
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
