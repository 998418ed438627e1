"""What every metric promises: parts, states that went through json, and the whole have the same bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m2f_cli.errors import DataError
from m2f_cli.metrics.average_precision import AveragePrecision, BoundaryAveragePrecision
from m2f_cli.metrics.boundary import BoundaryIoU, MaSS13KBoundaryIoU
from m2f_cli.metrics.mean_iou import MeanIoU
from m2f_cli.metrics.panoptic_quality import PanopticQuality, StuffQuality
from m2f_cli.metrics.pq_per_image import ImageQuality
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = tuple(Category(10 + i, f"class {i}", i < 2, (i, 0, 0)) for i in range(4))
MAKERS = {
    "pq": lambda: PanopticQuality(CATEGORIES),
    "pq of classes": lambda: PanopticQuality(CATEGORIES, task="semantic"),
    "pq-stuff": lambda: StuffQuality(CATEGORIES),
    "pq-per-picture": lambda: ImageQuality(CATEGORIES),
    "ap": lambda: AveragePrecision(CATEGORIES),
    "ap with few": lambda: AveragePrecision(CATEGORIES, max_dets=(1, 2)),
    "boundary-ap": lambda: BoundaryAveragePrecision(CATEGORIES),
    "miou": lambda: MeanIoU(CATEGORIES),
    "boundary-iou": lambda: BoundaryIoU(CATEGORIES, ratio=0.05),
    "boundary-iou-mass13k": lambda: MaSS13KBoundaryIoU(CATEGORIES),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
SIZE = (16, 20)


def image(seed: int):
    """An annotation, and a result of every task that is a damaged copy of it."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 6, (4, 5)), np.ones((4, 4), int)).astype(np.int32)
    labels = {i: int(rng.integers(0, 4)) for i in range(1, 6)}
    annotation = PanopticAnnotation(
        blocks, [AnnotatedSegment(i, c, bool(rng.random() < 0.2)) for i, c in labels.items()]
    )
    ids_HW = np.roll(blocks, rng.integers(0, 3, 2), (0, 1))
    found = {i: int(rng.integers(0, 4)) if rng.random() < 0.3 else c for i, c in labels.items()}
    panoptic = PanopticMap(SIZE, CATEGORIES, ids_HW, [Segment(i, c, 0.5, 1) for i, c in found.items()])
    semantic = SemanticMap(SIZE, CATEGORIES, np.array([255, *found.values()], np.uint8)[ids_HW])
    rles = [coco_mask.encode(np.asfortranarray(ids_HW == i).astype(np.uint8)) for i in found]
    scores = rng.integers(1, 9, 5).astype(np.float32) / np.float32(9)
    objects = Instances(SIZE, CATEGORIES, np.array(list(found.values())), scores, rles)
    return {"panoptic": panoptic, "semantic": semantic, "instance": objects}, annotation


def of(make, seeds):
    metric = make()
    for seed in seeds:
        results, annotation = image(seed)
        metric.update(results[metric.task], annotation)
    return metric


def bits(metric) -> str:
    return json.dumps(metric.compute())


@every
@settings(max_examples=12, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=7), cut=st.integers(0, 7))
def test_states_parts_and_the_whole_have_the_same_bits(make, seeds, cut):
    whole, restored = of(make, seeds), make()
    for seed in seeds:
        restored.restore(json.loads(json.dumps(of(make, [seed]).state())))
    merged, halves = of(make, seeds[:cut]), make()
    merged.merge(of(make, seeds[cut:]))
    for half in (seeds[:cut], seeds[cut:]):
        halves.restore(json.loads(json.dumps(of(make, half).state())))
    assert bits(restored) == bits(whole) == bits(merged) == bits(halves)
    assert json.dumps(restored.state()) == json.dumps(whole.state())


@every
def test_fresh_is_empty_and_of_the_same_settings(make):
    metric = of(make, [1, 2, 3])
    fresh = metric.fresh()
    assert type(fresh) is type(metric) and bits(fresh) == bits(make()) != bits(metric)
    fresh.merge(metric)
    assert bits(fresh) == bits(metric)


@every
def test_looking_changes_nothing(make):
    metric = of(make, [1, 2])
    before = bits(metric)
    metric.state(), metric.fresh().merge(metric), metric.compute()
    assert bits(metric) == before
    state = metric.state()
    metric.merge(of(make, [3]))
    assert state == of(make, [1, 2]).state()


@every
def test_a_state_is_small(make):
    assert len(json.dumps(of(make, [1]).state())) < 2000


def damaged(value):
    """Every copy of some json with one leaf, one list or one dictionary spoilt."""
    if isinstance(value, dict):
        yield {}
        for key, each in value.items():
            yield from ({**value, key: wrong} for wrong in damaged(each))
    elif isinstance(value, list):
        yield None
        for i, each in enumerate(value):
            yield from ([*value[:i], wrong, *value[i + 1 :]] for wrong in damaged(each))
    else:
        yield from (None, "?", [], -1)


@every
def test_damaged_states_are_said_and_nothing_is_added(make):
    good = of(make, [1, 2]).state()
    tried = 0
    for state in [None, [], "?", 3, *damaged(good)]:
        metric = of(make, [5])
        before = bits(metric)
        if _may_be_a_state(state, good):
            continue
        with pytest.raises(DataError, match="damaged"):
            metric.restore(state)
        assert bits(metric) == before
        tried += 1
    assert tried > 8


def _may_be_a_state(state, good) -> bool:
    """Scores may be any number: one that was replaced by -1 cannot be told from a true one."""
    classes = good.get("classes") if isinstance(good, dict) else None
    if not classes or not isinstance(classes[0][-1], dict) or not isinstance(state, dict):
        return False
    if not isinstance(state.get("classes"), list) or state.get("max_dets") != good["max_dets"]:
        return False
    return any(
        -1 in row[1]["scores"]
        for row in state["classes"]
        if isinstance(row, list)
        and len(row) == 2
        and isinstance(row[1], dict)
        and isinstance(row[1].get("scores"), list)
    )


def test_a_state_of_other_settings_is_refused():
    with pytest.raises(DataError, match="max_dets"):
        AveragePrecision(CATEGORIES).restore(AveragePrecision(CATEGORIES, max_dets=(5,)).state())
    with pytest.raises(DataError, match="ratio"):
        BoundaryIoU(CATEGORIES).restore(BoundaryIoU(CATEGORIES, ratio=0.1).state())
