"""A conversation as a reward model reads it: its token ids by the tokenizer's own chat template, nothing added.

The reward of a conversation is read at the last token that the template writes for its last assistant turn (for Gemma
the newline after <end_of_turn>). Training, scoring and checks all come through here, so they cannot differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from musiccli.core.errors import InputError, RecordError
from musiccli.core.records import Message

CLOCK = re.compile(r"""strftime_now\((["'])(.*?)\1\)""")  # how templates ask for today's date
TODAY = datetime(2024, 7, 26)  # what they get; Llama 3.2's own where it finds no clock


@dataclass(frozen=True)
class EncodedConversation:
    """`ids` of the whole conversation; `ends[t]` is the index in `ids` at which the reward of its t-th read is taken:
    after each assistant turn, or once, after the last."""

    ids: list[int]
    reward_positions: list[int]


class ChatTemplate:
    """A tokenizer's chat template, with its limits known: whether it takes a system message, where turns end.

    One that writes today's date gets TODAY, also in the tokenizer and so in what is saved of it: else a conversation
    would be other tokens tomorrow.
    """

    def __init__(self, tokenizer):
        if not tokenizer.chat_template:
            raise InputError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, so nobody knows how a "
                "conversation should read; use a chat model, or add a chat_template.jinja to its folder"
            )
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = CLOCK.sub(
                lambda call: repr(TODAY.strftime(call[2])), tokenizer.chat_template
            )
        self.tokenizer = tokenizer
        self.takes_system = self._shows({"role": "system", "content": "Quiz 7319."})

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model reads. Raises RecordError where the template refuses the conversation."""
        try:
            return self.tokenizer.apply_chat_template(self.fold(messages), tokenize=False)
        except Exception as error:  # templates raise whatever jinja raises
            raise RecordError(f"the chat template refuses it: {error}", field="messages") from error

    def fold(self, messages: Sequence[Message]) -> list[Message]:
        """Where the template has no system role, the system message goes before the first user message's text."""
        if self.takes_system or messages[0]["role"] != "system":
            return list(messages)
        system, first, *rest = messages
        return [
            {"role": "user", "content": f"{system['content'].strip()}\n\n{first['content']}"},
            *rest,
        ]

    def encode(self, messages: Sequence[Message], every_turn: bool = True) -> EncodedConversation:
        """Token ids, and where each assistant turn ends (or only the last), from one tokenisation.

        Raises RecordError where every turn's end is wanted and the template writes earlier turns differently once more
        follow (as those that drop earlier thinking do), so that turns have no end within the whole.
        """
        text = self.render(messages)
        if not every_turn:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return EncodedConversation(ids, [len(ids) - 1])
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        token_at = {stop: index for index, (_, stop) in enumerate(encoding["offset_mapping"])}
        ends = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prefix = text if index == len(messages) - 1 else self.render(messages[: index + 1])
            if not text.startswith(prefix) or len(prefix) not in token_at:
                raise RecordError(
                    "the chat template rewrites earlier turns when more follow", field="messages"
                )
            ends.append(token_at[len(prefix)])
        return EncodedConversation(encoding["input_ids"], ends)

    def _shows(self, message: Message) -> bool:
        """Whether the template neither refuses a message before the user's nor drops it without a word."""
        try:
            text = self.tokenizer.apply_chat_template(
                [message, {"role": "user", "content": "u"}], tokenize=False
            )
        except Exception:
            return False
        return message["content"] in text


def cut_to_fit(
    encode, conversations: Sequence[list[Message]], most: int, shared: int
) -> tuple[list[EncodedConversation], int] | None:
    """Conversations of at most `most` tokens, by cutting the same oldest exchanges from all of them.

    `shared` is how many leading messages all of them have in common; only these are cut, in whole exchanges, so that
    each still starts with its system message (if any) and a user message, and keeps where they diverge and their last
    answer. Returns the encodings and how many messages were cut, or None where that cannot be done.
    """
    system = conversations[0][0]["role"] == "system"
    cut = 0
    while True:
        encoded = [encode(one[:system] + one[system + cut :]) for one in conversations]
        if max(len(one.ids) for one in encoded) <= most:
            return encoded, cut
        cut += 2
        # Cut whole exchanges that all share, so the one that the first difference belongs to stays.
        if system + cut > shared or any(len(one) - system - cut < 2 for one in conversations):
            return None
