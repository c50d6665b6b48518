"""The log of a run: one JSON object a step."""

import math
from pathlib import Path

import orjson

from musiccli.core.errors import InputError

NAME = "log.jsonl"


class Log:
    """Steps are added as they are done. Those that will be computed again after a crash are cut off first."""

    def __init__(self, path: Path, start: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            [line for line in path.read_bytes().splitlines() if _step(line) <= start]
            if path.exists()
            else []
        )
        self._path = path
        path.write_bytes(b"".join(line + b"\n" for line in kept))

    def add(self, measured: dict) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(measured, option=orjson.OPT_APPEND_NEWLINE))


def read(path: Path) -> list[dict]:
    """A log's steps. Raises InputError where there is none."""
    try:
        found = [
            orjson.loads(line) for line in path.read_bytes().splitlines() if _step(line) < math.inf
        ]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"{path}: holds no steps of training")
    return found


def _step(line: bytes) -> float:
    try:
        return orjson.loads(line)["step"]
    except (orjson.JSONDecodeError, KeyError, TypeError):  # torn by a crash
        return math.inf


def in_words(measured: dict) -> str:
    """One step's measures in a line for people; those that are broken down by kind come with their counts."""
    words = []
    for name, value in measured.items():
        if isinstance(value, dict):
            words.append(
                f"{name} "
                + " ".join(
                    f"{kind}: {one['accuracy']:.4g} of {one['pairs']}"
                    for kind, one in value.items()
                )
            )
        elif name not in ("epoch", "tokens") and value is not None:
            words.append(f"{name} {value:.4g}")
    return ", ".join(words)
