"""When a run gives a model up: not over single failures, and not after burning through the input either."""

import pytest
from build import read, talk
from openai_server import serve
from scripted import Music, jsonl, no_network, scripted_reply
from test_client import OPENAI, ask, call, client_of

from musiccli.core.errors import CallError, InputError
from musiccli.core.jsonl import Rejects
from musiccli.core.records import Record
from musiccli.core.run_stats import RunStats
from musiccli.core.store import Store
from musiccli.llm import limiter
from musiccli.llm.call import Reply
from musiccli.llm.model_health import MAX_FAILURES, ModelHealth
from musiccli.llm.provider_errors import MAX_RETRY_AFTER, EmptyReply, ProviderError
from musiccli.simulate.config import SimulateConfig
from musiccli.simulate.simulator import simulate

VLLM = "hosted_vllm/scripted"
NOTHING = EmptyReply(Reply("", "stop", 7, 0, None), call())


@pytest.fixture
def loopback(monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)


@pytest.fixture
def health() -> ModelHealth:
    return ModelHealth()


def failures(health: ModelHealth, refusal: ProviderError, count: int) -> list[type]:
    return [type(health.record_failure(call(), refusal, 1)) for _ in range(count)]


@pytest.mark.parametrize(
    "refusal",
    [ProviderError("no", 500), ProviderError("no", 400), ProviderError("no", 429), NOTHING],
)
def test_a_model_that_never_answered_is_given_up_after_some_failures_of_any_kind(health, refusal):
    assert failures(health, refusal, MAX_FAILURES) == [CallError] * (MAX_FAILURES - 1) + [
        InputError
    ]
    with pytest.raises(InputError, match="no call to it has succeeded, so the run stops here"):
        health.check()


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_model_that_never_answered_is_given_up_at_once_where_no_call_can_succeed(health, status):
    assert failures(health, ProviderError("no", status), 1) == [InputError]


@pytest.mark.parametrize("status", [401, 402, 429, 500])
def test_one_that_has_answered_is_given_up_after_as_many_in_a_row(health, status):
    health.record_success()
    assert failures(health, ProviderError("no", status), MAX_FAILURES) == [CallError] * (
        MAX_FAILURES - 1
    ) + [InputError]
    with pytest.raises(
        InputError,
        match=f"{MAX_FAILURES} calls to it have failed in a row, so the run stops here$",
    ):
        health.check()


def test_an_answer_between_excuses_what_failed_before_it(health):
    for _ in range(5):
        health.record_success()
        assert failures(health, ProviderError("no", 500), MAX_FAILURES - 1) == [CallError] * (
            MAX_FAILURES - 1
        )


@pytest.mark.parametrize(
    "refusal", [ProviderError("too long", 400), ProviderError("too long", 413), NOTHING]
)
def test_questions_that_cannot_be_answered_are_their_records_business(health, refusal):
    health.record_success()
    assert failures(health, refusal, 3 * MAX_FAILURES) == [CallError] * 3 * MAX_FAILURES


@pytest.mark.parametrize("refusal", [ProviderError("odd", 400), ProviderError("odd", 422), NOTHING])
def test_where_an_earlier_run_got_replies_odd_questions_are_their_records_business(health, refusal):
    health.has_replied_before = True
    assert failures(health, refusal, 3 * MAX_FAILURES) == [CallError] * 3 * MAX_FAILURES
    assert health.stop_reason is None


@pytest.mark.parametrize("status, count", [(401, 1), (404, 1), (500, MAX_FAILURES)])
def test_replies_of_an_earlier_run_excuse_no_failure_that_others_share(health, status, count):
    health.has_replied_before = True
    failed = failures(health, ProviderError("no", status), count)
    assert failed == [CallError] * (count - 1) + [InputError]


def test_a_run_again_ends_as_the_first_where_some_records_always_fail(loopback, tmp_path):
    def reply(body: dict) -> str:
        return "" if "odd" in body["messages"][-1]["content"] else "Limestone."

    texts = [f"What {'odd' if number % 4 else 'plain'} rock?" for number in range(16)]
    seeds = [Record({"id": n, "messages": talk(text)}) for n, text in enumerate(texts)]
    config, runs = SimulateConfig(assistant=VLLM, turns=1, contrast="none"), []
    with serve(reply=reply) as server:
        for _ in range(2):
            rejects, store = Rejects(skip=True), Store(tmp_path / "calls.sqlite")
            client = client_of(server.base_url, cache=store)
            branches = list(simulate(seeds, config, client, RunStats(rejects)))
            runs.append((branches, rejects.count))
            client.close()
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == 4 and runs[0][1] == 12 > MAX_FAILURES


@pytest.mark.parametrize(
    "seconds, said", [(MAX_RETRY_AFTER + 60, "6 min"), (7230, "2 h 0 min"), (90000, "25 h 0 min")]
)
def test_a_wait_of_hours_is_not_waited(health, seconds, said):
    refusal = ProviderError("429: quota spent", 429, retry_after=seconds)
    assert not refusal.retryable
    assert ProviderError("slow down", 429, retry_after=MAX_RETRY_AFTER).retryable
    assert str(health.record_failure(call(), refusal, 1)) == (
        f"{OPENAI}: 429: quota spent; it asks for a wait of {said}, and 5 min is the most"
    )
    model = client_of("http://h/v1").model(VLLM)
    [endpoint] = model.endpoints.all
    model.endpoints.record_failure(endpoint, refusal)
    assert endpoint.limiter.pause <= 0


def test_a_spent_quota_ends_the_run_soon(loopback):
    with serve(faults={"429-retry-after": 1}, retry_after=7200) as server:
        met = ask(client_of(server.base_url), *map(call, range(20)))
        assert server.calls <= 20
    assert isinstance(met[-1], InputError) and "it asks for a wait of 2 h 0 min" in str(met[-1])


def test_when_a_model_is_given_up_nobody_who_waits_begins(loopback):
    with serve(api_key="another") as server:
        met = ask(client_of(server.base_url, concurrency=4), *map(call, range(50)))
        assert {type(one) for one in met} == {InputError}
        assert server.calls == 4


@pytest.mark.parametrize("fault", ["echo-key", "reset"])
def test_what_ends_in_the_middle_of_a_run_stops_it(loopback, fault):
    """The key or the server ends after 40 calls. Replies in flight excuse a few failures."""
    with serve(script=[None] * 40 + [fault] * 400) as server:
        client = client_of(server.base_url, concurrency=4, attempts=2)
        met = ask(client, *map(call, range(200)))
        kinds = [type(result) for result in met]
        assert kinds.count(Reply) == server.finished == 40
        assert MAX_FAILURES - 1 <= kinds.count(CallError) < MAX_FAILURES + 4
        assert fault == "reset" or server.calls - server.finished <= MAX_FAILURES + 8
    assert "calls to it have failed in a row, so the run stops here" in str(met[-1])


SEEDS = [
    {"id": number, "messages": [{"role": "user", "content": f"Question {number}?"}]}
    for number in range(60)
]


@pytest.mark.slow
def test_a_run_that_is_given_up_says_how_to_go_on_and_does(tmp_path):
    script = [None] * 40 + ["echo-key"] * 400
    with Music(tmp_path) as music, serve(reply=scripted_reply, script=script) as server:
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
        stopped = music(*line, stdin=jsonl(SEEDS))
        assert stopped.returncode == 2
        assert stopped.stderr.splitlines()[-1] == (
            f"music simulate: error: {VLLM}: 401: Incorrect API key provided: None; {MAX_FAILURES} "
            "calls to it have failed in a row, so the run stops here; the same command continues "
            "from here and pays for no finished call again"
        )
        assert "Traceback" not in stopped.stderr and not (tmp_path / "out.jsonl").exists()
        rejected = read((tmp_path / "rejects.jsonl").read_text())
        # As many calls fail before the run stops, and a few more where a late reply excuses some.
        assert 1 <= len(rejected) < MAX_FAILURES + 4 and "401" in rejected[0]["error"]
        server.script, paid = (), server.finished
        again = music(*line, stdin=jsonl(SEEDS))
        assert again.returncode == 0, again.stderr
        assert len(read((tmp_path / "out.jsonl").read_text())) == 2 * len(SEEDS)
        cached = sum(
            int(line.split("(")[1].split()[0].replace(",", ""))
            for line in again.stderr.splitlines()
            if " from cache" in line
        )
        assert cached == paid
