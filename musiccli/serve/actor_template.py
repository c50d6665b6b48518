"""Text that a chat template wrote, read back into messages.

RL trainers send what the model in training reads and writes as one text in its own template. The
reward model has another template, or another BOS; so it must see the messages. What stands
between them is learned from conversations that the template renders. A text that the template
would not write of the messages is refused.
"""

from dataclasses import dataclass
from typing import Any

from musiccli.core.bundled_models import path_or_hub_id
from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import Message
from musiccli.core.pretrained import load_tokenizer, model_errors
from musiccli.reward_model.chat_template import ChatTemplate
from musiccli.serve.served_model import Reply

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
        messages = self._split(self._trimmed(text))
        for index, message in enumerate(messages):
            marks = [mark for mark in self._special_tokens if mark in message["content"]]
            if marks:
                problem = f"holds {marks[0]} within message {index}; it cannot be told apart"
                raise RecordError(f"the text {problem}")
        if messages[0]["role"] == "system" and self._writes(messages[1:], text):
            return Reply(messages[1:])  # the template adds this system message by itself
        if not self._writes(messages, text):
            raise RecordError("the text is not what the actor's template writes of its messages")
        return Reply(messages)

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

    def _split(self, text: str) -> list[Message]:
        marks, position = self._separators, 0
        messages: list[Message] = []
        if marks.after_system and text.startswith(marks.before_system):
            end = text.find(marks.after_system, len(marks.before_system))
            if end >= 0:
                content = text[len(marks.before_system) : end]
                messages.append({"role": "system", "content": content})
                position = end + len(marks.after_system)
        if not messages:
            if not text.startswith(marks.start):
                raise RecordError("the text does not begin as the actor's template does")
            position = len(marks.start)
        while True:
            end, mark = _first_of(text, marks.before_reply, position)
            if end < 0:
                raise RecordError("the text holds no reply in the actor's template")
            messages.append({"role": "user", "content": text[position:end]})
            position = end + len(mark)
            end = text.find(marks.after_reply, position)
            if end < 0:
                messages.append({"role": "assistant", "content": text[position:]})
                return messages
            messages.append({"role": "assistant", "content": text[position:end]})
            position = end + len(marks.after_reply)

    def _writes(self, messages: list[Message], text: str) -> bool:
        """Whether the template writes this text of the messages, but for spaces and its end."""
        try:
            written = self._template.render(messages)
        except RecordError:
            return False
        return _compact(self._trimmed(written)) == _compact(self._trimmed(text))


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
        # The longer one first: it may begin with the shorter one.
        tuple(sorted({first_reply, last_reply}, key=len, reverse=True)),
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


def _first_of(text: str, marks: tuple[str, ...], start: int) -> tuple[int, str]:
    """Where the first of the marks stands in a text, and which; -1 where none does."""
    places = [(text.find(mark, start), -len(mark), mark) for mark in marks]
    places = [place for place in places if place[0] >= 0]
    place, _, mark = min(places, default=(-1, 0, ""))
    return place, mark


def _compact(text: str) -> str:
    return "".join(text.split())
