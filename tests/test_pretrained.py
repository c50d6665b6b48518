"""Nothing that comes with a model runs, and no model ends a run with a traceback."""

import ast
import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy as copy_of
from pathlib import Path
from typing import Any

import preloaded
import pytest
import torch
from build import lines, talk, write
from console import environment, music
from safetensors.torch import load_file, save_file
from toys import backbone

from musiccli.core import template_limits, template_process
from musiccli.core.pretrained import load_tokenizer
from musiccli.core.template_limits import TemplateLimitError, apply_chat_template
from musiccli.reward_model import checkpoint

ROOM = Path(__file__).parent.parent / "musiccli"
LOADERS = {"from_pretrained", "from_config"}
PROMPT = {"id": "q", "messages": talk("Name a fugue.")}
RECORD = {"id": "q", "messages": talk("Name a fugue.", "The Art of Fugue.")}
EVIL = "open({ran!r}, 'w').close()\nclass Evil: pass\n"
SAYS_PATHS = """\
import atexit, json, os, sys
def say():
    with open({said!r}, "a") as file:
        print(json.dumps([os.environ.get("PYTHONSAFEPATH"), *sys.path]), file=file)
atexit.register(say)
"""


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """The folder of a reward model, which transformers also takes for a language model."""
    folder = tmp_path_factory.mktemp("rm")
    base = backbone(tmp_path_factory.mktemp("base"))
    checkpoint.save(checkpoint.create(str(base)), folder)
    return folder


@pytest.fixture
def copy(reward_model, tmp_path):
    """Copies the model; changes to the fields of its JSON files are given by name of the file."""

    def make(**changes: dict) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(reward_model, folder)
        for name, fields in changes.items():
            file = folder / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return folder

    return make


@pytest.mark.slow
def test_one_module_loads_what_transformers_and_peft_load():
    for file in ROOM.rglob("*.py"):
        if file != ROOM / "core" / "pretrained.py":
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                name = getattr(node, "attr", None) or getattr(node, "name", None)
                text = str(name or "")
                assert text not in LOADERS and not text.startswith("AutoModel"), file
                assert text not in ("AutoConfig", "AutoTokenizer", "PeftModel"), file
                assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load")


def test_every_load_refuses_code():
    text = (ROOM / "core" / "pretrained.py").read_text("utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if getattr(call.func, "attr", "") in LOADERS]
    assert len(loads) >= 5
    for call in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        # An adapter's folder holds weights and settings; peft takes no code from it.
        adapter = ast.unparse(call.func) == "PeftModel.from_pretrained"
        assert adapter or given["trust_remote_code"] == "False"


@pytest.mark.parametrize(
    "command",
    [
        ("score", "--no-cache", "--model"),
        ("train", "--out", "OUT", "--model"),
        ("simulate", "--no-cache", "--turns", 1, "--assistant"),
    ],
    ids=["score", "train", "simulate"],
)
@pytest.mark.parametrize(
    "file, fields",
    [
        ("config", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}),
        (
            "config",
            {
                "model_type": "dinov2",  # known, but no text model
                "auto_map": {
                    "AutoModelForSequenceClassification": "evil.Evil",
                    "AutoModelForCausalLM": "evil.Evil",
                },
            },
        ),
        (
            "tokenizer_config",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        ),
    ],
    ids=["config", "model", "tokenizer"],
)
def test_code_of_a_model_is_named_and_not_run(copy, tmp_path, command, file, fields):
    model, ran = copy(**{file: fields}), tmp_path / "ran"
    (model / "evil.py").write_text(EVIL.format(ran=str(ran)))
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    name = f"local/{model}" if command[0] == "simulate" else str(model)
    first = lines(PROMPT) if command[0] == "simulate" else b""
    done = music(*arguments, name, given=first + b"y\ny\n1\n")
    assert not ran.exists()
    assert done.status == 2 and len(done.lines) == 1
    assert f"its {file}.json names code of its own (evil.py); music never runs it" in done.err


def test_a_model_that_transformers_has_built_in_is_scored_without_its_code(copy, tmp_path):
    model, ran = copy(config={"auto_map": {"AutoConfig": "evil.Evil"}}), tmp_path / "ran"
    (model / "evil.py").write_text(EVIL.format(ran=str(ran)))
    done = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    assert not ran.exists() and done.status == 0 and done.records[0]["scores"]
    assert "its config.json names code of its own (evil.py); music never runs it" in done.err


@pytest.mark.parametrize(
    "auto_map", [7, "evil", [["evil.Evil"]], {"AutoConfig": None}, {"AutoConfig": [[["x"]]]}]
)
def test_a_malformed_auto_map_is_no_traceback(copy, auto_map):
    done = music(
        "score", "--no-cache", "--model", copy(config={"auto_map": auto_map}), given=lines(RECORD)
    )
    assert done.status in (0, 2) and "fault of ours" not in done.err


def test_an_attention_kernel_from_the_hub_is_refused(copy):
    model = copy(config={"attn_implementation": "somebody/kernel"})
    done = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    assert done.status == 2 and "names an attention kernel from the hub" in done.err


# Damaged and hostile files


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"num_hidden_layers": 10**7}, "asks for 10000000 layers"),
        ({"intermediate_size": 10**7}, "its config.json describes 3,"),
        ({"hidden_size": "wide"}, "cannot be loaded as a reward model"),
        ({"num_attention_heads": 0}, "cannot be loaded as a reward model"),
        ({"architectures": 7}, ""),
        ({"vocab_size": -1}, ""),
        ({"num_labels": "x"}, ""),
        ({"rope_parameters": [[]]}, ""),
        ({"max_position_embeddings": "long"}, ""),
        ({"num_key_value_heads": 3}, ""),
        ({"head_dim": 10**9}, ""),
        ({"pad_token_id": {"a": 1}}, ""),
    ],
)
def test_a_config_that_cannot_be_is_one_line(copy, fields, expected):
    done = music("score", "--no-cache", "--model", copy(config=fields), given=lines(RECORD))
    assert done.status == 2 and "fault of ours" not in done.err
    assert len(done.lines) == 1 and expected in done.err


OF_THE_HUB = """
import json, os, sys
from huggingface_hub import constants
from musiccli.core.errors import InputError
from musiccli.core.pretrained import load_classifier, load_config

constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = os.environ["HF_HUB_CACHE"], True
for name in sys.argv[1:]:
    config = load_config(name)
    config.num_labels = 1
    try:
        load_classifier(name, config)
        print(json.dumps([name, ""]))
    except InputError as error:
        print(json.dumps([name, str(error)]))
"""


@pytest.mark.slow
def test_a_config_of_the_hub_is_compared_with_the_files_there(copy, tmp_path):
    """Repositories as the hub's cache holds them: whole or in parts, and configs of other sizes."""
    whole, parts = copy(), tmp_path / "parts"
    shutil.copytree(whole, parts)
    weights = "model-00001-of-00001.safetensors"
    (parts / "model.safetensors").rename(parts / weights)
    names = list(load_file(parts / weights))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, weights)}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = {}
    for model in (whole, parts):
        for size, fields in (("right", {}), ("wide", {"intermediate_size": 10**7})):
            name = f"{size}-{len(expected)}"
            repository = tmp_path / "hub" / f"models--somebody--{name}"
            (repository / "refs").mkdir(parents=True)
            (repository / "refs" / "main").write_text("0" * 40)
            snapshot = shutil.copytree(model, repository / "snapshots" / ("0" * 40))
            config = json.loads((model / "config.json").read_text()) | fields
            (snapshot / "config.json").write_text(json.dumps(config))
            expected[f"somebody/{name}"] = bool(fields)
    done = subprocess.run(
        [preloaded.python(), "-c", OF_THE_HUB, *expected],
        env=environment(HF_HUB_CACHE=str(tmp_path / "hub")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = dict(map(json.loads, done.stdout.splitlines()))
    assert {name: bool(error) for name, error in errors.items()} == expected
    assert all("its config.json describes" in error for error in errors.values() if error)


# Files in the current folder


@pytest.mark.slow
def test_no_process_imports_from_the_current_folder(reward_model, tmp_path):
    """Neither `python -m musiccli` nor the processes that it starts."""
    ran, folder, said = tmp_path / "ran", tmp_path / "folder", tmp_path / "said"
    folder.mkdir()
    for name in ("orjson", "typer"):
        (folder / f"{name}.py").write_text(EVIL.format(ran=str(ran)))
    write(folder / "in.jsonl", RECORD)
    show = [sys.executable, "-m", "musiccli", "show", "in.jsonl"]
    done = subprocess.run(show, cwd=folder, capture_output=True)
    assert not ran.exists() and done.returncode == 0
    (tmp_path / "sitecustomize.py").write_text(SAYS_PATHS.format(said=str(said)))
    score = ("score", "in.jsonl", "--no-cache", "--num-processes", 2, "--model", reward_model)
    done = subprocess.run(
        [*preloaded.command(), *map(str, score)],
        cwd=folder,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
    )
    assert done.returncode == 0 and json.loads(done.stdout)["scores"]
    paths = list(map(json.loads, said.read_text().splitlines()))
    assert len(paths) == 3
    for safe, *path in paths:
        assert safe and not {"", str(folder)} & set(path)


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("config.json", b"[" * 5000, ""),
        ("tokenizer.json", b"{}", ""),
        ("tokenizer.json", b"\xff", ""),
        ("music.json", b"[]", "is damaged: expected an object"),
        ("music.json", b'{"reward_token": 3}', ""),
        ("model.safetensors", b"\xff" * 8 + b"{}", ""),
        ("model.safetensors", (2**40).to_bytes(8, "little") + b"{}", ""),
        ("model.safetensors", (8).to_bytes(8, "little") + b'{"a":[]}', ""),
    ],
)
def test_a_damaged_file_is_one_line(copy, name, content, expected):
    model = copy()
    (model / name).write_bytes(content)
    done = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    assert done.status == 2 and "fault of ours" not in done.err
    assert len(done.lines) == 1 and expected in done.err


class Pickled:
    def __init__(self, ran: Path):
        self.ran = str(ran)

    def __reduce__(self):
        return open, (self.ran, "w")


def test_a_pickle_that_holds_more_than_tensors_is_named_and_not_run(copy, tmp_path):
    model = copy()
    (model / "model.safetensors").unlink()
    weights = {"score.weight": Pickled(tmp_path / "ran"), "others": torch.zeros(500_000)}
    torch.save(weights, model / "pytorch_model.bin")
    done = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    assert not (tmp_path / "ran").exists() and done.status == 2
    [line] = done.lines
    assert "a pickle that holds more than tensors, which music never unpickles" in line


# Chat templates

# Each with the CPU seconds that it gets: what is cut short by another limit gets many.
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"
DOUBLED = (
    "{% set n = namespace(x='x') %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
SQUARED = (
    "{% set n = namespace(x=3) %}{% for i in range(30) %}{% set n.x = n.x * n.x %}{% endfor %}x"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template, expected",
    [
        ("{# nothing #}", "the chat template refuses it: it writes nothing"),
        ("{{ raise_exception('no') }}", "the chat template refuses it: no"),
        (LOOP, "the chat template takes more than 0.3 seconds"),
        (DOUBLED, "the chat template takes more than 2 GB of memory"),
        # No signal handler of Python interrupts a computation with two numbers.
        ("{{ 10 ** (10 ** 8) }}", "the chat template takes more than 0.3 seconds"),
        (SQUARED, "the chat template takes more than 0.3 seconds"),
        # The compiler computes what is constant, and takes any Exception for "not constant".
        ("{{ (('a' * 2000000) | wordwrap(3)) }}", "the chat template takes more than 0.3 seconds"),
        ("{{ '%9999999d' | format(1) }}", "the chat template writes 9,999,999 characters for"),
        ("{{ 'x' * 99999999999 }}", "the chat template takes more than 2 GB of memory"),
    ],
)
def test_a_template_takes_little_or_is_refused(copy, monkeypatch, template, expected):
    monkeypatch.setattr(template_limits, "SECONDS", 0.3 if "0.3 seconds" in expected else 600)
    model = copy()
    (model / "chat_template.jinja").write_text(template)
    scored = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    chat = ("simulate", "--no-cache", "--turns", 1, "--assistant", f"local/{model}")
    simulated = music(*chat, given=lines(PROMPT))
    for done in (scored, simulated):
        assert done.status and not done.out and "fault of ours" not in done.err
        assert expected.removeprefix("the chat template refuses it: ") in done.err


def test_small_numbers_and_bold_text_are_no_matter(copy):
    model = copy()
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}**{{ m.role }}** {{ '%s%d' % ('-' * 3, loop.index * 2 ** 10 % 7) }}"
        " {{ m.content }}{% endfor %}{{ '\\n' }}"
    )
    done = music("score", "--no-cache", "--model", model, given=lines(RECORD))
    assert done.status == 0, done.err


def short(template: str, tokenizer: Any) -> Any:
    """The tokenizer with another template."""
    tokenizer = copy_of(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(reward_model):
    return load_tokenizer(str(reward_model))


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    "template, expected",
    [(LOOP, "more than 0.3 seconds"), ("{{ 'x' * 99999999999 }}", "more than 2 GB of memory")],
)
def test_a_template_is_bounded_in_every_thread_and_nothing_else_is(
    tokenizer, monkeypatch, template, expected, in_thread
):
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    limits = (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM))
    hostile, errors, seen = short(template, tokenizer), [], []

    def work() -> None:
        with pytest.raises(TemplateLimitError, match=expected) as error:
            apply_chat_template(hostile, RECORD["messages"])
        errors.append(error)

    worker = threading.Thread(target=work)
    if in_thread:
        worker.start()
        while worker.is_alive():  # the limit is no other thread's
            seen.append(resource.getrlimit(resource.RLIMIT_AS))
            worker.join(0.01)
    else:
        work()
    assert len(errors) == 1 and set(seen) <= {limits[0]}
    assert limits == (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM))
    assert "fugue" in apply_chat_template(tokenizer, RECORD["messages"])


def test_an_interrupted_template_leaves_no_reply_to_the_next(tokenizer, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    apply_chat_template(tokenizer, RECORD["messages"])
    monkeypatch.setattr(template_limits, "SECONDS", 600)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            apply_chat_template(short(LOOP, tokenizer), RECORD["messages"])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "fugue" in apply_chat_template(tokenizer, RECORD["messages"])


def test_many_threads_get_their_own_texts(tokenizer):
    def work(number: int) -> bool:
        text = apply_chat_template(tokenizer, talk(f"Number {number}."))
        return f"Number {number}." in text

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "llama"])
def test_a_text_is_what_transformers_makes(family, tmp_path):
    """Also with what the process must pass on as it is: nulls, large numbers, half a surrogate."""
    tokenizer = load_tokenizer(str(backbone(tmp_path, family)))
    messages = [
        {"role": "user", "content": "q \ud800 \u2028 </s>", "name": None},
        {"role": "assistant", "content": "a", "number": 10**40, "reasoning_content": "t"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"é": None}}}]
    for settings in ({}, {"tools": tools}, {"add_generation_prompt": True}):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
        assert apply_chat_template(tokenizer, messages, **settings) == text


def test_the_process_imports_little_and_nothing_from_the_current_folder(tmp_path, monkeypatch):
    for name in ("jinja2", "transformers", "numpy", "logging"):
        (tmp_path / f"{name}.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    monkeypatch.chdir(tmp_path)
    code = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])['_transformers_utilities']().render_jinja_template\n"
        "print([name for name in ('torch', 'httpx', 'huggingface_hub') if name in sys.modules])"
    )
    line = [sys.executable, "-P", "-c", code, template_process.__file__]
    assert subprocess.run(line, capture_output=True).stdout == b"[]\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config, expected",
    [
        (b"[]", "cannot be read: adapter_config.json holds no object"),
        (b"[" * 5000, "cannot be read: "),
        (b"{", "cannot be read: "),
        (b'{"peft_type": "XLORA", "adapters": {"a": "../.."}}', "a XLORA adapter cannot be merged"),
        (b"{}", "a None adapter cannot be merged"),
        (
            b'{"base_model_name_or_path": 7, "peft_type": "LORA", "r": 1}',
            "names no backbone; give it as --model",
        ),
    ],
)
def test_a_damaged_adapter_is_one_line(tmp_path, config, expected):
    save_file(
        {"base_model.model.score.weight": torch.ones(1, 4)}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_bytes(config)
    done = music("merge", tmp_path, "--out", tmp_path / "out")
    [line] = done.lines
    assert done.status == 2 and f"{tmp_path}: {expected}" in line and "fault of ours" not in line
