"""MaskFormer's post-processing against the published results (golden fixture 08e), and that of per-pixel models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.golden_files import images_of, params, read
from inference.test_postprocess import Published, rendered

from m2f_cli.inference import postprocess
from m2f_cli.inference.mask_rendering import MaskLogits
from m2f_cli.structures.categories import Category

CATEGORIES = tuple(Category(i + 1, f"class{i}", i < 3, (i, 0, 0)) for i in range(5))


@pytest.fixture(params=params("08e", each=images_of))
def published(request):
    return Published(read(*request.param))


def panoptic(published, **options):
    return postprocess.panoptic(
        published.class_logits, published.masks, published.categories, **published.thresholds, **options
    )


def test_panoptic_is_the_published_map(published):
    result = panoptic(published, only_sure_pixels=False)
    published.assert_same(result.ids_HW, published.results["all"]["panoptic_seg"].numpy())
    things = {i for i, category in enumerate(published.categories) if category.isthing}
    ours = [{"id": s.id, "isthing": s.label in things, "category_id": s.label} for s in result.segments]
    assert ours == published.segments
    assert [s.area for s in result.segments] == [int((result.ids_HW == s.id).sum()) for s in result.segments]


def test_mask2formers_rule_is_another(published):
    """What no segment is sure of stays void there: the same segments, fewer pixels."""
    ids_HW = panoptic(published).ids_HW
    theirs = published.results["all"]["panoptic_seg"].numpy()
    unsure = (rendered(published.masks) < 0).all(0).numpy() & (theirs > 0)
    assert (ids_HW == 0).sum() > (theirs == 0).sum() or not unsure.any()
    published.assert_same(np.where(ids_HW > 0, ids_HW, theirs), theirs)


@pytest.mark.parametrize("kind", ["all", "semantic_only"])
def test_semantic_scores_are_the_published_ones(published, kind):
    scores = postprocess.semantic_scores(published.class_logits, published.masks, resize_scores=kind == "semantic_only")
    expected = published.results[kind]["sem_seg"]
    torch.testing.assert_close(scores(0, published.masks.size[0]), expected, atol=5e-5, rtol=1e-5)


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
    result = postprocess.semantic(classes_QK, masks, CATEGORIES, **options)
    assert (result.labels_HW == expected.argmax(0).numpy()).mean() > 0.999
    assert len(np.unique(result.labels_HW)) == 5
