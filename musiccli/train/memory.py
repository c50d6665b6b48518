"""An estimate, before the first step, of the memory that a run takes in each process."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule

from musiccli.core.resources import available_bytes, file_mappings
from musiccli.cpu.recomputation import SavedBytes
from musiccli.gpu.memory import free_bytes
from musiccli.reward_model.activations import CPU, RECOMPUTE_ABOVE, recomputes_selectively
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.quantization import constant_bytes, quantized_layers, weight_count
from musiccli.train.accelerator import process_group
from musiccli.train.config import CPU_BUDGET, TrainConfig
from musiccli.train.pair_arrays import TokenizedPairs
from musiccli.train.sharding import local_part

SAMPLE_TOKENS = 512  # activations are measured on the largest pair of at most so many tokens
GPU_BUDGET, SMALL_GPU_BUDGET = 8192, 4096  # tokens in a micro-batch; products are fast from here
SMALL_GPU = 40e9  # bytes; a GPU with less is a small one
LESS_MEMORY = (
    "a smaller `budget` or `max_length`, `activation_checkpointing`, `lora` or more processes with "
    "FSDP take less"
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process at the peak of a step.

    Attributes:
        parameters: all weights.
        gradients: of the trained weights.
        optimizer: AdamW's two moments.
        activations: what the micro-batch that takes the most keeps for its backward pass.
        workspace: the largest weight's gradient while it is added; copies of weights that autocast
            or FSDP makes, or that a product of a weight in 4 bits takes.
        tokens: of the largest micro-batch. These are tokens, not bytes.
        present: of the parameters, those that take memory already. Others are mapped from files.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float
    tokens: int
    present: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.workspace

    def spare(self, device: torch.device) -> float:
        """Bytes that stay free on this process's device at the peak; below 0 what is missing."""
        return available_memory(device) + self.present - self.total

    def __str__(self) -> str:
        names = ("parameters", "gradients", "optimizer", "workspace", "activations")
        parts = ", ".join(f"{name} {_readable(getattr(self, name))}" for name in names)
        return (
            f"about {_readable(self.total)} a process, an estimate: {parts} "
            f"(of up to {self.tokens:,} tokens at once)"
        )


@dataclass(frozen=True)
class Gathering:
    """What FSDP keeps whole on every rank between the micro-batches of a step.

    Attributes:
        keep_weights: weights are gathered once a step, and not twice a micro-batch.
        keep_gradients: gradients are exchanged once a step, and not after each micro-batch.
        weight_bytes: what whole weights take.
        gradient_bytes: what whole gradients take.
    """

    keep_weights: bool = False
    keep_gradients: bool = False
    weight_bytes: int = 0
    gradient_bytes: int = 0

    def __str__(self) -> str:
        weights = f"weights are gathered once a step, {_readable(self.weight_bytes)}"
        if self.keep_gradients:
            return f"{weights}, and gradients exchanged once, {_readable(self.gradient_bytes)}"
        if self.keep_weights:
            return f"{weights}; gradients are exchanged for each micro-batch"
        return "weights are gathered, and gradients exchanged, for each micro-batch"


def suitable_budget(network: RewardNetwork, accelerator: Accelerator) -> int:
    """How many tokens of a micro-batch suit the devices; the same on all ranks, which must call it.

    Without compiled layers a GPU keeps all activations of a micro-batch, so these stay as small as
    on a CPU.
    """
    budget = CPU_BUDGET
    if network.flex:
        total = torch.cuda.get_device_properties(accelerator.device).total_memory
        budget = SMALL_GPU_BUDGET if total < SMALL_GPU else GPU_BUDGET
    return min(process_group(accelerator).gather([budget]))


def estimate_memory(
    model: RewardModel,
    pairs: TokenizedPairs,
    config: TrainConfig,
    *,
    ranks: int = 1,
    sharded: bool = False,
    offloaded: Sequence[torch.Tensor] = (),
    device: torch.device = CPU,
) -> MemoryEstimate:
    """Estimate the memory of a step.

    Activations are measured on one pair and scaled to the largest micro-batch. Sharded weights are
    divided by `ranks`, and every rank must call this. Without sharding, DDP's buckets hold the
    gradients a second time.

    Args:
        model: as it will be trained.
        pairs: all pairs to train on.
        config: gives `batch`, `budget` and `activation_checkpointing`.
        ranks: how many processes there are.
        sharded: whether FSDP shards the weights over them.
        offloaded: weights that are kept beside the network.
        device: where the network will be trained.
    """
    weights = list(model.network.parameters())
    trained = [_bytes(weight) for weight in weights if weight.requires_grad]
    share = 1 / ranks if sharded else 1
    copies = 2 if ranks > 1 and not sharded else 1
    sizes = np.sort(pairs.sizes)
    tokens = max(int(sizes[-1]), min(config.full_row, int(sizes[-config.batch :].sum())))
    core = model.network.core
    parameters = sum(map(_bytes, weights)) + constant_bytes(core)
    # A product of a weight in 4 bits takes a whole one.
    dequantized = max(
        (
            weight_count(layer.weight) * layer.compute_dtype.itemsize
            for layer in quantized_layers(core).values()
        ),
        default=0,
    )
    activations, cast = _activations(model, pairs, tokens, config.activation_checkpointing, device)
    # FSDP holds two whole layers, one that computes and the next, in place of autocast's copies.
    copied = 2 * _largest_layer(model.network) if sharded else cast
    all_parameters = parameters * share + sum(map(_bytes, offloaded))
    return MemoryEstimate(
        parameters=all_parameters,
        gradients=sum(trained) * copies * share,
        optimizer=2 * sum(trained) * share,
        activations=activations,
        workspace=max(trained) + copied + dequantized,
        tokens=tokens,
        present=all_parameters - _mapped_bytes(weights) * share - _mapped_bytes(offloaded),
    )


def available_memory(device: torch.device) -> float:
    """Bytes that a process of this run may still take on its device."""
    if device.type == "cuda":
        return free_bytes(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return available_bytes() / processes


def _activations(
    model: RewardModel,
    pairs: TokenizedPairs,
    tokens: int,
    checkpointing: bool,
    device: torch.device,
) -> tuple[float, float]:
    """Bytes that a micro-batch of up to `tokens` keeps; bytes of weights that autocast copies."""
    kept, products, cast = _measured_bytes(model, pairs)
    config = model.network.core.config.get_text_config()
    inputs = config.num_hidden_layers * config.hidden_size * model.network.core.dtype.itemsize
    # One layer at a time is computed again, or its gradients take as much.
    layer = kept / config.num_hidden_layers
    if checkpointing:
        return tokens * (inputs + layer), cast / config.num_hidden_layers
    # A micro-batch of few tokens keeps everything, and may so take more than a larger one.
    few = min(tokens, RECOMPUTE_ABOVE) if recomputes_selectively(model.network, device) else tokens
    recomputed = tokens * (inputs + products + layer) if tokens > few else 0
    return max(few * (kept + layer), recomputed), cast


def _measured_bytes(model: RewardModel, pairs: TokenizedPairs) -> tuple[float, float, float]:
    """What a forward pass keeps for the backward pass, measured on one pair.

    Returns:
        Bytes a token without the weights; those of them that matrix products computed; and, for all
        tokens together, bytes of weights that were copied into another precision.
    """
    small = np.where(pairs.sizes <= SAMPLE_TOKENS, pairs.sizes, 0)
    pair = pairs[int(small.argmax() if small.any() else pairs.sizes.argmin())]
    sharded = isinstance(model.network, FSDPModule)
    parts = map(local_part, model.network.parameters())
    weights = {part.untyped_storage().data_ptr() for part in parts}
    shapes = {frozenset(weight.shape) for weight in model.network.parameters() if weight.dim() == 2}
    kept: dict[int, int] = {}  # bytes by the address of the storage
    cast: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            copied = tensor.dim() == 2 and frozenset(tensor.shape) in shapes
            is_cast = copied and (sharded or tensor.dtype != torch.float32)
            (cast if is_cast else kept)[storage.data_ptr()] = storage.nbytes()
        return tensor

    # In evaluation nothing is recomputed. Our models have no dropout, so training keeps the same.
    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with hooks, SavedBytes() as products:
        rewards = model.network.eval()([pair.sides])
    del rewards
    return sum(kept.values()) / pair.size, products.bytes / pair.size, sum(cast.values())


def choose_gathering(network: RewardNetwork, spare: float, itemsize: int) -> Gathering:
    """What FSDP may keep whole through a step, in memory that is spare at the peak of one.

    Args:
        network: the sharded network.
        spare: bytes.
        itemsize: bytes of a weight that computes: 2 in bf16.
    """
    weights = sum(weight.numel() for weight in network.parameters()) * itemsize
    # They are added up in fp32, on every rank.
    gradients = 4 * sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    return Gathering(weights <= spare, weights + gradients <= spare, weights, gradients)


def _largest_layer(network: RewardNetwork) -> int:
    """Bytes of the layer with the most weights, in their own precision."""
    sizes = (sum(map(_bytes, layer.parameters())) for layer in network.layers)
    return max(sizes, default=0)


def _mapped_bytes(weights: Sequence[torch.Tensor]) -> int:
    """Bytes of the weights that lie in their files still, mapped into memory."""
    mappings = file_mappings()
    addresses = [local_part(weight).data_ptr() for weight in weights]
    return sum(
        _bytes(weight)
        for weight, address in zip(weights, addresses, strict=True)
        if weight.device.type == "cpu" and any(address in mapping for mapping in mappings)
    )


def _bytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


def _readable(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
