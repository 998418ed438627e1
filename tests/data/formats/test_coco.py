"""COCO instances and their relatives: exactly the masks, classes and crowds of the json, or one clear error."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from helpers.folders import (
    SIZE,
    annotation,
    coco_instances,
    image_entry,
    plane,
    rectangle,
    roboflow,
    write_random_image,
)
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m2f_cli.data.formats.files import read_json
from m2f_cli.data.formats.shapes import parse_shape, unpack_lengths
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import DataError
from m2f_cli.structures.rle import encode_ids

TRIANGLE = [0, 0, 10, 0, 0, 10]


def rle_of(mask_HW):
    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


def only_annotation(data):
    (record,) = data.records
    return record.read_annotation()


def area_of(item, size):
    if isinstance(item.shape, dict):
        return int(coco_mask.area(item.shape))
    rles = coco_mask.frPyObjects([points_P2.ravel().tolist() for points_P2 in item.shape], *size)
    return int(coco_mask.area(coco_mask.merge(rles)))


# --- instances --------------------------------------------------------------------------------------------------------


def test_polygons_and_both_kinds_of_run_lengths(tmp_path):
    mask_HW = plane((1, 3, 4, 9, 20)) > 0
    packed = rle_of(mask_HW)
    counts = np.diff(np.flatnonzero(np.diff(mask_HW.T.ravel().astype(int), prepend=-1, append=-1))).tolist()
    folder = coco_instances(
        tmp_path,
        [
            annotation(1, 1, 17, [TRIANGLE, rectangle(12, 1, 15, 5)], area=62.0),
            annotation(2, 1, 3, {"size": list(SIZE), "counts": packed["counts"].decode()}),
            annotation(3, 1, 3, {"size": list(SIZE), "counts": counts}, iscrowd=1),
        ],
    )
    data = open_data(folder, "val")
    assert (data.format, data.task, len(data)) == ("coco-instance", "instance", 1)
    assert [(c.id, c.name, c.isthing) for c in data.categories] == [(3, "cat", True), (17, "dog", True)]
    result = only_annotation(data)
    assert result.size == SIZE
    assert [(item.label, item.iscrowd) for item in result.objects] == [(1, False), (0, False), (0, True)]
    polygons = result.objects[0].shape
    assert [p.tolist() for p in polygons] == [[[0, 0], [10, 0], [0, 10]], [[12, 1], [15, 1], [15, 5], [12, 5]]]
    assert result.objects[0].area == 62.0
    for item in result.objects[1:]:
        assert np.array_equal(coco_mask.decode(item.shape), mask_HW)
    assert (data.records[0].height, data.records[0].width) == SIZE
    assert data.records[0].labels == (0, 1)
    assert data.records[0].name == "1"
    assert data.records[0].read_image().shape == (*SIZE, 3)


def test_labels_of_a_record_are_those_of_objects_without_crowds(tmp_path):
    crowd = {"size": list(SIZE), "counts": [600]}
    rows = [annotation(1, 1, 3, [TRIANGLE]), annotation(2, 1, 17, crowd, iscrowd=1)]
    folder = coco_instances(tmp_path, rows, count=2)
    assert [record.labels for record in open_data(folder, "val").records] == [(0,), ()]


def test_a_image_without_annotations_is_kept(tmp_path):
    data = open_data(coco_instances(tmp_path, [annotation(1, 2, 3, [TRIANGLE])], count=2), "val")
    assert [len(record.read_annotation().objects) for record in data.records] == [0, 1]


def test_records_survive_pickling(tmp_path):
    data = open_data(coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE])]), "val")
    (copy,) = pickle.loads(pickle.dumps(data.records))
    assert copy.read_annotation().objects[0].shape[0].tolist() == [[0, 0], [10, 0], [0, 10]]
    assert np.array_equal(copy.read_image(), data.records[0].read_image())


def test_polygons_that_cover_nothing_are_left_out(tmp_path):
    rows = [annotation(1, 1, 3, [[1, 1, 5, 5], TRIANGLE]), annotation(2, 1, 3, [[1, 1, 5, 5]])]
    result = only_annotation(open_data(coco_instances(tmp_path, rows), "val"))
    assert [len(item.shape) for item in result.objects] == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmentation": []}, ["annotation 7", "1.jpg", "Boxes are not enough"]),
        ({"segmentation": None}, ["annotation 7", "None"]),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, ["annotation 7", "x, y"]),
        ({"segmentation": [[1, 2, 3, 4, 5, "six"]]}, ["annotation 7", "x, y"]),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, ["annotation 7", "finite"]),
        ({"segmentation": {"size": [30, 20], "counts": [600]}}, ["[30, 20]", "[20, 30]"]),
        ({"segmentation": {"size": [20, 30], "counts": [599]}}, ["599", "600"]),
        ({"segmentation": {"size": [20, 30], "counts": [700, -100]}}, ["annotation 7", "-100", "negative"]),
        ({"segmentation": {"size": [20, 30], "counts": "é\ud800"}}, ["no COCO text"]),
        ({"segmentation": {"size": [20, 30], "counts": "3"}}, ["600"]),
        ({"segmentation": {"size": [20, 30], "counts": ""}}, ["600"]),
        ({"segmentation": {"size": [20, 30], "counts": 5}}, ["counts"]),
        ({"category_id": 200}, ["200", "3 to 17"]),
        ({"category_id": None}, ["None", "3 to 17"]),
        ({"category_id": [3]}, ["[3]"]),
        ({"area": float("nan")}, ["annotation 7", "area nan", "finite"]),
        ({"area": float("inf")}, ["annotation 7", "area inf", "finite"]),
    ],
)
def test_a_broken_annotation_is_an_error_of_its_image_alone(tmp_path, change, words):
    rows = [{**annotation(7, 1, 3, [TRIANGLE]), **change}, annotation(8, 2, 3, [TRIANGLE])]
    broken, whole = open_data(coco_instances(tmp_path, rows, count=2), "val").records
    assert len(whole.read_annotation().objects) == 1
    with pytest.raises(DataError) as error:
        broken.read_annotation()
    assert all(word in str(error.value) for word in [*words, "instances_val2017.json"]), str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [', ["not valid json", "line 1"]),
        ("[]", ["images"]),
        ('{"images": [], "annotations": []}', ["categories"]),
        ('{"images": [], "annotations": [], "categories": []}', ["no images"]),
        ('{"images": [{"file_name": "a.jpg"}], "annotations": [], "categories": []}', ["'id'"]),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', ["'file_name'"]),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 1}], "categories": []}', ["image_id"]),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}', ["no categories"]),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": [{"id": 1}]}', ["name"]),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            ["two categories", "'a'"],
        ),
    ],
)
def test_a_damaged_json_is_an_error_that_names_it(tmp_path, text, words):
    folder = coco_instances(tmp_path, [])
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert all(word in str(error.value) for word in [*words, str(path)]), str(error.value)


def test_json_that_is_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x81garbage")
    with pytest.raises(DataError, match="not valid json"):
        read_json(tmp_path / "a.json")


def test_missing_images_are_named_at_once_or_when_read(tmp_path):
    folder = coco_instances(tmp_path, [], count=2)
    (folder / "val2017" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg is missing"):
        open_data(folder, "val").records[0].read_image()
    (folder / "val2017" / "2.jpg").unlink()
    with pytest.raises(DataError, match="Put them into one of"):
        open_data(folder, "val")


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images/val", "val", "images", "."])
def test_images_are_found_by_their_names(tmp_path, images):
    data = open_data(coco_instances(tmp_path, [], images=images), "val")
    assert data.records[0].image == tmp_path / images / "1.jpg"


def test_a_image_of_another_size_than_annotated(tmp_path):
    folder = coco_instances(tmp_path, [])
    write_random_image(folder / "val2017" / "1.jpg", (30, 20))
    with pytest.raises(DataError, match=r"30 x 20 .* 20 x 30\. .*EXIF"):
        open_data(folder, "val").records[0].read_image()


def test_an_image_entry_without_size_takes_that_of_the_image(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE])])
    path = folder / "annotations" / "instances_val2017.json"
    tree = json.loads(path.read_text())
    del tree["images"][0]["height"], tree["images"][0]["width"]
    path.write_text(json.dumps(tree))
    (record,) = open_data(folder, "val").records
    assert record.height is None
    assert record.read_annotation().size == SIZE


def test_annotations_of_unknown_images_and_repeated_ids_are_noted(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 99, 3, [TRIANGLE])])
    assert any("1 images that instances_val2017.json does not" in note for note in open_data(folder, "val").notes)
    path = folder / "annotations" / "instances_val2017.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "images": tree["images"] * 2}))
    assert any("repeat the id" in note for note in open_data(folder, "val").notes)


def test_names_keep_their_folders_and_must_differ(tmp_path):
    folder = coco_instances(tmp_path, [])
    path = folder / "annotations" / "instances_val2017.json"
    tree = json.loads(path.read_text())
    names = ["a/1.jpg", "b/1.jpg"]
    for name in names:
        write_random_image(folder / "val2017" / name)
    path.write_text(json.dumps({**tree, "images": [image_entry(n, name) for n, name in enumerate(names)]}))
    assert [record.name for record in open_data(folder, "val").records] == ["a/1", "b/1"]
    path.write_text(json.dumps({**tree, "images": [image_entry(n, "a/1.jpg") for n in range(2)]}))
    with pytest.raises(DataError, match="2 images .* called 'a/1'"):
        open_data(folder, "val")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 6))
def test_run_lengths_agree_with_pycocotools(values, width):
    values = values + [0] * (-len(values) % width)
    ids_HW = np.array(values).reshape(-1, width)
    for wanted, rle in zip(range(6), encode_ids(ids_HW, range(6)), strict=True):
        assert rle == rle_of(ids_HW == wanted)
        lengths = unpack_lengths(rle["counts"])
        flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
        assert np.array_equal(flat.reshape(ids_HW.shape, order="F"), ids_HW == wanted)


def test_long_runs_are_unpacked():
    mask_HW = np.zeros((1500, 2000), dtype=bool)
    mask_HW[700:1400, 3:1999] = True
    lengths = unpack_lengths(rle_of(mask_HW)["counts"])
    assert lengths.sum() == mask_HW.size
    assert lengths[1::2].sum() == mask_HW.sum()
    assert parse_shape(rle_of(mask_HW), mask_HW.shape, "it")["counts"] == rle_of(mask_HW)["counts"]


# --- the classes of a table -------------------------------------------------------------------------------------------


def table(tmp_path, text):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    return path


def test_a_class_table_numbers_by_name(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE]), annotation(2, 1, 17, [TRIANGLE])])
    data = open_data(folder, "val", classes=table(tmp_path, "classes: [bird, dog, cat]"))
    assert [c.name for c in data.categories] == ["bird", "dog", "cat"]
    assert [item.label for item in only_annotation(data).objects] == [2, 1]
    assert data.records[0].labels == (1, 2)


def test_a_class_table_with_fewer_classes_leaves_the_others_out_and_says_so(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE]), annotation(2, 1, 17, [TRIANGLE])])
    data = open_data(folder, "val", classes=table(tmp_path, "classes: [dog]"))
    assert [item.label for item in only_annotation(data).objects] == [0]
    assert data.records[0].labels == (0,)
    assert any("1 categories are no class of" in note for note in data.notes)


def test_a_class_table_with_other_names_numbers_by_id(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE])])
    text = "classes: [{id: 17, name: hound}, {id: 3, name: tomcat}]"
    assert [
        item.label for item in only_annotation(open_data(folder, "val", classes=table(tmp_path, text))).objects
    ] == [1]


def test_a_class_table_about_something_else_is_refused(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE])])
    with pytest.raises(DataError, match="no 'cat', 'dog'"):
        open_data(folder, "val", classes="cityscapes")


# --- Roboflow ---------------------------------------------------------------------------------------------------------


def test_an_export_of_roboflow_is_read_without_its_empty_class(tmp_path):
    data = open_data(roboflow(tmp_path), "val")
    assert (data.format, data.split) == ("roboflow-coco", "val")
    assert [(c.id, c.name) for c in data.categories] == [(1, "red"), (2, "white")]
    assert any("'cells'" in note for note in data.notes)
    (item,) = only_annotation(data).objects
    assert item.label == 1
    assert area_of(item, SIZE) == 50
    assert data.records[0].image == tmp_path / "valid" / "1.jpg"


def test_roboflow_category_zero_without_children_is_a_class(tmp_path):
    path = roboflow(tmp_path) / "train" / "_annotations.coco.json"
    tree = json.loads(path.read_text())
    tree["categories"] = [{"id": 0, "name": "red", "supercategory": "none"}, {"id": 2, "name": "white"}]
    path.write_text(json.dumps(tree))
    assert [c.name for c in open_data(tmp_path, "train").categories] == ["red", "white"]


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "images", "count", "crowds"), [("train", 120, 1112, 11), ("val", 116, 1037, 13)])
def test_real_coco_instances(shared_dir, split, images, count, crowds):
    data_dir = shared_dir / "data" / "coco_instances"
    data = open_data(data_dir, split)
    annotations = [record.read_annotation() for record in data.records]
    objects = [(item, annotation.size) for annotation in annotations for item in annotation.objects]
    assert (len(annotations), len(objects), sum(item.iscrowd for item, _ in objects)) == (images, count, crowds)
    assert [c.id for c in data.categories][:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert len({item.label for item, _ in objects}) == 79
    rows = json.loads((data_dir / "annotations" / f"instances_{split}2017.json").read_text())["annotations"]
    assert sorted(item.area for item, _ in objects) == sorted(row["area"] for row in rows)
    # The areas of COCO are those of its polygons, not of pixels; of crowds they are rough.
    pairs = [(area_of(item, size), item.area) for item, size in objects if not item.iscrowd]
    assert all(abs(pixels - area) <= max(20, 0.1 * area) for pixels, area in pairs)
    assert sum(pixels for pixels, _ in pairs) == pytest.approx(sum(area for _, area in pairs), rel=0.002)


def test_real_nuclei_are_all_read(shared_dir):
    folder = shared_dir / "data" / "nuclei_dsb2018"
    for split, images, count in (("train", 260, 10321), ("val", 90, 3441)):
        data = open_data(folder, split)
        objects = [item for record in data.records for item in record.read_annotation().objects]
        assert (data.format, len(data), len(objects)) == ("coco-instance", images, count)
        assert all(int(coco_mask.area(item.shape)) == item.area for item in objects)
        assert data.records[0].read_image().shape[:2] == (data.records[0].height, data.records[0].width)


def test_nuclei_of_the_repository(nuclei_dir):
    for split, images, count in (("train", 16, 607), ("val", 8, 272)):
        data = open_data(nuclei_dir, split)
        objects = [item for record in data.records for item in record.read_annotation().objects]
        assert (data.format, len(data), len(objects)) == ("coco-instance", images, count)
        assert all(int(coco_mask.area(item.shape)) == item.area for item in objects)
        for record in data.records:
            assert record.read_image().shape[:2] == (record.height, record.width)
