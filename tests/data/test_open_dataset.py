"""A folder's format is recognised, its splits are found under all their names, and what fails says what to do."""

from __future__ import annotations

import pytest
from helpers.folders import (
    ade20k,
    cityscapes,
    coco_instances,
    coco_panoptic,
    label_maps,
    labelme,
    mapillary,
    plane,
    roboflow,
    write_text,
    yolo_seg,
)

from m2f_cli import plugins
from m2f_cli.data.formats.layout import spellings
from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.errors import ConfigError, DataError


def shards(folder):
    convert(coco_panoptic(folder / "source"), folder / "shards", "webdataset", splits=["val"])
    return folder / "shards"


MAKERS = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "coco-instance": lambda folder: coco_instances(folder, []),
    "coco-panoptic": coco_panoptic,
    "label-maps": lambda folder: label_maps(folder, [plane()]),
    "labelme": labelme,
    "mapillary": mapillary,
    "roboflow-coco": roboflow,
    "webdataset": shards,
    "yolo-seg": yolo_seg,
}


def test_every_format_is_tried_here():
    assert sorted(MAKERS) == plugins.names("formats")


@pytest.mark.parametrize("name", MAKERS)
def test_a_format_is_recognised_and_is_no_other(tmp_path, name):
    folder = MAKERS[name](tmp_path)
    assert detect(folder) == name
    found = {other for other in MAKERS if plugins.get("formats", other).finds(folder)}
    assert found - {"label-maps"} == {name} - {"label-maps"}  # others have folders of labels as well


def test_panoptic_goes_before_instances(tmp_path):
    coco_panoptic(tmp_path)
    assert detect(coco_instances(tmp_path, [])) == "coco-panoptic"


def test_two_formats_in_one_folder(tmp_path):
    coco_panoptic(tmp_path)
    yolo_seg(tmp_path)
    with pytest.raises(DataError, match="looks like coco-panoptic and like yolo-seg"):
        detect(tmp_path)
    assert open_data(tmp_path, "val", format="yolo-seg").task == "instance"


def test_an_unknown_folder_says_what_is_in_it_and_what_is_known(tmp_path):
    write_text(tmp_path / "notes.txt", "")
    with pytest.raises(DataError) as error:
        detect(tmp_path)
    assert "it holds notes.txt" in str(error.value)
    assert all(name in str(error.value) for name in MAKERS)
    coco_panoptic(tmp_path / "inner")
    with pytest.raises(DataError, match="Did you mean .*inner"):
        detect(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        detect(tmp_path / "gone")
    with pytest.raises(DataError, match="is a file"):
        detect(write_text(tmp_path / "a", ""))


def test_unknown_formats_and_options_without_use(tmp_path):
    folder = coco_panoptic(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean coco-panoptic"):
        open_data(folder, "val", format="coco-panoptik")
    with pytest.raises(ConfigError, match="ignore_index and label_map"):
        open_data(folder, "val", ignore_index=0)
    with pytest.raises(ConfigError, match="ignore_index and label_map"):
        open_data(folder, "val", label_map={0: "cat"})


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("val2017", "val"),
        ("val2017", "val2017"),
        ("val", "validation"),
        ("validation", "val"),
        ("valid", "val"),
        ("train2017", "train"),
        ("train", "train"),
        ("training", "train"),
        ("test2017", "test"),
        ("val2014", "val"),
        ("minival", "minival"),
    ],
)
def test_splits_under_their_names(tmp_path, stored, asked):
    data = open_data(coco_instances(tmp_path, [], name=stored, images=stored), asked)
    assert (data.split, len(data), data.notes) == (asked, 1, ())


def test_test_stands_in_for_val_and_says_so(tmp_path):
    data = open_data(coco_instances(tmp_path, [], name="test", images="test"), "val")
    assert data.notes == ("there is no split 'val': 'test' is used",)


def test_a_missing_split_names_those_that_are_there(tmp_path):
    with pytest.raises(DataError, match=r"no split 'train'\. It has: val"):
        open_data(coco_instances(tmp_path, []), "train")


def test_several_years_of_a_split(tmp_path):
    for year in ("val2014", "val2016"):
        coco_instances(tmp_path, [], name=year, images=year)
    with pytest.raises(DataError, match="Choose: val2014, val2016"):
        open_data(tmp_path, "val")
    assert open_data(tmp_path, "val2014").records[0].image == tmp_path / "val2014" / "1.jpg"


def test_spellings_start_with_what_was_asked():
    assert spellings("valid") == ("valid", "val", "val2017", "validation", "test")
    assert spellings("test") == ("test", "test2017", "testing")
    assert spellings("minival") == ("minival",)


def test_another_package_may_bring_a_format(tmp_path):
    reader = "m2f_cli.data.formats.coco_panoptic:FORMAT"
    assert open_data(coco_panoptic(tmp_path), "val", format=reader, trust_code=True).task == "panoptic"


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        ("ade20k_sample/ADEChallengeData2016", "ade20k"),
        ("camvid", "label-maps"),
        ("coco_instances", "coco-instance"),
        ("coco_panoptic_160", "coco-panoptic"),
        ("coco_panoptic_sample", "coco-panoptic"),
        ("mapillary_crop", "mapillary"),
        ("nuclei_dsb2018", "coco-instance"),
        ("coco_stuff_sample", "label-maps"),
    ],
)
def test_real_packs_are_recognised(shared_dir, pack, name):
    assert detect(shared_dir / "data" / pack) == name


def test_nuclei_are_recognised(nuclei_dir):
    assert detect(nuclei_dir) == "coco-instance"
