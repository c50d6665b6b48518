"""What can go wrong, as exceptions. The command line shows each as one line, and exits with 2.

MusicError            the message is for the user
├── InputError        an input, an option or a model that cannot be used
├── RecordError       one bad record; a run may skip it and count it
└── CallError         an LLM did not answer one call, after all retries; its record counts as bad
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ends."""

    DONE = 0
    PARTIAL = 1  # done, but some records failed or a limit stopped the run
    USAGE = 2  # wrong usage, or input that cannot be read
    INTERRUPTED = 130


class MusicError(Exception):
    """Base of all errors whose message is for the user: one line, what is wrong and what to do."""


class InputError(MusicError):
    """An input, an option or a model that cannot be used."""


class RecordError(MusicError):
    """One record that cannot be used.

    Attributes:
        problem: what is wrong.
        field: the name of the wrong field; None where the problem is not in one field.
        where: "file:line" of the record, if it was read from a file.
        record: the record, or the text of a line that holds no record.
    """

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        where: str | None = None,
        record: object = None,
    ) -> None:
        self.problem, self.field, self.record = problem, field, record
        self.where: str | None = where or getattr(record, "where", None)
        super().__init__(problem)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.field, self.problem) if part)


class CallError(MusicError):
    """An LLM did not give a usable answer to one call, after all retries."""


def shortened(value: object) -> str:
    """A value for an error message: quoted, on one line, at most 60 characters of it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def kind_of(value: object) -> str:
    """The kind of a JSON value, in words for an error message."""
    names: dict[type, str] = {
        str: "a string",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        type(None): "null",
    }
    return "an empty string" if value == "" else names.get(type(value), "a number")
