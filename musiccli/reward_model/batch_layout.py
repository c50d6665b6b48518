"""Choose how conversations are laid out and attended to, by comparing rewards."""

from collections.abc import Callable
from typing import Any

import torch

from musiccli.gpu import can_compile
from musiccli.gpu.block_mask import HAS_WINDOW
from musiccli.gpu.compilation import compile_layers, undo_compilation
from musiccli.gpu.precision import bf16_autocast, cast_hidden_states
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork

Say = Callable[[str], None]


def choose_layout(model: Any, device: torch.device, say: Say) -> RewardNetwork:
    """The network by the fastest layout that gives the rewards of padding.

    These are, in this order: rows under compiled flex attention, on a GPU; rows attended to segment
    by segment; and padding. Some models' attention ignores the segments of a row, or refuses them.

    Args:
        model: a sequence-classification model. Where it is not on `device` yet, because its weights
            will be sharded, nothing can be compared on a GPU; `music train` checks it later.
        device: where it will compute.
        say: told in a line what is slower than usual.
    """
    own_attention = model.config._attn_implementation
    group = _random_conversations(min(1000, model.config.get_text_config().vocab_size))
    if can_use_flex(model, device) and model.device.type != device.type:
        return _compiled(model)
    expected = _rewards(RewardNetwork(model, packed=False), group)
    if can_use_flex(model, device):
        network = _compiled(model)
        if _agree(network, group, expected):
            return network
        undo_compilation(network.layers)
        model.set_attn_implementation(own_attention)
        say(f"{type(model).__name__}: its attention cannot be compiled (slower, same scores)")
    if _agree(RewardNetwork(model, packed=True), group, expected):
        return RewardNetwork(model, packed=True)
    say(
        f"{type(model).__name__}: its attention cannot be packed; padding instead "
        "(slower, same scores)"
    )
    model.set_attn_implementation(own_attention)
    return RewardNetwork(model, packed=False)


def can_use_flex(model: Any, device: torch.device) -> bool:
    """Whether a model may be tried under flex attention on a device."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(
        can_compile(device)
        and model._supports_flex_attn
        and kinds <= set(HAS_WINDOW)
        and not getattr(config, "attention_dropout", 0.0)
    )


def rounding(network: RewardNetwork) -> float:
    """By how much rewards may differ, absolutely and relatively, between ways of computing them."""
    fp32 = network.core.dtype == torch.float32 and network.core.device.type == "cpu"
    return 1e-3 if fp32 else 5e-2


def _compiled(model: Any) -> RewardNetwork:
    network = RewardNetwork(model, flex=True)
    compile_layers(network.layers)
    cast_hidden_states(network.backbone.get_input_embeddings())
    return network


def _agree(
    network: RewardNetwork, group: list[EncodedConversation], expected: torch.Tensor
) -> bool:
    try:
        rewards = _rewards(network, group)
    except (TypeError, ValueError, RuntimeError, KeyError):  # of transformers, or the compiler
        return False
    tolerance = rounding(network)
    return torch.allclose(rewards, expected, atol=tolerance, rtol=tolerance)


def _rewards(network: RewardNetwork, group: list[EncodedConversation]) -> torch.Tensor:
    with torch.inference_mode(), bf16_autocast(network.core.device):
        return torch.cat(network.eval()([group]))


def _random_conversations(vocabulary: int) -> list[EncodedConversation]:
    """Two with 24 shared tokens, each read within itself and at its end."""
    generator = torch.Generator().manual_seed(0)
    shared, *rests = (
        torch.randint(5, vocabulary, (size,), generator=generator).tolist() for size in (24, 9, 14)
    )
    return [EncodedConversation(shared + rest, [30, len(shared + rest) - 1]) for rest in rests]
