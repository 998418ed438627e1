"""Group norm: as exact with channels innermost as it is with channels outermost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from m2f_cli.errors import ConfigError
from m2f_cli.model.layers.conv import ConvNorm, group_norm
from m2f_cli.ops import group_norm as op

needs_chunked = pytest.mark.skipif(not op.has_statistics(), reason="this PyTorch has no statistics of batch norms")


def make(mean: float, shape: tuple[int, ...] = (2, 64, 45, 80)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_BCHW = (torch.randn(shape, generator=generator) + mean).contiguous(memory_format=torch.channels_last)
    weight_C, bias_C = torch.rand(shape[1], generator=generator) + 0.5, torch.randn(shape[1], generator=generator)
    return x_BCHW, weight_C, bias_C


def error(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> float:
    expected = F.group_norm(x.double().contiguous(), 32, weight.double(), bias.double(), 1e-5)
    return float((found - expected).abs().max())


@needs_chunked
@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("shape", [(2, 64, 45, 80), (1, 32, 3, 1), (1, 256, 128, 64)])
@torch.no_grad()
def test_is_as_exact_as_with_channels_outermost(mean, shape):
    """The input itself is rounded to fp32, so its error grows with the mean in both."""
    x, weight, bias = make(mean, shape)
    found = op.group_norm(x, 32, weight, bias, 1e-5, impl="chunked")
    assert found.is_contiguous(memory_format=torch.channels_last)
    outermost = error(F.group_norm(x.contiguous(), 32, weight, bias, 1e-5), x, weight, bias)
    assert error(found, x, weight, bias) <= 2 * outermost + 4 * 2.0**-24


@needs_chunked
@torch.no_grad()
def test_the_network_chooses_it_and_keeps_the_layout():
    layer = ConvNorm(64, 64, 1, group_norm)
    layer.conv.weight.copy_(torch.eye(64)[..., None, None])  # an exact convolution: what is measured is the norm
    x, _, _ = make(10.0)
    found = layer(x.clone(memory_format=torch.preserve_format))
    assert found.stride(1) == 1
    assert error(found, x, torch.ones(64), torch.zeros(64)) < 4 * 10 * 2.0**-24  # two roundings of numbers near ten


@pytest.mark.parametrize("overwrite", [False, True])
@needs_chunked
@torch.no_grad()
def test_the_input_is_overwritten_only_on_request(overwrite):
    x, weight, bias = make(1.0)
    before = x.clone()
    found = op.group_norm(x, 32, weight, bias, 1e-5, overwrite=overwrite, impl="chunked")
    assert torch.equal(x, before) != overwrite
    assert torch.equal(found, op.group_norm(before, 32, weight, bias, 1e-5, impl="chunked"))


def test_gradients_and_other_layouts_are_left_to_pytorch(monkeypatch):
    monkeypatch.delenv("M2F_GROUP_NORM", raising=False)
    x, _, _ = make(0.0)
    assert op.choose(x) == "plain"  # a gradient is wanted
    with torch.no_grad():
        assert op.choose(x) == ("chunked" if op.has_statistics() else "plain")
        assert op.choose(x.contiguous()) == op.choose(x.bfloat16()) == op.choose(x[:0]) == "plain"
        monkeypatch.setenv("M2F_GROUP_NORM", "plain")
        assert op.choose(x) == "plain"
        monkeypatch.setenv("M2F_GROUP_NORM", "fast")
        with pytest.raises(ConfigError, match="plain, chunked"):
            op.choose(x)


def test_training_gets_a_gradient_and_asking_for_chunks_there_is_refused():
    x, weight, bias = make(0.0)
    op.group_norm(x.requires_grad_(), 32, weight, bias, 1e-5).sum().backward()
    assert x.grad is not None
    with pytest.raises(ValueError, match="has no gradient"):
        op.group_norm(x, 32, weight, bias, 1e-5, impl="chunked")


@pytest.mark.parametrize("impl", ["plain", pytest.param("chunked", marks=needs_chunked)])
@torch.no_grad()
def test_a_group_of_one_value_becomes_the_bias(impl):
    """The map at stride 32 of a 32 x 32 image, in a network with as many channels as groups."""
    x, weight, bias = make(3.0, (1, 32, 1, 1))
    found = op.group_norm(x, 32, weight, bias, 1e-5, impl=impl).flatten()
    rounding = float(x.abs().max()) * 1e-5**-0.5 * 2.0**-22  # of value x scale, which the shift takes away again
    torch.testing.assert_close(found, bias, atol=rounding, rtol=0)
