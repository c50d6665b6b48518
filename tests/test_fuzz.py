"""Damaged records, replies and models at every command: one line each, and nothing outside of the folder.

Everything follows from FUZZ_SEED. FUZZ_TIMES=1 is 10,000 records, 1,000 replies and 200 models, which take minutes;
left out, it is a tenth of that. `FUZZ_SEED=7 FUZZ_TIMES=10 pytest -n 0 tests/test_fuzz.py` tries other cases, and more.
"""

import contextlib
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from build import talk, write
from console import Done, music
from test_contract import ROWS, Row, address, named, reward_model, row, run  # noqa: F401

from musiccli.core import template_process
from musiccli.llm import limiter

SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMES = float(os.environ.get("FUZZ_TIMES", "0.1"))
RECORDS, REPLIES, MODELS = (int(number * TIMES) for number in (10_000, 1_000, 200))
BATCH = 100  # records in one run
RUN_SECONDS = 10.0  # CPU time that a run may take
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEVICES = ("/dev/", "/proc/")

guarded: list[Path] = []  # the folder that the running test may write
strays: list[str] = []  # what a run has done outside of it


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note connections to other hosts, new programs, and files outside of the folder."""
    if not guarded:
        return
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            strays.append(f"connects to {address}")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        if template_process.__file__ not in arguments[1]:
            strays.append(f"{event} {arguments[:1]}")
    elif event == "open" and isinstance(arguments[0], str | bytes) and arguments[2]:
        path = os.path.abspath(os.fsdecode(arguments[0]))
        outside = not path.startswith((*DEVICES, str(guarded[-1])))
        if outside and arguments[2] & WRITING:
            strays.append(f"writes {path}")


sys.addaudithook(watch)


@pytest.fixture
def guard(tmp_path, monkeypatch) -> Iterator[Path]:
    """The test's folder, and the only place that may be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    strays.clear()
    guarded.append(tmp_path)
    yield tmp_path
    guarded.clear()


def check(done: Done, seconds: float) -> str:
    """What is wrong with how a run ended, or ""."""
    if "Traceback" in done.err or "fault of ours" in done.err:
        return done.err[-600:]
    if done.status not in (0, 1, 2):
        return f"exit status {done.status}: {done.err[-300:]}"
    if seconds > RUN_SECONDS:
        return f"took {seconds:.0f} s"
    return "; ".join(strays[:3])


def timed(work) -> tuple[Done, float]:
    start = time.process_time()
    done = work()
    return done, time.process_time() - start


TEXTS = [
    "",
    " ",
    "x" * 3000,
    "\x00",
    "\u202e",
    "\ud800",
    "é" * 50,
    "<think>",
    "[[A]]",
    "tie",
    "a",
    "chosen",
    "-",
    "1",
    "{{x}}",
]
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, 1e308, -1e308, 5e-324, True, False]


def odd_value(draws: random.Random) -> Any:
    """Any JSON value."""
    kind = draws.randrange(8)
    if kind == 0:
        return None
    if kind == 1:
        return draws.choice(NUMBERS)
    if kind in (2, 3):
        return draws.choice(TEXTS)
    if kind == 4:
        return [odd_value(draws) for _ in range(draws.randint(0, 3))]
    if kind == 5:
        return {draws.choice(TEXTS): odd_value(draws) for _ in range(draws.randint(0, 3))}
    if kind == 6:
        return {
            "role": draws.choice(["user", "assistant", "tool", "system"]),
            "content": odd_value(draws),
        }
    value: Any = "deep"
    for _ in range(draws.choice([5, 200, 300])):
        value = [value] if draws.random() < 0.5 else {"a": value}
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value within a JSON value."""
    found = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def mutated(value: Any, draws: random.Random) -> Any:
    """A copy of a JSON value with one to three changes."""
    value = json.loads(json.dumps(value))
    for _ in range(draws.randint(1, 3)):
        choices = places(value)
        if not choices:
            return odd_value(draws)
        container, key = draws.choice(choices)
        change = draws.randrange(5)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, list):
            container.insert(draws.randint(0, len(container)), container[key])
        elif change == 2 and isinstance(container, dict):
            other = draws.choice(choices)
            container[
                draws.choice([*TEXTS, "id", "branch", "sample", "winner", "votes", "tools"])
            ] = json.loads(json.dumps(other[0][other[1]]))
        else:
            container[key] = odd_value(draws)
    return value


def damaged(data: bytes, draws: random.Random) -> bytes:
    """Bytes with a few of them changed, removed or repeated."""
    data = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        at = draws.randrange(len(data) + 1)
        change = draws.randrange(3)
        if change == 0:
            data[at:at] = draws.choice([b"\xff", b"{", b'"', b"\\u0000", b"]", b"NaN", b"1e999"])
        elif change == 1:
            del data[at : at + draws.randint(1, 9)]
        else:
            data[at : at + 1] = bytes([draws.randrange(256)])
    return bytes(data)


def encoded(record: Any, draws: random.Random) -> bytes:
    """A changed record as JSON. Where changes make it too deep for Python, another change."""
    while True:
        with contextlib.suppress(RecursionError):
            return json.dumps(mutated(record, draws)).encode()


def lines_for(row: Row, count: int, draws: random.Random) -> list[bytes]:  # noqa: F811
    """Damaged lines for a command; every tenth line is a good one."""
    lines = []
    for number in range(count):
        for record in row.good(f"r{number}"):
            line = encoded(record, draws) if number % 10 else json.dumps(record).encode()
            if number % 7 == 1:
                line = damaged(line, draws)
            lines.append(line.replace(b"\n", b" "))
    return lines


@pytest.mark.slow
def test_damaged_records_are_one_line_each(row, guard, monkeypatch):  # noqa: F811
    draws = random.Random(f"{SEED} {named(row)}")
    options = ("--on-error", "skip", "--rejects", "bad.jsonl", "-o", "out.jsonl")
    for _ in range(max(1, RECORDS // len(ROWS) // BATCH)):
        lines = lines_for(row, BATCH, draws)
        given = b"\n".join(lines)
        problem = check(*timed(lambda given=given: run(row, *options, given=given)))
        if problem:
            for line in lines:  # which of them it is
                problem_of_line = check(*timed(lambda line=line: run(row, given=line)))
                assert not problem_of_line, (line[:500], problem_of_line)
        assert not problem
        for name in ("bad.jsonl",) if row.words == "show" else ("out.jsonl", "bad.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                for line in Path(name).read_bytes().splitlines():
                    json.loads(line)


def body_of(number: int) -> bytes:
    """The body of a reply, most of them damaged."""
    draws = random.Random(f"{SEED} reply {number}")
    content = draws.choice(
        ["It is so. [[A]]", '{"explanation": "x", "verdict": "B"}', "What else?", *TEXTS]
    )
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    body: Any = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
    data = encoded(body, draws) if number % 5 else json.dumps(body).encode()
    return damaged(data, draws) if number % 6 == 1 else data


class Replies(BaseHTTPRequestHandler):
    """Answers each call with the next body."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.number += 1
            number = self.server.number
        body = body_of(number)
        self.send_response(200 if number % 11 else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def replies() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    server.number, server.lock, server.daemon_threads = 0, threading.Lock(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["simulate --assistant openai/x --retries 0 --turns 1", "judge --judge openai/x"]
)
def test_damaged_replies_are_one_line_each(words, guard, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)
    record = (
        {"messages": talk("What is a fugue?")}
        if words.startswith("simulate")
        else {"chosen": talk("q", "a"), "rejected": talk("q", "b")}
    )
    with replies() as server:
        base = f"http://127.0.0.1:{server.server_address[1]}/v1"
        batch = 0
        while server.number < REPLIES // 2 and batch < 20:
            batch += 1
            path = write("in.jsonl", *({"id": f"{batch}/{n}"} | record for n in range(BATCH // 4)))
            done, seconds = timed(
                lambda path=path: music(
                    *words.split(),
                    "--api-base",
                    base,
                    "--no-cache",
                    "--on-error",
                    "skip",
                    path,
                    "-o",
                    "out.jsonl",
                )
            )
            assert not check(done, seconds)
        assert server.number >= min(REPLIES // 2, 100)


TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
TEMPLATES = [
    "{{ messages.__class__.__mro__ }}",
    "{% for i in range(99999999) %}x{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% if %}",
    "",
    "{{ strftime_now('%Y') }}",
    "{{ messages[99].content }}",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A whole reward model of a few hundred weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = {
        word: number
        for number, word in enumerate(("[UNK]", "[PAD]", "[EOS]", "user", "assistant", "q", "a"))
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def is_json(path: Path) -> bool:
    with contextlib.suppress(ValueError, OSError):
        json.loads(path.read_bytes())
        return True
    return False


def damage_model(folder: Path, draws: random.Random) -> str:
    """Change one thing in a model's folder, and say what."""
    path = draws.choice(sorted(folder.iterdir()))
    kind = draws.randrange(6)
    if kind > 3 and path.suffix == ".json" and not is_json(path):  # damaged before
        kind = 1
    if kind == 0:
        path.unlink()
    elif kind == 1 or path.suffix not in (".json", ".jinja"):
        path.write_bytes(damaged(path.read_bytes(), draws))
    elif kind == 2:
        config = (
            json.loads((folder / "config.json").read_bytes())
            if is_json(folder / "config.json")
            else {}
        )
        config["auto_map"] = {
            name: "evil.Evil"
            for name in (
                "AutoConfig",
                "AutoModel",
                "AutoTokenizer",
                "AutoModelForSequenceClassification",
            )
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("open('/tmp/evil-was-here', 'w')")
    elif kind == 3:
        path = folder / "chat_template.jinja"
        path.write_text(draws.choice(TEMPLATES))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutated(json.loads(path.read_bytes()), draws)))
    else:
        path.write_bytes(damaged(path.read_bytes(), draws))
    return f"{path.name}: {kind}"


@pytest.fixture(scope="module")
def tiny_adapter(tiny, tmp_path_factory) -> Path:
    """A LoRA adapter of the tiny model, with a head."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForSequenceClassification.from_pretrained(tiny)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


PAIRS = b"".join(
    json.dumps({"id": str(n), "chosen": talk("q", "a"), "rejected": talk("q", "a a")}).encode()
    + b"\n"
    for n in range(2)
)
TRAIN = "train --out out --steps 1 --batch 2 --model"


@pytest.mark.slow
@pytest.mark.parametrize("words", ["score --no-cache --model", TRAIN, "merge --out out"])
def test_damaged_models_are_one_line_each(words, tiny, tiny_adapter, guard):
    whole = tiny_adapter if words.startswith("merge") else tiny
    shutil.copytree(whole, "good")
    assert music(*words.split(), "good", given=PAIRS).status == 0
    for number in range(MODELS):
        draws = random.Random(f"{SEED} model {number}")
        for name in ("model", "out"):
            shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(whole, "model")
        damage = [damage_model(Path("model"), draws) for _ in range(draws.randint(1, 2))]
        done, seconds = timed(lambda: music(*words.split(), "model", given=PAIRS))
        assert not (problem := check(done, seconds)), (number, damage, problem)
        assert not re.search("evil was here", done.err) and not Path("/tmp/evil-was-here").exists()


def known_words(name: str) -> list[dict]:
    """A pair of which the tiny model knows the words."""
    return [{"id": name, "chosen": talk("q", "a"), "rejected": talk("q", "a a")}]


@pytest.mark.slow
def test_damaged_records_at_train_are_one_line_each(tiny, guard):
    """What is written is a model that loads, of the records that are whole."""
    draws = random.Random(f"{SEED} train")
    options = ("--on-error", "skip", "--rejects", "bad.jsonl")
    for _ in range(max(1, RECORDS // len(ROWS) // BATCH)):
        shutil.rmtree("out", ignore_errors=True)
        given = b"\n".join(lines_for(Row("train", known_words), BATCH, draws))
        done, seconds = timed(
            lambda given=given: music(*TRAIN.split(), tiny, *options, given=given)
        )
        assert not check(done, seconds)
        assert done.status == 1 and Path("out", "model.safetensors").exists(), done.err
        for line in Path("bad.jsonl").read_bytes().splitlines():
            json.loads(line)
