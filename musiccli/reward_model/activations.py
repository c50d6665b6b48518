"""Activation checkpointing: which results of a layer are computed again in the backward pass."""

import math

import torch

from musiccli.cpu import plain_torch
from musiccli.cpu.recomputation import save_products
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import packed_length

MARGIN = 0.05  # of a GPU's memory, for what an estimate does not know
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


def kept_share(kept: float, inputs: float, layers: int, free: float) -> float:
    """Which share of its activations a compiled network may keep, beyond the inputs of its layers.

    Args:
        kept: bytes that it keeps for the backward pass, the inputs with them.
        inputs: bytes of the inputs of its layers.
        layers: their number. While the gradients of one are computed, these take as much again.
        free: bytes that there are.

    Returns:
        From 1 for all to 0, in steps of a twentieth. Memory grows with it linearly: on an H200,
        Gemma-2-9B with LoRA took 35.3, 45.4, 60.5 and 84.4 GB at 0, 0.2, 0.5 and 1.
    """
    layer = kept / layers
    share = (free - inputs - 2 * layer) / max(kept - inputs, 1.0)
    return min(1.0, max(0.0, math.floor(share * 20) / 20))
