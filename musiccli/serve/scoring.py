"""The rewards of conversations in any order, where those that begin alike are computed together."""

import math
from collections.abc import Sequence
from itertools import pairwise

from musiccli.core.errors import RecordError
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import MIN_SHARED_TOKENS, common_prefix
from musiccli.reward_model.scoring import NOT_FINITE, deduplicate, score_encoded

Rewards = list[float] | RecordError  # of one conversation, or why there are none
MIN_HISTORY_BYTES = 256 << 20  # what histories may take of small models
HISTORY_SHARE = 1 / 8  # of the weights of large ones


def keep_histories(network: RewardNetwork) -> None:
    """Let a network in evaluation mode keep histories, which come again where it serves."""
    weights = sum(weight.nbytes for weight in network.parameters())
    network.keep_histories(max(MIN_HISTORY_BYTES, int(weights * HISTORY_SHARE)))


def score_all(
    network: RewardNetwork, conversations: Sequence[EncodedConversation], budget: int
) -> list[Rewards]:
    """The rewards of any number of conversations, in one call. Equal ones get equal rewards.

    Args:
        network: the network, in evaluation mode.
        conversations: in any order; those that begin alike are computed together.
        budget: the most tokens in one forward pass.

    Returns:
        The rewards of each, or the error that one is not a number.

    Raises:
        InputError: memory does not suffice.
    """
    firsts, kinds = deduplicate(conversations)
    order = sorted(range(len(firsts)), key=lambda number: conversations[firsts[number]].ids)
    ordered = [conversations[firsts[number]] for number in order]
    rewards = score_encoded(network, ordered, prompt_keys(ordered), budget)
    by_kind = dict(zip(order, rewards, strict=True))
    return [
        by_kind[kind] if all(map(math.isfinite, by_kind[kind])) else RecordError(NOT_FINITE)
        for kind in kinds
    ]


def prompt_keys(conversations: Sequence[EncodedConversation]) -> list[int]:
    """A number per conversation, equal for neighbors that should share their beginning.

    Args:
        conversations: in the order of their tokens.

    Neighbors share what they have in common, unless one of them has more than twice as much in
    common with its other neighbor: a system message that all have must not keep the candidates
    of one long history from sharing that.
    """
    shared = [common_prefix(left.ids, right.ids) for left, right in pairwise(conversations)]
    keys, key = [], 0
    for index in range(len(conversations)):
        if index:
            most = max(shared[max(index - 2, 0) : index + 1])
            key += shared[index - 1] < max(MIN_SHARED_TOKENS, most / 2)
        keys.append(key)
    return keys
