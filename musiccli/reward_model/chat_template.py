"""A conversation as a reward model reads it: token ids by the tokenizer's own chat template.

The reward of a conversation is read at the last token that the template writes for its last
assistant turn; for Gemma this is the newline after <end_of_turn>. Training, scoring and checks
all encode conversations here, so they cannot differ.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from musiccli.core.errors import InputError, RecordError
from musiccli.core.messages import Message

DATE_CALL = re.compile(r"""strftime_now\((["'])(.*?)\1\)""")  # how templates ask for today's date
FIXED_DATE = datetime(2024, 7, 26)  # Llama 3.2's template writes this one where it has no clock


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids.

    Attributes:
        ids: all token ids.
        reward_positions: indices in `ids` at which rewards are read: after each assistant turn,
            or after the last one alone.
    """

    ids: list[int]
    reward_positions: list[int]


class ChatTemplate:
    """A tokenizer's chat template, made safe for reward models.

    A system message goes into the first user message where the template takes none. A template
    that writes today's date writes FIXED_DATE, also once it is saved: otherwise a conversation
    would be other tokens tomorrow.

    Attributes:
        tokenizer: the tokenizer, whose template may have been changed.
        takes_system: whether the template shows a system message.
    """

    def __init__(self, tokenizer: Any):
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
        self.tokenizer = tokenizer
        self.takes_system = self._shows({"role": "system", "content": "Quiz 7319."})

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model reads.

        Raises:
            RecordError: the template refuses the conversation.
        """
        try:
            return self.tokenizer.apply_chat_template(self.fold_system(messages), tokenize=False)
        except Exception as error:  # templates raise whatever jinja raises
            raise RecordError(f"the chat template refuses it: {error}", field="messages") from error

    def fold_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, their system message within the first user message where need be."""
        if self.takes_system or messages[0]["role"] != "system":
            return list(messages)
        system, first, *rest = messages
        text = f"{system['content'].strip()}\n\n{first['content']}"
        return [{"role": "user", "content": text}, *rest]

    def encode(self, messages: Sequence[Message], every_turn: bool = True) -> EncodedConversation:
        """Token ids, from one tokenization of the whole text.

        Args:
            messages: a conversation that ends with the assistant.
            every_turn: whether to read a reward after every assistant turn, or the last alone.

        Raises:
            RecordError: the template refuses the conversation. Or every turn is asked for, and
                the template writes earlier turns differently once more turns follow, as those do
                that drop earlier thoughts: such turns do not end within the whole.
        """
        text = self.render(messages)
        if not every_turn:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return EncodedConversation(ids, [len(ids) - 1])
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        token_at = {stop: index for index, (_, stop) in enumerate(encoding["offset_mapping"])}
        positions = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prefix = text if index == len(messages) - 1 else self.render(messages[: index + 1])
            if not text.startswith(prefix) or len(prefix) not in token_at:
                raise RecordError(
                    "the chat template rewrites earlier turns when more follow", field="messages"
                )
            positions.append(token_at[len(prefix)])
        return EncodedConversation(encoding["input_ids"], positions)

    def last_token(self) -> int:
        """The token id that the template writes last, where the reward is read."""
        messages: list[Message] = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]
        return self.encode(messages, every_turn=False).ids[-1]

    def _shows(self, message: Message) -> bool:
        """Whether the template neither refuses nor drops a message before the user's."""
        try:
            text = self.tokenizer.apply_chat_template(
                [message, {"role": "user", "content": "u"}], tokenize=False
            )
        except Exception:
            return False
        return message["content"] in text


def cut_to_fit(
    encode: Callable[[list[Message]], EncodedConversation],
    conversations: Sequence[list[Message]],
    max_length: int,
    shared: int,
) -> tuple[list[EncodedConversation], int] | None:
    """Encode conversations in at most `max_length` tokens each, without their oldest exchanges.

    All lose the same exchanges, each a user message and its reply. Every conversation keeps its
    system message, starts with a user message, and keeps its last reply. The exchange in which
    they diverge is kept, too.

    Args:
        encode: makes tokens of messages.
        conversations: one, or several that begin with the same messages.
        max_length: tokens.
        shared: how many leading messages all have in common. Only these are cut.

    Returns:
        The encoded conversations and how many messages each has lost. None where it cannot be
        done.
    """
    system = conversations[0][0]["role"] == "system"
    cut = 0
    while True:
        encoded = [
            encode(messages[:system] + messages[system + cut :]) for messages in conversations
        ]
        if max(len(conversation.ids) for conversation in encoded) <= max_length:
            return encoded, cut
        cut += 2
        too_short = any(len(messages) - system - cut < 2 for messages in conversations)
        if system + cut > shared or too_short:
            return None
