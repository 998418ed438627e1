"""Each classic mistake is found by its own warning, and sound data gives none."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.folders import (
    IDS,
    SEGMENTS,
    annotation,
    coco_instances,
    coco_panoptic,
    label_maps,
    plane,
    rectangle,
    write_mask,
    write_random_image,
)

from m2f_cli.data.open_dataset import open_data
from m2f_cli.dataset_tools.check import report
from m2f_cli.dataset_tools.check.inspect_image import look_at
from m2f_cli.dataset_tools.check.mistakes import check
from m2f_cli.dataset_tools.check.near_duplicates import shared_files
from m2f_cli.dataset_tools.check.report import glance, inspect

SIZE = (40, 60)
SOUND = plane((1, 0, 0, 20, 60), (2, 5, 5, 9, 9), size=SIZE)


def describe(data):
    return inspect(data).description


def kinds(data):
    return [warning.kind for warning in check(describe(data))]


def semantic(folder, *masks, **options):
    classes = options.pop("classes", "road\ncar\ntree\n")
    return open_data(label_maps(folder, list(masks), classes=classes), "train", **options)


def test_sound_data_gives_no_warning(tmp_path):
    assert kinds(semantic(tmp_path, SOUND, SOUND)) == []


def test_broken_images_are_counted_and_the_first_is_told(tmp_path):
    data = semantic(tmp_path, SOUND, SOUND, SOUND)
    write_mask(tmp_path / "labels/train/0.png", plane((200, 0, 0, 5, 5), size=SIZE))
    (tmp_path / "images/train/1.jpg").write_bytes((tmp_path / "images/train/1.jpg").read_bytes()[:700])
    (warning,) = glance(data, 50)
    assert warning.kind == "unusable"
    assert "2 of 3 images" in warning.message
    assert "value 200" in warning.message


def test_a_damaged_image_is_found_where_its_pixels_are_read(tmp_path):
    data = semantic(tmp_path, SOUND)
    path = tmp_path / "images/train/0.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (problem,) = inspect(data).problems
    assert problem.name == "0"
    assert "damaged" in problem.message


def test_masks_of_another_size(tmp_path):
    data = open_data(coco_instances(tmp_path, []), "val")
    write_random_image(tmp_path / "val2017" / "1.jpg", (20, 31))
    (problem,) = inspect(data).problems
    assert "20 x 31" in problem.message


@pytest.mark.parametrize("classes", ["background\nobject\n", "object\n"])
def test_masks_of_0_and_255(tmp_path, classes):
    mask = plane((255, 5, 5, 20, 20), size=SIZE)
    assert "binary-masks" in kinds(semantic(tmp_path, mask, mask, classes=classes))


def test_masks_of_0_and_255_that_were_explained(tmp_path):
    mask = plane((255, 5, 5, 20, 20), size=SIZE)
    data = semantic(tmp_path, mask, classes="rest\nobject\n", label_map={0: "rest", 255: "object"})
    assert kinds(data) == []


def test_background_as_a_class(tmp_path):
    (warning,) = check(describe(semantic(tmp_path, SOUND, classes="Background\ncar\ntree\n")))
    assert warning.kind == "background-class"
    assert "ignore_index=0" in warning.hint


def test_background_as_an_object(tmp_path):
    categories = [{"id": 1, "name": "background"}, {"id": 2, "name": "cat"}]
    folder = coco_instances(tmp_path, [annotation(1, 1, 2, [rectangle(1, 1, 9, 9)])], categories=categories)
    assert "background-class" in kinds(open_data(folder, "val"))


def test_one_class_only(tmp_path):
    assert "one-class" in kinds(semantic(tmp_path, plane(size=SIZE), classes="road\n"))


def test_classes_that_nobody_annotated(tmp_path):
    (warning,) = check(describe(semantic(tmp_path, SOUND, classes="road\ncar\ntree\nship\n")))
    assert warning.kind == "unseen-classes"
    assert warning.message.endswith("1 of 4 classes are nowhere in 1 images of train: ship.")


def test_images_without_objects(tmp_path):
    rows = [annotation(n, 1, category, [rectangle(1, 1, 9, 9)]) for n, category in enumerate((3, 17))]
    found = kinds(open_data(coco_instances(tmp_path, rows, count=3), "val"))
    assert "empty-pictures" in found
    assert "empty-pictures" not in kinds(open_data(coco_instances(tmp_path, rows, count=2), "val"))


def test_regions_without_a_pixel(tmp_path):
    segments = [*SEGMENTS, {"id": 9, "category_id": 17, "iscrowd": 0}]
    data = open_data(coco_panoptic(tmp_path / "panoptic", segments=segments), "val")
    assert "hidden-objects" in kinds(data)
    outside = annotation(1, 1, 3, [rectangle(100, 100, 110, 110)])
    assert describe(open_data(coco_instances(tmp_path / "instance", [outside]), "val")).hidden == 1


def test_more_objects_than_queries(tmp_path):
    rows = [annotation(n, 1, 3 if n % 2 else 17, [rectangle(1, 1, 9, 9)]) for n in range(101)]
    assert "many-objects" in kinds(open_data(coco_instances(tmp_path / "a", rows), "val"))
    assert "many-objects" not in kinds(open_data(coco_instances(tmp_path / "b", rows[1:]), "val"))


def test_images_below_32_pixels_are_absurd(tmp_path):
    assert kinds(semantic(tmp_path, SOUND[:31])) == ["absurd-sizes"]


def test_images_in_both_splits(tmp_path):
    label_maps(tmp_path, [SOUND, SOUND], split="val")
    train = semantic(tmp_path, SOUND, SOUND)
    val = open_data(tmp_path, "val")
    write_random_image(tmp_path / "images/val/0.jpg", SIZE, seed=9)
    shutil.copy(tmp_path / "images/train/0.jpg", tmp_path / "images/val/1.jpg")
    assert shared_files(train.records, val.records) == [("0", "1")]
    (warning,) = glance(train, 50, val)
    assert warning.kind == "shared-pictures"
    assert "1 images are in train and in val" in warning.message


def test_description_of_semantic_data(tmp_path):
    ignored = plane((1, 0, 0, 20, 60), (255, 30, 0, 40, 60), size=SIZE)
    found = describe(semantic(tmp_path, SOUND, ignored))
    assert (found.images, found.looked_at, found.objects) == (2, 2, (3, 2))
    assert found.images_of == found.objects_of == (2, 2, 1)
    assert found.ignored == 0.125
    assert found.sizes == {SIZE: 2}


def test_description_of_panoptic_data(tmp_path):
    found = describe(open_data(coco_panoptic(tmp_path), "val"))
    assert (found.objects, found.objects_of, found.crowds, found.hidden) == ((2,), (1, 0, 1), 1, 0)
    assert found.ignored == np.count_nonzero(IDS == 0) / IDS.size
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["things"], told["stuff"]) == (2, 1)
    assert told["objects_per_picture"] == {"least": 2, "mean": 2.0, "most": 2}
    assert told["classes"][2] == {"name": "sky", "isthing": False, "pictures": 1, "objects": 1}


def test_description_of_objects(tmp_path):
    rows = [annotation(n, 1, 17, [rectangle(1, 1, 9, 9)]) for n in range(3)]
    found = describe(open_data(coco_instances(tmp_path, rows, count=4), "val"))
    assert (found.objects, found.images_of, found.objects_of) == ((3, 0, 0, 0), (0, 1), (0, 3))
    assert found.ignored is None


def test_a_glance_spreads_over_the_split(tmp_path, monkeypatch):
    rows = [annotation(n, n, 17, [rectangle(1, 1, 9, 9)]) for n in range(1, 11)]
    data = open_data(coco_instances(tmp_path, rows, count=10), "val")
    looked_at = []
    monkeypatch.setattr(
        report, "look_at", lambda record, count: looked_at.append(record.name) or look_at(record, count)
    )
    glance(data, 5)
    assert looked_at == ["1", "3", "5", "7", "9"]


def test_real_data_is_sound(shared_dir):
    for pack in ("camvid", "coco_panoptic_sample"):
        data = open_data(shared_dir / "data" / pack, "val")
        assert set(kinds(data)) <= {"unseen-classes"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_nuclei_are_sound(nuclei_dir, split):
    assert not kinds(open_data(nuclei_dir, split))
