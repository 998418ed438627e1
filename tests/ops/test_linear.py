"""Linear layers as convolutions give what matrix products give, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from m2f_cli.ops import linear as op
from m2f_cli.ops.linear import Linear, linear

# Two libraries add up the same few hundred products in another order; gradients of weights, one product per row.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def inputs(*shape: int, out: int, bias: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    weight = torch.randn(out, shape[-1], generator=generator) / shape[-1] ** 0.5
    tensors = (x, weight, torch.randn(out, generator=generator)) if bias else (x, weight)
    return tuple(tensor.requires_grad_() for tensor in tensors)


def results(impl: str, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    out = linear(*tensors, impl=impl)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return out.detach(), *torch.autograd.grad((out * weights).sum() / out.shape[-2], tensors)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 64), (1, 300, 64), (2, 150, 64), (3, 7, 11, 48), (257, 33), (1, 1, 64)])
def test_implementations_agree(shape: tuple[int, ...], bias: bool, threads: int):
    tensors = inputs(*shape, out=40, bias=bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairs = zip(results("convolution", tensors), results("blas", tensors), strict=True)
        for found, expected in pairs:
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, **ROUNDING)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_contiguous_is_taken_as_it_is():
    base = torch.randn(64, 2, 200, generator=torch.Generator().manual_seed(0))
    x = base.permute(1, 2, 0).requires_grad_()
    weight = inputs(1, 64, out=40)[1]
    for found, expected in zip(results("convolution", (x, weight)), results("blas", (x, weight)), strict=True):
        torch.testing.assert_close(found, expected, **ROUNDING)


def test_results_are_contiguous_and_may_be_changed_in_place():
    x, weight, bias = inputs(2, 300, 64, out=40)
    out = linear(x, weight, bias, impl="convolution")
    assert out.is_contiguous()
    out.relu_().sum().backward()
    expected = torch.autograd.grad(linear(x, weight, bias, impl="blas").relu().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, **ROUNDING)


def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight, bias = inputs(300, 64, out=40)
    linear(x.detach(), weight, bias.detach(), impl="convolution").sum().backward()
    assert x.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(40, -1), **ROUNDING)


def test_a_frozen_layer_passes_gradients_on():
    x, weight, bias = inputs(300, 64, out=40)
    linear(x, weight.detach(), bias.detach(), impl="convolution").sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(300, -1), **ROUNDING)


@pytest.mark.parametrize(
    ("x", "chosen"),
    [
        (torch.zeros(op.MIN_ROWS, 8), "convolution"),
        (torch.zeros(op.MIN_ROWS - 1, 8), "blas"),
        (torch.zeros(op.MIN_ROWS, 8, dtype=torch.bfloat16), "blas"),
        (torch.zeros(op.MIN_ROWS, 8, dtype=torch.float64), "blas"),
        (torch.zeros(op.MIN_ROWS, 8, device="meta"), "blas"),
        (torch.zeros(0, 8), "blas"),
    ],
)
def test_choice_where_matrix_products_are_slow(x: torch.Tensor, chosen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_LINEAR", raising=False)
    monkeypatch.setattr(op, "is_blas_slow", lambda: True)
    assert op.choose(x) == chosen


def test_choice_where_they_are_not_or_numbers_are_cast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_LINEAR", raising=False)
    x = torch.zeros(op.MIN_ROWS, 8)
    monkeypatch.setattr(op, "is_blas_slow", lambda: False)
    assert op.choose(x) == "blas"
    monkeypatch.setattr(op, "is_blas_slow", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op.choose(x) == "blas"
        assert Linear(8, 8)(x).dtype == torch.bfloat16


def test_override(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("M2F_LINEAR", "convolution")
    assert op.choose(torch.zeros(1, 8)) == "convolution"
    monkeypatch.setenv("M2F_LINEAR", "blas")
    assert op.choose(torch.zeros(10_000, 8)) == "blas"
    monkeypatch.setenv("M2F_LINEAR", "fast")
    with pytest.raises(ValueError, match="'fast': it is one of blas, convolution"):
        linear(torch.zeros(1, 8), torch.zeros(8, 8))


@pytest.mark.parametrize(
    ("info", "slow"),
    [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), ("model name : ?\n", False)],
)
def test_makers(info: str, slow: bool, monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(op, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(op.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert op.is_blas_slow.__wrapped__() is slow
