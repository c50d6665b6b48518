"""Tool calls and their results as datasets write them, in the form of OpenAI's messages.

ms-swift, LLaMA-Factory and Plan-RewardBench write a call as a message of its own, whose content is
JSON or a Python literal: {"name": ..., "arguments": ...}.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import orjson

from musiccli.core import json_text
from musiccli.core.errors import RecordError

CALL_ROLES = ("tool_call", "function_call")
RESULT_ROLES = ("tool_response", "observation")

Messages = list[Any]


def join_tool_turns(row: Mapping[str, Any], field: str, messages: Messages) -> Messages:
    """Put each call into the assistant's message before it, and give each result its call's id.

    A call without such a message makes one whose content is empty. The data does not name the
    calls, so they are numbered: "call_0", "call_1", ... Results come in the order of the calls.

    Args:
        row: the row, for error messages.
        field: the column that holds the messages, for error messages.
        messages: messages with a known role, or one of CALL_ROLES or RESULT_ROLES.

    Raises:
        RecordError: a call cannot be read, or a result follows no call.
    """
    joined: Messages = []
    number = 0
    unanswered: list[str] = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        if message["role"] in CALL_ROLES:
            for function in _read_functions(row, where, message["content"]):
                unanswered.append(f"call_{number}")
                _add_call(joined, {"id": unanswered[-1], "type": "function", "function": function})
                number += 1
        elif message["role"] in RESULT_ROLES:
            if not unanswered:
                raise RecordError("is a tool's result without a call", field=where, record=row)
            joined.append({**message, "role": "tool", "tool_call_id": unanswered.pop(0)})
        else:
            unanswered.clear()
            joined.append(message)
    return joined


def _add_call(joined: Messages, call: dict[str, Any]) -> None:
    """Put the call into the assistant's message that is the last one, or into a new one."""
    if not joined or joined[-1]["role"] != "assistant":
        joined.append({"role": "assistant", "content": ""})
    last = joined[-1]
    joined[-1] = {**last, "tool_calls": [*last.get("tool_calls", []), call]}


def _read_functions(row: Mapping[str, Any], where: str, content: object) -> list[dict[str, Any]]:
    """The functions that one message calls, each as {"name", "arguments"}."""
    value: Any = _read_literal(content) if isinstance(content, str) else content
    functions = value if isinstance(value, list) else [value]
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(
                'is no tool call; it should be {"name": ..., "arguments": ...}',
                field=where,
                record=row,
            )
    return [
        {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
        for function in functions
    ]


def _arguments(value: object) -> str:
    """The arguments as OpenAI has them: JSON in a string."""
    if isinstance(value, str):
        return value
    return "{}" if value is None else orjson.dumps(value).decode()


def _read_literal(text: str) -> object:
    """The value of a text that is JSON or a Python literal; None where it is neither."""
    import ast

    try:
        return json_text.decode(text.encode())
    except ValueError:
        pass
    try:
        with warnings.catch_warnings(action="ignore"):  # about backslashes in the text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
