"""The page of a prediction: classes, scores and images without an annotation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_segmenter import FakeSegmenter, scene
from PIL import Image
from report.page_parser import PageParser

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import RUN_MARK, expand
from m2f_cli.report.predictions import write_predictions_page
from m2f_cli.report.write import write_report


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path)


def write_images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(scene(60 + i, 80)).save(folder / f"{i}.png")
    return folder


def predicted(images: Path, task: str = "panoptic", segmenter=None, **options) -> Path:
    out = images.parent / "out"
    options = {"thumbnails": 40, **options}
    predict(segmenter or FakeSegmenter(), expand([images]), task, out, ("overlay",), **options)
    return out


def data_of(page: Path) -> dict:
    parsed = PageParser(page.read_text())
    assert not parsed.errors
    return json.loads(parsed.raw["json"][0])


@pytest.mark.parametrize(("task", "scored"), [("panoptic", True), ("instance", True), ("semantic", False)])
def test_the_page_shows_images_with_their_segments(images, task, scored):
    page = write_report([predicted(images, task)])
    data = data_of(page)
    assert data["alone"] == "prediction" and [view["name"] for view in data["views"]] == ["0", "1", "2", "3"]
    view = data["views"][0]
    found = view["tasks"][task]["found"]
    assert found and view["thumbnail"]["size"] == [30, 40] and view["thumbnail"]["jpeg"]
    assert all(("score" in each) == scored for each in found)
    document = json.loads((page.parent / "predictions.json").read_text())
    kept = {"panoptic": "segments", "instance": "instances", "semantic": "classes"}[task]
    assert [each["area"] for each in document["predictions"][0][kept]] == [each["area"] for each in found]
    assert ("mean score" in page.read_text()) and ('id="scores"' in page.read_text()) == scored


def test_a_resumed_prediction_shows_each_image_once(images):
    out = predicted(images)
    for path in out.rglob("1.*"):
        path.unlink()
    predicted(images, skip_existing=True)
    views = data_of(write_predictions_page(out))["views"]
    assert sorted(view["name"] for view in views) == ["0", "1", "2", "3"]


def test_the_view_of_an_image_that_a_killed_process_did_not_finish_is_taken_away(images):
    out = predicted(images)
    before = (out / "views.jsonl").read_bytes()
    lines = (out / RUN_MARK).read_bytes().splitlines(keepends=True)
    (out / RUN_MARK).write_bytes(b"".join(lines[:-1]))
    predicted(images, skip_existing=True)
    assert (out / "views.jsonl").read_bytes() == before


def test_images_of_an_earlier_run_without_a_page_are_counted(images):
    out = predicted(images, thumbnails=0)
    assert "4 images were not kept" in write_predictions_page(out).read_text()
    Image.fromarray(scene(64, 80)).save(images / "9.png")
    page = write_predictions_page(predicted(images, skip_existing=True))
    assert "4 images were not kept" in page.read_text() and len(data_of(page)["views"]) == 1


def test_overwrite_removes_the_page_and_its_images(images):
    out = predicted(images)
    write_predictions_page(out)
    predicted(images, overwrite=True, thumbnails=0)
    assert not (out / "report.html").exists() and not (out / "views.jsonl").exists()


def test_many_images_become_a_folder_of_pages(images):
    out = predicted(images)
    index = write_predictions_page(out, most=3)
    assert index == out / "report" / "index.html" and len(data_of(index)["views"]) == 3
    parts = [data_of(out / "report" / f"images-00{i}.html")["views"] for i in (1, 2)]
    assert [[view["name"] for view in views] for views in parts] == [["0", "1", "2"], ["3"]]
    predicted(images, overwrite=True, thumbnails=0)
    assert not list((out / "report").iterdir())


def test_failed_images_are_listed_and_names_are_text(images):
    (images / "<b>.png").write_text("no image")
    page = write_predictions_page(predicted(images)).read_text()
    assert "Images without a result" in page and "&lt;b&gt;" in page and "<b>.png" not in page


def test_a_page_of_somebody_else_is_not_replaced(images):
    (images.parent / "out").mkdir()
    (images.parent / "out" / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"report.html lies where results go"):
        predicted(images, skip_existing=True)


@pytest.mark.parametrize(
    "tree", [[], {}, {"predictions": 1}, {"predictions": [1, {"segments": [2, {"score": float("nan")}]}, {"name": 3}]}]
)
def test_predictions_of_any_form_make_a_page(tmp_path, tree):
    (tmp_path / "predictions.json").write_text(json.dumps(tree))
    assert "Predictions of" in write_predictions_page(tmp_path).read_text()


def test_damaged_views_are_refused(images):
    out = predicted(images)
    with (out / "views.jsonl").open("a") as file:
        file.write('{"name": "x", "number": 1}\n')
    with pytest.raises(DataError, match="damaged"):
        write_predictions_page(out)


def test_an_image_without_segments_is_shown(images):
    class Blind(FakeSegmenter):
        def finish(self, raw, task=None, **options):
            result = super().finish(raw, task, **options)
            result.segments, result.ids_HW = [], np.zeros_like(result.ids_HW)
            return result

    page = write_predictions_page(predicted(images, segmenter=Blind()))
    data = data_of(page)
    assert "Nothing was found" in page.read_text(encoding="utf-8")
    assert len(data["views"]) == 4 and not data["views"][0]["tasks"]["panoptic"]["found"]
