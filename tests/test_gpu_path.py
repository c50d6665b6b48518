"""What runs on a GPU, as far as a CPU can run it: the same graphs, computed by a backend for CPUs."""

import copy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import preloaded
import pytest
import torch
import torch.nn.attention.flex_attention as flex
from accelerate import Accelerator
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from toys import draw, sequence
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from musiccli.core.errors import InputError
from musiccli.gpu import can_compile
from musiccli.gpu.block_mask import BLOCK, block_mask, row_length, row_masks
from musiccli.gpu.cards import bf16_flops, mfu
from musiccli.gpu.compilation import compile_attention, compile_layers
from musiccli.gpu.precision import bf16_autocast, cast_hidden_states, computed_precision
from musiccli.reward_model import batch_layout
from musiccli.reward_model import network as network_module
from musiccli.reward_model.activations import kept_share
from musiccli.reward_model.batch_layout import can_use_flex, choose_layout
from musiccli.reward_model.checkpoint import RewardModel, add_lora
from musiccli.reward_model.loss import pair_losses
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.packing import pack, packed_length, row_table
from musiccli.reward_model.rounding import COPIES
from musiccli.train import checks
from musiccli.train import trainer as train_trainer
from musiccli.train.config import TrainConfig
from musiccli.train.memory import suitable_budget
from musiccli.train.pair_arrays import PairArrays, TokenizedPair, TokenizedPairs
from musiccli.train.trainer import Trainer, count_layer_weights

ACCEPT = Path(__file__).parents[1] / "recipes" / "gpu" / "accept.py"
SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "num_labels": 1,
}
WINDOW = {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, **WINDOW}
CONFIGS = {
    "gemma2": Gemma2Config(**SIZE, **GEMMA, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**SIZE, **GEMMA),
    "llama": LlamaConfig(**SIZE, head_dim=16),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=16),
}


@pytest.fixture
def backward_on_cpu(monkeypatch):
    """PyTorch refuses flex attention's backward pass on a CPU by a check alone."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def classifier(family):
    torch.manual_seed(0)
    core = AutoModelForSequenceClassification.from_config(
        copy.deepcopy(CONFIGS[family]), attn_implementation="eager"
    )
    with torch.no_grad():
        for weight in core.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
    return core


def compiled(core):
    network = RewardNetwork(core, flex=True)
    compile_layers(network.layers, backend="aot_eager")
    return network


def groups(seed=0):
    """Pairs with prefixes longer and shorter than the window, and one without; a group of three."""
    numbers = np.random.default_rng(seed)
    found = []
    for number, prefix in enumerate((90, 30, 0, 64)):
        shared = numbers.integers(5, 300, prefix).tolist()
        sides = []
        for side in range(2 + (number == 3)):
            rest = numbers.integers(5, 300, int(numbers.integers(20, 90))).tolist()
            ids = [*shared, 5 + side, *rest]
            sides.append(sequence(ids, prefix + 8, len(ids) - 1))
        found.append(sides)
    return found


def rewards_and_gradients(network, sides):
    network.train()
    network.zero_grad(set_to_none=True)
    rewards = network(sides, budget=1024)
    firsts = np.cumsum([0, *map(len, sides)])[:-1]
    chosen, rejected = [rewards[i] for i in firsts], [rewards[i + 1] for i in firsts]
    pair_losses(chosen, rejected, [0.5] * len(sides)).sum().backward()
    gradients = {
        name: weight.grad.clone()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    return torch.cat(rewards).detach(), gradients


def assert_same(actual, expected):
    torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=1e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(actual[1][name], gradient, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_compiled_flex_attention_equals_padding(family, backward_on_cpu):
    core = classifier(family)
    expected = rewards_and_gradients(RewardNetwork(core, packed=False), groups())
    segments = rewards_and_gradients(RewardNetwork(core), groups())
    network = compiled(core)
    assert_same(segments, expected)
    assert_same(rewards_and_gradients(network, groups()), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert_same(
        rewards_and_gradients(network, groups(1)),
        rewards_and_gradients(RewardNetwork(classifier(family), packed=False), groups(1)),
    )
    assert counters["stats"]["unique_graphs"] == graphs  # another row of the same length
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_router_loss_beside_compiled_attention_is_that_of_padding(recomputed, backward_on_cpu):
    config = MixtralConfig(**SIZE, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    core = AutoModelForSequenceClassification.from_config(config)
    expected = with_router_loss(RewardNetwork(core))
    if recomputed:
        core.activation_checkpointing_enable({"use_reentrant": False})
    network = compiled(core)
    compile_attention(network.layers, backend="aot_eager")
    assert_same(with_router_loss(network), expected)
    assert counters["stats"]["unique_graphs"] == 1


def with_router_loss(network):
    """Rewards and router loss; and the gradients of their sum."""
    network.balances_experts = True
    network.train()
    network.zero_grad(set_to_none=True)
    outputs = torch.cat([output.flatten() for output in network(groups(), budget=1024)])
    outputs.sum().backward()
    return outputs.detach(), {name: weight.grad for name, weight in network.named_parameters()}


@pytest.mark.slow
def test_recomputation_and_adapters_give_the_same(backward_on_cpu):
    core = classifier("gemma2")
    expected = rewards_and_gradients(RewardNetwork(core, packed=False), groups())
    core.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(rewards_and_gradients(compiled(core), groups()), expected)
    padded, network = (RewardNetwork(classifier("gemma2"), packed=False) for _ in range(2))
    add_lora(padded, 4, seed=0)
    with torch.no_grad():
        for name, weight in padded.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    add_lora(network, 4, seed=0)
    network.load_state_dict(padded.state_dict())
    network = compiled(network.model)
    assert_same(rewards_and_gradients(network, groups()), rewards_and_gradients(padded, groups()))


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
def test_a_mask_is_what_segments_and_positions_say(window):
    row = pack(groups())
    length = row_length(len(row), 1024)
    ranges = torch.from_numpy(row_table(row, length)[1:])
    mask = block_mask(ranges, window)
    dense = torch.zeros(length, length, dtype=torch.bool)
    for segment in row.segments:
        for query in range(segment.start, segment.stop):
            for key in (*range(*segment.prefix), *range(segment.start, query + 1)):
                distance = row.positions[query] - row.positions[key]
                dense[query, key] = not window or distance < window
    by_definition = flex.create_mask(mask.mask_mod, 1, 1, length, length, "cpu")[0, 0]
    assert torch.equal(by_definition[: len(row)], dense[: len(row)])
    assert not by_definition[: len(row), len(row) :].any()  # nothing sees what fills the row
    assert by_definition.diagonal().all()  # and nothing sees nothing, which would give NaN
    blocks = flex.create_block_mask(mask.mask_mod, 1, 1, length, length, "cpu")
    assert torch.equal(blocks.to_dense(), mask.to_dense())
    assert torch.equal(blocks.full_kv_num_blocks, mask.full_kv_num_blocks)
    assert torch.equal(blocks.kv_num_blocks, mask.kv_num_blocks)


def test_each_kind_of_layer_has_its_mask():
    row = pack(groups())
    ranges = torch.from_numpy(row_table(row, row_length(len(row), 1024))[1:])
    masks = row_masks(CONFIGS["gemma2"], ranges)
    assert masks.keys() == {"sliding_attention", "full_attention"}
    dense = {
        kind: flex.create_mask(mask.mask_mod, 1, 1, *mask.seq_lengths, "cpu").sum()
        for kind, mask in masks.items()
    }
    assert dense["sliding_attention"] < dense["full_attention"]
    assert isinstance(row_masks(CONFIGS["llama"], ranges), flex.BlockMask)


@pytest.mark.parametrize(
    "tokens, budget, length",
    [
        (1, 4096, 1024),
        (1024, 4096, 1024),
        (1025, 4096, 2048),
        (4096, 4096, 4096),
        (4097, 4096, 5120),
        (100, 200, 128),
        (8400, 8448, 8448),
        (2200, 8448, 4224),
        (8193, 4096, 10240),
        (16385, 4096, 20480),
    ],
)
def test_rows_have_few_lengths(tokens, budget, length):
    assert row_length(tokens, budget) == length
    assert length % BLOCK == 0


@pytest.mark.parametrize("budget, lengths", [(512, 36), (8192, 20)])
def test_conversations_above_the_budget_have_few_lengths_too(budget, lengths):
    found = {row_length(tokens, budget) for tokens in range(1, 131073)}
    assert len(found) == lengths
    assert all(row_length(length, budget) == length for length in found)


def test_a_graph_too_many_is_an_error():
    """Not compiled, flex attention may give wrong gradients."""
    layer = classifier("llama").model.layers[0].mlp
    compile_layers([layer], backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        layer(torch.ones(2, 32))
        with pytest.raises(FailOnRecompileLimitHit):
            layer(torch.ones(3, 32))
    torch._dynamo.reset()


def test_activations_are_kept_as_memory_allows():
    # On an H200, Gemma-2-9B with LoRA kept 55.7 GB of a row of 8,448 tokens, inputs 2.5 GB of them.
    kept, inputs, layers = 55.7e9, 2.5e9, 42
    assert kept_share(kept, inputs, layers, free=60e9) == 1
    assert kept_share(kept, inputs, layers, free=32e9) == 0.5
    assert kept_share(kept, inputs, layers, free=4e9) == 0


@pytest.mark.parametrize(
    "name, tflops",
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_the_rates_of_cards(name, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert bf16_flops(torch.device("cuda")) == (tflops and tflops * 1e12)
    assert bf16_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("major, has_bf16", [(7, False), (8, True)])  # T4 and V100; A100
def test_a_gpu_that_emulates_bf16_computes_in_fp32(major, has_bf16, monkeypatch):
    device, properties = torch.device("cuda"), SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert computed_precision(device) == (torch.bfloat16 if has_bf16 else torch.float32)
    with bf16_autocast(device):
        assert torch.is_autocast_enabled("cuda") == has_bf16
    assert can_compile(device) == has_bf16
    assert computed_precision(torch.device("cpu")) == torch.float32
    assert not can_compile(torch.device("cpu"))


@pytest.mark.parametrize(
    "gigabytes, flex, tokens", [(80, True, 8192), (24, True, 4096), (80, False, 1024)]
)
def test_a_micro_batch_suits_the_gpu(gigabytes, flex, tokens, monkeypatch):
    properties = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert suitable_budget(SimpleNamespace(flex=flex), Accelerator(cpu=True)) == tokens


def test_mfu_counts_what_is_trained():
    assert mfu(1000, 2.0, weights=10**9, trained=True, rate=1e13) == pytest.approx(0.3)
    assert mfu(1000, 2.0, weights=10**9, trained=False, rate=1e13) == pytest.approx(0.2)
    core = classifier("llama")
    weights = size(core) - size(core.get_input_embeddings()) - size(core.model.norm)
    network = RewardNetwork(core)
    assert count_layer_weights(network) == weights
    add_lora(network, 4, seed=0)
    assert count_layer_weights(network) == weights + size(core.score.original_module)


def test_mfu_counts_the_experts_that_compute_a_token():
    config = MixtralConfig(**SIZE, head_dim=16, num_local_experts=8, num_experts_per_tok=2)
    core = AutoModelForSequenceClassification.from_config(config)
    experts = sum(size(layer.mlp.experts) for layer in core.model.layers)
    others = size(core.model.layers) - experts + size(core.score)
    assert count_layer_weights(RewardNetwork(core)) == others + experts // 4


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def test_hidden_states_are_in_the_precision_of_autocast():
    core = classifier("llama")
    embedding = core.get_input_embeddings()
    cast_hidden_states(embedding)
    ids = torch.tensor([[5, 6]])
    assert embedding(ids).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(ids).dtype == torch.bfloat16


def eight_pairs():
    pairs = []
    for seed in range(8):
        ids = draw(30, seed)
        sides = sequence([*ids, 7, *draw(9, seed + 50)]), sequence([*ids, 8, *draw(12, seed + 90)])
        sides = tuple(sequence([token % 290 + 5 for token in side.ids]) for side in sides)
        tokens = sum(len(side.ids) for side in sides)
        pairs.append(TokenizedPair(sides, packed_length(sides), tokens, 1, "last"))
    return TokenizedPairs([PairArrays.of(pairs)])


def trainer(network, batch=4, **settings):
    config = TrainConfig(batch=batch, steps=3, budget=128, lr=1e-3, **settings)
    model = RewardModel(network, None, None)
    return Trainer(model, eight_pairs(), config, Accelerator(cpu=True))


def test_a_step_reads_from_the_device_once_at_its_end(monkeypatch):
    """On a GPU, each of these would wait for all that was asked of it before."""
    found = trainer(RewardNetwork(classifier("gemma2")))
    reads, may_read = [], False

    def counting(name):
        original = getattr(torch.Tensor, name)

        def method(tensor, *arguments, **settings):
            if not may_read:
                reads.append(name)
            return original(tensor, *arguments, **settings)

        return method

    read = found._read

    def allowed(*arguments):
        nonlocal may_read
        may_read = True
        try:
            return read(*arguments)
        finally:
            may_read = False

    monkeypatch.setattr(found, "_read", allowed)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    metrics = found.step([[[0, 1], [2, 3]]])
    assert not reads
    assert metrics["grad_norm"] > 0 and 0 <= metrics["accuracy"] <= 1


def test_only_a_gpu_with_a_compiler_uses_flex_attention(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    core = classifier("gemma2")
    monkeypatch.setattr(batch_layout, "can_compile", lambda device: device.type == "cuda")
    assert can_use_flex(core, gpu) and not can_use_flex(core, cpu)
    core.config.layer_types = ["full_attention", "chunked_attention"]
    assert not can_use_flex(core, gpu)
    core.config.layer_types, core.config.attention_dropout = WINDOW["layer_types"], 0.1
    assert not can_use_flex(core, gpu)


def test_flex_attention_is_not_used_where_pytorch_compiles_nothing(monkeypatch):
    """What the driver says is made up."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    assert can_compile(gpu)
    with torch._dynamo.config.patch(disable=True):  # as TORCH_COMPILE_DISABLE=1 does
        assert not can_compile(gpu)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert not can_compile(gpu)


@pytest.fixture
def in_bf16(monkeypatch):
    """Compute as on a GPU, under autocast, and measure its rounding."""
    for module in (batch_layout, checks):
        monkeypatch.setattr(
            module, "bf16_autocast", lambda device: torch.autocast("cpu", torch.bfloat16)
        )
        monkeypatch.setattr(module, "copies_for", lambda core: COPIES)


@pytest.mark.parametrize("scale", [1, 50])
def test_large_hidden_states_in_bf16_are_packed(scale, in_bf16):
    """Rounding grows with them: an absolute bound would take it for a wrong mask."""
    core = scaled(scale)
    said = []
    network = choose_layout(core, torch.device("cpu"), said.append)
    assert network.packed and not said
    model = SimpleNamespace(network=network)
    assert checks.check_attention(model, eight_pairs()).startswith("packed attention gives the")
    assert checks.check_batch_invariance(model, eight_pairs()).startswith("rewards do not depend")


@pytest.mark.parametrize("scale", [1, 50])
def test_a_wrong_mask_in_bf16_is_found(scale, in_bf16, monkeypatch):
    core = scaled(scale)
    monkeypatch.setattr(network_module, "NAME", "sdpa")  # a row is then one conversation
    said = []
    assert not choose_layout(core, torch.device("cpu"), said.append).packed
    assert "cannot be packed" in said[0]
    model = SimpleNamespace(network=RewardNetwork(core))
    with pytest.raises(InputError, match="rewards differ from those of transformers' own forward"):
        checks.check_attention(model, eight_pairs())
    with pytest.raises(InputError, match="rewards depend on the batch"):
        checks.check_batch_invariance(model, eight_pairs())


def scaled(scale):
    """A classifier whose last norm multiplies, as Gemma 3's does."""
    core = classifier("gemma3")
    with torch.no_grad():
        core.model.norm.weight.copy_((1 + core.model.norm.weight) * scale - 1)
    return core


@pytest.mark.slow
def test_flex_attention_is_chosen_where_its_rewards_agree(monkeypatch, backward_on_cpu):
    cpu = torch.device("cpu")
    monkeypatch.setattr(batch_layout, "can_compile", lambda device: True)
    monkeypatch.setattr(
        batch_layout, "compile_layers", lambda layers: compile_layers(layers, "aot_eager")
    )
    said = []
    network = choose_layout(classifier("gemma2"), cpu, said.append)
    assert network.flex and network.layout == "packed, compiled flex attention" and not said
    sharded = choose_layout(classifier("gemma2"), torch.device("cuda"), said.append)
    assert sharded.flex  # its weights are not on the device yet: nothing to compare

    monkeypatch.setattr(batch_layout, "_states", fail_under_flex(batch_layout._states))
    network = choose_layout(classifier("gemma2"), cpu, said.append)
    assert not network.flex and network.packed
    assert "cannot be compiled" in said[0]
    assert all(layer._compiled_call_impl is None for layer in network.layers)


def fail_under_flex(states):
    def failing(network, group):
        if network.flex:
            raise RuntimeError("out of resource: shared memory")
        return states(network, group)

    return failing


@pytest.mark.slow
def test_the_acceptance_program_runs_at_toy_size(tmp_path):
    table = tmp_path / "table.md"
    run = subprocess.run(
        [preloaded.python(), ACCEPT, "--dry-run", "--rows", "1,3,12", "--markdown", table],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    rows = [line for line in table.read_text().splitlines() if line.startswith("| 1")]
    assert "failed" not in table.read_text(), run.stderr
    assert len(rows) == 2  # 1 and 12
    assert "by 0.00" in table.read_text()  # row 3: the same losses in fp32


def test_the_acceptance_program_wants_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    run = subprocess.run([preloaded.python(), ACCEPT], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip() == (
        "accept.py: there is no GPU here; --dry-run runs at toy size on a CPU"
    )


@pytest.mark.parametrize(
    "free, says, kept, everything",
    [
        (10**9, "all activations are kept", None, False),
        (1_100_000, "35% of the activations are kept", 0.35, False),
        (10, "every layer are computed again", None, True),
    ],
)
@pytest.mark.parametrize("copied", [0, 5_000_000])
def test_a_run_keeps_the_activations_that_fit(monkeypatch, free, says, kept, everything, copied):
    """The memory is made up; a CPU has none of its own. What is decided and done is real."""
    started = trainer(RewardNetwork(classifier("llama")))
    network, shares = started.model.network, []
    network.flex = True
    # A row of 64 tokens keeps 400 kB, so one of the full 128 keeps 800 kB; copies of weights, all
    # the same for any row, are no part of it.
    rows = (64, 2 * started.pairs.sizes.min())
    allocated = iter([value for row in rows for value in (0, copied + row * 6250)])
    free += copied
    monkeypatch.setattr(started, "_rewards", lambda pairs, batch: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=0)
    )
    monkeypatch.setattr(train_trainer, "row_length", lambda tokens, budget: max(tokens, 64))
    monkeypatch.setattr(train_trainer, "local_part", lambda weight: SimpleNamespace(nbytes=0))
    monkeypatch.setattr(train_trainer, "free_bytes", lambda device: free)
    monkeypatch.setattr(train_trainer, "recompute", shares.append)
    decision = started.fit_activations()
    assert says in decision
    if (
        free == 10**9 + copied
    ):  # while gradients are computed, one of two layers is there two times more
        assert started._spare_bytes == pytest.approx(10**9 - 800_000 - 2 * 400_000)
    assert shares == ([] if kept is None else [pytest.approx(kept)])
    assert any(layer.gradient_checkpointing for layer in network.layers) == everything
