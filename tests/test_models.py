"""What commands show of their LLM calls, on a terminal and at the end. Keys are never shown."""

import os
import pty
import re

import pytest
from openai_server import serve
from scripted import jsonl, scripted_reply, wait_until

VLLM = "hosted_vllm/scripted"
SEEDS = jsonl(
    {"id": number, "messages": [{"role": "user", "content": f"Question {number}?"}]}
    for number in range(40)
)


def simulate(server, model: str = VLLM, *more: object) -> tuple:
    return ("simulate", "--assistant", model, "--api-base", server.base_url, "--turns", 2, *more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, money", [(VLLM, r"price unknown"), ("openai/gpt-4o", r"\$0\.\d{4}")]
)
def test_calls_retries_and_money_are_seen_while_they_grow(music, model, money):
    leader, follower = pty.openpty()
    music.environment |= {"COLUMNS": "160", "TERM": "xterm"}
    shown = b""
    with serve(reply=scripted_reply, delay=0.03, script=["500"]) as server:
        process = music.start(*simulate(server, model, "--concurrency", 2), stderr=follower)
        os.close(follower)
        process.stdin.write(SEEDS)
        process.stdin.close()

        def calls() -> list[int]:
            nonlocal shown
            shown += os.read(leader, 1 << 16)
            text = shown.decode("utf-8", "replace")
            return [int(number) for number in re.findall(rf"(\d+) calls, 1 retried, {money}", text)]

        wait_until(lambda: len({*calls()}) >= 3)
        seen = calls()
        assert seen == sorted(seen) and max(seen) <= server.calls
        process.kill()
    os.close(leader)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, debug",
    [
        (VLLM, ()),
        (VLLM, ("--debug",)),
        ("openai/gpt-4o", ()),
        ("deepseek/deepseek-chat", ("--debug",)),
    ],
)
def test_keys_stand_nowhere(music, tmp_path, model, debug):
    key = "open-sesame.9876543210"
    music.environment |= {
        name: key for name in ("OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "DEEPSEEK_API_KEY")
    }

    def indiscreet(body: dict) -> str:
        return (
            f"{scripted_reply(body)} By the way, your key is {key}."
            if len(body["messages"]) > 1
            else scripted_reply(body)
        )

    with serve(reply=indiscreet, faults={"echo-key": 0.05}, script=[None] * 5) as server:
        run = (
            "simulate",
            "--assistant",
            model,
            "--api-base",
            f"{model}={server.base_url}",
            "--turns",
            2,
            "--on-error",
            "skip",
        )
        done = music(*run, "--rejects", tmp_path / "rejects", *debug, stdin=SEEDS)
        asked = list(server.headers)
        server.faults = {"echo-key": 1}
        failed = music(*run, "--no-cache", "--rejects", tmp_path / "more", *debug, stdin=SEEDS)
    assert {headers["Authorization"] for headers in asked} == {f"Bearer {key}"}
    assert done.returncode in (0, 1) and "By the way, your key is [key]." in done.stdout
    assert failed.returncode == (1 if debug else 2) and "[key]" in failed.stderr
    outputs = [text.encode() for run in (done, failed) for text in (run.stdout, run.stderr)]
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 3 and not any(key.encode() in text for text in (*outputs, *files))
