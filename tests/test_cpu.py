"""Linear layers whose products are chosen here: what PyTorch's own give, forwards and backwards, and nothing else of
the model changes."""

import pytest
import torch
from torch import nn

from musiccli.cpu import linear

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SHAPES = {
    "wide": (96, 256),
    "narrow": (256, 96),
    "into LoRA's rank": (96, 4),
    "out of LoRA's rank": (4, 96),
    "a head": (96, 1),
}


@pytest.fixture(params=[False, True], ids=["PyTorch's own", "oneDNN"], autouse=True)
def library(request, monkeypatch):
    """Either, whatever the processor would choose."""
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", request.param)


def twins(inside: int, outside: int, bias: bool = False) -> tuple[nn.Linear, nn.Linear]:
    """A layer, and the same one by these products."""
    torch.manual_seed(0)
    plain, other = nn.Linear(inside, outside, bias=bias), nn.Linear(inside, outside, bias=bias)
    other.load_state_dict(plain.state_dict())
    linear.use_onednn_linear(other)
    return plain, other


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [(7,), (2, 33)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_it_gives_what_pytorch_gives_and_the_same_gradients(shape, rows, bias):
    plain, other = twins(*shape, bias)
    assert type(other) is linear.OneDnnLinear
    inputs = torch.randn(*rows, shape[0])
    results = []
    for layer in (plain, other):
        given = inputs.clone().requires_grad_()
        found = layer(given)
        found.backward(torch.sin(torch.arange(found.numel()).view_as(found).float()))
        results.append(
            [found.detach(), given.grad, *(weight.grad for weight in layer.parameters())]
        )
    for expected, found in zip(*results, strict=True):
        assert expected.shape == found.shape and expected.any()
        torch.testing.assert_close(found, expected, **CLOSE)


def test_gradients_nobody_wants_are_not_computed():
    _, layer = twins(8, 6, bias=True)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad.tolist() == [3.0] * 6


def test_what_is_not_fp32_computes_as_before():
    plain, other = (layer.to(torch.bfloat16) for layer in twins(32, 16))
    inputs = torch.randn(5, 32, dtype=torch.bfloat16)
    assert torch.equal(plain(inputs), other(inputs))


def test_only_plain_linear_layers_change_and_their_weights_keep_their_names():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), Own(4, 2))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    linear.use_onednn_linear(model)
    assert [type(part) for part in model] == [linear.OneDnnLinear, nn.LayerNorm, Own]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
