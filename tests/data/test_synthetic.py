"""Generated scenes: the same everywhere, masks that are a partition, and an image that shows what the masks say."""

from __future__ import annotations

import itertools
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli.data.synthetic import scenes as synthetic
from m2f_cli.data.synthetic.scenes import CATEGORIES, LABELS, STUFF, THINGS, scene
from m2f_cli.errors import ConfigError

THINGS_LABELS = {LABELS[name] for name in THINGS}


def checksums(made):
    return zlib.crc32(made.image_HW3.tobytes()), zlib.crc32(made.ids_HW.astype("<i4").tobytes())


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((0,), {}, (2187166188, 4237726677)),
        ((7, 97, 131), {"difficulty": 1.0}, (3472196027, 3811123267)),
        ((3, 700, 500), {"objects": (20, 20)}, (3817405431, 608668008)),
    ],
)
def test_the_same_image_on_every_platform(arguments, options, expected):
    """Computed with OpenCV 4.10 and 5.0. If a change of the drawing is meant, put the new numbers here."""
    assert checksums(scene(*arguments, **options)) == expected


def test_each_seed_gives_another_scene():
    assert len({checksums(scene(seed, 48, 64)) for seed in range(20)}) == 20


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    height=st.integers(16, 150),
    width=st.integers(16, 150),
    most=st.integers(0, 12),
    difficulty=st.floats(0, 1),
)
def test_every_pixel_belongs_to_exactly_one_segment(seed, height, width, most, difficulty):
    made = scene(seed, height, width, objects=(0, most), difficulty=difficulty)
    assert made.image_HW3.shape == (height, width, 3) and made.image_HW3.dtype == np.uint8
    assert made.ids_HW.shape == (height, width) and made.ids_HW.dtype == np.int32
    ids, areas = np.unique(made.ids_HW, return_counts=True)
    assert [segment.id for segment in made.segments] == ids.tolist() == [*range(1, len(ids) + 1)]
    assert [segment.area for segment in made.segments] == areas.tolist()
    stuff = [segment.label for segment in made.segments if segment.label not in THINGS_LABELS]
    assert len(stuff) == len(set(stuff)), "stuff of one class is one segment"
    assert len(made.segments) - len(stuff) <= most


def test_the_number_of_objects_is_in_range():
    counts = [len(scene(seed, 200, 300, objects=(2, 4)).instances()) for seed in range(30)]
    assert set(counts) == {2, 3, 4}  # of these seeds, no object is hidden


@pytest.mark.parametrize("name", THINGS)
def test_a_shape_has_the_area_and_the_place_that_geometry_gives(name):
    shares = {
        "circle": np.pi,
        "triangle": 3 * 3**0.5 / 4,
        "rectangle": 4 * 0.62,
        "star": 10 * 0.42 * np.sin(np.pi / 5) / 2,
    }
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    top, left, cover_hw = synthetic.polygon_coverage(synthetic.OUTLINES[name] @ turn * 60 + (80.3, 90.6), margin=3)
    share_hw = cover_hw.astype(float) / synthetic.FULL
    assert share_hw.sum() == pytest.approx(shares[name] * 60**2, rel=1e-3)
    assert np.count_nonzero(share_hw >= 0.5) == pytest.approx(shares[name] * 60**2, rel=5e-3)
    y, x = np.indices(share_hw.shape) + 0.5
    center = (x * share_hw).sum() / share_hw.sum() + left, (y * share_hw).sum() / share_hw.sum() + top
    assert center == pytest.approx((80.3, 90.6), abs=0.02)
    assert not cover_hw[:3].any() and not cover_hw[:, -3:].any()
    assert len(np.unique(cover_hw)) > 10, "the edge is not antialiased"


def test_the_image_shows_what_the_masks_say():
    """Edges of the image are where the segments meet, not elsewhere: things are of one colour, grain aside."""
    for seed in range(5):
        made = scene(seed, 160, 240, difficulty=0.0)
        for region in made.panoptic().regions():
            inner = cv2.erode(np.pad(region.mask_HW, 1).astype(np.uint8), np.ones((9, 9)))[1:-1, 1:-1] > 0
            if region.label in THINGS_LABELS and np.count_nonzero(inner) > 50:
                pixels = made.image_HW3[region.window][inner].astype(float)
                hue = pixels / pixels.max(axis=1, keepdims=True)
                assert hue.std(axis=0).max() < 0.08, (seed, CATEGORIES[region.label].name)


def test_each_stuff_class_has_a_colour_of_its_own():
    means = {}
    for name in STUFF:
        pixels = []
        for seed in range(12):
            made = scene(seed, 120, 180, objects=(0, 0))
            pixels.append(made.image_HW3[made.semantic().labels_HW == LABELS[name]])
        means[name] = np.concatenate(pixels).mean(axis=0)
    for one, other in itertools.combinations(means, 2):
        assert np.abs(means[one] - means[other]).max() > 40, (one, other)


def test_categories_are_things_then_stuff_of_distinct_colours():
    assert [category.name for category in CATEGORIES] == [*THINGS, *STUFF]
    assert [category.id for category in CATEGORIES] == [*range(9)]
    assert {category.name for category in CATEGORIES if category.isthing} == set(THINGS)
    for one, other in itertools.combinations(CATEGORIES, 2):
        assert np.abs(np.subtract(one.color, other.color)).max() >= 40, (one.name, other.name)


def test_all_classes_appear():
    seen = {segment.label for seed in range(40) for segment in scene(seed, 64, 96).segments}
    assert seen == set(LABELS.values())


def test_the_three_kinds_of_annotation_agree():
    made = scene(1, 120, 160)
    panoptic, semantic, instances = made.panoptic(), made.semantic(), made.instances()
    things = [segment for segment in made.segments if segment.label in THINGS_LABELS]
    assert len(things) >= 2
    assert instances.labels_N.tolist() == [segment.label for segment in reversed(things)]
    for segment, mask_HW in zip(reversed(things), instances.masks_NHW(), strict=True):
        assert np.array_equal(mask_HW, panoptic.ids_HW == segment.id)
        assert (semantic.labels_HW[mask_HW] == segment.label).all()
    for segment in made.segments:
        assert (semantic.labels_HW[panoptic.ids_HW == segment.id] == segment.label).all()


def test_objects_that_are_nearly_hidden_are_left_out():
    def at(top, left):
        return synthetic.Layer(0, top, left, np.full((10, 10), 240, np.uint8), np.zeros((3, 10, 10)))

    front, behind, outside = at(0, 0), at(0, 1), at(-30, 0)
    aside = at(0, 3)  # 20 of its 100 pixels show
    assert synthetic.visible_layers([behind, aside, front, outside], 20, 20) == [aside, front]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 15, 100), {}, "16 x 16 pixels, not 15 x 100"),
        ((0,), {"objects": (5, 4)}, r"\(5, 4\)"),
        ((0,), {"objects": (-1, 4)}, r"\(-1, 4\)"),
        ((0,), {"difficulty": 1.1}, "1.1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        scene(*arguments, **options)
