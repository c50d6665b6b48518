"""The messages of a conversation: which forms are read, which roles follow which, and their text.

A message is OpenAI's: an assistant may call functions and hold its thoughts, and a tool's message
holds the result of a call. A turn is all that follows one message of the user.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NotRequired, TypedDict

from musiccli.core import json_text
from musiccli.core.errors import RecordError, kind_of, shortened


class FunctionCall(TypedDict):
    """The function that is called, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call in an assistant's message. `type` is "function"."""

    type: str
    function: FunctionCall
    id: NotRequired[str]


class Message(TypedDict):
    """One message of a conversation. `role` is one of ROLES.

    `tool_calls` and `reasoning_content` are an assistant's, `tool_call_id` and `name` a tool's.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[ToolCall]]
    reasoning_content: NotRequired[str]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLE_NAMES = {"developer": "system", "function": "tool"}  # OpenAI's newer and older names
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of vLLM, OpenRouter and Ollama
ASSISTANT_FIELDS = ("tool_calls", "function_call", *THOUGHT_FIELDS)
TOOL_FIELDS = ("tool_call_id", "name")
MEDIA_FIELDS = ("images", "image", "audios", "audio", "videos", "video")
PART_MEDIA_FIELDS = (*MEDIA_FIELDS, "image_url", "video_url", "input_audio")
NO_MEDIA = (None, False, "", "[]")  # as tables write that there are none
TEXT_PARTS = (None, "text", "input_text", "output_text")  # values of a part's `type`
NEXT_ROLES = {  # which roles may follow a role; the first is the usual one
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def parse_messages(
    record: Mapping[str, Any], field: str, *, ends_with: str | None = None
) -> list[Message]:
    """Check the messages in one field, and put them into our form.

    After an optional system message, user and assistant take turns. Within a turn, results of
    tools may follow a message of the assistant, and then the assistant goes on.

    Args:
        record: the record that holds them. Messages in another form are replaced in it.
        field: the name of the field.
        ends_with: the role that the last message must have; None for any.

    Raises:
        RecordError: the field is not a list of such messages, or a message is empty.
    """
    value = record.get(field)
    if not isinstance(value, list):
        problem = "is missing" if value is None else f"is {kind_of(value)}"
        raise _error(record, field, f"{problem}; it should be a list of messages")
    if not value:
        problem = "is an empty list; a conversation needs at least one message"
        raise _error(record, field, problem)
    messages: list[Message] = []
    expected: tuple[str, ...] = ("user",)
    for index, original in enumerate(value):
        place = f"{field}[{index}]"
        message = _parse_message(record, place, original)
        role = message["role"]
        messages.append(message)
        if role == "system" and index == 0:
            continue
        if role not in expected:
            problem = (
                f"role is {role} where {expected[0]} should speak; roles alternate, user first"
            )
            raise _error(record, place, problem)
        expected = NEXT_ROLES[role]
    last = messages[-1]["role"]
    if last == "system":
        problem = "holds only a system message; a conversation needs a user message"
        raise _error(record, field, problem)
    if ends_with and last != ends_with:
        raise _error(record, field, f"ends with the {last}; it should end with the {ends_with}")
    if messages != value and isinstance(record, MutableMapping):
        record[field] = messages
    return messages


def parse_tools(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check `tools`, the functions on offer, and put them into OpenAI's form.

    It may be absent, and a blank text is none, as a column of texts has it.

    Raises:
        RecordError: `tools` is neither a list of functions nor such a list as JSON text.
    """
    value = record.get("tools")
    tools = value
    if isinstance(value, str):
        try:
            tools = json_text.decode(value.encode()) if value.strip() else []
        except ValueError:
            tools = value
    if tools is None:
        tools = []
    if not isinstance(tools, list):
        raise _error(record, "tools", f"is {kind_of(value)}; it should be a list of functions")
    tools = [_parse_tool(record, f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    if value not in (None, tools) and isinstance(record, MutableMapping):
        record["tools"] = tools
    return tools


def _parse_tool(record: Mapping[str, Any], field: str, tool: object) -> dict[str, Any]:
    """Check a function on offer: an object, or its JSON text."""
    if isinstance(tool, str):
        with contextlib.suppress(ValueError):
            tool = json_text.decode(tool.encode())
    fields = tool if isinstance(tool, dict) else {}
    function = fields.get("function", fields)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        problem = 'should be {"type": "function", "function": {"name": ..., "parameters": ...}}'
        raise _error(record, field, problem)
    return fields if function is not fields else {"type": "function", "function": function}


def _parse_message(record: Mapping[str, Any], field: str, message: object) -> Message:
    """Check one message, and return it in our form: the same object where it is so already."""
    if _is_plain(message):
        return message  # type: ignore[return-value]
    if not isinstance(message, dict):
        problem = f'is {kind_of(message)}; a message is {{"role": ..., "content": ...}}'
        raise _error(record, field, problem)
    role, content = message.get("role"), message.get("content")
    if isinstance(role, str):
        role = OTHER_ROLE_NAMES.get(role, role)
    if role not in ROLES:
        problem = f"role is {shortened(role)}; it should be one of {', '.join(ROLES)}"
        raise _error(record, field, problem)
    refuse_media(record, message, f"{field}.")
    extra = {
        name: value
        for name, value in message.items()
        if name not in ("role", "content") and value is not None
    }
    if isinstance(content, list):
        content = join_parts(record, f"{field}.content", content)
    if role == "assistant":
        extra = _parse_assistant_fields(record, field, extra)
    elif wrong := [name for name in ASSISTANT_FIELDS if extra.get(name)]:
        raise _error(record, f"{field}.{wrong[0]}", f"stands at a {role} message")
    may_be_empty = role == "tool" or "tool_calls" in extra
    if content is None and may_be_empty:
        content = ""
    if not isinstance(content, str):
        raise _error(record, field, f"content is {kind_of(content)}; it should be a string")
    if not content.strip() and not may_be_empty:
        raise _error(record, field, f"content of this {role} message is empty")
    parsed = {**message, "role": role, "content": content}
    parsed = {name: parsed[name] for name in parsed if name in ("role", "content") or name in extra}
    parsed |= extra
    return message if parsed == message else parsed  # type: ignore[return-value]


def _is_plain(message: object) -> bool:
    """Whether a message is of a usual role and holds nothing but text: most messages are so."""
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ("system", "user", "assistant")
        and isinstance(message["content"], str)
        and bool(message["content"].strip())
    )


def refuse_media(
    record: Mapping[str, Any],
    holder: Mapping[str, Any] | None = None,
    path: str = "",
    names: Sequence[str] = MEDIA_FIELDS,
) -> None:
    """Refuse pictures, sounds and films.

    Args:
        record: the record or the row of a dataset.
        holder: the part of it that may hold them; None for the record itself.
        path: what stands before the name of a field of the part.
        names: the fields that would hold them.

    Raises:
        RecordError: there are some.
    """
    fields = record if holder is None else holder
    for name in names:
        if _is_given(fields.get(name)):
            raise _error(record, f"{path}{name}", f"holds {name}; only text is read")
    for name, value in fields.items():
        if isinstance(value, dict | list) and _holds_bytes(value):
            problem = "holds bytes, as pictures and sounds do; only text is read"
            raise _error(record, f"{path}{name}", problem)


def _is_given(value: object) -> bool:
    """Whether a column of pictures holds one: tables write objects of nulls where there is none."""
    if isinstance(value, dict):
        return any(map(_is_given, value.values()))
    return any(map(_is_given, value)) if isinstance(value, list) else value not in NO_MEDIA


def _holds_bytes(value: object) -> bool:
    """Whether a value is a file as `datasets` holds pictures and sounds, or a list with one."""
    if isinstance(value, list):
        return any(map(_holds_bytes, value))
    is_file = isinstance(value, dict) and value.keys() <= {"bytes", "path"} and "bytes" in value
    return is_file and _is_given(value)


def join_parts(record: Mapping[str, Any], field: str, parts: list[Any]) -> str:
    """The text of content that is a list of parts, each on a line of its own."""
    texts = []
    for index, part in enumerate(parts):
        fields = part if isinstance(part, dict) else {"text": part}
        kind, text = fields.get("type"), fields.get("text")
        if kind not in TEXT_PARTS:
            problem = f"is a part of type {shortened(kind)}; only text is read"
            raise _error(record, f"{field}[{index}]", problem)
        refuse_media(record, fields, f"{field}[{index}].", PART_MEDIA_FIELDS)
        if not isinstance(text, str):
            raise _error(record, f"{field}[{index}]", "is no part of text")
        texts.append(text)
    return "\n".join(texts)


def _parse_assistant_fields(
    record: Mapping[str, Any], field: str, extra: dict[str, Any]
) -> dict[str, Any]:
    """Calls and thoughts in our form, beside the other fields."""
    fields = {name: value for name, value in extra.items() if name not in ASSISTANT_FIELDS}
    for name in THOUGHT_FIELDS:
        thoughts = extra.get(name)
        if thoughts is not None and not isinstance(thoughts, str):
            problem = f"is {kind_of(thoughts)}; it should be a string"
            raise _error(record, f"{field}.{name}", problem)
        if thoughts and thoughts.strip():
            fields.setdefault("reasoning_content", thoughts)
    calls = extra.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise _error(record, f"{field}.tool_calls", f"is {kind_of(calls)}; it should be a list")
    if "function_call" in extra:
        calls = [*(calls or []), extra["function_call"]]
    if calls:
        fields["tool_calls"] = [
            _parse_call(record, f"{field}.tool_calls[{index}]", call)
            for index, call in enumerate(calls)
        ]
    return fields


def _parse_call(record: Mapping[str, Any], field: str, call: object) -> dict[str, Any]:
    """A call in OpenAI's form, its arguments as JSON text.

    Text that is no JSON stays as it is: a model may write that, and is judged by it.
    """
    fields = call if isinstance(call, dict) else {}
    function = fields.get("function", fields)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        problem = 'should be {"type": "function", "function": {"name": ..., "arguments": ...}}'
        raise _error(record, field, problem)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    identity = fields.get("id")
    return {
        **({"id": identity} if isinstance(identity, str) else {}),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def first_divergence(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Index of the first message in which two conversations differ.

    Where one begins with the other, the length of the shorter one.
    """
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right and message_key(left) != message_key(right):
            return index
    return min(len(first), len(second))


def same_text(first: Sequence[Message], second: Sequence[Message]) -> bool:
    """Whether two conversations have the same roles and texts, calls and thoughts included."""
    return len(first) == len(second) == first_divergence(first, second)


def message_key(message: Message) -> tuple[str, ...]:
    """What makes a message another one: its role and texts. The ids of calls are no part of it."""
    parts = [message["role"], message["content"], message.get("reasoning_content", "")]
    for call in _calls(message):
        parts += [call["function"]["name"], arguments(call)]
    return tuple(parts)


def arguments(call: ToolCall) -> str:
    """The arguments of a call as JSON text in one spelling; other text stays as it is."""
    text = call["function"]["arguments"]
    try:
        return json.dumps(json_text.decode(text.encode()), ensure_ascii=False)
    except ValueError:
        return text


def plain_messages(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[Message]:
    """The same conversation as text alone, by users and assistants who take turns.

    It is for readers that know nothing of calls: chat templates without them, and models that
    continue a conversation. Thoughts and calls stand in the assistant's text as `message_text`
    writes them. Results of tools are a message of the user, each in <tool_response>. The
    functions on offer stand at the end of the system message.
    """
    plain: list[Message] = []
    previous = ""
    for message in messages:
        role, text = message["role"], message_text(message)
        if role == "tool":
            text = f"<tool_response>\n{text}\n</tool_response>"
            if previous == "tool":
                text = f"{plain.pop()['content']}\n{text}"
        previous = role
        role = "user" if role == "tool" else role
        unchanged = role == message["role"] and text == message["content"]
        plain.append(message if unchanged else _text(role, text))
    return with_tools(plain, tools)


def without_tools(messages: Sequence[Message]) -> list[Message]:
    """What the user of a conversation reads of it: no calls, results or thoughts.

    What the assistant writes between them in one turn is one message.
    """
    seen: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool" or not content.strip():
            continue
        if role == "assistant" and seen and seen[-1]["role"] == "assistant":
            seen[-1] = {"role": role, "content": f"{seen[-1]['content']}\n\n{content}"}
        else:
            seen.append(message if message_text(message) == content else _text(role, content))
    return seen


def for_continuation(messages: Sequence[Message]) -> list[Message]:
    """The conversation as text, as a model reads it that goes on as the assistant.

    It is `plain_messages` without thoughts and without the functions on offer: the model is to
    answer, and nobody would carry out a call of its own.
    """
    thoughtless: list[Any] = [
        {name: value for name, value in message.items() if name != "reasoning_content"}
        for message in messages
    ]
    return plain_messages(thoughtless)


def has_tool_turns(messages: Sequence[Message]) -> bool:
    """Whether a conversation has calls or results of tools."""
    return any("tool_calls" in message or message["role"] == "tool" for message in messages)


def last_user_message(messages: Sequence[Message]) -> int:
    """The index of the last message of the user, which begins the last turn."""
    return max(index for index, message in enumerate(messages) if message["role"] == "user")


def _text(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages, with the functions on offer at the end of the system message."""
    if not tools:
        return list(messages)
    text = tools_text(tools)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    system, *rest = messages
    return [{"role": "system", "content": f"{system['content'].rstrip()}\n\n{text}"}, *rest]


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The functions on offer as text, each as JSON on a line."""
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    return "\n".join(["The assistant may call these functions:", "<tools>", *lines, "</tools>"])


def message_text(message: Message) -> str:
    """All that a message says as one text: thoughts, content and calls.

    Thoughts stand in <think> and each call in <tool_call>, as many open models write them.
    """
    if message.keys() <= {"role", "content"}:
        return message["content"]
    return "\n\n".join(_text_parts(message))


def thoughts_text(message: Message) -> str:
    """The thoughts of a message as text, or an empty one."""
    thoughts = message.get("reasoning_content")
    return f"<think>\n{thoughts.strip()}\n</think>" if thoughts else ""


def _text_parts(message: Message) -> Iterator[str]:
    if thoughts := thoughts_text(message):
        yield thoughts
    calls = _calls(message)
    if message["content"].strip() or not calls:
        yield message["content"]
    for call in calls:
        name = json.dumps(call["function"]["name"], ensure_ascii=False)
        yield f'<tool_call>\n{{"name": {name}, "arguments": {arguments(call)}}}\n</tool_call>'


def _calls(message: Message) -> list[ToolCall]:
    return message.get("tool_calls") or []


def turn_ends(messages: Sequence[Message]) -> list[int]:
    """The index of each turn's last message of the assistant."""
    ends: list[int] = []
    new_turn = True
    for index, message in enumerate(messages):
        if message["role"] == "user":
            new_turn = True
        elif message["role"] == "assistant":
            if not new_turn:
                ends.pop()
            ends.append(index)
            new_turn = False
    return ends


def count_turns(messages: Sequence[Message]) -> int:
    """How many messages of the user a conversation has that got a reply."""
    return len(turn_ends(messages))


def count_characters(messages: Sequence[Message]) -> int:
    """How many characters the messages of a conversation have, those of every role."""
    return sum(len(message_text(message)) for message in messages)


def _error(record: Mapping[str, Any], field: str, problem: str) -> RecordError:
    return RecordError(problem, field=field, record=record)
