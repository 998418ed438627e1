"""Feed-forward networks with a gradient of their own give what two layers give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from m2f_cli.errors import ConfigError
from m2f_cli.ops.cpu import feed_forward as module
from m2f_cli.ops.cpu.feed_forward import feed_forward
from m2f_cli.ops.cpu.linear import Linear
from m2f_cli.ops.dispatch import plain_operators


def network(shape=(2, 150, 12), hidden=40) -> tuple[torch.Tensor, Linear, Linear]:
    torch.manual_seed(0)
    return torch.randn(shape, requires_grad=True), Linear(shape[-1], hidden), Linear(hidden, shape[-1])


def results(impl: str, activation: str, residual: bool, tensors, dtype=torch.float32) -> list[torch.Tensor]:
    x, first, second = tensors
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        y = feed_forward(x, first, second, activation, x if residual else None, impl=impl)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    inputs = [x, *first.parameters(), *second.parameters()]
    return [y.detach(), *torch.autograd.grad((y.float() * weights).sum(), inputs)]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(2, 150, 12), (300, 12), (1, 1, 12)])
@pytest.mark.parametrize("piece", [2**22, 40 * 128])
def test_implementations_agree_in_values(piece, shape, residual, activation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", piece)  # at once, or 100 rows at a time
    tensors = network(shape)
    for found, expected in zip(
        *(results(impl, activation, residual, tensors) for impl in ("own", "layers")), strict=True
    ):
        # Sums over up to 300 rows of magnitude 1, in another order.
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_against_plain_pytorch_in_double_precision(activation):
    x, first, second = network()
    found = results("own", activation, False, (x, first, second))
    exact = [p.detach().double().requires_grad_() for p in (x, *first.parameters(), *second.parameters())]
    y = F.linear(getattr(F, activation)(F.linear(*exact[:3])), *exact[3:])
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    for ours, theirs in zip(found, [y, *torch.autograd.grad((y * weights).sum(), exact)], strict=True):
        torch.testing.assert_close(ours.double(), theirs.detach(), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("piece", [2**22, 40 * 128])
def test_lower_precision_is_as_close_as_two_layers(piece, activation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", piece)
    tensors = network()
    exact = results("layers", activation, True, tensors)
    own, layers = (results(impl, activation, True, tensors, torch.bfloat16) for impl in ("own", "layers"))
    for found, rival, expected in zip(own, layers, exact, strict=True):
        assert found.dtype == rival.dtype
        # Both round to 8 bits in the same places, but that of a bias the sums of three pieces are rounded, which are
        # larger than their total. (Single numbers cannot be compared: where what enters a ReLU rounds to another sign,
        # a whole term comes or goes.)
        assert (found - expected).norm() < 4 * (rival - expected).norm() + 1e-6
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_keeps_one_wide_tensor():
    x, first, second = network((300, 12))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        feed_forward(x, first, second, "gelu", impl="own")
    assert sum(t.shape == (300, 40) for t in kept) == 1


def test_the_choice_depends_on_rows_type_and_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_FEED_FORWARD", raising=False)
    x = torch.zeros(module.MIN_ROWS, 8)
    assert module.choose(x) == module.choose(x.bfloat16()) == "own"
    assert module.choose(x[1:]) == module.choose(x.half()) == module.choose(x.double()) == "layers"
    assert module.choose(torch.zeros(module.MIN_ROWS, 8, device="meta")) == "layers"
    with torch.autocast("cpu", dtype=torch.float16):
        assert module.choose(x) == "layers"
    with torch.no_grad():
        assert module.choose(x) == "layers"
    with plain_operators():
        assert module.choose(x) == "layers"
    monkeypatch.setenv("M2F_FEED_FORWARD", "layers")
    assert module.choose(x) == "layers"
    monkeypatch.setenv("M2F_FEED_FORWARD", "quick")
    with pytest.raises(ConfigError, match="'quick', which is no implementation of feed_forward.*layers, own"):
        module.choose(x)
