"""Without the hub: what is in its cache is used at once, and what is not is refused at once.

The hub is an address of this machine, where nobody listens, or a server that has no model.
"""

import http.server
import os
import shutil
import subprocess
import threading

import pytest
from build import scored_pair, write
from console import COMMAND

NOBODY = "http://127.0.0.1:9"  # the port of "discard", which nobody serves today
UNREACHABLE = f"{NOBODY} cannot be reached (Connection refused)"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", scored_pair(0, 1, 0))
    return tmp_path


def run(*arguments, hub=NOBODY, **variables):
    """A run in a new process, whose libraries take the hub to be at that address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=inherited | {"HF_ENDPOINT": hub, "HF_HOME": "hub"} | variables,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("model", ["nosuch", "no/such"])
def test_a_model_that_is_neither_here_nor_on_a_hub_that_answers_is_refused(folder, model):
    status, [line] = run("score", "in.jsonl", "--model", model)
    assert (status, line) == (
        2,
        f"music score: error: {model}: no such folder, not in the hub's cache here, and "
        f"{UNREACHABLE}",
    )


def test_a_user_who_wants_no_hub_is_not_made_to_wait_for_it(folder):
    status, [line] = run("serve", "--model", "x=no/such", HF_HUB_OFFLINE="1")
    assert status == 2 and line.endswith("cannot be reached (HF_HUB_OFFLINE is set)")


@pytest.mark.slow
def test_a_dataset_on_a_hub_that_cannot_be_reached_is_refused_without_retries(folder):
    status, lines = run("sample", "no/such")
    assert (status, len(lines)) == (2, 2)
    assert lines[1].startswith(
        f"music sample: error: no/such: no such file here, and {UNREACHABLE}"
    )


@pytest.mark.slow
def test_a_model_in_the_cache_is_loaded_without_the_hub(folder):
    from toys import backbone

    from musiccli.reward_model import checkpoint

    checkpoint.save(checkpoint.create(str(backbone(folder / "base"))), folder / "rm")
    cached = folder / "hub" / "hub" / "models--some--rm"
    shutil.copytree(folder / "rm", cached / "snapshots" / "0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    status, lines = run("score", "in.jsonl", "--model", "some/rm", "--no-cache")
    assert status == 0, lines
    assert lines[0] == f"music score: {UNREACHABLE}; loading some/rm from its cache here"


class NoModels(http.server.BaseHTTPRequestHandler):
    """A hub that answers, and has nothing."""

    def do_HEAD(self):
        self.send_response(200 if self.path == "/" else 404)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_hub_that_answers_is_asked_for_the_model(folder):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoModels) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, lines = run(
            "score", "in.jsonl", "--model", "no/such", hub=f"http://127.0.0.1:{server.server_port}"
        )
        server.shutdown()
    assert status == 2 and "loading no/such from the Hugging Face hub" in lines[0]
    assert lines[1].startswith("music score: error: no/such: cannot be loaded as a reward model: ")
