"""QLoRA: a base in 4 bits computes as its dequantized weights do, and the checkpoint is plain."""

import json
from importlib import util

import pytest
import torch
from build import write
from console import music
from safetensors import safe_open
from toys import backbone, draw, pairs, sequence

from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.quantization import quantized_layers
from musiccli.train.config import TrainConfig
from musiccli.train.log import TrainingLog
from musiccli.train.memory import estimate_memory
from musiccli.train.tokenized_pairs import tokenize_pairs

needs_bitsandbytes = pytest.mark.skipif(
    not util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return str(backbone(folder, num_hidden_layers=2, hidden_size=64, intermediate_size=128))


@pytest.fixture
def run(base, tmp_path):
    file = write(tmp_path / "pairs.jsonl", *pairs(8))
    line = ("train", file, "--model", base, "--batch", 4, "--steps", 4, "--lr", 1e-2)
    return lambda out, *more: music(*line, "--out", out, *more)


@pytest.mark.slow
@needs_bitsandbytes
def test_rewards_and_gradients_are_those_of_the_dequantized_weights(base):
    from bitsandbytes.functional import dequantize_4bit

    model = checkpoint.create(base, lora=4, quantized=True, seed=3)
    plain = checkpoint.create(base, lora=4, seed=3)
    layers = quantized_layers(model.network.core)
    assert len(layers) == 2 * 7 and not any("score" in name for name in layers)
    for name, layer in layers.items():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.weight.dtype) == ("nf4", True, torch.uint8)
        whole = plain.network.core.get_submodule(name).weight
        values = dequantize_4bit(layer.weight.data, state)
        assert 0 < (whole - values).abs().max() < 0.5
        whole.data.copy_(values)
    groups = [(sequence(draw(30, 1)), sequence(draw(40, 2))), (sequence(draw(9, 3)),)]
    weights = dict(plain.network.named_parameters())
    found, gradients = [], []
    for one in (model, plain):
        for weight in (name for name in one.network.named_parameters() if "lora_B" in name[0]):
            torch.manual_seed(0)
            weight[1].data.normal_(std=0.1)
        rewards = torch.cat(one.network.train()(groups))
        rewards.sum().backward()
        found.append(rewards)
        gradients.append(
            {
                name: weight.grad
                for name, weight in one.network.named_parameters()
                if weight.requires_grad
            }
        )
    assert torch.allclose(*found, atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 14 + 1
    for name, gradient in gradients[0].items():
        assert gradient.dtype == weights[name].dtype == torch.float32
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5, rtol=1e-4), name


@pytest.mark.slow
@needs_bitsandbytes
def test_the_checkpoint_is_plain_and_scores_what_was_measured(run, base, tmp_path):
    held_out = write(tmp_path / "held-out.jsonl", *pairs(6, seed=1))
    out = tmp_path / "rm"
    line = ("--lora", 4, "--qlora", "--eval", held_out, "--eval-every", 1, "--patience", 9)
    done = run(out, *line)
    assert done.status == 0, done.err
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    with safe_open(out / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds == {"F32"}
    measured = json.loads((out / "music.json").read_text())["metrics"]
    margins = {}
    merged = music("merge", out / "adapter", "--model", base, "--out", tmp_path / "merged")
    assert merged.status == 0, merged.err
    for name in (out, tmp_path / "merged"):
        scores = music("score", held_out, "--model", name, "--as", "x").records
        sides = [record["scores"]["x"] for record in scores]
        margins[name] = sum(side["chosen"] - side["rejected"] for side in sides) / len(sides)
    assert margins[out] == pytest.approx(measured["eval_margin"], abs=1e-4)
    assert margins[tmp_path / "merged"] != pytest.approx(measured["eval_margin"], abs=1e-4)
    assert "with LoRA of rank 4 on a base in 4 bits, merged" in (out / "README.md").read_text()
    assert "trained already" in run(out, *line).err


class Crash(Exception):
    """Stands for a kill."""


@pytest.mark.slow
@needs_bitsandbytes
def test_a_run_that_was_stopped_ends_like_one_that_was_not(run, tmp_path):
    real = TrainingLog.add

    def add(self, metrics):
        real(self, metrics)
        if metrics["step"] == 3:
            raise Crash

    line = ("--lora", 4, "--qlora", "--save-every", 2)
    assert run(tmp_path / "whole", *line).status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "add", add)
        assert "Crash" in run(tmp_path / "rm", *line).err
    done = run(tmp_path / "rm", *line)
    assert done.status == 0 and "going on after step 2 of 4" in done.err
    files = [tmp_path / name / "model.safetensors" for name in ("rm", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@needs_bitsandbytes
def test_the_estimate_counts_half_a_byte_a_weight(base):
    config = TrainConfig(model=base, batch=4, lora=4, qlora=True)
    estimates = []
    for quantized in (False, True):
        model = checkpoint.create(base, lora=4, quantized=quantized)
        records = tokenize_pairs([Record(record) for record in pairs(8)], model, 2048)
        estimates.append(estimate_memory(model, records, config).parameters)
    count = sum(
        layer.in_features * layer.out_features
        for layer in quantized_layers(model.network.core).values()
    )
    saved = estimates[0] - estimates[1]
    assert saved == pytest.approx(count * (4 - 0.5 - 1 / 64), rel=0.01)


@pytest.mark.parametrize(
    "more, says",
    [
        (("--qlora",), "--qlora: needs --lora, the rank of the adapters that are trained"),
        (
            ("--qlora", "--lora", 4),
            "--qlora: needs bitsandbytes; pip install 'musiccli[qlora]'",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_else(run, tmp_path, monkeypatch, more, says):
    monkeypatch.setattr("musiccli.train.refusals.find_spec", lambda name: None)
    done = run(tmp_path / "rm", *more)
    assert (done.status, done.lines) == (2, [f"music train: error: {says}"])
    assert not (tmp_path / "rm").exists()
