"""`m2f data check` says what training will do: its verdict is compared with a training of odd data sets."""

from __future__ import annotations

import json

import pytest
from helpers.folders import (
    annotation,
    coco_instances,
    coco_panoptic,
    label_maps,
    plane,
    rectangle,
    write_json,
    write_random_image,
)

from m2f_cli import cli

SIZE = (64, 80)
BOX = [rectangle(8, 8, 40, 40)]
BOTH = [annotation(1, 1, 3, BOX), annotation(2, 2, 17, BOX)]


def coco(folder, rows=BOTH, change=lambda tree: None, *, count=2, file="instances_train", images="train"):
    coco_instances(folder, rows, name="train", images=images, count=count)
    path = folder / "annotations/instances_train.json"
    tree = json.loads(path.read_text())
    for number, image in enumerate(tree["images"]):
        write_random_image(folder / images / image["file_name"], SIZE, seed=number)
        image.update(height=SIZE[0], width=SIZE[1])
    change(tree)
    path.unlink()
    write_json(folder / f"annotations/{file}.json", tree)


def sizes_as(kind):
    return lambda tree: [image.update(height=kind(SIZE[0]), width=kind(SIZE[1])) for image in tree["images"]]


def names_as(text):
    return lambda tree: tree["categories"][0].update(name=text)


def maps(folder, yaml):
    for split in ("train", "val"):
        label_maps(folder, [plane((1, 0, 0, 30, 80), size=SIZE)] * 2, split=split, classes=None)
    (folder / "classes.yaml").write_text(yaml)


def no_image(folder):
    coco(folder)
    (folder / "train/1.jpg").unlink()


def no_image_in_val(folder, missing=("1.jpg",)):
    coco(folder)
    coco(folder / "b", images="val")
    (folder / "b/annotations/instances_train.json").rename(folder / "annotations/instances_val.json")
    (folder / "b/val").rename(folder / "val")
    for name in missing:
        (folder / "val" / name).unlink()


def no_mask_in_val(folder):
    """Of both images the annotation is of another size: nothing can be evaluated."""
    no_image_in_val(folder, ())
    path = folder / "annotations/instances_val.json"
    tree = json.loads(path.read_text())
    sizes_as(lambda edge: edge + 1)(tree)
    write_json(path, tree)


def other_classes(folder):
    coco(folder)
    coco(folder / "b", change=names_as("lynx"))
    (folder / "b/annotations/instances_train.json").rename(folder / "annotations/instances_val.json")
    (folder / "b/train").rename(folder / "val")


def two_channels(folder):
    coco_panoptic(folder, name="train", segments=[])


FAR = annotation(3, 2, 3, [[8, 8, 1e7, 8, 20, 40]])
# name: (what makes the folder, whether a training of it runs)
SETS = {
    "sound": (coco, True),
    "flags as text": (lambda f: coco(f, [annotation(1, 1, 3, BOX, iscrowd="0"), BOTH[1]]), True),
    "flags that are none": (lambda f: coco(f, [annotation(1, 1, 3, BOX, iscrowd="no"), BOTH[1]]), False),
    "crowds alone": (lambda f: coco(f, [annotation(1, 1, 3, BOX, iscrowd="1")]), True),
    "lists of points": (lambda f: coco(f, [annotation(1, 1, 3, [[8, 8], [40, 8], [40, 40]]), BOTH[1]]), True),
    "no polygon": (lambda f: coco(f, [annotation(1, 1, 3, [[]]), BOTH[1]]), True),
    "no segmentation": (lambda f: coco(f, [annotation(1, 1, 3, []), BOTH[1]]), False),
    "sizes as floats": (lambda f: coco(f, change=sizes_as(float)), True),
    "sizes as text": (lambda f: coco(f, change=sizes_as(str)), True),
    "other sizes": (lambda f: coco(f, change=sizes_as(lambda edge: edge + 1)), False),
    "nothing annotated": (lambda f: coco(f, []), True),
    "outside of the image": (lambda f: coco(f, [annotation(1, 1, 3, [rectangle(90, 90, 95, 95)]), BOTH[1]]), True),
    "far outside": (lambda f: coco(f, [BOTH[0], FAR]), False),
    "one split of CVAT": (lambda f: coco(f, file="instances_default", images="images/default"), True),
    "a name of two lines": (lambda f: coco(f, change=names_as("a\nb")), True),
    "a name of another plane": (lambda f: coco(f, change=names_as("\U0001f408")), True),
    "half a character": (lambda f: coco(f, change=names_as("\ud800")), False),
    "a missing image": (no_image, False),
    "a missing image in val": (no_image_in_val, True),
    "nothing usable in val": (no_mask_in_val, False),
    "other classes in val": (other_classes, False),
    "names that YAML takes for others": (lambda f: maps(f, "classes: [no, null]"), True),
    "one name twice": (lambda f: maps(f, "classes: [no, 'no']"), False),
    "a value without a class": (lambda f: maps(f, "classes: [only]"), False),
    "pixels of no segment": (two_channels, False),
}


SHORT = ("train.iterations=1", "train.batch=2", "model.backbone.depth=18", "model.pixel_decoder.num_layers=1")


def m2f(*arguments):
    return cli.run([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", SETS)
def test_the_verdict_is_what_training_does(tmp_path, capsys, name):
    make, runs = SETS[name]
    make(tmp_path / "data")
    checked = m2f("data", "check", tmp_path / "data")
    said = capsys.readouterr()
    trained = m2f(
        "train",
        "--preset",
        "tiny",
        "--init",
        "random",
        "--data",
        tmp_path / "data",
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
        "--workers",
        0,
        *(word for pair in SHORT for word in ("--set", pair)),
    )
    told = capsys.readouterr()
    assert (checked == 0, trained == 0) == (runs, runs), (said.out[-600:], said.err[-600:], told.err[-600:])
    assert "bug in m2f" not in said.err + told.err
    if checked == 0:
        assert said.out.endswith("Nothing was found that would stop training.\n")


def test_a_preset_of_another_task_is_switched_as_in_training(tmp_path, capsys):
    coco(tmp_path)
    assert m2f("data", "check", tmp_path, "--preset", "tiny") == 0
    assert "this run's task is instance" in capsys.readouterr().out


def test_a_preset_that_drops_empty_images_finds_none_left(tmp_path, capsys):
    coco(tmp_path, [])
    preset = tmp_path / "mine.yaml"
    preset.write_text("extends: tiny\ntrain: {drop_empty: true}\n")
    assert m2f("data", "check", tmp_path, "--preset", preset) == 3
    assert "training-stops" in capsys.readouterr().out


def test_where_the_run_would_be_written(tmp_path, capsys):
    coco(tmp_path / "data")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/x", "/proc/x"):
        assert m2f("data", "check", tmp_path / "data", "--out", out) == 3
        assert f"Cannot write {out}" in capsys.readouterr().out
    assert m2f("data", "check", tmp_path / "data", "--out", tmp_path / "new/run") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "file"]
