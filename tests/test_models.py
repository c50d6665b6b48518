"""What commands that ask LLMs show of their calls: live on a terminal, and in the last lines; and never a key."""

import os
import pty
import re

import pytest
from openai_server import serve
from scripted import Music, cast, jsonl, wait_until

VLLM = "hosted_vllm/scripted"
SEEDS = jsonl({"id": number, "messages": [{"role": "user", "content": f"Question {number}?"}]} for number in range(40))


@pytest.fixture
def music(tmp_path):
    with Music(tmp_path) as music:
        yield music


def simulate(server, model: str = VLLM, *more: object) -> tuple:
    return ("simulate", "--assistant", model, "--api-base", server.base_url, "--turns", 2, *more)


@pytest.mark.parametrize("model, money", [(VLLM, r"price unknown"), ("openai/gpt-4o", r"\$0\.\d{4}")])
def test_calls_retries_and_money_are_seen_while_they_grow(music, model, money):
    leader, follower = pty.openpty()
    music.environment |= {"COLUMNS": "160", "TERM": "xterm"}
    shown = b""
    with serve(reply=cast, delay=0.03, script=["500"]) as server:
        process = music.start(*simulate(server, model, "--concurrency", 2), stderr=follower)
        os.close(follower)
        process.stdin.write(SEEDS)
        process.stdin.close()

        def calls() -> list[int]:
            nonlocal shown
            shown += os.read(leader, 1 << 16)
            text = shown.decode("utf-8", "replace")
            return [int(found) for found in re.findall(rf"(\d+) calls, 1 retried, {money}", text)]

        wait_until(lambda: len({*calls()}) >= 3)
        seen = calls()
        assert seen == sorted(seen) and max(seen) <= server.calls
        process.kill()
    os.close(leader)
