"""Writers: files that others can read, exact numbers, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, instances, panoptic, scene, scene_labels, semantic
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.results import writers as output
from m2f_cli.results.regions import Region
from m2f_cli.results.types import PanopticMap, Segment
from m2f_cli.structures.categories import Category

LABELS = scene_labels()
FILES = {
    "overlay": {"overlay/a.jpg"},
    "coco-panoptic": {"panoptic/a.png", "panoptic/a.json"},
    "coco-instance": {"instances/a.json"},
    "label-png": {"labels/a.png"},
    "color-png": {"color/a.png"},
    "polygons": {"polygons/a.json"},
    "overlay-png": {"overlay/a.png"},
    "crops": {"crops/a/000_sky.png", "crops/a/001_grass.png", "crops/a/002_person.png"},
}


def read(path):
    return np.asarray(Image.open(path))


SERVER = {"coco-panoptic-zip", "cityscapes-semantic", "cityscapes-instance"}  # in test_server_formats.py


def test_every_format_has_a_layout_here():
    assert set(plugins.names("writers")) == FILES.keys() | SERVER


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_format_writes_the_files_that_the_layout_names(tmp_path, name):
    make = instances if name == "coco-instance" else panoptic
    files = make(LABELS, image=scene()).save(tmp_path, name, name="a")
    assert {file.relative_to(tmp_path).as_posix() for file in files} == FILES[name]
    on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert on_disk == FILES[name]


def test_names_come_from_the_image_and_may_hold_dots_and_folders(tmp_path):
    result = semantic(LABELS, image=Path("somewhere/photo.v2.png"))
    assert result.save(tmp_path, "label-png") == [tmp_path / "labels" / "photo.v2.png"]
    assert result.save(tmp_path, "label-png", name="day/x.y") == [tmp_path / "labels" / "day" / "x.y.png"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (semantic, "coco-instance"),
        (semantic, "coco-panoptic"),
        (instances, "coco-panoptic"),
        (instances, "label-png"),
        (panoptic, "coco-instance"),
    ],
)
def test_a_format_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, make, name):
    with pytest.raises(ConfigError, match=f"{name}.*For {make(LABELS).task}: .*overlay"):
        make(LABELS, image=scene()).save(tmp_path, ["overlay", name])
    assert not list(tmp_path.iterdir())


def test_a_writer_says_itself_which_tasks_it_is_for(tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text(
        "from m2f_cli.results.writers import for_tasks\n\n\n"
        '@for_tasks("semantic")\ndef write(result, stem):\n    return []\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert semantic(LABELS).save(tmp_path / "out", "of_a_user:write", trust_code=True) == []
    with pytest.raises(ConfigError, match="is for semantic results, not for panoptic ones"):
        panoptic(LABELS).save(tmp_path / "out", "of_a_user:write", trust_code=True)


def test_unknown_format_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean polygons"):
        panoptic(LABELS).save("x", "polygon")


def test_panoptic_png_holds_the_ids_in_base_256(tmp_path):
    ids_HW = np.array([[0, 1, 300], [70_000, 16_777_215, 1]], np.int32)
    segments = [Segment(i, SKY, 0.9, 1) for i in (1, 300, 70_000, 16_777_215)]
    result = PanopticMap((2, 3), CATEGORIES, ids_HW, segments)
    png, text = output.write_coco_panoptic(result, tmp_path / "000000000139")
    rgb_HW3 = read(png).astype(int)
    assert np.array_equal(rgb_HW3 @ [1, 256, 65536], ids_HW)
    document = json.loads(text.read_text())
    assert document["images"] == [{"id": 139, "file_name": "000000000139", "width": 3, "height": 2}]
    (annotation,) = document["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (139, "000000000139.png")
    assert {record["id"] for record in annotation["segments_info"]} == set(ids_HW.flat) - {0}
    assert document["categories"][2] == {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]}


@pytest.mark.parametrize(("highest", "dtype", "void"), [(254, np.uint8, 255), (255, np.uint16, 65535)])
def test_label_png_has_as_many_bits_as_the_ids_need(tmp_path, highest, dtype, void):
    labels_HW = LABELS.copy()
    labels_HW[0, 0] = 255
    result = semantic(labels_HW)
    result.categories = (*CATEGORIES[:2], Category(highest, "last", True, (1, 2, 3)))
    (path,) = output.write_label_png(result, tmp_path / "a")
    written_HW = read(path)
    assert written_HW.dtype == dtype and written_HW[0, 0] == void
    assert np.array_equal(written_HW[1:], np.array([187, 193, highest])[LABELS[1:]])
    result.categories = (Category(70_000, "big", True, (1, 2, 3)),) * 3
    with pytest.raises(ConfigError, match="70000"):
        output.write_label_png(result, tmp_path / "b")


def test_a_color_png_has_the_colours_of_the_classes(tmp_path):
    (path,) = output.write_color_png(semantic(LABELS), tmp_path / "a")
    assert np.array_equal(read(path), np.array([category.color for category in CATEGORIES])[LABELS])


def test_overlay_is_the_plot(tmp_path):
    result = panoptic(LABELS, image=scene())
    (png,) = output.write_overlay_png(result, tmp_path / "a")
    assert np.array_equal(read(png), np.asarray(result.plot()))
    (jpg,) = output.write_overlay(result, tmp_path / "a")
    assert np.abs(read(jpg).astype(int) - read(png)).mean() < 4
    with pytest.raises(DataError, match="image"):
        output.write_overlay(panoptic(LABELS), tmp_path / "b")


def test_crops_are_cut_out_of_the_image(tmp_path):
    result = panoptic(LABELS, image=scene())
    result.categories = (*CATEGORIES[:2], Category(1, "per/son, big", True, (1, 2, 3)))
    path = output.write_crops(result, tmp_path / "a")[-1]
    assert path == tmp_path / "a" / "002_per-son-big.png"
    assert np.array_equal(read(path)[..., :3], scene()[18:30, 24:40]) and (read(path)[..., 3] == 255).all()
    sky = read(tmp_path / "a" / "000_sky.png")
    assert np.array_equal(sky[..., 3] == 255, LABELS[:24] == SKY)


def shoelace(ring):
    x, y = np.array(ring, float).T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_are_exact(mask_HW):
    """Outlines less holes have the mask's area to the pixel, along the grid, and fill to the mask again."""
    shapes = output.polygons(Region(0, 0, 1.0, (2, 3, 2 + mask_HW.shape[0], 3 + mask_HW.shape[1]), mask_HW))
    rings = [ring for shape in shapes for ring in (shape["outline"], *shape["holes"])]
    area = sum(shoelace(s["outline"]) - sum(map(shoelace, s["holes"])) for s in shapes)
    assert area == mask_HW.sum()
    inside = np.zeros(mask_HW.shape, int)
    for ring in rings:
        contour = (2 * (np.array(ring, np.float32) - [3, 2])).astype(np.float32)
        for y, x in np.ndindex(mask_HW.shape):
            inside[y, x] += cv2.pointPolygonTest(contour, (2.0 * x + 1, 2.0 * y + 1), False) > 0
        assert all((a[0] == b[0]) != (a[1] == b[1]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    assert np.array_equal(inside % 2 == 1, mask_HW)


def test_a_polygon_file_says_what_it_holds(tmp_path):
    (path,) = output.write_polygons(panoptic(LABELS), tmp_path / "a")
    document = json.loads(path.read_text())
    assert (document["schema_version"], document["task"]) == (1, "panoptic")
    assert (document["width"], document["height"]) == (64, 48)
    person = document["regions"][PERSON]
    assert person["polygons"] == [{"outline": [[24, 18], [24, 30], [40, 30], [40, 18]], "holes": []}]
    assert (person["label"], person["category_id"], person["score"], person["area"]) == ("person", 1, 0.7, 192)
    assert document["regions"][GRASS]["isthing"] is False


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), output.atomic(tmp_path / "a.png") as part:
        part.write_text("half")
        raise RuntimeError
    with pytest.raises(M2FError, match=r"Cannot write .*a\.png: No space left"), output.atomic(tmp_path / "a.png"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(M2FError, match="Cannot write"):
        output.write_color_png(semantic(LABELS), tmp_path / "file" / "a")


def test_rewriting_keeps_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    output.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        output.write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
