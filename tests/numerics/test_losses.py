"""Losses and costs of masks at extreme values, against float64 and exact values."""

from __future__ import annotations

import math

import pytest
import torch

from m2f_cli.loss.mask_losses import bce, dice, focal, pairwise_bce, pairwise_dice, pairwise_focal

EPS = torch.finfo(torch.float32).eps
LOSSES = {"bce": (bce, pairwise_bce), "dice": (dice, pairwise_dice), "focal": (focal, pairwise_focal)}
SCALES = [1e-8, 1e-4, 1.0, 20.0, 100.0, 1e4, 1e8]
TARGETS = {
    "none": lambda shape: torch.zeros(shape),
    "all": lambda shape: torch.ones(shape),
    "mixed": lambda shape: torch.bernoulli(torch.full(shape, 0.5)),
    "edges": torch.rand,
}
every_loss = pytest.mark.parametrize("loss", LOSSES)


def exact(loss: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of its definition in float64, with logarithms that neither overflow nor cancel."""
    z, t = logits.double(), target.double()
    p, q = z.sigmoid(), (-z).sigmoid()
    log_p, log_q = -torch.logaddexp(torch.zeros_like(z), -z), -torch.logaddexp(torch.zeros_like(z), z)
    entropy = -t * log_p - (1 - t) * log_q
    if loss == "bce":
        return entropy.mean(-1)
    if loss == "dice":
        return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    wrong = q * t + p * (1 - t)
    return ((0.25 * t + 0.75 * (1 - t)) * wrong**2 * entropy).mean(-1)


def largest(loss: str, scale: float) -> float:
    """An upper bound of what is added up, which rounding errors are relative to."""
    return 1.0 if loss == "dice" else max(1.0, 5 * scale)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", SCALES)
@every_loss
def test_losses_of_pairs_are_those_in_float64(loss, scale, target):
    torch.manual_seed(0)
    logits, target = scale * torch.randn(3, 257), TARGETS[target]((3, 257))
    value = LOSSES[loss][0](logits, target)
    # The mean of 257 terms: a tree of sums loses a few units in the last place of the largest term.
    torch.testing.assert_close(
        value.double(), exact(loss, logits, target), atol=8 * EPS * largest(loss, scale), rtol=8 * EPS
    )


@pytest.mark.parametrize("target", ["none", "all", "mixed"])
@pytest.mark.parametrize("scale", SCALES)
@every_loss
def test_costs_of_all_pairs_are_those_in_float64(loss, scale, target):
    torch.manual_seed(0)
    logits_QP, target_NP = scale * torch.randn(4, 257), TARGETS[target]((3, 257))
    value_QN = LOSSES[loss][1](logits_QP, target_NP)
    expected_QN = exact(loss, logits_QP[:, None], target_NP[None])
    # Two sums of 257 terms are subtracted here, which may be as large as the largest logit.
    torch.testing.assert_close(value_QN.double(), expected_QN, atol=16 * EPS * largest(loss, scale), rtol=16 * EPS)


@pytest.mark.parametrize("scale", SCALES)
@every_loss
def test_gradients_are_finite_and_those_in_float64(loss, scale):
    torch.manual_seed(0)
    logits, target = scale * torch.randn(2, 65), TARGETS["mixed"]((2, 65))
    gradients = []
    for dtype, function in ((torch.float32, LOSSES[loss][0]), (torch.float64, lambda z, t: exact(loss, z, t))):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        function(leaf, target.to(dtype)).sum().backward()
        gradients.append(leaf.grad.double())
    # A gradient of a mean of 65 is at most 1/65 times 2 (focal) times the logit in its last factor.
    torch.testing.assert_close(*gradients, atol=16 * EPS, rtol=64 * EPS)


@every_loss
def test_certain_and_right_costs_nothing_and_certain_and_wrong_is_bounded(loss):
    logits = torch.full((1, 9), 1e8)
    of_pair, of_all = LOSSES[loss]
    assert float(of_pair(logits, torch.ones(1, 9))) == 0.0
    assert float(of_pair(-logits, torch.zeros(1, 9))) == 0.0
    wrong = {"bce": 1e8, "focal": 0.25 * 1e8, "dice": 1 - 1 / 10}[loss]
    assert float(of_pair(-logits, torch.ones(1, 9))) == pytest.approx(wrong, rel=8 * EPS)
    assert float(of_all(-logits, torch.ones(1, 9))) == pytest.approx(wrong, rel=8 * EPS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_what_is_no_number_is_never_hidden(loss, value):
    logits, target = torch.zeros(2, 5), torch.ones(2, 5)
    logits[0, 3] = value
    losses = LOSSES[loss][0](logits, target)
    assert not losses[0].isfinite() or (value == math.inf and losses[0] < 1)  # infinitely sure and right: no cost
    assert losses[1].isfinite()


@every_loss
def test_one_point(loss):
    for z, t in ((0.0, 0.0), (0.0, 1.0), (3.0, 1.0), (-88.0, 1.0)):
        logits, target = torch.tensor([[z]]), torch.tensor([[t]])
        expected = float(exact(loss, logits, target))
        assert float(LOSSES[loss][0](logits, target)) == pytest.approx(expected, rel=8 * EPS, abs=8 * EPS)
        assert float(LOSSES[loss][1](logits, target)) == pytest.approx(expected, rel=16 * EPS, abs=16 * EPS)


@every_loss
def test_no_targets_are_no_columns(loss):
    assert LOSSES[loss][1](torch.randn(4, 7), torch.zeros(0, 7)).shape == (4, 0)
    assert LOSSES[loss][0](torch.randn(0, 7), torch.zeros(0, 7)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_loss
def test_lower_precision_stays_within_its_digits(loss, dtype):
    torch.manual_seed(0)
    logits, target = (20 * torch.randn(2, 64)).to(dtype), TARGETS["mixed"]((2, 64)).to(dtype)
    value, expected = LOSSES[loss][0](logits, target), exact(loss, logits, target)
    assert value.isfinite().all()
    # Each of 64 terms is rounded to the format, and so is the result.
    torch.testing.assert_close(value.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
