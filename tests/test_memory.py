"""Memory is bounded by the records in flight, not by the file."""

import json
import subprocess

import pytest
from console import COMMAND
from peak_memory import reporting_peak

SIZE = 4096  # bytes of a record


def padded(record: dict, texts: list[dict]) -> bytes:
    """A record's line, its texts filled up to SIZE bytes."""
    room = SIZE - len(json.dumps(record)) - 1
    for text in texts:
        text["content"] += "so it goes " * (room // len(texts) // 11)
    return json.dumps(record).encode() + b"\n"


def branches(number: int) -> bytes:
    lines = b""
    for name in ("chosen", "rejected"):
        messages = [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"{name}: "},
        ]
        lines += padded(
            {"id": f"record-{number}", "branch": name, "sample": 0, "messages": messages},
            messages[1:],
        )
    return lines


def pair(number: int) -> bytes:
    sides = {
        side: [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"{side}: "},
        ]
        for side in ("chosen", "rejected")
    }
    scores = {"rm": {"chosen": number % 7, "rejected": number % 3}}
    return padded(
        {"id": f"record-{number}", **sides, "scores": scores, "winner": "chosen"},
        [messages[1] for messages in sides.values()],
    )


def peak(words: str, line, count: int, folder) -> int:
    """Peak resident memory in KB of one command over so many lines of input."""
    path = folder / f"{count}.jsonl"
    with open(path, "wb") as file:
        file.writelines(line(number) for number in range(count))
    report = folder / "peak"
    command = reporting_peak(report, [*COMMAND, *words.split(), str(path)])
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    path.unlink()
    return int(report.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, line, few", [("pair", branches, 700), ("bench winrate", pair, 1200)]
)
def test_ten_times_the_records_take_no_more_memory(words, line, few, tmp_path):
    small, large = (peak(words, line, count, tmp_path) for count in (few, 10 * few))
    assert large <= 1.2 * small, (
        f"{small:,} KB for {few:,} and {large:,} KB for {10 * few:,} inputs"
    )
