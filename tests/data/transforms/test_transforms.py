"""Augmentation: exact sizes and offsets, the published grids of "nearest", and annotations that stay in place."""

from __future__ import annotations

import itertools
from collections import deque

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.config.schema import Component
from m2f_cli.data.transforms import Sample, augment, build_transforms, geometry
from m2f_cli.data.transforms.color import ColorFactors, ColorJitter
from m2f_cli.data.transforms.crop import DropVanished, FixedCrop, RandomCrop
from m2f_cli.data.transforms.geometry import Cutout, mask_of, nearest_indices
from m2f_cli.data.transforms.pad import Pad
from m2f_cli.data.transforms.resize import Flip, LargeScaleJitter, ResizeChoice
from m2f_cli.errors import ConfigError
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)


class Replay:
    """A generator that gives what the test says, and whose draws the test can count."""

    def __init__(self, *values):
        self.values = deque(values)
        self.ranges = []

    def random(self):
        return self.values.popleft()

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.values.popleft()

    def integers(self, low, high=None, endpoint=False):
        self.ranges.append((0, low) if high is None else (low, high + endpoint))
        return self.values.popleft()


def rng(seed=0):
    return np.random.default_rng(seed)


def plain(height, width, ignore=255):
    """An image whose every pixel says where it is, and labels that say the same."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y % 256, x % 256, (y // 256) * 16 + x // 256], axis=2).astype(np.uint8)
    return Sample(image, SemanticAnnotation((y * width + x).astype(np.int32), ignore=-1 if ignore is None else ignore))


# --- sizes and offsets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "edge", "longest", "expected"),
    [
        ((480, 640), 512, 2048, (512, 683)),  # 682.67
        ((640, 480), 512, 2048, (683, 512)),
        ((1024, 2048), 2048, 4096, (2048, 4096)),
        ((100, 1000), 512, 2048, (205, 2048)),  # the long edge decides: 204.8
        ((400, 610), 1000, 1525, (1000, 1525)),
        ((4, 6), 3, 100, (3, 5)),  # 4.5, half up; half to even would give 4
    ],
)
def test_short_edge_sizes(size, edge, longest, expected):
    step = ResizeChoice([edge], longest)
    assert step(plain(*size), rng()).size == expected
    assert step(plain(*size), rng()).annotation.size == expected


def test_every_short_edge_is_drawn():
    draw = Replay(2)
    assert ResizeChoice([10, 20, 30, 40], 100)(plain(8, 9), draw).size == (30, 34)  # 33.75
    assert draw.ranges == [(0, 4)]


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((480, 640), 1.0, (768, 1024)),
        ((640, 480), 0.1, (102, 77)),  # 102.4 and 76.8
        ((5, 4), 0.01, (10, 8)),  # box 10.24: 10.24 and 8.192
        ((4, 3), 2 / 1024, (2, 2)),  # 2 and 1.5: half to even
        ((8, 5), 4 / 1024, (4, 2)),  # 4 and 2.5: half to even
    ],
)
def test_large_scale_jitter_sizes(size, factor, expected):
    draw = Replay(factor)
    assert LargeScaleJitter(1024, 0.1, 2.0)(plain(*size), draw).size == expected
    assert draw.ranges == [(0.1, 2.0)]


@pytest.mark.parametrize(("rounding", "expected"), [("half_even", (102, 77)), ("down", (102, 76))])
def test_large_scale_jitter_rounds_as_told(rounding, expected):
    step = LargeScaleJitter(1024, 0.1, 2.0, rounding=rounding)
    assert step(plain(640, 480), Replay(0.1)).size == expected  # 102.4 and 76.8


@pytest.mark.parametrize(
    ("size", "u", "top", "left"),
    [
        ((30, 50), 0.5, 7, 17),  # 14 / 2 and 34 / 2
        ((21, 23), 0.5, 2, 4),  # 2.5 and 3.5, half to even
        ((16, 116), 0.999, 0, 100),
        ((10, 36), 0.25, 0, 5),  # higher than the image: no choice there
    ],
)
def test_a_fixed_crop_shares_one_number(size, u, top, left):
    draw, sample = Replay(u), plain(*size)
    cut = FixedCrop(16, 128)(sample, draw)
    height = min(16, size[0])
    assert cut.size == cut.annotation.size == (16, 16)
    assert not draw.values
    np.testing.assert_array_equal(cut.image_HW3[:height], sample.image_HW3[top : top + height, left : left + 16])
    labels = sample.annotation.labels_HW[top : top + height, left : left + 16]
    np.testing.assert_array_equal(cut.annotation.labels_HW[:height], labels)
    assert (cut.image_HW3[height:] == 128).all() and (cut.annotation.labels_HW[height:] == 255).all()


def test_random_crop_reaches_every_place():
    draw = Replay(9, 0)
    cut = RandomCrop(11, 512, 1.0)(plain(20, 30), draw)
    assert draw.ranges == [(0, 10), (0, 1)]  # the upper ends are left out
    assert cut.size == (11, 30)
    assert cut.annotation.labels_HW[0, 0] == 9 * 30


def two_halves():
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[:, 4:] = 1
    labels[:, :1] = 255
    return Sample(np.zeros((8, 8, 3), np.uint8), SemanticAnnotation(labels))


def test_a_crop_that_shows_too_much_of_one_class_is_drawn_again():
    draw = Replay(0, 4, 3, 3, 0, 2)  # one class; 1 of 4 columns is class 0: 75 %, not below; 2 of 4
    cut = RandomCrop(4, 4, 0.75)(two_halves(), draw)
    assert not draw.values
    assert cut.annotation.labels_HW[0].tolist() == [0, 0, 1, 1]


def test_what_is_ignored_counts_for_no_class():
    cut = RandomCrop(4, 4, 0.9)(two_halves(), Replay(0, 0, 1, 1))  # only one class beside the ignored column
    assert cut.annotation.labels_HW[0].tolist() == [0, 0, 0, 1]


def test_ten_tries_then_the_last():
    draw = Replay(*[0, 4] * 9, 2, 4, 3, 3)
    cut = RandomCrop(4, 4, 0.75)(two_halves(), draw)
    assert list(draw.values) == [3, 3]
    assert cut.annotation.labels_HW[0].tolist() == [1, 1, 1, 1]


def test_category_area_of_panoptic_annotation_and_of_objects():
    sample = two_halves()
    ids = np.where(sample.annotation.labels_HW == 255, 0, sample.annotation.labels_HW.astype(np.int32) + 1)
    segments = [AnnotatedSegment(1, 0), AnnotatedSegment(2, 1)]
    cut = RandomCrop(4, 4, 0.75)(Sample(sample.image_HW3, PanopticAnnotation(ids, segments)), Replay(0, 0, 0, 4, 3, 2))
    assert cut.annotation.ids_HW[0].tolist() == [1, 1, 2, 2]
    with pytest.raises(ConfigError, match="category_max_area"):
        RandomCrop(4, 4, 0.75)(Sample(sample.image_HW3, InstanceAnnotation((8, 8), [])), rng())


@pytest.mark.parametrize(
    ("size", "step", "expected"),
    [
        ((5, 7), Pad(value=128, size=16), (16, 16)),
        ((5, 7), Pad(value=128, size=[8, 16]), (8, 16)),
        ((20, 7), Pad(value=128, size=16), (20, 16)),
        ((5, 7), Pad(value=128, divisor=4), (8, 8)),
        ((8, 7), Pad(value=128, size=9, divisor=4), (12, 12)),
    ],
)
def test_pad_fills_right_and_bottom(size, step, expected):
    sample, (height, width) = plain(*size), size
    padded = step(sample, None)
    assert padded.size == padded.annotation.size == expected
    np.testing.assert_array_equal(padded.image_HW3[:height, :width], sample.image_HW3)
    assert (padded.image_HW3[height:] == 128).all() and (padded.image_HW3[:, width:] == 128).all()
    assert (padded.annotation.labels_HW == 255).sum() >= expected[0] * expected[1] - height * width


@pytest.mark.parametrize("step", [Pad(value="mean", size=[16, 20]), FixedCrop(20, "mean")])
def test_padding_with_the_mean_is_left_to_the_batch(step):
    sample = plain(5, 7)
    padded = step(sample, rng())
    assert padded.size == padded.annotation.size == (5, 7)
    assert padded.canvas == ((16, 20) if isinstance(step, Pad) else (20, 20))


# --- image and labels stay together ---------------------------------------------------------------------------------


def painted(height=60, width=90, cell=15):
    """Squares of one colour each, and the same squares as an annotation of every kind."""
    y, x = np.mgrid[:height, :width]
    ids = ((y // cell) * (width // cell) + x // cell + 1).astype(np.int32)
    count = int(ids.max())
    colors = np.stack([np.arange(count + 1) * 7, np.arange(count + 1) * 10, 250 - np.arange(count + 1) * 9], axis=1)
    image = colors.astype(np.uint8)[ids]
    rles = [coco_mask.encode(np.asfortranarray(ids == i, dtype=np.uint8)) for i in range(1, count + 1)]
    corners = [(x[ids == i].min(), y[ids == i].min()) for i in range(1, count + 1)]
    squares = [np.array([(x, y), (x + cell, y), (x + cell, y + cell), (x, y + cell)], dtype=float) for x, y in corners]
    annotations = {
        "panoptic": PanopticAnnotation(ids, [AnnotatedSegment(i, i - 1) for i in range(1, count + 1)]),
        "semantic": SemanticAnnotation((ids - 1).astype(np.uint8)),
        "rle": InstanceAnnotation((height, width), [AnnotatedObject(i, rle) for i, rle in enumerate(rles)]),
        "polygon": InstanceAnnotation(
            (height, width), [AnnotatedObject(i, [square]) for i, square in enumerate(squares)]
        ),
    }
    return image, colors, annotations


def owners(annotation):
    """The number of each pixel's square, -1 for none."""
    if isinstance(annotation, PanopticAnnotation):
        return annotation.ids_HW - 1
    if isinstance(annotation, SemanticAnnotation):
        return np.where(annotation.labels_HW == 255, -1, annotation.labels_HW.astype(int))
    owners_HW = np.full(annotation.size, -1)
    for item in annotation.objects:
        owners_HW[mask_of(item, annotation.size) > 0] = item.label
    return owners_HW


PIPELINES = {
    "large scale jitter": [Flip(0.5), LargeScaleJitter(80, 0.4, 2.0), FixedCrop(80, 128)],
    "resize, crop, flip, pad": [ResizeChoice([40, 55, 97, 131], 180), RandomCrop(64, 80, 1.0), Flip(0.5), Pad(128, 80)],
    "opencv": [ResizeChoice([40, 55, 97, 131], 180, "opencv"), RandomCrop(64, 80, 1.0), Flip(0.5), Pad(128, 80)],
}


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "rle", "polygon"])
@pytest.mark.parametrize("steps", PIPELINES.values(), ids=PIPELINES)
def test_the_annotation_stays_with_its_image(steps, kind):
    image, colors, annotations = painted()
    seen = 0
    for seed in range(12):
        made = augment(Sample(image, annotations[kind]), steps, rng(seed))
        found = owners(made.annotation)
        assert made.size == found.shape == (80, 80)
        inner = cv2.erode((found + 1).astype(np.uint8), np.ones((7, 7))) == cv2.dilate(
            (found + 1).astype(np.uint8), np.ones((7, 7))
        )
        seen += inner.sum()
        expected = np.where(found[..., None] < 0, 128, colors[found + 1])
        np.testing.assert_allclose(made.image_HW3[inner].astype(int), expected[inner], atol=1)
    assert seen > 12 * 500


def test_all_kinds_of_annotation_agree():
    image, _, annotations = painted()
    for seed, steps in itertools.product(range(8), PIPELINES.values()):
        made = {
            kind: owners(augment(Sample(image, annotation), steps, rng(seed)).annotation)
            for kind, annotation in annotations.items()
        }
        np.testing.assert_array_equal(made["rle"], made["panoptic"])
        assert (made["semantic"] != made["panoptic"]).mean() < 0.05  # another grid of "nearest"
        assert (made["polygon"] != made["panoptic"]).mean() < 0.12  # borders are rounded in another way


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "rle", "polygon"])
def test_flipping_twice_is_nothing(kind):
    image, _, annotations = painted()
    once = Flip(1.0)(Sample(image, annotations[kind]), rng())
    np.testing.assert_array_equal(once.image_HW3, image[:, ::-1])
    np.testing.assert_array_equal(owners(once.annotation), owners(annotations[kind])[:, ::-1])
    twice = Flip(1.0)(once, rng())
    np.testing.assert_array_equal(twice.image_HW3, image)
    np.testing.assert_array_equal(owners(twice.annotation), owners(annotations[kind]))


def test_flip_happens_below_its_probability():
    sample = plain(2, 3)
    flipped = [Flip(0.25)(sample, Replay(u)).image_HW3[0, 0, 1] == 2 for u in (0.0, 0.2499, 0.25, 0.9)]
    assert flipped == [True, True, False, False]


def test_a_step_leaves_its_input_alone():
    image, _, annotations = painted()
    for steps in PIPELINES.values():
        before = image.copy(), owners(annotations["panoptic"]).copy()
        augment(Sample(image, annotations["panoptic"]), [*steps, ColorJitter(32, (0.5, 1.5), (0.5, 1.5), 18)], rng(3))
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(owners(annotations["panoptic"]), before[1])


# --- resampling -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 200), st.integers(1, 200))
def test_nearest_is_that_of_each_library(height, width, new_height, new_width):
    plane = np.arange(height * width, dtype=np.int32).reshape(height, width)
    size = new_height, new_width
    expected = {
        "pillow": np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.NEAREST)),
        "opencv": cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST),
    }
    for grid, theirs in expected.items():
        np.testing.assert_array_equal(geometry.scale((height, width), size, grid).plane(plane, -1), theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_torchs_nearest_but_for_its_rounding(old, new):
    ours = nearest_indices(old, new, "torch")
    theirs = F.interpolate(torch.arange(old).double()[None, None, None], size=(2, new))[0, 0, 0].long().numpy()
    rounded = ours != theirs
    np.testing.assert_array_equal(ours[rounded] - theirs[rounded], 1)
    assert (np.flatnonzero(rounded) * old % new == 0).all()


def test_the_grids_differ():
    assert nearest_indices(4, 2, "pillow").tolist() == [1, 3]
    assert nearest_indices(4, 2, "torch").tolist() == nearest_indices(4, 2, "opencv").tolist() == [0, 2]


def test_which_grid_and_which_bilinear():
    image = rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    ids = np.arange(2400, dtype=np.int32).reshape(40, 60)
    as_panoptic = ResizeChoice([17], 100)(Sample(image, PanopticAnnotation(ids, [])), rng())
    as_semantic = ResizeChoice([17], 100)(Sample(image, SemanticAnnotation(ids, -1)), rng())
    as_opencv = ResizeChoice([17], 100, "opencv")(Sample(image, SemanticAnnotation(ids, -1)), rng())
    size = (26, 17)
    pillow = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(as_panoptic.image_HW3, pillow)
    np.testing.assert_array_equal(as_semantic.image_HW3, pillow)
    np.testing.assert_array_equal(as_opencv.image_HW3, cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    np.testing.assert_array_equal(as_panoptic.annotation.ids_HW, np.asarray(Image.fromarray(ids).resize(size, 0)))
    rows, columns = np.arange(17) * 40 // 17, np.arange(26) * 60 // 26
    np.testing.assert_array_equal(as_semantic.annotation.labels_HW, ids[rows][:, columns])


# --- objects ----------------------------------------------------------------------------------------------------------


def test_polygons_move_as_polygons():
    square = np.array([(10, 20), (30, 20), (30, 40), (10, 40)], dtype=float)
    sample = Sample(np.zeros((50, 100, 3), np.uint8), InstanceAnnotation((50, 100), [AnnotatedObject(0, [square])]))

    def after(step, *draws):
        return step(sample, Replay(*draws)).annotation.objects[0].shape[0]

    np.testing.assert_array_equal(after(Flip(1.0), 0.0), square * (-1, 1) + (100, 0))
    np.testing.assert_array_equal(after(ResizeChoice([75], 1000), 0), square * 1.5)
    np.testing.assert_array_equal(after(ResizeChoice([33], 1000), 0), square * (66 / 100, 33 / 50))
    assert geometry.polygon_area(after(RandomCrop(25, 25, 1.0), 0, 0)) == 15 * 5
    assert geometry.polygon_area(after(RandomCrop(30, 15, 1.0), 20, 20)) == 10 * 20


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_clipped_polygons_show_what_was_in_the_window(seed, corners):
    draw = rng(seed)
    polygon = draw.uniform(0, 60, (corners, 2)).round()
    top, left = (int(v) for v in draw.integers(0, 30, 2))
    whole = mask_of(AnnotatedObject(0, [polygon]), (60, 60))[top : top + 30, left : left + 30]
    clipped = geometry.window(top, left, 30, 30).points(polygon)
    shown = mask_of(AnnotatedObject(0, [clipped] if len(clipped) else []), (30, 30))
    edges = cv2.dilate(whole, np.ones((3, 3))) != cv2.erode(whole, np.ones((3, 3)))
    # Slivers thinner than a pixel are rounded in another way once their ends are cut off: 2 pixels in 3000 polygons.
    assert ((shown != whole) & ~edges)[1:-1, 1:-1].sum() <= 4
    assert not len(clipped) or (clipped.min() >= 0 and clipped.max() <= 30)


def test_what_was_cut_off_does_not_return_in_the_padding():
    square = np.array([(0, 0), (40, 0), (40, 40), (0, 40)], dtype=float)
    sample = Sample(np.zeros((40, 40, 3), np.uint8), InstanceAnnotation((40, 40), [AnnotatedObject(0, [square])]))
    made = augment(sample, [RandomCrop(10, 10, 1.0), Pad(128, 30)], rng())
    assert mask_of(made.annotation.objects[0], (30, 30)).sum() == 100


def test_cutouts_are_as_small_as_their_object():
    mask = np.zeros((100, 200), np.uint8)
    mask[10:14, 150:160] = 1
    cutout = Cutout.of(mask)
    assert (cutout.top, cutout.left, cutout.mask_hw.shape) == (10, 150, (4, 10))
    np.testing.assert_array_equal(cutout.paste((100, 200)), mask)
    mirrored = geometry.mirror((100, 200)).cutout(cutout)
    assert (mirrored.top, mirrored.left, mirrored.mask_hw.shape) == (10, 40, (4, 10))
    gone = geometry.window(50, 0, 50, 200).cutout(cutout)
    assert gone.mask_hw.size == 0 and not gone.paste((50, 200)).any()
    assert not geometry.scale((50, 200), (100, 100), "pillow").cutout(gone).paste((100, 100)).any()


def test_vanished_objects_leave_only_when_told():
    kept = np.array([(0, 0), (20, 0), (20, 20), (0, 20)], dtype=float)
    outside = kept + 30
    around_the_corner = np.array([(-5, 25), (5, 25), (30, 25), (30, -5), (35, -5), (35, 30), (-5, 30)], dtype=float)
    far_mask = np.zeros((60, 60), np.uint8)
    far_mask[50:] = 1
    far = coco_mask.encode(np.asfortranarray(far_mask))
    shapes = [[kept], [outside], [around_the_corner], far, [outside, kept]]
    annotation = InstanceAnnotation((60, 60), [AnnotatedObject(i, shape) for i, shape in enumerate(shapes)])
    sample = RandomCrop(20, 20, 1.0)(Sample(np.zeros((60, 60, 3), np.uint8), annotation), Replay(0, 0))
    assert [item.label for item in sample.annotation.objects] == [0, 1, 2, 3, 4]
    assert [item.label for item in DropVanished()(sample, None).annotation.objects] == [0, 4]


def test_segments_without_pixels_are_dropped():
    ids = np.array([[1, 1], [0, 3]], dtype=np.int32)
    annotation = PanopticAnnotation(ids, [AnnotatedSegment(1, 5), AnnotatedSegment(2, 6), AnnotatedSegment(3, 7)])
    dropped = DropVanished()(Sample(np.zeros((2, 2, 3), np.uint8), annotation), None)
    assert [segment.id for segment in dropped.annotation.segments] == [1, 3]


def test_uncompressed_run_lengths_are_read():
    item = AnnotatedObject(0, {"size": [2, 3], "counts": [1, 2, 3]})  # columns first
    assert mask_of(item, (2, 3)).tolist() == [[0, 1, 0], [1, 0, 0]]


# --- colours ----------------------------------------------------------------------------------------------------------


def slow_ssd(image_rgb, coins, order, brightness, contrast, saturation, hue):
    """The published steps, one by one, in BGR as they are published."""
    image = image_rgb[:, :, ::-1].copy()

    def cut(values):
        return np.clip(values, 0, 255).astype(np.uint8)

    def contrasted(image):
        return cut(image.astype(np.float32) * np.float32(contrast)) if coins["contrast"] else image

    def saturated(image):
        if not coins["saturation"]:
            return image
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = cut(hsv[:, :, 1].astype(np.float32) * np.float32(saturation))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def turned(image):
        if not coins["hue"]:
            return image
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + hue) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    if coins["brightness"]:
        image = cut(image.astype(np.float32) + np.float32(brightness))
    for change in [contrasted, saturated, turned] if order else [saturated, turned, contrasted]:
        image = change(image)
    return image[:, :, ::-1]


@pytest.mark.parametrize("order", [True, False], ids=["contrast first", "contrast last"])
@pytest.mark.parametrize("which", [*itertools.product([True, False], repeat=4)])
def test_colour_jitter_is_the_published_one(which, order):
    coins = dict(zip(("brightness", "contrast", "saturation", "hue"), which, strict=True))
    values = {"brightness": -21.7, "contrast": 1.37, "saturation": 0.61, "hue": -13}
    image = rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    drawn = {name: [0.49, values[name]] if coins[name] else [0.5] for name in coins}
    later = ["contrast", "saturation", "hue"] if order else ["saturation", "hue", "contrast"]
    draws = [*drawn["brightness"], 0.49 if order else 0.5, *itertools.chain(*(drawn[name] for name in later))]
    replay = Replay(*draws)
    made = ColorJitter(32, (0.5, 1.5), (0.5, 1.5), 18)(Sample(image, SemanticAnnotation(image[..., 0])), replay)
    assert not replay.values
    np.testing.assert_array_equal(made.image_HW3, slow_ssd(image, coins, order, **values))
    assert set(replay.ranges) <= {(-32, 32), (0.5, 1.5), (-18, 19)}  # 18 itself can be drawn
    assert made.annotation.labels_HW is not None and len(replay.ranges) == sum(which)


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("which", list(itertools.product([True, False], repeat=4))[::3])
def test_color_factors_are_torchvisions_in_the_drawn_order(which, contrast_first):
    from torchvision.transforms.v2 import functional as tv

    image, *_ = painted()
    values = {"brightness": 1.1, "contrast": 0.6, "saturation": 1.4, "hue": -0.03}
    drawn = {
        name: (0.2, values[name]) if on else (0.5,)  # the coin says yes below 0.5
        for name, on in zip(values, which, strict=True)
    }
    later = ("contrast", "saturation", "hue") if contrast_first else ("saturation", "hue", "contrast")
    draws = [*drawn["brightness"], 0.49 if contrast_first else 0.5, *itertools.chain(*(drawn[name] for name in later))]
    replay = Replay(*draws)
    step = ColorFactors((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), 0.05)
    made = step(Sample(image, SemanticAnnotation(image[..., 0])), replay)
    expected = torch.from_numpy(image).permute(2, 0, 1)
    for name in ("brightness", *later):
        if len(drawn[name]) == 2:
            expected = getattr(tv, f"adjust_{name}")(expected, values[name])
    assert not replay.values and set(replay.ranges) <= {(0.875, 1.125), (0.5, 1.5), (-0.05, 0.05)}
    np.testing.assert_array_equal(made.image_HW3, expected.permute(1, 2, 0).numpy())
    assert made.image_HW3.dtype == np.uint8


# --- from a configuration ---------------------------------------------------------------------------------------------


def test_steps_from_a_configuration():
    components = [
        Component(name="flip", p=0.5),
        Component(name="crop", height=3, width=4, category_max_area=1.0),
        Component(name="color_jitter", brightness=32, contrast=[0.5, 1.5], saturation=[0.5, 1.5], hue=18),
        Component(name="pad", size=[8, 9], value="mean"),
        Component(name="drop_vanished"),
    ]
    first, second, third, fourth, _ = steps = build_transforms(components)
    assert (first, second, fourth) == (Flip(0.5), RandomCrop(3, 4, 1.0), Pad("mean", [8, 9]))
    made = augment(plain(20, 20), steps, rng())
    assert made.size == (3, 4) and made.canvas == (8, 9) and third.hue == 18


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ({"name": "flop", "p": 0.5}, "flip"),
        ({"name": "flip"}, "'p'"),
        ({"name": "flip", "p": 0.5, "vertical": True}, "vertical"),
        ({"name": "flip", "p": 1.5}, "1.5"),
        ({"name": "resize_choice", "short_edges": [], "max_edge": 9}, "empty"),
        ({"name": "resize_choice", "short_edges": [8], "max_edge": 9, "resampling": "cubic"}, "cubic"),
        ({"name": "fixed_crop", "size": 8, "pad_value": 256}, "256"),
        ({"name": "pad", "size": 8, "value": "black"}, "black"),
        ({"name": "crop", "height": 8, "width": 8, "category_max_area": 0}, "category_max_area = 0"),
        ({"name": "large_scale_jitter", "size": 8, "min_scale": 2.0, "max_scale": 1.0}, "in order"),
        (
            {"name": "large_scale_jitter", "size": 8, "min_scale": 1, "max_scale": 1, "rounding": "up"},
            "half_even or down",
        ),
        ({"name": "color_jitter", "brightness": 1, "contrast": [2, 1], "saturation": [1, 1], "hue": 0}, "contrast"),
        (
            {"name": "color_factors", "brightness": [1, 1], "contrast": [1, 1], "saturation": [1, 1], "hue": 1},
            "hue = 1",
        ),
    ],
)
def test_a_step_that_makes_no_sense_is_one_sentence(component, says):
    with pytest.raises(ConfigError, match=says):
        build_transforms([Component(**component)])


@pytest.mark.parametrize(
    "step",
    [
        {"name": "fixed_crop", "size": 0.1, "pad_value": 0},
        {"name": "crop", "height": 8.5, "width": 8, "category_max_area": 1.0},
        {"name": "sometimes_crop", "p": 0.5, "short_edges": [8, 9.5], "min_size": 4, "max_size": 8},
        {"name": "color_jitter", "brightness": 3, "contrast": [1, 2], "saturation": [1, 2], "hue": 1.5},
        {"name": "large_scale_jitter", "size": [8], "min_scale": 1, "max_scale": 2},
    ],
)
def test_an_option_of_another_type_is_refused(step):
    with pytest.raises(ConfigError, match=f"The augmentation step {step['name']} makes no sense: "):
        build_transforms([Component(**step)])
