"""Text that a chat template wrote, read back into messages.

RL trainers send what the model in training reads and writes as one text in its own template. The
reward model has another template, or another BOS; so it must see the messages. What stands
between them is learned from conversations that the template renders. A text that the template
would not write of the messages is refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from musiccli.core.bundled_models import path_or_hub_id
from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import Message
from musiccli.core.pretrained import load_tokenizer, model_errors
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.serve.served_model import Reply
from musiccli.serve.tool_marks import ToolMarks, learn_tool_marks

SYSTEM, USERS, REPLIES = "Quiz7319", ("Quiz7320", "Quiz7321"), ("Quiz7322", "Quiz7323")


@dataclass(frozen=True)
class Separators:
    """What a template writes around messages.

    Attributes:
        start: before the first user message, where there is no system message.
        short_start: the same without a system message that the template adds by itself.
        before_system: before the system message.
        after_system: between it and the first user message. Empty where the template takes no
            system message, or puts it into the user's.
        before_reply: between a user message and its reply; a last reply may have another one.
        after_reply: between a reply and the next user message.
        end: after the last reply.
    """

    start: str
    short_start: str
    before_system: str
    after_system: str
    before_reply: tuple[str, ...]
    after_reply: str
    end: str


class ActorTemplate:
    """The chat template of a model in training.

    Args:
        tokenizer: its tokenizer.

    Raises:
        InputError: its template has no marks by which messages can be told apart.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._template = ChatTemplate(tokenizer)
        self._bos: str = tokenizer.bos_token or ""
        self._separators = _learn_separators(self._template, self._bos, tokenizer.name_or_path)
        self._tools = learn_tool_marks(self._template, self._separators.after_reply)
        self._next_message = _marks_by_role(self._separators, self._tools)
        self._endings = [
            ending
            for ending in (self._separators.end.strip(), tokenizer.eos_token, tokenizer.pad_token)
            if ending
        ]
        self._special_tokens = [token for token in tokenizer.all_special_tokens if token.strip()]

    @classmethod
    def load(cls, name: str) -> "ActorTemplate":
        """The template of a model: a folder, or a name on the hub.

        Raises:
            InputError: there is no such tokenizer, or it has no chat template.
        """
        path = path_or_hub_id(name)
        with model_errors(name):
            tokenizer = load_tokenizer(path)
        return cls(tokenizer)

    def read_or_error(self, text: str) -> Reply | RecordError:
        """What `read` gives, or the error that it raises."""
        try:
            return self.read(text)
        except RecordError as error:
            return error

    def read(self, text: str) -> Reply:
        """The conversation that a text holds. Its last reply may have no end, or be empty.

        Raises:
            RecordError: the template does not write such a text.
        """
        self._tools.refuse_unreadable(text)
        conversation = self._split(self._trimmed(text))
        for index, message in enumerate(conversation.messages):
            marks = [mark for mark in self._special_tokens if mark in message["content"]]
            if marks:
                problem = f"holds {marks[0]} within message {index}; it cannot be told apart"
                raise RecordError(f"the text {problem}")
        with_calls = [self._with_calls(message) for message in conversation.messages]
        # A call that the template would write otherwise is text, as one that is no JSON.
        for messages in (with_calls, conversation.messages):
            for start in (1, 0):  # without the system message, which the template may have added
                if start == 1 and messages[0]["role"] != "system":
                    continue
                reply = Reply(messages[start:], conversation.tools)
                if self._writes(reply, text):
                    return reply
        raise RecordError("the text is not what the actor's template writes of its messages")

    def _with_calls(self, message: Message) -> Message:
        """The message with its calls, where it is the assistant's."""
        if message["role"] != "assistant":
            return message
        return self._tools.split_calls(message["content"])

    def _trimmed(self, text: str) -> str:
        """The text without the BOS token, padding and ends of the last reply, with its start."""
        if self._bos:
            text = text.lstrip() if text.lstrip().startswith(self._bos) else text
            while text.startswith(self._bos):
                text = text.removeprefix(self._bos)
        marks = self._separators
        shortened = marks.short_start and text.startswith(marks.short_start)
        if shortened and not text.startswith(marks.start):
            text = marks.start + text.removeprefix(marks.short_start)
        shorter = text.rstrip()
        while ending := next((mark for mark in self._endings if shorter.endswith(mark)), ""):
            text = shorter.removesuffix(ending)
            shorter = text.rstrip()
        return text

    def _split(self, text: str) -> Reply:
        """The messages of a text, calls still in the assistant's text, and functions on offer."""
        system, tools, position = self._split_beginning(text)
        messages: list[Message] = []
        if system is not None:
            messages.append({"role": "system", "content": system})
        role = "user"
        while True:
            marks, roles = self._next_message[role]
            mark = marks.search(text, position)
            end, after = mark.span() if mark else (len(text), len(text))
            messages.append({"role": role, "content": text[position:end]})
            if mark is None:
                break
            role, position = roles[mark.group()], after
        if role != "assistant":
            raise RecordError("the text holds no reply in the actor's template")
        return Reply(messages, tools or None)

    def _split_beginning(self, text: str) -> tuple[str | None, list[dict[str, Any]], int]:
        """The system message, the functions on offer, and where the first user message begins."""
        marks = self._separators
        first, _ = self._next_message["user"]
        reply = first.search(text)
        beginning = text[: reply.start()] if reply else ""
        before = marks.before_system or marks.start
        before = before if beginning.startswith(before) else ""
        system, tools, position = self._tools.split_offers(beginning.removeprefix(before))
        if tools:
            return system or None, tools, len(before) + position
        if marks.after_system and text.startswith(marks.before_system):
            end = text.find(marks.after_system, len(marks.before_system))
            if end >= 0:
                content = text[len(marks.before_system) : end]
                return content, [], end + len(marks.after_system)
        if not text.startswith(marks.start):
            raise RecordError("the text does not begin as the actor's template does")
        return None, [], len(marks.start)

    def _writes(self, reply: Reply, text: str) -> bool:
        """Whether the template writes this text of the messages, but for spaces and its end."""
        try:
            written = self._template.render(reply.messages, reply.tools or ())
        except RecordError:
            return False
        return _compact(self._trimmed(written)) == _compact(self._trimmed(text))


def _marks_by_role(
    separators: Separators, tools: ToolMarks
) -> dict[str, tuple[re.Pattern[str], dict[str, str]]]:
    """What may follow a message of each role: the marks, and the role of the next one by each."""
    roles = {
        "user": dict.fromkeys(separators.before_reply, "assistant"),
        "assistant": {separators.after_reply: "user"},
    }
    if calls := tools.calls:
        roles["assistant"][calls.before_result] = "tool"
        roles["tool"] = dict.fromkeys(calls.after_results, "assistant")
        roles["tool"][calls.between_results] = "tool"
    return {role: (_first_of(marks), marks) for role, marks in roles.items()}


def _first_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Finds the first of the marks; where several begin at one place, the longest."""
    return re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))


def _learn_separators(template: ChatTemplate, bos: str, name: str) -> Separators:
    """What the template writes around messages, from a conversation of two turns."""
    turns: list[Message] = []
    for user, reply in zip(USERS, REPLIES, strict=True):
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    words = [word for pair in zip(USERS, REPLIES, strict=True) for word in pair]
    try:
        plain = _between(template.render(turns).removeprefix(bos), words)
        system: list[str] = []
        if template.takes_system:
            message: Message = {"role": "system", "content": SYSTEM}
            text = template.render([message, *turns]).removeprefix(bos)
            system = _between(text, [SYSTEM, *words])
    except (RecordError, ValueError) as error:
        raise InputError(
            f"{name}: its chat template does not show a conversation of two turns whole, so text "
            "in it cannot be read"
        ) from error
    start, first_reply, after_reply, last_reply, end = plain
    before_system, after_system = system[:2] if system else ("", "")
    if not first_reply.strip() or not after_reply.strip():
        raise InputError(f"{name}: its chat template puts no marks between messages")
    return Separators(
        start,
        after_reply.removeprefix(end).removeprefix(bos) if end.strip() else start,
        before_system,
        after_system if after_system.strip() else "",
        tuple({first_reply, last_reply}),
        after_reply,
        end,
    )


def _between(text: str, words: list[str]) -> list[str]:
    """What stands before, between and behind words that a text holds once each, in this order.

    Raises:
        ValueError: it does not hold them so.
    """
    parts = []
    for word in words:
        part, text = text.split(word)
        parts.append(part)
    return [*parts, text]


def _compact(text: str) -> str:
    return "".join(text.split())
