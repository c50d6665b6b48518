"""What the tests of LLM stages share: a cast for the loopback server, a run of `music`, and no other network.

The cast knows by the prompt who is asked. Every reply is new text that follows from the whole request, its seed
included, so no two calls get the same and a repeated call gets what it got before.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from console import hear, wait_until
from openai_server import Server

MUSIC = [sys.executable, "-m", "musiccli"]
WORDS = Path(__file__).read_text("utf-8").split()  # any words do
WORDS = sorted({word.lower() for word in WORDS if word.isalpha() and len(word) > 3})
MARKS = {
    "You write the next message of the user": "user",
    "Write exactly this and nothing else": "contrast",
    "Write only the rewritten instruction.": "rewrite",
    "You compare two conversations": "judge",
    "Write only the review.": "reviewer",
    "You turn a review into the next message": "chairman",
}
GUARD = """
import os, socket
_real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host in ("127.0.0.1", b"127.0.0.1", "localhost"):
        return _real(host, *args, **kwargs)
    open(os.environ["NETWORK_LOG"], "a").write(f"{host}\\n")
    raise socket.gaierror(-2, "no network in tests")
socket.getaddrinfo = getaddrinfo
"""


def role(body: dict) -> str:
    """Who is asked, for the first time or again: one of MARKS, or else the assistant."""
    asked = "".join(message["content"] for message in body["messages"])
    return next((name for mark, name in MARKS.items() if mark in asked), "assistant")


def words(body: dict, count: int = 8) -> str:
    chosen = random.Random(json.dumps(body, sort_keys=True)).choices(WORDS, k=count)
    return " ".join(chosen).capitalize() + "."


def cast(body: dict) -> str:
    """A reply in the form that the one who is asked should give it."""
    if role(body) == "contrast":
        return f"<instruction>Rewritten: {words(body)}</instruction>\n<reply>Contrasted: {words(body, 9)}</reply>"
    if role(body) == "judge":
        return "Explained.\n[[A]]"
    return f"{role(body).capitalize()} says: {words(body)}"


def roles(server: Server) -> Counter:
    return Counter(role(body) for body in list(server.requests))


def no_network(monkeypatch) -> None:
    """Names of other hosts than this one do not resolve."""
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        assert host in ("127.0.0.1", b"127.0.0.1", "localhost"), f"a network attempt: {host}"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


class Music:
    """Runs `music` as a person does, with a cache of its own; `network` is what it looked up elsewhere.

    As a context manager it leaves no process behind, whatever a test found.
    """

    def __init__(self, folder: Path):
        self.folder, self._log = folder, folder / "network.log"
        self._started: list[subprocess.Popen] = []
        (folder / "guard").mkdir()
        (folder / "guard" / "sitecustomize.py").write_text(GUARD)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")
        } | {
            "MUSIC_CACHE": str(folder / "cache"),
            "OPENAI_API_KEY": "sk-test-0123456789",
            "NETWORK_LOG": str(self._log),
            "PYTHONPATH": str(folder / "guard"),
            "COLUMNS": "200",
        }

    def __enter__(self) -> "Music":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    @property
    def network(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self, *arguments: object, **settings) -> subprocess.Popen:
        streams = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "preexec_fn": hear,
        }
        command = [*MUSIC, *map(str, arguments)]
        self._started.append(
            subprocess.Popen(command, env=self.environment, text=True, **streams | settings)
        )
        return self._started[-1]

    def __call__(
        self, *arguments: object, stdin: str = "", timeout: float = 300
    ) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        out, err = process.communicate(stdin, timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def interrupted(
        self, *arguments: object, when, stdin: str | None = None
    ) -> subprocess.CompletedProcess:
        """Ctrl-C as soon as `when()` is true; without `stdin` the input stays open, and nothing comes."""
        process = self.start(*arguments)
        if stdin is not None:
            process.stdin.write(stdin)
        process.stdin.flush()
        wait_until(when)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        out, err = process.stdout.read(), process.stderr.read()
        process.stdin.close()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def jsonl(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def talk(*contents: str) -> list[dict]:
    """Messages: user, assistant, user, ..."""
    return [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]
