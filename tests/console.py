"""Run `music` in tests: in this process, which takes milliseconds, or as a process of its own.

Nothing here counts on a quick machine: `wait_until` waits for a condition, not for a time.
"""

import array
import contextlib
import fcntl
import gc
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import psutil
import typer

from musiccli.cli.main import main

gc.enable()  # the command line switches it off while it starts
typer.main.get_command = cache(typer.main.get_command)  # two thirds of a short run make it anew
COMMAND = [sys.executable, "-c", "from musiccli.cli.main import main; main()"]


@dataclass
class Done:
    """How a run ended, and what it wrote."""

    status: int
    out: bytes
    err: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def music(*arguments: object, given: bytes = b"", stdout: io.RawIOBase | None = None) -> Done:
    """Run one command line in this process, with `given` on its standard input."""
    raw, err = io.BytesIO(), io.StringIO()
    kept = sys.argv, sys.stdin, signal.getsignal(signal.SIGTERM)
    sys.argv, sys.stdin = ["music", *map(str, arguments)], io.TextIOWrapper(io.BytesIO(given))
    out = io.TextIOWrapper(stdout or raw)
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.argv, sys.stdin = kept[:2]
        signal.signal(signal.SIGTERM, kept[2])
    if stdout is None:
        out.flush()
    return Done(status, raw.getvalue(), err.getvalue())


def start(*arguments: object, command: Sequence[str] = COMMAND, **settings) -> subprocess.Popen:
    """`music` as a process of its own, its three streams piped; it hears Ctrl-C, also where these tests are a
    background job, which is deaf to that. `command` starts it: a new interpreter, or `preloaded.command()`."""
    given = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "preexec_fn": hear,
    }
    return subprocess.Popen([*command, *map(str, arguments)], **given | settings)


def torchrun(
    ranks: int, script: object, *arguments: object, **changes: str
) -> subprocess.CompletedProcess:
    """A program in several processes that torchrun starts, with changes to their environment."""
    import preloaded

    line = ("-m", "torch.distributed.run", "--nproc-per-node", ranks, script, *arguments)
    return subprocess.run(
        [*map(str, (preloaded.python(), *line))],
        capture_output=True,
        text=True,
        env=environment(PYTHON_EXEC=preloaded.python(), **changes),
    )


def hear() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], object], seconds: float = 400) -> None:
    """Return once `condition` holds; fail after a time that only a run that hangs reaches."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_until_reading(process: subprocess.Popen, program: int | None = None) -> None:
    """Return once `process` has read a first byte of its standard input and sleeps, awaiting more.

    The byte opens a JSON object that never ends, so no record is processed. `program` is the number
    of the process that reads where `process` only started it, as a preloaded one.
    """
    process.stdin.write("{" if isinstance(process.stdin, io.TextIOBase) else b"{")
    process.stdin.flush()
    unread, reading = array.array("i", [1]), psutil.Process(program or process.pid)

    def waits() -> bool:
        assert process.poll() is None, "it ended before it read its input"
        fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
        return unread[0] == 0 and reading.status() == psutil.STATUS_SLEEPING

    wait_until(waits)


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with changes; None takes a variable away."""
    return {name: value for name, value in (os.environ | changes).items() if value is not None}
