"""The model card tells of the run, and a stand-in for the hub gets the checkpoint and no more."""

import base64
import hashlib
import json
import re
import shlex
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import transformers
import yaml
from build import read, talk, write
from console import music
from toys import backbone, pairs

from musiccli.reward_model.card import render_card


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command of a run with held-out pairs and a pair that is dropped, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    held_out = write(folder / "held-out.jsonl", *pairs(5, seed=1))
    same = pairs(9)[8]
    given = write(folder / "pairs.jsonl", *pairs(8), same | {"rejected": same["chosen"]})
    line = [
        str(word)
        for word in (
            "train",
            given,
            "--model",
            backbone(folder / "base", num_hidden_layers=1),
            "--batch",
            4,
            "--steps",
            2,
            "--eval",
            held_out,
            "--out",
            folder / "rm",
        )
    ]
    done = music(*line)
    assert done.status == 0, done.err
    return line, folder / "rm"


@pytest.mark.slow
def test_the_card_says_what_the_run_was(run):
    line, out = run
    text = (out / "README.md").read_text()
    header, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "preference", "bradley-terry", "musiccli"],
    }
    for file, count in (("pairs.jsonl", 9), ("held-out.jsonl", 5)):
        digest = hashlib.sha256((out.parent / file).read_bytes()).hexdigest()
        assert f"| {file} | {count} | `{digest}` |" in body
    assert "- 1 pairs dropped (same tokens)\n" in body
    assert shlex.join(["music", *line]) in body
    measured = read(out / "log.jsonl")[-1]
    assert f"| accuracy | {measured['eval_accuracy']:.4g} |" in body
    assert f"| expected calibration error, 10 bins | {measured['eval_ece']:.4g} |" in body
    for turns, one in measured["eval_by_turns"].items():
        assert (
            f"| accuracy, {turns} assistant turns | {one['accuracy']:.4g} of {one['pairs']} |"
            in body
        )
    assert f"| transformers | {transformers.__version__} |" in body and "| batch | 4 |" in body
    assert "the last token that the chat template writes, `'\\n'`." in body


@pytest.mark.slow
def test_the_cards_own_python_gives_the_score(run, tmp_path):
    _, out = run
    given = write(tmp_path / "in.jsonl", {"messages": talk("What is 2 + 2?", "4.")})
    [scored] = music("score", given, "--model", out, "--as", "x").records
    examples = re.findall(r"```python\n(.*?)```", render_card({}, str(out)), re.DOTALL)
    assert len(examples) == 2
    scope: dict = {}
    for example in examples:
        *before, last = example.strip().splitlines()
        exec("\n".join(before), scope)
        assert eval(last, scope) == pytest.approx(scored["scores"]["x"], abs=1e-5)


@pytest.mark.parametrize(
    "base, named",
    [
        ("google/gemma-2-9b-it", True),
        ("local/smollm2", False),
        ("/tmp/x", False),
        ("folder", False),
        ("runs/rm", False),
    ],
)
def test_only_a_model_of_the_hub_is_named_to_the_hub(base, named, tmp_path, monkeypatch):
    (tmp_path / "runs" / "rm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert ("base_model:" in render_card({"base": base})) is named


@pytest.mark.slow
def test_a_pipe_has_no_hash(run, tmp_path):
    line, _ = run
    text = Path(line[1]).read_bytes()
    done = music(
        *("-" if word == line[1] else word for word in line[:-1]), tmp_path / "rm", given=text
    )
    assert done.status == 0, done.err
    assert r"| \<stdin\> | 9 | a pipe |" in (tmp_path / "rm" / "README.md").read_text()


# The hub


class Hub(BaseHTTPRequestHandler):
    """Answers a push as the hub does; every file is small enough to be part of the commit."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"], sent))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(sent)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            if self.server.refuses:
                self.answer({"error": "quota"}, 403)
            else:
                self.answer(
                    {"commitUrl": "https://huggingface.co/me/rm/commit/1", "commitOid": "1"}
                )
        elif self.path == "/api/repos/create":
            self.answer({"url": "https://huggingface.co/me/rm", "name": "me/rm"})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.answer({"id": "me/rm", "siblings": [], "private": True, "sha": "0"})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def hub(refuses=False):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.refuses = [], refuses
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def push(monkeypatch, tmp_path):
    """Runs the same command again and pushes; the hub's client has read its settings at import."""

    def run(line, address="http://127.0.0.1:9", token="hf_secret"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return music(*line, "--push-to-hub", "me/rm")

    return run


@pytest.mark.slow
def test_a_finished_run_is_pushed_without_training_again(run, push):
    line, out = run
    (out / "trackers").mkdir(exist_ok=True)
    (out / "trackers" / "events").write_text("private")
    with hub() as server:
        done = push(line, f"http://127.0.0.1:{server.server_port}")
    assert done.status == 0, done.err
    assert done.lines[-1] == "music train: pushed to https://huggingface.co/me/rm/commit/1"
    path, token, sent = server.asked[0]
    assert (path, token) == ("/api/repos/create", "Bearer hf_secret")
    assert json.loads(sent).items() >= {"visibility": "private", "name": "rm"}.items()
    [commit] = [sent for path, _, sent in server.asked if path.endswith("/commit/main")]
    found = [json.loads(line)["value"] for line in commit.splitlines()]
    files = {one["path"]: base64.b64decode(one["content"]) for one in found if "path" in one}
    assert files == {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    assert {"README.md", "model.safetensors", "log.jsonl", "music.json"} <= set(files)


@pytest.mark.slow
def test_a_push_that_fails_leaves_the_model_and_says_how_to_go_on(run, push):
    line, out = run
    with hub(refuses=True) as server:
        done = push(line, f"http://127.0.0.1:{server.server_port}")
    assert done.status == 2
    last = done.lines[-1]
    assert last.startswith(
        f"music train: error: {out} holds the whole reward model, but it is not on the hub: "
    )
    assert last.endswith("; the same line again pushes it")


@pytest.mark.slow
@pytest.mark.parametrize(
    "token, says",
    [
        (None, "--push-to-hub me/rm: nobody is logged in; run `hf auth login`, or set HF_TOKEN"),
        ("hf_secret", "--push-to-hub me/rm: [Errno 111] Connection refused"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_known_before_anything_else(
    run, push, tmp_path, token, says
):
    line, _ = run
    done = push([*line[:-1], str(tmp_path / "rm")], token=token)
    assert (done.status, done.lines) == (2, [f"music train: error: {says}"])
    assert not (tmp_path / "rm").exists()
