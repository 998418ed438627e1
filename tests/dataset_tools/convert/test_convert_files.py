"""Converting whole folders: splits, links, broken images, names, processes; all of it or nothing."""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers.convert_tools import VALUES, objects, read
from helpers.folders import (
    SIZE,
    ade20k,
    annotation,
    coco_instances,
    image_entry,
    label_maps,
    labelme,
    mapillary,
    plane,
    rectangle,
    roboflow,
    write_ids,
    write_json,
    write_mask,
    write_random_image,
    write_text,
    yolo_seg,
)
from PIL import Image

from m2f_cli.data.open_dataset import open_data
from m2f_cli.dataset_tools.convert.retask import plan
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.dataset_tools.convert.source import open_source
from m2f_cli.dataset_tools.convert.write import write_splits
from m2f_cli.errors import ConfigError, DataError, M2FError


def test_all_splits_and_formats_that_are_only_read(tmp_path):
    done = convert(roboflow(tmp_path / "a"), tmp_path / "b", "yolo-seg")
    assert [(each.split, each.images) for each in done.splits] == [("train", 1), ("val", 1)]
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
    assert [(each.split, each.images) for each in done.splits] == [("train", 1), ("test", 2)]
    with pytest.raises(DataError, match="no split 'minival'"):
        convert(source, tmp_path / "c", "label-maps", splits=["minival"])


def test_links_and_copies(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES])
    convert(source, tmp_path / "b", "label-maps", link=True)
    image = tmp_path / "b/images/train/0.jpg"
    assert image.is_symlink()
    assert image.resolve() == source / "images/train/0.jpg"
    convert(source, tmp_path / "c", "label-maps")
    copy = tmp_path / "c/images/train/0.jpg"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (source / "images/train/0.jpg").read_bytes()


def test_images_inside_of_jsons_are_written(tmp_path):
    import base64
    import io

    file = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), 77, np.uint8)).save(file, format="PNG")
    source = labelme(tmp_path / "a", imagePath="gone.png", imageData=base64.b64encode(file.getvalue()).decode())
    (source / "a.jpg").unlink()
    convert(source, tmp_path / "b", "coco-instance")
    assert (np.array(Image.open(tmp_path / "b/train/a.png")) == 77).all()


def broken(folder):
    """A good image, a truncated one, one of another size, one whose mask has an unknown value, one without mask."""
    label_maps(folder, [VALUES] * 4)
    data = (folder / "images/train/1.jpg").read_bytes()
    (folder / "images/train/1.jpg").write_bytes(data[: len(data) // 2])
    write_random_image(folder / "images/train/2.jpg", (9, 9))
    write_mask(folder / "labels/train/3.png", VALUES * 0 + 9)
    write_random_image(folder / "images/train/4.jpg")
    return folder


@pytest.mark.parametrize("to", ["label-maps", "coco-panoptic", "cityscapes"])
def test_broken_images_are_named_and_leave_nothing_behind(tmp_path, to):
    done = convert(broken(tmp_path / "a"), tmp_path / "b", to)
    assert [(name, reason.split()[0].rpartition("/")[2]) for _, name, reason in done.failures] == [
        ("1", "1.jpg"),
        ("2", "2.jpg"),
        ("3", "3.png"),
        ("4", "The"),
    ]
    assert done.splits[0].images == 1
    assert len(read(tmp_path / "b", "train")) == 1
    files = [path for path in (tmp_path / "b").rglob("*") if path.suffix in (".png", ".jpg")]
    assert {path.stem.split("_")[0] for path in files} == {"0"}
    assert done.to_dict()["splits"][0]["failures"][0]["picture"] == "1"


def test_a_data_set_that_is_broken_as_a_whole_writes_nothing(tmp_path):
    source = label_maps(tmp_path / "a", [VALUES * 0 + 9])
    with pytest.raises(DataError, match="Not one image can be used; the first: .*holds the value 9"):
        convert(source, tmp_path / "b", "label-maps")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_broken_split_is_no_missing_split(tmp_path):
    source = objects(tmp_path / "a")
    write_text(source / "annotations/instances_train2017.json", "{")
    with pytest.raises(DataError, match="not valid json"):
        convert(source, tmp_path / "b", "yolo-seg")


def test_splits_of_other_classes(tmp_path):
    source = objects(tmp_path / "a")
    coco_instances(source, [], name="train2017", images="train2017", categories=[{"id": 3, "name": "cow"}])
    with pytest.raises(DataError, match="different classes"):
        convert(source, tmp_path / "b", "yolo-seg")


def test_splits_of_other_tasks(tmp_path):
    """The train split of ADE20K was prepared, the other was not."""
    source = ade20k(tmp_path / "a")
    write_random_image(source / "images/validation/ADE_val_00000001.jpg")
    write_mask(source / "annotations/validation/ADE_val_00000001.png", plane((1, 0, 0, 5, 30)))
    with_segments = [{"id": 1, "name": "wall", "isthing": 0}]
    tree = {
        "images": [image_entry(1, "ADE_train_00000001.jpg")],
        "categories": with_segments,
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}],
    }
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
        convert(objects(tmp_path / "a"), tmp_path / "b", "coco-instance", on_image=stop)
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
    write_random_image(tmp_path / "outside.jpg")
    source = tmp_path / "a"
    write_random_image(source / "val" / "x.jpg")
    tree = {
        "images": [image_entry(1, "x.jpg"), image_entry(2, "../../outside.jpg")],
        "annotations": [annotation(1, 2, 3, [rectangle(1, 2, 11, 7)])],
        "categories": [{"id": 3, "name": "cat"}],
    }
    write_json(source / "annotations" / "instances_val.json", tree)
    convert(source, tmp_path / "deep" / "b", "coco-instance")
    assert sorted(path.name for path in (tmp_path / "deep" / "b" / "val").iterdir()) == ["outside.jpg", "x.jpg"]
    assert read(tmp_path / "deep" / "b")["outside"] == read(source)["../../outside"]


def test_processes_write_the_same_files(tmp_path):
    source = label_maps(tmp_path / "a", [np.roll(VALUES, n, axis=0) for n in range(20)])
    (source / "labels/train/7.png").unlink()
    seen = []
    one = convert(source, tmp_path / "b", "coco-panoptic")
    two = convert(source, tmp_path / "c", "coco-panoptic", workers=2, on_start=seen.append, on_image=seen.append)
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

    images_per_file = None

    def annotate(self, root, place, annotation):
        os._exit(9)

    def image(self, place):
        return place.file_name

    def shared(self, split):
        return None


def test_a_process_that_is_killed(tmp_path):
    data = open_data(label_maps(tmp_path / "a", [VALUES]), "train")
    recast = plan(data.categories, "semantic", "semantic")
    with pytest.raises(M2FError, match="--workers"):
        write_splits({"train": data.records}, tmp_path / "b", _Killed(), recast, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
