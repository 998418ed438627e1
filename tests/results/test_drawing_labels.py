"""Labels: where they stand, which names and scores they show, and the legend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.fake_segmenter import GRASS, PERSON, SKY, panoptic, scene, scene_labels
from PIL import Image

from m2f_cli.results import drawing
from m2f_cli.results.class_names import numbers_of, short_name
from m2f_cli.results.colors import outline_color
from m2f_cli.results.draw_options import DrawOptions
from m2f_cli.results.labels import RegionLabel, Spot, place_label, spots, write_labels
from m2f_cli.results.legend import LegendEntry, with_legend
from m2f_cli.structures.categories import from_names, load_categories

RED, BLUE = (200, 0, 0), (0, 0, 200)


def written(monkeypatch, result, image_HW3, **options):
    """The labels that a drawing hands on to be written: (name, score)."""
    found = []
    monkeypatch.setattr(drawing, "write_labels", lambda image, labels, size: found.extend(labels))
    result.plot(image_HW3, DrawOptions(**options))
    return sorted((label.name, label.score) for label in found)


def test_a_label_stands_inside_its_region():
    """The centre of mass of a ring is in its hole; the spot of the label is not."""
    ys, xs = np.mgrid[:101, :101]
    radius = np.hypot(ys - 50, xs - 50)
    (ring,) = spots(((radius < 48) & (radius > 20)).astype(np.uint16))
    assert 25 < np.hypot(ring.center[0] - 50, ring.center[1] - 50) < 43
    assert ring.depth == pytest.approx(14, abs=1.5)


@pytest.mark.parametrize("factor", [1, 7, 40])
def test_spots_are_the_same_at_every_size(factor):
    numbers_HW = np.kron(np.array([[0, 1, 1, 1], [2, 2, 1, 1], [2, 2, 0, 0]], np.uint16), np.ones((50, 50), np.uint16))
    large = spots(np.kron(numbers_HW, np.ones((factor, factor), np.uint16)))
    assert [spot.number for spot in large] == [1, 2]
    for spot, area in zip(large, (5, 4), strict=True):
        assert spot.area == pytest.approx(area * 2500 * factor**2, rel=0.02)
        assert numbers_HW[int(spot.center[1] / factor), int(spot.center[0] / factor)] == spot.number
    assert large[1].center == pytest.approx((50 * factor, 100 * factor), rel=0.05)


def test_small_regions_carry_no_label():
    thin, tiny, large = Spot(1, (0, 0), 9000, 2.0), Spot(1, (0, 0), 200, 9.0), Spot(1, (0, 0), 500, 9.0)
    assert [spot.carries(12) for spot in (thin, tiny, large)] == [False, False, True]


def test_labels_do_not_overlap_and_stay_in_the_image():
    rng = np.random.default_rng(0)
    placed = np.empty((0, 4))
    for _ in range(60):
        spot, size = rng.uniform(0, (400, 300)), (rng.uniform(30, 90), 14)
        box = place_label(tuple(spot), size, (400, 300), placed)
        if box is not None:
            placed = np.vstack([placed, box])
    assert len(placed) in range(16, 61)
    for one, other in itertools.combinations(placed, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert placed.min() >= 0 and (placed[:, 2:] <= (400, 300)).all()
    assert place_label((200, 150), (401, 14), (400, 300), placed) is None


def test_a_label_that_would_hide_its_region_stands_above_it():
    image = Image.new("RGB", (300, 200))
    write_labels(image, [RegionLabel("nucleus", "0.50", RED, Spot(1, (150, 100), 600, 10.0))], 12)
    rows, columns = np.nonzero((np.asarray(image) == RED).all(axis=-1))
    assert rows.max() < 90 and columns.min() < 150 < columns.max()


def test_labels_leave_most_of_a_small_image_free():
    image = Image.new("RGB", (150, 100), "white")
    labels = [RegionLabel("a name", "", BLUE, Spot(i, (75, 8 * i), 9000 - i, 50.0)) for i in range(1, 13)]
    write_labels(image, labels, 11)
    assert 0 < (np.asarray(image)[..., 0] < 255).mean() <= 0.2


def test_a_long_name_is_cut_and_its_score_stays():
    quarter, half = Image.new("RGB", (120, 200)), Image.new("RGB", (120, 200))
    for image, score in ((quarter, "0.25"), (half, "0.50")):
        write_labels(image, [RegionLabel("x" * 5000, score, RED, Spot(1, (60, 30), 7200, 30.0))], 11)
    columns = np.nonzero((np.asarray(quarter) != 0).any(axis=(0, 2)))[0]
    assert len(columns) > 100 and columns.max() < 120
    different = np.nonzero((np.asarray(quarter) != np.asarray(half)).any(axis=(0, 2)))[0]
    assert len(different) > 8 and different.min() > columns.max() - 30


def test_labels_are_drawn_where_there_is_room_and_grow_with_the_image(monkeypatch):
    def with_labels(edge):
        return np.asarray(panoptic(scene_labels(edge, edge)).plot(scene(edge, edge)))

    edges = (24, 700, 1400)
    named = [with_labels(edge) for edge in edges]
    monkeypatch.setattr(drawing, "write_labels", lambda *_: None)
    covered = [(one != with_labels(edge)).any(axis=-1).mean() for one, edge in zip(named, edges, strict=True)]
    assert covered[0] == 0
    assert covered[1] > 0.005
    assert covered[2] == pytest.approx(covered[1], rel=0.2)


def test_names_and_scores_are_drawn_as_asked_for(monkeypatch):
    result, image_HW3 = panoptic(scene_labels(500, 500)), scene(500, 500)
    result.segments[0].score, result.segments[1].score = float("nan"), None
    shown = [
        written(monkeypatch, result, image_HW3, parts=parts) for parts in (("labels", "scores"), "labels", "scores")
    ]
    assert shown[0] == [("grass", ""), ("person", "0.70"), ("sky", "nan")]
    assert shown[1] == [("grass", ""), ("person", ""), ("sky", "")]
    assert shown[2] == [("", "0.70"), ("", "nan")]
    assert written(monkeypatch, result, image_HW3, parts="masks", legend=True) == []


def test_names_of_coco_lose_their_tails_on_images_alone(monkeypatch):
    categories = load_categories("coco-panoptic")
    names = {each.name for each in categories}
    short = {name: short_name(name, names) for name in names}
    tails = ("-merged", "-other", "-stuff")
    assert not [name for name in short.values() if name.endswith(tails)]
    assert sum(name.endswith(tails) for name in names) == 21
    assert short["sky-other-merged"] == "sky" and short["window-other"] == "window" and short["door-stuff"] == "door"
    assert short["window-blind"] == "window-blind" and len(set(short.values())) == len(names)
    assert short_name("plastic-other", {"plastic-other"}) == "plastic-other", "a name of somebody else's"
    assert short_name("door-stuff", {"door", "door-stuff"}) == "door-stuff"
    result = panoptic(scene_labels(500, 500))
    sky, *others = result.categories
    result.categories = (type(sky)(187, "sky-other-merged", False, sky.color), *others)
    assert written(monkeypatch, result, scene(500, 500), parts="labels") == [("grass", ""), ("person", ""), ("sky", "")]
    assert result.to_coco()["segments_info"][0]["category_id"] == 187


def test_classes_are_found_by_both_names_and_between_commas():
    categories = from_names(["person", "sky-other-merged", "door, double door", "sky, red"])
    assert numbers_of(["person,sky"], categories) == {0, 1}
    assert numbers_of(["sky-other-merged", " person "], categories) == {0, 1}
    assert numbers_of(["door, double door"], categories) == {2}
    assert numbers_of([], categories) == frozenset()


# --- legend -----------------------------------------------------------------------------------------------------------


def test_a_legend_has_the_classes_that_occur_below_the_image():
    labels_HW, image_HW3 = scene_labels(400, 400), scene(400, 400)
    labels_HW[:50] = GRASS
    result = panoptic(labels_HW)
    plain = np.asarray(result.plot(image_HW3))
    drawn = np.asarray(result.plot(image_HW3, DrawOptions(legend=True)))
    assert np.array_equal(drawn[:400], plain) and drawn.shape[0] > 400
    strip = drawn[400:]
    first = [strip[strip.shape[0] // 2, x].tolist() for x in range(400)]
    shown = [key for key, _ in itertools.groupby(first) if key in [[*color] for _, color in drawing.colored(result)]]
    colors = {region.label: [*color] for region, color in drawing.colored(result)}
    assert shown == [colors[label] for label in (GRASS, SKY, PERSON)], "the largest first"
    only = np.asarray(result.plot(image_HW3, DrawOptions(legend=True, classes=("person",))))[400:]
    assert not (only == colors[SKY]).all(axis=-1).any() and (only == colors[PERSON]).all(axis=-1).any()


def test_a_legend_that_would_be_too_high_counts_the_rest():
    entries = [LegendEntry(f"class {i}", outline_color(RED), 2) for i in range(500)]
    image = Image.new("RGB", (300, 200))
    drawn = with_legend(image, entries, 12)
    assert drawn.width == 300 and 300 < drawn.height <= 400
    assert with_legend(image, entries[:4], 12).height < 260
    assert with_legend(image, [], 12) is image
