"""Cityscapes: what is written equals what the official scripts write."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.prepare_tools import pixels, prepare, save, zipped

from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import DataError

LABELS = (
    "road",
    "sky",
    "car",
    "car",
    "cargroup",
    "person",
    "persongroup",
    "polegroup",
    "caravan",
    "license plate",
    "traffic light",
    "ego vehicle",
    "rider",
    "train",
    "bicyclegroup",
    "static",
)


@pytest.fixture
def cityscapes(tmp_path):
    root, random = tmp_path / "cityscapes", np.random.default_rng(3)
    for split, city, number in (("train", "ulm", 0), ("train", "aachen", 1), ("val", "bonn", 2)):
        stem = f"{city}_{number:06d}_000019"
        objects = []
        for label in (*LABELS, *random.choice(LABELS, 20)):
            centre, radius = random.integers(-5, 70, 2), random.integers(1, 30)
            points = (centre + random.integers(-radius, radius + 1, (random.integers(3, 9), 2))).tolist()
            objects.append({"label": str(label), "polygon": points})
        objects[2]["deleted"] = 1
        tree = {"imgHeight": 40, "imgWidth": 64, "objects": objects}
        folder = root / "gtFine" / split / city
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}_gtFine_polygons.json").write_text(json.dumps(tree))
        save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", np.zeros((40, 64, 3), np.uint8))
    return root


def test_cityscapes_equals_the_official_scripts(cityscapes, tmp_path, capsys):
    pytest.importorskip("cityscapesscripts")
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    from cityscapesscripts.preparation.json2instanceImg import json2instanceImg
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    prepare("cityscapes", cityscapes)
    polygons = sorted(cityscapes.rglob("*_polygons.json"))
    for path in polygons:
        for kind, draw, encoding in (
            ("labelIds", json2labelImg, "ids"),
            ("labelTrainIds", json2labelImg, "trainIds"),
            ("instanceIds", json2instanceImg, "ids"),
        ):
            official = tmp_path / "official.png"
            draw(str(path), str(official), encoding)
            ours = path.with_name(path.name.replace("_polygons.json", f"_{kind}.png"))
            assert np.array_equal(pixels(ours), pixels(official)), (path.name, kind)
            assert ours.read_bytes() == official.read_bytes()
    convert2panoptic(str(cityscapes / "gtFine"), str(tmp_path), setNames=["train", "val"])
    for split in ("train", "val"):
        name = f"cityscapes_panoptic_{split}"
        assert (cityscapes / "gtFine" / f"{name}.json").read_text() == (tmp_path / f"{name}.json").read_text()
        theirs = sorted((tmp_path / name).iterdir())
        assert [path.name for path in theirs] == sorted(p.name for p in (cityscapes / "gtFine" / name).iterdir())
        for path in theirs:
            assert np.array_equal(pixels(cityscapes / "gtFine" / name / path.name), pixels(path))
    assert sum(len(a["segments_info"]) for a in json.loads((tmp_path / f"{name}.json").read_text())["annotations"]) > 5


def test_cityscapes_by_hand(cityscapes):
    path = cityscapes / "gtFine" / "val" / "bonn" / "bonn_000002_000019_gtFine_polygons.json"

    def box(label, left, right, **more):
        points = [[left, 5], [right, 5], [right, 9], [left, 9]]
        return {"label": label, "polygon": points, **more}

    objects = [
        box("road", 0, 63),
        box("car", 0, 9),
        box("car", 10, 19, deleted=1),
        box("car", 20, 29),
        box("cargroup", 30, 39),
        box("license plate", 2, 4),
        box("trailer", 40, 49),
    ]
    path.write_text(json.dumps({"imgHeight": 40, "imgWidth": 64, "objects": objects}))
    prepare("cityscapes", cityscapes)
    row = {
        kind: pixels(path.with_name(f"bonn_000002_000019_gtFine_{kind}.png"))[7, [3, 15, 25, 35, 45, 55]].tolist()
        for kind in ("labelIds", "labelTrainIds", "instanceIds")
    }
    assert row == {
        "labelIds": [26, 7, 26, 26, 30, 7],
        "labelTrainIds": [13, 0, 13, 13, 255, 0],
        "instanceIds": [26000, 7, 26001, 26, 30000, 7],
    }
    table = json.loads((cityscapes / "gtFine" / "cityscapes_panoptic_val.json").read_text())
    [annotation] = table["annotations"]
    assert {(s["id"], s["category_id"], s["iscrowd"]) for s in annotation["segments_info"]} == {
        (7, 7, 0),
        (26, 26, 1),
        (26000, 26, 0),
        (26001, 26, 0),
    }
    assert annotation["segments_info"][2] == {
        "id": 26000,
        "category_id": 26,
        "area": 50,
        "bbox": [0, 5, 10, 5],
        "iscrowd": 0,
    }
    data = open_data(cityscapes, "val", task="panoptic")
    assert {(s.id, s.iscrowd) for s in data.records[0].read_annotation().segments} == {
        (7, False),
        (26, True),
        (26000, False),
        (26001, False),
    }


def test_cityscapes_keeps_the_ids_of_the_download(cityscapes):
    prepare("cityscapes", cityscapes)
    path = next(cityscapes.rglob("*_instanceIds.png"))
    save(path, np.full((40, 64), 26003, np.uint16))
    prepare("cityscapes", cityscapes, verify=True)
    assert (pixels(path) == 26003).all(), "Pillow may draw differently from the version that the download was made with"
    stem = path.name.removesuffix("_gtFine_instanceIds.png")
    tables = [json.loads(p.read_text())["annotations"] for p in (cityscapes / "gtFine").glob("*.json")]
    [annotation] = [a for rows in tables for a in rows if a["image_id"] == stem]
    assert [segment["id"] for segment in annotation["segments_info"]] == [26003]


def test_cityscapes_from_its_two_zips(cityscapes, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    zipped(cityscapes / "gtFine", packed / "gtFine_trainvaltest.zip", "gtFine/")
    zipped(cityscapes / "leftImg8bit", packed / "leftImg8bit_trainvaltest.zip", "leftImg8bit/")
    prepare("cityscapes", packed)
    prepare("cityscapes", cityscapes)
    ours = {p.relative_to(packed): p.read_bytes() for p in packed.rglob("*") if p.is_file() and p.suffix != ".zip"}
    assert ours == {p.relative_to(cityscapes): p.read_bytes() for p in cityscapes.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"label": "sky"', '"label": "skyy"', "skyy.*Did you mean sky"),
        ('"imgWidth": 64', '"imgWidth": -64', "an image of -64 x 40 pixels"),
        ('"imgWidth": 64', '"imgWidth": 100000', "an image of 100000 x 40 pixels"),
        ('"polygon": [[', '"polygon": [[NaN, 3], [', "polygon.0.0 nan, which should be a finite number"),
        ('"polygon": [[', '"polygon": [["1e5", 3], [', "a point at 100000"),
        ('"objects"', '"things"', "has no .objects."),
    ],
)
def test_cityscapes_bad_polygons(cityscapes, old, new, message):
    path = next((cityscapes / "gtFine" / "train").rglob("*.json"))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message) as caught:
        prepare("cityscapes", cityscapes)
    assert path.name in str(caught.value)
