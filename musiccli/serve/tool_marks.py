"""How a chat template writes calls, results of tools and functions on offer, and reading them back.

The marks are learned from conversations that the template renders, as those between messages are.
Calls and functions are read where the template writes each as a JSON object between marks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.reward_model.chat_template import ChatTemplate

Marks = TypeVar("Marks")

CALLED, OFFERED, VALUE, RESULTS = "quiz_7330", "quiz_7331", "7332", ("Quiz7333", "Quiz7334")
WORDS = ("Quiz7335", "Quiz7336", "Quiz7337", "Quiz7338", "Quiz7339")
ARGUMENTS = ("arguments", "parameters")  # how templates call the arguments of a call
UNREADABLE = "in a form of the actor's template that is not read back; send `messages` instead"


@dataclass(frozen=True)
class CallMarks:
    """What a template writes around calls and results of tools.

    Attributes:
        start: before a call's object, without spaces around.
        end: behind it.
        arguments: the key of the arguments in it.
        before_result: between a message with calls and the first result.
        between_results: between two results.
        after_results: between the last result and the assistant's next message.
    """

    start: str
    end: str
    arguments: str
    before_result: str
    between_results: str
    after_results: tuple[str, ...]


@dataclass(frozen=True)
class OfferMarks:
    """What a template writes around the functions on offer, which are objects in a row.

    Attributes:
        start: between the system message and the first function, without spaces around.
        between: between two functions, without spaces around.
        end: between the last function and the first user message.
        is_bare: whether the objects are the functions alone, without their type.
    """

    start: str
    between: str
    end: str
    is_bare: bool


@dataclass(frozen=True)
class ToolMarks:
    """What a template writes around calls and functions on offer.

    Attributes:
        calls: around calls and results; None where they are no objects between marks.
        offers: around functions on offer, likewise.
        unreadable: marks of calls and functions that cannot be read back, and what they are of.
    """

    calls: CallMarks | None
    offers: OfferMarks | None
    unreadable: dict[str, str]

    def refuse_unreadable(self, text: str) -> None:
        """Raise RecordError where the template wrote what cannot be read back."""
        for mark, name in self.unreadable.items():
            if mark in text:
                raise RecordError(f"the text holds {name} {UNREADABLE}")

    def split_calls(self, content: str) -> Message:
        """The assistant's message with its calls; calls in another form stay in its text."""
        message = _assistant(content)
        marks = self.calls
        if marks is None or (begin := content.find(marks.start)) < 0:
            return message
        calls: list[Any] = []
        content, position = content.rstrip(), begin
        while position < len(content):
            if not content.startswith(marks.start, position):
                return message
            call, position = _object_at(content, position + len(marks.start))
            position = _skip_spaces(content, position)
            if not _is_call(call, marks.arguments) or not content.startswith(marks.end, position):
                return message
            position = _skip_spaces(content, position + len(marks.end))
            arguments = json.dumps(call[marks.arguments], ensure_ascii=False)
            function = {"name": call["name"], "arguments": arguments}
            calls.append({"type": "function", "function": function})
        return {**_assistant(content[:begin].rstrip()), "tool_calls": calls}

    def split_offers(self, text: str) -> tuple[str, list[dict[str, Any]], int]:
        """The functions on offer at the beginning of a text.

        Args:
            text: from the system message on.

        Returns:
            The system message, the functions, and where the first user message begins; an empty
            list where there are none.
        """
        nothing: tuple[str, list[dict[str, Any]], int] = ("", [], 0)
        if self.offers is None or (begin := text.find(self.offers.start)) < 0:
            return nothing
        tools: list[dict[str, Any]] = []
        position = begin + len(self.offers.start)
        while not text.startswith(self.offers.end, position):
            position = _skip_spaces(text, position)
            if tools and text.startswith(self.offers.between, position):
                position += len(self.offers.between)
            tool, position = _object_at(text, position)
            if tool is None:
                return nothing
            tools.append({"type": "function", "function": tool} if self.offers.is_bare else tool)
        return text[:begin].strip(), tools, position + len(self.offers.end)


def learn_tool_marks(template: ChatTemplate, after_reply: str) -> ToolMarks:
    """What a template writes around calls, results of tools and functions on offer.

    Args:
        template: the template.
        after_reply: what it writes between a reply and the next user message.
    """
    unreadable: dict[str, str] = {}
    calls = _learn(_learn_calls, template, after_reply)
    if calls is None and (mark := _learn(_mark_before_call, template, after_reply)):
        unreadable[mark] = "calls"
    offers = _learn(_learn_offers, template, after_reply)
    if offers is None and (mark := _learn(_mark_before_offer, template, after_reply)):
        unreadable[mark] = "functions on offer"
    return ToolMarks(calls, offers, unreadable)


def _learn(
    learn: Callable[[ChatTemplate, str], Marks], template: ChatTemplate, after_reply: str
) -> Marks | None:
    """What `learn` gives; None where the template refuses, or writes in another form."""
    try:
        return learn(template, after_reply)
    except (RecordError, ValueError):
        return None


def _learn_calls(template: ChatTemplate, after_reply: str) -> CallMarks:
    first, text, reply, again, last = WORDS
    results: list[Message] = [{"role": "tool", "content": result} for result in RESULTS]
    ending = [_user(again), _assistant(last)]
    whole = template.render([_user(first), _calling(text), *results, _assistant(reply), *ending])
    short = template.render([_user(first), _calling(text), *results, _assistant(reply)])
    without_result = template.render([_user(first), _calling(text), *ending])
    _, rest = whole.split(text)
    start, arguments, end = _find_object(rest, lambda call: _called_arguments(call) or "")
    before_result, between_results, after_results = _gaps(rest[end:], *RESULTS, reply)
    _, rest_without = without_result.split(text)
    call_end = rest_without[end : rest_without.index(again)].removesuffix(after_reply)
    if not before_result.startswith(call_end) or not start.strip() or not call_end.strip():
        raise ValueError("no marks around a call")
    *_, after_last_results = _gaps(short.split(text)[1][end:], *RESULTS, reply)
    return CallMarks(
        start.strip(),
        call_end.strip(),
        arguments,
        before_result.removeprefix(call_end),
        between_results,
        tuple({after_results, after_last_results}),
    )


def _learn_offers(template: ChatTemplate, _: str) -> OfferMarks:
    system, first, reply, *_rest = WORDS
    messages: list[Message] = [{"role": "system", "content": system}, _user(first)]
    text = template.render([*messages, _assistant(reply)], [_offer(), _offer()])
    _, rest = text.split(system)

    def form(value: Any) -> str:
        return "bare" if value == _offer()["function"] else "whole" if value == _offer() else ""

    start, kind, end = _find_object(rest, form)
    between, _, length = _find_object(rest[end:], form)
    if not start.strip():
        raise ValueError("no mark before the functions")
    behind = rest[end + length :]
    return OfferMarks(start.strip(), between.strip(), behind[: behind.index(first)], kind == "bare")


def _mark_before_call(template: ChatTemplate, _: str) -> str:
    """What the template writes between the beginning of a reply and a call."""
    first, reply = WORDS[:2]
    plain = template.render([_user(first), _assistant(reply)])
    results: list[Message] = [{"role": "tool", "content": result} for result in RESULTS]
    calling = template.render([_user(first), _calling(""), *results, _assistant(reply)])
    return _after_common_beginning(calling, plain).split(CALLED)[0].strip()


def _mark_before_offer(template: ChatTemplate, _: str) -> str:
    """What the template writes before a function, whether there is a system message or none."""
    system, first, reply, *_rest = WORDS
    messages = [_user(first), _assistant(reply)]
    bare = template.render(messages, [_offer()])
    without = _after_common_beginning(bare, template.render(messages)).split(OFFERED)[0]
    after_system = template.render([{"role": "system", "content": system}, *messages], [_offer()])
    reversed_text, second = without[::-1], after_system.split(OFFERED)[0][::-1]
    return reversed_text[: _common_length(reversed_text, second)][::-1].strip()


def _after_common_beginning(text: str, second: str) -> str:
    return text[_common_length(text, second) :]


def _common_length(text: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(text, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(text), len(second)))


def _gaps(text: str, *words: str) -> list[str]:
    """What stands before each of the words, which follow each other in a text."""
    gaps = []
    for word in words:
        gap, text = text.split(word)
        gaps.append(gap)
    return gaps


def _find_object(text: str, form: Callable[[Any], str]) -> tuple[str, str, int]:
    """The first JSON object in a text that has a form.

    Returns:
        What stands before it, its form, and where it ends.

    Raises:
        ValueError: there is none.
    """
    begin = text.find("{")
    while begin >= 0:
        value, end = _object_at(text, begin)
        if value is not None and (name := form(value)):
            return text[:begin], name, end
        begin = text.find("{", begin + 1)
    raise ValueError("no such object")


def _object_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON object at a position, behind spaces, and where it ends; None where there is none."""
    position = _skip_spaces(text, position)
    if not text.startswith("{", position):
        return None, position
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position
    return value, end


def _skip_spaces(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _called_arguments(call: Mapping[str, Any]) -> str | None:
    """The key of the arguments in the object of the call that is learned from."""
    if call.get("name") != CALLED:
        return None
    return next((name for name in ARGUMENTS if call.get(name) == {"quiz": VALUE}), None)


def _is_call(value: Any, arguments: str) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and arguments in value


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _calling(text: str) -> Message:
    function: Any = {"name": CALLED, "arguments": json.dumps({"quiz": VALUE})}
    call: Any = {"type": "function", "function": function}
    return {"role": "assistant", "content": text, "tool_calls": [call]}


def _offer() -> dict[str, Any]:
    function = {
        "name": OFFERED,
        "description": "q",
        "parameters": {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}
