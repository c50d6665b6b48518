"""One optimizer step on this rank's share of the pairs, and the measurement of held-out pairs."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import get_scheduler

from musiccli.core.errors import InputError
from musiccli.core.progress import Clock
from musiccli.gpu.block_mask import row_length
from musiccli.gpu.cards import bf16_flops, mfu
from musiccli.gpu.compilation import compile_attention, recompute
from musiccli.gpu.memory import free_bytes
from musiccli.reward_model.activations import MARGIN, checkpoint_activations, kept_share
from musiccli.reward_model.checkpoint import RewardModel
from musiccli.reward_model.eval_names import eval_prefix
from musiccli.reward_model.loss import pair_losses
from musiccli.reward_model.network import RewardNetwork, last_rewards
from musiccli.reward_model.quantization import weight_count
from musiccli.reward_model.router_loss import config_coefficient, used_experts
from musiccli.train.accelerator import is_sharded, process_group
from musiccli.train.batching import MicroBatch, Step, partition_pairs, total_steps
from musiccli.train.config import TrainConfig
from musiccli.train.memory import (
    Gathering,
    choose_gathering,
    estimate_memory,
)
from musiccli.train.metrics import Metrics, held_out_metrics, mean_metrics
from musiccli.train.pair_arrays import TokenizedPair, TokenizedPairs
from musiccli.train.sharding import local_part


class Trainer:
    """A model in training: its network, optimizer and schedule, prepared for all ranks.

    Args:
        model: its trained weights require gradients. For FSDP it is sharded already.
        pairs: all pairs to train on, the same on every rank.
        config: of the run.
        accelerator: of the run.
    """

    def __init__(
        self,
        model: RewardModel,
        pairs: TokenizedPairs,
        config: TrainConfig,
        accelerator: Accelerator,
    ):
        self.model, self.pairs = model, pairs
        self.config, self.accelerator = config, accelerator
        self.steps = total_steps(len(pairs), config)
        self._tokens = pairs.tokens
        self._router_coefficient = router_coefficient(model, config)
        model.network.balances_experts = self._router_coefficient > 0
        if model.network.flex and model.network.balances_experts:
            compile_attention(model.network.layers)
        trained = [weight for weight in model.network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._layer_weights = count_layer_weights(model.network)
        self._spare_bytes = 0.0  # at the peak of a step, as far as is known
        self._gathering = Gathering()
        warmup_steps = round(config.warmup * self.steps)
        self.schedule = get_scheduler(config.schedule, optimizer, warmup_steps, self.steps)
        self.network, self.optimizer = model.network, optimizer
        if not is_sharded(accelerator):
            self.network, self.optimizer = accelerator.prepare(model.network, optimizer)
        accelerator.register_for_checkpointing(self.schedule)

    def step(self, step: Step) -> Metrics:
        """Take one optimizer step on exactly `config.batch` pairs, over all ranks.

        Nothing waits for the device before the end, where all that was measured is read at once.

        Args:
            step: for each rank its micro-batches of indices of pairs, equally many on every rank.

        Returns:
            Means over all pairs of the step, the same on every rank, and the speed.
        """
        clock = Clock()
        batches = step[self.accelerator.process_index]
        self.network.train()
        measurements = [
            self._backward(batch, last=index == len(batches) - 1)
            for index, batch in enumerate(batches)
        ]
        lr = self.schedule.get_last_lr()[0]
        grad_norm = self._update()
        numbers, norm = self._read(step, measurements, grad_norm)
        losses, margins, chosen, rejected, *router_losses = numbers
        indices = [index for batches in step for batch in batches for index in batch]
        tokens = int(self._tokens[indices].sum())
        return {
            **mean_metrics(losses, margins, [*chosen, *rejected]),
            **({"router_aux_loss": fmean(router_losses[0])} if router_losses else {}),
            "lr": lr,
            "grad_norm": norm,
            "tokens": tokens,
            "tokens_per_s": round(tokens / clock.seconds, 1),
            "pairs_per_s": round(self.config.batch / clock.seconds, 3),
            **self._device_metrics(int(self.pairs.sizes[indices].sum()), clock.seconds),
        }

    def _device_metrics(self, size: int, seconds: float) -> Metrics:
        """On a GPU: tokens through the network a second and device, MFU, and the peak of memory.

        Args:
            size: tokens of the step in forward passes, over all ranks.
            seconds: that the step took.
        """
        device = self.accelerator.device
        if device.type != "cuda":
            return {}
        tokens = size / self.accelerator.num_processes
        metrics: Metrics = {
            "device_tokens_per_s": round(tokens / seconds, 1),
            "peak_memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2),
        }
        if rate := bf16_flops(device):
            share = mfu(tokens, seconds, self._layer_weights, not self.config.lora, rate)
            metrics["mfu"] = round(share, 4)
        return metrics

    def fit_activations(self) -> str | None:
        """On a GPU: keep all activations for the backward pass, or as many as memory holds.

        Those of a short row are measured, on the path that will run, and scaled to a full one. In
        full training those of a longer row are measured, too: copies of weights are as large for
        any row. All ranks must call this, and keep the same share.

        Returns:
            What was decided, in words. None where there is nothing to decide.
        """
        network, device = self.model.network, self.accelerator.device
        if not network.flex or self.config.activation_checkpointing:
            return None
        torch.cuda.reset_peak_memory_stats(device)
        longest = self._row_length(max(int(self.pairs.sizes.max()), self.config.full_row))
        kept, copied = self._measured_activations(longest)
        config = network.core.config.get_text_config()
        inputs = 2 * config.hidden_size * config.num_hidden_layers  # bf16
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        # The first step brings gradients, AdamW's two moments, and DDP's copy of the gradients.
        copies = 4 if self.accelerator.distributed_type == DistributedType.MULTI_GPU else 3
        coming = copies * sum(local_part(weight).nbytes for weight in trained)
        total = torch.cuda.get_device_properties(device).total_memory
        free = free_bytes(device) - coming - copied - MARGIN * total
        share = kept_share(longest * kept, longest * inputs, config.num_hidden_layers, free)
        if network.balances_experts:  # experts are not compiled: all that they keep, or nothing
            share = math.floor(share)
        share = min(process_group(self.accelerator).gather([share]))
        layer = longest * kept / config.num_hidden_layers
        used = longest * (inputs + share * (kept - inputs)) + 2 * layer
        self._spare_bytes = free - used
        if share == 1:
            return f"all activations are kept, {longest * kept / 1e9:.1f} GB for {longest:,} tokens"
        if share == 0:
            checkpoint_activations(network, everything=True, device=device)
            return "the activations of every layer are computed again in the backward pass"
        recompute(share)
        return f"{share:.0%} of the activations are kept, the rest is computed again"

    def _measured_activations(self, longest: int) -> tuple[float, float]:
        """Bytes kept for the backward pass: for each token of a row, and whatever its length.

        Args:
            longest: the longest row of the run.
        """
        shortest = int(self.pairs.sizes.argmin())
        size = int(self.pairs.sizes[shortest])
        row = self._row_length(size)
        kept = self._kept_bytes([shortest])
        count = row // size + 1  # of this pair, in a longer row
        longer = self._row_length(count * size)
        if self.config.lora or longer > longest:
            return kept / row, 0.0
        slope = (self._kept_bytes([shortest] * count) - kept) / (longer - row)
        return slope, max(0.0, kept - slope * row)

    def _kept_bytes(self, batch: MicroBatch) -> int:
        """What a forward pass leaves on the GPU for the backward pass."""
        self.network.train()
        self._rewards(self.pairs, batch)  # compiles the layers
        before = torch.cuda.memory_allocated(self.accelerator.device)
        rewards = self._rewards(self.pairs, batch)
        kept = torch.cuda.memory_allocated(self.accelerator.device) - before
        del rewards
        return kept

    def _row_length(self, tokens: int) -> int:
        return row_length(tokens, self.config.full_row)

    def fit_gathering(self) -> str | None:
        """Under FSDP, keep weights and gradients whole through a step where memory holds them.

        All ranks must call this, after `fit_activations`, and decide alike.

        Returns:
            What was decided, in words. None without FSDP.
        """
        accelerator, network = self.accelerator, self.model.network
        if not is_sharded(accelerator):
            return None
        spare = self._spare_bytes
        if not network.flex:
            estimate = estimate_memory(
                self.model,
                self.pairs,
                self.config,
                ranks=accelerator.num_processes,
                sharded=True,
                device=accelerator.device,
            )
            spare = estimate.spare(accelerator.device)
        spare = min(process_group(accelerator).gather([spare]))
        itemsize = 2 if accelerator.mixed_precision == "bf16" else 4
        self._gathering = choose_gathering(network, spare, itemsize)
        if self._gathering.keep_weights:
            self.network.set_reshard_after_forward(False)
        return str(self._gathering)

    def evaluate(self, sets: Mapping[str, TokenizedPairs]) -> Metrics:
        """`held_out_metrics` of sets of pairs by their names, the same on every rank."""
        return {
            eval_prefix(set_name) + name: value
            for set_name, pairs in sets.items()
            for name, value in self._evaluate(pairs).items()
        }

    def _evaluate(self, pairs: TokenizedPairs) -> Metrics:
        """`held_out_metrics` of pairs, which all ranks share.

        They meet after each micro-batch, of which every rank has equally many.
        """
        batches = partition_pairs(
            range(len(pairs)),
            pairs.sizes,
            self.config.full_row,
            self.accelerator.num_processes,
            padded=not self.model.network.packed,
        )[self.accelerator.process_index]
        results: list[tuple[int, float, float]] = []
        self.network.eval()
        with torch.no_grad():
            for batch in batches:
                chosen, rejected, _ = self._rewards(pairs, batch)
                if batch:
                    chosen_last = last_rewards(chosen).tolist()
                    rejected_last = last_rewards(rejected).tolist()
                    results += zip(batch, chosen_last, rejected_last, strict=True)
                # One that hangs is noticed here, as in a step; the gather waits for hours.
                self.accelerator.reduce(torch.zeros(1, device=self.accelerator.device))
        results = process_group(self.accelerator).gather(results)
        rewards = [(chosen, rejected) for _, chosen, rejected in sorted(results)]
        return held_out_metrics(rewards, pairs.turns, pairs.divergences)

    def _backward(self, batch: MicroBatch, *, last: bool) -> torch.Tensor:
        """Add one micro-batch's gradients, and return what it measures.

        Returns (4, pairs) on the device: losses, margins, and the rewards of chosen and of rejected
        sides. All but the losses are those at the last turn. Of a mixture of experts the router
        loss of the micro-batch follows, the same for each of its pairs.

        Ranks exchange gradients after their last micro-batch only; under FSDP as `fit_gathering`
        has decided.
        """
        self.accelerator.sync_gradients = last  # DeepSpeed clips and steps in its last backward
        sharded = is_sharded(self.accelerator)
        if sharded:
            self.network.set_reshard_after_backward(last or not self._gathering.keep_weights)
            self.network.set_requires_gradient_sync(last or not self._gathering.keep_gradients)
        local = not last and not sharded
        with self.accelerator.no_sync(self.network) if local else contextlib.nullcontext():
            chosen, rejected, router_losses = self._rewards(self.pairs, batch)
            pairs = [self.pairs[index] for index in batch]
            margins = [pair.margin for pair in pairs or self.pairs[:1]]
            losses = pair_losses(chosen, rejected, margins, self.config.center or 0.0)
            # The step's loss is the mean over its pairs. Gradients are averaged over the ranks,
            # hence their number. An empty micro-batch adds zero.
            scale = self.accelerator.num_processes / self.config.batch if batch else 0.0
            loss = losses.sum() * scale
            for router_loss in router_losses:  # weighted by the micro-batch's share of the step
                loss = loss + router_loss * (self._router_coefficient * scale * len(batch))
            self.accelerator.backward(loss)
        with torch.no_grad():
            sides = last_rewards(chosen), last_rewards(rejected)
            routers = [router_loss.expand_as(losses) for router_loss in router_losses]
            return torch.stack([losses, sides[0] - sides[1], *sides, *routers])[:, : len(batch)]

    def _update(self) -> torch.Tensor | None:
        """Clip the gradients and change the weights.

        Returns the gradients' L2 norm before clipping; None where DeepSpeed does not tell it.
        """
        norm = self.accelerator.clip_grad_norm_(
            self.network.parameters(), self.config.max_grad_norm
        )
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        norm = torch.tensor(norm) if isinstance(norm, float) else norm  # DeepSpeed's
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _read(
        self, step: Step, measurements: list[torch.Tensor], grad_norm: torch.Tensor | None
    ) -> tuple[list[list[float]], float | None]:
        """The measurements of all ranks as numbers, and the norm. This waits for the device.

        Each rank writes its columns into a matrix of zeros; the sum over the ranks holds them all.
        Ranks hold different numbers of pairs, so values are collected, not means.

        Returns:
            Lists with a number for each pair of the step; the norm, where there is one.
        """
        counts = [sum(map(len, batches)) for batches in step]
        first = sum(counts[: self.accelerator.process_index])
        local = torch.cat(measurements, dim=1).double()
        matrix = local.new_zeros(len(local), sum(counts))
        matrix[:, first : first + local.shape[1]] = local
        matrix = self.accelerator.reduce(matrix, "sum")
        if grad_norm is None:
            return matrix.tolist(), None
        *rows, norms = torch.cat([matrix, grad_norm.to(matrix).expand(1, sum(counts))]).tolist()
        return rows, norms[0]

    def _rewards(
        self, pairs: Sequence[TokenizedPair], batch: MicroBatch
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Rewards of the chosen and of the rejected sides: for each pair a tensor (turns,).

        Where the network computes a router loss, that is the third. An empty micro-batch computes
        the first pair, since all ranks must take part.
        """
        sides = [pairs[index].sides for index in batch or [0]]
        with self.accelerator.autocast():
            rewards = self.network(sides, budget=self.config.full_row)
        count = 2 * len(sides)
        return rewards[:count:2], rewards[1:count:2], rewards[count:]


def router_coefficient(model: RewardModel, config: TrainConfig) -> float:
    """The weight of the router loss, 0 for a backbone without routers.

    Raises:
        InputError: one is asked for, and there are no routers.
    """
    coefficient = config_coefficient(model.network.backbone)
    if config.router_aux_loss is None:
        return coefficient or 0.0
    if coefficient is None and config.router_aux_loss:
        raise InputError(
            f"`router_aux_loss` {config.router_aux_loss:g}: the backbone is no mixture of experts "
            "whose routers can be read; leave it out"
        )
    return config.router_aux_loss


def count_layer_weights(network: RewardNetwork) -> int:
    """Weights of the layers and the head that a token is multiplied by.

    The embedding and adapters are left out. Of experts, only as many count as a token is sent to.
    """
    share = used_experts(network.backbone.config.get_text_config())
    modules = [*network.layers, network.core.score]
    return round(
        sum(
            weight_count(weight) * (share if ".experts." in name else 1)
            for module in modules
            for name, weight in module.named_parameters()
            if "lora_" not in name
        )
    )
