"""The page of the demo: one file that needs nobody, whatever its names and figures are."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re

import jinja2
import pytest
from PIL import Image
from report.page_parser import PageParser

from m2f_cli.errors import DataError
from m2f_cli.report.demo import DemoReport, ReportedStep, SceneImage, SceneView, write_demo_page
from m2f_cli.report.page import figure, image_uri, render
from m2f_cli.report.tables import quality_rows
from m2f_cli.structures.categories import Category

HOSTILE = """<script>alert(1)</script>"' onerror=alert(2) {{ 7*7 }} ]]> \u202egnp\x1b[31m &amp;"""


@pytest.fixture
def report(tmp_path) -> DemoReport:
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (8, 6), (200, 30, 30)).save(tmp_path / name)
    log = tmp_path / "metrics.jsonl"
    steps = [{"kind": "train", "iteration": i, "loss": 30.0 / (i + 1)} for i in range(100)]
    evaluations = [{"kind": "val", "iteration": i, "pq": 60.0, "pq_things": 40.0, "pq_stuff": 80.0} for i in (50, 100)]
    log.write_text("".join(json.dumps(line) + "\n" for line in [*steps, *evaluations]))
    classes = {"star": {"pq": 40.0, "sq": 80.0, "rq": 50.0, "tp": 3, "fp": 1, "fn": 5}}
    classes["sky"] = {"pq": None, "sq": None, "rq": None, "tp": 0, "fp": 0, "fn": 0}
    figures = {"pq": 61.25, "pq_things": 40.0, "pq_stuff": 80.0}
    return DemoReport(
        summary="A small model.",
        results={"scored": 64, "figures": figures, "per_class": {"pq": classes}},
        metrics=log,
        categories=(Category(1, "star", True, (1, 2, 3)), Category(2, "sky", False, (4, 5, 6))),
        scenes=[SceneView("scene", [SceneImage("image", tmp_path / n) for n in ("a.png", "b.jpg")])],
        enlarged=3,
        steps=[ReportedStep("Train", "10 steps", 12.34, "m2f train --preset tiny"), ReportedStep("Draw", "4", 0.5, "")],
        next_commands=[("Then:", "m2f predict photo.jpg")],
    )


def read(report, path) -> PageParser:
    page = PageParser(write_demo_page(report, path).read_text(encoding="utf-8"))
    assert not page.errors
    return page


def test_the_page_is_whole_and_shows_figures_steps_and_commands(report, tmp_path):
    page = read(report, tmp_path / "index.html")
    for text in ("61.2", "40.0", "80.0", "64", "12.3 s", "m2f train --preset tiny", "m2f predict photo.jpg", "star"):
        assert text in page.text
    classes = [attributes.get("class") for _, attributes in page.tags]
    assert classes.count("command") == 2 and classes.count("chart") == 2
    assert len([tag for tag, _ in page.tags if tag == "polyline"]) == 1 + 3


def test_the_page_needs_no_other_file_and_no_network(report, tmp_path):
    page = read(report, tmp_path / "index.html")
    addresses = page.addresses()
    assert len(addresses) == 2 and all(each.startswith("data:image/") for each in addresses)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|@import|url\(", text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed", "base", "form")]


def test_the_policy_names_all_scripts_and_styles_by_their_hashes(report, tmp_path):
    page = read(report, tmp_path / "index.html")
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name in ("script", "style"):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.raw[name]]
        assert rules[f"{name}-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
        assert len([tag for tag, _ in page.tags if tag == name]) == len(digests) > 0
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    # The policy forbids both, so that they would do nothing.
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]


def test_hostile_names_are_shown_and_do_nothing(report, tmp_path):
    (tmp_path / "a\"'><b>.png").write_bytes((tmp_path / "a.png").read_bytes())
    counts = {"pq": 50.0, "sq": 50.0, "rq": 50.0, "tp": 1, "fp": 0, "fn": 0}
    hostile = dataclasses.replace(
        report,
        summary=HOSTILE,
        results={"figures": {}, "per_class": {"pq": {HOSTILE: counts}}},
        categories=(Category(1, HOSTILE, True, (1, 2, 3)),),
        scenes=[SceneView(HOSTILE, [SceneImage(HOSTILE, tmp_path / "a\"'><b>.png")])],
        steps=[ReportedStep(HOSTILE, HOSTILE, 1.0, HOSTILE)],
        next_commands=[(HOSTILE, HOSTILE)],
    )
    page, plain = read(hostile, tmp_path / "index.html"), read(report, tmp_path / "plain.html")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")
    assert page.text.count(shown) == 8  # everywhere but in alt
    assert "\u202e" not in page.text and "\x1b" not in page.text
    [image] = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == f"{shown} of {shown}" and image["src"].startswith("data:image/png;base64,")


def test_a_run_without_evaluation_renders(report, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    page = read(dataclasses.replace(report, results={}), tmp_path / "index.html")
    assert "No class was measured." in page.text and page.text.count("Nothing was measured.") == 2
    assert not re.findall(r"nan|None|inf\b", page.text)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x"])
def test_figures_that_are_no_numbers_render_as_a_dash(report, tmp_path, value):
    results = {
        "scored": 1,
        "figures": {"pq": value, "pq_things": value},
        "per_class": {"pq": {"star": {"pq": value, "sq": value, "tp": value}}},
    }
    page = read(dataclasses.replace(report, results=results), tmp_path / "index.html")
    assert page.text.count("–") == 3 + 3
    assert not [a for tag, a in page.tags if tag == "rect" and a["class"] == "value"]


def test_many_classes_render(report, tmp_path):
    counts = {"pq": 50.0, "sq": 50.0, "rq": 50.0, "tp": 1, "fp": 0, "fn": 0}
    results = {**report.results, "per_class": {"pq": {f"class {i}": counts for i in range(2000)}}}
    page = read(dataclasses.replace(report, results=results), tmp_path / "index.html")
    assert "class 1999" in page.text


def test_a_missing_image_is_said_and_an_unreadable_one_is_an_error(report, tmp_path):
    gone = [SceneView("scene", [SceneImage("image", tmp_path / "gone.png")])]
    assert "The image is missing." in read(dataclasses.replace(report, scenes=gone), tmp_path / "index.html").text
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="folder.png cannot be read"):
        image_uri(tmp_path / "folder.png")


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("demo.html", title="m2f demo")


def test_rows_say_what_was_missed_and_what_was_wrong(report):
    star, sky = quality_rows(report.results, report.categories)
    assert (star.kind, star.annotated, star.missed, star.wrong, star.pq) == ("thing", 8, 5, 1, 40.0)
    assert (sky.kind, sky.annotated, sky.pq) == ("stuff", 0, None)
    assert quality_rows({}) == [] and quality_rows(report.results)[0].kind == ""


def test_figures_have_the_asked_digits():
    assert (figure(61.25), figure(61.25, 0), figure(7)) == ("61.2", "61", "7.0")
