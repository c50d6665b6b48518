"""The records that JSONL lines hold, and the functions that check them.

The TypedDicts list the fields that we read or write. Every command passes other fields through
unchanged. Each `parse_...` function takes one Record, checks the fields it knows, converts other
accepted forms into ours, and returns the same Record. It raises a RecordError that names the wrong
field. No function changes an `id`, because ids join the records that different commands write.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, Required, TypedDict

from musiccli.core.errors import RecordError, kind_of, shortened
from musiccli.core.messages import Message, parse_messages, parse_tools, refuse_media
from musiccli.core.row_messages import (
    are_said,
    asking_texts,
    read_messages,
    read_side,
    system_text,
    text_or_messages,
    with_system_message,
)


class Conversation(TypedDict, total=False):
    """One conversation."""

    id: Required[str | int]
    messages: Required[list[Message]]
    tools: list[dict[str, Any]]  # the functions on offer, in OpenAI's form
    metadata: dict[str, Any]


class ContrastedReply(TypedDict):
    """A reply to an altered instruction: the reply's index in the messages, and the instruction."""

    message: int
    instruction: str


class FollowUp(TypedDict):
    """A user's message that was to need the history: its index in the messages, and how."""

    message: int
    kind: str  # "refer", "change" or "correct"


class FaultyReply(TypedDict):
    """A message with a fault: its index in the messages, and the name of the fault."""

    message: int
    fault: str


class Branch(Conversation, total=False):
    """One simulated continuation of a seed conversation."""

    branch: Required[str]  # one of BRANCHES
    sample: Required[int]  # 0, 1, ...: several continuations of the same seed
    seed_messages: int  # how many messages at the start come from the seed
    contrast: list[ContrastedReply]
    faults: list[FaultyReply]
    truncated: list[int]  # indices of the messages that the token limit cut off
    user_persona: dict[str, str] | str  # whom the user plays: who, goal, knows, satisfied
    follow_ups: list[FollowUp]
    satisfied: bool  # the user ended the conversation, having got what they came for
    simulator: dict[str, str]  # the models and policies that wrote the branch
    usage: dict[str, int]  # calls and tokens
    cost: float | None  # US dollars; None where the price is unknown


class Preference(TypedDict, total=False):
    """Two whole conversations, of which the chosen one is better."""

    id: Required[str | int]
    chosen: Required[list[Message]]
    rejected: Required[list[Message]]
    tools: list[dict[str, Any]]
    metadata: dict[str, Any]
    first_divergence: int  # index of the first message in which the two sides differ
    contrast: list[ContrastedReply]


class Comparison(TypedDict, total=False):
    """Two whole conversations that nobody has ranked."""

    id: Required[str | int]
    a: Required[list[Message]]
    b: Required[list[Message]]
    tools: list[dict[str, Any]]
    metadata: dict[str, Any]


class Vote(TypedDict):
    """What one judge said about a pair that it saw in one order."""

    judge: str  # the model's name
    order: str  # "ab": the record's first side was shown as conversation A; "ba": its second
    winner: str | None  # a side's name, "tie", or None where the reply could not be read
    explanation: str
    truncated: NotRequired[bool]  # True where the token limit cut the reply off


class Judged(TypedDict, total=False):
    """The fields that judging adds to a preference or a comparison."""

    winner: Required[str | None]  # a side's name, "tie", or None where no reply could be read
    verdict: str  # the panel's: a side's name, "tie", "inconsistent" or "unreadable"
    votes: list[Vote]
    given_winner: str | None  # the winner that the record held before it was judged


class Scored(TypedDict, total=False):
    """The fields that scoring adds to any record; their keys are models' names.

    In a record with two sides, each value is an object with one score (or list) for each side.
    """

    scores: Required[dict[str, float | dict[str, float]]]
    turn_scores: dict[str, list[float] | dict[str, list[float]]]  # one number per turn


class Metric(TypedDict):
    """One number that a benchmark gives. `low` and `high` bound its confidence interval.

    `data` is equal in metric records of runs that measured the same pairs, in whatever order.
    """

    benchmark: str
    model: str
    subset: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    count: int
    data: NotRequired[str]  # 16 hex digits


RecordKind = Literal["preference", "comparison", "conversation"]

KINDS: dict[RecordKind, tuple[str, ...]] = {  # the fields that hold conversations, by kind
    "preference": ("chosen", "rejected"),
    "comparison": ("a", "b"),
    "conversation": ("messages",),
}
NULLABLE_FIELDS = ("winner", "given_winner")  # null: the winner could not be read
BRANCHES = ("chosen", "rejected")
# Equal in no two records of one input; contests may also differ in their `models`.
IDENTITY_FIELDS = ("id", "branch", "sample", "best_of")
BASELINE_PREFIX = "baseline/"  # begins the names of baselines, which are used in place of a model


class Record(dict[str, Any]):
    """A JSON object without null fields: files of tables write null for a field that is absent.

    A null in NULLABLE_FIELDS is kept.

    Attributes:
        where: "file:line" where it was read from a file.
        null_fields: the names of the fields that were null.
    """

    __slots__ = ("null_fields", "where")

    def __init__(self, fields: Mapping[str, Any], where: str | None = None) -> None:
        super().__init__(
            (name, value)
            for name, value in fields.items()
            if value is not None or name in NULLABLE_FIELDS
        )
        self.where = where
        self.null_fields: frozenset[str] = getattr(fields, "null_fields", frozenset())
        if len(self) < len(fields):
            self.null_fields |= fields.keys() - self.keys()


def record_kind(record: Mapping[str, Any]) -> RecordKind | None:
    """What a record is: the first of KINDS all of whose fields it has.

    So `messages` beside `chosen` and `rejected` are a preference. Of a record that has no kind's
    fields all, it is the first kind that it has any field of. None stands for a record with none.
    """
    for has_fields in (all, any):
        for kind, fields in KINDS.items():
            if has_fields(record.get(field) is not None for field in fields):
                return kind
    return None


def parse_conversation(record: Record) -> Record:
    """Check a Conversation. A record without an `id` gets one from its content."""
    _require_kind(record, "conversation", "; music sample makes conversations of such records")
    for column in ("rejected_messages", "rejected_response"):
        if record.get(column):
            problem = "stands beside messages and holds a side; music sample reads such files"
            raise _error(record, column, problem)
    if system_text(record) and isinstance(record.get("messages"), list):
        record["messages"] = with_system_message(record, read_messages(record, "messages"))
    parse_messages(record, "messages")
    return _with_id(record, "messages")


def parse_branch(record: Record) -> Record:
    """Check a Branch. `branch` defaults to "chosen", and `sample` to 0."""
    _require_kind(record, "conversation", "; expected branches, as music simulate writes them")
    parse_conversation(record)
    if record.setdefault("branch", "chosen") not in BRANCHES:
        problem = f"is {shortened(record['branch'])}; it should be chosen or rejected"
        raise _error(record, "branch", problem)
    record.setdefault("sample", 0)
    _check_integer(record, "seed_messages")
    if not 0 <= record.get("seed_messages", 0) <= len(record["messages"]):
        raise _error(record, "seed_messages", "counts more messages than there are")
    for field in ("contrast", "faults", "truncated"):
        if not isinstance(record.get(field, []), list):
            raise _error(record, field, f"is {kind_of(record[field])}; it should be a list")
    for index, faulty in enumerate(record.get("faults", [])):
        if not isinstance(faulty, dict) or not isinstance(faulty.get("fault"), str):
            problem = 'should be {"message": ..., "fault": NAME}'
            raise _error(record, f"faults[{index}]", problem)
    return record


def parse_candidate(record: Record) -> Record:
    """Check a candidate: a Branch that is not a rejected one."""
    if parse_branch(record)["branch"] == "rejected":
        problem = "its replies answer altered instructions; a candidate is a chosen branch"
        raise _error(record, "branch", f"is rejected: {problem}")
    return record


def parse_preference(record: Record) -> Record:
    """Check a Preference. With a `prompt`, a side may be a string or only the messages after it.

    The prompt is a string or messages. It is put before each side that does not begin with it,
    and then removed.
    """
    _require_kind(record, "preference")
    _parse_sides(record, ("chosen", "rejected"))
    return _with_id(record, "chosen", "rejected")


def parse_comparison(record: Record) -> Record:
    """Check a Comparison, or a Preference where the record is none."""
    if record_kind(record) != "comparison":
        return parse_preference(record)
    _parse_sides(record, ("a", "b"))
    return _with_id(record, "a", "b")


def parse_judged(record: Record) -> Record:
    """Check a Preference or Comparison that has a `winner`: a side's name, "tie" or null."""
    parse_comparison(record)
    if "winner" not in record:
        raise _error(record, "winner", "is missing; music judge adds it")
    allowed = (*side_names(record), "tie", None)
    if record["winner"] not in allowed:
        names = ", ".join(name or "null" for name in allowed)
        problem = f"is {shortened(record['winner'])}; it should be one of {names}"
        raise _error(record, "winner", problem)
    return record


def parse_any(record: Record) -> Record:
    """Check a Conversation, a Preference or a Comparison, whichever its fields make it."""
    kind = record_kind(record)
    if kind is None:
        problem = (
            "has neither messages, nor chosen and rejected, nor a and b; music sample reads the "
            "rows of datasets"
        )
        raise RecordError(problem, record=record)
    return parse_conversation(record) if kind == "conversation" else parse_comparison(record)


def side_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that hold conversations: ("chosen", "rejected"), ("a", "b") or ("messages",)."""
    return KINDS[record_kind(record) or "conversation"]


def identity_key(record: Mapping[str, Any]) -> int:
    """A hash of the IDENTITY_FIELDS in 64 bits, the same in every process.

    The models of a contest are hashed, too, whatever their order.
    """
    from hashlib import blake2b

    fields = [record.get(field) for field in IDENTITY_FIELDS]
    if isinstance(record.get("models"), Mapping):
        fields.append(sorted(record["models"].items()))
    return int.from_bytes(blake2b(repr(fields).encode(), digest_size=8).digest())


def lookup(record: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, as "metadata.subset", or None.

    A path whose first name the record lacks is looked up in its metadata.
    """
    names = path.split(".")
    value: Any = record if names[0] in record else record.get("metadata")
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def content_id(*parts: object) -> str:
    """An id of 16 hex digits that follows from the content alone."""
    from hashlib import blake2b

    from musiccli.core.json_text import encode

    return blake2b(encode(parts), digest_size=8).hexdigest()


def _parse_sides(record: Record, names: tuple[str, str]) -> None:
    """Make two whole conversations of the sides, and of the columns that stand before them."""
    prompt = record.get("prompt")
    for name in names:
        if isinstance(record.get(name), str) and not prompt:
            problem = "is a string without a prompt; music sample reads such files"
            raise _error(record, name, problem)
    if prompt or system_text(record):
        for name in ("prompt", *names):
            if isinstance(record.get(name), str):
                record[name] = text_or_messages(name, record[name], record)
        _refuse_other_history(record)
        record.update(
            {name: read_side(record, name) for name in names if record.get(name) is not None}
        )
        _refuse_unread_messages(record, names)
        record.pop("prompt", None)
    for name in names:
        parse_messages(record, name, ends_with="assistant")


def _refuse_other_history(record: Record) -> None:
    """Raises RecordError for a column in which only formats of datasets have the history."""
    for column in ("trajectory", "conversations"):
        if record.get(column):
            problem = "stands beside two sides and holds the history; music sample reads such files"
            raise _error(record, column, problem)


def _refuse_unread_messages(record: Record, names: Iterable[str]) -> None:
    """Raises RecordError for messages beside the prompt that neither side has."""
    sides = [record[name] for name in names if isinstance(record.get(name), list)]
    for column in ("messages", "conversation"):
        if not are_said(asking_texts(record.get(column)), sides):
            problem = (
                "stands beside the prompt and holds messages that neither side has; leave it out, "
                f"or let music sample put it before the prompt (history={column})"
            )
            raise _error(record, column, problem)


def _require_kind(record: Record, kind: RecordKind, hint: str = "") -> None:
    """Raises RecordError for a record of another kind; one of no kind lacks a field."""
    actual = record_kind(record)
    if actual in (kind, None):
        return
    field, fields = KINDS[kind][0], " and ".join(KINDS[actual])
    if record.get(field) is None:
        problem = f"is missing; the record is a {actual} ({fields})"
    else:
        problem = f"stands beside {fields}, which make the record a {actual}"
    raise _error(record, field, problem + hint)


def _with_id(record: Record, *content_fields: str) -> Record:
    """Check the fields that all records share; one without an id gets one from these fields."""
    parse_tools(record)
    refuse_media(record)
    if "id" not in record:
        record["id"] = content_id(*(record[field] for field in content_fields))
    identity = record["id"]
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise _error(record, "id", f"is {kind_of(identity)}; it should be a string")
    if isinstance(identity, int):
        _check_integer(record, "id")
    for field in ("sample", "best_of"):
        _check_integer(record, field)
    if not isinstance(record.get("metadata") or {}, dict):
        raise _error(
            record, "metadata", f"is {kind_of(record['metadata'])}; it should be an object"
        )
    return record


def _check_integer(record: Record, field: str) -> None:
    """Check a field that may hold an integer; tables write one beside a null as a float."""
    value = record.get(field, 0)
    if isinstance(value, float) and value.is_integer():
        record[field] = value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _error(record, field, f"is {kind_of(value)}; it should be a whole number")
    if not -(1 << 63) <= value < 1 << 63:
        raise _error(record, field, "is a number of more than 64 bits")


def _error(record: Mapping[str, Any], field: str, problem: str) -> RecordError:
    return RecordError(problem, field=field, record=record)
