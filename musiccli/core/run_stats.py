"""What happened in one run: how its records fared, what stopped it early, and what people are told meanwhile."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from musiccli.core.jsonl import Rejects


class Outcome(NamedTuple):
    """What became of a record or a message: `name`, as "dropped", and `reason`, as "same_text", or ""."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        """As people read it: "dropped (same text)"."""
        words = self.name.replace("_", " ")
        if not self.reason:
            return words
        reason = self.reason.replace("_", " ") if self.reason.isidentifier() else self.reason
        return f"{words} ({reason})"


class RunStats:
    """Handed to a stage, which counts into it; read at the end by whoever started the stage.

    Attributes:
        rejects: what becomes of a bad record.
        counts: how often each outcome occurred.
        limits: why the run stopped before its input ended, a sentence each.
    """

    def __init__(
        self, rejects: Rejects | None = None, say: Callable[[str], None] = lambda text: None
    ):
        self.rejects = rejects or Rejects()
        self.counts: Counter[Outcome] = Counter()
        self.limits: list[str] = []
        self._say = say

    def say(self, text: str) -> None:
        """Tell people something, in one line, while the run goes on."""
        self._say(text)

    def count(self, name: str, reason: str = "", number: int = 1) -> None:
        """Count an outcome. Names and reasons are identifiers; a fault's reason is the fault's name."""
        self.counts[Outcome(name, reason)] += number

    def number(self, name: str, reason: str = "") -> int:
        """How often an outcome was counted."""
        return self.counts[Outcome(name, reason)]

    def phrases(self) -> dict[str, int]:
        """Every outcome that occurred, as people read it, in alphabetical order."""
        return {
            str(outcome): count
            for outcome, count in sorted(self.counts.items(), key=lambda item: str(item[0]))
            if count
        }
