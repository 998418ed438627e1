"""Annotated pictures in other formats: read back, the truth is the same pixel by pixel, and what is lost is listed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import yaml
from folders import (
    ALL,
    SEGMENTS,
    SIZE,
    ade20k,
    annotation,
    cityscapes,
    coco_instances,
    coco_panoptic,
    image_entry,
    label_maps,
    labelme,
    mapillary,
    plane,
    rectangle,
    roboflow,
    write_ids,
    write_image,
    write_json,
    write_mask,
    write_picture,
    write_text,
    yolo_seg,
)
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.data.categories import from_names
from m2f_cli.data.convert.recast import Recast, paint, plan
from m2f_cli.data.convert.run import TEXTS, convert
from m2f_cli.data.convert.source import open_source
from m2f_cli.data.convert.writing import write_splits
from m2f_cli.data.detect import detect, open_data
from m2f_cli.data.formats.files import read_values
from m2f_cli.data.geometry import mask_of
from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.types import InstanceTruth, PanopticTruth, SemanticTruth, TrueObject

VALUES = plane((1, 0, 0, 10, 30), (2, 5, 5, 9, 9), (255, 15, 0, 20, 30))


def regions(truth, categories):
    """What a truth says, in names and pixels: independent of how the format numbers things."""
    name = [category.name for category in categories]
    if isinstance(truth, SemanticTruth):
        return {(name[v], (truth.labels_HW == v).tobytes()) for v in np.unique(truth.labels_HW) if v != truth.ignore}
    if isinstance(truth, PanopticTruth):
        return sorted((name[s.label], s.iscrowd, (truth.ids_HW == s.id).tobytes()) for s in truth.segments)
    return [(name[o.label], o.iscrowd, mask_of(o, truth.size).astype(bool).tobytes()) for o in truth.objects]


def read(folder, split="val", **options):
    data = open_data(folder, split, **options)
    return {record.name: regions(record.read_truth(), data.categories) for record in data.records}


def pictures(folder, split="val"):
    return {record.name: record.read_image().tobytes() for record in open_data(folder, split).records}


def kinds(done):
    return {loss.kind: loss.count for loss in done.losses}


def hollow():
    mask_HW = np.zeros(SIZE, np.uint8)
    mask_HW[2:12, 3:20] = 1
    mask_HW[4:8, 6:12] = 0
    mask_HW[15:18, 25:28] = 1
    return mask_HW


def rle(mask_HW):
    packed = coco_mask.encode(np.asfortranarray(mask_HW))
    return {"size": list(SIZE), "counts": packed["counts"].decode()}


def objects(folder):
    """A triangle with tenths, a mask with a hole and a second part, two parts, a crowd; and a picture of nothing."""
    crowd_HW = np.zeros(SIZE, np.uint8)
    crowd_HW[16:20, 0:20] = 1
    return coco_instances(folder, [
        annotation(1, 1, 17, [[3.3, 4.1, 15.2, 4.7, 9.9, 14.6]], area=61.5),
        annotation(2, 1, 3, rle(hollow())),
        annotation(3, 1, 3, [rectangle(20, 1, 24, 5), rectangle(26, 1, 29, 5)]),
        annotation(4, 1, 3, rle(crowd_HW), iscrowd=1),
    ], count=2)  # fmt: skip


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["coco-instance", "labelme"])
def test_objects_with_holes_parts_overlaps_and_crowds(tmp_path, to):
    source = objects(tmp_path / "a")
    done = convert(source, tmp_path / "b", to)
    assert detect(tmp_path / "b") == to
    assert read(tmp_path / "b") == read(source)
    assert [len(found) for found in read(source).values()] == [4, 0]
    assert pictures(tmp_path / "b") == pictures(source)
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
        (70000, 100, [0, 0, 10, 10]), (300, 100, [10, 0, 10, 10]), (5, 250, [0, 10, 25, 10]),
    ]  # fmt: skip


def test_cityscapes_itself(tmp_path):
    source = cityscapes(tmp_path / "a")
    done = convert(source, tmp_path / "b", "cityscapes")
    assert not (tmp_path / "b" / "classes.yaml").exists()
    assert read(tmp_path / "b") == read(source)
    assert kinds(done) == {}
    for task in ("semantic", "instance"):
        assert read(tmp_path / "b", task=task) == read(source, task=task)
    convert(source, tmp_path / "c", "coco-panoptic")
    convert(tmp_path / "c", tmp_path / "d", "cityscapes")
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
    assert np.array_equal(read_values(tmp_path / "c/labels/train/0.png"),
                          np.array([2, 255, 0, 1])[np.where(VALUES == 255, 3, VALUES)])  # fmt: skip


def test_label_maps_as_panoptic_and_back(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    convert(source, tmp_path / "b", "coco-panoptic")
    data = open_data(tmp_path / "b", "train")
    assert len(data.records[0].read_truth().segments) == 3
    convert(tmp_path / "b", tmp_path / "c", "label-maps")
    assert read(tmp_path / "c", "train") == read(source, "train")
    assert [c.isthing for c in open_data(tmp_path / "c", "train").categories] == [False] * 3


# --- what is lost -----------------------------------------------------------------------------------------------------


def test_overlaps_go_to_the_smaller_object(tmp_path):
    source = coco_instances(tmp_path / "a", [
        annotation(1, 1, 3, [rectangle(2, 2, 6, 6)]),
        annotation(2, 1, 17, [rectangle(0, 0, 10, 10)]),
        annotation(3, 1, 3, [rectangle(4, 4, 6, 6)]),  # covered by nobody: it is the smallest
        annotation(4, 1, 3, [rectangle(4, 4, 6, 6)]),  # the same again: hidden below or above it
        annotation(5, 1, 17, [rectangle(0, 0, 30, 20)], iscrowd=1),
    ])  # fmt: skip
    done = convert(source, tmp_path / "b", "coco-panoptic")
    truth = open_data(tmp_path / "b", "val").records[0].read_truth()
    areas = sorted(int((truth.ids_HW == segment.id).sum()) for segment in truth.segments)
    assert areas == [4, 12, 84, 500]
    assert kinds(done)["overlaps"] == 16 + 100 + 4 + 4 + 600 - 600
    assert kinds(done)["hidden"] == 1
    assert kinds(done)["outlines"] == 5
    assert "nobody" in kinds(done)


def test_objects_as_labels_have_a_background(tmp_path):
    done = convert(objects(tmp_path / "a"), tmp_path / "b", "label-maps")
    data = open_data(tmp_path / "b", "val")
    assert [c.name for c in data.categories] == ["cat", "dog", "background"]
    full, empty = (record.read_truth().labels_HW for record in data.records)
    union = np.zeros(SIZE, bool)
    for item in open_data(tmp_path / "a", "val").records[0].read_truth().objects:
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
    truth = open_data(tmp_path / "b", "train").records[0].read_truth()
    assert [segment.iscrowd for segment in truth.segments] == [False, True, True]
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
    truth = open_data(tmp_path / "c", "train").records[0].read_truth()
    assert [(s.label, s.iscrowd) for s in truth.segments] == [(0, False), (1, False), (1, False), (2, False)]
    with pytest.raises(ConfigError, match="Did you mean|Known"):
        convert(source, tmp_path / "d", "coco-panoptic", separate=["q"])
    with pytest.raises(ConfigError, match="Leave it out"):
        convert(source, tmp_path / "d", "label-maps", separate=["b"])


def test_segments_that_the_style_of_cityscapes_merges(tmp_path):
    ids_HW = plane((1, 0, 0, 5, 5), (2, 5, 5, 10, 10), (3, 10, 10, 12, 12))
    segments = [{"id": 1, "category_id": 200, "iscrowd": 0}, {"id": 2, "category_id": 200, "iscrowd": 0},
                {"id": 3, "category_id": 3, "iscrowd": 0}]  # fmt: skip
    done = convert(coco_panoptic(tmp_path / "a", ids_HW=ids_HW, segments=segments), tmp_path / "b", "cityscapes")
    assert kinds(done)["merged"] == 1
    assert len(open_data(tmp_path / "b", "val").records[0].read_truth().segments) == 2


def test_more_objects_than_cityscapes_can_number(tmp_path):
    ids_HW = np.arange(1, 1101).reshape(22, 50)
    segments = [{"id": n, "category_id": 3, "iscrowd": 0} for n in range(1, 1101)]
    folder = coco_panoptic(tmp_path / "a", ids_HW=ids_HW, segments=segments)
    write_picture(folder / "val2017" / "1.jpg", (22, 50))
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


# --- splits, pictures, failures ---------------------------------------------------------------------------------------


def test_all_splits_and_formats_that_are_only_read(tmp_path):
    done = convert(roboflow(tmp_path / "a"), tmp_path / "b", "yolo-seg")
    assert [(each.split, each.pictures) for each in done.splits] == [("train", 1), ("val", 1)]
    assert read(tmp_path / "b")["val/1"] == read(tmp_path / "a")["1"]
    convert(mapillary(tmp_path / "c"), tmp_path / "d", "label-maps")
    assert read(tmp_path / "d") == read(tmp_path / "c", task="semantic")
    convert(yolo_seg(tmp_path / "e"), tmp_path / "f", "labelme", splits=["val"])
    assert read(tmp_path / "f") == {name.removeprefix("val/"): found for name, found in read(tmp_path / "e").items()}
    assert not (tmp_path / "f" / "train").exists()


def test_test_stays_test(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    label_maps(source, [VALUES * 0, VALUES], split="test")
    done = convert(source, tmp_path / "b", "label-maps")
    assert [(each.split, each.pictures) for each in done.splits] == [("train", 1), ("test", 2)]
    with pytest.raises(DataError, match="no split 'minival'"):
        convert(source, tmp_path / "c", "label-maps", splits=["minival"])


def test_links_and_copies(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    convert(source, tmp_path / "b", "label-maps", link=True)
    picture = tmp_path / "b/images/train/0.jpg"
    assert picture.is_symlink()
    assert picture.resolve() == source / "images/train/0.jpg"
    convert(source, tmp_path / "c", "label-maps")
    copy = tmp_path / "c/images/train/0.jpg"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (source / "images/train/0.jpg").read_bytes()


def test_pictures_inside_of_jsons_are_written(tmp_path):
    import base64
    import io

    file = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), 77, np.uint8)).save(file, format="PNG")
    source = labelme(tmp_path / "a", imagePath="gone.png", imageData=base64.b64encode(file.getvalue()).decode())
    (source / "a.jpg").unlink()
    convert(source, tmp_path / "b", "coco-instance")
    assert (np.array(Image.open(tmp_path / "b/train/a.png")) == 77).all()


def broken(folder):
    """A good picture, a truncated one, one of another size, one whose mask has an unknown value, one without mask."""
    label_maps(folder, [VALUES] * 4)
    data = (folder / "images/train/1.jpg").read_bytes()
    (folder / "images/train/1.jpg").write_bytes(data[: len(data) // 2])
    write_picture(folder / "images/train/2.jpg", (9, 9))
    write_mask(folder / "labels/train/3.png", VALUES * 0 + 9)
    write_picture(folder / "images/train/4.jpg")
    return folder


@pytest.mark.parametrize("to", ["label-maps", "coco-panoptic", "cityscapes"])
def test_broken_pictures_are_named_and_leave_nothing_behind(tmp_path, to):
    done = convert(broken(tmp_path / "a"), tmp_path / "b", to)
    assert [(name, reason.split()[0].rpartition("/")[2]) for _, name, reason in done.failures] == [
        ("1", "1.jpg"), ("2", "2.jpg"), ("3", "3.png"), ("4", "The"),
    ]  # fmt: skip
    assert done.splits[0].pictures == 1
    assert len(read(tmp_path / "b", "train")) == 1
    files = [path for path in (tmp_path / "b").rglob("*") if path.suffix in (".png", ".jpg")]
    assert {path.stem.split("_")[0] for path in files} == {"0"}
    assert done.to_dict()["splits"][0]["failures"][0]["picture"] == "1"


def test_a_data_set_that_is_broken_as_a_whole_writes_nothing(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES * 0 + 9])
    with pytest.raises(DataError, match="Not one picture can be used; the first: .*holds the value 9"):
        convert(source, tmp_path / "b", "label-maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_broken_split_is_no_missing_split(tmp_path):
    source = objects(tmp_path / "a")
    write_text(source / "annotations/instances_train2017.json", "{")
    with pytest.raises(DataError, match="not valid json"):
        convert(source, tmp_path / "b", "yolo-seg")


def test_splits_of_other_classes(tmp_path):
    source = objects(tmp_path / "a")
    coco_instances(source, [], name="train2017", pictures="train2017", categories=[{"id": 3, "name": "cow"}])
    with pytest.raises(DataError, match="different classes"):
        convert(source, tmp_path / "b", "yolo-seg")


def test_splits_of_other_tasks(tmp_path):
    """The train split of ADE20K was prepared, the other was not."""
    source = ade20k(tmp_path / "a")
    write_picture(source / "images/validation/ADE_val_00000001.jpg")
    write_mask(source / "annotations/validation/ADE_val_00000001.png", plane((1, 0, 0, 5, 30)))
    with_segments = [{"id": 1, "name": "wall", "isthing": 0}]
    tree = {"images": [image_entry(1, "ADE_train_00000001.jpg")], "categories": with_segments,
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}]}  # fmt: skip
    write_json(source / "ade20k_panoptic_train.json", tree)
    write_ids(source / "ade20k_panoptic_train/1.png", plane())
    with pytest.raises(DataError, match=r"ade20k_panoptic_val\.json is missing"):
        convert(source, tmp_path / "b", "coco-panoptic")
    with pytest.raises(DataError, match="'train' has panoptic annotations, 'val' only semantic ones"):
        open_source(source, None)
    convert(source, tmp_path / "b", "label-maps")
    assert read(tmp_path / "b") == read(source)


def test_nothing_is_overwritten(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    (tmp_path / "b").mkdir()
    convert(source, tmp_path / "b", "label-maps")  # an empty folder is nothing
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="exists already"):
        convert(source, tmp_path / "b", "label-maps")
    with pytest.raises(ConfigError, match="lies in"):
        convert(source, source / "c", "label-maps")
    with pytest.raises(ConfigError, match="label-maps"):
        convert(source, tmp_path / "c", "label-map")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interruption_leaves_nothing(tmp_path):
    def stop(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(objects(tmp_path / "a"), tmp_path / "b", "coco-instance", on_picture=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_that_cannot_be_written(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    with pytest.raises(M2FError, match="Cannot write .*Not a directory"):
        convert(source, write_text(tmp_path / "file", "") / "b", "label-maps")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(M2FError, match="Cannot write .*No space left"):
        convert(label_maps(tmp_path / "a", [VALUES]), tmp_path / "b", "label-maps")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_stay_below_their_folder(tmp_path):
    write_picture(tmp_path / "outside.jpg")
    source = tmp_path / "a"
    write_picture(source / "val" / "x.jpg")
    tree = {
        "images": [image_entry(1, "x.jpg"), image_entry(2, "../../outside.jpg")],
        "annotations": [annotation(1, 2, 3, [rectangle(1, 2, 11, 7)])], "categories": [{"id": 3, "name": "cat"}],
    }  # fmt: skip
    write_json(source / "annotations" / "instances_val.json", tree)
    convert(source, tmp_path / "deep" / "b", "coco-instance")
    assert sorted(path.name for path in (tmp_path / "deep" / "b" / "val").iterdir()) == ["outside.jpg", "x.jpg"]
    assert read(tmp_path / "deep" / "b")["outside"] == read(source)["../../outside"]


def test_processes_write_the_same_files(tmp_path):
    source = label_maps(tmp_path / "a", [np.roll(VALUES, n, axis=0) for n in range(20)])
    (source / "labels/train/7.png").unlink()
    seen = []
    one = convert(source, tmp_path / "b", "coco-panoptic")
    two = convert(source, tmp_path / "c", "coco-panoptic", workers=2, on_start=seen.append, on_picture=seen.append)
    assert [path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").rglob("*"))] == [
        path.relative_to(tmp_path / "c") for path in sorted((tmp_path / "c").rglob("*"))
    ]
    for path in (tmp_path / "b").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "c" / path.relative_to(tmp_path / "b")).read_bytes()
    assert two.splits == one.splits
    assert seen[0] == 20
    assert [outcome.name for outcome in seen[1:]] == [record.name for record in open_data(source, "train").records]


class _Killed:
    """A writer whose process is killed, as by the memory's guard."""

    def annotate(self, root, place, truth):
        os._exit(9)

    def picture(self, place):
        return place.file_name

    def shared(self, split):
        return None


def test_a_process_that_is_killed(tmp_path):
    data = open_data(label_maps(tmp_path / "a", [VALUES]), "train")
    recast = plan(data.categories, "semantic", "semantic")
    with pytest.raises(M2FError, match="--workers"):
        write_splits({"train": data.records}, tmp_path / "b", _Killed(), recast, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_every_target_is_a_format_that_can_be_read():
    assert set(plugins.names("converters")) <= set(plugins.names("formats"))


def test_paint_of_nothing():
    ids_HW, lost = paint(InstanceTruth(SIZE, []))
    assert not ids_HW.any()
    assert not +lost


def test_a_truth_of_the_task_stays_itself():
    truth = InstanceTruth(SIZE, [TrueObject(0, [np.array(rectangle(0, 0, 5, 5)).reshape(-1, 2)])])
    categories = from_names(["a"])
    assert Recast(categories, categories, "instance")(truth)[0] is truth


# --- real pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(shared_dir, tmp_path):
    """Four pictures of COCO with their segments."""
    source = shared_dir / "data" / "coco_panoptic_160"
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
    wanted = {name: sorted(each for each in found if to != "yolo-seg" or not each[1])
              for name, found in read(few, task="instance").items()}  # fmt: skip
    found = {name.removeprefix("val/"): sorted(each) for name, each in read(tmp_path / "b").items()}
    assert found == wanted
    assert sum(map(len, wanted.values())) > 10


@pytest.mark.parametrize("to", ["coco-panoptic", "label-maps"])
def test_segments_of_coco_whole(few, tmp_path, to):
    convert(few, tmp_path / "b", to)
    task = None if to == "coco-panoptic" else "semantic"
    assert read(tmp_path / "b") == read(few, task=task)
