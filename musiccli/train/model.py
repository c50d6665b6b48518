"""The model of a run: created before the first step, collected from all ranks after the last."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from musiccli.reward_model import checkpoint
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding
from musiccli.train.accelerator import is_sharded
from musiccli.train.config import TrainConfig
from musiccli.train.sharding import reshard


def create_model(
    config: TrainConfig,
    accelerator: Accelerator,
    say: Callable[[str], None] = lambda text: None,
) -> RewardModel:
    """The model to train: a backbone with a new head, or a reward model to continue from.

    Weights that are trained are in fp32. Frozen ones, below adapters, are in the precision that
    they are computed in.
    """
    computed = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    return checkpoint.create(
        config.init_from or config.model,
        seed=config.seed,
        lora=config.lora,
        layers=config.layers,
        trained=config.init_from is not None,
        say=say,
        dtype=computed if config.lora else torch.float32,
        device=accelerator.device,
        sharded=is_sharded(accelerator),
        quantized=config.qlora,
    )


def collect_model(
    model: RewardModel,
    trained: nn.Module,
    embedding: TrimmedEmbedding,
    config: TrainConfig,
    accelerator: Accelerator,
) -> RewardModel:
    """The trained model with all its weights. Every rank must call this.

    Sharded weights are gathered one by one, to the main process alone, which puts them into a new
    model. Frozen weights are read from their files again.

    Args:
        model: as it was created.
        trained: its network, as accelerate has prepared and trained it.
        embedding: the trimmed embedding of `model`, which is restored.
        config: of the run.
        accelerator: of the run.
    """
    if is_sharded(accelerator):
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        reshard(trained)
        weights = get_model_state_dict(trained, options=options)
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        weights = deepspeed_weights(accelerator.unwrap_model(trained), accelerator.is_main_process)
    else:
        model.network = accelerator.unwrap_model(trained)
        embedding.restore()
        return model
    if accelerator.is_main_process:
        model = create_model(config, accelerator)
        embedding = TrimmedEmbedding(model.network, embedding.tokens)
        model.network.load_state_dict({**model.network.state_dict(), **weights}, assign=True)
        embedding.restore()
    return model


def deepspeed_weights(network: nn.Module, is_main: bool) -> dict[str, torch.Tensor]:
    """The trained weights in fp32, in the main process alone. Every rank must call this.

    Under bf16 the network's own are rounded, and DeepSpeed's optimizer holds the trained ones.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            trained = safe_get_full_fp32_param(weight)  # None where the network's own are in fp32
            if is_main:
                weights[name] = (weight.detach() if trained is None else trained).cpu()
    return weights
