"""What another format cannot hold is listed, each kind with its number and a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from helpers.convert_tools import VALUES, kinds, objects, read
from helpers.folders import (
    SIZE,
    annotation,
    coco_instances,
    coco_panoptic,
    label_maps,
    plane,
    rectangle,
    write_json,
    write_random_image,
    write_text,
)

from m2f_cli import plugins
from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.transforms.geometry import mask_of
from m2f_cli.dataset_tools.convert.retask import Recast, paint
from m2f_cli.dataset_tools.convert.run import TEXTS, convert
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation
from m2f_cli.structures.categories import from_names


def test_overlaps_go_to_the_smaller_object(tmp_path):
    source = coco_instances(
        tmp_path / "a",
        [
            annotation(1, 1, 3, [rectangle(2, 2, 6, 6)]),
            annotation(2, 1, 17, [rectangle(0, 0, 10, 10)]),
            annotation(3, 1, 3, [rectangle(4, 4, 6, 6)]),  # covered by nobody: it is the smallest
            annotation(4, 1, 3, [rectangle(4, 4, 6, 6)]),  # the same again: hidden below or above it
            annotation(5, 1, 17, [rectangle(0, 0, 30, 20)], iscrowd=1),
        ],
    )
    done = convert(source, tmp_path / "b", "coco-panoptic")
    result = open_data(tmp_path / "b", "val").records[0].read_annotation()
    areas = sorted(int((result.ids_HW == segment.id).sum()) for segment in result.segments)
    assert areas == [4, 12, 84, 500]
    assert kinds(done)["overlaps"] == 16 + 100 + 4 + 4 + 600 - 600
    assert kinds(done)["hidden"] == 1
    assert kinds(done)["outlines"] == 5
    assert "nobody" in kinds(done)


def test_objects_as_labels_have_a_background(tmp_path):
    done = convert(objects(tmp_path / "a"), tmp_path / "b", "label-maps")
    data = open_data(tmp_path / "b", "val")
    assert [c.name for c in data.categories] == ["cat", "dog", "background"]
    full, empty = (record.read_annotation().labels_HW for record in data.records)
    union = np.zeros(SIZE, bool)
    for item in open_data(tmp_path / "a", "val").records[0].read_annotation().objects:
        union |= mask_of(item, SIZE).astype(bool)
    assert np.array_equal(full == 2, ~union)
    assert (empty == 2).all()
    assert {"objects": 3, "crowds": 1, "background": None}.items() <= kinds(done).items()


def test_panoptic_as_objects_loses_stuff_and_void(tmp_path):
    done = convert(coco_panoptic(tmp_path / "a"), tmp_path / "b", "coco-instance")
    found = read(tmp_path / "b")["1"]
    wanted = [each for each in read(tmp_path / "a")["1"] if each[0] != "sky"]
    assert found == wanted
    assert kinds(done) == {"stuff": 1, "void": None, "json extras": None}


def test_countable_classes_of_label_maps_are_groups(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES], classes=None)
    classes = [{"name": "road", "isthing": False}, {"name": "car"}, {"name": "cat"}]
    write_text(source / "classes.yaml", yaml.safe_dump({"classes": classes}))
    done = convert(source, tmp_path / "b", "coco-panoptic")
    annotation = open_data(tmp_path / "b", "train").records[0].read_annotation()
    assert [segment.iscrowd for segment in annotation.segments] == [False, True, True]
    assert kinds(done) == {"groups": 2}


def test_connected_regions_become_objects(tmp_path):
    values_HW = plane((1, 0, 0, 4, 4), (1, 4, 4, 6, 6), (1, 10, 10, 15, 15), (2, 0, 10, 5, 15))  # the first two touch
    source = label_maps(tmp_path / "a", [values_HW])
    with pytest.raises(ConfigError, match="--separate NAME"):
        convert(source, tmp_path / "b", "yolo-seg")
    convert(source, tmp_path / "b", "coco-instance", separate=["b"])
    found = read(tmp_path / "b", "train")["0"]
    assert [(name, np.frombuffer(mask, bool).sum()) for name, _, mask in found] == [("b", 20), ("b", 25)]
    convert(source, tmp_path / "c", "coco-panoptic", separate=["b"])
    annotation = open_data(tmp_path / "c", "train").records[0].read_annotation()
    assert [(s.label, s.iscrowd) for s in annotation.segments] == [(0, False), (1, False), (1, False), (2, False)]
    with pytest.raises(ConfigError, match="Did you mean|Known"):
        convert(source, tmp_path / "d", "coco-panoptic", separate=["q"])
    with pytest.raises(ConfigError, match="Leave it out"):
        convert(source, tmp_path / "d", "label-maps", separate=["b"])


def test_segments_that_the_style_of_cityscapes_merges(tmp_path):
    ids_HW = plane((1, 0, 0, 5, 5), (2, 5, 5, 10, 10), (3, 10, 10, 12, 12))
    segments = [
        {"id": 1, "category_id": 200, "iscrowd": 0},
        {"id": 2, "category_id": 200, "iscrowd": 0},
        {"id": 3, "category_id": 3, "iscrowd": 0},
    ]
    done = convert(coco_panoptic(tmp_path / "a", ids_HW=ids_HW, segments=segments), tmp_path / "b", "cityscapes")
    assert kinds(done)["merged"] == 1
    assert len(open_data(tmp_path / "b", "val").records[0].read_annotation().segments) == 2


def test_more_objects_than_cityscapes_can_number(tmp_path):
    ids_HW = np.arange(1, 1101).reshape(22, 50)
    segments = [{"id": n, "category_id": 3, "iscrowd": 0} for n in range(1, 1101)]
    folder = coco_panoptic(tmp_path / "a", ids_HW=ids_HW, segments=segments)
    write_random_image(folder / "val2017" / "1.jpg", (22, 50))
    tree = json.loads((folder / "annotations/panoptic_val2017.json").read_text())
    tree["images"][0].update(height=22, width=50)
    write_json(folder / "annotations/panoptic_val2017.json", tree)
    with pytest.raises(DataError, match="1100 objects"):
        convert(folder, tmp_path / "b", "cityscapes")
    assert not (tmp_path / "b").exists()


def test_too_many_classes_for_cityscapes(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES], classes="".join(f"{n}\n" for n in range(65)))
    with pytest.raises(ConfigError, match="64 classes, not 65"):
        convert(source, tmp_path / "b", "cityscapes")


def test_every_loss_has_a_sentence_and_no_other(tmp_path):
    done = convert(objects(tmp_path / "a"), tmp_path / "b", "yolo-seg")
    for loss in done.losses:
        assert loss.text == TEXTS[loss.kind]
        assert loss.to_dict()["text"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_every_target_is_a_format_that_can_be_read():
    assert set(plugins.names("converters")) <= set(plugins.names("formats"))


def test_paint_of_nothing():
    ids_HW, lost = paint(InstanceAnnotation(SIZE, []))
    assert not ids_HW.any()
    assert not +lost


def test_a_annotation_of_the_task_stays_itself():
    annotation = InstanceAnnotation(SIZE, [AnnotatedObject(0, [np.array(rectangle(0, 0, 5, 5)).reshape(-1, 2)])])
    categories = from_names(["a"])
    assert Recast(categories, categories, "instance")(annotation)[0] is annotation
