"""How much memory a run will take in each process: an estimate, before the first step."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from musiccli.cpu.recomputation import SavedBytes
from musiccli.reward_model.activations import CPU, RECOMPUTE_ABOVE, recomputes_selectively
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.train.config import TrainConfig
from musiccli.train.tokenized_pairs import Pair

SAMPLE = 512  # tokens: the largest pair that is not larger is run forward once to see what it keeps


@dataclass(frozen=True)
class Memory:
    """Bytes in one process, at the peak of a step."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float  # of the micro-batch that takes the most, kept for the backward pass
    workspace: float  # of the largest weight's gradient while it is added to, and of autocast's copies of weights
    tokens: int  # of the largest micro-batch

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.workspace

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {_shown(getattr(self, name))}"
            for name in ("parameters", "gradients", "optimizer", "workspace", "activations")
        )
        return f"about {_shown(self.total)} a process, an estimate: {parts} (of up to {self.tokens:,} tokens at once)"


def estimate(
    model: RewardModel,
    pairs: Sequence[Pair],
    settings: TrainConfig,
    *,
    ranks: int = 1,
    sharded: bool = False,
    offloaded_bytes: int = 0,
    device: torch.device = CPU,
) -> Memory:
    """Parameters and gradients as they are, AdamW's two moments, and activations measured on one pair and scaled to the
    largest micro-batch. Sharded weights are divided by `ranks`; else DDP's buckets hold gradients a second time.
    `offloaded_bytes` are bytes of weights that wait beside the network; `device` is where it will be trained."""
    weights = list(model.network.parameters())
    trained = sum(_bytes(weight) for weight in weights if weight.requires_grad)
    share = 1 / ranks if sharded else 1
    copies = 2 if ranks > 1 and not sharded else 1
    sizes = [pair.size for pair in pairs]
    tokens = max(max(sizes), min(settings.budget, sum(sorted(sizes)[-settings.batch :])))
    largest = max(_bytes(weight) for weight in weights if weight.requires_grad)
    activations, cast = _activations(
        model, pairs, tokens, settings.activation_checkpointing, device
    )
    return Memory(
        sum(map(_bytes, weights)) * share + offloaded_bytes,
        trained * copies * share,
        2 * trained * share,
        activations,
        largest + cast * share,
        tokens,
    )


def available(device: torch.device) -> float:
    """Bytes that a process of this run may still take on its device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _activations(
    model: RewardModel,
    pairs: Sequence[Pair],
    tokens: int,
    checkpointing: bool,
    device: torch.device,
) -> tuple[float, float]:
    """Bytes that the forward pass of a micro-batch of up to `tokens` keeps for the backward one; and bytes of weights
    in another precision, which autocast keeps."""
    whole, products, cast = _kept(model, pairs)
    config = model.network.core.config.get_text_config()
    inputs = config.num_hidden_layers * config.hidden_size * model.network.core.dtype.itemsize
    layer = (
        whole / config.num_hidden_layers
    )  # one at a time is computed again, or as much is needed on the way back
    if checkpointing:
        return tokens * (inputs + layer), cast / config.num_hidden_layers
    few = min(tokens, RECOMPUTE_ABOVE) if recomputes_selectively(model.network, device) else tokens
    again = (
        tokens * (inputs + products + layer) if tokens > few else 0
    )  # may well be less than few keep
    return max(few * (whole + layer), again), cast


def _kept(model: RewardModel, pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Bytes a token that a forward pass keeps for the backward one, weights aside; those of them that products gave;
    and bytes of weights in another precision."""
    small = [pair for pair in pairs if pair.size <= SAMPLE]
    pair = (
        max(small, key=lambda pair: pair.size) if small else min(pairs, key=lambda pair: pair.size)
    )
    weights = {weight.untyped_storage().data_ptr() for weight in model.network.parameters()}
    shapes = {frozenset(weight.shape) for weight in model.network.parameters() if weight.dim() == 2}
    kept: dict[int, int] = {}
    cast: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            copies = (
                tensor.dim() == 2
                and frozenset(tensor.shape) in shapes
                and tensor.dtype != torch.float32
            )
            (cast if copies else kept)[storage.data_ptr()] = storage.nbytes()
        return tensor

    # In evaluation nothing is recomputed; the models in use have no dropout, so training keeps the same.
    with (
        torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor),
        SavedBytes() as products,
    ):
        rewards = model.network.eval()([pair.sides])
    del rewards
    return sum(kept.values()) / pair.size, products.bytes / pair.size, sum(cast.values())


def _bytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


def _shown(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
