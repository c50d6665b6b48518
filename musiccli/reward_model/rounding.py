"""By how much hidden states may differ between two right ways of computing them.

In bf16 this depends on the model, and so it is measured: rounding moves the last hidden states of
SmolLM2 135M by 0.4% of their norm, and those of Gemma 3 270M by 3%. Rewards are no measure. A
reward is one direction of a hidden state, and rounding may move it by a tenth of its usual size.

The bound was tried on these two models and on toys of five families, with eager attention, sdpa,
flex and packed rows: right states were at most 1.03 times the measured distance away, and those of
conversations with five tokens too many at least 4.2 times.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

COPIES = 4  # of each conversation, to measure rounding on
EPSILON = 2**-8  # the most, relative to a number, that bf16 moves it by
FACTOR = 2.0  # of the measured distance, allowed
LEAST = 1e-3  # of the norm of a state, allowed; in fp32 it is the whole measure


def copies_for(core: Any) -> int:
    """How many copies to measure rounding on: none where all is computed in fp32, on a CPU."""
    return 0 if core.device.type == "cpu" and core.dtype == torch.float32 else COPIES


@contextlib.contextmanager
def rounded_anew(layers: Iterable[torch.nn.Module], exact: int) -> Iterator[None]:
    """Let the output of each module of each layer move at random by as much as bf16 rounds.

    Args:
        layers: of the backbone, not compiled.
        exact: how many rows of a batch stay as they are; these come first. COPIES times as many
            follow.
    """
    batch = exact * (1 + COPIES)
    generators: dict[torch.device, torch.Generator] = {}

    def move(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.dim() > 2 and len(hidden) == batch:
            moved = hidden[exact:]
            device = moved.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(0)
            noise = torch.rand(moved.shape, generator=generators[device], device=device)
            moved.copy_(moved.float() * (1 + EPSILON * (2 * noise - 1)))

    modules = {module for layer in layers for module in layer.modules()}
    handles = [module.register_forward_hook(move) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def allowed_distances(states: torch.Tensor) -> torch.Tensor:
    """How far a right state may be from the one that was measured, (positions,).

    Args:
        states: (1 + copies, positions, size); the copies were `rounded_anew`.
    """
    exact, copies = states[0], states[1:]
    allowed = LEAST * exact.norm(dim=-1)
    if len(copies):
        moved = (copies - exact).norm(dim=-1).square().mean(dim=0).sqrt()
        allowed = torch.maximum(allowed, FACTOR * moved)
    return allowed


def agree(states: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor) -> bool:
    """Whether states (positions, size) are as near to the expected ones as rounding allows."""
    return bool(((states - expected).norm(dim=-1) <= allowed).all())
