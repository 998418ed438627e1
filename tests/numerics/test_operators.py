"""Operators at extreme values, against their definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from ops.samples import make

from m2f_cli.ops import group_norm as norms
from m2f_cli.ops.cpu.attention import attention
from m2f_cli.ops.cpu.linear import fused_kernel_available, linear
from m2f_cli.ops.deformable_attention import EVERYWHERE, deform_attn
from m2f_cli.ops.point_sampling import sample_points, sample_reference

EPS = torch.finfo(torch.float32).eps
SCALES = [1e-8, 1.0, 1e8]
SHAPES = ((5, 7), (3, 4), (1, 1))
LINEAR = ["blas", *(["fused"] if fused_kernel_available() else [])]
NORMS = ["plain", *(["chunked"] if norms.has_statistics() else [])]


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors]


# --- deformable attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("impl", EVERYWHERE)
@torch.no_grad()
def test_deformable_attention_of_any_magnitude(impl, scale):
    value, shapes, x, y, weights = make(SHAPES)
    value, weights = value * scale, weights.flatten(3).softmax(-1).view_as(weights)
    found = deform_attn(value, shapes, x, y, weights, impl=impl)
    value_D, x_D, y_D, weights_D = doubled(value, x, y, weights)
    expected = deform_attn(value_D, shapes, x_D, y_D, weights_D, impl="reference")
    # Coordinates up to 11 are rounded once more by the reference, and values differ by up to 8 between pixels.
    torch.testing.assert_close(found.double(), expected, atol=100 * EPS * scale, rtol=0)


@pytest.mark.parametrize("place", [1e4, 1e8, -1e8, 3e38, math.inf, -math.inf])
@pytest.mark.parametrize("impl", EVERYWHERE)
@torch.no_grad()
def test_points_far_outside_read_nothing(impl, place):
    if impl == "reference" and abs(place) > 1e30:
        place = math.copysign(1e30, place)  # grid_sample itself answers NaN beyond the largest float
    value, shapes, x, y, weights = make(SHAPES)
    x[0, 0] = place
    found = deform_attn(value, shapes, x, y, weights, impl=impl)
    assert not found[0, 0].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("impl", EVERYWHERE)
@torch.no_grad()
def test_values_that_are_no_numbers_stay_with_the_queries_that_read_them(impl):
    value, shapes, x, y, weights = make(SHAPES)
    value[1] = math.nan
    found = deform_attn(value, shapes, x, y, weights, impl=impl)
    assert found[0].isfinite().all()
    assert found[1].isnan().any()


@pytest.mark.parametrize("impl", EVERYWHERE)
@torch.no_grad()
def test_no_queries(impl):
    value, shapes, x, y, weights = make(SHAPES, queries=0)
    assert deform_attn(value, shapes, x, y, weights, impl=impl).shape == (2, 0, 24)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("impl", ["sdpa", "products"])
@torch.no_grad()
def test_attention_of_any_magnitude(impl, scale):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    found = attention(q * scale, k, v, impl=impl)
    scores = doubled(q * scale)[0] @ k.double().transpose(-1, -2) / math.sqrt(8)
    expected = scores.softmax(-1) @ v.double()
    # A score of magnitude s is rounded by s·eps, which is the relative error of its weight.
    score_error = 8 * EPS * max(1.0, float(scores.abs().max()))
    torch.testing.assert_close(found.double(), expected, atol=min(8.0, 8 * score_error + 16 * EPS), rtol=0)
    assert found.isfinite().all()


@pytest.mark.parametrize("impl", ["sdpa", "products"])
@torch.no_grad()
def test_attention_to_one_key_is_its_value_whatever_the_scores(impl):
    q, k, v = (1e8 * torch.randn(2, 3, 5, 8) for _ in range(3))
    may_attend = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    may_attend[..., 2] = True
    found = attention(q / 1e4, k / 1e4, v, may_attend=may_attend, impl=impl)
    torch.testing.assert_close(found, v[:, :, 2:3].expand_as(found), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("impl", ["sdpa", "products"])
@torch.no_grad()
def test_equal_scores_give_the_mean(impl):
    v = torch.randn(1, 2, 7, 4)
    found = attention(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 7, 4), v, impl=impl)
    torch.testing.assert_close(found, v.mean(2, keepdim=True).expand_as(found), rtol=16 * EPS, atol=4 * EPS)


# --- linear layers and group norm -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("impl", LINEAR)
@torch.no_grad()
def test_linear_layers_of_any_magnitude(impl, scale, activation):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((70, 33), (17, 33), (17,)))
    found = linear(x * scale, weight, bias, activation=activation, impl=impl)
    expected = F.linear(*doubled(x * scale, weight, bias))
    expected = {None: lambda t: t, "relu": F.relu, "gelu": F.gelu}[activation](expected)
    # Sums of 33 products of up to 16 each; oneDNN's GELU is a polynomial that is good to some 1e-6.
    atol = 33 * 16 * EPS * max(scale, 1e-2) + (2e-6 if activation == "gelu" else 0)
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=8 * EPS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("impl", LINEAR)
@torch.no_grad()
def test_linear_layers_do_not_hide_what_is_no_number(impl, value):
    x = torch.randn(70, 33)
    x[3, 5] = value
    found = linear(x, torch.ones(17, 33), torch.zeros(17), impl=impl)
    assert not found[3].isfinite().any()
    assert found[torch.arange(70) != 3].isfinite().all()


@pytest.mark.parametrize(("scale", "mean"), [(1e-8, 0.0), (1.0, 0.0), (1e8, 0.0), (1.0, 1e4), (1e4, 1e8)])
@pytest.mark.parametrize("impl", NORMS)
@torch.no_grad()
def test_group_norm_of_any_magnitude_and_mean(impl, scale, mean):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 32, 19, 23, generator=generator) * scale + mean).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(32, generator=generator) + 0.5, torch.randn(32, generator=generator)
    source = x if impl == "chunked" else x.contiguous()  # PyTorch's kernel for channels innermost cancels
    found = norms.group_norm(source, 8, weight, bias, 1e-5, impl=impl)
    expected = F.group_norm(x.double().contiguous(), 8, weight.double(), bias.double(), 1e-5)
    # The norm takes the mean away: its rounding, in units of the deviation, is what remains. Values reach 5 · 1.5.
    error = 16 * EPS * max(8.0, abs(mean) / scale)
    torch.testing.assert_close(found.double(), expected, atol=error, rtol=0)


@pytest.mark.parametrize("impl", NORMS)
@torch.no_grad()
def test_group_norm_of_a_constant_is_its_bias(impl):
    x = torch.full((1, 32, 5, 7), 3.0).contiguous(memory_format=torch.channels_last)
    bias = torch.linspace(-1, 1, 32)
    source = x if impl == "chunked" else x.contiguous()
    found = norms.group_norm(source, 8, torch.ones(32), bias, 1e-5, impl=impl)
    # 1/sqrt(1e-5) = 316 times the rounding of a mean of 3.
    torch.testing.assert_close(found, bias[None, :, None, None].expand_as(found), atol=316 * 3 * 4 * EPS, rtol=0)


# --- sampling of points -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 40])
@pytest.mark.parametrize("scale", SCALES)
@torch.no_grad()
def test_sampled_points_of_any_magnitude(scale, channels):
    generator = torch.Generator().manual_seed(0)
    maps = scale * torch.randn(2, channels, 9, 13, generator=generator)
    points = torch.rand(2, 50, 2, generator=generator) * 1.2 - 0.1
    found = sample_points(maps, points)
    # Coordinates up to 13 are rounded, and values differ by up to 8 between pixels.
    torch.testing.assert_close(
        found.double(), sample_reference(*doubled(maps, points)), atol=13 * 8 * 4 * EPS * scale, rtol=0
    )


@pytest.mark.parametrize("channels", [1, 40])
@torch.no_grad()
def test_points_far_outside_of_a_map_are_zero(channels):
    maps = torch.ones(1, channels, 4, 4)
    points = torch.tensor([[[1e8, 0.5], [-1e8, 0.5], [0.5, 1e30], [3.0, -3.0]]])
    assert not sample_points(maps, points).any()
