"""Views of an evaluation: segments with what is right and wrong about them, and the journal that keeps them."""

from __future__ import annotations

import base64
import io
import json
import math

import numpy as np
import pytest
from evaluation.test_run import COUNT, Record, evaluation, records
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, instances, panoptic, scene, scene_labels, semantic
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.errors import DataError
from m2f_cli.evaluation.evaluate import Annotations
from m2f_cli.evaluation.run import run
from m2f_cli.evaluation.stored_views import open_views
from m2f_cli.evaluation.views import view_of
from m2f_cli.metrics.pq_repairs import compare_segments, kinds_of, repairs
from m2f_cli.results.types import Instances
from m2f_cli.structures.annotations import AnnotatedObject, AnnotatedSegment, InstanceAnnotation, PanopticAnnotation


def annotation(labels_HW: np.ndarray, crowds: tuple[int, ...] = ()) -> PanopticAnnotation:
    segments = [AnnotatedSegment(label + 1, label, label in crowds) for label in np.unique(labels_HW).tolist()]
    return PanopticAnnotation(labels_HW.astype(np.int32) + 1, segments)


def view(result, truth, *, image=None, edge: int = 320) -> dict:
    result.image = scene() if image is None else image
    seen = view_of(Record(0), {result.task: result}, truth, CATEGORIES, edge)
    return json.loads(json.dumps(seen))


def mask(segment: dict, size) -> np.ndarray:
    return coco_mask.decode({"size": list(size), "counts": segment["counts"].encode()}).astype(bool)


def test_a_right_segment_is_a_hit_with_its_partner_iou_area_and_mask():
    labels_HW = scene_labels()
    seen = view(panoptic(labels_HW), annotation(labels_HW))
    assert (seen["name"], seen["size"], seen["thumbnail"]["size"]) == ("000", [48, 64], [48, 64])
    found, true = seen["tasks"]["panoptic"]["found"], seen["tasks"]["panoptic"]["true"]
    assert seen["tasks"]["panoptic"]["figure"] == 100.0
    assert [each["label"] for each in found] == [SKY, GRASS, PERSON] == [each["label"] for each in true]
    for number, (one, other) in enumerate(zip(found, true, strict=True)):
        assert one["kind"] == other["kind"] == "hit" and one["iou"] == other["iou"] == 1.0
        assert one["partner"] == other["partner"] == number
        assert one["area"] == other["area"] == (labels_HW == one["label"]).sum()
        assert (mask(one, (48, 64)) == (labels_HW == one["label"])).all()
    assert [each["score"] for each in found] == [0.9, 0.8, 0.7]


def test_the_thumbnail_is_a_small_jpeg_and_the_masks_have_its_size():
    labels_HW = scene_labels(480, 640)
    seen = view(panoptic(labels_HW), annotation(labels_HW), image=scene(480, 640), edge=160)
    assert seen["size"] == [480, 640] and seen["thumbnail"]["size"] == [120, 160]
    with Image.open(io.BytesIO(base64.b64decode(seen["thumbnail"]["jpeg"]))) as image:
        assert image.format == "JPEG" and image.size == (160, 120)
    person = seen["tasks"]["panoptic"]["found"][PERSON]
    assert (mask(person, (120, 160)) == (scene_labels(120, 160) == PERSON)).mean() > 0.99
    assert person["area"] == (labels_HW == PERSON).sum()


def test_an_image_without_pixels_has_a_view_without_a_picture():
    labels_HW = scene_labels()
    result = panoptic(labels_HW)
    seen = view_of(Record(0), {"panoptic": result}, annotation(labels_HW), CATEGORIES)
    assert seen["thumbnail"] == {"size": [48, 64], "jpeg": ""}


@pytest.mark.parametrize(
    ("found", "true", "kinds"),
    [
        ({PERSON: GRASS}, {}, ("missed", None)),
        ({}, {PERSON: GRASS}, (None, "spurious")),
        ({SKY: PERSON, PERSON: SKY}, {}, ("class", "class")),
    ],
    ids=["missed", "spurious", "class"],
)
def test_errors_have_the_kind_that_the_metric_counts(found, true, kinds):
    labels_HW = scene_labels()
    swap = [np.vectorize(lambda v, m=m: m.get(v, v), otypes=[np.uint8])(labels_HW) for m in (found, true)]
    seen = view(panoptic(swap[0]), annotation(swap[1]))["tasks"]["panoptic"]
    of_person = [next((s["kind"] for s in seen[key] if s["label"] == PERSON), None) for key in ("true", "found")]
    assert tuple(of_person) == kinds


def test_the_kinds_of_segments_add_up_to_the_repairs_of_the_metric():
    random = np.random.default_rng(0)
    for _ in range(30):
        maps = [np.kron(random.integers(0, 3, (6, 8)), np.ones((8, 8), int)).astype(np.uint8) for _ in range(2)]
        image = compare_segments(panoptic(maps[0]), annotation(maps[1]), 3)
        kinds = [kind for side in kinds_of(image) for kind in side]
        for kind, changes in repairs(image).items():
            assert kinds.count(kind) == -sum(each.wrong + each.missed for each in changes)


def test_crowds_are_shown_and_count_neither_as_right_nor_as_wrong():
    labels_HW = scene_labels()
    seen = view(panoptic(labels_HW), annotation(labels_HW, crowds=(PERSON,)))["tasks"]["panoptic"]
    crowd = seen["true"][-1]
    assert (crowd["label"], crowd["kind"], crowd["partner"]) == (PERSON, "crowd", None)
    assert crowd["area"] == (labels_HW == PERSON).sum() and crowd["counts"] == seen["found"][PERSON]["counts"]
    assert seen["found"][PERSON]["kind"] == "excused" and seen["figure"] == 100.0


def shape(top: int, bottom: int, left: int = 0, right: int = 64) -> dict:
    mask_HW = np.zeros((48, 64), np.uint8)
    mask_HW[top:bottom, left:right] = 1
    return coco_mask.encode(np.asfortranarray(mask_HW))


def objects(*found: tuple[int, float, dict]) -> Instances:
    labels, scores, rles = zip(*found, strict=True) if found else ((), (), ())
    return Instances((48, 64), CATEGORIES, np.array(labels, int), np.array(scores, np.float32), list(rles))


def test_objects_match_at_half_overlap_best_score_first():
    placed = ((PERSON, shape(0, 20)), (PERSON, shape(30, 40)), (SKY, shape(44, 48)))
    truth = InstanceAnnotation((48, 64), [AnnotatedObject(*each) for each in placed])
    found = objects(
        (PERSON, 0.6, shape(0, 20)),  # its place is taken by the next, which is surer
        (PERSON, 0.9, shape(0, 18)),
        (PERSON, 0.8, shape(34, 48)),
        (GRASS, 0.7, shape(44, 48)),
        (GRASS, 0.3, shape(21, 24)),
        (GRASS, 0.01, shape(0, 48)),  # too weak to be shown
    )
    seen = view(found, truth)["tasks"]["instance"]
    assert [(each["score"], each["kind"], each["partner"]) for each in seen["found"]] == [
        (0.9, "hit", 0),
        (0.8, "boundary", 1),
        (0.7, "class", 2),
        (0.6, "duplicate", 0),
        (0.3, "spurious", None),
    ]
    assert [(each["kind"], each["partner"]) for each in seen["true"]] == [("hit", 0), ("boundary", 1), ("class", 2)]
    assert seen["found"][0]["iou"] == 0.9 and seen["true"][0]["iou"] == 0.9
    assert seen["figure"] == pytest.approx(100 * 0.9 / (1 + (3 + 2) / 2), abs=1e-3)


def test_more_than_255_objects():
    count = 300
    found = objects(*((PERSON, 1 - i / 1000, shape(0, 10 + i % 7)) for i in range(count)))
    truth = InstanceAnnotation((48, 64), [AnnotatedObject(PERSON, shape(0, 10)) for _ in range(count)])
    seen = view(found, truth)["tasks"]["instance"]
    assert [each["area"] for each in seen["found"]] == [64 * (10 + i % 7) for i in range(count)]
    assert [each["area"] for each in seen["true"]] == [640] * count


def test_an_object_on_a_crowd_is_excused_and_empty_results_leave_all_missed():
    truth = InstanceAnnotation((48, 64), [AnnotatedObject(PERSON, shape(0, 40), iscrowd=True)])
    seen = view(objects((PERSON, 0.9, shape(0, 10))), truth)["tasks"]["instance"]
    assert seen["found"][0]["kind"] == "excused" and seen["true"][0]["kind"] == "crowd" and seen["figure"] is None
    lone = InstanceAnnotation((48, 64), [AnnotatedObject(PERSON, shape(0, 40))])
    assert view(objects(), lone)["tasks"]["instance"]["true"][0]["kind"] == "missed"
    assert view(instances(scene_labels()), InstanceAnnotation((48, 64), []))["tasks"]["instance"]["figure"] == 0.0


def test_classes_of_pixels_have_their_iou_and_say_what_they_are_taken_for():
    labels_HW = scene_labels()
    wrong_HW = np.where(labels_HW == PERSON, GRASS, labels_HW).astype(np.uint8)
    seen = view(semantic(wrong_HW), annotation(labels_HW))["tasks"]["semantic"]
    person, below = int((labels_HW == PERSON).sum()), int((labels_HW == GRASS).sum())
    assert [each["label"] for each in seen["true"]] == [SKY, GRASS, PERSON]
    assert [each["kind"] for each in seen["true"]] == ["hit", "hit", "missed"]
    assert seen["found"][GRASS]["iou"] == pytest.approx(below / (below + person), abs=1e-4)
    assert seen["confusion"] == [
        [SKY, SKY, int((labels_HW == SKY).sum())],
        [GRASS, GRASS, below],
        [PERSON, GRASS, person],
    ]
    assert seen["figure"] == pytest.approx(100 * (1 + below / (below + person) + 0) / 3, abs=1e-3)


def test_a_task_for_which_an_image_does_not_count_has_no_comparison():
    labels_HW = scene_labels()
    result = panoptic(labels_HW)
    seen = view_of(Record(0), {"panoptic": result}, Annotations(annotation(labels_HW), {"panoptic": None}), CATEGORIES)
    assert seen["tasks"] == {}


# --- the journal ------------------------------------------------------------------------------------------------------


def test_views_lie_beside_the_journal_and_the_figures_are_the_same(tmp_path):
    plain, viewed = run(evaluation(tmp_path / "a")), run(evaluation(tmp_path / "b", thumbnails=32))
    assert plain.figures == viewed.figures
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["pictures.jsonl", "views.jsonl"]
    stored = open_views(tmp_path / "b")
    assert stored.tasks == ["panoptic", "instance", "semantic"] and stored.categories == CATEGORIES
    seen = list(stored)
    assert [(each.name, each.number) for each in seen] == [(f"{i:03}", i) for i in range(COUNT)]
    assert all(max(each.thumbnail.size) == 32 and list(each.tasks) == stored.tasks for each in seen)


def test_a_stopped_evaluation_goes_on_with_its_views(tmp_path):
    def stop(progress):
        if progress.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(evaluation(tmp_path / "a", thumbnails=32), on_progress=stop)
    with (tmp_path / "a" / "views.jsonl").open("ab") as file:
        file.write(b'{"name": "half a li')
    run(evaluation(tmp_path / "a", thumbnails=32), resume=True)
    run(evaluation(tmp_path / "b", thumbnails=32))
    assert (tmp_path / "a" / "views.jsonl").read_bytes() == (tmp_path / "b" / "views.jsonl").read_bytes()


def test_views_of_several_processes_are_put_together(tmp_path):
    run(evaluation(tmp_path / "a", thumbnails=32))
    whole = (tmp_path / "a" / "views.jsonl").read_text()
    header, *views = whole.splitlines(keepends=True)
    (tmp_path / "a" / "views.jsonl").write_text("".join([header, *views[:4]]))
    (tmp_path / "a" / "views.1.jsonl").write_text("".join([header, *views[4:]]))
    run(evaluation(tmp_path / "a", thumbnails=32), resume=True)
    assert (tmp_path / "a" / "views.jsonl").read_text() == whole
    assert not (tmp_path / "a" / "views.1.jsonl").exists()


def test_an_image_that_fails_has_no_view(tmp_path):
    items = records(3)
    items[1] = Record(1, broken=True)
    assert run(evaluation(tmp_path / "a", items, thumbnails=32)).images == 2
    assert [each.name for each in open_views(tmp_path / "a")] == ["000", "002"]


SEGMENT = {"label": 0, "area": 1, "kind": "hit", "iou": 0.5, "counts": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"size": [0, 4]},
        {"thumbnail": {"size": [1, 10**9], "jpeg": ""}},
        {"thumbnail": {"size": [1, 1], "jpeg": "javascript:alert(1)"}},
        {"tasks": {"panoptic": {"true": [], "found": [{**SEGMENT, "label": 3}]}}},
        {"tasks": {"panoptic": {"true": [], "found": [{**SEGMENT, "partner": 0}]}}},
        {"tasks": {"panoptic": {"true": [], "found": [{**SEGMENT, "kind": "<b>"}]}}},
        {"tasks": {"panoptic": {"figure": math.nan, "true": [], "found": []}}},
        {"tasks": {"depth": {}}},
    ],
)
def test_views_of_strangers_are_checked(tmp_path, change):
    run(evaluation(tmp_path / "a", thumbnails=32))
    view = {"name": "x", "number": 0, "size": [1, 1], "thumbnail": {"size": [1, 1], "jpeg": ""}, "tasks": {}}
    with (tmp_path / "a" / "views.jsonl").open("a") as file:
        file.write(json.dumps({**view, **change}) + "\n")
    with pytest.raises(DataError, match="views.jsonl is damaged"):
        list(open_views(tmp_path / "a"))


def test_a_folder_without_views_has_none_and_a_newer_version_is_refused(tmp_path):
    assert open_views(tmp_path) is None
    (tmp_path / "views.jsonl").write_text('{"header": {"schema_version": 2}}\n')
    with pytest.raises(DataError, match="has the version 2, not 1"):
        open_views(tmp_path)
    (tmp_path / "views.jsonl").write_text('{"header": {"schema_version": 1, "categories": 3}}\n')
    with pytest.raises(DataError, match="is damaged: header is wrong"):
        open_views(tmp_path)
