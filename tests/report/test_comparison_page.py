"""The page of two evaluations: differences with intervals, and both predictions of each image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.fake_segmenter import CATEGORIES
from report.page_parser import PageParser
from report.small_evaluation import evaluate
from report.test_run_page import HOSTILE

from m2f_cli.errors import DataError
from m2f_cli.evaluation.compare import compare
from m2f_cli.report.comparison import write_comparison_page

METRICS = ("pq",)
OTHERS = tuple(dataclasses.replace(each, name=f"other {each.name}") for each in CATEGORIES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluations")
    return evaluate(folder / "first", metrics=METRICS), evaluate(folder / "second", metrics=METRICS, moved=2)


def read(path: Path) -> PageParser:
    page = PageParser(path.read_text(encoding="utf-8"))
    assert not page.errors
    return page


def test_it_shows_differences_of_figures_classes_and_images(runs):
    path = write_comparison_page(*runs)
    assert path == runs[1] / "comparison.html"
    page = read(path)
    for text in ("first and second", "A: first, B: second", "PQ, B − A", "person", "1000 bootstrap draws"):
        assert text in page.text
    difference = compare(*runs).figures[0].difference
    assert difference < 0 and f"{difference:+.1f}" in page.text
    for text in (
        "m2f eval --compare",
        "model.name",
        "fake.safetensors",
        "torch",
        "settings.thresholds.object_threshold",
    ):
        assert text in page.text
    data = json.loads(page.raw["json"][0])
    assert data["compares"] and len(data["views"]) == 6
    assert all(view["second"]["panoptic"]["found"] for view in data["views"])


def test_without_views_of_both_it_says_so(runs, tmp_path):
    bare = evaluate(tmp_path / "bare", metrics=METRICS, edge=0)
    page = read(write_comparison_page(runs[0], bare, tmp_path / "page.html"))
    assert "There are no images that both evaluations kept in one size." in page.text and "json" not in page.raw
    other = evaluate(tmp_path / "large", metrics=METRICS, edge=32)
    assert "in one size" in read(write_comparison_page(runs[0], other, tmp_path / "page.html")).text


def test_an_evaluation_without_results_and_environment_is_compared(runs, tmp_path):
    bare = evaluate(tmp_path / "bare", metrics=METRICS)
    (bare / "results.json").unlink()
    (bare / "env.json").unlink()
    page = read(write_comparison_page(runs[0], bare))
    assert "fake.safetensors" in page.text and "–" in page.text


def test_settings_that_differ_come_first_and_are_marked(runs, tmp_path):
    other = evaluate(tmp_path / "other", metrics=METRICS)
    results = json.loads((other / "results.json").read_text())
    results["settings"]["thresholds"]["object_threshold"] = 0.123
    (other / "results.json").write_text(json.dumps(results))
    page = write_comparison_page(runs[0], other).read_text()
    rows = page.split("Settings of both")[1].split("</tr>")[1:]
    assert "settings.thresholds.object_threshold" in rows[0] and "<b>0.123</b>" in rows[0]
    assert "model.name" in "".join(rows) and not any("<b>" in row for row in rows[1:])


def test_hostile_names_are_shown_and_do_nothing(runs, tmp_path):
    classes = tuple(dataclasses.replace(each, name=f"{HOSTILE}{each.name}") for each in CATEGORIES)
    names = [f"{HOSTILE}{i}" for i in range(6)]
    first, second = (
        evaluate(tmp_path / f"{side}<b>\u202e", metrics=METRICS, categories=classes, names=names) for side in "ab"
    )
    page, plain = (read(write_comparison_page(a, b, tmp_path / "c.html")) for a, b in ((first, second), runs))
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in page.text and "\x1b" not in page.text and "\\u202e" in page.text


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(DataError, match="holds no evaluation"):
        write_comparison_page(runs[0], tmp_path)
    with pytest.raises(DataError, match="evaluations of other classes"):
        write_comparison_page(runs[0], evaluate(tmp_path / "b", metrics=METRICS, categories=OTHERS))
