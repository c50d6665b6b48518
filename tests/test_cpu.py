"""What makes a CPU fast gives what PyTorch gives, and MUSIC_PLAIN_TORCH=1 turns all of it off."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from build import read, write
from console import music
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toys import backbone, draw, pairs, sequence, tiny

from musiccli.core.errors import InputError
from musiccli.cpu import SWITCH, linear, memory, plain_torch
from musiccli.cpu.attention import attention
from musiccli.reward_model import activations, checkpoint
from musiccli.reward_model.loss import bradley_terry
from musiccli.reward_model.out_of_memory import explain_out_of_memory

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SHAPES = {
    "wide": (96, 256),
    "narrow": (256, 96),
    "into LoRA's rank": (96, 4),
    "out of LoRA's rank": (4, 96),
    "a head": (96, 1),
}


@pytest.fixture(autouse=True)
def no_switch(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def library(request, monkeypatch):
    """Either library, whatever the processor would choose."""
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", request.param)


# Linear layers


def plain_and_fast(
    in_features: int, out_features: int, bias: bool = False
) -> tuple[nn.Linear, nn.Linear]:
    """A layer, and one with the same weights that is computed in musiccli.cpu."""
    torch.manual_seed(0)
    plain = nn.Linear(in_features, out_features, bias=bias)
    fast = nn.Linear(in_features, out_features, bias=bias)
    fast.load_state_dict(plain.state_dict())
    linear.use_onednn_linear(fast)
    return plain, fast


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [(7,), (2, 33)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_gives_what_pytorch_gives_and_the_same_gradients(library, shape, rows, bias):
    plain, fast = plain_and_fast(*shape, bias)
    assert type(fast) is linear.OneDnnLinear
    inputs = torch.randn(*rows, shape[0])
    results = []
    for layer in (plain, fast):
        leaf = inputs.clone().requires_grad_()
        outputs = layer(leaf)
        outputs.backward(torch.sin(torch.arange(outputs.numel()).view_as(outputs).float()))
        gradients = [leaf.grad, *(weight.grad for weight in layer.parameters())]
        results.append([outputs.detach(), *gradients])
    for expected, result in zip(*results, strict=True):
        assert expected.shape == result.shape and expected.any()
        torch.testing.assert_close(result, expected, **CLOSE)


def test_gradients_nobody_wants_are_not_computed(library):
    _, layer = plain_and_fast(8, 6, bias=True)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad.tolist() == [3.0] * 6


def test_what_is_not_fp32_computes_as_before(library):
    plain, fast = (layer.to(torch.bfloat16) for layer in plain_and_fast(32, 16))
    inputs = torch.randn(5, 32, dtype=torch.bfloat16)
    assert torch.equal(plain(inputs), fast(inputs))


def test_only_plain_linear_layers_change_and_their_weights_keep_their_names():
    class OtherLinear(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), OtherLinear(4, 2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    linear.use_onednn_linear(model)
    assert [type(part) for part in model] == [linear.OneDnnLinear, nn.LayerNorm, OtherLinear]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


# Attention


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 5, 150])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 7), (300, 300), (140, 333), (1, 200)])
def test_attention_is_its_definition_forwards_and_backwards(rows, columns, window, softcap):
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, length, 16, generator=generator)
        for heads, length in ((6, rows), (2, columns), (2, columns))
    ]
    gradient, results = torch.randn(1, 6, rows, 16, generator=generator), []
    for attend in (attention, attention_by_definition):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = attend(*leaves, window, 0.3, softcap)
        outputs.backward(gradient)
        results.append([outputs.detach(), *(leaf.grad for leaf in leaves)])
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)


def attention_by_definition(query, key, value, window, scale, softcap):
    """One matrix of scores for all heads."""
    key, value = (tensor.repeat_interleave(3, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    rows, columns = scores.shape[2:]
    distance = torch.arange(columns - rows, columns)[:, None] - torch.arange(columns)
    hidden = (distance < 0) | (distance >= (window or columns))
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


# The switch


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A backbone whose heads are wide enough for our attention, with soft-cap and window."""
    return backbone(tmp_path_factory.mktemp("base"), "gemma2", num_hidden_layers=2, head_dim=128)


@pytest.mark.parametrize("setting, is_plain", [("", False), ("0", False), ("1", True)])
def test_the_switch_is_the_environment_variable(monkeypatch, setting, is_plain):
    monkeypatch.setenv("MUSIC_PLAIN_TORCH", setting)
    assert plain_torch() is is_plain


class Operations(TorchDispatchMode):
    """The names of all operations within it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def train_step(base, monkeypatch):
    """The rewards and gradients of one step, and which tricks it used."""
    monkeypatch.setattr(activations, "RECOMPUTE_ABOVE", 0)
    calls = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda *arguments: calls.append(arguments)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    network = checkpoint.create(str(base)).network
    activations.checkpoint_activations(network, everything=False)
    common = draw(40, 1)
    with Operations() as operations:
        chosen, rejected = network.train()(
            [(sequence(common + draw(30, 2)), sequence(common + draw(21, 3)))]
        )
        bradley_terry(chosen, rejected).sum().backward()
    tricks = {
        "linear": any(isinstance(module, linear.OneDnnLinear) for module in network.modules()),
        "onednn": "mkldnn._linear_pointwise" in operations.names,
        "attention": "musiccli.attention" in operations.names,
        "attention_backward": "musiccli.attention_backward" in operations.names,
        "memory": bool(calls),
        "recomputation": any(
            getattr(module, "gradient_checkpointing", False) for module in network.modules()
        ),
    }
    gradients = [weight.grad for weight in network.parameters()]
    return torch.cat([chosen, rejected]).detach(), gradients, tricks


@pytest.mark.slow
def test_the_switch_turns_all_tricks_off_and_leaves_rewards_and_gradients(
    base, library, monkeypatch
):
    results = []
    for setting in ("0", "1"):
        monkeypatch.setenv(SWITCH, setting)
        with monkeypatch.context() as patch:
            results.append(train_step(base, patch))
    (rewards, gradients, tricks), (plain_rewards, plain_gradients, no_tricks) = results
    on_gpu = torch.cuda.is_available()
    assert tricks == dict.fromkeys(tricks, True) | {
        "onednn": linear.ONEDNN_IS_FASTER,
        "memory": not on_gpu,
    }
    assert not any(no_tricks.values())
    torch.testing.assert_close(plain_rewards, rewards, **CLOSE)
    for expected, gradient in zip(gradients, plain_gradients, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradient, expected, atol=1e-4 * max(scale, 1), rtol=1e-3)
    assert max(gradient.abs().max() for gradient in gradients) > 0.01


@pytest.mark.slow
def test_commands_train_and_score_to_the_same_numbers_with_the_switch(base, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSIC_CACHE", str(tmp_path / "cache"))
    given, held_out = write(tmp_path / "pairs.jsonl", *pairs(8)), tiny("heldout")[:8]
    logs, scores = [], []
    for setting in ("0", "1"):
        monkeypatch.setenv(SWITCH, setting)
        folder = tmp_path / setting
        done = music(
            *("train", given, "--model", base, "--out", folder, "--batch", 4, "--steps", 3),
            *("--lr", "1e-3"),
        )
        assert done.status == 0, done.err
        logs.append([step["loss"] for step in read(folder / "log.jsonl")])
        done = music(
            "score", write(tmp_path / "in.jsonl", *held_out), "--model", folder, "--as", "x"
        )
        assert "from the cache" not in done.lines[-1]
        scores.append(
            [
                record["scores"]["x"][side]
                for record in done.records
                for side in ("chosen", "rejected")
            ]
        )
    assert logs[1] == pytest.approx(logs[0], abs=1e-3, rel=1e-3)
    assert scores[1] == pytest.approx(scores[0], abs=1e-2, rel=1e-2)
    assert max(scores[0]) - min(scores[0]) > 0.5


@pytest.mark.slow
def test_stored_scores_are_not_mixed(base, tmp_path, monkeypatch):
    """Scores computed in another way differ by rounding, which a strict comparison would see."""
    checkpoint.save(checkpoint.create(str(base)), tmp_path)
    identities = set()
    for setting in ("", "0", "1"):
        monkeypatch.setenv(SWITCH, setting)
        identities.add(checkpoint.load(str(tmp_path)).identity)
    assert len(identities) == 2


MANY_SHAPES = """
import ctypes, torch
from musiccli.cpu import linear

class Counts(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(f"f{number}", ctypes.c_size_t) for number in range(10)]

def used():
    libc.mallinfo2.restype = Counts
    return libc.mallinfo2().f7

libc, linear.ONEDNN_IS_FASTER = ctypes.CDLL(None), True
layer = torch.nn.Linear(96, 256)
linear.use_onednn_linear(layer)
sizes = []
with torch.inference_mode():
    for rows in range(1, 901):
        layer(torch.zeros(rows, 96))
        if rows in (300, 900):
            sizes.append(used())
print(sizes[1] - sizes[0])
"""


@pytest.mark.slow
def test_rows_of_any_length_leave_no_memory_behind():
    """oneDNN and PyTorch keep a product of each shape, by default 1,024 of them."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not say what is used")
    command = [sys.executable, "-c", MANY_SHAPES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20


def test_memory_settings_are_mallopts_own():
    """glibc's malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX."""
    assert memory.SETTINGS == {-4: 0, -1: -1, -2: 64 << 20, -8: 1}


def test_copies_in_own_pages_are_what_was_copied_whatever_the_types():
    tensors = [
        torch.arange(12.0).view(3, 4).t(),
        torch.ones(1, 2, 5, dtype=torch.bfloat16)[:, :, 1:4],
        torch.arange(7),
    ]
    copies = memory.copy_to_own_pages(tensors)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.dtype == tensor.dtype and copy.is_contiguous() and torch.equal(copy, tensor)
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1


def test_pages_that_the_system_has_not_are_memory_that_does_not_suffice():
    tensor = torch.zeros(1).expand(1 << 50)
    with (
        pytest.raises(InputError, match=r"^memory does not suffice; less$"),
        explain_out_of_memory("less"),
    ):
        memory.copy_to_own_pages([tensor])


def test_threads_that_wait_sleep_from_before_torch_is_loaded():
    """libgomp reads the variable when it is loaded: threads that spin slow a busy machine fourfold."""
    script = (
        "import os, sys; sys.argv = ['music', 'help']; from musiccli.cli.main import main\n"
        "try: main()\n"
        "finally: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PATH": ""}
    )
    assert done.stdout.splitlines()[-1] == "PASSIVE False"


@pytest.mark.slow
@pytest.mark.skipif(not linear.ONEDNN_IS_FASTER, reason="oneDNN is not used on this processor")
def test_a_factor_with_gaps_between_its_rows_is_multiplied_by_the_fast_code():
    """A head's keys are such a view. oneDNN names the code that it runs on standard output."""
    code = (
        "import torch; from musiccli.cpu.linear import multiply_transposed\n"
        "left, both = torch.randn(64, 128), torch.randn(128, 256)\n"
        "for right in (both[:, :128], both[:, :128].t()):\n"
        "    torch.testing.assert_close(multiply_transposed(left, right), left @ right.t())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("primitive,exec") >= 2
    assert "ref:any" not in done.stdout
