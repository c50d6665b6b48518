"""Rewards of many encoded conversations, in few forward passes.

Neighbors that begin with the same tokens share the computation of these tokens. Every forward pass
holds about as many tokens as its budget allows.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from musiccli.core.errors import RecordError
from musiccli.core.messages import Message, first_divergence
from musiccli.core.records import Record, parse_conversation
from musiccli.reward_model import DEFAULT_BUDGET
from musiccli.reward_model.chat_template import (
    ChatTemplate,
    EncodedConversation,
    RenderedConversation,
    Tools,
    cut_to_fit,
)
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.out_of_memory import explain_out_of_memory
from musiccli.reward_model.packing import micro_batches, packed_length

# A list of messages, or a record that holds one as "messages".
ConversationLike = Sequence[Mapping[str, Any]] | Mapping[str, Any]
NOT_FINITE = "the reward is not a number; the model overflows or is damaged"


def encode_sides(
    template: ChatTemplate,
    sides: Mapping[str, list[Message]],
    max_length: int,
    *,
    tools: Tools = (),
    every_turn: bool = False,
) -> tuple[list[EncodedConversation], bool]:
    """Encode the conversations of one record, both sides of a pair by the same cut.

    Args:
        template: the model's chat template.
        sides: one conversation, or the two of a pair, by field name.
        max_length: the most tokens of a side; above it, the oldest exchanges are cut.
        tools: the functions on offer.
        every_turn: whether to read a reward after every turn, or the last alone.

    Returns:
        The encoded conversations, and whether they were cut.

    Raises:
        RecordError: a side does not end with the assistant, is refused by the template, or cannot
            be cut.
    """
    _refuse_without_reply(sides)
    conversations = list(sides.values())
    pair = len(conversations) == 2
    shared = first_divergence(*conversations) if pair else len(conversations[0])
    encode = partial(template.encode, every_turn=every_turn, tools=tools)
    fitted = cut_to_fit(encode, conversations, max_length, shared)
    if fitted is None:
        raise RecordError(
            f"is longer than {max_length} tokens and cannot be cut without losing what differs"
        )
    encoded, cut = fitted
    return encoded, cut > 0


def render_sides(
    template: ChatTemplate,
    sides: Mapping[str, list[Message]],
    *,
    tools: Tools = (),
    every_turn: bool = False,
) -> list[RenderedConversation]:
    """The whole conversations of one record as text, for `ChatTemplate.tokenize`.

    Where these have few enough tokens, they are what `encode_sides` gives. Arguments are its own.

    Raises:
        RecordError: a side does not end with the assistant, or is refused by the template.
    """
    _refuse_without_reply(sides)
    return [template.render_turns(messages, every_turn, tools) for messages in sides.values()]


def _refuse_without_reply(sides: Mapping[str, list[Message]]) -> None:
    for name, messages in sides.items():
        if messages[-1]["role"] != "assistant":
            problem = f"ends with the {messages[-1]['role']}; there is no reply to score"
            raise RecordError(problem, field=name)


def deduplicate(conversations: Sequence[EncodedConversation]) -> tuple[list[int], list[int]]:
    """Find equal conversations. Scored once they get equal rewards, without rounding between.

    Returns:
        The indices of the first of each kind; and for each conversation, which of these it is.
    """
    numbers: dict[tuple[int | None, ...], int] = {}
    firsts, kinds = [], []
    for index, conversation in enumerate(conversations):
        key = (*conversation.ids, None, *conversation.reward_positions)
        if key not in numbers:
            numbers[key] = len(numbers)
            firsts.append(index)
        kinds.append(numbers[key])
    return firsts, kinds


class PendingRewards:
    """Rewards that a device may still be computing."""

    def __init__(self, order: Sequence[int], counts: Sequence[int], values: torch.Tensor) -> None:
        """Begin to copy the rewards from the device, behind what it computes now.

        Args:
            order: the conversation whose rewards come first, the one whose come next, and so on.
            counts: how many rewards each of these has.
            values: (rewards,) all of them.
        """
        self._order, self._counts = order, counts
        self._values = values.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied:
            self._copied.record(torch.cuda.current_stream(values.device))

    def wait(self) -> list[list[float]]:
        """The rewards of each conversation at its reward positions."""
        if self._copied:
            self._copied.synchronize()
        rewards: list[list[float]] = [[] for _ in self._order]
        values = iter(self._values.tolist())
        for index, count in zip(self._order, self._counts, strict=True):
            rewards[index] = list(islice(values, count))
        return rewards


def score_encoded(
    network: RewardNetwork,
    conversations: Sequence[EncodedConversation],
    prompts: Sequence[Hashable],
    budget: int = DEFAULT_BUDGET,
) -> list[list[float]]:
    """Rewards of each conversation at its reward positions. Arguments are `start_scoring`'s.

    Raises:
        InputError: memory does not suffice.
    """
    return start_scoring(network, conversations, prompts, budget).wait()


def start_scoring(
    network: RewardNetwork,
    conversations: Sequence[EncodedConversation],
    prompts: Sequence[Hashable],
    budget: int = DEFAULT_BUDGET,
) -> PendingRewards:
    """Begin to compute the rewards of conversations. A GPU goes on while this process does more.

    Args:
        network: the network, in evaluation mode.
        conversations: in an order in which those with a common beginning are neighbors.
        prompts: one value per conversation, equal for neighbors that begin with the same tokens.
        budget: the most tokens in one forward pass. A longer conversation gets one for itself.

    Raises:
        InputError: memory does not suffice.
    """
    groups = [[index] for index in range(len(conversations))]
    if network.packed:
        groups = group_neighbors(conversations, prompts, budget)
    members = [[conversations[index] for index in group] for group in groups]
    sizes = [network.token_count(group) for group in members]
    batches = micro_batches(sizes, budget, padded=not network.packed)
    order = [index for batch in batches for number in batch for index in groups[number]]
    rewards: list[torch.Tensor] = []
    with (
        torch.inference_mode(),
        explain_out_of_memory("a smaller `budget` or `max_length` takes less"),
    ):
        for batch in batches:
            rewards += network([members[number] for number in batch], budget=budget)
        # One transfer for all: a transfer after each would hold up the device.
        values = torch.cat(rewards) if rewards else torch.empty(0)
    counts = [len(conversations[index].reward_positions) for index in order]
    return PendingRewards(order, counts, values)


def group_neighbors(
    conversations: Sequence[EncodedConversation], prompts: Sequence[Hashable], budget: int
) -> list[list[int]]:
    """Indices of neighbors with equal prompts: sides of a record, or candidates of a prompt.

    A group takes at most `budget` tokens; one conversation alone may take more.
    """
    groups: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        group = [*groups[-1], index] if groups and prompts[index - 1] == prompt else [index]
        if len(group) > 1 and packed_length([conversations[i] for i in group]) <= budget:
            groups[-1] = group
        else:
            groups.append([index])
    return groups


def score_conversations(
    network: RewardNetwork,
    template: ChatTemplate,
    conversations: Iterable[ConversationLike],
    max_length: int,
    budget: int,
    *,
    every_turn: bool = False,
) -> list[list[float]]:
    """Rewards of each conversation: after every turn, or after the last alone.

    Args:
        network: the network, in evaluation mode.
        template: the model's chat template.
        conversations: lists of messages, or records that hold such a list.
        max_length: the most tokens of a conversation; above it, the oldest exchanges are cut.
        budget: the most tokens in one forward pass.
        every_turn: whether to read a reward after every turn.

    Raises:
        RecordError: a conversation is malformed, cannot be cut, or has no finite reward.
        InputError: memory does not suffice.
    """
    encoded: list[EncodedConversation] = []
    prompts: list[str] = []
    for number, conversation in enumerate(conversations):
        record = _parse(conversation, _where(number))
        encoded.append(_encode(template, record, max_length, every_turn))
        prompts.append(_first_user_text(record["messages"]))
    firsts, kinds = deduplicate(encoded)
    rewards = score_encoded(
        network,
        [encoded[index] for index in firsts],
        [prompts[index] for index in firsts],
        budget,
    )
    for number, kind in enumerate(kinds):
        if not all(map(math.isfinite, rewards[kind])):
            raise RecordError(NOT_FINITE, where=_where(number))
    return [list(rewards[kind]) for kind in kinds]


def _encode(
    template: ChatTemplate, record: Record, max_length: int, every_turn: bool
) -> EncodedConversation:
    sides, tools = {"messages": record["messages"]}, record.get("tools") or ()
    try:
        encoded, _ = encode_sides(template, sides, max_length, tools=tools, every_turn=every_turn)
    except RecordError as error:
        error.where = record.where
        raise
    return encoded[0]


def _where(number: int) -> str:
    """The name of a conversation in errors."""
    return f"conversation {number}"


def _parse(conversation: ConversationLike, where: str) -> Record:
    """One conversation, checked; the caller's objects stay as they are."""
    fields = conversation if isinstance(conversation, Mapping) else {"messages": list(conversation)}
    return parse_conversation(Record(fields, where))


def _first_user_text(messages: Sequence[Message]) -> str:
    return next(message["content"] for message in messages if message["role"] == "user")
