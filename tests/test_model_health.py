"""When a run gives a model up: not over single failures, and not after burning through the input either."""

import asyncio
import time

import pytest
from openai_server import serve
from scripted import Music, cast, jsonl, lines, no_network, wait_until
from test_client import OPENAI, ask, call

from musiccli.core.errors import CallError, InputError
from musiccli.llm import client as door
from musiccli.llm.call import Reply
from musiccli.llm.client import Client
from musiccli.llm.endpoints import Endpoints
from musiccli.llm.limiter import AdaptiveLimiter
from musiccli.llm.model_health import GIVE_UP_AFTER, LONGEST_WAIT, ModelHealth
from musiccli.llm.provider_errors import Empty, ProviderError

VLLM = "hosted_vllm/scripted"
NOTHING = Empty(Reply("", "stop", 7, 0, None))


@pytest.fixture
def loopback(monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setattr(door, "backoff", lambda *_: 0.0)


@pytest.fixture
def standing() -> ModelHealth:
    return ModelHealth(Endpoints(VLLM, ["http://h/v1"]), AdaptiveLimiter(4))


def failures(standing: ModelHealth, refusal: ProviderError, count: int) -> list[type]:
    return [type(standing.failed(call(), refusal, 1)) for _ in range(count)]


@pytest.mark.parametrize(
    "refusal",
    [ProviderError("no", 500), ProviderError("no", 400), ProviderError("no", 429), NOTHING],
)
def test_a_model_that_never_answered_is_given_up_after_some_failures_of_any_kind(standing, refusal):
    assert failures(standing, refusal, GIVE_UP_AFTER) == [CallError] * (GIVE_UP_AFTER - 1) + [
        InputError
    ]
    with pytest.raises(InputError, match="no call to it has succeeded, so the run stops here"):
        standing.check()


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_model_that_never_answered_is_given_up_at_once_where_no_call_can_succeed(
    standing, status
):
    assert failures(standing, ProviderError("no", status), 1) == [InputError]


@pytest.mark.parametrize("status", [401, 402, 429, 500])
def test_one_that_has_answered_is_given_up_after_as_many_in_a_row(standing, status):
    standing.answered()
    assert failures(standing, ProviderError("no", status), GIVE_UP_AFTER) == [CallError] * (
        GIVE_UP_AFTER - 1
    ) + [InputError]
    with pytest.raises(
        InputError,
        match=f"{GIVE_UP_AFTER} calls to it have failed in a row, so the run stops here$",
    ):
        standing.check()


def test_an_answer_between_excuses_what_failed_before_it(standing):
    for _ in range(5):
        standing.answered()
        assert failures(standing, ProviderError("no", 500), GIVE_UP_AFTER - 1) == [CallError] * (
            GIVE_UP_AFTER - 1
        )


@pytest.mark.parametrize(
    "refusal", [ProviderError("too long", 400), ProviderError("too long", 413), NOTHING]
)
def test_questions_that_cannot_be_answered_are_their_records_business(standing, refusal):
    standing.answered()
    assert failures(standing, refusal, 3 * GIVE_UP_AFTER) == [CallError] * 3 * GIVE_UP_AFTER


@pytest.mark.parametrize(
    "seconds, said", [(LONGEST_WAIT + 60, "6 min"), (7230, "2 h 0 min"), (90000, "25 h 0 min")]
)
def test_a_wait_of_hours_is_not_waited(standing, seconds, said):
    refusal = ProviderError("429: quota spent", 429, retry_after=seconds)
    assert not standing.worth_another(refusal)
    assert standing.worth_another(ProviderError("slow down", 429, retry_after=LONGEST_WAIT))
    assert str(standing.failed(call(), refusal, 1)) == (
        f"{OPENAI}: 429: quota spent; it asks for a wait of {said}, and 5 min is the most"
    )
    standing.refused(refusal)
    assert standing.pace._not_before < time.monotonic() + 1


def test_a_spent_quota_ends_the_run_soon(loopback):
    with serve(faults={"429-retry-after": 1}, retry_after=7200) as server:
        begun = time.monotonic()
        met = ask(Client(api_base=server.base_url), *map(call, range(20)))
        assert time.monotonic() - begun < 5
        assert server.calls <= 20
    assert isinstance(met[-1], InputError) and "it asks for a wait of 2 h 0 min" in str(met[-1])


def test_when_a_model_is_given_up_nobody_who_waits_begins(loopback):
    with serve(api_key="another", delay=0.01) as server:
        met = ask(Client(api_base=server.base_url, concurrency=4), *map(call, range(50)))
        assert {type(one) for one in met} == {InputError}
        assert server.calls == 4


@pytest.mark.parametrize("fault", ["key", "death"])
def test_what_ends_in_the_middle_of_a_run_stops_it(loopback, fault):
    with serve(delay=0.01) as server:
        client = Client(api_base=server.base_url, concurrency=4, attempts=2)

        async def run() -> list:
            asked = [asyncio.ensure_future(client.ask(call(number))) for number in range(200)]
            while server.finished < 40:
                await asyncio.sleep(0.002)
            server.api_key, server.faults = (
                ("another", {}) if fault == "key" else (None, {"reset": 1})
            )
            return await asyncio.gather(*asked, return_exceptions=True)

        met = asyncio.run(run())
        kinds = [type(one) for one in met]
        assert kinds.count(Reply) == server.finished
        assert (
            GIVE_UP_AFTER - 1 <= kinds.count(CallError) < GIVE_UP_AFTER + 4
        )  # answers in flight excuse some
        assert fault == "death" or server.calls - server.finished <= GIVE_UP_AFTER + 8
    assert "calls to it have failed in a row, so the run stops here" in str(met[-1])


SEEDS = [
    {"id": number, "messages": [{"role": "user", "content": f"Question {number}?"}]}
    for number in range(60)
]


def test_a_run_that_is_given_up_says_how_to_go_on_and_does(tmp_path):
    with Music(tmp_path) as music, serve(reply=cast, delay=0.02) as server:
        line = (
            "simulate",
            "--assistant",
            VLLM,
            "--api-base",
            server.base_url,
            "--turns",
            2,
            "--concurrency",
            4,
            "-o",
            tmp_path / "out.jsonl",
            "--on-error",
            "skip",
            "--rejects",
            tmp_path / "rejects.jsonl",
        )
        process = music.start(*line)
        process.stdin.write(jsonl(SEEDS))
        process.stdin.close()
        wait_until(lambda: server.finished >= 40)
        server.api_key = "another"
        assert process.wait(timeout=30) == 2
        said = process.stderr.read().splitlines()
        assert said[-1] == (
            f"music simulate: error: {VLLM}: 401: Incorrect API key provided; {GIVE_UP_AFTER} calls to it have failed "
            "in a row, so the run stops here; the same line goes on from here, and pays for no finished call again"
        )
        assert "Traceback" not in "".join(said) and not (tmp_path / "out.jsonl").exists()
        rejected = lines((tmp_path / "rejects.jsonl").read_text())
        assert 1 <= len(rejected) < GIVE_UP_AFTER and "401" in rejected[0]["error"]
        server.api_key, paid = None, server.finished
        again = music(*line, stdin=jsonl(SEEDS))
        assert again.returncode == 0, again.stderr
        assert len(lines((tmp_path / "out.jsonl").read_text())) == 2 * len(SEEDS)
        cached = sum(
            int(line.split("(")[1].split()[0].replace(",", ""))
            for line in again.stderr.splitlines()
            if " from cache" in line
        )
        assert cached == paid
