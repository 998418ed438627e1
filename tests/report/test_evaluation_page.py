"""The page of an evaluation: whole, alone, and honest about what it lacks."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path

import pytest
from helpers.fake_segmenter import CATEGORIES
from report.page_parser import PageParser
from report.small_evaluation import evaluate

from m2f_cli.errors import DataError
from m2f_cli.report.evaluation import write_evaluation_page
from m2f_cli.structures.categories import Category

HOSTILE = """</script><script>alert(1)</script><!--"' onerror=alert(2) {{ 7*7 }} \u202egnp\x1b[31m &amp;"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return evaluate(tmp_path_factory.mktemp("evaluation") / "a")


def read(path: Path) -> PageParser:
    page = PageParser(path.read_text(encoding="utf-8"))
    assert not page.errors
    return page


def changed(folder: Path, to: Path, change) -> Path:
    """Copy a folder, with another results.json."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tree = json.loads((to / "results.json").read_text())
    change(tree)
    (to / "results.json").write_text(json.dumps(tree))
    return to


def test_the_page_says_what_was_measured_and_how_to_repeat_it(folder, tmp_path):
    page = read(write_evaluation_page(folder, tmp_path / "page.html"))
    for text in (
        *(
            "Evaluation of fake",
            "6 of 6 images of scenes, split val",
            "published 52.0 (+28.0)",
            "m2f eval --model 'a b'",
        ),
        *("sky", "person", "A paper, 2022", "no: other images or settings", "fake.safetensors", "A remark.", "0.4"),
        *(
            "PQ lost to each kind of error",
            "Calibration: scores and hits",
            "Precision over recall",
            "Sizes of annotated segments",
        ),
    ):
        assert text in page.text


def test_the_curve_of_thresholds_says_what_was_used_and_what_is_best(folder, tmp_path):
    shown = read(write_evaluation_page(folder, tmp_path / "page.html")).text
    assert re.search(
        r"Measured: PQ [\d.]+ at [\d.]+\. Highest: PQ [\d.]+ at [\d.]+\. Chosen on these very images", shown
    )


def test_a_model_that_is_sure_of_nothing_is_said_so(folder, tmp_path):
    weak = changed(folder, tmp_path / "weak", lambda tree: None)
    header, *lines = (weak / "views.jsonl").read_text().splitlines()
    views = [json.loads(line) for line in lines]
    for view in views:
        view.pop("crc32", None)
        for task in view["tasks"].values():
            task["found"] = []
            task["true"] = [{**each, "kind": "missed", "partner": None} for each in task["true"]]
    (weak / "views.jsonl").write_text("\n".join([header, *map(json.dumps, views)]) + "\n")
    says = "No predicted segment has a score of 0.05 or more"
    assert says in read(write_evaluation_page(weak)).text and says not in read(write_evaluation_page(folder)).text


def test_without_a_name_the_page_lies_in_the_folder(folder):
    assert write_evaluation_page(folder) == folder / "report.html"
    assert (folder / "report.html").is_file()


def test_the_gallery_has_all_images_the_worst_first(folder, tmp_path):
    page = read(write_evaluation_page(folder, tmp_path / "page.html"))
    data = json.loads(page.raw["json"][0])
    assert data["tasks"] == ["panoptic", "instance", "semantic"]
    assert [each["name"] for each in data["categories"]] == ["sky", "grass", "person"]
    figures = [view["tasks"]["panoptic"]["figure"] for view in data["views"]]
    assert len(figures) == 6 and figures == sorted(figures) and figures[0] < figures[-1]
    assert base64.b64decode(data["views"][0]["thumbnail"]["jpeg"])[:2] == b"\xff\xd8"


def test_the_page_needs_nobody_and_its_policy_names_all_its_scripts(folder, tmp_path):
    path = write_evaluation_page(folder, tmp_path / "page.html")
    page = read(path)
    assert all(each.startswith("#") for each in page.addresses())
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"https?://|@import|url\(", text)
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name in ("script", "style"):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.raw[name]]
        assert rules[f"{name}-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert rules["default-src"] == "'none'"
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]


def test_hostile_names_are_shown_and_do_nothing(folder, tmp_path):
    classes = tuple(dataclasses.replace(each, name=f"{HOSTILE}{each.name}") for each in CATEGORIES)
    hostile = evaluate(tmp_path / "a", categories=classes, names=[f"{HOSTILE}{i}" for i in range(6)])
    tree = json.loads((hostile / "results.json").read_text())
    tree["model"]["name"] = tree["data"]["split"] = HOSTILE
    tree["notes"], tree["failures"] = [HOSTILE], [{"name": HOSTILE, "message": HOSTILE}]
    tree["figures"][HOSTILE] = tree["settings"][HOSTILE] = 1.0
    (hostile / "results.json").write_text(json.dumps(tree))
    path = write_evaluation_page(hostile)
    page, plain = read(path), read(write_evaluation_page(folder, tmp_path / "plain.html"))
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    text = path.read_text(encoding="utf-8")
    assert "\u202e" not in text and "\x1b" not in text and "\\u202e" in page.text
    data = json.loads(page.raw["json"][0])
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")
    assert data["views"][0]["name"].startswith(shown) and data["categories"][0]["name"] == f"{shown}sky"


def test_without_views_the_page_says_how_to_get_images(folder, tmp_path):
    other = changed(folder, tmp_path / "b", lambda tree: None)
    (other / "views.jsonl").unlink()
    page = read(write_evaluation_page(other))
    assert "No images were kept." in page.text and "json" not in page.raw
    assert "PQ lost to each kind of error" in page.text and "sky" in page.text


def test_images_beyond_the_limit_are_left_out(folder, tmp_path):
    other = changed(folder, tmp_path / "b", lambda tree: tree["settings"].update(limit=4))
    page = read(write_evaluation_page(other))
    assert sorted(view["name"] for view in json.loads(page.raw["json"][0])["views"]) == ["000", "001", "002", "003"]


def test_images_without_a_view_are_counted(folder, tmp_path):
    other = changed(folder, tmp_path / "b", lambda tree: tree.update(scored=9))
    assert "3 of the scored images were not kept" in read(write_evaluation_page(other)).text


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x", [1]], ids=str)
def test_figures_that_are_no_numbers_render_as_a_dash(folder, tmp_path, value):
    def change(tree):
        tree["figures"] = dict.fromkeys(tree["figures"], value)
        tree["per_class"] = {"pq": {"sky": {"pq": value, "tp": value}}}
        tree["tables"] = {
            "calibration": {"reliability": value, "object_threshold": value},
            "pq-errors": value,
            "ap": {"precision": value},
        }
        tree["threshold_sweep"] = {"pairs": [{"object_threshold": value, "overlap_threshold": 0.5, "pq": value}]}
        tree["published"] = tree["failures"] = value

    page = read(write_evaluation_page(changed(folder, tmp_path / "b", change)))
    assert "–" in page.text and not re.findall(r"\bnan\b|\binf\b|None", page.text)


def test_an_older_layout_is_shown_as_far_as_it_goes(folder, tmp_path):
    def change(tree):
        kept = {"schema_version": 0, "figures": tree["figures"]}
        tree.clear()
        tree.update(kept)

    page = read(write_evaluation_page(changed(folder, tmp_path / "b", change)))
    assert "results.json has the version 0." in page.text and "Evaluation of a model" in page.text


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_classes_render(folder, tmp_path, count):
    many = [*CATEGORIES, *(Category(1000 + i, f"class {i}", True, (1, 2, 3)) for i in range(count))]
    counts = {"pq": 50.0, "sq": 50.0, "rq": 50.0, "tp": 1, "fp": 0, "fn": 0}
    per_class = {"pq": {each.name: counts for each in many}}
    other = changed(folder, tmp_path / "b", lambda tree: tree.update(per_class=per_class))
    _, *views = (other / "views.jsonl").read_text().splitlines()
    header = {"schema_version": 1, "tasks": ["panoptic"], "categories": [each.to_dict() for each in many]}
    (other / "views.jsonl").write_text("\n".join([json.dumps({"header": header}), *views, ""]))
    path = write_evaluation_page(other)
    assert f"class {count - 1}" in read(path).text and path.stat().st_size < 30_000_000


def test_more_images_than_fit_become_a_folder_of_pages(folder, tmp_path):
    index = write_evaluation_page(folder, tmp_path / "page.html", most=4)
    assert index == tmp_path / "page" / "index.html" and not (tmp_path / "page.html").exists()
    page = read(index)
    assert "The 4 worst images are here. All 6" in page.text
    assert {"images-001.html", "images-002.html"} <= set(page.addresses())
    parts = [read(tmp_path / "page" / f"images-{i:03}.html") for i in (1, 2)]
    names = [[view["name"] for view in json.loads(part.raw["json"][0])["views"]] for part in parts]
    assert names == [["000", "001", "002", "003"], ["004", "005"]]
    assert all("index.html" in part.addresses() for part in parts)


def test_a_folder_without_evaluation_and_a_damaged_one_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="holds no evaluation"):
        write_evaluation_page(tmp_path)
    other = changed(folder, tmp_path / "b", lambda tree: tree.pop("figures"))
    with pytest.raises(DataError, match="has no figures"):
        write_evaluation_page(other)
    (other / "results.json").write_text("{")
    with pytest.raises(DataError, match="not valid json"):
        write_evaluation_page(other)


def test_a_damaged_view_is_named(folder, tmp_path):
    other = changed(folder, tmp_path / "b", lambda tree: None)
    with (other / "views.jsonl").open("a") as file:
        file.write('{"name": "x", "number": 9}\n')
    with pytest.raises(DataError, match="views.jsonl is damaged: size is wrong"):
        write_evaluation_page(other)
