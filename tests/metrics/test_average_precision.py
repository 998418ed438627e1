"""Mask AP against pycocotools used by hand, and between the engines."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2f_cli.errors import ConfigError, DataError, MissingDependency
from m2f_cli.metrics import average_precision
from m2f_cli.metrics.average_precision import ENGINES, AveragePrecision, BoundaryAveragePrecision
from m2f_cli.metrics.comparable import instance_annotation
from m2f_cli.results.types import Instances
from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation, SemanticAnnotation
from m2f_cli.structures.categories import Category
from m2f_cli.structures.rle import encode_shape

CATEGORIES = (
    Category(1, "person", True, (0, 0, 0)),
    Category(187, "sky", False, (0, 0, 0)),
    Category(3, "car", True, (0, 0, 0)),
    Category(4, "bus", True, (0, 0, 0)),
)
PERSON, SKY, CAR, BUS = range(4)
STATS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
INSTALLED = [name for name, module in ENGINES.items() if importlib.util.find_spec(module.partition(".")[0])]
needs_faster = pytest.mark.skipif(len(INSTALLED) < 2, reason="needs faster-coco-eval (the extra eval)")
engines = pytest.mark.parametrize("engine", INSTALLED)
SIZE = (160, 200)


def box(top, left, height, width, size=SIZE) -> dict:
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return coco_mask.encode(np.asfortranarray(mask))


def found(*objects, size=SIZE) -> Instances:
    """(label, score, rle) each"""
    labels, scores, rles = zip(*objects, strict=True) if objects else ((), (), ())
    return Instances(size, CATEGORIES, np.array(labels, np.int64), np.array(scores, np.float32), list(rles))


def as_found(annotation: InstanceAnnotation) -> Instances:
    return found(
        *(
            (each.label, 1.0, encode_shape(each.shape, annotation.size))
            for each in annotation.objects
            if not each.iscrowd
        ),
        size=annotation.size,
    )


def random_image(seed: int) -> tuple[Instances, InstanceAnnotation]:
    """Boxes of all sizes with crowds and annotated areas; the result moves, drops, repeats and renames them."""
    rng = np.random.default_rng(seed)
    true, results = [], []
    for _ in range(int(rng.integers(0, 7))):
        edge = int(rng.choice([6, 20, 60, 110]))
        top, left = int(rng.integers(0, 160 - edge)), int(rng.integers(0, 200 - edge))
        label, crowd = int(rng.choice([PERSON, CAR])), rng.random() < 0.15
        area = None if rng.random() < 0.5 else float(edge * edge * rng.uniform(0.5, 1.0))
        polygon = np.array([(left, top), (left + edge, top), (left + edge, top + edge), (left, top + edge)], float)
        shape = [polygon] if rng.random() < 0.5 and not crowd else box(top, left, edge, edge)
        true.append(AnnotatedObject(label, shape, bool(crowd), area))
        for _ in range(int(rng.integers(0, 4))):
            shift = int(rng.integers(0, 1 + edge // 4))
            rle = box(max(0, top - shift), left, edge, max(1, edge - shift))
            renamed = int(rng.choice([PERSON, SKY, CAR])) if rng.random() < 0.2 else label
            results.append((renamed, float(rng.integers(1, 50)) / 50, rle))
    return found(*sorted(results, key=lambda each: -each[1])), InstanceAnnotation(SIZE, true)


def fast_tools():
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def whole(images, tools=(COCO, COCOeval), iou_type="segm", **params):
    """The official evaluation, all images in one go: json dictionaries, loadRes, evaluate, accumulate."""
    annotations, results = [], []
    for number, (result, annotation) in enumerate(images, 1):
        for each in annotation.objects:
            polygons = not isinstance(each.shape, dict)
            segmentation = [polygon.ravel().tolist() for polygon in each.shape] if polygons else each.shape
            area = float(coco_mask.area(encode_shape(each.shape, annotation.size))) if each.area is None else each.area
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "iscrowd": int(each.iscrowd),
                    "category_id": CATEGORIES[each.label].id,
                    "segmentation": segmentation,
                    "area": area,
                }
            )
        for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True):
            results.append(
                {"image_id": number, "category_id": CATEGORIES[label].id, "segmentation": rle, "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = tools[0]()
        coco.dataset = {
            "images": [{"id": i + 1, "height": t.size[0], "width": t.size[1]} for i, (_, t) in enumerate(images)],
            "annotations": annotations,
            "info": {},
            "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES if c.isthing],
        }
        coco.createIndex()
        run = tools[1](coco, coco.loadRes(results), iou_type)
        for name, value in params.items():
            setattr(run.params, name, value)
        run.evaluate()
        run.accumulate()
    return run


def by_hand(images, **how) -> list[float]:
    """The twelve official figures."""
    run = whole(images, **how)
    with contextlib.redirect_stdout(io.StringIO()):
        run.summarize()
    return [100 * float(value) for value in run.stats[:12]]


def of(images, kind=AveragePrecision, **options) -> AveragePrecision:
    metric = kind(CATEGORIES, **options)
    for result, annotation in images:
        metric.update(result, annotation)
    return metric


@engines
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_the_official_figures_to_the_last_bit(engine, seed):
    images = [random_image(seed + i) for i in range(12)]
    figures = of(images, engine=engine).compute()
    assert [figures[name] for name in STATS] == by_hand(images)
    assert 5 < figures["ap"] < 95 and figures["ap50"] != figures["ap75"]
    per_class = figures["per_class"]
    assert set(per_class) == {"person", "car", "bus"} and math.isnan(per_class["bus"]["ap"])
    assert figures["ap"] == pytest.approx((per_class["person"]["ap"] + per_class["car"]["ap"]) / 2)
    assert per_class["bus"]["objects"] == 0 and per_class["car"]["objects"] == sum(
        each.label == CAR and not each.iscrowd for _, annotation in images for each in annotation.objects
    )


@needs_faster
def test_the_figures_of_the_whole_fast_engine():
    images = [random_image(i) for i in range(40)]
    figures = of(images).compute()
    expected = by_hand(images, tools=fast_tools())
    assert [figures[name] for name in STATS] == pytest.approx(expected, abs=1e-10)


@needs_faster
def test_the_engines_agree_to_the_last_bit():
    images = [random_image(i) for i in range(40)]
    one, two = (of(images, engine=engine).compute() for engine in ENGINES)
    assert str(one) == str(two)


def crowded_image(seed: int) -> tuple[Instances, InstanceAnnotation]:
    """Strips in few pixels: equal overlaps, equal scores, several candidates for one object, crowds, odd areas."""
    rng = np.random.default_rng(seed)

    def strip():
        start = int(rng.integers(0, 10))
        return box(0, start, 4, int(rng.integers(1, 12 - start)), size=(4, 12))

    areas = [20.0, 1024.0, 1025.0, 9216.0, 20_000.0]
    true = [
        AnnotatedObject(int(rng.choice([PERSON, CAR])), strip(), bool(rng.random() < 0.2), float(rng.choice(areas)))
        for _ in range(rng.integers(0, 6))
    ]
    masks = [each.shape for each in true] + [strip() for _ in range(4)]
    results = [
        (int(rng.choice([PERSON, CAR, BUS])), float(rng.integers(1, 4)) / 4, masks[int(rng.integers(len(masks)))])
        for _ in range(rng.integers(0, 9))
    ]
    return found(*results, size=(4, 12)), InstanceAnnotation((4, 12), true)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 10, 100), (1, 2), (3,)]))
def test_every_curve_is_that_of_pycocotools(seed, max_dets):
    images = [crowded_image(seed + i) for i in range(10)]
    images.append((found((PERSON, 0.5, box(0, 0, 2, 2, size=(4, 12))), size=(4, 12)), InstanceAnnotation((4, 12), [])))
    run = whole(images, maxDets=list(max_dets))
    precision_TRKA, recall_TKAM = of(images, max_dets=max_dets).curves()
    assert np.array_equal(precision_TRKA, run.eval["precision"][..., -1])
    assert np.array_equal(recall_TKAM, run.eval["recall"])
    assert (precision_TRKA[..., 2, :] == -1).all()


@needs_faster
@pytest.mark.parametrize("seed", [0, 50])
def test_boundary_ap_is_that_of_the_fast_engine(seed):
    images = [random_image(seed + i) for i in range(15)]
    figures = of(images, kind=BoundaryAveragePrecision).compute()
    expected = by_hand(images, tools=fast_tools(), iou_type="boundary")
    assert [figures["boundary_" + name] for name in STATS] == pytest.approx(expected, abs=1e-10)
    assert figures["boundary_ap"] < of(images).compute()["ap"]
    assert set(figures["per_class"]["car"]) == {"boundary_ap", "boundary_ap50", "boundary_ar", "objects"}


def test_what_is_kept_of_a_image_is_small():
    one, many = of([random_image(3)]), of([random_image(3)] * 400)
    objects = len(random_image(3)[0]) * 399
    assert objects > 2000 and (len(pickle.dumps(many)) - len(pickle.dumps(one))) / objects < 20
    assert len(json.dumps(of([random_image(3)]).state())) < 1000


@engines
def test_parts_merge_to_the_whole_and_compute_changes_nothing(engine):
    images = [random_image(i) for i in range(9)]
    whole = pickle.loads(pickle.dumps(of(images[:4], engine=engine)))
    whole.merge(pickle.loads(pickle.dumps(of(images[4:4], engine=engine))))
    whole.merge(pickle.loads(pickle.dumps(of(images[4:], engine=engine))))
    assert str(whole.compute()) == str(of(images, engine=engine).compute()) == str(whole.compute())


@engines
def test_ap_equals_that_by_hand(engine):
    """Of two persons one is found, after a mistake: precision 1/2 up to recall 1/2, 0 beyond: 51 of 101 points."""
    annotation = InstanceAnnotation(
        SIZE, [AnnotatedObject(PERSON, box(0, 0, 40, 40)), AnnotatedObject(PERSON, box(100, 100, 50, 50))]
    )
    result = found((PERSON, 0.9, box(50, 50, 20, 20)), (PERSON, 0.8, box(0, 0, 40, 40)))
    figures = of([(result, annotation)], engine=engine).compute()
    assert figures["ap"] == figures["ap50"] == pytest.approx(100 * 0.5 * 51 / 101)
    assert figures["ar100"] == 50.0 and figures["ar1"] == 0.0
    assert figures["ap_medium"] == pytest.approx(100 * 51 / 101)  # there the mistake, a small one, does not count
    assert math.isnan(figures["ap_small"])


def test_the_mean_of_a_curve_is_its_ap():
    metric = AveragePrecision(CATEGORIES)
    assert metric.compute()["tables"] == {"precision": {}}
    for seed in range(20):
        metric.update(*random_image(seed))
    figures = metric.compute()
    curves = figures["tables"]["precision"]
    assert {len(curve) for curve in curves.values()} == {101}
    for curve, name in (("0.50", "ap50"), ("0.75", "ap75"), ("mean", "ap")):
        # points are rounded to 4 digits
        assert np.mean(curves[curve]) == pytest.approx(figures[name], abs=5e-5)


@engines
def test_annotation_against_itself_is_100(engine):
    annotations = [random_image(i)[1] for i in range(12)]
    figures = of([(as_found(annotation), annotation) for annotation in annotations], engine=engine).compute()
    assert [figures[name] for name in STATS if name not in ("ar1", "ar10")] == pytest.approx([100.0] * 10)


@engines
def test_things_of_annotated_images_against_themselves_are_100(engine, annotated, monkeypatch):
    monkeypatch.setattr(f"{__name__}.CATEGORIES", annotated.categories)
    annotations = [instance_annotation(annotation, annotated.categories) for annotation in annotated.annotations]
    metric = AveragePrecision(annotated.categories, engine=engine)
    for annotation, panoptic in zip(annotations, annotated.annotations, strict=True):
        metric.update(as_found(annotation), panoptic)
    figures = metric.compute()
    assert figures["ap"] == figures["ap50"] == figures["ar100"] == 100.0
    present = {
        annotated.categories[each.label].name
        for annotation in annotations
        for each in annotation.objects
        if not each.iscrowd
    }
    assert {name for name, row in figures["per_class"].items() if row["ap"] > 99.999} == present


@engines
def test_recall_counts_at_most_max_dets(engine):
    boxes = [box(10 * i, 10 * j, 8, 8) for i in range(10) for j in range(12)]
    annotation = InstanceAnnotation(SIZE, [AnnotatedObject(CAR, rle) for rle in boxes])
    images = [(found(*((CAR, 1 - i / 1000, rle) for i, rle in enumerate(boxes))), annotation)]
    few = of(images, engine=engine).compute()
    assert few["ar1"] == pytest.approx(100 / 120) and few["ar100"] == pytest.approx(100 * 100 / 120)
    many = of(images, engine=engine, max_dets=(100, 300)).compute()
    assert many["ap"] == many["ar300"] == many["ar_small"] == 100.0 and many["ar100"] == few["ar100"]


@engines
@pytest.mark.parametrize(
    "images",
    [
        [],
        [(found(), InstanceAnnotation(SIZE, []))],
        [(found((CAR, 0.5, box(0, 0, 5, 5))), InstanceAnnotation(SIZE, []))],
    ],
    ids=["no images", "empty", "no annotation"],
)
def test_without_annotation_it_is_nan(engine, images):
    figures = of(images, engine=engine).compute()
    assert all(math.isnan(figures[name]) for name in STATS)


@engines
def test_nothing_found_is_0(engine):
    annotation = InstanceAnnotation(SIZE, [AnnotatedObject(CAR, box(0, 0, 9, 9))])
    assert of([(found(), annotation)], engine=engine).compute()["ap"] == 0.0


@engines
def test_computing_prints_nothing(engine, capfd):
    of([random_image(1)], engine=engine).compute()
    assert capfd.readouterr() == ("", "")


def test_settings_that_make_no_sense_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="countable"):
        AveragePrecision(CATEGORIES[1:2])
    with pytest.raises(ConfigError, match=r"max_dets = \(10, 1\)"):
        AveragePrecision(CATEGORIES, max_dets=(10, 1))
    with pytest.raises(ConfigError, match="pycocotool"):
        AveragePrecision(CATEGORIES, engine="pycocotool")
    monkeypatch.setattr(average_precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="faster-coco-eval"):
        AveragePrecision(CATEGORIES, engine="faster-coco-eval")


@pytest.mark.parametrize(
    ("annotation", "error", "says"),
    [
        (InstanceAnnotation((2, 2), []), DataError, "160 x 200 pixels and its annotation 2 x 2"),
        (
            InstanceAnnotation(SIZE, [AnnotatedObject(SKY, box(0, 0, 2, 2))]),
            DataError,
            "class number 1,.* 3 countable classes of 4",
        ),
        (SemanticAnnotation(np.zeros(SIZE, np.uint8)), ConfigError, "SemanticAnnotation"),
    ],
)
def test_what_does_not_fit_is_said(annotation, error, says):
    metric = AveragePrecision(CATEGORIES)
    with pytest.raises(error, match=says):
        metric.update(found(), annotation)
    assert metric.state()["classes"] == []
