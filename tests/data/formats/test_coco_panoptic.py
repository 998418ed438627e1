"""COCO panoptic: exactly the segments, classes and crowds of json and PNGs, or one clear error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.folders import (
    ALL,
    IDS,
    SEGMENTS,
    annotation,
    coco_instances,
    coco_panoptic,
    write_ids,
    write_json,
)
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import DataError
from m2f_cli.structures.annotations import as_instance

TRIANGLE = [0, 0, 10, 0, 0, 10]


def only_annotation(data):
    (record,) = data.records
    return record.read_annotation()


def table(tmp_path, text):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("pngs", ["panoptic_val2017", "annotations/panoptic_val2017"])
def test_panoptic_segments_and_void(tmp_path, pngs):
    data = open_data(coco_panoptic(tmp_path, pngs=pngs), "val")
    assert (data.format, data.task) == ("coco-panoptic", "panoptic")
    expected = [("cat", True, (1, 2, 3)), ("dog", True, (4, 5, 6)), ("sky", False, (7, 8, 9))]
    assert [(c.name, c.isthing, c.color) for c in data.categories] == expected
    annotation = only_annotation(data)
    assert annotation.ids_HW.dtype == np.int32
    assert np.array_equal(annotation.ids_HW, IDS)
    segments = [(s.id, s.label, s.iscrowd) for s in annotation.segments]
    assert segments == [(70000, 0, False), (300, 1, True), (5, 2, False)]
    assert data.records[0].labels == (0, 2)


def test_semantic_labels_of_panoptic_data_include_crowds(tmp_path):
    data = open_data(coco_panoptic(tmp_path), "val", task="semantic")
    annotation = only_annotation(data)
    assert (data.task, annotation.ignore, annotation.labels_HW.dtype) == ("semantic", 255, np.uint8)
    assert np.array_equal(annotation.labels_HW, np.select([IDS == 70000, IDS == 300, IDS == 5], [0, 1, 2], 255))


def test_instances_of_panoptic_data_are_its_things(tmp_path):
    data = open_data(coco_panoptic(tmp_path), "val", task="instance")
    assert [c.name for c in data.categories] == ["cat", "dog"]
    annotation = only_annotation(data)
    assert [(item.label, item.iscrowd) for item in annotation.objects] == [(0, False), (1, True)]
    assert np.array_equal(coco_mask.decode(annotation.objects[0].shape), IDS == 70000)
    assert data.records[0].labels == (0,)


def test_instances_come_from_their_own_json_where_there_is_one(tmp_path):
    coco_panoptic(tmp_path)
    coco_instances(tmp_path, [annotation(1, 1, 17, [TRIANGLE])])
    assert open_data(tmp_path, "val").task == "panoptic"
    data = open_data(tmp_path, "val", task="instance")
    assert [item.label for item in only_annotation(data).objects] == [1]


def test_panoptic_classes_of_a_table(tmp_path):
    path = table(tmp_path, "classes: [{name: sky, isthing: false}, cat]")
    annotation = only_annotation(open_data(coco_panoptic(tmp_path), "val", classes=path))
    assert [(s.id, s.label) for s in annotation.segments] == [(70000, 1), (5, 0)]
    assert np.array_equal(annotation.ids_HW, np.where(IDS == 300, 0, IDS))
    objects = only_annotation(open_data(tmp_path, "val", classes=path, task="instance")).objects
    assert [item.label for item in objects] == [1]


def test_a_segment_without_a_pixel_stays(tmp_path):
    hidden = {"id": 9, "category_id": 200, "iscrowd": 0}
    annotation = only_annotation(open_data(coco_panoptic(tmp_path, segments=[*SEGMENTS, hidden]), "val"))
    assert [s.id for s in annotation.segments] == [70000, 300, 5, 9]


@pytest.mark.parametrize(
    ("segments", "ids_HW", "words"),
    [
        (SEGMENTS[:2], IDS, ["1.png", "segment 5", "panoptic_val2017.json"]),
        ([{**SEGMENTS[0], "category_id": 4}, *SEGMENTS[1:]], IDS, ["category_id 4", "3 to 200"]),
        (SEGMENTS, IDS[:10], ["1.png", "10 x 30", "20 x 30"]),
    ],
)
def test_png_and_json_that_do_not_fit(tmp_path, segments, ids_HW, words):
    with pytest.raises(DataError) as error:
        only_annotation(open_data(coco_panoptic(tmp_path, segments=segments, ids_HW=ids_HW), "val"))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_damaged_and_grey_pngs(tmp_path):
    (record,) = open_data(coco_panoptic(tmp_path), "val").records
    png = tmp_path / "panoptic_val2017" / "1.png"
    content = png.read_bytes()
    png.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"1\.png"):
        record.read_annotation()
    write_ids(png, IDS)
    png.rename(png.with_name("2.png"))
    with pytest.raises(DataError, match=r"The mask .*1\.png is missing"):
        record.read_annotation()
    png.with_name("2.png").unlink()
    with pytest.raises(DataError, match="PNGs of .* are missing"):
        open_data(tmp_path, "val")


def test_categories_of_panoptic_data_must_say_isthing(tmp_path):
    categories = [{key: value for key, value in row.items() if key != "isthing"} for row in ALL]
    with pytest.raises(DataError, match="isthing"):
        open_data(coco_panoptic(tmp_path, categories=categories), "val")


def test_an_instance_json_under_a_panoptic_name(tmp_path):
    coco_panoptic(tmp_path)
    tree = json.loads((tmp_path / "annotations/panoptic_val2017.json").read_text())
    tree["annotations"] = [annotation(1, 1, 3, [TRIANGLE])]
    write_json(tmp_path / "annotations/panoptic_val2017.json", tree)
    with pytest.raises(DataError, match="coco-instance"):
        open_data(tmp_path, "val")


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "images", "segments", "crowds", "classes"),
    [
        ("train", 80, 891, 5, 111),
        ("val", 80, 834, 3, 121),
    ],
)
def test_real_coco_panoptic(shared_dir, split, images, segments, crowds, classes):
    folder = shared_dir / "data" / "coco_panoptic_160"
    data = open_data(folder, split)
    tree = json.loads((folder / f"annotations/panoptic_{split}2017.json").read_text())
    infos = {row["file_name"]: row["segments_info"] for row in tree["annotations"]}
    annotations = {record.name: record.read_annotation() for record in data.records}
    assert (len(annotations), len(data.categories)) == (images, 133)
    found = [segment for annotation in annotations.values() for segment in annotation.segments]
    assert (len(found), sum(s.iscrowd for s in found), len({s.label for s in found})) == (segments, crowds, classes)
    for name, read in annotations.items():
        ids, areas = np.unique(read.ids_HW, return_counts=True)
        own = {i: a for i, a in zip(ids.tolist(), areas.tolist(), strict=True) if i}
        assert own == {info["id"]: info["area"] for info in infos[f"{name}.png"]}
        labels = {s.id: data.categories[s.label].id for s in read.segments}
        assert labels == {info["id"]: info["category_id"] for info in infos[f"{name}.png"]}


def test_real_coco_semantic_is_the_published_derivation(shared_dir):
    folder = shared_dir / "data" / "coco_panoptic_160"
    for record in open_data(folder, "val", task="semantic").records[:20]:
        expected = np.array(Image.open(folder / "panoptic_semseg_val2017" / f"{record.name}.png"))
        assert np.array_equal(record.read_annotation().labels_HW, expected)


def test_real_panoptic_things_are_the_instances_of_the_pack(shared_dir):
    folder = shared_dir / "data" / "coco_panoptic_160"
    from_json = open_data(folder, "val", task="instance", format="coco-instance")
    panoptic = open_data(folder, "val")
    for record, rich in zip(from_json.records[:20], panoptic.records[:20], strict=True):
        derived = as_instance(rich.read_annotation(), panoptic.categories)
        there = [(item.label, item.shape["counts"]) for item in record.read_annotation().objects]
        assert sorted((item.label, item.shape["counts"]) for item in derived.objects) == sorted(there)
