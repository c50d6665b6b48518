"""By how much hidden states may differ between two right ways of computing them.

In bf16 this depends on the model, and so it is measured: rounding moves the last hidden states of
SmolLM2 135M by 0.8% of their norm, and those of Gemma 3 270M by 3%. Rewards are no measure. A
reward is one direction of a hidden state, and rounding may move it by a tenth of its usual size.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

COPIES = 4  # of each conversation, to measure rounding on
EPSILON = 2**-8  # the most, relative to a number, that bf16 moves it by
FACTOR = 4.0  # right layouts were within 1.7 of the measured distance, of two-layer toys within 2.4
LEAST = 1e-3  # of the norm of a state; in fp32 it is the whole measure


def copies_for(core: Any) -> int:
    """How many copies to measure rounding on: none where all is computed in fp32, on a CPU."""
    return 0 if core.device.type == "cpu" and core.dtype == torch.float32 else COPIES


@contextlib.contextmanager
def rounded_anew(layers: Iterable[torch.nn.Module], exact: int) -> Iterator[None]:
    """Let each layer's output move at random by as much as bf16 rounds.

    Args:
        layers: of the backbone, not compiled.
        exact: how many rows of a batch stay as they are; these come first.
    """

    def move(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden[exact:]
        generator = torch.Generator(moved.device).manual_seed(0)
        noise = torch.rand(moved.shape, generator=generator, device=moved.device)
        moved.copy_(moved.float() * (1 + EPSILON * (2 * noise - 1)))

    handles = [layer.register_forward_hook(move) for layer in layers]
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
