"""Shard a network over the processes of a run, by PyTorch's FSDP2."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from musiccli.reward_model.network import RewardNetwork

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
FP32 = MixedPrecisionPolicy()


def shard(network: RewardNetwork, accelerator: Accelerator) -> None:
    """Leave each rank its part of every weight, in fp32 where it is trained, on its device.

    Every rank has opened the same files, and takes its parts of one module at a time. So nothing is
    sent, and no rank holds more than one whole module at once.

    Args:
        network: its weights are on the CPU; it changes in place. Layers are gathered whole when
            they compute, in bf16 under mixed precision. The head and the last norm stay in fp32.
        accelerator: of the run.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    layer_policy = BF16 if accelerator.mixed_precision == "bf16" else FP32
    unused = [network.core.get_submodule(name) for name in network.unused_modules]
    for module in (network.backbone.get_input_embeddings(), *network.layers, *unused):
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=layer_policy,
            reshard_after_forward=accelerator.state.fsdp_plugin.reshard_after_forward,
        )
    fully_shard(network, mesh=mesh, mp_policy=FP32)
    network._apply(_trained_in_fp32)


def reshard(network: nn.Module) -> None:
    """Free the weights that a forward pass has left whole; each rank keeps its parts.

    Only these are what an optimizer, or a reader of the weights, should see.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered_weight(weight: torch.Tensor) -> torch.Tensor:
    """A whole weight, on every rank, of one that may be sharded. Every rank must call this."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """This rank's part of a weight that is sharded; else the weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def trained_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights by their names; this rank's parts of those that are sharded.

    They are the network's own: what is copied into them is trained on.

    Args:
        network: with or without DDP's wrapping.
    """
    reshard(network)
    network = getattr(network, "module", network)
    return {
        name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad
    }


def _trained_in_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """A trained weight in fp32; every other tensor as it is."""
    trained = isinstance(tensor, nn.Parameter) and tensor.requires_grad
    return tensor.float() if trained else tensor
