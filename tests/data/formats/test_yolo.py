"""YOLO text files: polygons in pixels, the classes of data.yaml, and the paths that exporters write."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.folders import SIZE, write_random_image, write_text, yolo_seg

from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError, DataError


def test_polygons_become_pixels(tmp_path):
    data = open_data(yolo_seg(tmp_path), "val")
    assert (data.format, data.task) == ("yolo-seg", "instance")
    assert [c.name for c in data.categories] == ["cat", "dog"]
    first, empty = (record.read_annotation() for record in data.records)
    assert (first.size, empty.size, empty.objects) == (SIZE, SIZE, [])
    (item,) = first.objects
    assert item.label == 1
    assert np.allclose(item.shape[0], [[3, 4], [15, 4], [15, 14], [3, 14]])
    assert [record.name for record in data.records] == ["val/a", "val/empty"]


@pytest.mark.parametrize("names", [["cat", "dog"], {0: "cat", 1: "dog"}])
@pytest.mark.parametrize("path", [".", None, "not/here"])
def test_descriptions_of_exporters(tmp_path, names, path):
    data = open_data(yolo_seg(tmp_path, names=names, path=path, train="../images/train", nc=2), "train")
    assert [record.image for record in data.records] == [tmp_path / "images/train" / n for n in ("a.jpg", "empty.jpg")]


def test_lists_of_folders_and_of_images(tmp_path):
    yolo_seg(tmp_path, train=["images/train", "images/val"])
    assert len(open_data(tmp_path, "train")) == 4
    write_text(tmp_path / "some.txt", "./images/train/a.jpg\n./images/train/gone.jpg\n")
    yolo_seg(tmp_path, train="some.txt")
    here, gone = open_data(tmp_path, "train").records
    assert len(here.read_annotation().objects) == 1
    with pytest.raises(DataError, match=r"gone\.jpg"):
        gone.read_image()


@pytest.mark.parametrize("line", ["images", "./images/", "elsewhere/a.jpg"])
def test_a_list_that_names_no_image_below_a_folder_of_images(tmp_path, line):
    write_text(tmp_path / "some.txt", f"./images/train/a.jpg\n{line}\n")
    yolo_seg(tmp_path, train="some.txt")
    with pytest.raises(DataError, match="is in no folder `images`"):
        open_data(tmp_path, "train")


def test_any_name_of_the_description(tmp_path):
    (yolo_seg(tmp_path) / "data.yaml").rename(tmp_path / "coco8-seg.yaml")
    assert open_data(tmp_path, "val").format == "yolo-seg"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 0.5 0.5 0.1 0.1", ["line 2", "box"]),
        ("1 0.5 0.5 0.1", ["line 2", "class x y"]),
        ("1 0.5 0.5 0.1 0.1 0.3 0.3 0.4", ["line 2", "class x y"]),
        ("1.5 0.1 0.2 0.5 0.2 0.5 0.7", ["line 2", "class x y"]),
        ("cat 0.1 0.2 0.5 0.2 0.5 0.7", ["line 2", "numbers"]),
        ("1 10 20 50 20 50 70", ["line 2", "10 to 70", "0 to 1"]),
        ("1 nan 0.2 0.5 0.2 0.5 0.7", ["line 2", "0 to 1"]),
        ("nan 0.1 0.2 0.5 0.2 0.5 0.7", ["line 2", "class x y"]),
        ("2 0.1 0.2 0.5 0.2 0.5 0.7", ["line 2", "category_id 2", "0 to 1"]),
    ],
)
def test_lines_that_are_no_polygons(tmp_path, line, words):
    record = open_data(yolo_seg(tmp_path, f"\n{line}\n"), "val").records[0]
    with pytest.raises(DataError) as error:
        record.read_annotation()
    assert all(word in str(error.value) for word in [*words, "a.txt"]), str(error.value)


def test_coordinates_rounded_outwards_are_clipped(tmp_path):
    annotation = open_data(yolo_seg(tmp_path, "0 -0.0005 0 1.0005 0 1 1"), "val").records[0].read_annotation()
    assert annotation.objects[0].shape[0].tolist() == [[0, 0], [30, 0], [30, 20]]


def test_a_count_that_is_not_that_of_the_names(tmp_path):
    with pytest.raises(ConfigError, match="nc = 3"):
        open_data(yolo_seg(tmp_path, nc=3), "val")


def test_no_text_file_at_all(tmp_path):
    folder = yolo_seg(tmp_path)
    (folder / "labels/val/a.txt").unlink()
    with pytest.raises(DataError, match="No image of the split 'val' has polygons"):
        open_data(folder, "val")


def test_missing_folders_and_images_that_have_no_labels_beside(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        open_data(yolo_seg(tmp_path, train="images/nowhere"), "train")
    write_random_image(tmp_path / "photos/a.jpg")
    with pytest.raises(DataError, match="beside which `labels`"):
        open_data(yolo_seg(tmp_path, train="photos"), "train")
