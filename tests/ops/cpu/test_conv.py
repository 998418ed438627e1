"""Convolutions with what follows them in one call, and batch norms that are part of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from m2f_cli.errors import ConfigError
from m2f_cli.model.layers.conv import ConvNorm, Doubling, FrozenBatchNorm, is_constant
from m2f_cli.ops.cpu import conv as op
from m2f_cli.ops.cpu.conv import conv2d

needs_fused = pytest.mark.skipif(
    not op.fused_kernel_available(), reason="this PyTorch or processor has no fused convolution"
)
CONVS = {
    "1x1": nn.Conv2d(6, 8, 1),
    "1x1 of every second pixel": nn.Conv2d(6, 8, 1, stride=2),
    "3x3": nn.Conv2d(6, 8, 3, padding=1),
    "3x3, stride 2": nn.Conv2d(6, 8, 3, 2, 1),
    "3x3, dilated": nn.Conv2d(6, 8, 3, padding=4, dilation=4),
    "7x7": nn.Conv2d(6, 8, 7, 2, 3),
    "groups": nn.Conv2d(6, 8, 3, padding=1, groups=2),
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def image(batch: int = 2, channels: int = 6, size: tuple[int, int] = (13, 9)) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


@needs_fused
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", CONVS)
@torch.no_grad()
def test_implementations_agree_in_values(name: str, layout: torch.memory_format):
    conv, x = CONVS[name], image().contiguous(memory_format=layout)
    weight, bias = conv.weight.contiguous(memory_format=layout), conv.bias
    shape = conv(x).shape
    residual = torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    before = residual.clone()
    for b in (bias, None):
        for relu in (False, True):
            for r in (None, residual):
                plain, fused = (
                    conv2d(conv, x, weight, b, relu=relu, residual=r, impl=impl) for impl in op.IMPLEMENTATIONS.names
                )
                expected = F.conv2d(
                    x.double(),
                    weight.double(),
                    None if b is None else b.double(),
                    conv.stride,
                    conv.padding,
                    conv.dilation,
                    conv.groups,
                )
                expected = expected if r is None else expected + r.double()
                expected = expected.relu() if relu else expected
                for found in (plain, fused):  # a few hundred products in any order
                    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-6)
    assert torch.equal(residual, before)  # it may be what a shortcut hands on


def test_gradients_are_those_of_pytorch():
    conv = CONVS["3x3"]
    x, weight, bias, residual = (
        tensor.detach().requires_grad_() for tensor in (image(), conv.weight, conv.bias, image(channels=8))
    )
    leaves = (x, weight, bias, residual)
    found = torch.autograd.grad(conv2d(conv, x, weight, bias, relu=True, residual=residual).square().sum(), leaves)
    expected = F.relu(F.conv2d(x, weight, bias, padding=1) + residual).square().sum()
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        assert torch.equal(ours, theirs)


def test_the_choice_depends_on_gradients_and_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_CONV", raising=False)
    conv, x = CONVS["1x1"], image()
    assert op.choose(x) == "plain"  # somebody may want a gradient
    with torch.no_grad():
        assert op.choose(x) == ("fused" if op.fused_kernel_available() else "plain")
        assert op.choose(x.double()) == op.choose(torch.zeros(1, 6, 2, 2, device="meta")) == "plain"
        monkeypatch.setenv("M2F_CONV", "plain")
        assert op.choose(x) == "plain"
    monkeypatch.setenv("M2F_CONV", "fused")
    with pytest.raises(ValueError, match="have no gradient"):
        conv2d(conv, x, conv.weight)
    monkeypatch.setenv("M2F_CONV", "magic")
    with pytest.raises(ConfigError, match="'magic', which is no implementation of conv.*plain, fused"):
        conv2d(conv, x, conv.weight)


def test_a_pytorch_without_the_fused_convolution_is_noticed(monkeypatch: pytest.MonkeyPatch):
    op.fused_kernel_available.cache_clear()
    monkeypatch.setattr(op, "fused_conv", lambda *_: (_ for _ in ()).throw(AttributeError("_convolution_pointwise")))
    try:
        assert not op.fused_kernel_available()
    finally:
        op.fused_kernel_available.cache_clear()


# --- batch norms inside -----------------------------------------------------------------------------------------------

NORMS = {
    "constants": FrozenBatchNorm,
    "statistics of training": nn.BatchNorm2d,
    "of other numbers": lambda channels: nn.BatchNorm2d(channels, eps=0.1),
}


def layer_of(norm: str, *, bias: bool = False, relu: bool = True, large: bool = False) -> ConvNorm:
    layer = ConvNorm(6, 600 if large else 8, 9 if large else 3, NORMS[norm], bias=bias, relu=relu).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean):
            tensor.normal_(generator=generator)
        layer.norm.running_var.uniform_(0.2, 3, generator=generator)
    return layer


def plainly(layer: ConvNorm, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    y = layer.norm(layer.conv(x))
    y = y if residual is None else y + residual
    return y.relu() if layer.relu else y


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("bias", "relu", "large"), [(False, True, False), (True, False, False), (True, True, True)])
@torch.no_grad()
def test_a_batch_norm_is_part_of_its_convolution(norm: str, layout: torch.memory_format, bias, relu, large):
    layer, x = layer_of(norm, bias=bias, relu=relu, large=large), image().contiguous(memory_format=layout)
    residual = image(channels=layer.conv.out_channels)
    for r in (None, residual):
        for _ in range(2):  # the second time with what was kept
            found = layer(x, r)
            # Sums of at most 486 products of numbers around 1, in another order and with factors inside.
            torch.testing.assert_close(found, plainly(layer, x, r), atol=2e-5, rtol=1e-5)
        assert found.is_contiguous(memory_format=layout)
    assert ("folded" in layer.__dict__["_module_cache"]) != large  # weights of many numbers are not there twice
    assert set(layer.state_dict()) == set(copy.deepcopy(layer).state_dict()) and "folded" not in str(layer.state_dict())


@torch.no_grad()
def test_bf16_is_as_near_as_bf16_is():
    layer, x = layer_of("constants"), image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    exact = plainly(layer, x)
    assert (found.float() - exact).abs().max() < 0.02 * exact.abs().max()  # 8 bits of each factor


@pytest.mark.parametrize("change", ["weight", "running_var", "running_mean", "bias", "conv.weight", "conv.bias"])
@torch.no_grad()
def test_changes_are_noticed(change: str):
    layer, x = layer_of("statistics of training", bias=True), image()
    layer(x)
    owner = layer.conv if change.startswith("conv.") else layer.norm
    getattr(owner, change.removeprefix("conv.")).mul_(2).add_(0.5)
    torch.testing.assert_close(layer(x), plainly(layer, x), atol=2e-5, rtol=1e-5)


def test_what_was_made_in_inference_mode_is_right_too():
    """Nobody counts the changes of such tensors, so nothing is kept of them."""
    with torch.inference_mode():
        layer, x = layer_of("constants"), image()
        for _ in range(2):
            torch.testing.assert_close(layer(x), plainly(layer, x), atol=2e-5, rtol=1e-5)
            layer.norm.weight.mul_(2)


def test_training_sees_the_batch_norm_itself():
    layer, x = layer_of("statistics of training"), image()
    with torch.no_grad():
        layer(x)
    layer.train()
    assert not is_constant(layer.norm) and not is_constant(nn.GroupNorm(2, 8))
    before = layer.norm.running_mean.clone()
    expected = plainly(copy.deepcopy(layer), x)
    assert torch.equal(layer(x), expected) and "_module_cache" not in vars(layer)
    assert not torch.equal(layer.norm.running_mean, before)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plainly(layer, x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 8, 12, 24])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_gradients_of_any_number_of_channels(channels: int, kernel: int, stride: int):
    """oneDNN's weight gradient of a strided 1x1 convolution writes out of bounds below 16 channels."""
    torch.manual_seed(channels)
    layer = ConvNorm(channels, 16, kernel, FrozenBatchNorm, stride=stride).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()
    for size in ((16, 16), (33, 17)):
        x = torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
        x_exact = x.detach().double().requires_grad_()
        weights = torch.randn_like(layer(x))
        found = torch.autograd.grad((layer(x) * weights).sum(), [x, layer.conv.weight])
        wanted = torch.autograd.grad((plainly(exact, x_exact) * weights.double()).sum(), [x_exact, exact.conv.weight])
        for each, other in zip(found, wanted, strict=True):
            # Sums of at most 1122 products of numbers around 1, where fp32 has 7 digits.
            torch.testing.assert_close(each.double(), other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_doubling_is_a_transposed_convolution(layout: torch.memory_format, activation: str | None):
    """Values and gradients in float64, where only the order of sums differs, and values in prediction."""
    layer, x = Doubling(6, 4).double(), image().double().contiguous(memory_format=layout).requires_grad_()

    def plain(x: torch.Tensor) -> torch.Tensor:
        y = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
        return y if activation is None else F.gelu(y)

    results = layer(x, activation), plain(x)
    weights = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(2)).double()
    gradients = [torch.autograd.grad((y * weights).sum(), (x, layer.weight, layer.bias)) for y in results]
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer(x, activation), plain(x), rtol=0, atol=1e-14)
            layer.weight.mul_(-0.5)  # what is cached must follow


@torch.no_grad()
def test_doubling_in_bf16_rounds_as_the_convolution_does():
    layer, x = Doubling(64, 64), image(channels=64)
    exact = layer(x, "gelu")
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = layer(x, "gelu"), F.gelu(F.conv_transpose2d(x, layer.weight, layer.bias, stride=2))
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 1.1 * (plain - exact).abs().max()  # one rounding fewer, or the same
