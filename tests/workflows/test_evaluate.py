"""Evaluation from Python: its page, and how it shows it."""

from __future__ import annotations

import json
import re
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from evaluation.test_run import records
from helpers.fake_segmenter import CATEGORIES, FakeSegmenter

import m2f_cli as m2f
from m2f_cli.errors import M2FError


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluates three scenes; temporary files lie in the folder of the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    items = records(3)
    data = m2f.Dataset("scenes", "coco", "val", "panoptic", CATEGORIES, items, notes=("A remark.",))
    return lambda **options: m2f.evaluate(FakeSegmenter(), data, ["pq"], **options)


def views_in(page: str) -> list:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])["views"] if found else []


def test_its_page_has_figures_and_images(evaluate, tmp_path):
    report = evaluate()
    page = report.write_page(tmp_path / "page.html").read_text()
    assert f"<dd>{report.figures['pq']:.1f}</dd>" in page and "A remark." in page
    assert len(views_in(page)) == 3


def test_without_thumbnails_the_page_has_figures_alone(evaluate, tmp_path):
    page = evaluate(thumbnails=0).write_page(tmp_path / "page.html").read_text()
    assert "No images were kept" in page and not views_in(page)


def test_the_images_go_with_the_result(evaluate, tmp_path):
    report = evaluate(limit=2)
    assert report.images == 2 and len(list(tmp_path.iterdir())) == 1
    del report
    assert not list(tmp_path.iterdir())


def test_show_opens_a_page_that_stays(evaluate, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) == 1)
    report = evaluate()
    report.show()
    with pytest.raises(M2FError, match="no browser"):
        report.show()
    del report
    assert len(views_in(Path(url2pathname(urlsplit(opened[0]).path)).read_text())) == 3


def test_show_puts_the_page_into_a_frame_of_a_notebook(evaluate, monkeypatch):
    shown: list = []
    display = SimpleNamespace(display=shown.append)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    evaluate().show()
    assert re.fullmatch(r'<iframe srcdoc="[^"<>]+" [^<>]*></iframe>', shown[0]._repr_html_())
