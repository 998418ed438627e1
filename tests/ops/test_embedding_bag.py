"""Weighted bags against PyTorch's own embedding_bag, forward and backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from m2f_cli.ops.deformable_attention.embedding_bag import weighted_bags


def plain(table, rows, weights):
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)


def output_and_gradients(call, table, rows, weights):
    table, weights = (x.clone().requires_grad_() for x in (table, weights))
    output = call(table, rows, weights)
    cotangent = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output.detach(), *torch.autograd.grad((output * cotangent).sum(), [table, weights])


def some_bags(rows: int, bags: int, per_bag: int, dim: int, seed: int, dtype=torch.int32):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(rows, (bags, per_bag), generator=generator, dtype=dtype)
    return torch.randn(rows, dim, generator=generator), index, torch.randn(bags, per_bag, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 30),
    bags=st.integers(1, 20),
    per_bag=st.integers(1, 9),
    dim=st.integers(1, 33),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_equals_embedding_bag(rows, bags, per_bag, dim, seed, dtype):
    """Rows that no bag has and rows that a bag has twice are among them."""
    inputs = some_bags(rows, bags, per_bag, dim, seed, dtype)
    found, expected = (output_and_gradients(call, *inputs) for call in (weighted_bags, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, atol=2e-5, rtol=1e-5)  # sums of up to 180 products in another order


def test_only_what_needs_a_gradient_gets_one():
    table, rows, weights = some_bags(7, 5, 3, 4, 0)
    for part in (table, weights):
        part.requires_grad_()
        output = weighted_bags(table, rows, weights)
        (gradient,) = torch.autograd.grad(output.sum(), [part])
        assert gradient.shape == part.shape
        part.requires_grad_(False)


def test_gradient_that_is_not_contiguous():
    table, rows, weights = some_bags(7, 5, 3, 4, 0)
    cotangent = torch.randn(4, 5).T
    table.requires_grad_()
    ours, theirs = (
        torch.autograd.grad(call(table, rows, weights), [table], cotangent)[0] for call in (weighted_bags, plain)
    )
    assert_close(ours, theirs)


def test_no_warning_reaches_the_user(recwarn):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else only the first test that calls it would see one
    try:
        output_and_gradients(weighted_bags, *some_bags(7, 5, 3, 4, 0))
    finally:
        torch.set_warn_always(always)
    assert not recwarn.list


def test_double_precision_is_differentiated_as_usual():
    table, rows, weights = some_bags(7, 5, 3, 4, 0)
    table, weights = (x.double().requires_grad_() for x in (table, weights))
    assert torch.autograd.gradcheck(lambda t, w: weighted_bags(t, rows, w), (table, weights))
