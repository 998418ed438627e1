"""LabelMe: every kind of shape becomes the pixels that were drawn, groups are one object, and what fails says so."""

from __future__ import annotations

import base64
import io
import os
import pickle

import numpy as np
import pytest
from helpers.folders import SIZE, labelme, write_json, write_random_image, write_text
from PIL import Image

from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.data.transforms.geometry import mask_of
from m2f_cli.errors import DataError


def shape(label, kind, points, **more):
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def objects(folder, split="train"):
    data = open_data(folder, split)
    (record,) = data.records
    annotation = record.read_annotation()
    assert annotation.size == SIZE
    return [(data.categories[o.label].name, o.iscrowd, mask_of(o, SIZE).astype(bool)) for o in annotation.objects]


def box(top, left, bottom, right):
    mask_HW = np.zeros(SIZE, bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


def test_one_folder_without_splits(tmp_path):
    data = open_data(labelme(tmp_path), "train")
    assert (data.format, data.task, [c.name for c in data.categories]) == ("labelme", "instance", ["dog"])
    assert [record.name for record in data.records] == ["a"]
    ((name, crowd, mask_HW),) = objects(tmp_path)
    assert (name, crowd) == ("dog", False)
    assert np.array_equal(mask_HW, box(4, 3, 14, 15))
    assert data.records[0].read_image().shape == (*SIZE, 3)
    with pytest.raises(DataError, match="no split 'val'"):
        open_data(tmp_path, "val")
    copy = pickle.loads(pickle.dumps(data.records[0]))
    assert len(copy.read_annotation().objects) == 1


def test_kinds_of_shapes(tmp_path):
    inside = np.ones((3, 4), bool)
    inside[1, 1] = False
    labelme(
        tmp_path,
        [
            shape("cat", "rectangle", [[10, 12], [2, 5]]),
            shape("dog", "circle", [[15, 10], [15, 15]]),
            shape("dog", "mask", [[20, 6], [23, 8]], mask=png(inside)),
            shape("cat", "line", [[0, 0], [5, 5]]),
            shape("cat", "point", [[1, 1]]),
            shape("cat", None, [[0, 0], [4, 0], [4, 4], [0, 4]]),
        ],
    )
    rectangle, circle, mask, plain = objects(tmp_path)
    assert [name for name, _, _ in (rectangle, circle, mask, plain)] == ["cat", "dog", "dog", "cat"]
    assert np.array_equal(rectangle[2], box(5, 2, 12, 10))
    assert abs(circle[2].sum() / (np.pi * 25) - 1) < 0.05
    expected = box(6, 20, 9, 24)
    expected[7, 21] = False
    assert np.array_equal(mask[2], expected)
    assert np.array_equal(plain[2], box(0, 0, 4, 4))


def test_groups_and_crowds(tmp_path):
    square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    labelme(
        tmp_path,
        [
            shape("dog", "polygon", square, group_id=1),
            shape("dog", "rectangle", [[10, 0], [14, 4]], group_id=1),
            shape("cat", "polygon", square, group_id=1),  # another label: another object
            shape("dog", "mask", [[20, 0], [21, 1]], group_id=1, mask=png(np.ones((2, 2), bool))),
            shape("dog", "polygon", square, flags={"iscrowd": True}),
        ],
    )
    dog, cat, crowd = objects(tmp_path)
    assert np.array_equal(dog[2], box(0, 0, 4, 4) | box(0, 10, 4, 14) | box(0, 20, 2, 22))
    assert cat[0] == "cat"
    assert [each[1] for each in (dog, cat, crowd)] == [False, False, True]


def test_classes_of_a_file_and_labels_that_are_none(tmp_path):
    labelme(tmp_path, [shape("__ignore__", "rectangle", [[0, 0], [5, 5]]), shape("dog", "rectangle", [[0, 0], [5, 5]])])
    write_text(tmp_path / "labels.txt", "__ignore__\n_background_\nzebra\ndog\n")
    assert [c.name for c in open_data(tmp_path, "train").categories] == ["zebra", "dog"]
    assert [name for name, _, _ in objects(tmp_path)] == ["dog"]
    write_text(tmp_path / "labels.txt", "zebra\n")
    with pytest.raises(DataError, match="'dog'; known are zebra"):
        objects(tmp_path)


def test_splits_sub_folders_and_images_without_json(tmp_path):
    labelme(tmp_path / "train" / "north")
    labelme(tmp_path / "val")
    write_random_image(tmp_path / "val" / "new.jpg")
    assert detect(tmp_path) == "labelme"
    assert [record.name for record in open_data(tmp_path, "train").records] == ["north/a"]
    data = open_data(tmp_path, "val")
    assert [record.name for record in data.records] == ["a"]
    assert "1 images have no json" in data.notes[0]


def test_images_elsewhere_and_inside(tmp_path):
    labelme(tmp_path / "json", imagePath="..\\pictures\\a.jpg")
    (tmp_path / "json" / "a.jpg").rename(write_random_image(tmp_path / "pictures" / "a.jpg"))
    assert open_data(tmp_path / "json", "train").records[0].image.name == "a.jpg"
    pixels_HW3 = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    labelme(tmp_path / "inside", imagePath="gone.png", imageData=png(pixels_HW3))
    (tmp_path / "inside" / "a.jpg").unlink()
    record = open_data(tmp_path / "inside", "train").records[0]
    assert record.image is None
    labelme(tmp_path / "long", imagePath=f"{'x' * 300}.png", imageData=png(pixels_HW3))
    (tmp_path / "long" / "a.jpg").unlink()
    assert open_data(tmp_path / "long", "train").records[0].image is None
    assert np.array_equal(record.read_image(), pixels_HW3)
    assert len(record.read_annotation().objects) == 1


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([shape("dog", "polygon", [[0, 0], ["x", 1], [2, 2]])], "pairs of numbers"),
        ([shape("dog", "rectangle", [[0, 0]])], "rectangle has the points"),
        ([shape("dog", "polygon", [[0, 0], [float("nan"), 1], [2, 2]])], "polygon has the points"),
        ([shape("dog", "mask", [[0, 0], [1, 1]], mask="AAAA")], "no PNG"),
        ([shape("dog", "mask", [[0, 0], [1, 1]])], "no PNG"),
        ([shape("dog", "mask", [[29, 0], [30, 1]], mask=png(np.ones((2, 2), bool)))], "leaves the image"),
        ([shape("dog", "mask", [[-1, 0], [0, 1]], mask=png(np.ones((2, 2), bool)))], "leaves the image"),
    ],
)
def test_damaged_shapes_are_refused_with_their_file(tmp_path, shapes, words):
    record = open_data(labelme(tmp_path, shapes), "train").records[0]
    with pytest.raises(DataError, match=words) as caught:
        record.read_annotation()
    assert "a.json" in str(caught.value)


def test_a_shape_that_is_none(tmp_path):
    write_text(labelme(tmp_path, ["dog"]) / "labels.txt", "dog\n")
    with pytest.raises(DataError, match="should be an object"):
        open_data(tmp_path, "train").records[0].read_annotation()


def test_sizes_that_differ_and_folders_without_labels(tmp_path):
    record = open_data(labelme(tmp_path / "one", imageHeight=21), "train").records[0]
    with pytest.raises(DataError, match="21 x 30"):
        record.read_annotation()
    with pytest.raises(DataError, match="names no class"):
        open_data(labelme(tmp_path / "two", []), "train")
    folder = labelme(tmp_path / "three")
    (folder / "a.jpg").unlink()
    write_text(folder / "labels.txt", "dog\n")
    with pytest.raises(DataError, match=r"image of .*a\.json is missing"):
        open_data(folder, "train").records[0].read_image()


def test_jsons_of_others_are_not_labelme(tmp_path):
    write_json(tmp_path / "x.json", {"shapes": []})
    write_text(tmp_path / "y.json", "{")
    with pytest.raises(DataError, match="no known format"):
        detect(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="devices")
def test_a_device_in_place_of_a_json_is_not_read(tmp_path):
    labelme(tmp_path)
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="has no known format"):
        detect(tmp_path)
    with pytest.raises(DataError, match="a.json cannot be read: it is a device"):
        open_data(tmp_path, "train", format="labelme")
