"""MaskFormer's post-processing against the published results (golden fixture 08e), and that of per-pixel models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parts import weights_of

from m2f_cli.inference import postprocess
from m2f_cli.inference.masks import MaskLogits
from m2f_cli.types import Category

CATEGORIES = tuple(Category(i + 1, f"class{i}", i < 3, (i, 0, 0)) for i in range(6))
THRESHOLDS = {"object_threshold": 0.8, "overlap_threshold": 0.8}


@pytest.fixture(params=[0, 1], ids=["image0", "image1"])
def published(request, golden):
    """One picture of fixture 08e: its raw outputs as `MaskLogits` and its published results."""
    fixture, i = golden("08e_maskformer_full_swin"), request.param
    logits_QHW = fixture.tensors["out/pred_masks"][i]
    masks = MaskLogits(
        embeds_QC=torch.eye(len(logits_QHW)), features_CHW=logits_QHW,
        padded=tuple(fixture.tensors["mid/padded_normalised_batch"].shape[-2:]),
        valid=tuple(fixture.info["image_sizes"][i]), size=tuple(fixture.info["target_sizes_hw"][i]),
    )
    results = {kind: weights_of(fixture.tensors, f"post/{kind}.{i}.") for kind in ("all", "semantic_only")}
    return fixture.tensors["out/pred_logits"][i], masks, results, fixture.info["segments_info"][i]


def test_panoptic_is_the_published_map(published):
    class_logits, masks, results, segments_info = published
    result = postprocess.panoptic(class_logits, masks, CATEGORIES, **THRESHOLDS, only_sure_pixels=False)
    assert np.array_equal(result.ids_HW, results["all"]["panoptic_seg"].numpy())
    ours = [{"id": s.id, "isthing": s.label < 3, "category_id": s.label} for s in result.segments]
    assert ours == segments_info
    assert [s.area for s in result.segments] == [int((result.ids_HW == s.id).sum()) for s in result.segments]


def test_mask2formers_rule_is_another(published):
    """What no segment is sure of stays void there: the same segments, fewer pixels."""
    class_logits, masks, results, _ = published
    ids_HW = postprocess.panoptic(class_logits, masks, CATEGORIES, **THRESHOLDS).ids_HW
    theirs = results["all"]["panoptic_seg"].numpy()
    assert (ids_HW == 0).sum() > (theirs == 0).sum()
    assert np.array_equal(ids_HW[ids_HW > 0], theirs[ids_HW > 0])


@pytest.mark.parametrize("kind", ["all", "semantic_only"])
def test_semantic_scores_are_the_published_ones(published, kind):
    class_logits, masks, results, _ = published
    scores = postprocess.semantic_scores(class_logits, masks, resize_scores=kind == "semantic_only")
    torch.testing.assert_close(scores(0, masks.size[0]), results[kind]["sem_seg"], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("resize_scores", [True, False])
def test_classes_of_pixels_are_those_of_the_highest_logit(resize_scores):
    """Also where the probabilities of several logits are all 1."""
    generator = torch.Generator().manual_seed(0)
    logits_QHW = 60 + 20 * torch.randn(5, 6, 7, generator=generator)
    masks = MaskLogits(torch.eye(5), logits_QHW, padded=(24, 28), valid=(23, 25), size=(40, 51))
    classes_QK = 1e4 * (torch.eye(5, 6) - 1)
    full = F.interpolate(logits_QHW[None], size=(24, 28), mode="bilinear", align_corners=False)[..., :23, :25]
    expected = F.interpolate(full, size=(40, 51), mode="bilinear", align_corners=False)[0]
    options = {"resize_scores": resize_scores, "of_logits": True}
    scores = postprocess.semantic_scores(classes_QK, masks, **options)(0, 40)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-6)
    result = postprocess.semantic(classes_QK, masks, CATEGORIES[:5], **options)
    assert (result.labels_HW == expected.argmax(0).numpy()).mean() > 0.999
    assert len(np.unique(result.labels_HW)) == 5
