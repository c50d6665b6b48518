"""A reward model in Python: loaded from a folder or the hub, it scores conversations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message
from musiccli.core.records import Record, parse_conversation
from musiccli.reward_model import DEFAULT_BUDGET
from musiccli.reward_model.chat_template import ChatTemplate, EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.scoring import NOT_FINITE, deduplicate, encode_sides, score_encoded

# A list of messages, or a record that holds one as "messages".
ConversationLike = Sequence[Mapping[str, Any]] | Mapping[str, Any]
UNLIMITED = 1 << 20  # tokens, for backbones that name no limit


@dataclass
class RewardModel:
    """A reward model: it gives a conversation one number, and a better one a higher number.

    Example:
        >>> from musiccli import RewardModel
        >>> model = RewardModel.load("rm")
        >>> question = {"role": "user", "content": "What is 2 + 2?"}
        >>> model.score([[question, {"role": "assistant", "content": "4."}]])
        [1.93]

    Attributes:
        network: the network, from token ids to rewards.
        tokenizer: transformers' tokenizer.
        chat_template: makes token ids of conversations.
        notes: what the checkpoint tells of its training.
        replaced_padding: the padding token that the tokenizer came with, where it was replaced.
        trained_head: whether the head was loaded; a new one was drawn at random.
        identity: names the weights and how they are computed; equal ones give equal scores.
    """

    network: RewardNetwork
    tokenizer: Any
    chat_template: ChatTemplate
    notes: dict[str, Any] = field(default_factory=dict)
    replaced_padding: str | None = None
    trained_head: bool = True
    identity: str = ""

    @classmethod
    def load(cls, path: str | Path) -> "RewardModel":
        """Load a trained reward model, on the GPU where there is one.

        Args:
            path: a folder that `music train` wrote, or any sequence classifier with one label: a
                folder, or a name on the Hugging Face hub.

        Raises:
            InputError: there is no such model, or it has no trained reward head, more than one
                label, or no chat template.

        Example:
            >>> model = RewardModel.load("rm")
        """
        from musiccli.reward_model import checkpoint

        return checkpoint.load(str(path))

    @property
    def context_length(self) -> int:
        """The most tokens that the backbone takes."""
        config = self.network.core.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or UNLIMITED

    def score(
        self,
        conversations: Iterable[ConversationLike],
        *,
        max_length: int | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> list[float]:
        """The reward of each whole conversation, as `music score` gives it.

        Candidates of one prompt are faster as neighbors: what they share is computed once.

        Args:
            conversations: lists of messages, or records that hold such a list as "messages" and
                may hold "tools", the functions on offer. Each ends with the assistant.
            max_length: the most tokens of a conversation. A longer one loses its oldest exchanges.
                None is the length of the backbone's context.
            budget: the most tokens in one forward pass. A smaller budget takes less memory.

        Raises:
            RecordError: a conversation is malformed, or too long to be cut. It says which.
            InputError: memory does not suffice.

        Example:
            >>> question = {"role": "user", "content": "What is 2 + 2?"}
            >>> replies = [{"role": "assistant", "content": text} for text in ("4.", "5.")]
            >>> model.score([[question, reply] for reply in replies])
            [1.93, -0.41]
        """
        rewards = self._rewards(conversations, max_length, budget, every_turn=False)
        return [turns[-1] for turns in rewards]

    def score_turns(
        self,
        conversations: Iterable[ConversationLike],
        *,
        max_length: int | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> list[list[float]]:
        """The reward after every turn of each conversation.

        The reward after a turn is that of the conversation up to it. The last one is `score`'s.
        Arguments and errors are those of `score`. A conversation that was cut has rewards for
        the turns that are left of it.

        Raises:
            RecordError: as in `score`; or the chat template rewrites earlier turns when more
                follow.

        Example:
            >>> model.score_turns([record["messages"] for record in read_records("talks.jsonl")])
            [[0.52, 1.31], [0.77, 0.12, -0.35]]
        """
        return self._rewards(conversations, max_length, budget, every_turn=True)

    def _rewards(
        self,
        conversations: Iterable[ConversationLike],
        max_length: int | None,
        budget: int,
        every_turn: bool,
    ) -> list[list[float]]:
        limit = min(max_length or self.context_length, self.context_length)
        encoded: list[EncodedConversation] = []
        prompts: list[str] = []
        for number, conversation in enumerate(conversations):
            record = _record(conversation, _where(number))
            encoded.append(self._encode(record, limit, every_turn))
            prompts.append(_first_user_text(record["messages"]))
        firsts, kinds = deduplicate(encoded)
        rewards = score_encoded(
            self.network,
            [encoded[index] for index in firsts],
            [prompts[index] for index in firsts],
            budget,
        )
        for number, kind in enumerate(kinds):
            if not all(map(math.isfinite, rewards[kind])):
                raise RecordError(NOT_FINITE, where=_where(number))
        return [list(rewards[kind]) for kind in kinds]

    def _encode(self, record: Record, limit: int, every_turn: bool) -> EncodedConversation:
        sides, tools = {"messages": record["messages"]}, record.get("tools") or ()
        try:
            encoded, _ = encode_sides(
                self.chat_template, sides, limit, tools=tools, every_turn=every_turn
            )
        except RecordError as error:
            error.where = record.where
            raise
        return encoded[0]


def _where(number: int) -> str:
    """The name of a conversation in errors."""
    return f"conversation {number}"


def _record(conversation: ConversationLike, where: str) -> Record:
    """One conversation, checked; the caller's objects stay as they are."""
    fields = conversation if isinstance(conversation, Mapping) else {"messages": list(conversation)}
    return parse_conversation(Record(fields, where))


def _first_user_text(messages: Sequence[Message]) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")
