"""3x3 convolutions by Winograd's transforms give what the direct ones give."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F

from m2f_cli.model.layers import convolved
from m2f_cli.ops import winograd
from m2f_cli.ops.cpu import chunking as pieces
from m2f_cli.ops.winograd import conv3x3


def inputs(*shape: int, out: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out, shape[1], 3, 3, generator=generator) / (9 * shape[1]) ** 0.5
    return x, weight, torch.randn(out, generator=generator)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8, 12), (2, 5, 7, 9), (1, 3, 1, 1), (3, 4, 4, 4), (1, 6, 2, 33), (1, 16, 41, 3)]
)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_implementations_agree_in_values(shape, bias, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(winograd, "PIECE", 36 * 3 * 16)  # bands of few tiles: their borders count
    x, weight, b = inputs(*shape, out=7)
    b = b if bias else None
    found = conv3x3(x, weight, b, impl="winograd")
    expected = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1)
    assert found.shape == expected.shape
    # Results have a spread of 1; the transforms multiply by up to 8 on both axes before they cancel.
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(conv3x3(x, weight, b, impl="direct").double(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_agree_where_somebody_asks_for_them():
    """Training never takes this way by itself; `M2F_CONV3X3=winograd` does."""
    grads = {}
    for impl in winograd.IMPLEMENTATIONS:
        leaves = [each.requires_grad_() for each in inputs(2, 5, 41, 9, out=7)]
        conv3x3(*leaves, impl=impl).square().sum().backward()
        grads[impl] = [leaf.grad for leaf in leaves]
    for name, ours, expected in zip(("x", "weight", "bias"), grads["winograd"], grads["direct"], strict=True):
        # Rounding of the transforms as above, in sums over all pixels for the second and third.
        error = (ours - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, f"{name}: {error}"


def test_a_layer_whose_gradient_goes_through_it_learns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("M2F_CONV3X3", "winograd")
    conv, (x, _, _) = torch.nn.Conv2d(8, 8, 3, padding=1), inputs(1, 8, 8, 8, out=8)
    with torch.no_grad():
        convolved(conv, x)  # keeps a transformed kernel
    convolved(conv, x).square().sum().backward()
    found, conv.weight.grad = conv.weight.grad, None
    conv(x).square().sum().backward()
    assert (found - conv.weight.grad).abs().max() < 2e-5 * found.abs().max()


@torch.no_grad()
def test_it_is_fp32_whatever_is_cast_around_it():
    x, weight, b = inputs(1, 8, 12, 12, out=8)
    expected = conv3x3(x, weight, b, impl="winograd")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv3x3(x, weight, b, impl="winograd"), expected)
    low = conv3x3(x.bfloat16(), weight, b, impl="winograd")
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, conv3x3(x.bfloat16().float(), weight, b, impl="winograd").bfloat16())


def test_transforms_as_sums_are_those_as_products():
    """What a compiler is given, not compiled. Fewer terms, in the same order: rounding of numbers up to 50."""
    band = torch.randn(10, 4 * 5 + 2, 3, generator=torch.Generator().manual_seed(0))
    rounding = {"atol": 1e-4, "rtol": 1e-5}
    places = winograd.places_by_product(band)
    assert places.shape == (36, 2 * 5 * 3)
    torch.testing.assert_close(winograd.places_by_sums(band), places, **rounding)
    torch.testing.assert_close(winograd.pixels_by_sums(places), winograd.pixels_by_product(places), **rounding)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs a C++ compiler")
@torch.no_grad()
def test_compiled_transforms_give_the_same_for_all_sizes(monkeypatch: pytest.MonkeyPatch):
    cases = [inputs(*shape, out=7)[:2] for shape in ((1, 8, 8, 12), (1, 16, 41, 3), (1, 8, 5, 7))]
    expected = [conv3x3(*case, impl="winograd") for case in cases]
    for each in (winograd.to_places, winograd.to_pixels):
        monkeypatch.setattr(each, "runs", each.plain)  # put back afterwards
        each.compile()
    for case, result in zip(cases, expected, strict=True):
        torch.testing.assert_close(conv3x3(*case, impl="winograd"), result, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_exact_where_numbers_are_small_integers_and_the_kernel_a_shift():
    x = torch.arange(2 * 9 * 10.0).view(1, 2, 9, 10) % 7
    shift = torch.zeros(2, 2, 3, 3)
    shift[[0, 1], [0, 1], 0, 2] = 1  # what stands one up and one to the right
    expected = F.pad(x, (0, 1, 1, 0))[..., :9, 1:]
    torch.testing.assert_close(conv3x3(x, shift, impl="winograd"), expected, atol=1e-5, rtol=0)


def test_the_choice_depends_on_size_gradients_and_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_CONV3X3", raising=False)
    large = torch.zeros(1, 128, 64, 64).contiguous(memory_format=torch.channels_last)
    assert winograd.choose(large, 128) == "direct"  # somebody may want a gradient
    with torch.no_grad():
        assert winograd.choose(large, 128) == "winograd"
        assert winograd.choose(large, 64) == "direct"
        assert winograd.choose(large[..., :32], 128) == "direct"
        assert winograd.choose(large.bfloat16(), 128) == "direct"
        assert winograd.choose(torch.zeros(1, 128, 64, 64), 128) == "direct"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert winograd.choose(large, 128) == "direct"
    monkeypatch.setenv("M2F_CONV3X3", "winograd")
    assert winograd.choose(large, 8) == "winograd"
    monkeypatch.setenv("M2F_CONV3X3", "fft")
    with pytest.raises(ValueError, match="'fft' is no implementation of 3x3 .*: it is one of direct, winograd"):
        conv3x3(large, torch.zeros(1, 128, 3, 3))


@torch.no_grad()
def test_a_layer_transforms_its_kernel_once_and_again_when_it_changed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("M2F_CONV3X3", "winograd")
    calls = []
    transformed = winograd.transformed
    monkeypatch.setattr(winograd, "transformed", lambda weight: calls.append(1) or transformed(weight))
    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    x, weight, _ = inputs(1, 8, 8, 8, out=8)
    first = convolved(conv, x)
    assert torch.equal(convolved(conv, x), first)
    assert len(calls) == 1
    conv.weight.copy_(weight)
    torch.testing.assert_close(convolved(conv, x), F.conv2d(x, weight, conv.bias, padding=1), atol=2e-5, rtol=1e-5)
    assert len(calls) == 2


def test_rows_are_computed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pieces, "PIECE", 40)
    seen = []

    def function(a_SX, b_SX):
        seen.append(a_SX.shape[-2])
        return a_SX * 2 + b_SX

    a, b = torch.randn(2, 10, 3), torch.randn(10, 3)
    with torch.no_grad():
        assert torch.equal(pieces.in_pieces(function, 5, a, b), a * 2 + b)
        assert seen == [4, 4, 2]  # 2 x 10 rows of 5 numbers are three pieces
        assert torch.equal(pieces.in_pieces(function, 5, a[:, :0], b[:0]), torch.zeros(2, 0, 3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (pieces.in_fp32(10, a), pieces.in_fp32(10, a.bfloat16())) == (5, 5)  # a product's format counts
        assert (pieces.in_fp32(10, a), pieces.in_fp32(10, a.bfloat16()), pieces.in_fp32(10, a.double())) == (10, 5, 20)
    seen.clear()
    pieces.in_pieces(function, 5, a.requires_grad_(), b).sum().backward()
    assert seen == [10]
