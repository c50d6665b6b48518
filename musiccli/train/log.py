"""The log of a run, log.jsonl: one JSON object for each step."""

import math
from pathlib import Path

import orjson

from musiccli.core.errors import InputError
from musiccli.train.metrics import Metrics

LOG_FILE = "log.jsonl"


class TrainingLog:
    """Adds each step to the log when it is done.

    Steps after `start` are cut off first: a run that crashed computes them again.
    """

    def __init__(self, path: Path, start: int):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines() if path.exists() else []
        path.write_bytes(b"".join(line + b"\n" for line in lines if _step(line) <= start))

    def add(self, metrics: Metrics) -> None:
        """Append one step's metrics."""
        with self._path.open("ab") as file:
            file.write(orjson.dumps(metrics, option=orjson.OPT_APPEND_NEWLINE))


def read_log(path: Path) -> list[Metrics]:
    """The steps in a log. Raises InputError where there are none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    steps = [orjson.loads(line) for line in lines if _step(line) < math.inf]
    if not steps:
        raise InputError(f"{path}: holds no steps of training")
    return steps


def describe_metrics(metrics: Metrics) -> str:
    """One step's metrics in a line for people; grouped metrics show each group's accuracy."""
    words = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            accuracies = [
                f"{group}: {result['accuracy']:.4g} of {result['pairs']}"
                for group, result in value.items()
            ]
            words.append(" ".join([name, *accuracies]))
        elif name not in ("epoch", "tokens") and value is not None:
            words.append(f"{name} {value:.4g}")
    return ", ".join(words)


def _step(line: bytes) -> float:
    """The step of one line; infinity for a line that a crash has cut short."""
    try:
        step: int = orjson.loads(line)["step"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return math.inf
    return step
