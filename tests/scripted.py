"""What the tests of LLM stages share: a model for the loopback server, runs of `music`, no network.

The scripted model tells from the prompt which role it plays. Each reply follows from the whole
request, with its seed: other requests get other replies, a repeated request gets the same one.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from console import hear, wait_until
from openai_server import Server

from musiccli.llm import limiter

MUSIC = [sys.executable, "-m", "musiccli"]
WORDS = """
anchor apple basket beach bottle branch bridge candle carpet castle cellar chain cloud copper corner
cotton desert dinner engine falcon feather fence field finger flower forest garden glass hammer
harbor island jacket kettle kitchen ladder lantern lemon letter marble meadow mirror morning
mountain needle ocean orchard paper pencil pepper planet pocket rabbit ribbon river saddle shadow
silver spoon stable station summer table temple thunder timber tunnel valley velvet village violin
wagon walnut water window winter
""".split()  # noqa: SIM905
ROLE_MARKS = {  # what only the prompt of a role says
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
    """The role that a request is for, at the first attempt or a retry."""
    text = "".join(message["content"] for message in body["messages"])
    return next((name for mark, name in ROLE_MARKS.items() if mark in text), "assistant")


def words(body: dict, count: int = 8) -> str:
    """A sentence of this many words that follows from the request."""
    chosen = random.Random(json.dumps(body, sort_keys=True)).choices(WORDS, k=count)
    return " ".join(chosen).capitalize() + "."


def scripted_reply(body: dict) -> str:
    """A reply in the form that the role's prompt asks for."""
    if role(body) == "contrast":
        instruction, reply = f"Rewritten: {words(body)}", f"Contrasted: {words(body, 9)}"
        return f"<instruction>{instruction}</instruction>\n<reply>{reply}</reply>"
    if role(body) == "judge":
        return "Explained.\n[[A]]"
    return f"{role(body).capitalize()} says: {words(body)}"


def roles(server: Server) -> Counter:
    """How many requests the server got for each role."""
    return Counter(role(body) for body in list(server.requests))


def no_network(monkeypatch) -> None:
    """Let the names of other hosts fail to resolve."""
    real = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        assert host in ("127.0.0.1", b"127.0.0.1", "localhost"), f"a network attempt: {host}"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def call_at_once(monkeypatch) -> None:
    """No other network, a key, and no waiting between attempts."""
    no_network(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setattr(limiter, "backoff", lambda *_: 0.0)


class Music:
    """Runs `music` in processes, each begun by `command`, with its cache in `folder`.

    `network` holds the hosts that were looked up. As a context manager it kills every process that
    is still running at the end.
    """

    def __init__(self, folder: Path, command: Sequence[str] = MUSIC):
        self.folder, self._log = folder, folder / "network.log"
        self._command = command
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
        command = [*self._command, *map(str, arguments)]
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
        """A run that gets Ctrl-C when `when()` is true, and again where it waits for calls.

        Its input stays open.
        """
        process = self.start(*arguments)
        if stdin is not None:
            process.stdin.write(stdin)
        process.stdin.flush()
        wait_until(when)
        process.send_signal(signal.SIGINT)
        err = ""
        for line in process.stderr:
            err += line
            if "Ctrl-C or SIGTERM now ends the run at once" in line:
                process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        out = process.stdout.read()
        process.stdin.close()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def jsonl(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
