"""What happens in one run: counts of outcomes, bad records, limits, and lines for the user."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from musiccli.core.jsonl import Rejects


class Outcome(NamedTuple):
    """What happened to a record or a message: "dropped", for the reason "same_text" or for ""."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        """In words: "dropped (same text)". A reason that is no identifier stays as it is."""
        name, reason = self.name.replace("_", " "), self.reason
        if reason.isidentifier():
            reason = reason.replace("_", " ")
        return f"{name} ({reason})" if reason else name


class RunStats:
    """What a stage counts and says. The caller passes it to the stage, and reads it at the end.

    Attributes:
        rejects: what happens to bad records.
        counts: how often each outcome occurred.
        examples: "file:line" of a record with each outcome, the first where it is known.
        limits: why the run stopped before its input ended, one sentence each.
    """

    def __init__(
        self, rejects: Rejects | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.rejects = rejects or Rejects()
        self.counts: Counter[Outcome] = Counter()
        self.examples: dict[Outcome, str] = {}
        self.limits: list[str] = []
        self._say = say

    def say(self, text: str) -> None:
        """Tell the user something, in one line, while the run goes on."""
        self._say(text)

    def count(self, name: str, reason: str = "", number: int = 1, *, record: object = None) -> None:
        """Count an outcome.

        Args:
            name: an identifier, as "dropped".
            reason: an identifier or the name of something, as a model.
            number: how many records or messages have the outcome.
            record: one of them. Where nothing is written, the last line names it as an example.
        """
        outcome = Outcome(name, reason)
        self.counts[outcome] += number
        where = getattr(record, "where", None)
        if where and number:
            self.examples.setdefault(outcome, where)

    def add(self, more: "RunStats") -> None:
        """Add the counts and examples of a part of the run, for which others were kept."""
        self.counts.update(more.counts)
        self.examples = more.examples | self.examples

    def number(self, name: str, reason: str = "") -> int:
        """How often an outcome was counted."""
        return self.counts[Outcome(name, reason)]

    def phrases(self) -> dict[str, int]:
        """How often each outcome occurred, by its words in alphabetical order. None is zero."""
        return {
            str(outcome): count
            for outcome, count in sorted(self.counts.items(), key=lambda item: str(item[0]))
            if count
        }
