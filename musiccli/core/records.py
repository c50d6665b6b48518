"""What a line of JSONL means: messages, conversations, preferences, comparisons, and how each is checked.

Every `parse` function here takes a Record, checks the fields it knows, leaves all others alone, and returns the
record or raises RecordError naming the field. Nothing is renumbered: `id` is the join key of the whole pipeline.
"""

from collections.abc import Sequence

from musiccli.core.errors import RecordError

Message = dict  # {"role": "system" | "user" | "assistant", "content": str}
ROLES = ("system", "user", "assistant")
BRANCHES = ("chosen", "rejected")
IDENTITY = ("id", "branch", "sample", "best_of")  # what tells two records of one file apart


class Record(dict):
    """A JSON object that remembers where it was read: `where` is "file:line"."""

    __slots__ = ("where",)

    def __init__(self, fields: dict, where: str | None = None):
        super().__init__(fields)
        self.where = where


def messages(record: dict, field: str, *, ends: str | None = None) -> list[Message]:
    """The messages in `record[field]`: at most one system first, then user and assistant in turn, none empty."""

    def bad(problem: str, index: int | None = None) -> RecordError:
        return RecordError(
            problem, field=field if index is None else f"{field}[{index}]", record=record
        )

    value = record.get(field)
    if value is None:
        raise bad("is missing; it should be a list of messages")
    if not isinstance(value, list):
        raise bad(f"is {_kind(value)}; it should be a list of messages")
    if not value:
        raise bad("is an empty list; a conversation needs at least one message")
    expected = "user"
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise bad(f'is {_kind(message)}; a message is {{"role": ..., "content": ...}}', index)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise bad(f"role is {short(role)}; it should be one of {', '.join(ROLES)}", index)
        if not isinstance(content, str):
            raise bad(f"content is {_kind(content)}; it should be a string", index)
        if not content.strip():
            raise bad(f"content of this {role} message is empty", index)
        if role == "system" and index == 0:
            continue
        if role != expected:
            raise bad(
                f"role is {role} where {expected} should speak; roles alternate, user first", index
            )
        expected = "assistant" if role == "user" else "user"
    last = value[-1]["role"]
    if last == "system":
        raise bad("holds only a system message; a conversation needs a user message")
    if ends and last != ends:
        raise bad(f"ends with the {last}; it should end with the {ends}")
    return value


def conversation(record: Record) -> Record:
    """A conversation: {"id", "messages", "metadata"}."""
    messages(record, "messages")
    return _identified(record, "messages")


def branch(record: Record) -> Record:
    """One branch of a simulated conversation, as simulate writes it: `branch`, `sample`, `seed_messages`, `contrast`,
    `faults`, `truncated`. Of the last three null means absent: tables write it into every row."""
    conversation(record)
    if record.setdefault("branch", "chosen") not in BRANCHES:
        raise RecordError(
            f"is {short(record['branch'])}; it should be chosen or rejected",
            field="branch",
            record=record,
        )
    record["sample"] = _integer(record, "sample", 0)
    if not 0 <= _integer(record, "seed_messages", 0) <= len(record["messages"]):
        raise RecordError(
            "counts more messages than there are", field="seed_messages", record=record
        )
    for field in ("contrast", "faults", "truncated"):
        if record.get(field, ()) is None:
            del record[field]
        elif not isinstance(record.get(field, []), list):
            raise RecordError(
                f"is {_kind(record[field])}; it should be a list", field=field, record=record
            )
    for index, one in enumerate(record.get("faults", [])):
        if not isinstance(one, dict) or not isinstance(one.get("fault"), str):
            raise RecordError(
                'should be {"message": ..., "fault": NAME}', field=f"faults[{index}]", record=record
            )
    return record


def preference(record: Record) -> Record:
    """A preference, both sides whole. The explicit form ({prompt, chosen, rejected}) and plain strings are taken, too.

    The prompt, a string or messages, is put before each side that does not begin with it, and removed.
    """
    _whole_sides(record, ("chosen", "rejected"))
    return _identified(record, "chosen", "rejected")


def comparison(record: Record) -> Record:
    """A preference, or two conversations `a` and `b` that nobody has ranked."""
    if "chosen" in record or "rejected" in record or not ("a" in record or "b" in record):
        return preference(record)
    _whole_sides(record, ("a", "b"))
    return _identified(record, "a", "b")


def judged(record: Record) -> Record:
    """A comparison or preference with the `winner` a judge gave it: a side's name, "tie", or null if unreadable."""
    comparison(record)
    allowed = (*side_names(record), "tie", None)
    if "winner" not in record or record["winner"] not in allowed:
        names = ", ".join(name or "null" for name in allowed)
        problem = (
            f"is {short(record['winner'])}; it should be one of {names}"
            if "winner" in record
            else "is missing; music judge adds it"
        )
        raise RecordError(problem, field="winner", record=record)
    return record


def anything(record: Record) -> Record:
    """A record of whatever kind, recognised by its fields."""
    if "messages" in record:
        return conversation(record)
    if {"chosen", "rejected", "a", "b"} & record.keys():
        return comparison(record)
    raise RecordError("has neither messages, nor chosen and rejected, nor a and b", record=record)


def side_names(record: dict) -> tuple[str, ...]:
    """The fields that hold conversations: ("chosen", "rejected"), ("a", "b") or ("messages",)."""
    for names in (("chosen", "rejected"), ("a", "b")):
        if names[0] in record:
            return names
    return ("messages",)


def lookup(record: dict, path: str) -> object:
    """The value at a dotted path, or None; a name that the record itself lacks is looked for in its metadata."""
    names = path.split(".")
    value = record if names[0] in record else record.get("metadata")
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def first_divergence(left: Sequence[Message], right: Sequence[Message]) -> int:
    """Index of the first message in which two conversations differ; their length where they are the same."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if (one["role"], one["content"]) != (other["role"], other["content"]):
            return index
    return min(len(left), len(right))


def turns(conversation: Sequence[Message]) -> int:
    """How many assistant turns a conversation has."""
    return sum(message["role"] == "assistant" for message in conversation)


BASELINE = (
    "baseline/"  # how names begin that stand where a model's would, of guesses that read nothing
)


def characters(conversation: Sequence[Message]) -> int:
    """Length of all that is said, user and system messages with it."""
    return sum(len(message["content"]) for message in conversation)


def same_text(left: Sequence[Message], right: Sequence[Message]) -> bool:
    return len(left) == len(right) == first_divergence(left, right)


def content_id(*parts: object) -> str:
    """A short id made from content alone: the same text always gets the same id."""
    from hashlib import blake2b

    import orjson

    return blake2b(orjson.dumps(parts), digest_size=8).hexdigest()


def short(value: object) -> str:
    """A value as it stands in an error line: quoted, on one line, never long."""
    shown = "null" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _whole_sides(record: Record, names: tuple[str, str]) -> None:
    prompt = record.get("prompt")
    explicit = isinstance(prompt, str | list)
    for name in names:
        if isinstance(record.get(name), str):
            if not explicit:
                raise RecordError(
                    "is a string without a prompt; `music sample --emit pairs` reads such files",
                    field=name,
                    record=record,
                )
            record[name] = [{"role": "assistant", "content": record[name]}]
        if explicit and isinstance(record.get(name), list):
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if record[name][: len(before)] != before:
                record[name] = before + record[name]
    if explicit:
        del record["prompt"]
    for name in names:
        messages(record, name, ends="assistant")


def _identified(record: Record, *content: str) -> Record:
    if "id" not in record:
        record["id"] = content_id(*(record[field] for field in content))
    elif (
        isinstance(record["id"], bool)
        or not isinstance(record["id"], str | int)
        or record["id"] == ""
    ):
        raise RecordError(
            f"is {_kind(record['id'])}; it should be a string", field="id", record=record
        )
    if not isinstance(record.get("metadata") or {}, dict):
        raise RecordError(
            f"is {_kind(record['metadata'])}; it should be an object",
            field="metadata",
            record=record,
        )
    return record


def _integer(record: Record, field: str, default: int) -> int:
    value = record.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(
            f"is {_kind(value)}; it should be a whole number", field=field, record=record
        )
    return value


def _kind(value: object) -> str:
    names = {
        str: "a string",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        type(None): "null",
    }
    return "an empty string" if value == "" else names.get(type(value), "a number")
