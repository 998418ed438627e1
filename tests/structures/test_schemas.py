"""Values of annotation files: what is clear is read, all else is refused in one sentence with file, key and value."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.folders import (
    SIZE,
    THINGS,
    annotation,
    coco_instances,
    coco_panoptic,
    label_maps,
    labelme,
    plane,
    yolo_seg,
)
from hypothesis import given
from hypothesis import strategies as st

from m2f_cli.data.formats.class_map import read_class_file
from m2f_cli.data.formats.value_map import value_map
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures import schemas
from m2f_cli.structures.categories import load_categories

TRIANGLE = [0, 0, 10, 0, 0, 10]


def edited(folder, change, name="instances_val2017.json"):
    path = folder / "annotations" / name
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return folder


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [128, 128.0, "128", " 128 ", "128.0", "+128"])
def test_whole_numbers_are_taken_in_every_spelling(value):
    found = schemas.whole_number(value)
    assert (found, type(found)) == (128, int)


@pytest.mark.parametrize(
    "value", [128.5, "x", "", "1e3", "1_000", "128.5", float("nan"), float("inf"), True, None, [1], "٣", "9" * 5000]
)
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="a whole number"):
        schemas.whole_number(value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, False),
        (1, True),
        (False, False),
        (True, True),
        (0.0, False),
        (1.0, True),
        ("0", False),
        ("1", True),
        ("false", False),
        ("True", True),
        (" FALSE ", False),
        ("0.0", False),
        ("1.0", True),
    ],
)
def test_flags_are_taken_in_every_spelling(value, found):
    assert schemas.flag(value) is found


@pytest.mark.parametrize("value", [2, -1, 0.5, "2", "", "yes", "no", None, [], {}, float("nan"), "x"])
def test_what_is_no_flag(value):
    with pytest.raises(ValueError, match="0 or 1"):
        schemas.flag(value)


@pytest.mark.parametrize(("value", "found"), [(1, 1.0), (0.5, 0.5), ("0.5", 0.5), ("-1e3", -1000.0), (".5", 0.5)])
def test_numbers_are_taken_in_every_spelling(value, found):
    assert schemas.number(value) == found


@pytest.mark.parametrize("value", [True, None, "", "x", "nan", "inf", float("inf"), 10**400, "1e999", [1], "0x10"])
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match="a finite number"):
        schemas.number(value)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_a_value_is_read_or_refused_and_nothing_else(value):
    for read in (schemas.whole_number, schemas.flag, schemas.number, schemas.text, schemas.key, schemas.color):
        try:
            read(value)
        except ValueError as reason:
            assert str(reason)


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "crowd"), [("0", False), ("false", False), (0.0, False), ("1", True), (None, False)])
def test_crowds_written_as_text(tmp_path, said, crowd):
    folder = coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE], iscrowd=said)])
    (record,) = open_data(folder, "val").records
    assert record.labels == (() if crowd else (0,))
    assert [item.iscrowd for item in record.read_annotation().objects] == [crowd]


def test_a_flag_that_is_none_is_refused(tmp_path):
    folder = coco_instances(tmp_path, [annotation(7, 1, 3, [TRIANGLE], iscrowd="maybe")])
    with pytest.raises(DataError, match=r"annotation 7 of 1\.jpg has the iscrowd 'maybe', which should be 0 or 1"):
        open_data(folder, "val").records[0].read_annotation()


def test_numbers_written_as_text_or_floats_everywhere(tmp_path):
    plain = [annotation(1, 1, 3, [TRIANGLE], area=12.5), annotation(2, 1, 17, {"size": list(SIZE), "counts": [600]})]
    expected = open_data(coco_instances(tmp_path / "a", plain), "val")

    def change(tree):
        tree["images"][0].update(id="1", height="20", width=30.0)
        for row in tree["categories"]:
            row["id"] = str(row["id"])
        first, second = tree["annotations"]
        first.update(image_id=1.0, category_id="3", area="12.5", segmentation=[list(map(str, TRIANGLE))])
        second.update(category_id=17.0, segmentation={"size": ["20", 30.0], "counts": ["600"]})

    found = open_data(edited(coco_instances(tmp_path / "b", plain), change), "val")
    assert found.categories == expected.categories
    (record,), (other,) = found.records, expected.records
    assert (record.height, record.width, record.labels) == (20, 30, other.labels)
    assert type(record.height) is type(record.width) is int
    for mine, theirs in zip(record.read_annotation().objects, other.read_annotation().objects, strict=True):
        assert (mine.label, mine.iscrowd, mine.area) == (theirs.label, theirs.iscrowd, theirs.area)
        assert str(mine.shape) == str(theirs.shape)
    assert record.read_image().shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["images"][0].update(width=30.5), ["image 0 has the width 30.5", "a whole number"]),
        (lambda t: t["images"][0].update(height=-20), ["image 0 has the height -20"]),
        (lambda t: t["images"][0].update(id=True), ["image 0 has the id True"]),
        (lambda t: t["images"][0].update(file_name=""), ["image 0 has the file_name ''", "name of a file"]),
        (lambda t: t["images"][0].update(file_name="a\0.jpg"), ["name of a file"]),
        (lambda t: t["images"].append(5), ["image 1 should be an object, not 5"]),
        (lambda t: t["images"].append({**t["images"][0], "file_name": "2.jpg"}), ["image id 1", "1.jpg and 2.jpg"]),
        (lambda t: t["annotations"][0].update(image_id=[1]), ["annotation 0 has the image_id [1]"]),
        (lambda t: t["annotations"].append("x"), ["annotation 1 has no 'image_id'"]),
        (lambda t: t["categories"][0].update(isthing="perhaps"), ["a category has the isthing 'perhaps'"]),
        (lambda t: t["categories"][0].update(color="red"), ["a category has the color 'red'", "[red, green, blue]"]),
        (lambda t: t["categories"][0].update(id="x"), ["a category has the id 'x'", "a whole number"]),
        (lambda t: t["categories"][1].update(id="3"), ["two categories have the id 3"]),
    ],
)
def test_wrong_values_are_one_sentence(tmp_path, change, words):
    folder = edited(coco_instances(tmp_path, [annotation(1, 1, 3, [TRIANGLE])]), change)
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert all(word in str(error.value) for word in [*words, "instances_val2017.json"]), str(error.value)


def test_an_area_that_is_none_spoils_its_image_alone(tmp_path):
    rows = [annotation(1, 1, 3, [TRIANGLE], area="large"), annotation(2, 2, 3, [TRIANGLE])]
    broken, whole = open_data(coco_instances(tmp_path, rows, count=2), "val").records
    assert len(whole.read_annotation().objects) == 1
    with pytest.raises(DataError, match=r"annotation 1 of 1\.jpg has the area 'large'"):
        broken.read_annotation()


def test_repeated_ids_of_annotations_are_noted(tmp_path):
    rows = [annotation(5, 1, 3, [TRIANGLE]), annotation(5, 1, 3, [TRIANGLE])]
    notes = open_data(coco_instances(tmp_path, rows), "val").notes
    assert any("1 annotations of instances_val2017.json repeat the id of another, such as 5" in note for note in notes)


def test_a_canvas_that_no_image_has(tmp_path):
    rows = [annotation(1, 1, 3, [TRIANGLE])]
    folder = edited(coco_instances(tmp_path, rows), lambda t: t["images"][0].update(height=10**6, width=10**6))
    with pytest.raises(DataError, match="claims 1000000 x 1000000 pixels"):
        open_data(folder, "val").records[0].read_annotation()


def test_panoptic_flags_and_numbers_written_as_text(tmp_path):
    expected = open_data(coco_panoptic(tmp_path / "a"), "val")
    folder = coco_panoptic(tmp_path / "b")

    def change(tree):
        for row in tree["categories"]:
            row.update(id=str(row["id"]), isthing=str(row["isthing"]), color=[float(c) for c in row["color"]])
        for info in tree["annotations"][0]["segments_info"]:
            info.update({key: str(info[key]) for key in ("id", "category_id", "iscrowd")})

    found = open_data(edited(folder, change, "panoptic_val2017.json"), "val")
    assert found.categories == expected.categories
    mine, theirs = found.records[0].read_annotation(), expected.records[0].read_annotation()
    assert mine.segments == theirs.segments
    assert np.array_equal(mine.ids_HW, theirs.ids_HW)
    assert found.records[0].labels == expected.records[0].labels


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda infos: infos[0].update(id=0), "has the id 0, which should be a whole number from 1 to"),
        (lambda infos: infos[0].update(id=1 << 24), "has the id 16777216"),
        (lambda infos: infos[0].update(iscrowd="maybe"), "has the iscrowd 'maybe'"),
        (lambda infos: infos.append(dict(infos[0])), "lists the segment 70000 of 1.png twice"),
    ],
)
def test_wrong_segments_are_refused(tmp_path, change, words):
    folder = coco_panoptic(tmp_path)
    edited(folder, lambda t: change(t["annotations"][0]["segments_info"]), "panoptic_val2017.json")
    with pytest.raises(DataError, match=words):
        open_data(folder, "val").records[0].read_annotation()


@pytest.mark.parametrize("name", ["\ud800.png", "a\0.png", "..", 5])
def test_names_that_no_file_has_are_refused(tmp_path, name):
    folder = coco_panoptic(tmp_path)
    edited(folder, lambda t: t["annotations"][0].update(file_name=name), "panoptic_val2017.json")
    with pytest.raises(DataError, match="which should be the name of a file"):
        open_data(folder, "val").records[0].read_annotation()


# --- names in YAML and in text files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("classes: [no, yes, off]", ["no", "yes", "off"]),
        ("classes: [1, 2.50, 2024-01-01]", ["1", "2.50", "2024-01-01"]),
        ("classes: [null, ~, 'a']", ["null", "~", "a"]),
        ("classes: [{name: no}, {name: 007}]", ["no", "007"]),
        ("names: [no, yes]", ["no", "yes"]),
        ("names: {0: no, 1: null}", ["no", "null"]),
        ("names: {'0': a, '1': b}", ["a", "b"]),
    ],
)
def test_names_are_the_text_that_is_written(tmp_path, text, names):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    assert [category.name for category in read_class_file(path).categories] == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [no, 'no']", "two classes have the name 'no'"),
        ("names: [[a], b]", "the name of class 0 is ..a.., which should be text"),
        ("names: {0: a, 2: b}", "without gaps"),
        ("{names: [a, b], num_classes: '3'}", "num_classes = 3, but there are 2 names"),
        ("{names: [a, b], num_classes: x}", "has the num_classes 'x'"),
        ("{names: [a, b], ignore_index: -1}", "has the ignore_index -1"),
        ("{names: [a], colors: [[1, 2]]}", "a color is .1, 2., which should be"),
    ],
)
def test_wrong_class_files(tmp_path, text, words):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_class_file(path)


def test_flags_of_a_class_table(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("classes: [{name: a, isthing: 0}, {name: b, isthing: '1'}, {name: c, id: '7', color: '#0102ff'}]")
    found = load_categories(path)
    assert [(c.isthing, c.id) for c in found] == [(False, 0), (True, 1), (True, 7)]
    assert found[2].color == (1, 2, 255)


@pytest.mark.parametrize("nc", ["'1'", "1.0", "1"])
def test_yolo_counts_written_as_text(tmp_path, nc):
    folder = yolo_seg(tmp_path, lines="0 0.1 0.2 0.5 0.2 0.5 0.7\n")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: {nc}\nnames: [no]\n")
    assert [category.name for category in open_data(folder, "train").categories] == ["no"]
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnc: '2'\nnames: [no]\n")
    with pytest.raises(ConfigError, match="nc = 2, but there are 1 names"):
        open_data(folder, "train")


BOM = "\ufeff"


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    folder = label_maps(tmp_path / "maps", [plane((1, 0, 0, 5, 5))], classes=f"{BOM}a\r\nb\r\n")
    assert [category.name for category in open_data(folder, "train").categories] == ["a", "b"]
    folder = labelme(tmp_path / "labelme")
    (folder / "labels.txt").write_text(f"{BOM}__ignore__\nblue\nred\n", encoding="utf-8")
    assert [category.name for category in open_data(folder, "train").categories] == ["blue", "red"]
    folder = yolo_seg(tmp_path / "yolo", lines=f"{BOM}0 0.1 0.2 0.5 0.2 0.5 0.7\n")
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(BOM + text, encoding="utf-8")
    assert len(open_data(folder, "train").records[0].read_annotation().objects) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "gbk"])
def test_text_in_another_encoding_is_named(tmp_path, encoding):
    folder = label_maps(tmp_path / "maps", [plane((1, 0, 0, 5, 5))])
    (folder / "classes.txt").write_text("背景\n猫\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"classes\.txt is .*Save it as UTF-8"):
        open_data(folder, "train")
    folder = yolo_seg(tmp_path / "yolo")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [猫, 狗]\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"data\.yaml is .*Save it as UTF-8"):
        open_data(folder, "train")


def test_labelme_in_another_encoding_is_recognised_and_named(tmp_path):
    folder = labelme(tmp_path)
    for path in folder.rglob("*.json"):
        path.write_bytes(path.read_text().replace("dog", "背景").encode("gbk"))
    (folder / "labels.txt").write_text("背景\ncat\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\.json is not valid json: .*Save it as UTF-8"):
        open_data(folder, "train").records[0].read_annotation()


def test_only_line_feeds_end_the_lines_of_a_list(tmp_path):
    folder = label_maps(tmp_path, [plane((1, 0, 0, 5, 5))], classes="a\u2028x\nb\x85y\n")
    assert [category.name for category in open_data(folder, "train").categories] == ["a\u2028x", "b\x85y"]


# --- numbers of any size ----------------------------------------------------------------------------------------------


def test_ids_that_no_pixel_has_take_no_memory():
    values = value_map({3: 0, -7: 1, 10**12: 2}, load_categories("cityscapes"), {255, 10**15})
    assert values.lookup.shape == (256,)
    assert np.flatnonzero(values.lookup >= 0).tolist() == [3, 255]


def test_things_written_as_text(tmp_path):
    folder = coco_instances(tmp_path, [], categories=[{**row, "isthing": "0"} for row in THINGS])
    assert [category.isthing for category in open_data(folder, "val").categories] == [False, False]
