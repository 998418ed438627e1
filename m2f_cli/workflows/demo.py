"""The job of `m2f demo`: generate images, train, evaluate and predict, offline.

OUT/pictures/NAME.png                          generated scenes that are not used for training
OUT/truth/NAME.jpg                             their annotations, drawn like a perfect result
OUT/run/                                       a training run of the preset `tiny`; OUT/run is a REF
OUT/predict/panoptic, semantic, instance/      output of `m2f predict` with that model
OUT/index.html                                 all results on one page
"""

from __future__ import annotations

import html
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..config import presets as config
from ..config.schema import Config
from ..data.synthetic.dataset import MOST, SPLITS
from ..data.synthetic.scenes import Scene, scene
from ..errors import ConfigError, M2FError
from ..inference import load
from ..inference.journal import check_folder
from ..inference.predict import predict
from ..inference.segmenter import Segmenter
from ..inference.sources import expand
from ..results.writers import write_overlay
from ..runtime.files import atomic, lies_in, write_text, writing_to
from ..runtime.jsonl import JsonLines, parse, whole_lines
from ..runtime.locks import is_lock, locked
from ..structures import Task
from ..training import run as training

PRESET = "tiny"
MARK = ".demo.jsonl"  # lists the files of a demo, one a line; a folder with it may be used again
ENLARGED = 3  # factor between the edges of the images to predict and those of the training images
FORMATS: dict[Task, list[str]] = {
    "panoptic": ["overlay", "coco-panoptic"],
    "semantic": ["overlay", "label-png"],
    "instance": ["overlay", "coco-instance"],
}
STEPS = 5 + len(FORMATS)


@dataclass(frozen=True)
class DemoStep:
    """A finished step of the demo.

    Attributes:
        name: name of the step, such as train.
        what: its result in words.
        seconds: its duration.
        where: file or folder of the result.
    """

    name: str
    what: str
    seconds: float
    where: Path


def run(
    out: Path,
    images: int = 4,
    *,
    iterations: int | None = None,
    on_step: Callable[[DemoStep], None] | None = None,
    listener: training.Listener | None = None,
) -> list[DemoStep]:
    """Run the demo. Files of an earlier demo in `out` are replaced, and other files are never touched.

    Args:
        images: number of scenes to predict.
        iterations: iterations of the training. None: those of the preset.
        on_step: called after each of the `STEPS` steps.
        listener: callbacks of the training.

    Raises:
        ConfigError: `out` is a file, holds files and no demo, or is in use by another demo.
        ConfigError: `images` is less than 1.
        M2FError: a file cannot be written.
    """
    if images < 1:
        raise ConfigError(f"The demo needs at least one image, not {images}.")
    check_folder(out, skip_existing=True, overwrite=False)
    done: list[DemoStep] = []
    started = time.perf_counter()
    with locked(out, "A demo"):
        claim(out)
        for name, what, where in _steps(out, images, iterations, listener):
            now = time.perf_counter()
            done.append(DemoStep(name, what, now - started, where))
            started = now
            if on_step:
                on_step(done[-1])
    return done


def demo_config(iterations: int | None = None) -> Config:
    """Return the configuration that the demo trains."""
    return config.load(PRESET, [f"train.iterations={iterations}"] if iterations else [])


def test_scenes(settings: Config, count: int) -> dict[str, Scene]:
    """Return scenes of the split `test` by name. They are larger than those of the training."""
    scenes = settings.data.scenes
    height, width = (ENLARGED * edge for edge in scenes.size)
    first = SPLITS.index("test") * MOST
    kind = {"objects": scenes.objects, "difficulty": scenes.difficulty}
    return {f"scene-{i:02d}": scene(first + i, height, width, **kind) for i in range(count)}


def _steps(
    out: Path, images: int, iterations: int | None, listener: training.Listener | None
) -> Iterator[tuple[str, str, Path]]:
    """Yield the name, the result and the path of each step after it is done."""
    settings = demo_config(iterations)
    scenes = test_scenes(settings, images)
    files = [_write_image(out, name, each) for name, each in scenes.items()]
    yield "pictures", f"{images} generated", out / "pictures"
    for name, each in scenes.items():
        record_file(out, f"truth/{name}.jpg")
        write_overlay(each.panoptic(), out / "truth" / name)
    yield "truth", f"{sum(len(each.segments) for each in scenes.values())} segments drawn", out / "truth"
    outcome = _train(out, settings, listener)
    seen = outcome.iterations * settings.train.batch
    yield "train", f"{outcome.iterations} steps, {seen} images, from nothing", out / "run"
    value, count = outcome.best["value"], settings.data.scenes.val
    yield "evaluate", f"PQ {value:.1f} on {count} images that training never saw", out / "run" / training.RESULTS
    loaded = load.load(out / "run")
    for task in FORMATS:
        yield task, _predict(loaded, files, task, out / "predict" / task), out / "predict" / task
    page = _write_page(out, list(scenes), value, outcome)
    yield "page", "images, annotation and predictions side by side", page


def _write_image(out: Path, name: str, drawn: Scene) -> Path:
    record_file(out, f"pictures/{name}.png")
    path = out / "pictures" / f"{name}.png"
    with atomic(path) as part:
        Image.fromarray(drawn.image_HW3).save(part, format="PNG")
    return path


def _train(out: Path, settings: Config, listener: training.Listener | None) -> training.TrainOutcome:
    record_file(out, "run/")
    options = training.TrainOptions(init="random", micro_batch=settings.train.batch, workers=1)
    outcome = training.start(settings, out / "run", options, listener, ["m2f", "demo"])
    if outcome.stopped is not None:
        raise KeyboardInterrupt
    return outcome


def _predict(loaded: Segmenter, files: list[Path], task: Task, folder: Path) -> str:
    """Predict as `m2f predict` does, and return the result in words."""
    summary = predict(loaded, expand(files), task, folder, FORMATS[task], overwrite=True)
    if summary.failed:
        raise M2FError(f"The demo could not segment its own image: {summary.failed[0].message}")
    return f"{summary.done / summary.seconds:.1f} images/s, saved as {', '.join(FORMATS[task])}"


def _write_page(out: Path, names: list[str], value: float, outcome: training.TrainOutcome) -> Path:
    """Write the page, which needs only the files beside it."""
    record_file(out, "index.html")
    columns = ["pictures/{}.png", "truth/{}.jpg", *(f"predict/{task}/overlay/{{}}.jpg" for task in FORMATS)]
    heads = ["image", "annotation", *FORMATS]
    rows = "".join(
        "<tr>" + "".join(f'<td><img src="{html.escape(column.format(name))}"></td>' for column in columns) + "</tr>"
        for name in names
    )
    text = f"""<!doctype html><meta charset="utf-8"><title>m2f demo</title>
<style>body{{font:15px/1.5 sans-serif;margin:2em;color:#222}} td,th{{padding:4px;text-align:left}}
img{{width:100%}}</style>
<h1>m2f demo</h1>
<p>A small Mask2Former learned generated scenes from nothing in {outcome.seconds:.0f} s ({outcome.iterations} steps).
Panoptic quality on images that it never saw: <b>{value:.1f}</b>.</p>
<table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{rows}</table>
<h2>How it learned</h2><img src="run/curves.png" style="max-width:900px">
<p>The model is in <code>run/</code>: <code>m2f predict YOUR_IMAGES --model {html.escape(str(out / "run"))}</code>.
It knows circles, triangles, rectangles and stars. For your own classes: <code>m2f train --data DIR</code>.</p>
"""
    page = out / "index.html"
    write_text(page, text)
    return page


# --- the folder -------------------------------------------------------------------------------------------------------


def claim(out: Path) -> None:
    """Mark a folder as the demo's, and remove files of an earlier demo. Predictions have a journal of their own.

    Raises:
        ConfigError: `out` is a file, or a folder with other files.
        M2FError: the folder cannot be written.
    """
    check_folder(out, skip_existing=True, overwrite=False)
    mark = out / MARK
    if out.is_dir() and any(not is_lock(path) for path in out.iterdir()) and not mark.is_file():
        raise ConfigError(f"{out} holds files, and not those of a demo.", hint="Choose another --out.")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in _recorded(mark) if mark.is_file() else ():
            if name == "run/":
                shutil.rmtree(out / "run", ignore_errors=True)
            elif lies_in(out, name):
                (out / name).unlink(missing_ok=True)
        mark.write_text("", encoding="utf-8")


def _recorded(mark: Path) -> list[str]:
    """Return the names in a mark. An incomplete last line names a file that a killed demo did not write."""
    try:
        return [str(parse(line)) for _, line in whole_lines(mark)]
    except ValueError as error:
        raise ConfigError(f"{mark} is damaged.", hint="Choose another --out.") from error


def record_file(out: Path, name: str) -> None:
    """Note a file before it is written, so that it belongs to the demo even if the demo is interrupted."""
    with JsonLines(out / MARK) as lines:
        lines.append(name)
