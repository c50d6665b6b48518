"""A conversation as a reward model reads it: token ids by the tokenizer's own chat template.

The reward of a conversation is read at the last token that the template writes for its last
assistant turn; for Gemma this is the newline after <end_of_turn>. Training, scoring and checks
all encode conversations here, so they cannot differ.

Calls, results of tools, thoughts and the functions on offer go to the template where it shows all
of them. Where it refuses or leaves out any, they stand in the text, as
`core.messages.plain_messages` writes them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import accumulate, count, repeat
from typing import Any, TypeVar

from musiccli.core import json_text
from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import (
    Message,
    ToolCall,
    count_characters,
    has_tool_turns,
    message_text,
    plain_messages,
    thoughts_text,
    turn_ends,
    with_tools,
)
from musiccli.core.template_limits import TemplateLimitError, apply_chat_template
from musiccli.core.text_safety import valid_text

DATE_CALL = re.compile(
    r"""strftime_now\((["'])([^"'\n]*)\1\)"""
)  # how templates ask for today's date
FIXED_DATE = datetime(2024, 7, 26)  # Llama 3.2's template writes this one where it has no clock
REWRITES_TURNS = "the chat template rewrites earlier turns when more follow"
MAX_GUESSES = 4  # from lengths in characters; then the cut is found by halving

Tools = Sequence[Mapping[str, Any]]  # the functions on offer
Value = TypeVar("Value")


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids.

    Attributes:
        ids: all token ids.
        reward_positions: indices in `ids` at which rewards are read: after each turn, or after
            the last one alone.
    """

    ids: list[int]
    reward_positions: list[int]


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as the chat template writes it.

    Attributes:
        text: what the model reads.
        turn_stops: behind which characters of it turns end and rewards are read; None reads one
            reward at its end.
    """

    text: str
    turn_stops: Sequence[int] | None = None


class ChatTemplate:
    """A tokenizer's chat template, made safe for reward models.

    A system message goes into the first user message where the template takes none. A template
    that writes today's date writes FIXED_DATE, also once it is saved: otherwise a conversation
    would be other tokens tomorrow.

    Attributes:
        tokenizer: the tokenizer, whose template may have been changed.
        vocabulary: how many tokens the model has an embedding of; None means all.
        takes_system: whether the template shows a system message.
    """

    def __init__(self, tokenizer: Any, vocabulary: int | None = None):
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, so nobody knows "
                "how a conversation should read; use a chat model, or add a chat_template.jinja "
                "to its folder"
            )
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = DATE_CALL.sub(
                lambda call: repr(FIXED_DATE.strftime(call[2])), tokenizer.chat_template
            )
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        system: Message = {"role": "system", "content": "Quiz 7319."}
        self.takes_system = self._shows([system, _user("u")], ["Quiz 7319."])

    @cached_property
    def takes_thoughts(self) -> bool:
        """Whether the template shows `reasoning_content` of the last reply."""
        reply: Message = {"role": "assistant", "content": "a", "reasoning_content": "Quiz 7319."}
        return self._shows([_user("u"), reply], ["Quiz 7319."])

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows the functions on offer."""
        function = {"name": "quiz_7319", "description": "q", "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": function}]
        return self._shows([_user("u")], ["quiz_7319"], tools)

    @property
    def takes_calls(self) -> bool:
        """Whether the template shows calls and the text beside them, and results of tools."""
        return self._arguments_as is not None

    @cached_property
    def _arguments_as(self) -> type | None:
        """How the template takes a call's arguments: dict, or str for JSON text.

        None where a conversation with two calls at once is refused or not shown whole.
        """
        calls = [_call("quiz_7319", "7320"), _call("quiz_7321", "7322")]
        conversation: list[Message] = [
            _user("u"),
            {"role": "assistant", "content": "Quiz 7323.", "tool_calls": calls},
            {"role": "tool", "content": "Quiz 7324."},
            {"role": "tool", "content": "Quiz 7325."},
            {"role": "assistant", "content": "a"},
        ]
        marks = ["quiz_7319", "quiz_7321", "Quiz 7323.", "Quiz 7324.", "Quiz 7325."]
        as_json = ['"quiz": "7320"', '"quiz": "7322"']
        # Some templates show an object in a form of their own, and some as Python writes it.
        for form, values in ((dict, as_json), (str, as_json), (dict, ["7320", "7322"])):
            if self._shows(_template_calls(conversation, form), [*marks, *values]):
                return form
        return None

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The text that the model reads.

        Args:
            messages: a conversation.
            tools: the functions on offer in it.

        Raises:
            RecordError: the template refuses the conversation.
        """
        messages, tools = self._prepare(messages, tools)
        try:
            return valid_text(self._apply(self.fold_system(messages), tools))
        except TemplateLimitError as error:
            raise RecordError(str(error), field="messages") from error
        except Exception as error:  # templates raise whatever jinja raises
            raise RecordError(f"the chat template refuses it: {error}", field="messages") from error

    def fold_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, their system message within the first user message where need be."""
        if self.takes_system or messages[0]["role"] != "system":
            return list(messages)
        system, first, *rest = messages
        text = f"{system['content'].strip()}\n\n{first['content']}"
        return [{"role": "user", "content": text}, *rest]

    def encode(
        self, messages: Sequence[Message], every_turn: bool = True, tools: Tools = ()
    ) -> EncodedConversation:
        """Token ids, from one tokenization of the whole text.

        Args:
            messages: a conversation that ends with the assistant.
            every_turn: whether to read a reward after every turn, or after the last alone.
            tools: the functions on offer in it.

        Raises:
            RecordError: the template refuses the conversation, or it holds a token that the model
                has no embedding of. Or every turn is asked for, and the template writes earlier
                turns differently once more turns follow, as those do that drop earlier thoughts:
                such turns do not end within the whole.
        """
        [encoded] = self.tokenize([self.render_turns(messages, every_turn, tools)])
        if isinstance(encoded, RecordError):
            raise encoded
        return encoded

    def render_turns(
        self, messages: Sequence[Message], every_turn: bool = True, tools: Tools = ()
    ) -> RenderedConversation:
        """The first half of `encode`: the text, and where in it rewards are read.

        Arguments and errors are those of `encode`.
        """
        text = self.render(messages, tools)
        if not every_turn:
            return RenderedConversation(text)
        stops = []
        for index in turn_ends(messages):
            last = index == len(messages) - 1
            prefix = text if last else self.render(messages[: index + 1], tools)
            if not text.startswith(prefix):
                raise RecordError(REWRITES_TURNS, field="messages")
            stops.append(len(prefix))
        return RenderedConversation(text, stops)

    def tokenize(
        self, conversations: Sequence[RenderedConversation]
    ) -> list[EncodedConversation | RecordError]:
        """The second half of `encode`, for many conversations at once, which takes less time.

        In a thread it leaves the interpreter to others, where the tokenizer is a fast one.

        Args:
            conversations: either each with the ends of its turns, or none.

        Returns:
            For each its tokens, or the RecordError that `encode` would raise.
        """
        if not conversations:
            return []
        every_turn = conversations[0].turn_stops is not None
        encoding = self.tokenizer(
            [conversation.text for conversation in conversations],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=every_turn,
            verbose=False,
        )
        offsets = encoding["offset_mapping"] if every_turn else repeat(())
        return [
            _value_or_error(self._encoded, ids, spans, conversation.turn_stops)
            for ids, spans, conversation in zip(
                encoding["input_ids"], offsets, conversations, strict=False
            )
        ]

    def _encoded(
        self, ids: list[int], spans: Sequence[tuple[int, int]], turn_stops: Sequence[int] | None
    ) -> EncodedConversation:
        """A conversation of these tokens, each of which stands for a span of characters."""
        self._refuse_unknown_tokens(ids)
        if turn_stops is None:
            return EncodedConversation(ids, [len(ids) - 1])
        token_at = {stop: index for index, (_, stop) in enumerate(spans)}
        if any(stop not in token_at for stop in turn_stops):
            raise RecordError(REWRITES_TURNS, field="messages")
        return EncodedConversation(ids, [token_at[stop] for stop in turn_stops])

    def encode_batch(
        self, conversations: Sequence[tuple[Sequence[Message], Tools]]
    ) -> list[EncodedConversation | RecordError]:
        """What `encode` gives for many conversations, each read at its end, in less time.

        Args:
            conversations: messages, and the functions on offer in them.

        Returns:
            For each its tokens, or the RecordError that `encode` would raise.
        """
        texts = [
            _value_or_error(self.render_turns, messages, False, tools)
            for messages, tools in conversations
        ]
        encoded = iter(
            self.tokenize([text for text in texts if isinstance(text, RenderedConversation)])
        )
        return [text if isinstance(text, RecordError) else next(encoded) for text in texts]

    def template_tokens(self) -> list[int]:
        """The token ids of a short conversation, most of which the template writes.

        The last one is where the reward is read.
        """
        text = self.render([_user("q"), {"role": "assistant", "content": "a"}])
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise RecordError("the tokenizer makes no token of a conversation")
        return ids

    def last_token(self) -> int:
        """The token id that the template writes last, where the reward is read."""
        return self.template_tokens()[-1]

    def highest_token(self) -> int:
        """The highest token id that the template writes, around calls and functions, too."""
        ids = self.template_tokens()
        with suppress(RecordError):  # some templates refuse what others take
            calls: list[Message] = [
                {"role": "system", "content": "s"},
                _user("u"),
                {"role": "assistant", "content": "", "tool_calls": [_call("quiz", "q")]},
                {"role": "tool", "content": "r"},
                {"role": "assistant", "content": "a", "reasoning_content": "t"},
            ]
            function = {"name": "quiz", "parameters": {"type": "object"}}
            text = self.render(calls, [{"type": "function", "function": function}])
            ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return max(ids)

    def losses(self) -> list[str]:
        """What the template leaves out of a conversation of several turns; mostly nothing."""
        turn, thoughts, outcome = "Quiz 7319.", "Quiz 7320.", "Quiz 7321."
        last: list[Message] = [_user("u"), {"role": "assistant", "content": "a"}]
        thinking: Message = {"role": "assistant", "content": turn, "reasoning_content": thoughts}
        calls: list[Message] = [
            _user("u"),
            {"role": "assistant", "content": "", "tool_calls": [_call("quiz", "q")]},
            {"role": "tool", "content": outcome},
            {"role": "assistant", "content": "a"},
        ]
        plain = self.render([_user("u"), thinking, *last])
        shown = {
            "earlier turns": turn in plain,
            "thoughts of earlier turns": thoughts in plain,
            "results of tools in earlier turns": outcome in self.render([*calls, *last]),
        }
        return [name for name, is_shown in shown.items() if not is_shown]

    def _prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], Tools]:
        """The messages and the functions on offer as the template takes them."""
        has_thoughts = any("reasoning_content" in message for message in messages)
        if has_tool_turns(messages):
            if self._arguments_as is None:
                messages, has_thoughts = plain_messages(messages), False
            else:
                messages = _template_calls(messages, self._arguments_as)
        if has_thoughts and not self.takes_thoughts:
            messages = [_with_thoughts_as_text(message) for message in messages]
        if tools and not self.takes_tools:
            messages, tools = with_tools(messages, tools), ()
        return list(messages), tools

    def _refuse_unknown_tokens(self, ids: list[int]) -> None:
        if not ids:
            raise RecordError("the tokenizer makes no token of it", field="messages")
        highest = max(ids)
        if self.vocabulary is not None and highest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise RecordError(f"holds {token}, a token that the model has no embedding of")

    def _shows(self, messages: Sequence[Message], marks: Sequence[str], tools: Tools = ()) -> bool:
        """Whether the template neither refuses the messages nor leaves out a mark in them."""
        try:
            text = self._apply(messages, tools)
        except TemplateLimitError:  # it would take as long for every conversation
            raise
        except Exception:
            return False
        return all(mark in text for mark in marks)

    def _apply(self, messages: Sequence[Message], tools: Tools) -> str:
        return apply_chat_template(self.tokenizer, messages, tools=list(tools) or None)


def _value_or_error(function: Callable[..., Value], *arguments: Any) -> Value | RecordError:
    """What a function returns, or the RecordError that it raises."""
    try:
        return function(*arguments)
    except RecordError as error:
        return error


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _call(name: str, value: str) -> ToolCall:
    function: Any = {"name": name, "arguments": json.dumps({"quiz": value})}
    return {"type": "function", "function": function}


def _with_thoughts_as_text(message: Message) -> Message:
    """The message with its thoughts before its content, as `plain_messages` has them."""
    if not (thoughts := thoughts_text(message)):
        return message
    content = "\n\n".join(text for text in (thoughts, message["content"]) if text)
    changed: Any = {**message, "content": content}
    del changed["reasoning_content"]
    return changed


def _template_calls(messages: Sequence[Message], arguments_as: type) -> list[Message]:
    """Calls and results as chat templates take them.

    Calls are numbered anew, in nine digits as Mistral's template asks for: the ids that servers
    draw at random say nothing, and would be other tokens in every record. A result without an id
    belongs to the first call that has no result yet.
    """
    prepared: list[Any] = []
    waiting: dict[str, dict[str, Any]] = {}  # calls without a result, by the record's ids
    number_of_calls = 0
    for message in messages:
        if "tool_calls" in message:
            calls = message["tool_calls"]
            numbered = [
                _template_call(call, f"{number:09}", arguments_as)
                for number, call in enumerate(calls, start=number_of_calls)
            ]
            number_of_calls += len(calls)
            waiting = {
                call.get("id", new["id"]): new for call, new in zip(calls, numbered, strict=True)
            }
            prepared.append({**message, "tool_calls": numbered})
        elif message["role"] == "tool":
            key = message.get("tool_call_id", "")
            answered = waiting.pop(key if key in waiting else next(iter(waiting), ""), None)
            fields = {"name": answered["function"]["name"]} if answered else {}
            identity = answered["id"] if answered else "0" * 9
            prepared.append({**fields, **message, "tool_call_id": identity})
        else:
            prepared.append(message)
    return prepared


def _template_call(call: ToolCall, identity: str, arguments_as: type) -> dict[str, Any]:
    """One call. Arguments that are no JSON stay text: a model may write that."""
    function: dict[str, Any] = {**call["function"]}
    if arguments_as is dict:
        with suppress(ValueError):
            function["arguments"] = json_text.decode(function["arguments"].encode())
    return {"id": identity, "type": "function", "function": function}


def cut_to_fit(
    encode: Callable[[list[Message]], EncodedConversation],
    conversations: Sequence[list[Message]],
    max_length: int,
    shared: int,
    whole: Iterable[EncodedConversation] | None = None,
) -> tuple[list[EncodedConversation], int] | None:
    """Encode conversations in at most `max_length` tokens each, without their oldest exchanges.

    All lose the same exchanges, each a user message and all that replies to it. Every conversation
    keeps its system message, starts with a user message, and keeps its last exchange. The exchange
    in which they diverge is kept, too.

    As few exchanges are cut as possible. How many is guessed from the characters and corrected, so
    that this takes as long as a few encodings, however many exchanges there are.

    Args:
        encode: makes tokens of messages.
        conversations: one, or several that begin with the same messages.
        max_length: tokens.
        shared: how many leading messages all have in common. Only these are cut.
        whole: the conversations in whole, where they are encoded already.

    Returns:
        The encoded conversations and how many messages each has lost. None where it cannot be
        done.
    """
    system = int(conversations[0][0]["role"] == "system")
    conversations = [list(messages) for messages in conversations]
    cuts = _possible_cuts(conversations, system, shared)

    def attempt(cut: int) -> tuple[list[EncodedConversation], int]:
        kept = [messages[:system] + messages[system + cut :] for messages in conversations]
        return _encode_within(encode, kept, max_length)

    if whole is None:
        encoded, longest = attempt(0)
    else:
        remaining = iter(whole)
        encoded, longest = _encode_within(lambda _: next(remaining), conversations, max_length)
    if longest <= max_length:
        return encoded, 0
    sizes = _characters_after(max(conversations, key=count_characters), system, cuts)
    low, low_tokens = 0, longest  # the largest cut that is known to be too small
    high, high_tokens = len(cuts), 0  # the smallest one that is known to suffice
    for attempts in count():
        if high - low <= 1:
            break
        per_character = (low_tokens - high_tokens) / (sizes[low] - sizes[high])
        wanted = sizes[low] - (low_tokens - max_length) / max(per_character, 1e-9)
        guess = low + sum(size > wanted for size in sizes[low:high])
        if attempts >= MAX_GUESSES:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        candidate, longest = attempt(cuts[guess])
        if longest <= max_length:
            high, high_tokens, encoded = guess, longest, candidate
        else:
            low, low_tokens = guess, longest
    return (encoded, cuts[high]) if high < len(cuts) else None


def _possible_cuts(conversations: Sequence[list[Message]], system: int, shared: int) -> list[int]:
    """How many messages after the system message may be cut, in ascending order, from 0."""
    starts = range(system + 1, min(shared + 1, *(len(messages) - 1 for messages in conversations)))
    return [0] + [
        start - system
        for start in starts
        if all(messages[start]["role"] == "user" for messages in conversations)
    ]


def _characters_after(messages: Sequence[Message], system: int, cuts: Sequence[int]) -> list[int]:
    """The characters that each cut leaves, and 0 for a cut of everything."""
    sizes = [len(message_text(message)) for message in messages]
    totals = [0, *accumulate(reversed(sizes))][::-1]  # of the messages from each index on
    return [*(sum(sizes[:system]) + totals[system + cut] for cut in cuts), 0]


def _encode_within(
    encode: Callable[[list[Message]], EncodedConversation],
    conversations: Sequence[list[Message]],
    max_length: int,
) -> tuple[list[EncodedConversation], int]:
    """The encoded conversations up to the first that is too long, and the largest length."""
    encoded, longest = [], 0
    for messages in conversations:
        encoded.append(encode(messages))
        longest = max(longest, len(encoded[-1].ids))
        if longest > max_length:
            break
    return encoded, longest
