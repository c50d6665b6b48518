"""Connections are open files: a server raises its limit, and goes on where that does not suffice."""

import contextlib
import re
import signal
import socket
import subprocess
import urllib.request

import preloaded
import pytest

SERVER = """
import asyncio, resource, sys
from musiccli.core.progress import say
from musiccli.serve.config import ServeConfig
from musiccli.serve.server import RewardServer, run

asyncio.constants.ACCEPT_RETRY_DELAY = 0.05  # so that it falls due while the server stops
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))
asyncio.run(run(RewardServer([], ServeConfig(port=0), say=say), say))
"""


def lines_of(soft: int, hard: int, when: str = "") -> list[str]:
    """What a server says that may open so many files, while 200 connections are held.

    Its health is asked for beside them, or after they have closed where `when` is "closed". It is
    stopped then, or while they are held where `when` is "held".
    """
    command = [preloaded.python(), "-c", SERVER, str(soft), str(hard)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = [process.stderr.readline()]
    host, port = re.search(r"http://([^:]+):(\d+)", lines[0]).groups()

    def is_well() -> bool:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=100) as reply:
            return reply.status == 200

    with contextlib.ExitStack() as stack:
        for _ in range(200):
            held = socket.create_connection((host, int(port)), timeout=100)
            stack.enter_context(held)
        if when:
            lines.append(process.stderr.readline())
        else:
            assert is_well()
        if when == "held":
            process.send_signal(signal.SIGTERM)
            lines += process.stderr.readlines()
    if when == "closed":
        assert is_well() and is_well()
    process.send_signal(signal.SIGTERM)
    lines += process.stderr.readlines()
    assert process.wait() == 0
    return [re.sub(r"(\d+\.){3}\d+:\d+", "HOST", line) for line in lines]


@pytest.mark.slow
def test_a_server_opens_more_files_than_the_limit_that_it_starts_with():
    lines = lines_of(64, 1000)
    assert lines == ["ready at http://HOST: \n", "finishing the requests that have come\n"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["closed", "held"])
def test_where_the_files_run_out_one_line_says_so_and_it_goes_on_or_stops(when):
    lines = lines_of(64, 64, when)
    assert lines == [
        "ready at http://HOST: \n",
        "new connections wait: Too many open files (ulimit -n)\n",
        "finishing the requests that have come\n",
    ]
