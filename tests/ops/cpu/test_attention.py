"""Attention by matrix products gives what PyTorch's own operator gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from m2f_cli.errors import ConfigError
from m2f_cli.ops.cpu import attention as module
from m2f_cli.ops.cpu.attention import attention
from m2f_cli.ops.dispatch import plain_operators


def inputs(batch=3, heads=2, queries=5, keys=7, channels=8, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, n, channels) for n in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(q, k, v, bias) -> torch.Tensor:
    return torch.softmax(torch.einsum("baqd,basd->baqs", q, k) / q.shape[-1] ** 0.5 + bias, dim=-1) @ v


@pytest.mark.parametrize("impl", module.IMPLEMENTATIONS.names)
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (1, 2, 5, 7), (1, 1, 5, 7), (3, 1, 5, 7), (5, 7)])
def test_values_and_gradients(impl, shape):
    tensors = [x.double().requires_grad_() for x in inputs()]
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    expected = by_hand(*tensors, bias)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected_grads = torch.autograd.grad((expected * weight).sum(), [*tensors, bias])
    fp32 = [x.detach().float().requires_grad_() for x in (*tensors, bias)]
    found = attention(*fp32, impl=impl)
    grads = torch.autograd.grad((found * weight).sum(), fp32)
    # Sums of up to 15 products of numbers of magnitude 1 in fp32.
    for ours, theirs in zip((found, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", module.IMPLEMENTATIONS.names)
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (3, 1, 5, 7)])
def test_what_may_not_be_attended_to_counts_nothing(impl, shape):
    q, k, v = inputs()
    may_attend = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5
    may_attend[..., 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
    torch.testing.assert_close(attention(q, k, v, may_attend=may_attend, impl=impl), expected, atol=1e-6, rtol=1e-5)
    v[..., 3, :] = 1e20
    may_attend[..., 3] = False
    assert attention(q, k, v, may_attend=may_attend, impl=impl).abs().max() < 10  # a weight of exactly 0


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (1, 2, 5, 7), (5, 7)])
@torch.no_grad()
def test_chunks_change_nothing(shape, monkeypatch: pytest.MonkeyPatch):
    tensors = inputs()
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = attention(*tensors, bias, impl="products")
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * 2 * 5 * 7)  # two of three at a time
    torch.testing.assert_close(attention(*tensors, bias, impl="products"), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole, by_hand(*tensors, bias), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        attention(*tensors, impl="products"), by_hand(*tensors, torch.zeros(())), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("impl", module.IMPLEMENTATIONS.names)
@torch.no_grad()
def test_writes_where_it_is_told_to(impl):
    """Heads of several windows lie in one tensor, as a projection gives them."""
    qkv = torch.randn(3, 5, 3, 2, 4, generator=torch.Generator().manual_seed(0)).permute(2, 0, 3, 1, 4)
    out = torch.full((4, 5, 2, 4), 7.0)
    found = attention(*qkv, impl=impl, out_BQAD=out[1:])
    assert found.data_ptr() == out[1:].data_ptr() and (out[0] == 7).all()
    torch.testing.assert_close(out[1:].transpose(1, 2), by_hand(*qkv, torch.zeros(())), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_lower_precision_adds_the_bias_in_fp32():
    q, k, v = inputs(dtype=torch.bfloat16)
    bias = torch.full((5, 7), 1000.0) + torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    found = attention(q, k, v, bias, impl="products")
    assert found.dtype == torch.bfloat16
    expected = by_hand(q.float(), k.float(), v.float(), bias)
    # Scores, weights and the result are rounded to 8 bits; the bias rounded so would be off by 4.
    torch.testing.assert_close(found.float(), expected, atol=0.04, rtol=0.02)


def test_dropout_keeps_the_mean():
    q, k, v = inputs(batch=1, heads=1, queries=2, keys=2000)
    torch.manual_seed(0)
    ones = torch.ones_like(v)
    kept = attention(0 * q, k, ones, dropout=0.25, impl="products")
    # The mean of 2000 draws: a standard error of 0.013.
    torch.testing.assert_close(kept, torch.ones_like(kept), atol=0.06, rtol=0)
    assert not torch.equal(kept, torch.ones_like(kept))


def test_the_choice_depends_on_size_type_and_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("M2F_ATTENTION", raising=False)
    q = torch.zeros(1, 1, 2, 4)
    assert module.choose(q, 49) == module.choose(q.bfloat16(), 4096) == "products"
    assert module.choose(q.half(), 49) == module.choose(q.double(), 49) == "sdpa"
    assert module.choose(torch.zeros(1, 1, 2, 4, device="meta"), 49) == "sdpa"
    with torch.no_grad():
        assert module.choose(q, 257) == module.choose(q.bfloat16(), 4096) == module.choose(q.half(), 49) == "sdpa"
        assert module.choose(q, 256) == module.choose(q.bfloat16(), 49) == "products"
    with plain_operators():
        assert module.choose(q, 49) == "sdpa"
    monkeypatch.setenv("M2F_ATTENTION", "sdpa")
    assert module.choose(q, 49) == "sdpa"
    monkeypatch.setenv("M2F_ATTENTION", "flash")
    with pytest.raises(ConfigError, match="'flash', which is no implementation of attention.*sdpa, products"):
        module.choose(q, 49)
