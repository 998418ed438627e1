"""All implementations of deformable attention against the readable one, in values and gradients."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.samples import make, outputs_and_gradients

from m2f_cli.errors import ConfigError
from m2f_cli.ops.deformable_attention import EVERYWHERE, choose, deform_attn
from m2f_cli.ops.deformable_attention.embedding_bag import corners_on_cpu

FAST = [name for name in EVERYWHERE if name != "reference"]


def any_levels(test):
    """Any level sizes, also one pixel wide or high, points inside and far outside."""
    sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
    given_them = given(shapes=sizes, seed=st.integers(0, 2**31), batch=st.integers(1, 3), points=st.integers(1, 4))
    return settings(max_examples=25, deadline=None)(given_them(test))


@pytest.mark.parametrize("impl", FAST)
@any_levels
def test_equals_the_reference(impl, shapes, seed, batch, points):
    inputs = make(tuple(shapes), seed, batch=batch, points=points)
    names = ("output", "value", "x", "y", "weights")
    for name, ours, theirs in zip(
        names, outputs_and_gradients(impl, *inputs), outputs_and_gradients("reference", *inputs), strict=True
    ):
        # fp32: grid_sample rounds coordinates once more (to [-1, 1] and back); slopes are differences of values
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("impl", FAST)
@any_levels
def test_equals_the_reference_without_gradients(impl, shapes, seed, batch, points):
    """And the inputs stay as they are."""
    inputs = make(tuple(shapes), seed, batch=batch, points=points)
    kept = [tensor.clone() for tensor in inputs if isinstance(tensor, torch.Tensor)]
    with torch.no_grad():
        torch.testing.assert_close(
            deform_attn(*inputs, impl=impl), deform_attn(*inputs, impl="reference"), atol=1e-4, rtol=1e-4
        )
    tensors = [tensor for tensor in inputs if isinstance(tensor, torch.Tensor)]
    assert all(torch.equal(*pair) for pair in zip(tensors, kept, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs a C++ compiler")
@torch.no_grad()
def test_compiled_corners_are_the_same_for_all_sizes(monkeypatch):
    monkeypatch.setattr(corners_on_cpu, "runs", corners_on_cpu.eager)  # put back afterwards
    expected = [deform_attn(*make(((5, 7), (3, 4)), queries=n), impl="bag") for n in (7, 20, 33)]
    corners_on_cpu.compile()
    assert corners_on_cpu.runs is not corners_on_cpu.eager
    found = [deform_attn(*make(((5, 7), (3, 4)), queries=n), impl="bag") for n in (7, 20, 33)]
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, atol=1e-6, rtol=1e-6)  # a compiler may multiply and add in one step


@pytest.mark.parametrize("impl", FAST)
def test_slope_at_whole_pixels_is_that_of_grid_sample(impl):
    """Fresh networks sample exactly at pixels, where bilinear weights have a kink: the right-hand slope counts.

    Sizes are powers of two, so that grid_sample's own coordinates are exact.
    """
    shapes = ((4, 8), (8, 1), (1, 4), (2, 2))
    value, _, x, y, weights = make(shapes, queries=40)
    inputs = (value, shapes, x.round(), y.round(), weights)
    ours, theirs = outputs_and_gradients(impl, *inputs), outputs_and_gradients("reference", *inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    assert ours[2].abs().max() > 0.1, "no gradient reaches the sampling points"


def test_far_outside_is_zero():
    value, shapes, x, y, weights = make(((5, 7), (3, 4)))
    for impl in EVERYWHERE:
        assert not deform_attn(value, shapes, x + 1e6, y, weights, impl=impl).any()


def test_the_environment_overrides_the_choice(monkeypatch):
    assert choose(torch.device("cpu")) == "bag"
    monkeypatch.setenv("M2F_DEFORM_ATTN", "gather")
    assert choose(torch.device("cpu")) == "gather"
    monkeypatch.setenv("M2F_DEFORM_ATTN", "fastest")
    with pytest.raises(ConfigError, match="'fastest'.*reference, bag, gather, triton"):
        choose(torch.device("cpu"))
