"""The canvas of a result, in the frame that a notebook shows."""

from __future__ import annotations

import html
import re
import shutil

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, instances, panoptic, scene, scene_labels, semantic

from m2f_cli.report.result import result_frame
from m2f_cli.results.types import PanopticMap, Segment
from m2f_cli.structures.categories import from_names

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = ["</script><script>alert(1)</script>", "\"'&<!--", "a\u202eb"]
LABELS_HW = scene_labels(96, 128)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Show HTML as a cell of a notebook would, and return its page. Errors and requests of it fail the test."""
    wrong: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if re.match("data:|file:|about:", request.url) else wrong.append(request.url)
    )

    def opened(result):
        result.image = scene(*result.size)
        (tmp_path / "cell.html").write_text(f"<meta charset=utf-8>{result._repr_html_()}", encoding="utf-8")
        page.goto((tmp_path / "cell.html").as_uri())
        frame = page.frame_locator("iframe")
        frame.locator("#classes button").first.wait_for()
        return frame

    yield opened
    page.close()
    assert not wrong


def segments(frame) -> str:
    return frame.locator("#what").text_content()


def test_segments_are_explained_by_mouse_and_keys(show):
    frame = show(panoptic(LABELS_HW))
    canvas = frame.locator("canvas")
    canvas.hover(position={"x": 20, "y": 10})
    assert segments(frame).startswith("sky · score 0.90 · ")
    canvas.focus()
    for name in ("grass", "person", "sky"):  # on from the one below the mouse
        canvas.press("ArrowRight")
        assert segments(frame).startswith(name)
    canvas.press("ArrowLeft")
    assert segments(frame).startswith("person")


def test_the_slider_and_the_buttons_of_classes_take_segments_away(show):
    frame = show(panoptic(LABELS_HW))
    assert segments(frame) == "3 of 3 segments"
    frame.get_by_label("Score at least").fill("0.85")
    assert segments(frame) == "1 of 3 segments"
    frame.get_by_label("Score at least").fill("0")
    frame.get_by_role("button", name="person").click()
    assert segments(frame) == "1 of 3 segments"
    frame.get_by_role("button", name="person").click()
    drawn = frame.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    frame.locator("canvas").press("b")
    assert frame.locator("canvas").evaluate("(canvas) => canvas.toDataURL()") != drawn


@pytest.mark.parametrize("make", [instances, semantic])
def test_results_of_any_task_are_shown(show, make):
    frame = show(make(LABELS_HW))
    assert frame.get_by_label("Score at least").is_visible() == (make is instances)
    assert frame.get_by_role("button", name="person").is_visible()


def test_hostile_names_of_classes_are_text(show):
    result = panoptic(LABELS_HW)
    result.categories = from_names(HOSTILE)
    frame = show(result)
    assert frame.get_by_role("button").all_text_contents() == [*HOSTILE[:2], "a\\u202eb"]


def test_the_frame_cannot_reach_the_notebook_and_nobody_else():
    frame = result_frame(panoptic(LABELS_HW), scene(96, 128), 960)
    assert re.search(r'sandbox="([^"]*)"', frame)[1].split() == ["allow-scripts", "allow-downloads"]
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert "default-src 'none'" in html.unescape(page) and "http:" not in page and "https:" not in page


def test_a_result_of_very_many_segments_has_no_frame():
    count = 40_000
    ids_HW = np.arange(1, count + 1, dtype=np.int32).reshape(200, 200)
    found = [Segment(i, 2, 0.5, 1) for i in range(1, count + 1)]
    result = PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, found)
    assert result_frame(result, scene(200, 200), 960) == ""
