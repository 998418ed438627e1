"""Test-time augmentation: the published rule against a plain restatement, and ours on things that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_segmenter import random_image, small_segmenter
from PIL import Image
from pydantic import ValidationError

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import TtaConfig
from m2f_cli.errors import ConfigError
from m2f_cli.inference import postprocess
from m2f_cli.inference.base import RawOutput
from m2f_cli.inference.mask_rendering import MaskLogits
from m2f_cli.inference.merge_views import merge_views
from m2f_cli.inference.tta import with_tta
from m2f_cli.results.types import Instances, PanopticMap
from m2f_cli.structures.categories import from_names

PAPER, MMSEG = "ade20k-r50-paper", "ade20k-r50"
CATEGORIES = from_names(["cat", "dog", "sky"], things=["cat", "dog"])


def published(segmenter, image, sizes, max_edge, *, flip=True):
    """detectron2's way as docs/methods/published-behaviour.md#2-2 and #5-1 tell it: resized to the test size, resized
    again by Pillow, each size plain and then mirrored, class scores at the image's size, mirrored back, summed,
    divided by their number."""
    height, width = image.shape[:2]
    test = segmenter.config.test.resize
    base = resize_shortest(Image.fromarray(image), test.short_edge, test.max_edge)
    total, count = None, 0
    for size in sizes:
        once_more = np.asarray(resize_shortest(base, size, max_edge))
        for mirrored in (False, True) if flip else (False,):
            pixels = once_more[:, ::-1].copy() if mirrored else once_more
            scores = semantic_scores(segmenter, pixels, (height, width))
            scores = scores.flip(2) if mirrored else scores
            total, count = scores if total is None else total + scores, count + 1
    return total / count


def resize_shortest(image, short, longest):
    width, height = image.size
    scale = short / min(height, width)
    if max(height, width) * scale > longest:
        scale = longest / max(height, width)
    return image.resize((int(width * scale + 0.5), int(height * scale + 0.5)), Image.Resampling.BILINEAR)


@torch.inference_mode()
def semantic_scores(segmenter, pixels_HWC, size):
    """docs/methods/published-behaviour.md#5-1, steps 2 to 4, of a semantic model."""
    mean, std = torch.tensor(segmenter.config.input.mean), torch.tensor(segmenter.config.input.std)
    image = ((torch.from_numpy(np.array(pixels_HWC)).float() - mean) / std).permute(2, 0, 1)[None]
    height, width = pixels_HWC.shape[:2]
    divisor = max(1, segmenter.config.test.size_divisor)
    padded = F.pad(image, (0, -width % divisor, 0, -height % divisor))
    prediction = segmenter.model(padded)
    logits = prediction.render(tuple(padded.shape[-2:]))[0]
    probs = prediction.last.class_logits_BQK[0].softmax(-1)[:, :-1]
    scores = torch.einsum("qk,qhw->khw", probs, logits.sigmoid())[:, :height, :width]
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("size", [(40, 61), (90, 64), (20, 200)])
def test_semantic_as_published(size):
    """Six sizes, mirrored; the last image meets both limits on long edges."""
    segmenter = small_segmenter(PAPER, "test.tta.short_edges=[32, 48, 64, 80, 96, 112]", "test.tta.max_edge=250")
    image = random_image(*size)
    expected = published(segmenter, image, (32, 48, 64, 80, 96, 112), 250)
    augmented = with_tta(segmenter)
    [raw] = augmented.infer([augmented.prepare(image)])
    scores = augmented.semantic_scores(raw)(0, size[0])
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-5)
    labels = augmented.finish(raw, "semantic").labels_HW
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.9 and np.array_equal(labels[clear], expected.argmax(0).numpy()[clear])
    single = segmenter(image, "semantic").labels_HW
    assert (single != labels).any(), "twelve views are not one"


def test_views_are_the_published_pixels():
    """Resized twice, each with Pillow; mirrored after that; sizes in their order, plain before mirrored."""
    segmenter = small_segmenter(PAPER, "test.tta.short_edges=[48, 80]", "test.tta.max_edge=250")
    image = random_image(50, 75)
    views = with_tta(segmenter).prepare(image)
    base = resize_shortest(Image.fromarray(image), 64, 100)
    assert base.size == (96, 64)
    assert [view.flipped for view in views] == [False, True, False, True]
    for i, edge in enumerate((48, 80)):
        pixels = np.asarray(resize_shortest(base, edge, 250))
        assert np.array_equal(views[2 * i].data.pixels_CHW.permute(1, 2, 0).numpy(), pixels)
        assert np.array_equal(views[2 * i + 1].data.pixels_CHW.permute(1, 2, 0).numpy(), pixels[:, ::-1])
    assert {view.data.size for view in views} == {(50, 75)}


def test_mmsegmentation_resizes_the_image_and_takes_a_softmax():
    segmenter = small_segmenter(MMSEG)
    plan = segmenter.config.test.tta
    assert plan.of == "picture" and plan.softmax and segmenter.config.test.resize.resampling == "opencv"
    image = random_image(60, 84)
    augmented = with_tta(segmenter)
    views = augmented.prepare(image)
    sizes = [(30, 42), (45, 63), (60, 84), (75, 105), (90, 126), (105, 147)]
    assert [tuple(view.data.pixels_CHW.shape[1:]) for view in views] == [size for size in sizes for _ in range(2)]
    assert np.array_equal(views[4].data.pixels_CHW.permute(1, 2, 0).numpy(), image), "1.0 is the image itself"
    total = torch.zeros(6, 60, 84)
    for view in views:
        scores = semantic_scores(segmenter, view.data.pixels_CHW.permute(1, 2, 0).numpy(), (60, 84)).softmax(0)
        total += scores.flip(2) if view.flipped else scores
    scores = augmented.semantic_scores(augmented.infer([views])[0])(0, 60)
    torch.testing.assert_close(scores, total / 12, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "task"),
    [
        (PAPER, "semantic"),
        ("coco-panoptic-r50", "panoptic"),
        ("coco-panoptic-r50", "instance"),
        ("coco-panoptic-r50", "semantic"),
    ],
)
def test_one_view_of_the_test_size_is_the_plain_result(preset, task):
    segmenter = small_segmenter(preset)
    image, options = random_image(50, 70), {"object_threshold": 0.0, "score_threshold": 0.0}
    one = with_tta(segmenter, sizes=[64], flip=False)(image, task, **options)
    plain = segmenter(image, task, **options)
    if task == "instance":
        assert len(one) and one.rles == plain.rles and np.array_equal(one.scores_N, plain.scores_N)
    elif task == "panoptic":
        assert np.array_equal(one.ids_HW, plain.ids_HW) and one.segments == plain.segments
    else:
        assert np.array_equal(one.labels_HW, plain.labels_HW)


def test_sizes_flip_and_defaults():
    published_sizes = {
        "ade20k-swin-t-paper": ((256, 384, 512, 640, 768, 896), 3584),
        "ade20k-swin-l-paper": ((320, 480, 640, 800, 960, 1120), 4480),
        "cityscapes-swin-t-paper": ((512, 768, 1024, 1280, 1536, 1792), 4096),
        "maskformer-ade20k-r50": ((256, 384, 512, 640, 768, 896), 3584),
        "maskformer-coco-stuff-10k-r50": ((320, 480, 640, 800, 960, 1120), 4480),
    }
    for name, (edges, limit) in published_sizes.items():
        plan = configuration.load(name).test.tta
        assert (plan.short_edges, plan.max_edge, plan.of, plan.flip) == (edges, limit, "test_size", True)
    for name in ("coco-panoptic-r50", "mapillary-vistas-semantic-r50"):
        assert configuration.load(name).test.tta is None
    segmenter = small_segmenter("coco-panoptic-r50")
    image = random_image(64, 80)
    assert len(with_tta(segmenter).prepare(image)) == 6
    shapes = [tuple(v.data.pixels_CHW.shape[1:]) for v in with_tta(segmenter, flip=False).prepare(image)]
    assert shapes == [(48, 60), (64, 80), (80, 100)]
    shapes = [tuple(v.data.pixels_CHW.shape[1:]) for v in with_tta(segmenter, sizes=[128], flip=False).prepare(image)]
    assert shapes == [(128, 160)], "the limit of 100 at size 64 has grown with the size"
    assert "6 views" in with_tta(segmenter).notes[-1]


@pytest.mark.parametrize("sizes", [[], [0], [64, -1]])
def test_sizes_below_one_pixel_are_refused(sizes):
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        with_tta(small_segmenter(), sizes=sizes)


@pytest.mark.parametrize("plan", [{}, {"short_edges": [64], "scales": [1.0]}, {"scales": [0.0]}, {"short_edges": [-5]}])
def test_plans_that_contradict_themselves_are_refused(plan):
    with pytest.raises(ValidationError, match=r"either short_edges or scales|above 0"):
        TtaConfig(**plan)


def test_tta_around_tta_is_refused():
    with pytest.raises(ConfigError, match="directly around a model"):
        with_tta(with_tta(small_segmenter()))


# --- panoptic and instance: ours --------------------------------------------------------------------------------------


def view(masks_QHW, classes, *, mirrored=False, sure=0.95):
    """A network's answer in which query i has a given mask and class (None: no object)."""
    logits = torch.where(torch.as_tensor(np.array(masks_QHW)), 4.0, -4.0)
    logits = logits.flip(-1) if mirrored else logits
    size = tuple(logits.shape[1:])
    probs = torch.full((len(classes), 4), (1 - sure) / 3)
    for i, label in enumerate(classes):
        probs[i, 3 if label is None else label] = sure
    masks = MaskLogits(torch.eye(len(classes)), logits, size, size, size)
    return RawOutput(probs.log(), masks), mirrored


def boxes(*sides, size=(24, 32)):
    masks = np.zeros((len(sides), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, sides, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def run_panoptic(raw, threshold=0.8):
    return postprocess.panoptic(
        raw.class_logits_QK, raw.masks, CATEGORIES, object_threshold=threshold, overlap_threshold=0.8
    )


CAT, DOG, SKY = (2, 3, 12, 10), (10, 14, 22, 30), (0, 0, 24, 32)


def test_views_that_agree_change_nothing():
    masks = boxes(CAT, DOG)
    views = [view(masks, [0, 1]), view(masks[::-1].copy(), [1, 0], mirrored=True), view(masks, [0, 1])]
    merged, alone = merge_views(views), views[0][0]
    assert len(merged.class_logits_QK) == 2
    torch.testing.assert_close(merged.class_logits_QK.softmax(-1), alone.class_logits_QK.softmax(-1))
    found, plain = run_panoptic(merged), run_panoptic(alone)
    assert np.array_equal(found.ids_HW, plain.ids_HW)
    assert [(s.label, s.area) for s in found.segments] == [(0, 70), (1, 192)]
    objects = [
        postprocess.instances(raw.class_logits_QK, raw.masks, CATEGORIES, top_k=2, only_things=True)
        for raw in (merged, alone)
    ]
    assert objects[0].rles == objects[1].rles
    np.testing.assert_allclose(objects[0].scores_N, objects[1].scores_N, rtol=1e-4)


def test_masks_are_averaged_and_get_better():
    """Every view errs at other pixels; the mean errs less than the best of them."""
    annotation = boxes((4, 6, 20, 26))
    generator = np.random.default_rng(0)
    noisy = [annotation ^ (generator.random(annotation.shape) < 0.12) for _ in range(5)]
    merged = merge_views([view(masks, [0], mirrored=bool(i % 2)) for i, masks in enumerate(noisy)])
    found = run_panoptic(merged).ids_HW > 0

    def iou(mask):
        return (mask & annotation[0]).sum() / (mask | annotation[0]).sum()

    assert iou(found) > 0.95 > 0.85 > max(iou(masks[0]) for masks in noisy)


def test_an_object_that_the_first_view_missed_is_found_and_a_ghost_is_not():
    both, cat, ghost = boxes(CAT, DOG), boxes(CAT, (0, 0, 0, 0)), boxes(CAT, DOG, (18, 0, 24, 8))
    views = [view(cat, [0, None]), view(ghost, [0, 1, 1]), view(both, [0, 1]), view(both, [0, 1])]
    found = run_panoptic(merge_views(views))
    assert sorted((s.label, s.area) for s in found.segments) == [(0, 70), (1, 192)]
    scores = merge_views(views).class_logits_QK.softmax(-1)[:, :2].max(-1).values.tolist()
    assert sorted(round(score, 3) for score in scores if score > 0.3) == [round(0.95 / 2, 3), 0.95, 0.95], (
        "seen by one view of four: half the score; by three of four: the whole"
    )


def test_views_that_disagree_about_the_class_share_the_score():
    masks = boxes(CAT)
    merged = merge_views([view(masks, [0]), view(masks, [1])])
    probs = merged.class_logits_QK.softmax(-1)[0]
    assert len(merged.class_logits_QK) == 1 and probs[0] == pytest.approx(float(probs[1])) and probs[0] < 0.5


def test_stacked_things_of_two_classes_stay_apart():
    """A cat on a dog's place: one mask, two classes; the queries change places between the views."""
    masks = boxes(CAT, CAT)
    merged = merge_views([view(masks, [0, 1]), view(masks, [1, 0])])
    assert merged.class_logits_QK.softmax(-1).max(-1).values.tolist() == pytest.approx([0.95, 0.95])


def test_a_small_image_and_nothing_at_all():
    nothing = view(boxes((0, 0, 0, 0), size=(1, 3)), [None])
    result = run_panoptic(merge_views([nothing, nothing]))
    assert result.segments == [] and not result.ids_HW.any()


@pytest.mark.parametrize(("task", "kind"), [("panoptic", PanopticMap), ("instance", Instances)])
def test_a_real_network_twice_the_same(task, kind):
    augmented = with_tta(small_segmenter("coco-panoptic-r50"))
    options = {"object_threshold": 0.0, "score_threshold": 0.0}
    first, again = (augmented(random_image(50, 300), task, **options) for _ in range(2))
    assert isinstance(first, kind) and first.size == (50, 300)
    if task == "panoptic":
        assert first.segments and np.array_equal(first.ids_HW, again.ids_HW)
    else:
        assert len(first) and first.rles == again.rles and np.array_equal(first.scores_N, again.scores_N)
