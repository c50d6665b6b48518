"""Measure training and scoring on one GPU against what they should reach, and print a table.

    python recipes/gpu/accept.py [--rows 1,2,6] [--markdown FILE]

Models have random weights of real shapes and read random token ids, so no hub and no tokenizer is
needed. Every figure and its baseline come from the same call. One H100 did not finish in ten
minutes. The last column is the seconds of a row. The file of `--markdown` has each row as soon as
it is measured.
`--dry-run` runs the same rows on a CPU at toy size: it shows that the program works, and nothing
about speed.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from musiccli.gpu.block_mask import block_mask
from musiccli.gpu.cards import bf16_flops, mfu
from musiccli.gpu.compilation import compile_layers, undo_compilation
from musiccli.gpu.precision import cast_hidden_states
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.checkpoint import RewardModel, add_lora
from musiccli.reward_model.loss import pair_losses
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import packed_length
from musiccli.reward_model.scoring import score_encoded
from musiccli.reward_model.trimmed_embedding import TrimmedEmbedding
from musiccli.train.batching import plan_steps
from musiccli.train.config import TrainConfig
from musiccli.train.pair_arrays import PairArrays, TokenizedPair, TokenizedPairs
from musiccli.train.trainer import Trainer, count_layer_weights

GEMMA_2_9B = Gemma2Config(
    vocab_size=256000,
    hidden_size=3584,
    intermediate_size=14336,
    num_hidden_layers=42,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=256,
    query_pre_attn_scalar=256,
)
GEMMA_2_2B = Gemma2Config(vocab_size=256000)  # transformers' defaults are its shape
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    rope_theta=500000.0,
    max_position_embeddings=8192,
)
TINY = {  # a toy of each family
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
TOKENS = 500  # ids that are drawn; so the embedding is trimmed as it is in real runs


class Measured:
    """A row of the table: a figure, the bar it is held to, and whether it is over it."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.figures: list[str] = []
        self.bars: list[str] = []
        self.passed = True
        self.seconds = 0.0  # that the row took, models and compilation included

    def add(self, text: str, bar: str = "", passed: bool = True) -> None:
        """Add a figure, and what it should be."""
        self.figures.append(text)
        if bar:
            self.bars.append(bar)
        self.passed = self.passed and bool(passed)


class Acceptance:
    """The rows, and what they share.

    Args:
        dry_run: run at toy size on a CPU.
        cpu: run on a CPU whatever the size.
    """

    def __init__(self, dry_run: bool, cpu: bool = False) -> None:
        self.dry_run, cpu = dry_run, cpu or dry_run
        self.accelerator = Accelerator(mixed_precision="no" if cpu else "bf16", cpu=cpu)
        self.device = self.accelerator.device
        self.backend = "aot_eager" if dry_run else "inductor"  # the compiler wants a GPU
        self.rate = bf16_flops(self.device) or 1e12
        self.rank = 4 if dry_run else 16
        self.budget = 512 if dry_run else 8448
        self.repeats, self.warm_up = (1, 1) if dry_run else (10, 3)
        self.prefix, self.reply = (40, 20) if dry_run else (600, 300)
        self.shared: dict[str, Any] = {}

    # ---- models -----------------------------------------------------------------------------

    def config(self, config: Any, **changes: Any) -> Any:
        """A config with one label; in a dry run a toy of its family."""
        config = copy.deepcopy(config)
        if self.dry_run:
            settings = TINY if "layers" not in changes else TINY | {"num_hidden_layers": 2}
            config = type(config)(**settings)
        elif "layers" in changes:
            layers = changes["layers"]
            config = type(config)(
                **{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None}
            )
        config.num_labels, config.pad_token_id = 1, 0
        return config

    def core(self, config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
        """A sequence classifier with random weights, on the device."""
        torch.manual_seed(0)
        with self.device:
            core = AutoModelForSequenceClassification.from_config(
                config, dtype=torch.float32 if self.dry_run else dtype, attn_implementation="eager"
            )
        core.config.use_cache = False
        return core

    def compiled(self, core: Any, kind: type[RewardNetwork] = RewardNetwork) -> RewardNetwork:
        """The network as it is used on a GPU."""
        network = kind(core, flex=True)
        compile_layers(network.layers, self.backend)
        return network

    def gemma_9b(self) -> RewardNetwork:
        """Gemma-2-9B in bf16; kept, since several rows use it."""
        if "9b" not in self.shared:
            self.shared["9b"] = self.compiled(self.core(self.config(GEMMA_2_9B)))
        return self.shared["9b"]

    def lora_9b(self) -> RewardNetwork:
        """The same with LoRA of rank 16."""
        network = self.gemma_9b()
        if not hasattr(network.model, "peft_config"):
            add_lora(network, self.rank, seed=0)
        return network.train()

    # ---- data -------------------------------------------------------------------------------

    def pairs(self, count: int) -> list[TokenizedPair]:
        """Pairs that share a prefix of 600 tokens before 300 of their own."""
        draw = np.random.default_rng(0)
        return [random_pair(draw, self.prefix, self.reply, self.reply) for _ in range(count)]

    def spread_pairs(self, count: int) -> list[TokenizedPair]:
        """Pairs of log-normal lengths: sides of 900 tokens in the mean, at most 2,048."""
        return self.pairs_of(np.random.default_rng(1).standard_normal(count))

    def quantile_pairs(self, count: int) -> list[TokenizedPair]:
        """Pairs whose lengths are evenly spaced quantiles of that distribution."""
        shares = [(number + 0.5) / count for number in range(count)]
        return self.pairs_of(np.array([statistics.NormalDist().inv_cdf(share) for share in shares]))

    def pairs_of(self, deviations: np.ndarray) -> list[TokenizedPair]:
        """A pair for each deviation of its length's logarithm from the mean."""
        draw, scale = np.random.default_rng(1), 1 / 15 if self.dry_run else 1
        sides = np.minimum(np.exp(np.log(900) - 0.18 + 0.6 * deviations), 2000) * scale
        return [
            random_pair(draw, int(side * 2 / 3), int(side / 3) + 4, int(side / 3 * 1.1) + 4)
            for side in sides
        ]

    # ---- measurement ------------------------------------------------------------------------

    def trainer(
        self,
        network: RewardNetwork,
        pairs: list[TokenizedPair],
        batch: int,
        budget: int | None = None,
    ) -> Trainer:
        """A trainer as `music train` makes it."""
        lora = self.rank if hasattr(network.model, "peft_config") else None
        budget = budget or self.budget
        config = TrainConfig(batch=batch, budget=budget, steps=1000, lr=1e-5, lora=lora)
        model = RewardModel(network, None, None)  # type: ignore[arg-type]
        return Trainer(model, TokenizedPairs([PairArrays.of(pairs)]), config, self.accelerator)

    def steps_per_second(self, trainer: Trainer, *, baseline: bool = False) -> float:
        """The median over steps, after a warm-up; fewer of them for what is only compared with."""
        warm_up, repeats = (1, 3) if baseline else (self.warm_up, self.repeats)
        plan = plan_steps(trainer.pairs.sizes, trainer.config, 1, not trainer.model.network.packed)
        for _ in range(warm_up):
            trainer.step(next(plan))
        self.reset_peak()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            trainer.step(next(plan))
            seconds.append(time.perf_counter() - start)
        return 1 / statistics.median(seconds)

    def reset_peak(self) -> None:
        """Forget the peak of memory."""
        if not self.dry_run:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """The peak of memory in GB since `reset_peak`, as the allocator took it from the device."""
        return 0.0 if self.dry_run else torch.cuda.max_memory_reserved() / 1e9

    def release(self) -> None:
        """Give back memory that nothing uses."""
        self.accelerator.free_memory()  # it holds every optimizer that it prepared
        self.accelerator._custom_objects.clear()  # and every schedule, which holds its optimizer
        gc.collect()
        if not self.dry_run:
            torch.cuda.empty_cache()

    def free(self) -> None:
        """Drop the models that rows share."""
        self.shared.clear()
        self.release()

    def seconds(self, run: Callable[[], Any], repeats: int = 10) -> float:
        """The median time of a call, by the device's events."""
        for _ in range(min(3, repeats - 1)):
            run()
        if self.dry_run:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        times = []
        for _ in range(repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        return statistics.median(times)


def random_pair(draw: Any, prefix: int, *replies: int) -> TokenizedPair:
    """A pair of random tokens: a shared prefix, then sides of so many tokens."""
    shared = draw.integers(5, TOKENS, prefix).tolist()
    sides = []
    for number, reply in enumerate(replies):
        ids = [*shared, 5 + number, *draw.integers(5, TOKENS, reply - 1).tolist()]
        sides.append(EncodedConversation(ids, [len(ids) - 1]))
    tokens = sum(len(side.ids) for side in sides)
    return TokenizedPair((sides[0], sides[1]), packed_length(sides), tokens, 1, "last")


class Unshared(RewardNetwork):
    """Rows in which each conversation stands by itself, its prefix once for each side."""

    def forward(self, groups: Any) -> list[torch.Tensor]:
        """As `RewardNetwork.forward`."""
        return super().forward([(side,) for group in groups for side in group])


def varlen(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **settings: Any) -> Any:
    """PyTorch's own flash attention over conversations of different lengths in one row."""
    segments, scaling = settings["segments"], settings.get("scaling")
    if query.device.type != "cuda":
        return ALL_ATTENTION_FUNCTIONS["music_packed"](module, query, key, value, mask, **settings)
    from torch.nn.attention.varlen import varlen_attn

    edges = torch.tensor([0, *(s.stop for s in segments)], dtype=torch.int32, device=query.device)
    longest = max(segment.stop - segment.start for segment in segments)
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        tensor[0].transpose(0, 1)
        for tensor in (
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
        )
    )
    settings = {"scale": scaling} if scaling is not None else {}
    try:
        output = varlen_attn(
            query, key, value, edges, edges, longest, longest, window_size=(-1, 0), **settings
        )
    except TypeError:  # before torch 2.11
        output = varlen_attn(query, key, value, edges, edges, longest, longest, True, **settings)
    return output[None], None


ALL_ATTENTION_FUNCTIONS.register("varlen", varlen)


def row_1(accept: Acceptance, row: Measured) -> None:
    """The card itself."""
    size = 256 if accept.dry_run else 8192
    left, right = (
        torch.randn(size, size, device=accept.device, dtype=torch.bfloat16) for _ in range(2)
    )
    rate = 2 * size**3 / accept.seconds(lambda: left @ right) / 1e12
    row.add(f"{rate:.0f} TFLOP/s", "750", rate >= 750)
    source = torch.empty(
        1 << (20 if accept.dry_run else 32), dtype=torch.uint8, device=accept.device
    )
    target = torch.empty_like(source)
    speed = 2 * source.numel() / accept.seconds(lambda: target.copy_(source)) / 1e12
    row.add(f"copy {speed:.2f} TB/s", "2.8", speed >= 2.8)


def row_2(accept: Acceptance, row: Measured) -> None:
    """The same rewards and gradients as on a CPU, in fp32."""
    window = {"sliding_window": 40}
    configs = [
        Gemma2Config(**TINY, **window, attn_logit_softcapping=2.0, query_pre_attn_scalar=32),
        Gemma3TextConfig(**TINY, **window, query_pre_attn_scalar=32),
        LlamaConfig(**TINY),
    ]
    draw = np.random.default_rng(0)  # some pairs share a prefix, and one none
    groups = [random_pair(draw, prefix, 80, 57).sides for prefix in (90, 30, 0, 150, 64)]
    worst_reward = worst_gradient = 0.0
    for config in configs:
        config.num_labels, config.pad_token_id = 1, 0
        if getattr(config, "layer_types", None):
            config.layer_types = ["sliding_attention", "full_attention"]
        torch.manual_seed(0)
        core = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for weight in core.parameters():
                weight.normal_(0, 0.15) if weight.dim() > 1 else weight.add_(
                    torch.randn_like(weight) * 0.1
                )
        expected, gradients = rewards_and_gradients(RewardNetwork(core, packed=False), groups)
        network = accept.compiled(core.to(accept.device))
        for checkpointed in (False, True):
            if checkpointed:
                core.activation_checkpointing_enable({"use_reentrant": False})
            rewards, found = rewards_and_gradients(network, groups)
            worst_reward = max(worst_reward, (rewards - expected).abs().max().item())
            for name, gradient in gradients.items():
                error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
                worst_gradient = max(worst_gradient, error.item())
    row.add(f"rewards {worst_reward:.1e}", "1e-4", worst_reward <= 1e-4)
    row.add(f"gradients {worst_gradient:.1e}", "1e-3", worst_gradient <= 1e-3)


def rewards_and_gradients(
    network: RewardNetwork, groups: Sequence[Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rewards of all sides, and each weight's gradient of the pairs' losses; on the CPU."""
    network.train()
    network.zero_grad(set_to_none=True)
    rewards = network(groups, budget=1024)
    pair_losses(rewards[::2], rewards[1::2], [0.0] * len(groups)).sum().backward()
    gradients = {
        name.removeprefix("_orig_mod."): weight.grad.cpu().clone()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    return torch.cat(rewards).detach().cpu(), gradients


def row_3(accept: Acceptance, row: Measured) -> None:
    """Twenty steps in bf16 against the same in fp32 on a CPU."""
    network = accept.compiled(small_core(accept).to(accept.device))
    cast_hidden_states(network.backbone.get_input_embeddings())
    losses = twenty_losses(network, accept.accelerator.autocast)
    expected = accept.shared["fp32"].result()
    first, last = (abs(losses[step] - expected[step]) for step in (0, -1))
    row.add(f"loss differs by {first:.4f} at step 1", "0.01", first <= 0.01)
    row.add(f"by {last:.4f} at step 20, where it is {expected[-1]:.2f}", "0.03", last <= 0.03)


def small_core(accept: Acceptance) -> Any:
    """Four layers of 2B's shape in fp32 on the CPU, the same weights in every process."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        accept.config(GEMMA_2_2B, layers=4), attn_implementation="eager"
    )


def fp32_losses(dry_run: bool) -> list[float]:
    """What `row_3` compares with; it runs in a process of its own, beside the other rows."""
    torch.set_num_threads(1 if dry_run else 8)
    core = small_core(Acceptance(dry_run=dry_run, cpu=True))
    return twenty_losses(RewardNetwork(core, packed=False), contextlib.nullcontext)


def twenty_losses(network: RewardNetwork, autocast: Callable[[], Any]) -> list[float]:
    """The loss of each of twenty steps on two pairs."""
    pairs = [random_pair(np.random.default_rng(seed), 20, 12, 12) for seed in range(40)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.0)
    losses = []
    for start in range(0, 40, 2):
        with autocast():
            rewards = network([pair.sides for pair in pairs[start : start + 2]], budget=256)
        loss = pair_losses(rewards[::2], rewards[1::2], [0.0] * 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def row_4(accept: Acceptance, row: Measured) -> None:
    """Few graphs, no breaks, and no wait for the device within a step."""
    network = accept.compiled(accept.core(accept.config(GEMMA_2_2B, layers=2), torch.float32))
    cast_hidden_states(network.backbone.get_input_embeddings())
    trainer = accept.trainer(network, accept.spread_pairs(80), 4, accept.budget // 2)
    plan = plan_steps(trainer.pairs.sizes, trainer.config, 1)
    counters.clear()
    for _ in range(accept.warm_up * 4):  # the compiler itself waits for the device
        trainer.step(next(plan))
    with no_synchronization(trainer, accept.dry_run):
        for _ in range(20):
            trainer.step(next(plan))
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    row.add(f"{graphs} graphs for at most 4 lengths", "4 a kind", graphs <= 8)
    row.add(f"{breaks} breaks", "0", breaks == 0)
    row.add("no wait within a step")


@contextlib.contextmanager
def no_synchronization(trainer: Trainer, dry_run: bool) -> Iterator[None]:
    """Let PyTorch raise at every wait for the device, but in `Trainer._read` at a step's end."""
    if dry_run:
        yield
        return
    read = trainer._read

    def allowed(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return read(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    trainer._read = allowed  # type: ignore[method-assign]
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def row_5(accept: Acceptance, row: Measured) -> None:
    """Flex attention alone, causal over one row."""
    length, heads, size = (512, 2, 32) if accept.dry_run else (8192, 16, 256)
    key_heads = heads // 2
    dtype = torch.float32 if accept.dry_run else torch.bfloat16
    query, key, value = (
        torch.randn(1, count, length, size, device=accept.device, dtype=dtype, requires_grad=True)
        for count in (heads, key_heads, key_heads)
    )
    positions = torch.arange(length, device=accept.device, dtype=torch.int32)
    zeros = torch.zeros_like(positions)
    mask = block_mask(torch.stack([positions, zeros, zeros, zeros]))
    attend = torch.compile(partial(flex_attention, enable_gqa=True), backend=accept.backend)
    upper = torch.randn_like(query)

    def both() -> None:
        attend(query, key, value, block_mask=mask).backward(upper)

    with torch.no_grad():
        forward = accept.seconds(lambda: attend(query, key, value, block_mask=mask))
    total = accept.seconds(both)
    work = 2 * length**2 * heads * size  # half of 4 L^2 H D: causal
    rates = work / forward / 1e12, 3.5 * work / total / 1e12
    row.add(f"forward {rates[0]:.0f} TFLOP/s", "150", rates[0] >= 150)
    row.add(f"both {rates[1]:.0f}", "110", rates[1] >= 110)


def train_row(
    accept: Acceptance,
    row: Measured,
    network: RewardNetwork,
    tokens: int,
    share: float,
    memory: int,
) -> float:
    """Measure training on full rows of seven pairs, and hold it to bars.

    Args:
        accept: what is shared.
        row: gets the figures.
        network: what is trained.
        tokens: a second, at least; 0 for no bar.
        share: MFU, at least.
        memory: GB, at most.

    Returns:
        Steps a second.
    """
    trainer = accept.trainer(network, accept.pairs(14), batch=7)
    speed = accept.steps_per_second(trainer)
    rate = 7 * trainer.pairs[0].size * speed
    weights, trained = count_layer_weights(network), not trainer.config.lora
    reached = mfu(rate, 1, weights, trained, accept.rate)
    row.add(f"{rate:,.0f} tokens/s", f"{tokens:,}" if tokens else "", rate >= tokens)
    row.add(f"MFU {reached:.1%}", f"{share:.0%}", reached >= share)
    row.add(f"{accept.peak():.1f} GB", f"{memory} GB", accept.peak() <= memory)
    return speed


def row_6(accept: Acceptance, row: Measured) -> None:
    """LoRA on 9B, everything kept."""
    accept.shared["kept"] = train_row(accept, row, accept.lora_9b(), 10_000, 0.34, 76)


def row_7(accept: Acceptance, row: Measured) -> None:
    """LoRA on 9B, layers recomputed."""
    network = accept.lora_9b()
    network.core.activation_checkpointing_enable({"use_reentrant": False})
    accept.shared["recomputed"] = train_row(accept, row, network, 7_500, 0.25, 35)


def row_8(accept: Acceptance, row: Measured) -> None:
    """The path without compilation and flex attention, layers recomputed."""
    network = accept.lora_9b()
    undo_compilation(network.layers)
    plain = RewardNetwork(network.model, packed=True)
    trainer = accept.trainer(plain, accept.pairs(14), 7)
    speed = accept.steps_per_second(trainer, baseline=True)
    for name, bar in (("recomputed", 1.5), ("kept", 2.0)):
        if name in accept.shared:
            ratio = accept.shared[name] / speed
            row.add(f"{name}: {ratio:.2f}x its speed", f"{bar}x", ratio >= bar)


def row_9(accept: Acceptance, row: Measured) -> None:
    """Padded and eager, as TRL trains, on lengths that differ."""
    network = accept.lora_9b()
    pairs = accept.quantile_pairs(6)  # one row in every step: one length to compile
    undo_compilation(network.layers)
    padded = RewardNetwork(network.model, packed=False)
    padded.core.set_attn_implementation("eager")
    trainer = accept.trainer(padded, sized(pairs, padded=True), 6)
    theirs = accept.steps_per_second(trainer, baseline=True)
    accept.release()
    network.core.activation_checkpointing_disable()
    network.core.set_attn_implementation("flex_attention")
    compile_layers(network.layers, accept.backend)
    ours = accept.steps_per_second(accept.trainer(network, pairs, 6))
    text = f"{6 * ours:.1f} pairs/s, padded {6 * theirs:.1f}: {ours / theirs:.2f}x"
    row.add(text, "3x", ours >= 3 * theirs)


def row_10(accept: Acceptance, row: Measured) -> None:
    """The same flex attention without sharing prefixes."""
    network = accept.lora_9b()
    unshared = Unshared(network.model, flex=True)
    # Two rows of four pairs, which are padded to the length of ours: no other is compiled.
    trainer = accept.trainer(unshared, sized(accept.pairs(16)), 8)
    theirs = 8 * accept.steps_per_second(trainer, baseline=True)
    if "kept" not in accept.shared:  # row 6 measures it
        accept.shared["kept"] = accept.steps_per_second(
            accept.trainer(network, accept.pairs(14), 7)
        )
    ratio = 7 * accept.shared["kept"] / theirs
    row.add(f"{ratio:.2f}x its speed", "1.35x", ratio >= 1.35)


def row_11(accept: Acceptance, row: Measured) -> None:
    """Llama's shape against flash attention without padding, each side by itself."""
    accept.free()
    network, pairs = accept.compiled(accept.core(accept.config(LLAMA_3_8B))), accept.pairs(14)
    add_lora(network, accept.rank, seed=0)
    ours = accept.steps_per_second(accept.trainer(network, pairs, 7))
    undo_compilation(network.layers)
    accept.release()
    flash = Unshared(network.model, packed=True)
    flash.core.config._attn_implementation = flash.backbone.config._attn_implementation = "varlen"
    flash.core.activation_checkpointing_enable({"use_reentrant": False})
    trainer = accept.trainer(flash, sized(pairs), 7)
    theirs = accept.steps_per_second(trainer, baseline=True)
    row.add(f"{ours / theirs:.2f}x its speed", "1.3x", ours >= 1.3 * theirs)


def sized(pairs: Sequence[TokenizedPair], *, padded: bool = False) -> list[TokenizedPair]:
    """Pairs with the sizes that they have as two sequences, padded to the longer or not."""
    return [
        dataclasses.replace(
            pair, size=2 * max(len(s.ids) for s in pair.sides) if padded else pair.tokens
        )
        for pair in pairs
    ]


def full_row(
    accept: Acceptance, row: Measured, config: Any, tokens: int, share: float, memory: int
) -> None:
    """Full training with fp32 masters. The embedding is trimmed, as in a real run."""
    accept.free()
    network = accept.compiled(accept.core(config, torch.float32))
    cast_hidden_states(network.backbone.get_input_embeddings())
    TrimmedEmbedding(network, list(range(TOKENS)))
    train_row(accept, row, network, tokens, share, memory)


def row_12(accept: Acceptance, row: Measured) -> None:
    """2B in full."""
    full_row(accept, row, accept.config(GEMMA_2_2B), 28_000, 0.35, 75)


def row_13(accept: Acceptance, row: Measured) -> None:
    """Ten layers of 9B in full: what a card computes under FSDP."""
    full_row(accept, row, accept.config(GEMMA_2_9B, layers=10), 0, 0.42, 80)


def row_14(accept: Acceptance, row: Measured) -> None:
    """Scoring with 9B, by the code of `music score`."""
    accept.free()
    network = accept.gemma_9b().eval()
    pairs = accept.pairs(7)
    tokens = sum(pair.size for pair in pairs)
    seconds = accept.seconds(partial(score, network, pairs, accept.budget))
    share = mfu(tokens, seconds, count_layer_weights(network), False, accept.rate) / 2
    row.add(f"{tokens / seconds:,.0f} tokens/s", "28,000", tokens / seconds >= 28_000)
    row.add(f"MFU {share:.1%}", "47%", share >= 0.47)
    spread = accept.spread_pairs(28)  # four rows that are padded to one length
    spread_seconds = accept.seconds(partial(score, network, spread, accept.budget), 3)
    undo_compilation(network.layers)
    padded = RewardNetwork(network.model, packed=False).eval()
    padded.core.set_attn_implementation("eager")
    ratio = accept.seconds(partial(score_padded, padded, pairs), 2) / seconds
    spread_ratio = accept.seconds(partial(score_padded, padded, spread), 2) / spread_seconds
    row.add(f"{ratio:.2f}x padded where all lengths are equal")
    row.add(f"{spread_ratio:.2f}x where they differ", "3x", spread_ratio >= 3)


def score(network: RewardNetwork, pairs: Sequence[TokenizedPair], budget: int) -> None:
    """Score both sides of pairs in rows."""
    sides = [side for pair in pairs for side in pair.sides]
    score_encoded(network, sides, [number // 2 for number in range(len(sides))], budget)


def score_padded(network: RewardNetwork, pairs: Sequence[TokenizedPair]) -> None:
    """Score both sides of pairs in batches of 8 as they come, padded to the longest."""
    sides = [side for pair in pairs for side in pair.sides]
    for start in range(0, len(sides), 8):
        with torch.inference_mode():
            torch.cat(network([[side] for side in sides[start : start + 8]])).tolist()


# In the order in which they run: rows that share a model are neighbors.
ROWS: list[tuple[int, str, Callable[[Acceptance, Measured], None]]] = [
    (1, "the card: product of 8192^3 in bf16; copy", row_1),
    (2, "toys of Gemma-2, Gemma-3, Llama, recomputed or not: fp32 against a CPU", row_2),
    (3, "2B shape, 4 layers: bf16 against fp32 on a CPU", row_3),
    (4, "20 steps of different rows", row_4),
    (5, "flex attention, head size 256, a row of 8,192", row_5),
    (6, "9B, LoRA 16 on a bf16 base, rows of 8,448, everything kept", row_6),
    (10, "9B, LoRA 16, beside rows without shared prefixes", row_10),
    (7, "9B, LoRA 16, every layer recomputed", row_7),
    (8, "9B, LoRA 16, beside the path without compilation, recomputed", row_8),
    (9, "9B, LoRA 16, beside padded and eager, recomputed; lengths that differ", row_9),
    (14, "9B, scoring, rows of 8,448", row_14),
    (11, "8B of Llama's shape, LoRA 16, beside flash attention, each side by itself", row_11),
    (12, "2B in full, fp32 masters", row_12),
    (13, "10 layers of 9B's shape in full, fp32 masters", row_13),
]


def allow_cpu_backward() -> None:
    """Let flex attention be differentiated on a CPU, which PyTorch refuses by a check alone."""
    import torch.nn.attention.flex_attention as flex

    flex._validate_device = lambda *_: None  # type: ignore[assignment]


def table(rows: Sequence[Measured], title: str) -> str:
    """The rows as Markdown."""
    lines = [title, "", "| # | what | measured | bar | | s |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row.number):
        cells = (
            str(row.number),
            row.name,
            "; ".join(row.figures),
            "; ".join(row.bars),
            "ok" if row.passed else "**short**",
            f"{row.seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run_row(
    accept: Acceptance, row: Measured, measure: Callable[[Acceptance, Measured], None]
) -> Measured:
    """Measure a row. One that fails says so, and hides no other."""
    start = time.perf_counter()
    try:
        measure(accept, row)
    except Exception as error:
        traceback.print_exc()
        row.add(f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}", "", False)
    accept.release()
    row.seconds = time.perf_counter() - start
    if not accept.dry_run:
        print(f"held: {torch.cuda.memory_allocated() / 1e9:.1f} GB", file=sys.stderr)
    text = "; ".join(row.figures)
    print(f"{row.number}: {text} [{row.seconds:.0f} s]", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Run the rows that were asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="numbers of rows, separated by commas; all without it")
    parser.add_argument("--markdown", type=Path, help="a file that gets the table, too")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at toy size")
    arguments = parser.parse_args()
    wanted = {int(number) for number in arguments.rows.split(",")} if arguments.rows else None
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("accept.py: there is no GPU here; --dry-run runs at toy size on a CPU")
    if arguments.dry_run:
        allow_cpu_backward()
    accept = Acceptance(arguments.dry_run)
    card = "a CPU, toy size" if accept.dry_run else torch.cuda.get_device_name()
    title = f"{card}, torch {torch.__version__}, {time.strftime('%d %B %Y')}"
    rows: list[Measured] = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        if not wanted or 3 in wanted:
            accept.shared["fp32"] = processes.submit(fp32_losses, arguments.dry_run)
        for number, name, measure in ROWS:
            if not wanted or number in wanted:
                rows.append(run_row(accept, Measured(number, name), measure))
                if arguments.markdown:  # a run that is cut off leaves what it measured
                    arguments.markdown.write_text(table(rows, title), "utf-8")
    print(table(rows, title))


if __name__ == "__main__":
    main()
