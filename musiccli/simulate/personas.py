"""Personas of simulated users: who somebody is, wants and knows, and what satisfies them."""

from dataclasses import dataclass
from random import Random
from typing import Any

from musiccli.core import jsonl
from musiccli.core.errors import RecordError, kind_of
from musiccli.core.records import Record, parse_conversation

FIELD = "user_persona"  # of a record: datasets name the assistant's `persona`
FIELDS = ("who", "goal", "knows", "satisfied")


@dataclass(frozen=True)
class Persona:
    """Whom a simulated user plays; an empty text stands for what is not told.

    Attributes:
        who: a description of the person.
        goal: what the person wants from the assistant.
        knows: what the person knows, and may tell.
        satisfied: when the person has what they came for.
    """

    who: str = ""
    goal: str = ""
    knows: str = ""
    satisfied: str = ""

    @property
    def has_end(self) -> bool:
        """Whether the person can tell when the conversation has given them what they want."""
        return bool(self.goal or self.satisfied)

    @property
    def record(self) -> dict[str, str]:
        """The persona as records hold it, without empty fields."""
        return {name: text for name, text in vars(self).items() if text}


def parse_seed(record: Record) -> Record:
    """Check a conversation to continue, and its FIELD where it has one."""
    parse_conversation(record)
    if FIELD in record:
        parse_persona(record[FIELD], record, f"{FIELD}.")
    return record


def parse_persona(value: object, record: Record, prefix: str = "") -> Persona:
    """The persona that a value describes: an object with some of FIELDS, or a text for `who`.

    Args:
        value: the object or the text.
        record: the record that it stands in, for errors.
        prefix: what stands before the name of a field in errors.

    Raises:
        RecordError: it is neither, a field is no text, or it has none of FIELDS.
    """
    fields: dict[str, Any] | None = {"who": value} if isinstance(value, str) else None
    if isinstance(value, dict):
        fields = {name: value[name] for name in FIELDS if value.get(name) is not None}
    expected = f"an object with some of {', '.join(FIELDS)}"
    if not fields:
        problem = f"is {kind_of(value)}; it should be {expected}"
        if isinstance(value, dict):
            problem = f"has no {' and no '.join(FIELDS)}; it should be {expected}"
        raise RecordError(problem, field=prefix.rstrip(".") or None, record=record)
    for name, text in fields.items():
        if not isinstance(text, str) or not text.strip():
            problem = f"is {kind_of(text)}; it should be a text"
            raise RecordError(problem, field=prefix + name, record=record)
    return Persona(**{name: text.strip() for name, text in fields.items()})


class Personas:
    """The personas of a file: those of seeds with an `id`, and those for all other seeds.

    Raises:
        InputError: the file cannot be read.
        RecordError: a line is no persona, or has the id of an earlier one.
    """

    def __init__(self, path: str | None, seed: int):
        self._seed = seed
        self._by_id: dict[Any, Persona] = {}
        self._for_all: list[Persona] = []
        lines = jsonl.read([path], _check_line, unique=False) if path else ()
        for line in lines:
            persona = parse_persona(line, line)
            if line.get("id") in self._by_id:
                raise RecordError("names an earlier persona, too", field="id", record=line)
            if "id" in line:
                self._by_id[line["id"]] = persona
            else:
                self._for_all.append(persona)

    def of(self, seed: Record, sample: int) -> Persona | None:
        """The persona of the user in one conversation, or None.

        That is the seed's own, else the file's for the seed's id, else one that is drawn from the
        file's lines without an id.
        """
        if FIELD in seed:
            return parse_persona(seed[FIELD], seed, f"{FIELD}.")
        if seed["id"] in self._by_id:
            return self._by_id[seed["id"]]
        rng = Random(f"{self._seed} {seed['id']} {sample} persona")
        return rng.choice(self._for_all) if self._for_all else None


def _check_line(record: Record) -> Record:
    parse_persona(dict(record), record)
    return record
