"""No object vanishes without a word: clear forms are read, what a reader passes over is counted and named by every
command in the same words, and what would take all memory is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.folders import (
    SIZE,
    annotation,
    coco_instances,
    coco_panoptic,
    labelme,
    rectangle,
    roboflow,
    write_json,
    write_random_image,
    yolo_seg,
)
from pycocotools import mask as coco_mask

from m2f_cli import cli
from m2f_cli.data.formats.shapes import MOST_LENGTH, check_polygons, parse_shape, split_polygons, unpack_lengths
from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.records import PassedOver
from m2f_cli.dataset_tools.check.report import inspect, open_splits, report
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.errors import DataError

FLAT = [2, 1, 12, 1, 12, 9]
PAIRS = [[2, 1], [12, 1], [12, 9]]


# --- forms of polygons ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([FLAT], [FLAT]),
        (PAIRS, [FLAT]),
        ([PAIRS], [FLAT]),
        ([FLAT, PAIRS], [FLAT, FLAT]),
        ([*PAIRS, FLAT], [FLAT, FLAT]),
        ([FLAT, *PAIRS], [FLAT, FLAT]),
        ([list(map(str, FLAT))], [FLAT]),
        ([[2, 1, 5, 5], FLAT], [FLAT]),
        ([[]], []),
        ([[1, 2, 3, 4]], []),
        ([[1, 2], [3, 4]], []),
        ([[], FLAT], [FLAT]),
    ],
)
def test_polygons_in_all_forms(segmentation, expected):
    found = parse_shape(segmentation, SIZE, "it")
    assert [points_P2.ravel().tolist() for points_P2 in found] == expected


@pytest.mark.parametrize(
    "segmentation",
    [
        FLAT,
        [FLAT, 5],
        [[1, 2, 3]],
        [[[1, 2, 3, 4], [5, 6, 7, 8]]],
        [[{"x": 1}]],
        "2 1 12 1 12 9",
        7,
        {},
        [None],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[float("nan"), 1]],
    ],
)
def test_polygons_that_are_none(segmentation):
    with pytest.raises(DataError, match="it"):
        parse_shape(segmentation, SIZE, "it")


def test_all_forms_of_a_polygon_cover_the_same_pixels():
    areas = {
        int(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects([p.ravel().tolist() for p in polygons], *SIZE))))
        for polygons in (split_polygons([FLAT], "it"), split_polygons(PAIRS, "it"), split_polygons([PAIRS], "it"))
    }
    assert len(areas) == 1


# --- counted and named ------------------------------------------------------------------------------------------------

ROWS = [
    annotation(1, 1, 3, [FLAT]),
    annotation(2, 1, 3, PAIRS),
    annotation(3, 1, 3, [[]]),
    annotation(4, 1, 3, [[1, 1, 5, 5]]),
    annotation(5, 1, 17, [FLAT, [1, 1, 2, 2]]),
]
SENTENCE = (
    "Passed over: objects without a polygon of three points or more (2, such as instances_train2017.json: annotation 3 "
    "of 1.jpg: [[]], instances_train2017.json: annotation 4 of 1.jpg: [[1, 1, 5, 5]]); parts of objects that are fewer "
    "than three points (1, such as instances_train2017.json: annotation 5 of 1.jpg)."
)


@pytest.fixture
def folder(tmp_path):
    rows = [{**row, "segmentation": row["segmentation"]} for row in ROWS]
    return coco_instances(tmp_path / "data", rows, name="train2017", images="train2017")


def test_the_reader_counts_and_names(folder):
    data = open_data(folder, "train")
    assert SENTENCE in data.notes
    assert sum(data.passed_over.counts.values()) == 3
    assert len(data.records[0].read_annotation().objects) == 3
    assert not open_data(coco_instances(folder.parent / "b", ROWS[:2]), "val").passed_over


def test_every_command_says_it(folder, capsys, tmp_path):
    (finding,) = [
        f for f in report(*open_splits(lambda split: open_data(folder, split))).findings if f.kind == "passed-over"
    ]
    assert (finding.level, finding.message) == ("warning", SENTENCE)
    assert inspect(open_data(folder, "train")).to_dict()["passed_over"][0]["count"] == 2
    assert SENTENCE in convert(folder, tmp_path / "out", "coco-instance").notes
    assert cli.run(["data", "check", str(folder)]) == 0
    assert SENTENCE in capsys.readouterr().out
    for command in (
        ["data", "view", str(folder), "--out", str(tmp_path / "v.png")],
        [
            "train",
            "--preset",
            "tiny",
            "--init",
            "random",
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "run"),
            "--set",
            "train.iterations=1",
            "--set",
            "train.batch=2",
            "--workers",
            "0",
            "--device",
            "cpu",
        ],
    ):
        assert cli.run(command) == 0, command
        assert "objects without a polygon of three points or more (2, such as" in capsys.readouterr().err


def test_predictions_are_compared_with_what_is_left_and_that_is_said(folder, capsys, tmp_path):
    objects = [{"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": [FLAT]}]
    annotation = folder / "annotations/instances_train2017.json"
    arguments = ["--predictions", write_json(tmp_path / "p.json", objects), "--ground-truth", annotation]
    assert cli.run(["eval", *map(str, arguments), "--out", str(tmp_path / "o"), "--json"]) == 0
    assert SENTENCE in json.loads(capsys.readouterr().out)["notes"]


def test_labelme_shapes_without_area(tmp_path):
    square = {"label": "cat", "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}
    shapes = [
        {**square, "shape_type": "polygon"},
        {**square, "shape_type": "oriented_rectangle"},
        {**square, "shape_type": "point", "points": [[1, 1]]},
        {**square, "shape_type": "linestrip"},
        {**square, "shape_type": "polygon", "points": [[1, 1], [2, 2]]},
        {**square, "label": "__ignore__"},
    ]
    data = open_data(labelme(tmp_path, shapes), "train")
    assert len(data.records[0].read_annotation().objects) == 2
    assert dict(data.passed_over.counts) == {
        "shapes of the type 'point'": 1,
        "shapes of the type 'linestrip'": 1,
        "polygons of fewer than three points": 1,
        "shapes of the label __ignore__": 1,
    }
    assert "shape 2 of" in data.passed_over.sentence
    assert data.passed_over.sentence in data.notes


def test_labelme_flags_and_sizes_written_as_text(tmp_path):
    shape = {"label": "cat", "points": [[2, 2], [9, 2], [9, 9]], "shape_type": "polygon", "flags": {"iscrowd": "1"}}
    data = open_data(labelme(tmp_path / "a", [shape], imageHeight="20", imageWidth=30.0), "train")
    assert [item.iscrowd for item in data.records[0].read_annotation().objects] == [True]
    shape["flags"]["iscrowd"] = "0"
    data = open_data(labelme(tmp_path / "b", [shape]), "train")
    assert [item.iscrowd for item in data.records[0].read_annotation().objects] == [False]
    shape["flags"]["iscrowd"] = "perhaps"
    with pytest.raises(DataError, match="the flag iscrowd of a shape is 'perhaps'"):
        open_data(labelme(tmp_path / "c", [shape]), "train").records[0].read_annotation()


def test_further_annotations_of_one_image_and_yolo_without_a_file(tmp_path):
    folder = coco_panoptic(tmp_path / "pan")
    path = folder / "annotations/panoptic_val2017.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "annotations": tree["annotations"] * 3}))
    data = open_data(folder, "val")
    assert dict(data.passed_over.counts) == {"further annotations of one image": 2}
    notes = open_data(yolo_seg(tmp_path / "yolo"), "train").notes
    assert any("1 of 2 images have no text file and count as empty" in note for note in notes)


def test_crowds_alone_are_said(tmp_path):
    rle = {"size": list(SIZE), "counts": [10, 5, 585]}
    rows = [annotation(n, 1, 3, rle, iscrowd=1) for n in (1, 2)]
    found = report(*open_splits(lambda split: open_data(coco_instances(tmp_path, rows), split), ["val"]))
    (finding,) = [f for f in found.findings if f.kind == "nothing-annotated"]
    assert "all 2 regions are crowds" in finding.message


def test_the_first_few_are_named():
    passed = PassedOver()
    for number in range(9):
        passed.add("things", f"n{number}")
    assert passed.sentence == "Passed over: things (9, such as n0, n1, n2)."
    assert PassedOver().notes == ()


# --- what would take all memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e4, 1e5, 5e7, 4e8, 1e12, 1e300, -1e5, -1e300])
@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_a_coordinate_far_outside_is_an_error_of_its_image(tmp_path, value, kind):
    points = [10, 10, value, 10, 20, 15]
    if kind == "coco":
        data = open_data(coco_instances(tmp_path, [annotation(7, 1, 3, [points])]), "val")
    else:
        shape = {"label": "cat", "points": np.reshape(points, (-1, 2)).tolist(), "shape_type": "polygon"}
        data = open_data(labelme(tmp_path, [shape]), "train")
    with pytest.raises(DataError, match="the coordinate .*far outside of its image of 20 x 30"):
        data.records[0].read_annotation()


@pytest.mark.parametrize("shift", [-3.5, -40, 25.25, 290])
def test_points_a_little_outside_stay_as_they_are(shift):
    points = [value + shift for value in FLAT]
    (found,) = parse_shape([points], SIZE, "it")
    assert found.ravel().tolist() == points


def test_an_outline_of_absurd_length():
    zigzag = np.tile([[0.0, 0.0], [4000.0, 4000.0]], (MOST_LENGTH // 4000, 1))
    with pytest.raises(DataError, match="an outline of .* pixels is more than"):
        check_polygons([zigzag], (4000, 4000), "it")
    check_polygons([zigzag[: len(zigzag) // 4]], (4000, 4000), "it")


@pytest.mark.parametrize(
    "counts",
    [
        "zzzz",
        "\x00",
        "0X",
        "P",
        "é",
        "o" * 5000,
        "01 2",
        b"\xff",
        "1\n",
        [600, -1, 1],
        [1e300],
        [10**30, 1],
        [0.5, 599.5],
        [[600]],
        [None],
        ["x"],
        {},
        None,
        [2**63 - 1, 2**63 - 1, 602],
        [True, 599],
    ],
)
def test_damaged_run_lengths_never_reach_the_c_code(counts, monkeypatch):
    monkeypatch.setattr(coco_mask, "frPyObjects", lambda *_: pytest.fail("the C code trusts its input"))
    with pytest.raises(DataError, match="it"):
        parse_shape({"size": list(SIZE), "counts": counts}, SIZE, "it")


def test_run_lengths_written_as_text_or_floats():
    plain = parse_shape({"size": list(SIZE), "counts": [10, 5, 585]}, SIZE, "it")
    assert parse_shape({"size": ["20", 30.0], "counts": ["10", 5.0, 585]}, SIZE, "it") == plain
    assert unpack_lengths(plain["counts"]).tolist() == [10, 5, 585]


@pytest.mark.parametrize("counts", [[0, 0, 0, 600], [10, 0, 0, 5, 0, 0, 0, 7, 578, 0], [10, 5, 585, 0], [0, 600, 0, 0]])
@pytest.mark.parametrize("is_text", [False, True])
def test_runs_of_no_pixel_do_not_change_the_box(counts, is_text):
    plain = {"size": list(SIZE), "counts": counts}
    packed = coco_mask.frPyObjects(plain, *SIZE)
    found = parse_shape(packed if is_text else plain, SIZE, "it")
    mask_HW = coco_mask.decode(packed)
    assert np.array_equal(coco_mask.decode(found), mask_HW)
    assert coco_mask.toBbox(found).tolist() == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask_HW))).tolist()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from m2f_cli import cli
sys.exit(cli.run(["data", "check", sys.argv[1]]))
"""
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    "{0}: &{0} [{1}]\n".format(chr(98 + i), ",".join([f"*{chr(97 + i)}"] * 9)) for i in range(9)
)


@pytest.mark.parametrize("kind", ["yolo", "maps"])
def test_anchors_that_multiply_are_refused(tmp_path, kind, fresh):
    if kind == "yolo":
        yolo_seg(tmp_path)
        (tmp_path / "data.yaml").write_text(f"{BOMB}names: *j\ntrain: images/train\nval: images/val\n")
    else:
        write_random_image(tmp_path / "images/train/0.jpg")
        write_random_image(tmp_path / "labels/train/0.png")
        (tmp_path / "classes.yaml").write_text(f"{BOMB}classes: *j\n")
    done = fresh(LIMITED, tmp_path)
    assert done.returncode == 2, done.stderr[-500:]
    assert "counting what its aliases repeat" in done.stderr


# --- exports of other tools -------------------------------------------------------------------------------------------


def renamed(folder, name, change=lambda tree: None):
    """A COCO set of one split, its json under another name."""
    coco_instances(folder, [annotation(1, 1, 3, [FLAT])], name="train", images="images")
    path = folder / "annotations/instances_train.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.unlink()
    return write_json(folder / name, tree)


def test_the_only_split_is_what_there_is_to_train_on(tmp_path):
    renamed(tmp_path, "annotations/instances_default.json")
    data = open_data(tmp_path, "train")
    assert any("'default', the only one, is used" in note for note in data.notes)
    assert len(open_data(tmp_path, "default")) == 1
    with pytest.raises(DataError, match="no split 'val'. It has: default"):
        open_data(tmp_path, "val")
    renamed(tmp_path, "annotations/instances_more.json")
    with pytest.raises(DataError, match="no split 'train'. It has: default, more"):
        open_data(tmp_path, "train")


def test_splits_with_capitals(tmp_path):
    renamed(tmp_path, "annotations/instances_Train.json")
    renamed(tmp_path, "annotations/instances_Validation.json")
    assert len(open_data(tmp_path, "train")) == len(open_data(tmp_path, "val")) == 1


@pytest.mark.parametrize("options", [[], ["--split", "default"]])
def test_the_only_split_is_shared_out(tmp_path, options):
    coco_instances(
        tmp_path / "data",
        [annotation(1, 1, 3, [FLAT]), annotation(2, 2, 3, [FLAT])],
        name="default",
        images="images/default",
        count=2,
    )
    arguments = ["data", "split", str(tmp_path / "data"), str(tmp_path / "out"), "--val", "0.5", *options]
    assert cli.run(arguments) == 0
    assert [len(open_data(tmp_path / "out", split)) for split in ("train", "val")] == [1, 1]


def test_backslashes_are_folders_where_no_file_has_them(tmp_path):
    renamed(tmp_path, "annotations/instances_train.json", lambda t: t["images"][0].update(file_name="images\\1.jpg"))
    (record,) = open_data(tmp_path, "train").records
    assert (record.name, record.image) == ("images/1", tmp_path / "images/1.jpg")
    write_random_image(tmp_path / "images\\1.jpg")
    assert open_data(tmp_path, "train").records[0].image == tmp_path / "images\\1.jpg"


def test_backslashes_in_the_lists_of_yolo(tmp_path):
    folder = yolo_seg(tmp_path)
    (folder / "train.txt").write_text("images\\train\\a.jpg\n.\\images\\train\\empty.jpg\n")
    text = (folder / "data.yaml").read_text().replace("train: images/train", "train: train.txt")
    (folder / "data.yaml").write_text(text)
    assert [record.name for record in open_data(folder, "train").records] == ["train/a", "train/empty"]


@pytest.mark.parametrize("name", ["result.json", "labels.json", "export/coco.json"])
def test_a_coco_json_under_another_name_is_recognised(tmp_path, name):
    renamed(tmp_path, name)
    for path in (tmp_path / "annotations").glob("*"):
        path.unlink()
    with pytest.raises(DataError, match="is a COCO json under another name: move it to .*instances_train.json"):
        open_data(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_parent_category_that_is_annotated_stays_a_class_in_all_splits(tmp_path, split):
    path = roboflow(tmp_path) / split / "_annotations.coco.json"
    tree = json.loads(path.read_text())
    tree["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(tree))
    for each in ("train", "val"):
        data = open_data(tmp_path, each)
        assert [category.id for category in data.categories] == [0, 1, 2]
        assert any("a class: it has annotations of its own" in note for note in data.notes)


def test_a_name_that_no_file_can_have(tmp_path):
    name = "a" * 5000 + ".jpg"
    rows = [annotation(1, 1, 3, [FLAT]), annotation(2, 2, 3, [rectangle(1, 1, 5, 5)])]
    folder = coco_instances(tmp_path, rows, count=2)
    path = folder / "annotations/instances_val2017.json"
    tree = json.loads(path.read_text())
    tree["images"][0]["file_name"] = name
    path.write_text(json.dumps(tree))
    data = open_data(folder, "val")
    with pytest.raises(DataError, match="is missing"):
        data.records[0].read_image()
    assert data.records[1].read_image().shape == (*SIZE, 3)
