"""The set-up of accelerate, which spreads a run over processes and devices."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers.integrations import unset_hf_deepspeed_config

from musiccli.core.errors import InputError
from musiccli.core.processes import ProcessGroup, gloo_group
from musiccli.gpu.memory import avoid_fragmentation
from musiccli.gpu.precision import has_bf16
from musiccli.train.config import TrainConfig
from musiccli.train.refusals import refuse_small_batch

TRACKERS_FOLDER = "trackers"  # in a run's folder: the files of trackers that write any


def make_accelerator(config: TrainConfig, trackers: Sequence[str], out: Path) -> Accelerator:
    """An accelerator on GPUs, in bf16 mixed precision where they have it, else on CPUs.

    Raises InputError where there are more processes than pairs in a batch, where these cannot
    connect or share a GPU, or for a setting of accelerate that is not followed.
    """
    gpu = torch.cuda.is_available()
    bf16 = has_bf16(torch.device("cuda" if gpu else "cpu"))
    avoid_fragmentation()
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        cpu=not gpu,
        log_with=list(trackers) or None,
        project_dir=str(out / TRACKERS_FOLDER),
    )
    gloo_group()  # connects the processes now, while none is far behind
    refuse_small_batch(config, accelerator.num_processes)
    refuse_shared_gpus(accelerator)
    refuse_accumulation(accelerator)
    if is_sharded(accelerator):
        refuse_unsupported(accelerator.state.fsdp_plugin)
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers loads on rank 0
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        set_up_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config, config)
    return accelerator


def set_up_deepspeed(settings: dict[str, Any], config: TrainConfig) -> None:
    """Put into DeepSpeed's settings what it takes from nowhere else."""
    # It wants the batch size of a data loader, and clips gradients by its own setting.
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["gradient_clipping"] = config.max_grad_norm
    unset_hf_deepspeed_config()  # else transformers would load weights in parts, for ZeRO-3


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP shards the weights over the processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def refuse_shared_gpus(accelerator: Accelerator) -> None:
    """Raise InputError where two processes compute on one GPU: nccl refuses it in the first step.

    Each may have been given another GPU as its only one.
    """
    machine = accelerator.process_index - accelerator.local_process_index  # its first process
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = process_group(accelerator).gather([(machine, visible, str(accelerator.device))])
    if accelerator.device.type == "cuda" and len(set(cards)) < len(cards):
        raise InputError(
            f"{len(cards)} processes train on {len(set(cards))} GPUs; start one for each GPU"
        )


def refuse_accumulation(accelerator: Accelerator) -> None:
    """Raise InputError for steps of accumulation: accelerate would divide gradients by them."""
    steps = accelerator.gradient_accumulation_steps
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        steps = accelerator.state.deepspeed_plugin.get_value("gradient_accumulation_steps")
    if steps not in (1, "auto"):
        raise InputError(
            f"gradient_accumulation_steps {steps} of the accelerate config: is not followed; a "
            "step takes `batch` pairs, in as many forward passes as `budget` asks for; remove it "
            "there"
        )


def refuse_unsupported(plugin: Any) -> None:
    """Raise InputError for settings of FSDP that would not be followed."""
    if plugin.fsdp_version != 2:
        raise InputError(
            f"fsdp_version {plugin.fsdp_version} of the accelerate config: only version 2 is "
            "supported; write `fsdp_version: 2` there"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError(
            "fsdp_offload_params of the accelerate config: is not supported; `lora` or more "
            "processes take less memory"
        )
    if plugin.activation_checkpointing:
        raise InputError(
            "fsdp_activation_checkpointing of the accelerate config: is not followed; give "
            "`activation_checkpointing` instead"
        )


def process_group(accelerator: Accelerator) -> ProcessGroup:
    """The processes of the run."""
    return ProcessGroup(accelerator.num_processes, accelerator.process_index)


def refuse_different_layouts(layout: str, accelerator: Accelerator) -> None:
    """Raise InputError where ranks lay out conversations differently, and so plan other batches."""
    layouts = process_group(accelerator).gather([layout])
    if len(set(layouts)) > 1:
        listed = ", ".join(f"{rank}: {layout}" for rank, layout in enumerate(layouts))
        raise InputError(
            f"the processes lay out conversations differently ({listed}); use GPUs of one kind"
        )


def refuse_different_data(fingerprint: str, accelerator: Accelerator) -> None:
    """Raise InputError where the ranks have read different pairs; their plans would differ, too."""
    if len(set(process_group(accelerator).gather([fingerprint]))) > 1:
        raise InputError(
            "the processes have read different pairs; each must be given the same files"
        )
