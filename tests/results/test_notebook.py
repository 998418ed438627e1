"""Results in notebooks: what a cell shows, and what `show` opens."""

from __future__ import annotations

import base64
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, instances, panoptic, scene, scene_labels, semantic
from PIL import Image, ImageShow

from m2f_cli.errors import M2FError
from m2f_cli.structures.categories import from_names


@pytest.fixture
def labels_HW():
    return scene_labels(32, 40)


@pytest.fixture
def notebook(monkeypatch):
    """A process that believes to be a notebook; gives what was displayed."""
    shown: list = []
    display = SimpleNamespace(display=shown.append)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    return shown


def html_of(result) -> str:
    return result._repr_html_()


def drawing_in(html: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", html)[1])))


@pytest.mark.parametrize("make", [panoptic, instances, semantic])
def test_a_cell_shows_the_drawing_and_its_classes(labels_HW, make):
    result = make(labels_HW)
    result.image = scene(32, 40)
    html = html_of(result)
    drawn = np.asarray(drawing_in(html)).astype(int)
    assert np.abs(drawn - np.asarray(result.plot()).astype(int)).mean() < 12  # a JPEG
    present = {region.label for region in result.regions()}
    assert all((f">{each.name}<" in html) == (i in present) for i, each in enumerate(CATEGORIES))
    assert "<script" not in html


def test_a_large_image_is_shown_in_small():
    result = semantic(scene_labels(1200, 1600))
    result.image = scene(1200, 1600)
    assert max(drawing_in(html_of(result)).size) == 960


def test_a_result_without_its_image_is_shown_on_grey_and_says_so(labels_HW, tmp_path):
    result = semantic(labels_HW)
    assert "does not know its image" in html_of(result) and drawing_in(html_of(result)).size == (40, 32)
    result.image = tmp_path / "<gone>.jpg"
    assert "&lt;gone&gt;.jpg" in html_of(result)


def test_names_of_classes_are_shown_as_text(labels_HW):
    hostile = ["<img src=x onerror=alert(1)>", "\"'&", "a\u202eb"]
    result = panoptic(labels_HW)
    result.categories = from_names(hostile)
    html = html_of(result)
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "&quot;&#x27;&amp;" in html and "\u202e" not in html


def test_show_displays_the_drawing_in_a_notebook(labels_HW, notebook):
    result = panoptic(labels_HW)
    result.show(scene(32, 40))
    [drawn] = notebook
    assert np.array_equal(np.asarray(drawn), np.asarray(result.plot(scene(32, 40))))


def test_show_opens_the_viewer_elsewhere_and_says_where_there_is_none(labels_HW, monkeypatch):
    opened: list = []
    monkeypatch.setattr(ImageShow, "show", lambda image: opened.append(image) or len(opened) == 1)
    result = panoptic(labels_HW)
    result.show(scene(32, 40))
    assert opened[0].size == (40, 32)
    with pytest.raises(M2FError, match="no program that shows images"):
        result.show(scene(32, 40))
