"""What can go wrong, as plain exceptions. The command line turns each into one line and an exit status.

MusicError            anything that a person can mend; exit status 2
├── InputError        an input, option or model that cannot be used at all
├── RecordError       one bad record; `--on-error skip` steps over it and counts it
└── CallError         an LLM did not answer one call, after every retry; counts against its record
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    DONE = 0
    PARTIAL = 1  # done, but some records failed or a limit stopped the run
    USAGE = 2  # wrong usage, or input that cannot be read
    INTERRUPTED = 130


class MusicError(Exception):
    """Base of all errors whose message is meant for a person: one line, what is wrong and what to do."""


class InputError(MusicError):
    """An input, option or model that cannot be used at all."""


class RecordError(MusicError):
    """One record that cannot be used. `where` is "file:line" when the record was read from a file."""

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        where: str | None = None,
        record: object = None,
    ):
        self.problem, self.field, self.record = problem, field, record
        self.where = where or getattr(record, "where", None)
        super().__init__(problem)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.problem) if part)


class CallError(MusicError):
    """An LLM did not give a usable answer to one call, after every retry."""
