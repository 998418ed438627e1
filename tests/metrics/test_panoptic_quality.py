"""PQ against a slow oracle of the rules, against figures worked out by hand, and on real annotations."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.metrics.panoptic_quality import PanopticQuality, StuffQuality, match
from m2f_cli.results.types import PanopticMap, Segment, SemanticMap
from m2f_cli.structures.annotations import AnnotatedSegment, InstanceAnnotation, PanopticAnnotation, SemanticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = (
    Category(1, "person", True, (220, 20, 60)),
    Category(3, "car", True, (0, 0, 142)),
    Category(187, "sky", False, (70, 130, 180)),
    Category(193, "grass", False, (152, 251, 152)),
)
PERSON, CAR, SKY, GRASS = range(4)
FIGURES = [key + suffix for suffix in ("", "_things", "_stuff") for key in ("pq", "sq", "rq")]


def found(ids_HW, labels: dict[int, int]) -> PanopticMap:
    ids_HW = np.array(ids_HW, np.int32)
    segments = [Segment(i, label, 0.9, int((ids_HW == i).sum())) for i, label in labels.items()]
    return PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, segments)


def true(ids_HW, labels: dict[int, int], crowds=()) -> PanopticAnnotation:
    return PanopticAnnotation(
        np.array(ids_HW, np.int32), [AnnotatedSegment(i, c, i in crowds) for i, c in labels.items()]
    )


def as_result(annotation: PanopticAnnotation, categories=CATEGORIES) -> PanopticMap:
    """The annotation as a model would have found it, crowds included."""
    segments = [
        Segment(each.id, each.label, 1.0, int((annotation.ids_HW == each.id).sum())) for each in annotation.segments
    ]
    return PanopticMap(annotation.size, categories, annotation.ids_HW, segments)


# --- the oracle -------------------------------------------------------------------------------------------------------


def oracle(images, categories=CATEGORIES) -> dict:
    """The rules of the paper and panopticapi, one mask at a time."""
    stats = [dict(iou=0.0, tp=0, fp=0, fn=0) for _ in categories]
    for result, annotation in images:
        void = annotation.ids_HW == 0
        hit_true, hit_found = set(), set()
        for t in sorted(annotation.segments, key=lambda each: each.id):
            for f in sorted(result.segments, key=lambda each: each.id):
                true_mask, found_mask = annotation.ids_HW == t.id, result.ids_HW == f.id
                if t.iscrowd or t.label != f.label or not (true_mask & found_mask).any():
                    continue
                iou = (true_mask & found_mask).sum() / (true_mask | (found_mask & ~void)).sum()
                if iou > 0.5:
                    stats[t.label]["tp"] += 1
                    stats[t.label]["iou"] += iou
                    hit_true.add(t.id)
                    hit_found.add(f.id)
        for t in annotation.segments:
            stats[t.label]["fn"] += t.id not in hit_true and not t.iscrowd
        for f in result.segments:
            mask = result.ids_HW == f.id
            crowd = [t.id for t in annotation.segments if t.iscrowd and t.label == f.label][-1:]
            excused = (mask & (void | np.isin(annotation.ids_HW, crowd))).sum()
            stats[f.label]["fp"] += bool(mask.any() and f.id not in hit_found and not excused / mask.sum() > 0.5)
    return summary(stats, categories)


def summary(stats, categories) -> dict:
    figures = {}
    for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
        pq, sq, rq, n = 0.0, 0.0, 0.0, 0
        for s, category in zip(stats, categories, strict=True):
            if category.isthing not in wanted or s["tp"] + s["fp"] + s["fn"] == 0:
                continue
            n += 1
            pq += s["iou"] / (s["tp"] + 0.5 * s["fp"] + 0.5 * s["fn"])
            sq += s["iou"] / s["tp"] if s["tp"] else 0
            rq += s["tp"] / (s["tp"] + 0.5 * s["fp"] + 0.5 * s["fn"])
        for key, total in (("pq", pq), ("sq", sq), ("rq", rq)):
            figures[key + suffix] = 100 * (total / n) if n else math.nan
    figures["counts"] = [(s["tp"], s["fp"], s["fn"]) for s in stats]
    return figures


def random_image(seed: int):
    """A blocky annotation with void, crowds and large ids, and a result that is a damaged copy of it."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    ids = np.sort(rng.choice(np.arange(1, 2**24), count, replace=False))
    blocks = rng.integers(0, count + 1, (4, 5))
    ids_HW = np.array([0, *ids])[np.kron(blocks, np.ones((4, 4), int))]
    labels = rng.integers(0, 4, count)
    crowds = {int(i) for i in ids if rng.random() < 0.25}
    annotation = true(ids_HW, dict(zip(ids.tolist(), labels.tolist(), strict=True)), crowds)
    damaged = np.kron(blocks, np.ones((4, 4), int))
    noise = rng.random(damaged.shape) < rng.choice([0.0, 0.1, 0.4])
    damaged = np.where(noise, rng.integers(0, count + 1, damaged.shape), damaged)
    damaged = np.roll(damaged, rng.integers(0, 2, 2), (0, 1))
    names = rng.permutation(np.arange(1, count + 1))
    seen = {int(names[i - 1]): int(labels[i - 1]) for i in range(1, count + 1) if (damaged == i).any()}
    for i in seen:
        if rng.random() < 0.2:
            seen[i] = int(rng.integers(0, 4))
    return found(np.array([0, *names])[damaged], seen), annotation


def of(images, **options) -> PanopticQuality:
    metric = PanopticQuality(CATEGORIES, **options)
    for result, annotation in images:
        metric.update(result, annotation)
    return metric


def same(one: dict, two: dict) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    return json.dumps(one) == json.dumps(two)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
def test_equal_to_the_oracle_to_the_last_bit(seeds):
    images = [random_image(seed) for seed in seeds]
    figures, expected = of(images).compute(), oracle(images)
    assert same({key: figures[key] for key in FIGURES}, {key: expected[key] for key in FIGURES})
    table = figures["per_class"].values()
    assert [(row["tp"], row["fp"], row["fn"]) for row in table] == expected["counts"]


def test_the_random_images_meet_every_rule():
    images = [random_image(seed) for seed in range(40)]
    counts = np.array(oracle(images)["counts"]).sum(0)
    without_crowds = [(r, true(t.ids_HW, {s.id: s.label for s in t.segments})) for r, t in images]
    no_void = [
        (r, true(t.ids_HW + 1, {s.id + 1: s.label for s in t.segments}, {s.id + 1 for s in t.segments if s.iscrowd}))
        for r, t in images
    ]
    assert (counts > 20).all()
    assert oracle(without_crowds)["counts"] != oracle(images)["counts"]
    assert oracle(no_void)["pq"] != oracle(images)["pq"]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=8), st.data())
def test_parts_merge_to_the_whole_to_the_last_bit(seeds, data):
    images = [random_image(seed) for seed in seeds]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(seeds)), min_size=2, max_size=2)))
    parts = [of(images[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(seeds)], strict=True)]
    whole = pickle.loads(pickle.dumps(parts[0]))
    for part in parts[1:]:
        whole.merge(pickle.loads(pickle.dumps(part)))
    assert same(whole.compute(), of(images).compute())
    assert same(whole.compute(), whole.compute())


# --- the rules one by one ---------------------------------------------------------------------------------------------


def test_pq_equals_that_by_hand():
    # person: 3 of 4 pixels right, one of them taken by grass; IoU 3/4. grass: 4 true, 5 found: IoU 4/5.
    annotation = true([[1, 1, 1, 1], [2, 2, 2, 2]], {1: PERSON, 2: GRASS})
    result = found([[5, 5, 5, 6], [6, 6, 6, 6]], {5: PERSON, 6: GRASS})
    figures = of([(result, annotation)]).compute()
    assert figures["pq"] == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)
    assert figures["pq_things"] == 75.0 and figures["rq"] == 100.0
    assert figures["pq_stuff"] == pytest.approx(80.0)
    assert figures["per_class"]["person"] == {"pq": 75.0, "sq": 75.0, "rq": 100.0, "tp": 1, "fp": 0, "fn": 0}
    assert math.isnan(figures["per_class"]["car"]["pq"]) and figures["per_class"]["car"]["fn"] == 0


def test_iou_of_one_half_is_no_match():
    annotation = true([[1, 1, 2, 2]], {1: PERSON, 2: SKY})
    half = found([[1, 1, 1, 1]], {1: PERSON})
    assert match(half, annotation, 4).hits == [] and match(half, annotation, 4).wrong == [PERSON]
    assert match(half, annotation, 4).missed == [PERSON, SKY]
    wider = true([[1, 1, 1, 2, 2]], {1: PERSON, 2: SKY})
    assert match(found([[1, 1, 1, 1, 1]], {1: PERSON}), wider, 4).hits == [(PERSON, 3 / 5)]


def test_another_class_is_wrong_and_missed():
    matches = match(found([[1, 1]], {1: CAR}), true([[1, 1]], {1: PERSON}), 4)
    assert (matches.hits, matches.wrong, matches.missed) == ([], [CAR], [PERSON])


def test_void_is_left_out_of_the_union():
    annotation = true([[1, 1, 0, 0, 0, 0]], {1: PERSON})
    assert match(found([[1, 1, 1, 1, 1, 1]], {1: PERSON}), annotation, 4).hits == [(PERSON, 1.0)]


@pytest.mark.parametrize(("on_void", "wrong"), [(2, [CAR]), (3, [])])
def test_unmatched_on_void_counts_up_to_half(on_void, wrong):
    annotation = true([[0] * on_void + [1] * (8 - on_void)], {1: SKY})
    result = found([[7] * 4 + [8] * 4], {7: CAR, 8: SKY})
    assert match(result, annotation, 4).wrong == wrong


def test_a_crowd_excuses_its_own_class_alone():
    annotation = true([[1, 1, 1, 2, 2, 2]], {1: PERSON, 2: CAR}, crowds=(1,))
    result = found([[4, 4, 5, 6, 6, 6]], {4: PERSON, 5: CAR, 6: CAR})
    matches = match(result, annotation, 4)
    assert matches.wrong == [CAR] and matches.missed == [] and matches.hits == [(CAR, 1.0)]


def test_a_crowd_is_never_hit():
    matches = match(found([[1, 1]], {1: PERSON}), true([[1, 1]], {1: PERSON}, crowds=(1,)), 4)
    assert (matches.hits, matches.wrong, matches.missed) == ([], [], [])


def test_the_last_of_several_crowds_counts():
    annotation = true([[1, 1, 2, 2]], {1: PERSON, 2: PERSON}, crowds=(1, 2))
    assert match(found([[8, 8, 9, 9]], {8: PERSON, 9: PERSON}), annotation, 4).wrong == [PERSON]


def test_found_segments_without_pixels_do_not_count_and_true_ones_are_missed():
    matches = match(found([[1, 1]], {1: PERSON, 2: CAR}), true([[1, 1]], {1: PERSON, 9: SKY}), 4)
    assert (matches.hits, matches.wrong, matches.missed) == ([(PERSON, 1.0)], [], [SKY])


def test_nothing_seen_is_nan():
    figures = PanopticQuality(CATEGORIES).compute()
    assert all(math.isnan(figures[key]) for key in FIGURES)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "annotation", "says"),
    [
        (found([[1, 1]], {1: CAR}), true([[1], [1]], {1: CAR}), "1 x 2 pixels and its annotation 2 x 1"),
        (found([[1, 3]], {1: CAR}), true([[1, 1]], {1: CAR}), "the id 3"),
        (found([[1, 1]], {1: CAR}), true([[1, 1]], {1: 4}), "class number 4 occurs, but there are 4"),
    ],
)
def test_what_does_not_fit_is_said_and_not_counted(result, annotation, says):
    metric = PanopticQuality(CATEGORIES)
    with pytest.raises(DataError, match=says):
        metric.update(result, annotation)
    assert math.isnan(metric.compute()["pq"])


def test_objects_have_no_panoptic_quality():
    with pytest.raises(ConfigError, match="InstanceAnnotation"):
        PanopticQuality(CATEGORIES).update(found([[1]], {1: CAR}), InstanceAnnotation((1, 1), []))


# --- maps of classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ignore", "none"), [(255, 255), (65535, 65535)])
def test_semantic_maps_have_one_segment_per_class(ignore, none):
    dtype = np.uint8 if ignore == 255 else np.uint16
    annotation = SemanticAnnotation(np.array([[SKY, SKY, SKY, GRASS, ignore, ignore]], dtype), ignore)
    result = SemanticMap((1, 6), CATEGORIES, np.array([[SKY, SKY, none, GRASS, GRASS, PERSON]], dtype))
    figures = of([(result, annotation)], task="semantic").compute()
    assert figures["pq_stuff"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert figures["per_class"]["person"]["fp"] == 0  # all of it on void
    assert PanopticQuality(CATEGORIES, task="semantic").task == "semantic"


def test_stuff_quality_is_over_all_classes():
    annotation = SemanticAnnotation(np.array([[SKY, SKY, SKY, CAR, 255]], np.uint8))
    result = SemanticMap((1, 5), CATEGORIES, np.array([[SKY, SKY, GRASS, CAR, CAR]], np.uint8))
    metric = StuffQuality(CATEGORIES)
    metric.update(result, annotation)
    figures = metric.compute()
    assert figures["pq_stuff"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)  # sky, car, and grass that is not there
    assert figures["rq_stuff"] == pytest.approx(100 * 2 / 3) and metric.task == "semantic"
    assert set(figures) == {"pq_stuff", "sq_stuff", "rq_stuff", "per_class"}


# --- real annotations -------------------------------------------------------------------------------------------------


def test_generated_annotation_against_itself_is_100(scenes):
    metric = PanopticQuality(scenes.categories)
    for annotation in scenes.annotations:
        metric.update(as_result(annotation, scenes.categories), annotation)
    figures = metric.compute()
    assert [figures[key] for key in FIGURES] == [100.0] * 9
    segments = sum(not segment.iscrowd for annotation in scenes.annotations for segment in annotation.segments)
    assert sum(row["tp"] for row in figures["per_class"].values()) == segments


def test_annotation_against_itself_is_100(coco_pack):
    metric, segments = PanopticQuality(coco_pack.categories), 0
    for name in coco_pack.names:
        annotation = coco_pack.annotation(name)
        metric.update(as_result(annotation, coco_pack.categories), annotation)
        segments += sum(not segment.iscrowd for segment in annotation.segments)
    figures = metric.compute()
    assert [figures[key] for key in FIGURES] == [100.0] * 9
    assert len(coco_pack.names) == 80 and sum(row["tp"] for row in figures["per_class"].values()) == segments


def test_damaged_annotation_against_the_oracle(annotated):
    categories, annotations = annotated.categories, annotated.annotations
    images = []
    for i, annotation in enumerate(annotations[:5]):
        moved = PanopticAnnotation(np.roll(annotation.ids_HW, 3 + 4 * i, axis=1), annotation.segments)
        images.append((as_result(moved, categories), annotation))
    metric = PanopticQuality(categories)
    for result, annotation in images:
        metric.update(result, annotation)
    figures, expected = metric.compute(), oracle(images, categories)
    assert {key: figures[key] for key in FIGURES} == {key: expected[key] for key in FIGURES}
    assert 30 < figures["pq"] < 95
