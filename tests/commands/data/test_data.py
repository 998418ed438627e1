"""m2f data check and view: verdicts as exit codes, json, pages that stand for themselves, what the images show."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
from helpers.folders import (
    annotation,
    coco_instances,
    coco_panoptic,
    label_maps,
    plane,
    rectangle,
    write_image,
    write_random_image,
)
from PIL import Image
from report.page_parser import PageParser

from m2f_cli import cli
from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.transforms.resize import Flip
from m2f_cli.dataset_tools.preview import CAPTION, EDGE, GAP, as_result, sheet, views
from m2f_cli.errors import DataError
from m2f_cli.results.colors import COLOR_BLIND
from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation, SemanticAnnotation

SIZE = (60, 80)
MASK = plane((1, 0, 0, 30, 80), (2, 40, 10, 55, 30), size=SIZE)
PRESET = "ade20k-r50"


@pytest.fixture
def folder(tmp_path):
    """Sound data: two images to train on, one to evaluate on."""
    label_maps(tmp_path / "data", [MASK, MASK])
    label_maps(tmp_path / "data", [MASK], split="val")
    write_random_image(tmp_path / "data/images/val/0.jpg", SIZE, seed=9)
    return tmp_path / "data"


def m2f(*arguments):
    return cli.run(["data", *map(str, arguments)])


def images_in(page):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_of_sound_data(folder, capsys):
    assert m2f("check", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[:7] == ["train", "2", "0", "0", "6", "3.0", "3"]
    assert "b\tstuff\t2\t2\t1\t1" in lines
    assert lines[-1] == "Nothing was found that would stop training."


def test_check_says_when_training_would_fail(folder, capsys):
    (folder / "labels/train/1.png").unlink()
    assert m2f("check", folder) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("error (missing-file, train): 1 image of 2 cannot be used; the first: The mask ")
    assert lines[-1] == "Training would fail."


def test_warnings_fail_only_if_wanted(folder):
    shutil.copy(folder / "images/train/0.jpg", folder / "images/val/0.jpg")
    assert m2f("check", folder) == 0
    assert m2f("check", folder, "--strict") == 3
    assert m2f("check", folder, "--split", "val", "--strict") == 0


def test_check_as_json(folder, capsys):
    (folder / "images/val/0.jpg").write_bytes(b"no image")
    assert m2f("check", folder, "--json", "--workers", 2) == 3
    tree = json.loads(capsys.readouterr().out)
    assert (tree["schema_version"], tree["would_train"], tree["page"]) == (1, False, None)
    assert [problem["kind"] for problem in tree["splits"]["val"]["problems"]] == ["damaged-picture"]
    assert tree["splits"]["train"]["classes"][2]["pixels"] == 2 * 15 * 20


def test_one_split_only(tmp_path, capsys):
    label_maps(tmp_path, [MASK], split="val")
    assert m2f("check", tmp_path) == 3
    assert "error (no-train-split, train)" in capsys.readouterr().out
    assert m2f("check", tmp_path, "--split", "val") == 0


def test_check_reads_as_the_options_say(tmp_path, capsys):
    label_maps(tmp_path, [plane((255, 5, 5, 40, 60), size=SIZE)], classes="rest\nobject\n")
    assert m2f("check", tmp_path, "--label-map", "0=rest,255=object", "--json") == 0
    classes = json.loads(capsys.readouterr().out)["splits"]["train"]["classes"]
    assert [each["pixels"] for each in classes] == [60 * 80 - 35 * 55, 35 * 55]
    assert m2f("check", tmp_path, "--ignore-index", 0, "--json") == 3  # 255 has no meaning then


def test_check_as_a_preset_trains(tmp_path, capsys):
    """Instances are trained on the things alone."""
    coco_panoptic(tmp_path, name="train2017")
    assert m2f("check", tmp_path, "--preset", "coco-instance-r50", "--json") == 0
    train = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert (train["task"], [each["name"] for each in train["classes"]]) == ("instance", ["cat", "dog"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check", "nowhere"], 3, "does not exist"),
        (["check", "DATA", "--split", "test"], 3, "no split 'test'"),
        (["check", "DATA", "--page", "page.pdf"], 2, "should end in .html or .htm"),
        (["check", "DATA", "--task", "panoptics"], 2, "panoptic"),
        (["check", "DATA", "--preset", PRESET, "--ignore-index", "3"], 2, "--ignore-index"),
        (["check", "DATA", "--label-map", "x"], 2, "VALUE=CLASS"),
        (["view", "DATA", "--out", "picture.gif"], 2, "should end in"),
        (["view", "DATA", "--preset", "coco-panoptic-r50", "--task", "semantic"], 2, "--task"),
        (["view", "nowhere"], 3, "does not exist"),
        (["view", "DATA", "--draw-classes", "aa"], 2, "no class named 'aa'"),
        (["view", "DATA", "--draw", "mask"], 2, "Did you mean masks"),
    ],
)
def test_bad_input_is_one_sentence_with_its_exit_code(folder, capsys, arguments, code, words):
    assert m2f(*(str(folder) if word == "DATA" else word for word in arguments)) == code
    assert words in capsys.readouterr().err


def gallery_in(page):
    parsed = PageParser(page)
    assert not parsed.errors and all(each.startswith(("#", "data:")) for each in parsed.addresses())
    return json.loads(parsed.raw["json"][0])


def remarks_in(page):
    return {view["name"]: [each["kind"] for each in view["remarks"]] for view in gallery_in(page)["views"]}


def test_a_page_stands_for_itself(folder, tmp_path):
    shutil.copy(folder / "images/train/1.jpg", folder / "images/val/0.jpg")
    (folder / "classes.txt").write_text("<a>\nb\nc\n")
    assert m2f("check", folder, "--page", tmp_path / "new/page.html") == 0
    page = (tmp_path / "new/page.html").read_text()
    assert "&lt;a&gt;" in page and "<a>" not in page
    assert "1 image of val is in train too" in page
    views = gallery_in(page)["views"]
    assert [view["thumbnail"]["size"] for view in views] == [list(SIZE)] * 3
    assert all(view["thumbnail"]["jpeg"] and view["tasks"]["semantic"]["found"] for view in views)
    assert remarks_in(page) == {"train/0": [], "train/1": ["in-two-splits"], "val/0": ["in-two-splits"]}
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new/page.html"]


def test_the_size_of_the_images_of_a_page(folder, tmp_path):
    write_image(folder / "images/train/0.jpg", np.zeros((128, 256, 3), np.uint8))
    write_image(folder / "labels/train/0.png", np.zeros((128, 256), np.uint8))
    assert m2f("check", folder, "--page", tmp_path / "page.html", "--thumbnails", "64") in (0, 3)
    views = gallery_in((tmp_path / "page.html").read_text())["views"]
    assert views[0]["name"] == "train/0" and views[0]["thumbnail"]["size"] == [32, 64]


def test_a_page_shows_what_cannot_be_used(folder, tmp_path):
    (folder / "labels/train/1.png").unlink()
    (folder / "images/val/0.jpg").rename(folder / "images/val/7.jpg")
    (folder / "labels/val/0.png").rename(folder / "labels/val/7.png")
    write_image(folder / "labels/val/8.png", MASK.astype(np.uint8))
    assert m2f("check", folder, "--page", tmp_path / "page.html") == 3
    page = (tmp_path / "page.html").read_text()
    assert "1 masks in" in page
    assert remarks_in(page) == {"train/0": [], "train/1": ["missing-file"], "val/7": []}
    missing = gallery_in(page)["views"][1]
    assert missing["thumbnail"]["jpeg"] and not missing["tasks"]["semantic"]["found"]


def test_a_page_shows_broken_images_and_annotations_as_far_as_it_can(folder, tmp_path):
    (folder / "images/train/0.jpg").write_bytes(b"no image")
    write_image(folder / "labels/train/1.png", np.full((5, 4), 0, np.uint8))
    assert m2f("check", folder, "--page", tmp_path / "page.html") == 3
    page = (tmp_path / "page.html").read_text()
    assert remarks_in(page) == {"train/0": ["damaged-picture"], "train/1": ["size-mismatch"], "val/0": []}
    broken, other = gallery_in(page)["views"][:2]
    assert not broken["thumbnail"]["jpeg"] and other["thumbnail"]["jpeg"]
    assert not other["tasks"]["semantic"]["found"]


# --- view -------------------------------------------------------------------------------------------------------------


def test_view_as_a_image(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert m2f("view", ".") == 0
    path = capsys.readouterr().out.strip()
    assert path == f"runs/data/view/{folder.name}-train.jpg"
    assert Image.open(path).size == (EDGE + 2 * GAP, 2 * (SIZE[0] + CAPTION + GAP) + GAP)


def test_view_draws_what_is_asked_for(folder, tmp_path):
    out = tmp_path / "view.png"
    options = ["--draw", "masks", "--opacity", 1, "--draw-classes", "b", "--palette", "color-blind", "--count", 1]
    assert m2f("view", folder, *options, "--legend", "--out", out) == 0
    page_HW3 = np.array(Image.open(out))
    is_drawn_HW = (page_HW3 == COLOR_BLIND[1]).all(axis=-1)
    top = GAP + CAPTION
    assert np.array_equal(is_drawn_HW[top : top + 60, GAP : GAP + 80], MASK == 1)
    assert is_drawn_HW[top + 60 :].any(), "the legend"


def test_names_of_images_may_be_in_any_script(folder, capsys):
    data = open_data(folder, "train")
    (view,) = views(data, count=1)
    named = dataclasses.replace(view, name="\u5199\u771f\x1b[31m" * 60)
    assert sheet([named]).size == sheet([view]).size


def test_view_before_and_after_augmentation(folder, tmp_path, capsys):
    out = tmp_path / "view.html"
    assert m2f("view", folder, "--preset", PRESET, "--count", 1, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pictures"] in (["0"], ["1"])
    before, after = images_in(out.read_text())
    assert before.size == (80, 60)
    assert after.size == (EDGE, EDGE)  # a crop of 512 x 512, padded
    text = PageParser(out.read_text()).text
    assert "1 of 2 images." in text and "as annotated" in text and "as training sees it" in text


def test_the_same_seed_shows_the_same(folder):
    data = open_data(folder, "train")
    one, two, other = ([*views(data, [Flip(0.5)], count=2, seed=seed)] for seed in (0, 0, 3))
    assert [np.array(view.after).tobytes() for view in one] == [np.array(view.after).tobytes() for view in two]
    assert [np.array(view.after).tobytes() for view in one] != [np.array(view.after).tobytes() for view in other]


def test_augmentation_moves_the_annotation_with_the_image(tmp_path):
    """An image that is black left, where nothing is annotated, and white right, where the object is."""
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[:, 40:] = 255
    coco_instances(tmp_path, [annotation(1, 1, 3, [rectangle(40, 0, 80, 60)])])
    write_image(tmp_path / "val2017/1.jpg", image)
    path = tmp_path / "annotations/instances_val2017.json"
    tree = json.loads(path.read_text())
    tree["images"][0].update(height=60, width=80)
    path.write_text(json.dumps(tree))
    (view,) = views(open_data(tmp_path, "val"), [Flip(1.0)])
    before, after = np.array(view.before).astype(int), np.array(view.after).astype(int)
    assert before[50, 10].max() < 10 and after[50, 70].max() < 10
    red, green, blue = before[50, 70]
    assert len({red, green, blue}) > 1  # the object's colour over white
    assert np.abs(after[50, 10] - before[50, 70]).max() <= 2


def test_images_that_cannot_be_read_are_replaced(folder, capsys):
    label_maps(folder, [MASK] * 4)
    data, told = open_data(folder, "train"), []
    (folder / "images/train/2.jpg").unlink()
    assert [view.name for view in views(data, count=3, on_skip=told.append)].count("2") == 0
    assert len([*views(data, count=3)]) == 3
    for number in (0, 1, 3):
        (folder / f"images/train/{number}.jpg").unlink()
    with pytest.raises(DataError, match="No image of the train split can be shown"):
        list(views(data, count=3))


def test_small_objects_lie_on_top():
    objects = [
        AnnotatedObject(0, [np.array([[2, 2], [6, 2], [6, 6], [2, 6]])]),
        AnnotatedObject(1, [np.array([[0, 0], [20, 0], [20, 20], [0, 20]])], iscrowd=True),
    ]
    found = as_result(InstanceAnnotation((20, 20), objects), ())
    assert [(each.label, each.area) for each in found.segments] == [(1, 400 - 16), (0, 16)]


@pytest.mark.parametrize(("classes", "nothing"), [(3, 255), (300, 65535)])
def test_ignored_pixels_show_no_class(classes, nothing):
    found = as_result(SemanticAnnotation(np.array([[0, -1], [2, 1]], dtype=np.int32), ignore=-1), (None,) * classes)
    assert found.labels_HW.tolist() == [[0, nothing], [2, 1]]


def test_large_images_become_small(tmp_path):
    label_maps(tmp_path, [plane((1, 0, 0, 500, 900), size=(500, 1000))])
    (view,) = views(open_data(tmp_path, "train"))
    assert view.before.size == (EDGE, EDGE // 2)
    page = sheet([view] * 5)
    assert page.size == (2 * (EDGE + 2 * GAP), 3 * (EDGE // 2 + CAPTION + GAP) + GAP)


def test_the_other_commands_are_there(capsys):
    assert m2f("--help") == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in ("prepare", "check", "view", "convert", "split"))
