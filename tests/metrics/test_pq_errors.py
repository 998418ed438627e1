"""Which error each segment has, and what repairing it gives: by hand, and by really repairing maps."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli import plugins
from m2f_cli.errors import DataError
from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.metrics.pq_errors import PanopticErrors
from m2f_cli.metrics.pq_repairs import KINDS, Change, compare_segments, repairs
from m2f_cli.results.types import PanopticMap, Segment
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = (
    Category(1, "person", True, (220, 20, 60)),
    Category(3, "car", True, (0, 0, 142)),
    Category(187, "sky", False, (70, 130, 180)),
)
PERSON, CAR, SKY = range(3)


def found(ids_HW, labels: dict[int, int]) -> PanopticMap:
    ids_HW = np.array(ids_HW, np.int32)
    return PanopticMap(
        ids_HW.shape, CATEGORIES, ids_HW, [Segment(i, c, 0.9, int((ids_HW == i).sum())) for i, c in labels.items()]
    )


def true(ids_HW, labels: dict[int, int], crowds=()) -> PanopticAnnotation:
    return PanopticAnnotation(
        np.array(ids_HW, np.int32), [AnnotatedSegment(i, c, i in crowds) for i, c in labels.items()]
    )


def of(images, metric=None):
    metric = metric or PanopticErrors(CATEGORIES)
    for result, annotation in images:
        metric.update(result, annotation)
    return metric


def pq_of(images) -> dict:
    return of(images, PanopticQuality(CATEGORIES)).compute()


def errors_of(result, annotation) -> dict[str, list[Change]]:
    return {kind: changes for kind, changes in repairs(compare_segments(result, annotation, 3)).items() if changes}


def random_image(seed: int):
    """Blocks of true segments, void and crowds, and a result with moved borders, joins, cuts and wrong classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 6, (3, 4))
    ids_HW = np.kron(blocks, np.ones((6, 6), int))
    labels = {i: int(rng.integers(0, 3)) for i in range(1, 6)}
    crowds = {i for i in labels if rng.random() < 0.15}
    seen = np.roll(ids_HW, rng.integers(-2, 3, 2), (0, 1))
    names = dict(labels)
    for i in range(1, 6):
        action = rng.random()
        if action < 0.2:  # cut
            rows = np.arange(18)[:, None] < rng.integers(4, 14)
            seen = np.where((seen == i) & rows, i + 10, seen)
            names[i + 10] = labels[i]
        elif action < 0.4:  # joined with another
            other = int(rng.integers(1, 6))
            seen = np.where(seen == other, i, seen)
            names[i] = names[other] if rng.random() < 0.8 else names[i]
        elif action < 0.55:
            names[i] = int(rng.integers(0, 3))
        elif action < 0.65:
            seen = np.where(seen == i, 0, seen)
    present = set(np.unique(seen).tolist())
    return found(seen, {i: c for i, c in names.items() if i in present}), true(ids_HW, labels, crowds)


seeds = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)


# --- by hand ----------------------------------------------------------------------------------------------------------

ROW = [[1] * 10 + [2] * 10]


def test_wrong_class_on_a_right_mask():
    result, annotation = found([[1] * 10 + [2] * 10], {1: CAR, 2: SKY}), true(ROW, {1: PERSON, 2: SKY})
    assert errors_of(result, annotation) == {
        "class": [Change(PERSON, 0, 1.0, 1, 0, -1), Change(CAR, 0, 0.0, 0, -1, 0)],
        "boundary": [Change(SKY, 0, 0.0, 0, 0, 0)],
    }
    figures = of([(result, annotation)]).compute()
    assert figures["tables"]["pq"] == pytest.approx(100 / 3)  # person 0, car 0, sky 100
    # The false car was the only one: repaired, cars are no longer measured.
    assert figures["pq_lost_class"] == pytest.approx(100 - 100 / 3)
    assert math.isnan(figures["per_class"]["car"]["pq_lost_class"])
    assert figures["per_class"]["person"]["pq_lost_class"] == pytest.approx(100)
    assert figures["per_class"]["person"]["class"] == figures["per_class"]["car"]["class"] == 1
    assert figures["tables"]["confusion"] == [
        {"true": "person", "found": "car", "count": 1},
        {"true": "sky", "found": "sky", "count": 1},
    ]


def test_split_without_a_hit():
    pieces = [[1] * 5 + [3] * 5 + [2] * 10]
    result, annotation = found(pieces, {1: PERSON, 3: PERSON, 2: SKY}), true(ROW, {1: PERSON, 2: SKY})
    assert errors_of(result, annotation)["split"] == [Change(PERSON, 0, 1.0, 1, -2, -1)]
    assert of([(result, annotation)]).compute()["pq_lost_split"] == pytest.approx(50)


def test_split_beside_a_hit_raises_its_iou():
    pieces = [[1] * 7 + [3] * 3 + [2] * 10]
    result, annotation = found(pieces, {1: PERSON, 3: PERSON, 2: SKY}), true(ROW, {1: PERSON, 2: SKY})
    [change] = errors_of(result, annotation)["split"]
    assert change == Change(PERSON, 0, pytest.approx(0.3), 0, -1, 0)
    # Person: 0.7 / 1.5 before, 1 after; sky is perfect.
    assert of([(result, annotation)]).compute()["pq_lost_split"] == pytest.approx(100 * (1 - 0.7 / 1.5) / 2)


def test_pieces_that_lie_mostly_elsewhere_are_no_split():
    pieces = [[1] * 4 + [3] * 2 + [4] * 8 + [2] * 6]
    result = found(pieces, {1: PERSON, 3: CAR, 4: PERSON, 2: SKY})
    errors = errors_of(result, true(ROW, {1: PERSON, 2: SKY}))
    assert set(errors) == {"boundary", "spurious"}
    assert Change(PERSON, 0, 1.0, 1, -1, -1) in errors["boundary"]  # IoU 0.4
    assert len(errors["spurious"]) == 2  # a car, and the piece that is mostly sky


def test_two_objects_found_as_one_are_merged():
    annotation = true([[1] * 10 + [2] * 6 + [3] * 4], {1: PERSON, 2: PERSON, 3: SKY})
    alone = found([[1] * 16 + [3] * 4], {1: PERSON, 3: SKY})  # a hit of the larger: 10/16
    errors = errors_of(alone, annotation)
    assert errors["merged"] == [Change(PERSON, 0, 1.0, 1, 0, -1), Change(PERSON, 0, pytest.approx(6 / 16), 0, 0, 0)]
    assert of([(alone, annotation)]).compute()["pq_lost_merged"] == pytest.approx(100 * (1 - 0.625 / 1.5) / 2)


def test_merged_without_a_hit_and_with_something_outside():
    annotation = true([[1] * 8 + [2] * 8 + [3] * 4], {1: PERSON, 2: PERSON, 3: SKY})
    result = found([[1] * 18 + [3] * 2], {1: PERSON, 3: SKY})
    assert errors_of(result, annotation)["merged"] == [
        Change(PERSON, 0, 1.0, 1, 0, -1),
        Change(PERSON, 0, 1.0, 1, 0, -1),
        Change(PERSON, 0, 0.0, 0, -1, 0),
    ]


def test_near_misses_are_boundaries_and_far_ones_missed_and_spurious():
    annotation = true([[1] * 20], {1: PERSON})
    near, far = (found([[1] * n + [0] * (20 - n)], {1: PERSON}) for n in (10, 2))
    assert errors_of(near, annotation) == {"boundary": [Change(PERSON, 0, 1.0, 1, -1, -1)]}
    assert errors_of(far, annotation) == {
        "missed": [Change(PERSON, 0, 1.0, 1, 0, -1)],
        "spurious": [Change(PERSON, 0, 0.0, 0, -1, 0)],
    }


def test_what_pq_excuses_has_no_error():
    crowd = true([[1] * 10 + [0] * 10], {1: PERSON}, crowds={1})
    result = found([[5] * 10 + [6] * 10], {5: PERSON, 6: CAR})
    assert errors_of(result, crowd) == {}
    figures = of([(result, crowd)]).compute()
    assert math.isnan(figures["pq_lost_missed"]) and math.isnan(figures["tables"]["all_repaired"])
    assert figures["tables"]["confusion"] == []


def test_sizes_follow_coco():
    ids_HW = np.full((200, 200), 3)
    ids_HW[:31, :33], ids_HW[:32, 100:132] = 1, 2  # 1023 and 1024 pixels
    annotation = true(ids_HW, {1: PERSON, 2: PERSON, 3: SKY})
    result = found(np.where(ids_HW == 1, 0, ids_HW), {2: PERSON, 3: SKY})
    sizes = of([(result, annotation)]).compute()["tables"]["sizes"]
    assert [sizes[size]["segments"] for size in ("small", "medium", "large")] == [1, 1, 1]
    assert [sizes[size]["hits"] for size in ("small", "medium", "large")] == [0, 1, 1]
    assert sizes["small"]["pq"] == 0 and sizes["medium"]["pq"] == 100
    assert sizes["small"]["pq_lost_missed"] == pytest.approx(100 * (1 - 1 / 1.5) / 2)
    assert sizes["large"]["pq_lost_missed"] == 0


def test_worst_images_are_those_that_cost_most():
    good = (found(ROW, {1: PERSON, 2: SKY}), true(ROW, {1: PERSON, 2: SKY}))
    bad = (found([[0] * 20], {}), true(ROW, {1: PERSON, 2: SKY}))
    half = (found([[1] * 10 + [0] * 10], {1: PERSON}), true(ROW, {1: PERSON, 2: SKY}))
    rows = of([good, half, bad, good], PanopticErrors(CATEGORIES, worst=3)).compute()["tables"]["worst_pictures"]
    assert [(row["number"], row["lost"]) for row in rows] == [(2, 1.0), (1, 0.5), (0, 0.0)]
    assert rows[1]["pq"] == pytest.approx(100 / 1.5) and rows[1]["errors"]["missed"] == 1


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_false_segment_has_one_error_and_all_repairs_give_100(numbers):
    images = [random_image(seed) for seed in numbers]
    figures, pq = of(images).compute(), pq_of(images)
    assert figures["tables"]["pq"] == pytest.approx(pq["pq"], abs=1e-9, nan_ok=True)
    for name, row in figures["per_class"].items():
        expected = pq["per_class"][name]
        assert row["pq"] == pytest.approx(expected["pq"], abs=1e-9, nan_ok=True)
        assert sum(row[kind] for kind in KINDS) == expected["fp"] + expected["fn"]
    if any(not segment.iscrowd for _, annotation in images for segment in annotation.segments):
        assert figures["tables"]["all_repaired"] == 100


def repaired(result: PanopticMap, annotation: PanopticAnnotation, kind: str) -> PanopticMap:
    """The map itself repaired, from masks, with the definitions of the module's text read literally."""
    ids_HW, labels = result.ids_HW.copy(), {each.id: each.label for each in result.segments}
    trues = {each.id: each.label for each in annotation.segments if not each.iscrowd}
    excused = {i for i in labels if excuse(result, annotation, i)}
    void = annotation.ids_HW == 0
    mask_t = {i: annotation.ids_HW == i for i in trues}
    mask_f = {i: (result.ids_HW == i) & ~void for i in labels if i not in excused}
    hits = {(t, f) for t in trues for f in mask_f if trues[t] == labels[f] and iou(mask_t[t], mask_f[f]) > 0.5}
    free_t, free_f = set(trues) - {t for t, _ in hits}, set(mask_f) - {f for _, f in hits}
    for t in sorted(free_t):
        for f in sorted(free_f):
            if iou(mask_t[t], mask_f[f]) > 0.5:
                free_t, free_f = free_t - {t}, free_f - {f}
                if kind == "class":
                    labels[f] = trues[t]
    if kind == "class":
        return found(ids_HW, labels)
    for t in sorted(trues):
        own = [f for a, f in hits if a == t]
        pieces = [
            f for f in sorted(free_f) if labels[f] == trues[t] and 2 * (mask_f[f] & mask_t[t]).sum() > mask_f[f].sum()
        ]
        whole = np.logical_or.reduce([mask_f[f] for f in own + pieces]) if own + pieces else void & False
        if pieces and len(own + pieces) > 1 and (own or t in free_t) and iou(mask_t[t], whole) > 0.5:
            free_t, free_f = free_t - {t}, free_f - set(pieces)
            if kind == "split":
                ids_HW[np.isin(ids_HW, pieces)] = (own + pieces)[0]
    if kind == "split":
        return present(ids_HW, labels)
    for f in sorted(mask_f):
        own = [t for t, b in hits if b == f]
        parts = [
            t for t in sorted(free_t) if labels[f] == trues[t] and 2 * (mask_f[f] & mask_t[t]).sum() > mask_t[t].sum()
        ]
        whole = np.logical_or.reduce([mask_t[t] for t in own + parts]) if own + parts else void & False
        if parts and len(own + parts) > 1 and (own or f in free_f) and iou(whole, mask_f[f]) > 0.5:
            free_t, free_f = free_t - set(parts), free_f - {f}
            ids_HW[result.ids_HW == f] = 0
            for t in own + parts:
                new = 100 + t
                ids_HW[mask_f[f] & mask_t[t]] = new
                labels[new] = trues[t]
    return present(ids_HW, labels)


def present(ids_HW, labels) -> PanopticMap:
    return found(ids_HW, {i: c for i, c in labels.items() if (ids_HW == i).any()})


def iou(one, two) -> float:
    union = (one | two).sum()
    return (one & two).sum() / union if union else 0.0


def excuse(result, annotation, i) -> bool:
    mask, label = result.ids_HW == i, next(each.label for each in result.segments if each.id == i)
    crowds = [each.id for each in annotation.segments if each.iscrowd and each.label == label][-1:]
    on = np.isin(annotation.ids_HW, [0, *crowds]) & mask
    void = annotation.ids_HW == 0
    is_hit = any(
        iou(annotation.ids_HW == each.id, mask & ~void) > 0.5
        for each in annotation.segments
        if not each.iscrowd and each.label == label
    )
    return not is_hit and 2 * on.sum() > mask.sum()


@pytest.mark.parametrize("kind", ["class", "split", "merged"])
@settings(max_examples=60, deadline=None)
@given(numbers=seeds)
def test_a_repaired_map_has_the_promised_pq(kind, numbers):
    images = [random_image(seed) for seed in numbers]
    after = pq_of([(repaired(result, annotation, kind), annotation) for result, annotation in images])["pq"]
    figures = of(images).compute()
    assert figures[f"pq_lost_{kind}"] == pytest.approx(after - figures["tables"]["pq"], abs=1e-8, nan_ok=True)


def test_the_random_images_have_every_error():
    figures = of([random_image(seed) for seed in range(150)]).compute()
    totals = {kind: sum(row[kind] for row in figures["per_class"].values()) for kind in KINDS}
    assert min(totals.values()) > 10, totals
    assert all(figures[f"pq_lost_{kind}"] > 0 for kind in KINDS)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_parts_saved_and_merged_in_any_grouping_give_the_same(numbers):
    images = [random_image(seed) for seed in numbers]
    whole = of(images)
    restored = PanopticErrors(CATEGORIES)
    for image in images:
        restored.restore(json.loads(json.dumps(of([image]).state())))
    left, right = of(images[:2]), pickle.loads(pickle.dumps(of(images[2:])))
    left.merge(right)
    for other in (restored, left):
        assert json.dumps(other.state()) == json.dumps(whole.state())
        assert json.dumps(other.compute()) == json.dumps(whole.compute())


def test_what_is_kept_does_not_grow():
    images = [random_image(seed) for seed in range(30)]
    metric = of(images * 4)
    small = len(pickle.dumps(metric.state()))
    assert len(pickle.dumps(of(images * 8, metric).state())) < 1.1 * small


@pytest.mark.parametrize(
    "damage",
    [
        {"pictures": -1},
        {"pictures": None},
        {"sums": [[0, 0, 9, 1, 1, 1, 1]]},
        {"sums": [[0, 0]]},
        {"sums": 3},
        {"confusion": [[0, 0, "x"]]},
        {"worst": [[1, 2]]},
        {"worst": [[0] * 11 + [-1]]},
    ],
)
def test_damaged_states_are_refused_and_add_nothing(damage):
    metric = of([random_image(1)])
    before = json.dumps(metric.state())
    with pytest.raises(DataError, match="damaged"):
        metric.restore({**metric.state(), **damage})
    with pytest.raises(DataError, match="damaged"):
        metric.restore({})
    assert json.dumps(metric.state()) == before


def test_unusable_images_are_refused():
    with pytest.raises(DataError, match="id 7"):
        of([(found([[7]], {}), true([[1]], {1: 0}))])
    with pytest.raises(DataError, match="class number 9"):
        of([(found([[1]], {1: 9}), true([[1]], {1: 0}))])
    with pytest.raises(DataError, match="several segments of the id 1"):
        of([(PanopticMap((1, 1), CATEGORIES, np.ones((1, 1), np.int32), [Segment(1, 0, 1.0, 1)] * 2), true([[1]], {}))])


def test_real_annotations_against_themselves_and_damaged(annotated):
    perfect, worse = PanopticErrors(annotated.categories), PanopticErrors(annotated.categories)
    pq = PanopticQuality(annotated.categories)
    for annotation in annotated.annotations:
        segments = [Segment(s.id, s.label, 1.0, 0) for s in annotation.segments if (annotation.ids_HW == s.id).any()]
        perfect.update(PanopticMap(annotation.size, annotated.categories, annotation.ids_HW, segments), annotation)
        moved = PanopticMap(annotation.size, annotated.categories, np.roll(annotation.ids_HW, 12, axis=1), segments)
        worse.update(moved, annotation)
        pq.update(moved, annotation)
    figures = perfect.compute()
    assert [figures[f"pq_lost_{kind}"] for kind in KINDS] == [0] * len(KINDS) and figures["tables"]["pq"] == 100
    damaged, expected = worse.compute(), pq.compute()
    assert damaged["tables"]["pq"] == pytest.approx(expected["pq"], abs=1e-9) and expected["pq"] < 90
    assert damaged["pq_lost_boundary"] > 5 and damaged["tables"]["all_repaired"] == 100
    for name, row in expected["per_class"].items():
        assert sum(damaged["per_class"][name][kind] for kind in KINDS) == row["fp"] + row["fn"]


def test_it_is_a_plug_in():
    assert plugins.get("metrics", "pq-errors") is PanopticErrors


def test_nothing_at_all():
    figures = PanopticErrors(CATEGORIES).compute()
    assert all(math.isnan(figures[f"pq_lost_{kind}"]) for kind in KINDS)
    assert figures["tables"]["worst_pictures"] == [] and json.dumps(figures["tables"]["sizes"])
