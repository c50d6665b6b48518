"""Activation checkpointing: which results of a layer are computed again in the backward pass."""

import torch

from musiccli.cpu import plain_torch
from musiccli.cpu.recomputation import save_products
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import packed_length

RECOMPUTE_ABOVE = 1024  # tokens in a forward pass on a CPU; up to here everything is kept
CPU = torch.device("cpu")


def checkpoint_activations(
    network: RewardNetwork, everything: bool, device: torch.device = CPU
) -> None:
    """Let layers compute activations again in the backward pass. Gradients stay the same bits.

    Args:
        network: the network to be trained; its layers change.
        everything: each layer keeps its input alone. Otherwise, and only in training on a CPU,
            each keeps its matrix products where a forward pass is over RECOMPUTE_ABOVE tokens.
        device: where the network will be trained, which need not be where it is now.
    """
    if everything:
        network.core.activation_checkpointing_enable({"use_reentrant": False})
    elif recomputes_selectively(network, device):
        network.core.activation_checkpointing_enable(
            {"use_reentrant": False, "context_fn": save_products}
        )
        network.register_forward_pre_hook(_checkpoint_large_passes(network))


def recomputes_selectively(network: RewardNetwork, device: torch.device) -> bool:
    """Whether large forward passes keep matrix products alone, in training on `device`."""
    return (
        network.packed
        and device.type == "cpu"
        and network.core.supports_gradient_checkpointing
        and not plain_torch()
    )


def _checkpoint_large_passes(network: RewardNetwork):
    """A hook before each forward pass, which decides by the number of its tokens."""
    layers = [
        module for module in network.backbone.modules() if hasattr(module, "gradient_checkpointing")
    ]

    def decide(_: torch.nn.Module, arguments: tuple) -> None:
        is_large = sum(map(packed_length, arguments[0])) > RECOMPUTE_ABOVE
        for layer in layers:
            layer.gradient_checkpointing = is_large

    return decide
