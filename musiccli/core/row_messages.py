"""The messages of a conversation as the columns of a row hold them.

A row has them in one column, or a prompt, its replies, the system message and the messages before
the prompt in columns of their own. Transcripts and messages as JSON are read, too.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import groupby, pairwise
from typing import Any

from musiccli.core import json_text
from musiccli.core.errors import RecordError, kind_of
from musiccli.core.messages import (
    ASSISTANT_FIELDS,
    MEDIA_FIELDS,
    TOOL_FIELDS,
    Message,
    join_parts,
)
from musiccli.core.tool_turns import CALL_ROLES, RESULT_ROLES, join_tool_turns
from musiccli.core.transcripts import (
    Turns,
    is_hh,
    is_prompt,
    is_whole,
    split_hh,
    split_reply,
    split_transcript,
)

Row = Mapping[str, Any]  # a row of a dataset, or a record

ROLE_NAMES = {  # the datasets' names of roles, and ours
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    **{role: role for role in (*CALL_ROLES, *RESULT_ROLES)},  # see tool_turns.py
}
SYSTEM_COLUMNS = ("system", "system_prompt")
HISTORY_COLUMNS = ("history", "context")  # the messages before the prompt
MARK_LENGTH = 50  # characters; no mark of a template and the spaces behind it are longer
STEPS_COLUMN = "initial_reason_steps"  # of Math-Step-DPO: how both replies begin
# How a text begins and ends that a chat template has written: ChatML, or that of Llama, Mistral,
# Gemma, Zephyr and Phi, DeepSeek or Command R.
_TEMPLATE_START = re.compile(
    r"\s*((?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>)?\s*"
    r"(?:<\|im_start\|>|\[INST\]|<\|start_header_id\|>|<start_of_turn>|<｜(?:User|Assistant)｜>"
    r"|<\|(?:system|user|assistant)\|>|<\|START_OF_TURN_TOKEN\|>))"
)
_TEMPLATE_END = re.compile(
    r"(<\|(?:im_end|eot_id|end|endoftext|end_of_text|END_OF_TURN_TOKEN)\|>|<end_of_turn>"
    r"|<｜end▁of▁sentence｜>)\s*$"
)
# str() of messages, of a message, or of an array of messages, which is not JSON
PYTHON_MESSAGES = re.compile(r"\s*(array\()?\[?\s*\{\s*'(role|from|content|value)'\s*:")
TURN_KEYS = (("human", "assistant"), ("input", "output"), ("user", "bot"))  # of a turn


def read_side(row: Row, name: str) -> list[Message]:
    """One of two sides as a whole conversation, after the columns that stand before it.

    A side is a reply after the prompt, the messages after it, or a whole conversation.

    Raises:
        RecordError: the side, or what stands before it, cannot be read.
    """
    value, prompt = row[name], row.get("prompt")
    if not isinstance(value, str):
        side = _with_prompt(row, name, read_messages(row, name))
    elif not prompt or _is_whole_transcript(value, prompt):
        side = read_transcript(row, name, value)
    elif isinstance(prompt, str) and (turns := split_reply(prompt, value)):
        side = join_history(read_history(row), _turn_messages(row, name, turns))
    else:
        refuse_template(row, name, value)
        steps = row.get(STEPS_COLUMN)
        reply = f"{steps}{value}" if isinstance(steps, str) else value
        side = [*read_prompt(row), assistant_message(reply)]
    return with_system_message(row, side)


def _is_whole_transcript(value: str, prompt: object) -> bool:
    """Whether a side is a transcript, and not a reply that begins like one."""
    if value.startswith(("\n\nHuman:", "\r\n\r\nHuman:")):
        return True
    if not isinstance(prompt, str) or prompt.strip() not in value:
        return False
    return is_hh(value) or (value.lstrip().startswith(prompt.strip()) and is_whole(value))


def refuse_template(row: Row, field: str, text: object) -> None:
    """Raises RecordError for a text that a chat template has written."""
    if not isinstance(text, str):
        return
    for verb, mark in (
        ("begins", _TEMPLATE_START.match(text)),
        ("ends", _TEMPLATE_END.search(text[-MARK_LENGTH:])),
    ):
        if mark:
            raise RecordError(
                f"{verb} with {mark[1]}, a mark of a chat template; take the texts without the "
                "template, or messages",
                field=field,
                record=row,
            )


def _with_prompt(row: Row, name: str, side: list[Message]) -> list[Message]:
    """The side after the prompt, where it does not hold the prompt already.

    UltraFeedback repeats the prompt in both sides; TRL's explicit form does not.
    """
    prompt = row.get("prompt")
    if not prompt:
        return side
    history, latest = read_history(row), _read_prompt_alone(row)
    start = join_history(history, latest)
    if side[: len(start)] == start:
        return side
    if side[: len(latest)] == latest:
        return [*history, *side]
    if isinstance(prompt, str) and side and side[0]["role"] != "assistant":
        if any(_holds_prompt(message, prompt) for message in side):
            return join_history(history, side)
        raise RecordError(
            "neither holds the prompt nor begins with the assistant", field=name, record=row
        )
    return start + side


def _holds_prompt(message: Message, prompt: str) -> bool:
    """Whether a user message is the prompt, up to spaces around it."""
    content: object = message["content"]  # not yet checked
    return (
        message["role"] == "user" and isinstance(content, str) and content.strip() == prompt.strip()
    )


def read_prompt(row: Row) -> list[Message]:
    """The column `prompt`, after the messages that HISTORY_COLUMNS hold."""
    return join_history(read_history(row), _read_prompt_alone(row))


def join_history(history: list[Message], messages: list[Message]) -> list[Message]:
    """The messages after the history, where they do not begin with it already."""
    return messages if messages[: len(history)] == history else [*history, *messages]


def read_history(row: Row) -> list[Message]:
    """The messages that another column than the prompt holds, or none.

    They are turns, messages or a transcript. Another list is refused where the column's name is
    `history`.
    """
    for column in HISTORY_COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and (is_hh(value) or is_whole(value)):
            return read_transcript(row, column, value)
        if not isinstance(value, list) or not value:
            continue
        if all(map(_is_message, value)):
            return read_messages(row, column)
        if column == "history" or all(map(is_turn, value)):
            return read_turn_pairs(row, column)
    return []


def _read_prompt_alone(row: Row) -> list[Message]:
    """One user message as a string, a transcript, or messages."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        return read_messages(row, "prompt")
    if is_list_text(prompt):
        problem = "is the text of a JSON list; `columns` names the columns of such rows"
        raise RecordError(problem, field="prompt", record=row)
    return read_asking_text(row, "prompt", prompt)


def read_asking_text(row: Row, field: str, text: Any) -> list[Message]:
    """The messages of a text that asks for a reply: the turns of a transcript, or one message.

    Raises:
        RecordError: a chat template has written it, or its turns do not alternate.
    """
    if not isinstance(text, str):
        return [user_message(text)]  # refused with the record
    refuse_template(row, field, text)
    if not (is_hh(text) or is_prompt(text)):
        return [user_message(text)]
    messages = read_transcript(row, field, text)
    if len(messages) > 1 and messages[-1] == assistant_message(""):  # it ends with "Assistant:"
        messages.pop()
    return messages


def with_system_message(row: Row, messages: list[Message]) -> list[Message]:
    """The messages, after the system message that some files hold in a separate column."""
    system = system_text(row)
    if system and messages and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def system_text(row: Row) -> str | None:
    """The system message in one of SYSTEM_COLUMNS, or None. Raises RecordError for no text."""
    for column in SYSTEM_COLUMNS:
        value = row.get(column)
        if isinstance(value, list | dict) and value:
            problem = f"is {kind_of(value)}; a system message in a column of its own is a text"
            raise RecordError(problem, field=column, record=row)
        if isinstance(value, str) and value.strip():
            return value
    return None


def read_messages(row: Row, field: str) -> list[Message]:
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
        name = fields.get("role")
        name = fields.get("from") if name in (None, "") else name
        role = name.lower() if isinstance(name, str) else ""
        if role not in ROLE_NAMES:
            raise RecordError(
                f"is no message by the system, the user or the assistant (role {name!r})",
                field=f"{field}[{index}]",
                record=row,
            )
        content: Any = fields.get("content", fields.get("value"))  # checked with the record
        if isinstance(content, list):
            content = join_parts(row, f"{field}[{index}].content", content)
        tool_fields = TOOL_FIELDS if ROLE_NAMES[role] in ("tool", *RESULT_ROLES) else ()
        extra: Any = {
            key: fields[key]
            for key in (*tool_fields, *ASSISTANT_FIELDS, *MEDIA_FIELDS)
            if fields.get(key) is not None
        }
        parsed: Any = {"role": ROLE_NAMES[role], "content": content, **extra}
        messages.append(parsed)
    return join_tool_turns(row, field, messages)


def _listed(value: Any) -> list[Any]:
    """A list of messages: the value, its only item, or the items of an object of lists."""
    if isinstance(value, list):
        return value
    lists = [value[name] for name in value if isinstance(value[name], list)]
    roles = value.get("role") or value.get("from")
    if isinstance(roles, list) and len({len(items) for items in lists}) == 1:
        names = [name for name in value if isinstance(value[name], list)]
        return [dict(zip(names, items, strict=True)) for items in zip(*lists, strict=True)]
    return [value]


def read_turn_pairs(row: Row, field: str) -> list[Message]:
    """The messages of a column that holds turns, or is null or missing.

    A turn is [user's text, reply], or an object whose keys are one pair of TURN_KEYS.

    Raises:
        RecordError: the column is no list of such turns.
    """
    if row.get(field) is None:
        return []
    messages: list[Message] = []
    for index, turn in enumerate(nested_value(row, field, list)):
        texts = turn if isinstance(turn, list) else None
        if isinstance(turn, dict):
            texts = next(
                ([turn[key] for key in keys] for keys in TURN_KEYS if turn.keys() >= {*keys}), None
            )
        if texts is None or len(texts) != 2:
            problem = "is no turn of a user's text and a reply"
            raise RecordError(problem, field=f"{field}[{index}]", record=row)
        messages += [user_message(texts[0]), assistant_message(texts[1])]
    return messages


def is_turn(value: object) -> bool:
    """Whether a value is what a user wrote, and the reply."""
    if isinstance(value, dict):
        return any(value.keys() >= {*keys} for keys in TURN_KEYS)
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def read_transcript(row: Row, field: str, text: str) -> list[Message]:
    """The messages of a transcript: of an HH string, or of one with other headers.

    Raises:
        RecordError: it is none, or its turns do not alternate.
    """
    turns = split_hh(text)
    if any(role == "assistant" for role, _ in turns) or (turns and not is_prompt(text)):
        return _turn_messages(row, field, turns, is_hh=True)
    if turns := split_transcript(text):
        return _turn_messages(row, field, turns)
    problem = 'is a string with neither a prompt beside it nor "Human:" at its start'
    raise RecordError(problem, field=field, record=row)


def _turn_messages(row: Row, field: str, turns: Turns, *, is_hh: bool = False) -> list[Message]:
    """The messages of turns. In HH a user may write twice, and the texts are joined.

    Raises:
        RecordError: the turns do not alternate.
    """
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    if is_hh:
        messages = join_user_messages(messages)
    for index, (message, following) in enumerate(pairwise(messages), start=1):
        if message["role"] == following["role"]:
            problem = (
                f"two headers of the {message['role']} in a row; where one turn ends cannot be told"
            )
            raise RecordError(problem, field=f"{field}[{index}]", record=row)
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


def text_or_messages(column: str, text: str, row: Row | None = None) -> str | list[Any]:
    """The messages that a column's text holds as JSON; else the text.

    Raises:
        RecordError: it holds messages as Python writes them.
    """
    if PYTHON_MESSAGES.match(text):
        problem = "holds messages as Python writes them; write them as JSON (json.dumps)"
        raise RecordError(problem, field=column, record=row)
    return parse_messages_text(text) or text


def parse_messages_text(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON, a list of them or one; None for anything else."""
    start, end = text.lstrip()[:1], text.rstrip()[-1:]
    if start + end not in ("[]", "{}"):
        return None
    try:
        value = json_text.decode(text.encode())
    except ValueError:  # no JSON, or more than can be written again
        return None
    if isinstance(value, dict):
        role = value.get("role") or value.get("from")
        return [value] if _is_message(value) and str(role) in ROLE_NAMES else None
    return value if value and all(map(_is_message, value)) else None


def _is_message(item: object) -> bool:
    """Whether an object is a message, and not a reply as JSON with names of its own."""
    if not isinstance(item, dict) or not item.keys() & {"role", "from"}:
        return False
    content = item.get("content", item.get("value"))
    has_text = bool(item.keys() & {"content", "value", *ASSISTANT_FIELDS})
    return has_text and isinstance(content, str | list | None)


def asking_texts(value: object) -> list[str]:
    """What the user and the system say in a value that holds messages, turns or a transcript.

    A value of another kind holds none.
    """
    row, messages = {"value": value}, []
    with suppress(RecordError):  # messages in name only
        if isinstance(value, str):
            if is_hh(value) or is_prompt(value):
                messages = read_transcript(row, "value", value)
        elif isinstance(value, list | dict) and all(map(_is_message, _listed(value))):
            messages = read_messages(row, "value")
        elif isinstance(value, list) and all(map(is_turn, value)):
            messages = read_turn_pairs(row, "value")
    contents = [m["content"] for m in messages if m["role"] in ("system", "user")]
    return [text.strip() for text in contents if isinstance(text, str)]


def are_said(texts: Iterable[str], conversations: Iterable[Iterable[Message]]) -> bool:
    """Whether each text stands in a message of a conversation."""
    contents = {
        message["content"]
        for messages in conversations
        for message in messages
        if isinstance(message["content"], str)
    }
    return all(text in contents or any(text in content for content in contents) for text in texts)


def nested_value(row: Row, field: str, kind: type | tuple[type, ...]) -> Any:
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
