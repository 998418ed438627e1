"""What `m2f data check` counts, compared with planes that are counted by hand, with masks that are unpacked, and with
`data.checks`; every kind of damage; copies between splits; which splits there are."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.folders import (
    IDS,
    SEGMENTS,
    SIZE,
    annotation,
    cityscapes,
    coco_instances,
    coco_panoptic,
    label_maps,
    plane,
    rectangle,
    roboflow,
    write_mask,
    write_random_image,
    yolo_seg,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.records import ImageFile
from m2f_cli.dataset_tools.check.inspect_image import look_at
from m2f_cli.dataset_tools.check.near_duplicates import MOST_BITS, DuplicatePair, difference_hash
from m2f_cli.dataset_tools.check.orphans import orphans
from m2f_cli.dataset_tools.check.region_stats import regions_of
from m2f_cli.dataset_tools.check.report import inspect, open_splits, report
from m2f_cli.dataset_tools.check.summary import EDGES, class_rows, edge_names
from m2f_cli.errors import DataError
from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation
from m2f_cli.structures.run_lengths import areas_in

LARGE = (40, 60)  # large enough for no warning about it
SOUND = plane((1, 0, 0, 20, 60), (2, 5, 5, 9, 9), size=LARGE)
MASK = plane((1, 0, 0, 10, 10), (2, 10, 10, 20, 30), (255, 0, 20, 5, 30))


def report_of(folder, *wanted, **options):
    return report(*open_splits(lambda split: open_data(folder, split), wanted), **options)


def kinds(found):
    return {(finding.level, finding.kind, finding.split) for finding in found.findings}


# --- counting ---------------------------------------------------------------------------------------------------------


def test_counts_of_label_maps(tmp_path):
    folder = label_maps(tmp_path, [MASK, plane((1, 0, 0, 20, 30))])
    found = inspect(open_data(folder, "train"))
    assert [(c.pictures, c.objects, c.pixels) for c in found.classes] == [(1, 1, 250), (2, 2, 700), (1, 1, 200)]
    assert [(c.small, c.medium, c.large) for c in found.classes] == [(1, 0, 0), (2, 0, 0), (1, 0, 0)]
    assert found.description.objects == (3, 1)
    assert found.description.ignored == 50 / 1200
    assert found.description.sizes == {SIZE: 2}
    assert found.object_edges == (0, 3, 1, 0, 0, 0, 0, 0)  # 100, 200 and 250 pixels are 8 to 16 wide, 600 above
    assert len(edge_names()) == len(found.object_edges) == len(EDGES) + 1
    assert found.num_bytes == sum(path.stat().st_size for path in (folder / "images/train").iterdir())


def test_size_classes_begin_at_cocos_bounds(tmp_path):
    squares = [[rectangle(0, 0, 32, 31)], [rectangle(0, 0, 32, 32)], [rectangle(0, 0, 96, 96)]]
    folder = coco_instances(tmp_path, [annotation(n, 1, 3, each) for n, each in enumerate(squares)])
    write_random_image(folder / "val2017/1.jpg", (100, 120))
    path = folder / "annotations/instances_val2017.json"
    tree = json.loads(path.read_text())
    tree["images"][0].update(height=100, width=120)
    path.write_text(json.dumps(tree))
    cat = inspect(open_data(folder, "val")).classes[0]
    assert (cat.small, cat.medium, cat.large) == (1, 1, 1)
    assert cat.pixels == 32 * 31 + 32**2 + 96**2


def test_areas_of_objects_are_those_of_their_masks():
    polygon = np.array([[1.3, 2.1], [17.8, 3.0], [12.2, 18.9], [4.0, 11.5]])
    second = polygon + 9
    mask_HW = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask_HW[3:9, 4:20] = 1
    shapes = [[polygon], [polygon, second], coco_mask.encode(mask_HW), [polygon + 100]]
    objects = [AnnotatedObject(i, shape) for i, shape in enumerate(shapes)] + [
        AnnotatedObject(0, [polygon], iscrowd=True)
    ]
    found = regions_of(InstanceAnnotation(SIZE, objects))
    flat = [[points.ravel().tolist() for points in shape] for shape in (shapes[0], shapes[1])]
    unpacked = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(each, *SIZE))).sum() for each in flat]
    assert found.areas == (*unpacked, 96, 0)
    assert (found.labels, found.crowds, found.hidden) == ((0, 1, 2, 3), 1, 1)


def test_counts_of_panoptic_data(tmp_path):
    hidden = {"id": 9, "category_id": 17, "iscrowd": 0}
    found = inspect(open_data(coco_panoptic(tmp_path, segments=[*SEGMENTS, hidden]), "val"))
    assert [(c.name, c.pixels, c.objects) for c in found.classes] == [("cat", 100, 1), ("dog", 0, 1), ("sky", 250, 1)]
    assert (found.description.crowds, found.description.hidden) == (1, 1)
    assert found.description.ignored == (IDS == 0).mean()


@given(arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-1, 3)))
def test_areas_of_a_plane(plane_HW):
    assert areas_in(plane_HW) == {value: (plane_HW == value).sum() for value in set(plane_HW.ravel().tolist())}


def test_threads_change_nothing(tmp_path):
    folder = label_maps(tmp_path, [MASK] * 9)
    (folder / "images/train/4.jpg").unlink()
    write_mask(folder / "labels/train/7.png", plane((9, 0, 0, 5, 5)))
    data, told = open_data(folder, "train"), []
    data = dataclasses.replace(data, records=[*data.records, dataclasses.replace(data.records[0], name="x")])
    assert inspect(data, workers=3, on_look=lambda look: told.append(look.name)) == inspect(data)
    assert told == [record.name for record in data.records]


def test_the_report_is_plain_data(tmp_path):
    label_maps(tmp_path, [MASK, MASK])
    tree = report_of(label_maps(tmp_path, [MASK], split="val")).to_dict()
    assert json.loads(json.dumps(tree)) == tree
    train = tree["splits"]["train"]
    assert train["classes"][1] == {
        "name": "b",
        "isthing": False,
        "pictures": 2,
        "objects": 2,
        "pixels": 200,
        "small": 2,
        "medium": 0,
        "large": 0,
    }
    assert train["sizes"] == [{"height": 20, "width": 30, "pictures": 2}]
    assert train["pictures_by_objects"] == [{"objects": 3, "pictures": 2}]


# --- damage -----------------------------------------------------------------------------------------------------------


def missing_image(folder):
    (folder / "images/train/1.jpg").unlink()


def cut_image(folder):
    path = folder / "images/train/1.jpg"
    path.write_bytes(path.read_bytes()[:-60])


def no_image_at_all(folder):
    (folder / "images/train/1.jpg").write_bytes(b"")


def missing_mask(folder):
    (folder / "labels/train/1.png").unlink()


def cut_mask(folder):
    path = folder / "labels/train/1.png"
    path.write_bytes(path.read_bytes()[:40])


def mask_of_another_size(folder):
    write_mask(folder / "labels/train/1.png", plane(size=(20, 31)))


def unknown_value(folder):
    write_mask(folder / "labels/train/1.png", plane((77, 0, 0, 5, 5)))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (missing_image, "missing-file"),
        (cut_image, "damaged-picture"),
        (no_image_at_all, "damaged-picture"),
        (missing_mask, "missing-file"),
        (cut_mask, "damaged-annotation"),
        (mask_of_another_size, "size-mismatch"),
        (unknown_value, "unknown-class"),
    ],
)
def test_a_damaged_file_is_a_problem_and_the_others_are_looked_at(tmp_path, damage, kind):
    folder = label_maps(tmp_path, [MASK] * 3)
    data = open_data(folder, "train")
    damage(folder)
    found = report([data])
    assert [(problem.name, problem.kind) for problem in found.splits[0].problems] == [("1", kind)]
    assert found.splits[0].description.looked_at == 2
    (error,) = found.errors
    assert error.kind == kind
    assert error.message.startswith("1 image of 3 cannot be used; the first: ")
    assert "unusable" not in {finding.kind for finding in found.findings}


def test_a_category_that_does_not_exist(tmp_path):
    folder = coco_instances(tmp_path, [annotation(1, 1, 99, [rectangle(0, 0, 5, 5)])])
    (error,) = report_of(folder, "val").errors
    assert (error.kind, "category_id 99" in error.message) == ("unknown-class", True)


def test_run_lengths_of_another_size(tmp_path):
    rle = {"size": [20, 31], "counts": [620]}
    (error,) = report_of(coco_instances(tmp_path, [annotation(1, 1, 3, rle)]), "val").errors
    assert error.kind == "size-mismatch"


def test_pixels_of_a_segment_that_is_not_listed(tmp_path):
    (error,) = report_of(coco_panoptic(tmp_path, segments=SEGMENTS[:2]), "val").errors
    assert error.kind == "unknown-class"


def test_a_class_number_out_of_range(tmp_path):
    data = open_data(label_maps(tmp_path, [MASK]), "train")
    found = look_at(data.records[0], num_classes=2)
    assert found.problem.kind == "unknown-class"
    assert "class number 2" in found.problem.message


def test_a_image_that_lies_on_its_side(tmp_path):
    folder = label_maps(tmp_path, [MASK])
    image = Image.fromarray(np.zeros((30, 20, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # turn it by 90 degrees to see it
    image.save(folder / "images/train/0.jpg", exif=exif)
    assert look_at(open_data(folder, "train").records[0], 3).size == SIZE


def test_a_name_that_is_too_long_for_a_file_is_a_missing_file(tmp_path):
    folder = label_maps(tmp_path, [SOUND] * 3)
    data = open_data(folder, "train")
    long = folder / "images" / f"{'x' * 300}.jpg"
    first, second, third = data.records
    second = dataclasses.replace(second, image=long, read_image=ImageFile(long))
    data = dataclasses.replace(data, records=(first, second, third))
    found = report([data, dataclasses.replace(data, split="val")])
    assert [(problem.name, problem.kind) for problem in found.splits[0].problems] == [("1", "missing-file")]
    assert found.splits[0].description.looked_at == 2


def test_images_that_are_no_files(tmp_path):
    folder = label_maps(tmp_path, [SOUND])
    image_HW3 = np.array(scene(1, LARGE))
    record = dataclasses.replace(open_data(folder, "train").records[0], read_image=lambda: image_HW3)
    found = look_at(record, 3)
    assert (found.size, found.num_bytes, found.problem) == (LARGE, 0, None)
    assert found.look == difference_hash(Image.fromarray(image_HW3))


# --- copies -----------------------------------------------------------------------------------------------------------


def scene(seed, size=(120, 160)):
    """Soft blobs: neither noise nor flat, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def test_copies_between_splits(tmp_path):
    size = (120, 160)
    train = label_maps(tmp_path, [plane((1, 0, 0, 60, 160), (2, 60, 0, 90, 9), size=size)] * 3)
    label_maps(tmp_path, [plane((1, 0, 0, 60, 160), (2, 60, 0, 90, 9), size=size)] * 3, split="val")
    for seed in range(3):
        scene(seed).save(train / f"images/train/{seed}.jpg", quality=95)
    shutil.copy(train / "images/train/2.jpg", train / "images/val/0.jpg")
    worse = Image.open(train / "images/train/1.jpg").resize((80, 60)).resize((160, 120))
    worse.save(train / "images/val/1.jpg", quality=50)
    scene(9).save(train / "images/val/2.jpg")
    found = report_of(train)
    first, second = found.duplicates
    assert first == DuplicatePair("0", "val", "2", "train", identical=True)
    assert (second.name, second.other, second.identical) == ("1", "1", False)
    assert 0 <= second.bits <= MOST_BITS
    assert kinds(found) == {("warning", "shared-pictures", "val"), ("warning", "near-duplicates", "val")}


def test_copies_within_a_split(tmp_path):
    folder = label_maps(tmp_path, [SOUND] * 3)
    shutil.copy(folder / "images/train/0.jpg", folder / "images/train/2.jpg")
    found = report_of(folder, "train")
    assert found.splits[0].repeats == (DuplicatePair("2", "train", "0", "train", identical=True),)
    assert kinds(found) == {("warning", "repeated-pictures", "train")}


# --- files that nobody uses -------------------------------------------------------------------------------------------


def test_a_label_without_its_image_and_a_image_without_its_label(tmp_path):
    folder = label_maps(tmp_path, [SOUND] * 3)
    (folder / "images/train/1.jpg").unlink()
    write_random_image(folder / "images/train/.hidden.jpg")
    write_mask(folder / "labels/train/7.png", SOUND)
    found = [f for f in report_of(folder).findings if f.kind.startswith("unused")]
    assert [(f.level, f.kind, f.split) for f in found] == [("warning", "unused-annotations", "train")]
    assert found[0].message == f"2 annotation files in {folder}/labels/train belong to no image, such as 1.png."
    assert not [f for f in report_of(folder, "train").findings if f.kind.startswith("unused")]


def test_images_that_no_json_lists(tmp_path):
    rows = [annotation(n, 1, category, [rectangle(0, 0, 9, 9)]) for n, category in enumerate((3, 17))]
    for name in ("train2017", "val2017"):  # both splits have their images in one folder
        coco_instances(tmp_path, rows, name=name, images="images")
    write_random_image(tmp_path / "images/5.jpg")
    (tmp_path / "images/notes.txt").write_text("no image")
    found = [f for f in report_of(tmp_path).findings if f.kind.startswith("unused")]
    assert [(f.kind, f.message) for f in found] == [
        ("unused-pictures", f"1 image in {tmp_path}/images is in no split, such as 5.jpg."),
    ]


@pytest.mark.parametrize("make", [cityscapes, coco_panoptic, yolo_seg, roboflow])
def test_sound_folders_have_no_unused_files(tmp_path, make):
    folder = make(tmp_path)
    assert not orphans([open_data(folder, "val")])


def test_several_files_of_one_image_in_one_folder(tmp_path):
    """Cityscapes: instanceIds are read, labelIds beside them are not unused for that."""
    folder = cityscapes(tmp_path)
    for part in ("leftImg8bit", "gtFine"):
        for path in sorted((folder / part / "val/aachen").iterdir()):
            for number in "12":
                shutil.copy(path, path.with_name(path.name.replace("aachen_000000", f"aachen_00000{number}")))
    (folder / "leftImg8bit/val/aachen/aachen_000002_000019_leftImg8bit.png").unlink()
    [found] = orphans([open_data(folder, "val")])
    assert (found.kind, found.count, found.first) == ("annotations", 1, "aachen_000002_000019_gtFine_instanceIds.png")


# --- splits and verdicts ----------------------------------------------------------------------------------------------


def test_sound_data_has_no_findings(tmp_path):
    label_maps(tmp_path, [SOUND])
    write_random_image(label_maps(tmp_path, [SOUND], split="val") / "images/val/0.jpg", LARGE, seed=5)
    found = report_of(tmp_path)
    assert (found.findings, found.duplicates, [each.split for each in found.splits]) == ((), (), ["train", "val"])
    assert found.to_dict()["would_train"]


def test_one_split_only(tmp_path):
    assert kinds(report_of(label_maps(tmp_path / "a", [SOUND]))) == {("warning", "no-val-split", "val")}
    found = report_of(label_maps(tmp_path / "b", [SOUND], split="val"))
    assert kinds(found) == {("error", "no-train-split", "train")}
    assert report_of(tmp_path / "b", "val").findings == ()


def test_test_that_is_used_as_val_is_looked_at_once(tmp_path):
    label_maps(tmp_path, [SOUND])
    write_random_image(label_maps(tmp_path, [SOUND], split="test") / "images/test/0.jpg", LARGE, seed=5)
    assert [each.split for each in report_of(tmp_path).splits] == ["train", "val"]
    write_random_image(label_maps(tmp_path, [SOUND], split="val") / "images/val/0.jpg", LARGE, seed=6)
    assert [each.split for each in report_of(tmp_path).splits] == ["train", "val", "test"]


def test_a_split_that_was_asked_for_is_missing(tmp_path):
    with pytest.raises(DataError, match="has no split 'val'"):
        report_of(label_maps(tmp_path, [SOUND]), "train", "val")


@pytest.mark.parametrize("prepare", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_folder_without_data_is_refused(tmp_path, prepare):
    prepare(tmp_path / "data")
    with pytest.raises(DataError, match="does not exist|is empty|is a file"):
        report_of(tmp_path / "data")


def test_splits_of_other_classes(tmp_path):
    both = coco_instances(tmp_path, [annotation(1, 1, 3, [rectangle(0, 0, 9, 9)])])
    categories = [{"id": 3, "name": "cat"}, {"id": 17, "name": "wolf"}]
    rows = [annotation(1, 1, 17, [rectangle(0, 0, 9, 9)])]
    coco_instances(both, rows, name="train2017", images="train2017", categories=categories)
    found = report_of(both)
    (error,) = found.errors
    assert (error.kind, error.split) == ("other-classes", "val")
    assert error.message.endswith("they differ in dog.")
    rows = [(first.name, [each and each.objects for each in counts]) for first, counts in class_rows(found.splits)]
    assert rows == [("cat", [0, 1]), ("wolf", [1, None]), ("dog", [None, 0])]


def test_data_without_annotations_is_warned_of(tmp_path):
    folder = coco_instances(tmp_path, [], name="train2017", images="train2017", count=2)
    found = report_of(folder, "train")
    assert {kind for _, kind, _ in kinds(found)} == {"nothing-annotated", "absurd-sizes"}, "not what follows"
    assert ("warning", "nothing-annotated", "train") in kinds(found), "training runs, and learns nothing"
    assert found.splits[0].empty == ("1", "2")
    assert found.splits[0].num_empty == 2


def test_classic_mistakes_come_from_the_checks(tmp_path):
    mask = plane((255, 5, 5, 18, 20))
    folder = label_maps(tmp_path, [mask], classes="background\nobject\n")
    assert {kind for _, kind, _ in kinds(report_of(folder, "train"))} >= {"binary-masks", "background-class"}
