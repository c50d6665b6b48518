"""Mixtures of experts: their routers are kept in balance by transformers' own loss."""

import pytest
import torch
from build import read, write
from console import music
from toys import COMMON, backbone, draw, pairs, random_model, sequence
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from musiccli.core.records import Record
from musiccli.reward_model import checkpoint
from musiccli.reward_model.network import RewardNetwork
from musiccli.reward_model.router_loss import config_coefficient
from musiccli.train.config import TrainConfig
from musiccli.train.run import train

SMALL = COMMON | {"num_hidden_layers": 2, "vocab_size": 49152, "num_experts_per_tok": 2}
BACKBONES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig(**SMALL, num_local_experts=4)),
    "qwen3": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=16, mlp_only_layers=[1]),
    ),
}


@pytest.fixture(scope="module", params=BACKBONES)
def base(request, tmp_path_factory):
    return str(random_model(tmp_path_factory.mktemp(request.param), *BACKBONES[request.param]))


def conversations():
    """Four by themselves, so that a row holds the tokens that padded ones hold."""
    return [(sequence(draw(size, size)),) for size in (5, 9, 14, 30)]


def expected_loss(base, groups, coefficient):
    """transformers' own loss of padded conversations, its part in that of the language model."""
    network, _ = BACKBONES[next(name for name in BACKBONES if name in base)]
    model = network.from_pretrained(base).train()
    longest = max(len(group[0].ids) for group in groups)
    ids = torch.zeros(len(groups), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, (conversation,) in enumerate(groups):
        ids[index, : len(conversation.ids)] = torch.tensor(conversation.ids)
        mask[index, : len(conversation.ids)] = 1
    output = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    (coefficient * output.aux_loss).backward()
    return output.aux_loss.item(), model.model


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_and_its_gradients_are_those_of_transformers(base, packed):
    model = checkpoint.create(base)
    network = model.network if packed else RewardNetwork(model.network.core, packed=False)
    assert network.packed is packed
    if not packed:
        network.core.set_attn_implementation("eager")
    network.balances_experts = True
    groups = conversations()
    *rewards, loss = network.train()(groups)
    assert len(rewards) == 4
    expected, reference = expected_loss(base, groups, 0.5)
    (0.5 * loss).backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    gradients = {
        name: weight.grad
        for name, weight in reference.named_parameters()
        if weight.grad is not None
    }
    assert any("gate.weight" in name for name in gradients)
    for name, weight in network.backbone.named_parameters():
        if name in gradients and name != "embed_tokens.weight":
            assert torch.allclose(weight.grad, gradients[name], atol=1e-6, rtol=1e-4), name
    assert len(network.eval()(groups)) == 4


@pytest.mark.slow
def test_training_adds_the_configs_share_of_it(base, tmp_path):
    """One step of plain SGD in effect: the gradient's norm is that of both losses."""
    records = [Record(record) for record in pairs(8)]
    norms = {}
    for coefficient in (None, 0.0, 10.0):
        config = TrainConfig(
            model=base, batch=8, steps=1, lr=0, budget=100_000, router_aux_loss=coefficient
        )
        measured = train(records, tmp_path / str(coefficient), config, check=False)
        norms[coefficient] = measured["grad_norm"]
        assert ("router_aux_loss" in measured) == (coefficient != 0.0)
        assert measured.get("router_aux_loss", 2) >= 2 * 0.9  # 2 experts a token, in balance
    assert config_coefficient(checkpoint.create(base).network.backbone) == 0.001
    assert norms[None] != norms[0.0] and norms[None] == pytest.approx(norms[0.0], rel=0.05)
    assert abs(norms[10.0] - norms[0.0]) > 100 * abs(norms[None] - norms[0.0])


@pytest.mark.slow
def test_what_is_logged_is_the_mean_over_the_pairs_of_a_step(base, tmp_path):
    file = write(tmp_path / "pairs.jsonl", *pairs(8))
    line = ("train", file, "--model", base, "--batch", 8, "--steps", 1, "--no-check")
    found = []
    for name, budget in (("one", 100_000), ("many", 60)):
        done = music(*line, "--budget", budget, "--out", tmp_path / name)
        assert done.status == 0, done.err
        found += read(tmp_path / name / "log.jsonl")
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)
    assert found[0]["router_aux_loss"] == pytest.approx(found[1]["router_aux_loss"], rel=0.3)
    assert "router_aux_loss " in done.lines[-1]


@pytest.mark.slow
def test_a_backbone_without_routers_takes_no_coefficient(tmp_path):
    base = backbone(tmp_path / "base", num_hidden_layers=1)
    file = write(tmp_path / "pairs.jsonl", *pairs(4))
    line = ("train", file, "--model", base, "--batch", 4, "--out", tmp_path / "rm")
    done = music(*line, "--router-aux-loss", 0.1, "--no-check")
    assert done.status == 2
    assert done.lines[-1] == (
        "music train: error: --router-aux-loss 0.1: the backbone is no mixture of experts whose "
        "routers can be read; leave it out"
    )
