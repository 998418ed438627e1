"""Overlays: where they paint and where not, which parts, of which classes, and how strongly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, instances, panoptic, scene, scene_labels, semantic

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.results import drawing as draw
from m2f_cli.results.colors import outline_color, region_color
from m2f_cli.results.draw_options import PARTS, DrawOptions
from m2f_cli.results.types import Instances, PanopticMap, SemanticMap
from m2f_cli.structures.categories import Category, from_names
from m2f_cli.structures.rle import encode_mask

THING_COLOR = region_color(CATEGORIES[PERSON])


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
    expected = np.rint((1 - draw.THING_OPACITY) * image_HW3[16, 20] + draw.THING_OPACITY * np.array(THING_COLOR))
    assert np.abs(overlay_HW3[16, 20] - expected).max() <= 1  # opacity is one of 256 steps


def test_outline_is_inside_the_region_and_not_at_the_frame():
    labels_HW, image_HW3 = np.full((32, 40), GRASS, np.uint8), np.zeros((32, 40, 3), np.uint8)
    labels_HW[:20, :25] = PERSON
    overlay_HW3 = np.asarray(plain(labels_HW).plot(image_HW3)).astype(int)
    lighter = np.array(outline_color(THING_COLOR))
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
    colors = [region_color(category, n) for n in range(20)]
    assert len(set(colors)) == 20 and colors == [region_color(category, n) for n in range(20)]
    assert all(blue == max(red, green, blue) for red, green, blue in colors), "a blue class stays blue"
    assert all(np.abs(np.subtract(a, b)).max() > 20 for a, b in itertools.pairwise(colors))


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (70, 130, 180), (0, 60, 100), (250, 170, 30)])
def test_things_are_brighter_than_stuff(color):
    thing, stuff = (region_color(Category(1, "x", isthing, color)) for isthing in (True, False))
    assert max(thing) > max(stuff)


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


def painted(result, size=(48, 64), **options):
    """The pixels that a drawing over black changes."""
    drawn = result.plot(np.zeros((*size, 3), np.uint8), DrawOptions(**options))
    return (np.asarray(drawn)[: size[0]] > 0).any(axis=-1)


def test_hidden_parts_of_an_object_belong_to_the_better_one():
    left_HW, all_HW = np.zeros((6, 8), bool), np.ones((6, 8), bool)
    left_HW[1:3, 1:4] = True
    masks = [left_HW, all_HW]
    result = Instances((6, 8), CATEGORIES, np.array([PERSON, SKY]), np.array([0.9, 0.5]), [*map(encode_mask, masks)])
    top = result.on_top()
    assert np.array_equal(top.numbers_HW, np.where(left_HW, 1, 2))
    assert (top.labels, top.scores) == ([PERSON, SKY], [0.9, 0.5])
    assert top.all_boxes() == {0: (1, 1, 3, 4), 1: (0, 0, 6, 8)}
    only = result.on_top({SKY})
    assert (only.numbers_HW == 1).all() and only.labels == [SKY]


def test_boxes_of_objects_are_those_of_their_masks():
    rng = np.random.default_rng(0)
    for size in ((7, 9), (9, 7), (1, 5), (5, 1)):
        masks = [rng.random(size) > share for share in (0.1, 0.5, 0.9, 0.97, 1.0)]
        labels, scores = np.full(5, PERSON), np.linspace(1, 0.5, 5)
        result = Instances(size, CATEGORIES, labels, scores, [encode_mask(mask_HW) for mask_HW in masks])
        assert result.on_top().all_boxes() == {region.id: region.box for region in result.regions()}


def test_panoptic_and_semantic_maps_know_what_is_on_top():
    labels_HW = scene_labels()
    wide = panoptic(labels_HW)
    wide.ids_HW = wide.ids_HW * 2**25  # above the ids of COCO
    for segment in wide.segments:
        segment.id *= 2**25
    for result in (panoptic(labels_HW), wide, semantic(labels_HW)):
        assert np.array_equal(result.on_top().numbers_HW, labels_HW + 1)
        assert np.array_equal(result.on_top({PERSON}).numbers_HW, labels_HW == PERSON)
        assert result.on_top().all_boxes()[PERSON] == (18, 24, 30, 40)
    assert semantic(np.full((2, 3), 255, np.uint8)).on_top().labels == []


def test_parts_are_drawn_alone():
    result = panoptic(scene_labels())
    person_HW = scene_labels() == PERSON
    assert not painted(result, parts="masks", opacity=0).any()
    outlines_HW = painted(result, parts="outlines")
    assert outlines_HW[18:30, 24].all() and not outlines_HW[19:29, 25:39].any() and not outlines_HW[:10].any()
    boxes_HW = painted(result, parts="boxes")
    frame_HW = person_HW.copy()
    frame_HW[19:29, 25:39] = False
    assert np.array_equal(boxes_HW, frame_HW), "things have boxes, stuff has none"


def test_full_opacity_hides_the_image_and_half_of_it_does_not():
    labels_HW, image_HW3 = scene_labels(), scene()
    inside = labels_HW == PERSON
    for opacity in (0, 0.25, 1):
        options = DrawOptions(parts="masks", opacity=opacity)
        drawn_HW3 = np.asarray(plain(labels_HW).plot(image_HW3, options)).astype(int)
        expected = (1 - opacity) * image_HW3[inside] + opacity * np.array(THING_COLOR)
        assert np.abs(drawn_HW3[inside] - expected).max() <= 1


def test_only_the_chosen_classes_are_drawn():
    result = panoptic(scene_labels())
    assert np.array_equal(painted(result, parts="masks", classes=("person",)), scene_labels() == PERSON)
    assert np.array_equal(painted(result, parts="masks", classes="sky, person"), scene_labels() != GRASS)
    with pytest.raises(ConfigError, match="no class named 'persn'") as raised:
        painted(result, classes=("persn",))
    assert raised.value.hint == "Did you mean person?"


def test_large_images_are_painted_as_small_ones_are(monkeypatch):
    """Bands of rows join without a seam, also with lines of several pixels."""
    labels_HW, image_HW3 = scene_labels(96, 128), scene(96, 128)
    monkeypatch.setattr(draw, "LINES", 40)
    options = DrawOptions(parts=("masks", "outlines"))
    whole = panoptic(labels_HW).plot(image_HW3, options).tobytes()
    for band in (1, 128 * 5):
        monkeypatch.setattr(draw, "BAND", band)
        assert panoptic(labels_HW).plot(image_HW3, options).tobytes() == whole


def test_more_regions_than_sixteen_bits_count():
    ids_HW = np.arange(1, 257 * 257 + 1, dtype=np.int32).reshape(257, 257)
    segments = [type(panoptic(scene_labels()).segments[0])(i, PERSON, 0.5, 1) for i in range(1, ids_HW.size + 1)]
    result = PanopticMap((257, 257), CATEGORIES, ids_HW, segments)
    assert np.array_equal(result.on_top().numbers_HW, ids_HW)
    assert painted(result, (257, 257), parts=("masks", "outlines")).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
@pytest.mark.parametrize("options", [DrawOptions(), DrawOptions(PARTS, "color-blind", 1, legend=True)])
def test_tiny_images_can_be_drawn(size, options):
    labels_HW = np.full(size, PERSON, np.uint8)
    for result in (panoptic(labels_HW), instances(labels_HW), semantic(labels_HW)):
        drawn = result.plot(np.zeros(size, np.uint8), options)  # a grey image
        assert drawn.mode == "RGB" and drawn.width == size[1] and drawn.height >= size[0]


def test_nothing_found_leaves_the_image_as_it_is():
    image_HW3 = scene()
    empty = (
        PanopticMap((48, 64), CATEGORIES, np.zeros((48, 64), np.int32), []),
        Instances((48, 64), CATEGORIES, np.zeros(0, int), np.zeros(0), []),
        SemanticMap((48, 64), CATEGORIES, np.full((48, 64), 255, np.uint8)),
    )
    for result in empty:
        assert np.array_equal(np.asarray(result.plot(image_HW3, DrawOptions(PARTS, legend=True))), image_HW3)


def test_ten_thousand_classes_can_be_drawn():
    labels_HW = (np.arange(200 * 200).reshape(200, 200) // 4).astype(np.uint16)
    result = SemanticMap((200, 200), from_names([f"class {i}" for i in range(10_000)]), labels_HW)
    drawn = result.plot(np.zeros((200, 200), np.uint8), DrawOptions(legend=True))
    assert drawn.width == 200 and 200 < drawn.height <= 400


def test_wrong_options_say_what_is_right():
    for given, message in (
        ({"parts": ()}, "Nothing is to be drawn"),
        ({"parts": "mask"}, "no part of a drawing named 'mask'"),
        ({"palette": "colour-blind"}, "no palette named 'colour-blind'"),
        ({"opacity": 1.5}, "opacity is 1.5; it should be from 0 to 1"),
        ({"opacity": float("nan")}, "opacity is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            DrawOptions(**given)
