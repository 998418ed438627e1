"""Overlays: where they paint and where not, with which colours, and labels that can be read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, instances, panoptic, scene, scene_labels, semantic

from m2f_cli.errors import DataError
from m2f_cli.results import drawing as draw
from m2f_cli.results.types import Instances
from m2f_cli.structures.categories import Category

THING_COLOR = draw.region_color(CATEGORIES[PERSON])


def plain(labels_HW):
    """A panoptic map of one person on void."""
    result = panoptic(labels_HW)
    result.ids_HW = np.where(labels_HW == PERSON, 3, 0).astype(np.int32)
    result.segments = [each for each in result.segments if each.label == PERSON]
    return result


def test_fill_is_a_blend_and_void_stays_as_it_was():
    labels_HW, image_HW3 = scene_labels(32, 40), scene(32, 40)
    overlay_HW3 = np.asarray(plain(labels_HW).plot(image_HW3)).astype(int)
    outside = labels_HW != PERSON
    assert np.array_equal(overlay_HW3[outside], image_HW3[outside])
    expected = np.rint((1 - draw.THING_ALPHA) * image_HW3[16, 20] + draw.THING_ALPHA * np.array(THING_COLOR))
    assert overlay_HW3[16, 20].tolist() == expected.tolist()


def test_outline_is_inside_the_region_and_not_at_the_frame():
    labels_HW, image_HW3 = np.full((32, 40), GRASS, np.uint8), np.zeros((32, 40, 3), np.uint8)
    labels_HW[:20, :25] = PERSON
    overlay_HW3 = np.asarray(plain(labels_HW).plot(image_HW3)).astype(int)
    lighter = np.rint(0.6 * np.array(THING_COLOR) + 0.4 * 255)
    edge = np.zeros(labels_HW.shape, bool)
    edge[19, :25] = edge[:20, 24] = True
    assert np.array_equal((overlay_HW3 == lighter).all(axis=-1), edge)


def test_the_image_is_not_changed_and_sizes_must_match():
    labels_HW, image_HW3 = scene_labels(), scene()
    before = image_HW3.copy()
    assert panoptic(labels_HW, image=image_HW3).plot().size == (64, 48)
    assert np.array_equal(image_HW3, before)
    with pytest.raises(DataError, match="64x40 pixels, the result 64x48"):
        panoptic(labels_HW).plot(scene(40, 64))
    with pytest.raises(DataError, match="does not know its image"):
        panoptic(labels_HW).plot()


def test_colours_are_stable_and_vary_a_little_within_a_class():
    category = Category(3, "car", True, (0, 0, 142))
    colors = [draw.region_color(category, n) for n in range(20)]
    assert len(set(colors)) == 20 and colors == [draw.region_color(category, n) for n in range(20)]
    assert all(blue == max(red, green, blue) for red, green, blue in colors), "a blue class stays blue"
    assert all(np.abs(np.subtract(a, b)).max() > 20 for a, b in itertools.pairwise(colors))


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (70, 130, 180), (0, 60, 100), (250, 170, 30)])
def test_things_are_brighter_than_stuff(color):
    thing, stuff = (draw.region_color(Category(1, "x", isthing, color)) for isthing in (True, False))
    assert max(thing) > max(stuff)


@pytest.mark.parametrize("color", list(itertools.product((0, 60, 128, 190, 255), repeat=3)))
def test_text_contrasts_with_its_box(color):
    def luminance(rgb):
        channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return np.dot([0.2126, 0.7152, 0.0722], channels)

    light, dark = sorted([luminance(color), luminance(draw.ink_for(color))], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_semantic_colours_are_the_categories_own():
    found = {region.label: color for region, color in draw.colored(semantic(scene_labels()))}
    assert found == {label: CATEGORIES[label].color for label in (SKY, GRASS, PERSON)}


def test_the_better_instance_is_on_top():
    labels_HW, image_HW3 = scene_labels(), np.zeros((48, 64, 3), np.uint8)
    one = instances(labels_HW)
    car = Category(3, "car", True, (0, 0, 142))
    pair = Instances(one.size, (*CATEGORIES, car), np.array([3, PERSON]), np.array([0.9, 0.6]), one.rles * 2)
    red, _, blue = np.asarray(pair.plot(image_HW3))[24, 32]
    assert blue > red, "the blue car has the higher score and covers the red person"


def test_a_label_stands_inside_its_region():
    """The centre of mass of a ring is in its hole; the label's spot is not."""
    ys, xs = np.mgrid[:101, :101]
    radius = np.hypot(ys - 50, xs - 50)
    result = panoptic(np.where((radius < 48) & (radius > 20), PERSON, GRASS).astype(np.uint8))
    ring = next(region for region in result.regions() if region.label == PERSON)
    x, y = draw.label_spot(ring, font_size=10)
    assert 25 < np.hypot(x - 50, y - 50) < 43


def test_small_regions_carry_no_label_whatever_the_image():
    labels_HW = np.full((600, 600), GRASS, np.uint8)
    labels_HW[300:306, 300:306] = labels_HW[100:102, :] = PERSON
    (small,) = [region for region in plain(labels_HW).regions()]
    assert draw.label_spot(small, font_size=12) is None


def test_labels_do_not_overlap_and_stay_in_the_image():
    rng = np.random.default_rng(0)
    placed = []
    for _ in range(60):
        spot, size = rng.uniform(0, (400, 300)), (rng.uniform(30, 90), 14)
        if (box := draw.place_label(tuple(spot), size, (400, 300), placed)) is not None:
            placed.append(box)
    assert len(placed) in range(16, 60)
    for one, other in itertools.combinations(placed, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(min(left, top) >= 0 and right <= 400 and bottom <= 300 for left, top, right, bottom in placed)


def test_labels_are_written_where_there_is_room_and_grow_with_the_image(monkeypatch):
    def with_labels(edge):
        return np.asarray(panoptic(scene_labels(edge, edge)).plot(scene(edge, edge)))

    edges = (32, 500, 1000)
    named = [with_labels(edge) for edge in edges]
    monkeypatch.setattr(draw, "write_label", lambda *_: None)
    covered = [(one != with_labels(edge)).any(axis=-1).mean() for one, edge in zip(named, edges, strict=True)]
    assert covered[0] == 0
    assert covered[1] > 0.005
    assert covered[2] == pytest.approx(covered[1], rel=0.2)
