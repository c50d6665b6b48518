"""Choose between packing conversations into one row and padding them, by comparing rewards."""

from collections.abc import Callable
from typing import Any

import torch

from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork


def packed_or_padded(model: Any, say: Callable[[str], None]) -> RewardNetwork:
    """The network packed where that gives the rewards that padding gives; otherwise padded.

    Some models' attention ignores the segments of a row, or refuses them. `say` is told so.
    """
    group = _random_conversations(min(1000, model.config.get_text_config().vocab_size))
    own_attention = model.config._attn_implementation
    with torch.inference_mode():
        expected = torch.cat(RewardNetwork(model, packed=False).eval()([group]))
        try:
            rewards = torch.cat(RewardNetwork(model, packed=True).eval()([group]))
        except (TypeError, ValueError, RuntimeError, KeyError):
            rewards = None
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    if rewards is not None and torch.allclose(rewards, expected, atol=tolerance, rtol=tolerance):
        return RewardNetwork(model, packed=True)
    say(
        f"{type(model).__name__}: its attention cannot be packed; padding instead "
        "(slower, same scores)"
    )
    model.set_attn_implementation(own_attention)
    return RewardNetwork(model, packed=False)


def _random_conversations(vocabulary: int) -> list[EncodedConversation]:
    """Two with 24 shared tokens, each read within itself and at its end."""
    generator = torch.Generator().manual_seed(0)
    shared, *rests = (
        torch.randint(5, vocabulary, (size,), generator=generator).tolist() for size in (24, 9, 14)
    )
    return [EncodedConversation(shared + rest, [30, len(shared + rest) - 1]) for rest in rests]
