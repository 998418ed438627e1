"""Write the page of an evaluation of many images: its size, the time that it takes, and how fast a browser shows it.

    python benchmarks/report_page.py [--images 500] [--folder DIR]

Images are generated scenes of 640 x 480 pixels with noise, which JPEG keeps as badly as a photo's texture; predictions
are their annotations, moved. With playwright and Chromium, times come from the performance entries of the browser:
its first contentful paint, its frames a second while it scrolls (without a GPU), and from a change of the filter to the
next frame.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from m2f_cli import plugins
from m2f_cli.data.records import DataSet
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.dataset_tools.preview import as_result
from m2f_cli.evaluation import journal, report, views
from m2f_cli.evaluation.evaluate import EvalResult
from m2f_cli.report.evaluation import write_evaluation_page
from m2f_cli.results.types import PanopticMap
from m2f_cli.results.views import NAME, header_of

SIZE = (480, 640)
NOISE = 12  # standard deviation of a pixel
ROWS = 9  # by which a prediction is moved
FILTERS = 5
FILTER = """async (label) => {
    performance.mark("filter");
    change({label});
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return performance.measure("filter", "filter").duration;
}"""
SCROLL = """async () => {
    const started = performance.now();
    let frames = 0;
    for (; performance.now() - started < 3000; frames++) {
        scrollBy(0, 40);
        await new Promise(requestAnimationFrame);
    }
    return 1000 * frames / (performance.now() - started);
}"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def write_evaluation(folder: Path, data: DataSet) -> float:
    """Write the files of an evaluation, and return the seconds that a view takes."""
    rng, seconds = np.random.default_rng(0), 0.0
    metric = plugins.get("metrics", "pq")(data.categories)
    with journal.appending(folder / NAME, header_of(["panoptic"], data.categories)) as add:
        for number, record in enumerate(data.records):
            annotation, image_HW3 = record.read_annotation(), record.read_image()
            noise_HW3 = rng.normal(0, NOISE, image_HW3.shape)
            result = as_result(annotation, data.categories)
            assert isinstance(result, PanopticMap)
            result.ids_HW = np.roll(result.ids_HW, ROWS, axis=0)
            for each in result.segments:
                each.score = float(rng.uniform(0.5, 1))
            result.image = np.clip(image_HW3 + noise_HW3, 0, 255).astype(np.uint8)
            metric.update(result, annotation)
            started = time.perf_counter()
            view = views.view_of(record, {"panoptic": result}, annotation, data.categories)
            seconds += time.perf_counter() - started
            add({**view, "number": number})
    tree = report.document(
        EvalResult({"pq": metric.compute()}, 1.0, len(data)),
        model={"name": "generated", "source": "generated", "weights": None},
        data={"name": data.name, "format": data.format, "split": data.split, "pictures": len(data)},
        settings={},
    )
    report.write(folder, tree)
    return seconds / len(data)


def look(page: Path) -> None:
    """Open the page in Chromium and print how fast it is shown and filtered."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        print("browser: not measured, playwright or Chromium is missing")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.goto(page.as_uri())
        tab.locator(".card").first.wait_for(state="attached")
        print(f"first contentful paint: {tab.evaluate(PAINT):.0f} ms")
        tab.evaluate("document.getElementById('images').scrollIntoView()")
        tab.locator(".card canvas").first.wait_for()
        print(f"scrolling by 40 pixels a frame: {tab.evaluate(SCROLL):.0f} frames a second")
        durations = [tab.evaluate(FILTER, label) for label in range(FILTERS)]
        print("filter by class, to the next frame: " + ", ".join(f"{each:.0f}" for each in durations) + " ms")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="number of images")
    parser.add_argument("--folder", type=Path, help="where the page stays; by default it is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        folder = options.folder or Path(empty)
        folder.mkdir(parents=True, exist_ok=True)
        data = synthetic_dataset("val", options.images, size=SIZE)
        each = write_evaluation(folder, data)
        started = time.perf_counter()
        page = write_evaluation_page(folder)
        seconds = time.perf_counter() - started
        print(f"page of {options.images} images: {page.stat().st_size:,} bytes, written in {seconds:.1f} s")
        print(f"a view of an image: {1000 * each:.1f} ms")
        look(page)


if __name__ == "__main__":
    main()
