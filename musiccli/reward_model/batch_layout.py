"""Choose how conversations are laid out and attended to, by comparing hidden states."""

from collections.abc import Callable
from typing import Any

import torch

from musiccli.gpu import can_compile
from musiccli.gpu.block_mask import HAS_WINDOW
from musiccli.gpu.compilation import compile_layers, undo_compilation
from musiccli.gpu.precision import bf16_autocast, cast_hidden_states
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.rounding import agree, allowed_distances, copies_for, rounded_anew

Say = Callable[[str], None]


def choose_layout(model: Any, device: torch.device, say: Say) -> RewardNetwork:
    """The network by the fastest layout that gives the hidden states of padding.

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
    reference = _padded_states(model, group)
    if can_use_flex(model, device):
        network = _compiled(model)
        if _agrees(network, group, *reference):
            return network
        undo_compilation(network.layers)
        model.set_attn_implementation(own_attention)
        say(f"{type(model).__name__}: its attention cannot be compiled (slower, same scores)")
    if _agrees(RewardNetwork(model, packed=True), group, *reference):
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


def _compiled(model: Any) -> RewardNetwork:
    network = RewardNetwork(model, flex=True)
    compile_layers(network.layers)
    cast_hidden_states(network.backbone.get_input_embeddings())
    return network


def _padded_states(
    model: Any, group: list[EncodedConversation]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded conversations' states (positions, size); and how far a layout's may be from them."""
    network = RewardNetwork(model, packed=False)
    copies = 1 + copies_for(model)
    with rounded_anew(network.layers if copies > 1 else (), exact=len(group)):
        states = _states(network, group * copies)
    states = states.view(copies, -1, states.shape[-1])
    return states[0], allowed_distances(states)


def _agrees(
    network: RewardNetwork,
    group: list[EncodedConversation],
    expected: torch.Tensor,
    allowed: torch.Tensor,
) -> bool:
    try:
        return agree(_states(network, group), expected, allowed)
    except (TypeError, ValueError, RuntimeError, KeyError):  # of transformers, or the compiler
        return False


def _states(network: RewardNetwork, group: list[EncodedConversation]) -> torch.Tensor:
    """What the head reads at all reward positions of a group, (positions, size)."""
    with torch.inference_mode(), bf16_autocast(network.core.device):
        return torch.cat(network.eval()([group], states=True)[len(group) :])


def _random_conversations(vocabulary: int) -> list[EncodedConversation]:
    """Two with 24 shared tokens, each read within itself and at its end."""
    generator = torch.Generator().manual_seed(0)
    shared, *rests = (
        torch.randint(5, vocabulary, (size,), generator=generator).tolist() for size in (24, 9, 14)
    )
    return [EncodedConversation(shared + rest, [30, len(shared + rest) - 1]) for rest in rests]
