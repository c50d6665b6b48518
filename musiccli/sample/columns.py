"""What the readers of all dataset formats share: messages, labels and ids from a row's columns."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import RecordError, shortened
from musiccli.core.jsonl import Rejects
from musiccli.core.messages import (
    ASSISTANT_FIELDS,
    MEDIA_FIELDS,
    TOOL_FIELDS,
    Message,
    count_turns,
    join_parts,
)
from musiccli.core.records import Record, content_id
from musiccli.sample.tool_turns import CALL_ROLES, RESULT_ROLES, join_tool_turns

ROLE_NAMES = {  # the datasets' names of roles, and ours
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    **{role: role for role in (*CALL_ROLES, *RESULT_ROLES)},  # see tool_turns.py
}
CONTENT_COLUMNS = {  # ids and texts, which are not labels
    "id",
    "unique_id",
    "metadata",
    "prompt",
    "completion",
    "system",
    "tools",
    "user_persona",
    "chosen",
    "rejected",
    "winner",
    "input",
    "output_1",
    "output_2",
}
HH_START = re.compile(r"(\r?\n){2}Human:")
_HH_HEADER = re.compile(r"(?:\r?\n){2}(Human|Assistant):")  # else it is a part of a text
MAX_LABEL_LENGTH = 200  # characters; a longer string is text, not a label


class Row(Record):
    """A row of a dataset that knows which of its columns were read.

    Attributes:
        columns_read: the columns whose values were asked for by name.
    """

    __slots__ = ("columns_read",)

    def __init__(self, fields: Mapping[str, Any], where: str | None = None) -> None:
        super().__init__(fields, where)
        self.columns_read: set[str] = set()

    def __getitem__(self, column: str) -> Any:
        self.columns_read.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        """The value of a column, or the default."""
        self.columns_read.add(column)
        return super().get(column, default)


Reader = Callable[[Record, str], Iterator[dict[str, Any]]]  # takes a row and its source's name


@dataclass(frozen=True)
class RowGroup:
    """How successive rows, each a part of a whole, are joined to one row.

    Attributes:
        column: the column whose value the rows of one whole share.
        join: makes one row of them, or none. Rows that do not fit go to the rejects.
        may_return: whether the value may come again, and is then that of another whole.
    """

    column: str
    join: Callable[[list[Record], Rejects], Record | None]
    may_return: bool = False


@dataclass(frozen=True)
class Format:
    """A dataset format, recognized by the columns of its rows.

    Attributes:
        name: the format's name in error messages.
        order: formats are tried in this order, and the first that fits reads the row. A format
            with more specific columns has a lower order.
        columns: the columns that every row has; it may have more.
        read: yields the records of one row, not yet checked.
        read_pairs: yields preferences, for a format whose `read` yields other records.
        labels: readers of pairs by the label that ranks them, for a format with several labels.
            `read` and `read_pairs` use the first.
        group: how rows are joined, for a format whose rows are parts of a whole.
        fits: checks the values of a row, where its columns alone do not identify the format.
    """

    name: str
    order: int
    columns: frozenset[str]
    read: Reader
    read_pairs: Reader | None = None
    labels: Mapping[str, Reader] = field(default_factory=dict)
    group: RowGroup | None = None
    fits: Callable[[Record], bool] = lambda row: True


def make_record(
    row: Record,
    source: str,
    sides: dict[str, list[Message]],
    labels: dict[str, Any] | None = None,
    *,
    id: str | int | None = None,
    texts: Collection[str] = (),
    keep_fields: bool = False,
) -> dict[str, Any]:
    """The record of one row, not yet checked.

    Args:
        row: the row, whose labels become metadata.
        source: the name of the dataset, which becomes metadata, too.
        sides: the conversations, each under the field that holds it.
        labels: more metadata.
        id: the record's id. Without it the row's id is used, or one made from the texts.
        texts: columns that hold texts, which do not become metadata even where they are short.
        keep_fields: whether a row with an id keeps all its fields, because it is a record already.
    """
    metadata = {
        **(row["metadata"] if isinstance(row.get("metadata"), dict) else {}),
        **row_labels({name: value for name, value in row.items() if name not in texts}),
        **(labels or {}),
        "turns": count_turns(next(iter(sides.values()))),
    }
    if source:
        metadata.setdefault("source", source)
    id = row_id(row) if id is None else id
    if keep_fields and id is not None:
        old_metadata = row.get("metadata")
        return {**row, **sides, "metadata": metadata if old_metadata is None else old_metadata}
    return {
        "id": content_id(*sides.values()) if id is None else id,
        **sides,
        **context_fields(row),
        "metadata": metadata,
    }


def context_fields(record: Record) -> dict[str, Any]:
    """What belongs to every conversation made of a record: the functions on offer, the persona."""
    fields = {name: record.get(name) for name in ("tools", "user_persona")}
    return {name: value for name, value in fields.items() if value is not None}


def row_id(row: Record) -> str | int | None:
    """The id that the dataset gives a row. RewardBench's ids are unique within a subset only."""
    id = row.get("unique_id", row.get("id"))
    if isinstance(id, bool) or not isinstance(id, str | int):
        return None
    return f"{row['subset']}/{id}" if isinstance(row.get("subset"), str) else id


def row_labels(columns: object) -> dict[str, Any]:
    """The columns that label a row (subset, task, score) rather than hold its text."""
    if not isinstance(columns, dict):
        return {}
    return {
        name: value
        for name, value in columns.items()
        if name not in CONTENT_COLUMNS
        and isinstance(value, str | int | float)
        and len(str(value)) <= MAX_LABEL_LENGTH
    }


def read_text(row: Record, field: str) -> str:
    """The text in a column. Raises RecordError where the column holds something else."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RecordError(f"is {shortened(value)}; it should be a text", field=field, record=row)
    return value


def read_label(row: Record, field: str, meanings: Mapping[Any, str]) -> str:
    """What the value of a label column means. Its text, as CSV has it, means the same.

    Args:
        row: the row.
        field: the column, or a dotted path into it.
        meanings: what each value means.

    Raises:
        RecordError: the column holds none of these values.
    """
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    for label, meaning in meanings.items():
        if value == label and isinstance(value, bool) == isinstance(label, bool):
            return meaning
        if isinstance(value, str) and value.lower() == str(label).lower():
            return meaning
    labels = [str(label).lower() if isinstance(label, bool) else str(label) for label in meanings]
    raise RecordError(
        f"is {shortened(value)}; it should be {', '.join(labels[:-1])} or {labels[-1]}",
        field=field,
        record=row,
    )


def read_messages(row: Record, field: str) -> list[Message]:
    """The messages in a column.

    It may also hold a single message, or one object of lists: {"role": [...], "content": [...]}.
    The library `datasets` makes such objects of what it calls a sequence.

    Args:
        field: the column, or a dotted path into it.

    Raises:
        RecordError: the column holds something else.
    """
    value = nested_value(row, field, (list, dict))
    messages: list[Message] = []
    for index, message in enumerate(_listed(value)):
        fields = message if isinstance(message, dict) else {}
        role = fields.get("role") or fields.get("from")
        if not isinstance(role, str) or role not in ROLE_NAMES:
            raise RecordError(
                f"is no message by the system, the user or the assistant (role {role!r})",
                field=f"{field}[{index}]",
                record=row,
            )
        content: Any = fields.get("content", fields.get("value"))  # checked with the record
        if isinstance(content, list):
            content = join_parts(row, f"{field}[{index}].content", content)
        tool_fields = TOOL_FIELDS if ROLE_NAMES[role] in ("tool", *RESULT_ROLES) else ()
        extra: Any = {
            name: fields[name]
            for name in (*tool_fields, *ASSISTANT_FIELDS, *MEDIA_FIELDS)
            if fields.get(name) is not None
        }
        parsed: Any = {"role": ROLE_NAMES[role], "content": content, **extra}
        messages.append(parsed)
    return join_tool_turns(row, field, messages)


def _listed(value: Any) -> list[Any]:
    """A list of messages: the value, its only item, or the items of an object of lists."""
    if isinstance(value, list):
        return value
    lists = [value[name] for name in value if isinstance(value[name], list)]
    if isinstance(value.get("role"), list) and len({len(items) for items in lists}) == 1:
        names = [name for name in value if isinstance(value[name], list)]
        return [dict(zip(names, items, strict=True)) for items in zip(*lists, strict=True)]
    return [value]


def read_prompt(row: Record) -> list[Message]:
    """The column `prompt`: one user message as a string, an HH string, or messages."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return read_messages(row, "prompt")
    if HH_START.match(prompt):
        history = read_hh(row, "prompt")
        if len(history) > 1 and history[-1] == assistant_message(""):  # it ends with "Assistant:"
            history.pop()
        return history
    if is_list_text(prompt):
        problem = "is the text of a JSON list; `columns` names the columns of such rows"
        raise RecordError(problem, field="prompt", record=row)
    return [user_message(prompt)]


def read_hh(row: Record, name: str) -> list[Message]:
    """The messages of an HH string, as it is or as Windows stores it."""
    text: str = row[name]
    if "\r\n" in text and text.count("\r\n") == text.count("\n"):  # the file was converted
        text = text.replace("\r\n", "\n")
    start, *parts = _HH_HEADER.split("\n\n" + text.lstrip())
    if start.strip() or not parts:
        raise RecordError(
            'is a string with neither a prompt beside it nor "Human:" at its start',
            field=name,
            record=row,
        )
    makers = {"Human": user_message, "Assistant": assistant_message}
    messages = join_user_messages(
        makers[header](text.strip()) for header, text in zip(parts[::2], parts[1::2], strict=True)
    )
    for index, (message, following) in enumerate(pairwise(messages), start=1):
        if message["role"] == following["role"]:
            raise RecordError(
                'two "Assistant:" headers in a row; where one turn ends cannot be told',
                field=f"{name}[{index}]",
                record=row,
            )
    return messages


def is_list_text(text: str) -> bool:
    """Whether a text is a JSON list of strings, in which some files keep the turns of a side."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return False
    try:
        items = json_text.decode(text.encode())
    except ValueError:
        return False
    return bool(items) and all(isinstance(item, str | None) for item in items)


def nested_value(row: Record, field: str, kind: type | tuple[type, ...]) -> Any:
    """The value at a dotted path of columns. Raises RecordError where it is of another kind."""
    value: Any = row
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        kinds = {
            dict: "an object",
            list: "a list",
            str: "a string",
            (list, dict): "a list of messages",
        }
        problem = "is missing" if value is None else "is not readable"
        raise RecordError(f"{problem}; it should be {kinds[kind]}", field=field, record=row)
    return value


def user_message(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant_message(content: Any) -> Message:
    return {"role": "assistant", "content": content}


def join_user_messages(messages: Iterable[Message]) -> list[Message]:
    """Join successive user messages by a blank line.

    Only for formats in which one person, or one environment, may write twice in succession.
    """
    joined: list[Message] = []
    for speaks, group in groupby(messages, lambda m: m["role"] == "user" and bool(m["content"])):
        if not speaks:
            joined += group
            continue
        first, *rest = group
        if rest:
            first = user_message("\n\n".join(str(m["content"]) for m in (first, *rest)))
        joined.append(first)
    return joined


def with_system_message(row: Record, messages: list[Message]) -> list[Message]:
    """The messages, after the system message that some files hold in a separate column."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages
