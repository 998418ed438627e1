"""Label maps and the data sets of cities, scenes and streets: every pixel has the class that the files say."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from helpers.folders import (
    SIZE,
    ade20k,
    annotation,
    cityscapes,
    image_entry,
    label_maps,
    mapillary,
    plane,
    rectangle,
    write_ids,
    write_image,
    write_json,
    write_mask,
    write_random_image,
    write_text,
)
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli.data.formats.files import read_values
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures.run_lengths import values_in

VALUES = plane((1, 0, 0, 10, 30), (2, 5, 5, 9, 9), (255, 15, 0, 20, 30))


def only_annotation(data):
    (record,) = data.records
    return record.read_annotation()


# --- label maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["labels", "annotations", "masks"])
def test_label_maps_are_read_as_semantic_data(tmp_path, kind):
    data = open_data(label_maps(tmp_path, [VALUES, VALUES * 0], kind=kind), "train")
    assert (data.format, data.task, len(data), data.notes) == ("label-maps", "semantic", 2, ())
    assert [(c.name, c.isthing) for c in data.categories] == [("a", False), ("b", False), ("c", False)]
    first, second = (record.read_annotation() for record in data.records)
    assert (first.labels_HW.dtype, first.ignore) == (np.uint8, 255)
    assert np.array_equal(first.labels_HW, VALUES)
    assert not second.labels_HW.any()
    assert [record.name for record in data.records] == ["0", "1"]
    assert data.records[0].labels is None
    copy = pickle.loads(pickle.dumps(data.records[0]))
    assert np.array_equal(copy.read_annotation().labels_HW, VALUES)


def test_splits_above_the_kinds_and_sub_folders(tmp_path):
    write_random_image(tmp_path / "train/images/north/a.png")
    write_mask(tmp_path / "train/masks/north/a.png", VALUES)
    write_text(tmp_path / "classes.txt", "a\nb\nc\n")
    data = open_data(tmp_path, "train")
    assert data.records[0].name == "north/a"
    assert np.array_equal(only_annotation(data).labels_HW, VALUES)


def test_classes_yaml_gives_names_colours_and_what_is_ignored(tmp_path):
    folder = label_maps(tmp_path, [plane((2, 0, 0, 5, 30))], classes=None)
    write_text(folder / "classes.yaml", "names: {0: x, 1: y}\nignore_index: 2\ncolors: {0: [1, 2, 3], 1: [4, 5, 6]}\n")
    data = open_data(folder, "train")
    assert [(c.name, c.color) for c in data.categories] == [("x", (1, 2, 3)), ("y", (4, 5, 6))]
    assert np.array_equal(only_annotation(data).labels_HW, plane((255, 0, 0, 5, 30)))
    write_text(folder / "classes.yaml", "classes: [x, {name: y, isthing: false}]\nignore_index: 2")
    assert [c.isthing for c in open_data(folder, "train").categories] == [True, False]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("names: {0: x, 2: y}", "without gaps"),
        ("names: []", "should be a list"),
        ("names: [x, x]", "two classes"),
        ("names: [x, y]\nnum_classes: 3", "num_classes"),
    ],
)
def test_classes_yaml_that_contradicts_itself(tmp_path, text, word):
    folder = label_maps(tmp_path, [VALUES], classes=None)
    write_text(folder / "classes.yaml", text)
    with pytest.raises(ConfigError, match=word):
        open_data(folder, "train")


def test_without_class_names_the_values_are_listed(tmp_path):
    with pytest.raises(DataError, match=r"hold the values 0, 1, 2, 255\. Write classes\.txt"):
        open_data(label_maps(tmp_path, [VALUES], classes=None), "train")


def test_a_class_table_names_the_values(tmp_path):
    folder = label_maps(tmp_path, [plane((18, 0, 0, 5, 30))], classes=None)
    data = open_data(folder, "train", classes="cityscapes")
    assert data.categories[18].name == "bicycle"
    assert only_annotation(data).labels_HW.max() == 18


def test_ignore_index_goes_before_a_class(tmp_path):
    values = plane((1, 0, 0, 5, 30))
    annotation = only_annotation(open_data(label_maps(tmp_path, [values]), "train", ignore_index=0))
    assert np.array_equal(annotation.labels_HW, np.where(values == 0, 255, values))


def test_label_map_by_name_number_and_null(tmp_path):
    folder = label_maps(tmp_path, [plane((255, 0, 0, 5, 30), (7, 5, 0, 6, 30), (9, 6, 0, 7, 30))])
    annotation = only_annotation(open_data(folder, "train", label_map={0: "a", 255: "c", 7: 1, 9: None}))
    assert np.array_equal(annotation.labels_HW, plane((2, 0, 0, 5, 30), (1, 5, 0, 6, 30), (255, 6, 0, 7, 30)))


def test_a_label_map_is_all_that_is_known(tmp_path):
    folder = label_maps(tmp_path, [plane((1, 0, 0, 5, 30))])
    with pytest.raises(DataError, match="value 0; known are 1 to 2, 255 .ignored"):
        only_annotation(open_data(folder, "train", label_map={1: "a", 2: "b"}))


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        ({0: "aa"}, "class named 'aa'"),
        ({0: 3}, "class number 3; there are 0 to 2"),
        ({-1: "a"}, "-1"),
        ({"0": "a"}, "'0'"),
    ],
)
def test_label_maps_that_make_no_sense(tmp_path, label_map, words):
    with pytest.raises(ConfigError, match=words):
        open_data(label_maps(tmp_path, [VALUES]), "train", label_map=label_map)


def test_a_value_that_no_class_has(tmp_path):
    (record,) = open_data(label_maps(tmp_path, [plane((200, 0, 0, 1, 1))]), "train").records
    with pytest.raises(DataError) as error:
        record.read_annotation()
    assert all(word in str(error.value) for word in ["0.png", "value 200", "0 to 2, 255 (ignored)", "label_map"])


def test_many_classes_are_16_bit_and_255_is_one_of_them(tmp_path):
    names = "\n".join(f"class {n}" for n in range(300))
    values = plane((255, 0, 0, 5, 30), (299, 5, 0, 10, 30), (65535, 10, 0, 15, 30))
    annotation = only_annotation(open_data(label_maps(tmp_path, [values], classes=names), "train"))
    assert (annotation.labels_HW.dtype, annotation.ignore) == (np.uint16, 65535)
    assert np.array_equal(annotation.labels_HW, values)


def test_a_mask_of_another_size(tmp_path):
    folder = label_maps(tmp_path, [VALUES])
    write_mask(folder / "labels/train/0.png", VALUES[:, :-1])
    with pytest.raises(DataError, match=r"0\.jpg has 20 x 30 .*0\.png 20 x 29"):
        only_annotation(open_data(folder, "train"))


def test_exif_orientation_counts_for_the_size(tmp_path):
    folder = label_maps(tmp_path, [VALUES])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(folder / "images/train/0.jpg", exif=exif)  # stored 30 high, 20 wide; shown 20 x 30
    assert only_annotation(open_data(folder, "train")).size == SIZE


def test_missing_and_left_over_masks(tmp_path):
    folder = label_maps(tmp_path, [VALUES, VALUES])
    (folder / "labels/train/0.png").rename(folder / "labels/train/other.png")
    data = open_data(folder, "train")
    assert data.notes == (f"1 masks in {folder / 'labels/train'} belong to no image",)
    with pytest.raises(DataError, match=r"0\.png is missing"):
        data.records[0].read_annotation()
    (folder / "labels/train/1.png").unlink()
    with pytest.raises(DataError, match="No image of .* has a mask"):
        open_data(folder, "train")


def test_masks_without_images_are_refused(tmp_path):
    folder = label_maps(tmp_path, [VALUES])
    (folder / "images/train/0.jpg").unlink()
    with pytest.raises(DataError, match="holds no images"):
        open_data(folder, "train")


def test_tasks_that_label_maps_cannot_do(tmp_path):
    with pytest.raises(DataError, match="'panoptic', only for: semantic"):
        open_data(label_maps(tmp_path, [VALUES]), "train", task="panoptic")


def test_values_of_all_kinds_of_images(tmp_path):
    small = VALUES.astype(np.uint8)
    palette = Image.fromarray(small).convert("P")
    palette.putdata(small.ravel().tolist())
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "p.png")
    grey = write_image(tmp_path / "rgb.png", np.repeat(small[..., None], 3, axis=2))
    deep = write_mask(tmp_path / "deep.png", plane((40000, 0, 0, 5, 30)))
    tiff = write_image(tmp_path / "deep.tif", plane((40000, 0, 0, 5, 30)).astype(np.uint16))
    Image.fromarray(small > 0).save(tmp_path / "bits.png")
    assert np.array_equal(read_values(tmp_path / "p.png"), small)
    assert np.array_equal(read_values(grey), small)
    assert np.array_equal(read_values(tmp_path / "bits.png"), small > 0)
    for path in (deep, tiff):
        assert values_in(read_values(path)).tolist() == [0, 40000]


def test_colours_are_no_class_numbers(tmp_path):
    folder = label_maps(tmp_path, [VALUES])
    write_random_image(folder / "labels/train/0.png")
    with pytest.raises(DataError, match="holds colours"):
        only_annotation(open_data(folder, "train"))


def test_values_in_is_unique():
    plane_HW = np.random.default_rng(0).integers(0, 4, (13, 17)).astype(np.uint8)
    assert np.array_equal(values_in(plane_HW), np.unique(plane_HW))
    assert values_in(np.full((2, 2), 7)).tolist() == [7]


# --- Cityscapes -------------------------------------------------------------------------------------------------------


def test_cityscapes_is_read_as_panoptic(tmp_path):
    data = open_data(cityscapes(tmp_path), "val")
    assert (data.format, data.task, len(data.categories)) == ("cityscapes", "panoptic", 19)
    (record,) = data.records
    assert record.name == "aachen/aachen_000000_000019"
    annotation = record.read_annotation()
    found = [(s.id, data.categories[s.label].name, s.iscrowd) for s in annotation.segments]
    assert found == [
        (7, "road", False),
        (23, "sky", False),
        (24, "person", True),
        (26000, "car", False),
        (26001, "car", False),
    ]
    areas = {int(i): int((annotation.ids_HW == i).sum()) for i in np.unique(annotation.ids_HW)}
    assert areas == {0: 165, 7: 226, 23: 150, 24: 27, 26000: 20, 26001: 12}


def test_cityscapes_is_read_as_semantic(tmp_path):
    data = open_data(cityscapes(tmp_path), "val", task="semantic")
    assert data.notes == (), "instanceIds beside labelIds are no masks without image"
    annotation = only_annotation(data)
    labels, counts = np.unique(annotation.labels_HW, return_counts=True)
    areas = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    assert areas == {0: 226, 10: 150, 11: 27, 13: 32, 255: 165}  # train ids


def test_cityscapes_is_read_as_instances(tmp_path):
    data = open_data(cityscapes(tmp_path), "val", task="instance")
    names = [c.name for c in data.categories]
    assert names == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    objects = only_annotation(data).objects
    assert [(names[o.label], o.iscrowd, int(coco_mask.area(o.shape))) for o in objects] == [
        ("person", True, 27),
        ("car", False, 20),
        ("car", False, 12),
    ]
    assert any("polygons" in note for note in data.notes)


def test_cityscapes_with_own_classes(tmp_path):
    write_text(tmp_path / "table.yaml", "classes: [{name: car}, {name: sky, isthing: false}]")
    folder, path = cityscapes(tmp_path / "cityscapes"), tmp_path / "table.yaml"
    annotation = only_annotation(open_data(folder, "val", classes=path, task="semantic"))
    labels, counts = np.unique(annotation.labels_HW, return_counts=True)
    assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {0: 32, 1: 150, 255: 418}
    assert [s.id for s in only_annotation(open_data(folder, "val", classes=path)).segments] == [23, 26000, 26001]


# --- ADE20K -----------------------------------------------------------------------------------------------------------


def test_ade20k_semantic_is_the_value_minus_one(tmp_path):
    data = open_data(ade20k(tmp_path), "train")
    assert (data.format, data.task, len(data.categories)) == ("ade20k", "semantic", 150)
    expected = plane((0, 0, 0, 5, 30), (149, 5, 0, 10, 30), fill=255)
    assert np.array_equal(only_annotation(data).labels_HW, expected)


def test_ade20k_panoptic_and_instance_json(tmp_path):
    folder = ade20k(tmp_path)
    images = [image_entry("ADE_train_00000001", "ADE_train_00000001.jpg")]
    rows = [annotation(1, "ADE_train_00000001", 8, [rectangle(1, 2, 11, 7)])]
    categories = [{"id": 7, "name": "bed"}, {"id": 8, "name": "windowpane"}]
    tree = {"images": images, "annotations": rows, "categories": categories}
    write_json(folder / "ade20k_instance_train.json", tree)
    data = open_data(folder, "train", task="instance")
    assert (len(data.categories), data.categories[1].name) == (100, "window")
    assert [item.label for item in only_annotation(data).objects] == [1]

    info = {
        "image_id": "ADE_train_00000001",
        "file_name": "a.png",
        "segments_info": [{"id": 9, "category_id": 149, "iscrowd": 0}],
    }
    categories = [{"id": 0, "name": "wall", "isthing": 0}, {"id": 149, "name": "flag", "isthing": 1}]
    tree = {"images": images, "annotations": [info], "categories": categories}
    write_json(folder / "ade20k_panoptic_train.json", tree)
    write_ids(folder / "ade20k_panoptic_train" / "a.png", plane((9, 0, 0, 5, 30)))
    data = open_data(folder, "train")
    assert (data.task, len(data.categories)) == ("panoptic", 150)
    assert [(s.id, s.label) for s in only_annotation(data).segments] == [(9, 149)]


def test_ade20k_says_which_file_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"ade20k_instance_train\.json is missing"):
        open_data(ade20k(tmp_path), "train", task="instance")


# --- Mapillary Vistas -------------------------------------------------------------------------------------------------


def test_mapillary_is_read_as_semantic(tmp_path):
    data = open_data(mapillary(tmp_path), "val")
    assert (data.format, data.task, len(data.categories)) == ("mapillary", "semantic", 65)
    assert data.categories[13].name == "Road"
    assert np.array_equal(only_annotation(data).labels_HW, plane((13, 0, 0, 5, 30), (64, 5, 0, 10, 30), fill=255))


def test_mapillary_is_read_as_panoptic(tmp_path):
    folder = mapillary(tmp_path) / "validation/v1.2/panoptic"
    write_ids(folder / "a.png", plane((9, 0, 0, 5, 30)))
    tree = {
        "images": [image_entry("a", "a.jpg")],
        "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": [{"id": 9, "category_id": 20}]}],
        "categories": [{"id": 20, "name": "Person", "isthing": 1}],
    }
    write_json(folder / "panoptic_2018.json", tree)
    data = open_data(tmp_path, "val")
    assert data.task == "panoptic"
    assert [(s.id, data.categories[s.label].name) for s in only_annotation(data).segments] == [(9, "Person")]


# --- real data --------------------------------------------------------------------------------------------------------


def test_real_camvid_is_read_whole(shared_dir):
    folder = shared_dir / "data" / "camvid"
    train, val = (open_data(folder, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    assert [c.name for c in train.categories][:3] == ["Sky", "Building", "Pole"]
    assert train.categories[4].color == (60, 40, 222)
    counts = sum(np.bincount(record.read_annotation().labels_HW.ravel(), minlength=256) for record in val.records)
    published = [0.09336, 0.26412, 0.00574, 0.29455, 0.08870, 0.16619, 0.00908, 0.03131, 0.01776, 0.00662, 0.02256]
    assert np.allclose(counts[:11] / counts[:11].sum(), published, atol=6e-6)
    assert counts[255] / counts.sum() == pytest.approx(0.0170, abs=1e-4)
    assert counts[11:255].sum() == 0


def test_real_ade20k_has_the_published_labels(shared_dir):
    folder = shared_dir / "data" / "ade20k_sample" / "ADEChallengeData2016"
    for split, spelled in (("train", "training"), ("val", "validation")):
        for record in open_data(folder, split, task="semantic").records:
            expected = np.array(Image.open(folder / "annotations_detectron2" / spelled / f"{record.name}.png"))
            assert np.array_equal(record.read_annotation().labels_HW, expected)
    assert open_data(folder, "val").task == "semantic"
    panoptic, instance = open_data(folder, "train"), open_data(folder, "train", task="instance")
    assert (panoptic.task, len(panoptic.categories), len(instance.categories)) == ("panoptic", 150, 100)
    objects = [item for record in instance.records for item in record.read_annotation().objects]
    assert len(objects) == 66
    assert all(int(coco_mask.area(item.shape)) == item.area for item in objects)
    things = sum(panoptic.categories[s.label].isthing for r in panoptic.records for s in r.read_annotation().segments)
    assert things == 66


def test_real_mapillary_crop(shared_dir):
    folder = shared_dir / "data" / "mapillary_crop"
    annotation = only_annotation(open_data(folder, "val"))
    raw = np.array(Image.open(next((folder / "validation/v1.2/labels").iterdir())))
    assert np.array_equal(annotation.labels_HW, np.where(raw == 65, 255, raw))
