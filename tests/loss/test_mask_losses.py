"""Mask losses: by hand, pairwise against one by one, and MaskFormer's published numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import for_files
from loss.test_golden import sets_of
from torch.testing import assert_close

from m2f_cli.loss import mask_losses as masks

KINDS = ["bce", "dice", "focal"]


def each_with_each(kind: str, logits_QP: torch.Tensor, target_NP: torch.Tensor) -> torch.Tensor:
    logits, target = torch.broadcast_tensors(logits_QP[:, None], target_NP[None])
    return getattr(masks, kind)(logits, target)


def test_losses_equal_those_by_hand():
    logits, target = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    log2 = 0.6931472
    assert_close(masks.bce(logits, target).item(), log2)
    assert_close(masks.dice(logits, target).item(), 1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    assert_close(masks.focal(logits, target).item(), (0.25 * 0.25 * log2 + 0.75 * 0.25 * log2) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_pairwise_equals_one_by_one(kind):
    """Also for logits that would overflow a naive log(1 + exp)."""
    generator = torch.Generator().manual_seed(0)
    logits_QP = torch.randn(5, 40, generator=generator) * 30
    target_NP = (torch.rand(3, 40, generator=generator) < 0.4).float()
    pairwise = getattr(masks, f"pairwise_{kind}")(logits_QP, target_NP)
    one_by_one = each_with_each(kind, logits_QP.double(), target_NP.double())
    assert pairwise.shape == (5, 3)
    assert_close(pairwise.double(), one_by_one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bce", "dice"])
def test_pairwise_with_fractions_at_edges(kind):
    generator = torch.Generator().manual_seed(1)
    logits_QP, target_NP = torch.randn(4, 30, generator=generator), torch.rand(2, 30, generator=generator)
    one_by_one = each_with_each(kind, logits_QP, target_NP)
    assert_close(getattr(masks, f"pairwise_{kind}")(logits_QP, target_NP), one_by_one, atol=2e-6, rtol=2e-6)


def cases_with_targets(info: dict) -> list[str]:
    return [name for name, case in info["cases"].items() if sum(case["masks_per_image"])]


@for_files("08d", each=cases_with_targets)
def test_published_maskformer_costs_and_losses(golden_file):
    """Costs 20·focal + class + dice at nearest-resized targets; losses at bilinearly resized predictions."""
    tensors, case, weights = golden_file.tensors, golden_file.part, golden_file.info["config"]
    for s in sets_of({name.removeprefix(f"{case}/"): x for name, x in tensors.items() if name.startswith(f"{case}/")}):
        suffix = s and "_" + s.split(".")[1]
        logits_BQHW, class_logits_BQK = tensors[f"{case}/in/{s}pred_masks"], tensors[f"{case}/in/{s}pred_logits"]
        focal, dice, count = 0.0, 0.0, 0
        for b in range(len(logits_BQHW)):
            labels, target_NHW = tensors[f"{case}/in/target.{b}.labels"], tensors[f"{case}/in/target.{b}.masks"].float()
            if not len(labels):
                continue
            small_NP = F.interpolate(target_NHW[None], size=logits_BQHW.shape[-2:], mode="nearest")[0].flatten(1)
            logits_QP = logits_BQHW[b].flatten(1)
            cost = weights["cost_mask"] * masks.pairwise_focal(logits_QP, small_NP)
            cost += weights["cost_dice"] * masks.pairwise_dice(logits_QP, small_NP)
            cost -= weights["cost_class"] * class_logits_BQK[b].softmax(-1)[:, labels]
            assert_close(cost, tensors[f"{case}/match/{s}cost.{b}"], atol=2e-5, rtol=1e-5)  # up to 20, sums of 520
            queries, numbers = (tensors[f"{case}/match/{s}{kind}_index.{b}"] for kind in ("query", "target"))
            large = F.interpolate(logits_BQHW[b][queries][None], target_NHW.shape[-2:], mode="bilinear")[0].flatten(1)
            focal += masks.focal(large, target_NHW[numbers].flatten(1)).sum()
            dice += masks.dice(large, target_NHW[numbers].flatten(1)).sum()
            count += len(labels)
        assert_close(focal / count, tensors[f"{case}/loss/loss_mask{suffix}"], atol=1e-6, rtol=5e-6)
        assert_close(dice / count, tensors[f"{case}/loss/loss_dice{suffix}"], atol=1e-6, rtol=5e-6)
