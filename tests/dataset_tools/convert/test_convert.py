"""Annotated images in other formats: read back, the annotation is the same pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from helpers.convert_tools import VALUES, images, kinds, objects, read
from helpers.folders import (
    ALL,
    SEGMENTS,
    cityscapes,
    coco_panoptic,
    label_maps,
    plane,
    scenes_as_coco,
    write_ids,
    write_image,
    write_json,
    write_text,
)
from PIL import Image

from m2f_cli.data.formats.files import read_values
from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.dataset_tools.convert.run import convert

# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["coco-instance", "labelme"])
def test_objects_with_holes_parts_overlaps_and_crowds(tmp_path, to):
    source = objects(tmp_path / "a")
    done = convert(source, tmp_path / "b", to)
    assert detect(tmp_path / "b") == to
    assert read(tmp_path / "b") == read(source)
    assert [len(found) for found in read(source).values()] == [4, 0]
    assert images(tmp_path / "b") == images(source)
    mine, own = (open_data(folder, "val").categories for folder in (tmp_path / "b", source))
    assert [(c.id, c.name, c.color) for c in mine] == [(c.id, c.name, c.color) for c in own]
    back = convert(tmp_path / "b", tmp_path / "c", "coco-instance")
    assert read(tmp_path / "c") == read(source)
    assert "crowds" not in kinds(done) | kinds(back)


def test_what_a_coco_json_says_of_objects(tmp_path):
    source = objects(tmp_path / "a")
    convert(source, tmp_path / "b", "coco-instance")
    old = json.loads((source / "annotations/instances_val2017.json").read_text())
    new = json.loads((tmp_path / "b/annotations/instances_val.json").read_text())
    assert [row["id"] for row in new["annotations"]] == [1, 2, 3, 4]
    for before, after in zip(old["annotations"], new["annotations"], strict=True):
        assert {key: after[key] for key in ("image_id", "category_id", "segmentation", "iscrowd", "area")} == {
            key: before[key] for key in ("image_id", "category_id", "segmentation", "iscrowd", "area")
        }
    assert new["annotations"][2]["bbox"] == [20, 1, 9, 4]
    assert new["images"] == old["images"]


def test_yolo_loses_crowds_alone(tmp_path):
    source = objects(tmp_path / "a")
    done = convert(source, tmp_path / "b", "yolo-seg")
    wanted = {name: [each for each in found if not each[1]] for name, found in read(source).items()}
    assert {name.removeprefix("val/"): found for name, found in read(tmp_path / "b").items()} == wanted
    assert kinds(done)["crowds"] == 1
    assert {"category ids", "image ids", "areas"} <= kinds(done).keys()
    assert yaml.safe_load((tmp_path / "b" / "data.yaml").read_text())["names"] == {0: "cat", 1: "dog"}
    assert (tmp_path / "b" / "labels" / "val" / "2.txt").read_text() == ""
    convert(tmp_path / "b", tmp_path / "c", "coco-instance")
    assert read(tmp_path / "c") == wanted


@pytest.mark.parametrize("to", ["coco-panoptic", "cityscapes"])
def test_segments_with_crowds_and_void(tmp_path, to):
    source = coco_panoptic(tmp_path / "a", segments=[*SEGMENTS, {"id": 9, "category_id": 3, "iscrowd": 0}])
    convert(source, tmp_path / "b", to)
    (found,), (wanted,) = read(tmp_path / "b").values(), read(source).values()
    if to == "cityscapes":  # what has no pixels has no place there
        wanted = [each for each in wanted if any(each[2])]
    assert found == wanted
    convert(tmp_path / "b", tmp_path / "c", "coco-panoptic")
    assert list(read(tmp_path / "c").values()) == [wanted]
    ids = [1, 2, 3] if to == "cityscapes" else [3, 17, 200]  # an id of 200 would need 18 bits
    assert [c.id for c in open_data(tmp_path / "c", "val").categories] == ids
    assert [c.color for c in open_data(tmp_path / "c", "val").categories] == [tuple(row["color"]) for row in ALL]


def test_the_json_of_segments_counts_their_pixels(tmp_path):
    convert(coco_panoptic(tmp_path / "a"), tmp_path / "b", "coco-panoptic")
    (row,) = json.loads((tmp_path / "b/annotations/panoptic_val.json").read_text())["annotations"]
    assert [(info["id"], info["area"], info["bbox"]) for info in row["segments_info"]] == [
        (70000, 100, [0, 0, 10, 10]),
        (300, 100, [10, 0, 10, 10]),
        (5, 250, [0, 10, 25, 10]),
    ]


def test_cityscapes_converted_to_cityscapes_stays_the_same(tmp_path):
    source = cityscapes(tmp_path / "a")
    done = convert(source, tmp_path / "b", "cityscapes")
    assert not (tmp_path / "b" / "classes.yaml").exists()
    assert read(tmp_path / "b") == read(source)
    assert kinds(done) == {"unevaluated": None, "polygons": None}
    for task in ("semantic", "instance"):
        assert read(tmp_path / "b", task=task) == read(source, task=task)
    assert kinds(convert(source, tmp_path / "c", "coco-panoptic")) == {"unevaluated": None}
    assert "unevaluated" not in kinds(convert(tmp_path / "c", tmp_path / "d", "cityscapes"))
    assert read(tmp_path / "d") == read(source)


def test_own_classes_in_the_style_of_cityscapes(tmp_path):
    convert(coco_panoptic(tmp_path / "a"), tmp_path / "b", "cityscapes")
    semantic = open_data(tmp_path / "b", "val", task="semantic")
    assert [c.name for c in semantic.categories] == ["cat", "dog", "sky"]
    assert [c.name for c in open_data(tmp_path / "b", "val", task="instance").categories] == ["cat", "dog"]
    assert read(tmp_path / "b", task="semantic").popitem()[1] == read(tmp_path / "a", task="semantic").popitem()[1]
    assert [record.name for record in semantic.records] == ["b/1"]


@pytest.mark.parametrize(("count", "bits"), [(3, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_label_maps_have_the_depth_that_their_classes_need(tmp_path, count, bits):
    ignore = 255 if count <= 255 else 65535
    values_HW = plane((1, 0, 0, 10, 30), (count - 1, 5, 5, 9, 9), (ignore, 15, 0, 20, 30))
    names = "".join(f"class {n}\n" for n in range(count))
    source = label_maps(tmp_path / "a", [values_HW], classes=names)
    done = convert(source, tmp_path / "b", "label-maps")
    written = read_values(tmp_path / "b" / "labels" / "train" / "0.png")
    assert written.dtype == bits
    assert np.array_equal(written, values_HW)
    assert read(tmp_path / "b", "train") == read(source, "train")
    assert open_data(tmp_path / "b", "train").categories == open_data(source, "train").categories
    assert kinds(done) == {}


def test_void_of_another_value_and_a_label_map(tmp_path):
    folder = label_maps(tmp_path / "a", [np.where(VALUES == 255, 7, VALUES)], classes=None)
    write_text(folder / "classes.yaml", yaml.safe_dump({"names": ["x", "y", "z"], "ignore_index": 7}))
    convert(folder, tmp_path / "b", "label-maps")
    assert np.array_equal(read_values(tmp_path / "b/labels/train/0.png"), VALUES)
    convert(folder, tmp_path / "c", "label-maps", label_map={0: "z", 1: None, 2: 0, 7: 1})
    assert np.array_equal(
        read_values(tmp_path / "c/labels/train/0.png"), np.array([2, 255, 0, 1])[np.where(VALUES == 255, 3, VALUES)]
    )


def test_label_maps_as_panoptic_and_back(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    convert(source, tmp_path / "b", "coco-panoptic")
    data = open_data(tmp_path / "b", "train")
    assert len(data.records[0].read_annotation().segments) == 3
    convert(tmp_path / "b", tmp_path / "c", "label-maps")
    assert read(tmp_path / "c", "train") == read(source, "train")
    assert [c.isthing for c in open_data(tmp_path / "c", "train").categories] == [False] * 3


# --- real images ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["scenes", pytest.param("coco", marks=pytest.mark.reference)])
def few(request, tmp_path):
    """Four images with their segments in COCO's layout: generated ones, and real ones where the pack is there."""
    if request.param == "scenes":
        return scenes_as_coco(tmp_path / "coco")
    source = request.getfixturevalue("shared_dir") / "data" / "coco_panoptic_160"
    tree = json.loads((source / "annotations/panoptic_val2017.json").read_text())
    chosen = tree["images"][:4]
    ids = {image["id"] for image in chosen}
    rows = [row for row in tree["annotations"] if row["image_id"] in ids]
    for image in chosen:
        pixels = np.array(Image.open(source / "val2017" / image["file_name"]).convert("RGB"))
        write_image(tmp_path / "coco/val2017" / image["file_name"].replace("jpg", "png"), pixels)
        image["file_name"] = image["file_name"].replace("jpg", "png")
    for row in rows:
        ids_HW3 = np.array(Image.open(source / "panoptic_val2017" / row["file_name"])).astype(np.int64)
        write_ids(tmp_path / "coco/panoptic_val2017" / row["file_name"], ids_HW3 @ np.array([1, 256, 65536]))
    write_json(tmp_path / "coco/annotations/panoptic_val2017.json", {**tree, "images": chosen, "annotations": rows})
    return tmp_path / "coco"


@pytest.mark.parametrize("to", ["coco-instance", "yolo-seg", "labelme"])
def test_segments_of_coco_as_objects(few, tmp_path, to):
    convert(few, tmp_path / "b", to)
    wanted = {
        name: sorted(each for each in found if to != "yolo-seg" or not each[1])
        for name, found in read(few, task="instance").items()
    }
    found = {name.removeprefix("val/"): sorted(each) for name, each in read(tmp_path / "b").items()}
    assert found == wanted
    assert sum(map(len, wanted.values())) > 10


@pytest.mark.parametrize("to", ["coco-panoptic", "label-maps"])
def test_segments_of_coco_whole(few, tmp_path, to):
    convert(few, tmp_path / "b", to)
    task = None if to == "coco-panoptic" else "semantic"
    assert read(tmp_path / "b") == read(few, task=task)
