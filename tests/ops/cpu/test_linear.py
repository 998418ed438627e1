"""Linear layers by other libraries give what matrix products give, in values and gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from m2f_cli.errors import ConfigError
from m2f_cli.ops.cpu import linear as op
from m2f_cli.ops.cpu.linear import Linear, linear

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


needs_fused = pytest.mark.skipif(not op.fused_kernel_available(), reason="there is no fused product here")


@needs_fused
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 64), (1, 300, 64), (2, 150, 64), (3, 7, 11, 48), (257, 33), (1, 1, 64)])
def test_implementations_agree_in_values(shape: tuple[int, ...], bias: bool, threads: int):
    tensors = inputs(*shape, out=40, bias=bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairs = zip(results("fused", tensors), results("blas", tensors), strict=True)
        for found, expected in pairs:
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, **ROUNDING)
    finally:
        torch.set_num_threads(before)


@needs_fused
def test_what_is_not_contiguous_is_taken_as_it_is():
    base = torch.randn(64, 2, 200, generator=torch.Generator().manual_seed(0))
    x = base.permute(1, 2, 0).requires_grad_()
    weight = inputs(1, 64, out=40)[1]
    for found, expected in zip(results("fused", (x, weight)), results("blas", (x, weight)), strict=True):
        torch.testing.assert_close(found, expected, **ROUNDING)


@needs_fused
def test_results_are_contiguous_and_may_be_changed_in_place():
    x, weight, bias = inputs(2, 300, 64, out=40)
    out = linear(x, weight, bias, impl="fused")
    assert out.is_contiguous()
    out.relu_().sum().backward()
    expected = torch.autograd.grad(linear(x, weight, bias, impl="blas").relu().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, **ROUNDING)


@needs_fused
def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight, bias = inputs(300, 64, out=40)
    linear(x.detach(), weight, bias.detach(), impl="fused").sum().backward()
    assert x.grad is None
    assert bias.grad is None
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(40, -1), **ROUNDING)


@needs_fused
def test_a_frozen_layer_passes_gradients_on():
    x, weight, bias = inputs(300, 64, out=40)
    linear(x, weight.detach(), bias.detach(), impl="fused").sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(300, -1), **ROUNDING)


@pytest.mark.parametrize("impl", ["blas", pytest.param("fused", marks=needs_fused)])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(300, 64), (2, 150, 64), (3, 7, 11, 48), (1, 1, 64)])
@torch.no_grad()
def test_what_follows_the_product(shape, residual, activation, impl):
    x, weight, bias = inputs(*shape, out=40)
    added = torch.randn(*shape[:-1], 40, generator=torch.Generator().manual_seed(1)) if residual else None
    kept = x.clone(), None if added is None else added.clone()
    found = linear(x, weight, bias, activation=activation, residual=added, impl=impl)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    expected = getattr(torch.nn.functional, activation)(expected) if activation else expected
    expected = expected if added is None else expected + added
    torch.testing.assert_close(found.double(), expected, **ROUNDING)
    assert torch.equal(x, kept[0])
    assert added is None or torch.equal(added, kept[1])


@pytest.mark.skipif(not op.fused_kernel_available(torch.bfloat16), reason="there is no fused bf16 product here")
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fused_computes_in_the_precision_of_autocast(residual):
    x, weight, bias = inputs(2, 150, 64, out=40)
    added = None if residual is None else torch.ones(2, 150, 40, dtype=residual)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear(x, weight, bias, residual=added, impl="fused")
    assert found.dtype == (residual or torch.bfloat16)
    expected = torch.nn.functional.linear(x, weight, bias) + (0 if added is None else added.float())
    # bf16 keeps 8 bits: each factor and the result are off by at most 1/512 of themselves, sums of 64 terms by less.
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=2**-7)


@torch.no_grad()
def test_weights_are_lowered_once_and_again_when_they_change(monkeypatch: pytest.MonkeyPatch):
    layer, x = Linear(8, 4), torch.ones(300, 8)
    seen = []
    call = op.linear
    monkeypatch.setattr(op, "linear", lambda x, weight, *etc, **kw: seen.append(weight) or call(x, weight, *etc, **kw))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x), layer(x)
        assert seen[0] is seen[1] and seen[0].dtype == torch.bfloat16
        layer.weight.fill_(1)
        layer.bias.zero_()
        assert torch.equal(layer(x), torch.full((300, 4), 8, dtype=torch.bfloat16))
        layer.weight.data = torch.full((4, 8), 2.0)  # as `.to(device)` does: no version tells it
        assert torch.equal(layer(x), torch.full((300, 4), 16, dtype=torch.bfloat16))
    layer(x[:1])
    assert seen[-1] is layer.weight
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_fused_optimiser_changed_is_noticed(precision: str):
    """PyTorch counts no change of a parameter by a fused optimiser: the training step before it makes layers forget."""
    layer, x = Linear(16, 8), torch.randn(op.MIN_ROWS, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def predict() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            return layer(x).float()

    before = predict()
    layer(x).square().sum().backward()
    assert "_module_cache" not in vars(layer)  # nor does it take memory while others train
    optimizer.step()
    rounding = 1e-5 if precision == "fp32" else 0.05  # bf16: 8 bits of numbers up to 5
    with torch.no_grad():
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert (expected - before).abs().max() > 10 * rounding
    torch.testing.assert_close(predict(), expected, atol=rounding, rtol=rounding)


@needs_fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_weights_in_the_order_of_the_product_are_right_for_any_number_of_rows(dtype: torch.dtype):
    if not op.fused_kernel_available(dtype):
        pytest.skip("this processor has no fused product in bf16")
    x, weight, bias = (tensor.to(dtype) for tensor in inputs(1000, 70, out=50))
    packed, rounding = op.packed(weight, 300), ROUNDING if dtype == torch.float32 else {"atol": 0, "rtol": 2**-7}
    for rows in (1, 7, 300, 1000):  # the same numbers in the same sums, whoever puts them in order
        found, expected = (op.fused_linear(x[:rows], each, bias, "relu", None) for each in (packed, weight))
        torch.testing.assert_close(found, expected, **rounding)


@needs_fused
@torch.no_grad()
def test_a_layer_keeps_its_weights_in_order_until_they_change(monkeypatch: pytest.MonkeyPatch):
    made = []
    pack = op.packed
    monkeypatch.setattr(op, "packed", lambda weight, rows: made.append(weight.dtype) or pack(weight, rows))
    layer, x = Linear(8, 4), torch.ones(300, 8)
    layer(x), layer(x)
    assert made == [torch.float32]
    layer.weight.fill_(1), layer.bias.zero_()
    assert torch.equal(layer(x), torch.full((300, 4), 8.0))
    copied = copy.deepcopy(layer)
    copied.weight.fill_(3)
    assert torch.equal(copied(x), torch.full((300, 4), 24.0)) and torch.equal(layer(x), torch.full((300, 4), 8.0))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), torch.full((300, 4), 8.0))
    made.clear()
    monkeypatch.setattr(op, "MAX_PACKED", 31)  # too large to be kept twice, but in bf16 it is not kept as it is
    large = Linear(8, 4)
    large(x)
    assert made == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        large(x)
    assert made == ([torch.bfloat16] if op.fused_kernel_available(torch.bfloat16) else [])


@pytest.mark.parametrize(
    ("x", "chosen"),
    [
        (torch.zeros(op.MIN_ROWS, 8), "fused"),
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
    monkeypatch.setattr(op, "fused_kernel_available", lambda dtype: True)
    assert op.choose(x) == chosen
    monkeypatch.setattr(op, "fused_kernel_available", lambda dtype: False)
    assert op.choose(x) == "blas"


def test_choice_without_a_gradient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_LINEAR", raising=False)
    monkeypatch.setattr(op, "is_blas_slow", lambda: False)
    few, many = torch.zeros(op.MIN_ROWS_FUSED - 1, 8), torch.zeros(op.MIN_ROWS_FUSED, 8)
    with torch.no_grad():
        monkeypatch.setattr(op, "fused_kernel_available", lambda dtype: True)
        assert [op.choose(x) for x in (few, many, many.bfloat16(), many.double())] == ["blas", "fused", "fused", "blas"]
        monkeypatch.setattr(
            op, "fused_kernel_available", lambda dtype: dtype == torch.float32
        )  # a processor without bf16
        assert [op.choose(x) for x in (many, many.bfloat16())] == ["fused", "blas"]


@needs_fused
def test_the_fused_product_is_found_by_whoever_asks_first():
    expected = [op.fused_kernel_available.__wrapped__(dtype) for dtype in (torch.float32, torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [op.fused_kernel_available.__wrapped__(dtype) for dtype in (torch.float32, torch.bfloat16)] == expected
    assert expected[0]


def test_a_pytorch_without_the_fused_product_is_noticed(monkeypatch: pytest.MonkeyPatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(op, "fused_linear", missing)
    assert op.fused_kernel_available.__wrapped__() is False
    monkeypatch.setattr(op, "fused_linear", lambda x, *_: torch.zeros(3, 4))
    assert op.fused_kernel_available.__wrapped__() is False  # it is there and wrong


def test_choice_where_they_are_not_or_numbers_are_cast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_LINEAR", raising=False)
    x = torch.zeros(op.MIN_ROWS, 8)
    monkeypatch.setattr(op, "is_blas_slow", lambda: False)
    assert op.choose(x) == "blas"
    monkeypatch.setattr(op, "is_blas_slow", lambda: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert op.choose(x) == "blas"
        assert Linear(8, 8)(x).dtype == torch.bfloat16


def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("M2F_LINEAR", "fused")
    assert op.choose(torch.zeros(1, 8)) == "fused"
    monkeypatch.setenv("M2F_LINEAR", "blas")
    assert op.choose(torch.zeros(10_000, 8)) == "blas"
    monkeypatch.setenv("M2F_LINEAR", "fast")
    with pytest.raises(ConfigError, match="'fast', which is no implementation of linear.*blas, fused"):
        linear(torch.zeros(1, 8), torch.zeros(8, 8))


@pytest.mark.parametrize(
    ("info", "slow"),
    [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), ("model name : ?\n", False)],
)
def test_the_maker_of_the_processor_tells_a_slow_blas(info: str, slow: bool, monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(op, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(op.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert op.is_blas_slow.__wrapped__() is slow


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_that_are_computed_in_each_call_are_not_cached(precision: str):
    """Those of LoRA: every call makes a new tensor, so a copy would only take memory."""

    class Halved(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    layer, x = Linear(8, 8, bias=False), torch.randn(1, 300, 8)
    plain = layer(x).detach()
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = layer(x)
    assert not vars(layer).get("_module_cache")
    tolerance = 2**-6 if precision == "bf16" else 1e-6  # numbers below 2, products of numbers rounded to 8 bits
    torch.testing.assert_close(found.float(), plain / 2, rtol=0, atol=tolerance)


def test_a_layer_may_have_an_activation_of_its_own():
    layer, x = Linear(8, 8), torch.randn(1, 300, 8)
    layer.activation = "gelu"
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, **ROUNDING)
        torch.testing.assert_close(layer(x, "relu"), layer(x, "relu").clamp(min=0), rtol=0, atol=0)
