"""Calls in flight are open files: where a process may open few, it makes fewer calls at once, and says so."""

import subprocess
import sys

import pytest
from openai_server import serve

FLOOD = """
import asyncio, resource, sys
from musiccli.core.run_stats import RunStats
from musiccli.llm import limiter, open_files
from musiccli.llm.call import Call, Reply
from musiccli.llm.client import Client
from musiccli.llm.config import ClientConfig

url, files, reserved = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))
open_files.RESERVED_FILES = reserved
limiter.INITIAL_LIMIT = 200
client = Client(ClientConfig(concurrency=200, api_base=(url,), attempts=20), None, RunStats(say=print))
question = ({"role": "user", "content": "What is a fugue in music?"},)
calls = [Call("hosted_vllm/m", (n, "assistant", 0), question) for n in range(400)]

async def run():
    return await asyncio.gather(*map(client.complete, calls), return_exceptions=True)

print(sum(isinstance(result, Reply) for result in asyncio.run(run())))
"""


def flood(server, files: int, reserved: int) -> list[str]:
    """What a process says that makes 400 calls, 200 at once, and how many came through."""
    command = [sys.executable, "-c", FLOOD, server.base_url, str(files), str(reserved)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_where_fewer_files_may_be_opened_fewer_calls_are_in_flight_and_one_line_says_so():
    with serve(delay=0.05, model="m") as server:
        lines = flood(server, files=120, reserved=64)
        assert server.peak == 56
    assert lines == [
        "hosted_vllm/m: `concurrency` 200 is more than the 120 files that this process may open "
        "(ulimit -Hn), less 64 for itself; at most 56 calls are in flight",
        "400",
    ]


@pytest.mark.slow
def test_where_the_files_run_out_all_the_same_the_calls_slow_down_and_none_fails():
    with serve(delay=0.05, model="m") as server:
        lines = flood(server, files=120, reserved=0)
    assert (
        lines.count(
            "open files: this process may open no more (ulimit -n); fewer calls are in flight from here on"
        )
        == 1
    ), lines
    assert lines[-1] == "400", lines
