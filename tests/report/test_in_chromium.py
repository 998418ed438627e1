"""Pages in a real browser: they open, sort, filter, blink, explain, zoom, and everything is reached by keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import label_maps
from report.small_evaluation import evaluate
from report.test_predictions_page import predicted, write_images
from report.test_run_page import write_run

from m2f_cli import cli
from m2f_cli.report.comparison import write_comparison_page
from m2f_cli.report.evaluation import write_evaluation_page
from m2f_cli.report.predictions import write_predictions_page
from m2f_cli.report.run import write_run_page
from m2f_cli.runtime.notebook import framed

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
UNNAMED = """() => [...document.querySelectorAll(
    "button, input, select, textarea, a, [role=button], [tabindex], canvas, svg[role]")]
  .filter((e) => e.checkVisibility() && !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
  .map((e) => e.outerHTML.slice(0, 200))"""
FOCUSED = """(({id, textContent, tagName}) => id || (tagName === "rect" ? tagName : textContent.trim()))(
    document.activeElement)"""

LEAST_CONTRAST = 4.5  # of text to its ground: WCAG 2.2, 1.4.3
CONTRASTS = """() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const over = (colors) => {
    context.clearRect(0, 0, 1, 1);
    for (const [color, alpha] of colors) {
      Object.assign(context, {fillStyle: color, globalAlpha: alpha});
      context.fillRect(0, 0, 1, 1);
    }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, style, title")) continue;
    const style = getComputedStyle(element), grounds = [];
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) {
      grounds.unshift([getComputedStyle(each).backgroundColor, 1]);
      opacity *= getComputedStyle(each).opacity;
    }
    const color = element.closest("svg") ? style.fill : style.color;
    const ink = over([...grounds, [color, opacity]]), ground = over(grounds);
    found.push([Math.max(ink, ground) / Math.min(ink, ground), text]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_evaluation_page(evaluate(tmp_path_factory.mktemp("evaluation") / "a"))


@pytest.fixture
def page(browser, path):
    """The page of the evaluation. Errors and requests of it fail the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True)
    context.set_default_timeout(5000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("data:", "blob:")) else wrong.append(request.url)
    )
    page.goto(path.as_uri())
    page.evaluate("document.getElementById('images').scrollIntoView()")
    page.locator(".card canvas").first.wait_for()
    yield page
    context.close()
    assert wrong == [path.as_uri()]


def settle(page) -> None:
    """Wait until all images are drawn. The page's policy forbids Playwright's own way to wait for a script."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    while page.evaluate("waiting.size"):
        page.wait_for_timeout(20)


def names(page) -> list[str]:
    return page.locator(".card h3").all_text_contents()


def pixels(page, layer: str) -> str:
    return page.locator(f".card canvas[data-layer={layer}]").first.evaluate("(canvas) => canvas.toDataURL()")


def test_it_opens_with_all_images_drawn(page):
    assert len(names(page)) == 6
    settle(page)
    assert len({pixels(page, layer) for layer in ("image", "true", "found", "difference")}) == 4


def test_colours_that_colour_blind_people_can_tell_apart(page):
    def shown() -> tuple[str, ...]:
        settle(page)
        dots = page.locator(".card .dot").evaluate_all("(dots) => dots.map((dot) => dot.style.background).join()")
        return pixels(page, "image"), pixels(page, "difference"), pixels(page, "found"), dots

    before = shown()
    page.locator("#by-palette").select_option("colour-blind safe")
    after = shown()
    assert after[:2] == before[:2] and after[2] != before[2] and after[3] != before[3]
    assert "rgb(0, 114, 178)" in after[3] and len(names(page)) == 6
    page.locator("#by-palette").select_option("of the classes")
    assert shown() == before


def test_the_table_sorts_filters_and_saves_itself(page):
    first = page.locator("#classes tbody th").first
    page.get_by_role("button", name="class", exact=True).click()
    assert first.text_content() == "grass"
    page.get_by_role("button", name="PQ", exact=True).click()
    assert page.locator("#classes th[aria-sort=descending]").text_content() == "PQ"
    page.get_by_label("Filter").fill("SK")
    assert page.locator("#classes tbody tr:visible").count() == 1
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    head, row = Path(download.value.path()).read_text().splitlines()
    assert head.startswith("class,kind,PQ") and row.startswith("sky,stuff,")


def test_bars_cells_and_controls_filter_the_images(page):
    page.locator("rect[data-kind=boundary][data-label='2']").last.click()
    assert page.locator("#by-kind").input_value() == "boundary"
    assert page.locator("#by-class").input_value() == "2"
    shown = len(names(page))
    assert (
        0 < shown < 6 and f"{shown} of 6 images with boundary, person" in page.locator("#gallery-status").text_content()
    )
    page.get_by_role("button", name="Show all images").click()
    assert len(names(page)) == 6
    page.locator(".matrix td[data-true='2'][data-found='']").click()
    assert 0 < len(names(page)) < 6 and "person predicted as nothing" in page.locator("#gallery-status").text_content()
    page.get_by_role("button", name="Show all images").click()
    page.locator("rect[data-size=small][data-kind=boundary]").click()
    assert "with boundary, small segments" in page.locator("#gallery-status").text_content()
    page.get_by_role("button", name="Show all images").click()
    column = page.locator("rect[data-side=true][data-hit='1']").first
    column.click()
    status = page.locator("#gallery-status").text_content()
    assert 0 < len(names(page)) <= 6 and column.locator("title").text_content() in status
    page.get_by_role("button", name="Show all images").click()
    assert len(names(page)) == 6
    page.locator("#by-name").fill("003")
    assert names(page) == ["003"]


@pytest.mark.slow
def test_the_order_changes(page):
    worst = names(page)
    page.get_by_label("Order").select_option("best")
    assert names(page)[0] == worst[-1] or names(page) != worst
    page.get_by_label("Order").select_option("sure")
    sure = page.evaluate("[...gallery.children].map((card) => card.sum.sure)")
    assert sure == sorted(sure, reverse=True) and sure[0] > 0
    page.get_by_label("Order").select_option("name")
    assert names(page) == sorted(worst)


def test_the_slider_takes_weak_segments_away(page):
    settle(page)
    before = pixels(page, "found"), page.locator("#gallery-status").text_content()
    page.get_by_label("Score at least").fill("0.85")
    settle(page)
    assert pixels(page, "found") != before[0] and page.locator("#gallery-status").text_content() != before[1]
    assert "at score 0.85 and more" in page.locator("#gallery-status").text_content()


def test_a_segment_says_what_it_is(page):
    page.locator(".card canvas[data-layer=found]").first.hover(position={"x": 20, "y": 5})
    tip = page.locator(".tip[role=status]")
    assert "predicted: sky" in tip.text_content() and "score 0.90" in tip.text_content()


@pytest.mark.slow
def test_a_class_can_be_seen_alone(page):
    settle(page)
    before = pixels(page, "true")
    page.locator(".chip", has_text="person").first.click()
    settle(page)
    assert pixels(page, "true") != before
    assert page.locator(".chip[aria-pressed=true]").first.text_content() == "person"


def test_a_key_blinks_between_the_views(page):
    page.keyboard.press("b")
    assert page.locator("#gallery").get_attribute("data-layer") == "image"
    page.keyboard.press("b")
    assert page.get_by_role("button", name="Annotation", exact=True).get_attribute("aria-pressed") == "true"
    page.keyboard.press("0")
    assert page.locator("#gallery").get_attribute("data-layer") == "all"


@pytest.mark.slow
def test_the_large_view_zooms_pans_and_goes_on(page):
    page.locator(".card canvas").first.click()
    sheet, title = page.locator(".stage canvas"), page.locator("#viewer-title")
    before, name = sheet.bounding_box(), title.text_content()
    page.keyboard.press("+")
    assert sheet.bounding_box()["width"] == pytest.approx(1.5 * before["width"], rel=0.01)
    page.mouse.move(400, 400)
    page.mouse.wheel(0, -300)
    large = sheet.bounding_box()
    assert large["width"] > 2 * before["width"]
    page.mouse.down()
    page.mouse.move(430, 420)
    page.mouse.up()
    assert sheet.bounding_box()["x"] == pytest.approx(large["x"] + 30, abs=1)
    page.keyboard.press("ArrowRight")
    assert title.text_content() != name
    page.keyboard.press("Escape")
    assert not page.locator("dialog.viewer").is_visible()


def test_all_controls_have_names_and_are_reached_by_keys(page):
    assert page.evaluate(UNNAMED) == []
    page.locator(".card button").first.click()
    assert page.evaluate(UNNAMED) == []
    page.keyboard.press("Escape")
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    seen = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        seen.add(page.evaluate(FOCUSED))
    controls = {"by-order", "by-class", "by-kind", "by-name", "by-score"}
    assert controls | {"Side by side", "Large", "rect", "Save as CSV"} <= seen
    page.locator("rect[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "with" in page.locator("#gallery-status").text_content()


def test_a_curve_shows_the_values_of_all_lines(browser, tmp_path):
    page = browser.new_page()
    page.goto(write_run_page(write_run(tmp_path / "mine")).as_uri())
    page.locator(".chart > svg").first.hover(position={"x": 200, "y": 60})
    assert [line.split(":")[0] for line in page.locator(".tip span").all_text_contents()] == ["total", "class"]
    page.keyboard.press("Tab")
    page.locator(".chart > svg").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip[aria-live] span").all_text_contents() == ["total: 9 after 0", "class: 4 after 0"]
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip span").first.text_content() == "total: 8 after 1"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tip span").first.text_content() == "total: 9 after 0"
    page.keyboard.press("Tab")
    assert not page.locator(".tip").is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_and_nothing_leaves_a_narrow_screen(browser, path, tmp_path, scheme):
    page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
    pages = [path, write_comparison_page(path.parent, path.parent, tmp_path / "page.html")]
    for each in (*pages, write_run_page(write_run(tmp_path / "mine"))):
        page.goto(each.as_uri())
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 20 and [pair for pair in contrasts if pair[0] < LEAST_CONTRAST] == []
        if page.locator("#gallery").count():
            ends = page.evaluate("[gallery, ...gallery.children].map((e) => e.getBoundingClientRect().right)")
            assert max(ends) == ends[0]
    page.close()


@pytest.mark.slow
def test_two_predictions_are_seen_beside_each_other(browser, path, tmp_path):
    page = browser.new_page()
    other = evaluate(tmp_path / "b", moved=2)
    page.goto(write_comparison_page(path.parent, other).as_uri())
    page.evaluate("document.getElementById('images').scrollIntoView()")
    page.locator(".card canvas").first.wait_for()
    settle(page)
    assert page.locator(".card").first.locator("figcaption").all_text_contents()[:4] == [
        "image",
        "A",
        "B",
        "annotation",
    ]
    assert pixels(page, "difference") != pixels(page, "difference2")
    assert "A: " in page.locator("#gallery-status").text_content()
    counts = page.evaluate("""() => Object.keys(KIND_COLORS).map((kind) => {
        const has = (side) => side.panoptic.true.concat(side.panoptic.found).some((segment) => segment.kind === kind);
        return [kind, data.views.filter(({tasks, second}) => has(tasks) || has(second)).length,
            data.views.filter(({tasks}) => has(tasks)).length];
    })""")
    assert any(either > first for _, either, first in counts)
    for kind, either, _ in counts:
        page.locator("#by-kind").select_option(kind)
        assert len(names(page)) == either
    page.locator("#reset").click()
    page.keyboard.press("3")
    assert page.locator("#gallery-tools [data-layer=found2]").get_attribute("aria-pressed") == "true"
    page.close()


def test_predictions_are_filtered_explained_and_seen_large(browser, tmp_path):
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(write_predictions_page(predicted(write_images(tmp_path))).as_uri())
    page.locator(".card canvas").first.wait_for()
    settle(page)
    assert page.locator("#gallery-status").text_content() == "4 of 4 images · 12 segments"
    assert page.locator(".card").first.locator("figcaption").all_text_contents() == ["image", "prediction"]
    page.get_by_label("Score at least").fill("0.85")
    assert "4 segments at score 0.85" in page.locator("#gallery-status").text_content()
    page.locator("#reset").click()
    page.locator(".card canvas[data-layer=found]").first.hover(position={"x": 20, "y": 5})
    assert page.locator(".tip b").all_text_contents()[0].startswith("sky · score 0.90")
    page.locator("#classes button", has_text="person").last.click()
    assert "with person" in page.locator("#gallery-status").text_content()
    page.keyboard.press("2")
    assert page.locator("#gallery").get_attribute("data-layer") == "found"
    page.locator(".card canvas[data-layer=found]").first.click()
    assert "3 segments" in page.locator("#viewer-title").text_content()
    assert page.locator(".segments li").count() == 3 and page.evaluate(UNNAMED) == []
    page.close()
    assert not wrong


def test_a_problem_of_the_data_leads_to_its_images(browser, tmp_path):
    label_maps(tmp_path / "data", [np.ones((60, 80), np.uint8)] * 2)
    label_maps(tmp_path / "data", [np.ones((60, 80), np.uint8)], split="val")
    (tmp_path / "data/images/train/1.jpg").write_bytes(b"no image")
    assert cli.run(["data", "check", str(tmp_path / "data"), "--page", str(tmp_path / "page.html")]) == 3
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    page.get_by_role("button", name="damaged-picture").click()
    page.locator(".card canvas").first.wait_for()
    assert names(page) == ["train/1"] and "The image is missing" in page.locator(".chips").text_content()
    assert page.locator("#by-kind").input_value() == "damaged-picture" and page.evaluate(UNNAMED) == []
    page.close()
    assert not wrong


@pytest.mark.slow
def test_the_first_images_are_drawn_for_paper(page):
    page.evaluate("scrollTo(0, 0)")
    settle(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".card.drawn").count() == 6


def test_in_a_frame_of_a_notebook_links_lead_to_sections_of_the_page(browser, path, tmp_path):
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    frame_html = framed(path.read_text(encoding="utf-8"), title="report", height=720)
    (tmp_path / "notebook.html").write_text(f"<meta charset=utf-8>{frame_html}", encoding="utf-8")
    page.goto((tmp_path / "notebook.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Images").click()
    frame.locator(".card canvas").first.wait_for()
    assert frame.locator("h1").evaluate("(title) => title.getBoundingClientRect().bottom") < 0
    with page.expect_download() as download:
        frame.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "classes.csv"
    page.close()
    assert not wrong
