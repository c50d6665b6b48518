"""A model that is served, and how it reads conversations, texts and token ids."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from musiccli.core.errors import RecordError, shortened
from musiccli.core.messages import Message
from musiccli.core.records import Record, parse_conversation
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.scoring import encode_sides
from musiccli.reward_model.vocabulary import embedding_rows

WARM_UP: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What is 2 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
            ],
        },
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4."},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
}


@dataclass(frozen=True)
class Reply:
    """A conversation that ends with what a model in training wrote, which may be empty.

    Attributes:
        messages: all messages before it, and it.
        tools: the functions on offer.
    """

    messages: list[Message]
    tools: Any = None


# A record with `messages`, text by the chat template of the reward model, or its token ids.
Item = Record | Reply | str | list[int]


@dataclass(frozen=True)
class EncodedItem:
    """An item as the model reads it.

    Attributes:
        conversation: its tokens, and where rewards are read.
        was_cut: whether it lost its oldest exchanges.
        reward_tokens: the text of the tokens at which rewards are read.
    """

    conversation: EncodedConversation
    was_cut: bool
    reward_tokens: list[str]


@dataclass(frozen=True)
class Reward:
    """What scoring an item gives.

    Attributes:
        turns: the reward after every turn, or after the last alone; the last is the item's.
        item: the item as the model read it.
    """

    turns: list[float]
    item: EncodedItem


@dataclass
class ServedModel:
    """A reward model under the name that requests call it by.

    Attributes:
        name: the name.
        path: where it was loaded from, which requests may call it by, too.
        model: the model.
        max_length: the most tokens of a conversation.
    """

    name: str
    path: str
    model: RewardModel
    max_length: int

    @cached_property
    def opening_token(self) -> int | None:
        """The BOS token, where the chat template begins with it."""
        token: int | None = self.model.tokenizer.bos_token_id
        return token if token == self.model.chat_template.template_tokens()[0] else None

    @cached_property
    def token_limit(self) -> int:
        """How many tokens the model has an embedding of."""
        return embedding_rows(self.model.network.core)

    @cached_property
    def first_conversation(self) -> EncodedConversation:
        """What a model is warmed up with; without calls where its template refuses them."""
        with suppress(RecordError):
            return self.encode(Record(WARM_UP), per_turn=False).conversation
        question, *_, answer = WARM_UP["messages"]
        item = Record({"messages": [question, answer]})
        return self.encode(item, per_turn=False).conversation

    def encode(self, item: Item, *, per_turn: bool, add_special_tokens: bool = True) -> EncodedItem:
        """An item as the model reads it.

        Args:
            item: the item.
            per_turn: whether rewards are read after every turn.
            add_special_tokens: whether text without the BOS token gets it, where the chat
                template writes it. It is never doubled.

        Raises:
            RecordError: it is malformed, too long, or cannot be read after every turn.
        """
        if isinstance(item, Record | Reply):
            conversation, was_cut = self._encode_messages(item, per_turn)
        elif per_turn:
            raise RecordError("holds no turns; `per_turn` takes messages", field="input")
        else:
            conversation, was_cut = self._encode_input(item, add_special_tokens), False
        ids = [conversation.ids[position] for position in conversation.reward_positions]
        tokens = [self.model.tokenizer.decode([token]) for token in ids]
        return EncodedItem(conversation, was_cut, tokens)

    def _encode_messages(
        self, item: Record | Reply, per_turn: bool
    ) -> tuple[EncodedConversation, bool]:
        record = parse_reply(item) if isinstance(item, Reply) else parse_conversation(item)
        encoded, was_cut = encode_sides(
            self.model.chat_template,
            {"messages": record["messages"]},
            self.max_length,
            tools=record.get("tools") or (),
            every_turn=per_turn,
        )
        return encoded[0], was_cut

    def _encode_input(self, item: str | list[int], add_special_tokens: bool) -> EncodedConversation:
        if not item:
            raise RecordError("is empty", field="input")
        ids = self._tokenize(item, add_special_tokens) if isinstance(item, str) else item
        for token in ids:
            if type(token) is not int or not 0 <= token < self.token_limit:
                raise RecordError(f"{shortened(token)} is no token of the model", field="input")
        if len(ids) > self.max_length:
            problem = f"has {len(ids)} tokens, more than the limit of {self.max_length}"
            raise RecordError(f"{problem}; messages would be cut to fit", field="input")
        return EncodedConversation(ids, [len(ids) - 1])

    def _tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        """The tokens of text by the chat template, with one BOS token where it writes one."""
        tokenizer: Any = self.model.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        opening = self.opening_token
        if add_special_tokens and opening is not None and ids[:1] != [opening]:
            return [opening, *ids]
        return ids


def parse_reply(reply: Reply) -> Record:
    """The record of a conversation whose last reply may be empty, as a model may write it.

    Raises:
        RecordError: the conversation is malformed.
    """
    messages: list[Any] = list(reply.messages)
    if not messages or not _is_empty_reply(messages[-1]):
        return parse_conversation(Record({"messages": messages, "tools": reply.tools}))
    record = parse_conversation(Record({"messages": messages[:-1], "tools": reply.tools}))
    if record["messages"][-1]["role"] == "assistant":
        return parse_conversation(Record({"messages": messages}))  # which says what is wrong
    record["messages"] = [*record["messages"], {"role": "assistant", "content": ""}]
    return record


def _is_empty_reply(message: object) -> bool:
    """Whether a message is an assistant's without content, calls and thoughts."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return False
    return not any(
        value.strip() if isinstance(value, str) else value
        for name, value in message.items()
        if name != "role"
    )
