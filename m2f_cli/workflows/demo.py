"""The job of `m2f demo`: generate images, train, evaluate and predict, offline.

OUT/pictures/NAME.png                          generated scenes that are not used for training
OUT/truth/NAME.jpg                             their annotations, drawn like a perfect result
OUT/run/                                       a training run of the preset `tiny-mpformer`; OUT/run is a REF
OUT/predict/panoptic, semantic, instance/      output of `m2f predict` with that model
OUT/index.html                                 all results on one page, which needs no other file
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..config import presets as config
from ..config.run_folder import METRICS, RESULTS
from ..config.schema import Config
from ..data.synthetic.dataset import MOST, SPLITS
from ..data.synthetic.scenes import CATEGORIES, Scene, scene
from ..errors import ConfigError, M2FError
from ..evaluation.evaluate import EvalResult
from ..evaluation.report import document
from ..inference import load
from ..inference.journal import check_folder
from ..inference.predict import predict
from ..inference.segmenter import Segmenter
from ..inference.sources import expand
from ..report.demo import DemoReport, ReportedStep, SceneImage, SceneView, write_demo_page
from ..results.draw_options import DrawOptions
from ..results.writers import write_overlay
from ..runtime.files import atomic, lies_in, save_image, writing_to
from ..runtime.jsonl import JsonLines, parse, whole_lines
from ..runtime.locks import is_lock, locked
from ..structures import Task
from ..training import run as training
from ..training.dry_run import dry_run

PRESET = "tiny-mpformer"
MARK = ".demo.jsonl"  # lists the files of a demo, one a line; a folder with it may be used again
TRAINING_SECONDS = 150.0  # time that the training may take, with its evaluations
ITERATIONS = (200, 2000)  # fewest and most steps that are chosen to fit
EVALUATIONS = 3
MEASURED = 12  # steps; the first few are faster than later ones, for which images have to be made meanwhile
ANNOTATION = DrawOptions(("masks", "outlines", "labels"))  # an annotation has no scores
ENLARGED = 3  # factor between the edges of the images to predict and those of the training images
FORMATS: dict[Task, list[str]] = {
    "panoptic": ["overlay", "coco-panoptic"],
    "semantic": ["overlay", "label-png"],
    "instance": ["overlay", "coco-instance"],
}
TITLES = {  # steps of the demo in their order
    "pictures": "Generate scenes",
    "truth": "Draw their annotations",
    "train": "Train",
    "evaluate": "Evaluate",
    "panoptic": "Predict panoptic segments",
    "semantic": "Predict semantic classes",
    "instance": "Predict instances",
    "page": "Write the page",
}
STEPS = len(TITLES)
NEXT = (
    (
        "Segment an image of yours with a released model, which is fetched once:",
        "m2f predict photo.jpg --task panoptic",
    ),
    ("Try it on real data. A few images of cell nuclei come with m2f:", "m2f data sample nuclei --out nuclei"),
    (
        "Look for mistakes before a training does; a folder of yours may take the place of nuclei:",
        "m2f data check nuclei",
    ),
    ("Train on it:", "m2f train --preset small-instance --data nuclei --out runs/nuclei"),
    ("Measure the model on the images that were held back:", "m2f eval --model runs/nuclei --out runs/eval/nuclei"),
)


@dataclass(frozen=True)
class DemoStep:
    """A finished step of the demo.

    Attributes:
        name: name of the step, such as train.
        what: its result in words.
        seconds: its duration.
        where: file or folder of the result.
        command: command line that repeats this step alone; empty where there is none.
    """

    name: str
    what: str
    seconds: float
    where: Path
    command: str = ""


def run(
    out: Path,
    images: int = 4,
    *,
    iterations: int | None = None,
    on_begin: Callable[[str], None] | None = None,
    on_step: Callable[[DemoStep], None] | None = None,
    listener: training.Listener | None = None,
) -> list[DemoStep]:
    """Run the demo. Files of an earlier demo in `out` are replaced, and other files are never touched.

    Args:
        images: number of scenes to predict.
        iterations: iterations of the training. None: as many as fit into `TRAINING_SECONDS`.
        on_begin: called with the name of each step, a key of `TITLES`, before it begins.
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
    with locked(out, "A demo"):
        claim(out)
        steps = _steps(out, images, iterations, listener or training.Listener(), done)
        for name in TITLES:
            if on_begin:
                on_begin(name)
            started = time.perf_counter()
            what, where, command = next(steps)
            done.append(DemoStep(name, what, time.perf_counter() - started, where, command))
            if on_step:
                on_step(done[-1])
    return done


def demo_config(iterations: int | None = None) -> Config:
    """Return the configuration that the demo trains. Its evaluations are spread evenly."""
    return config.load(PRESET, _changes(iterations) if iterations else [])


def fitting_iterations(out: Path) -> int:
    """Return how many steps of the training fit into `TRAINING_SECONDS` here. A few are measured; nothing is written.

    Raises:
        M2FError: the training cannot be started.
    """
    settings = demo_config(ITERATIONS[0])
    measured = dry_run(settings, out / "measured", _options(settings), steps=MEASURED)
    seconds = TRAINING_SECONDS - EVALUATIONS * measured.evaluation_seconds
    fewest, most = ITERATIONS
    return max(fewest, min(most, int(seconds / measured.step_seconds)))


def _changes(iterations: int) -> list[str]:
    return [f"train.iterations={iterations}", f"train.eval_every={math.ceil(iterations / EVALUATIONS)}"]


def _options(settings: Config) -> training.TrainOptions:
    return training.TrainOptions(init="random", micro_batch=settings.train.batch, workers=1)


def test_scenes(settings: Config, count: int) -> dict[str, Scene]:
    """Return scenes of the split `test` by name. They are larger than those of the training."""
    scenes = settings.data.scenes
    height, width = (ENLARGED * edge for edge in scenes.size)
    first = SPLITS.index("test") * MOST
    kind = {"objects": scenes.objects, "difficulty": scenes.difficulty}
    return {f"scene-{i:02d}": scene(first + i, height, width, **kind) for i in range(count)}


def _steps(
    out: Path, images: int, iterations: int | None, listener: training.Listener, done: list[DemoStep]
) -> Iterator[tuple[str, Path, str]]:
    """Yield the result, the path and the command of each step of `TITLES` after it is done. `done` has those before."""
    settings = demo_config(iterations)
    run = out / "run"
    again = Path(f"{out}-again")  # commands that repeat a step write there
    scenes = test_scenes(settings, images)
    files = [_write_image(out, name, each) for name, each in scenes.items()]
    yield f"{images} generated", out / "pictures", ""
    for name, each in scenes.items():
        record_file(out, f"truth/{name}.jpg")
        write_overlay(each.panoptic(), out / "truth" / name, ANNOTATION)
    yield f"{sum(len(each.segments) for each in scenes.values())} segments drawn", out / "truth", ""
    iterations = iterations or fitting_iterations(out)
    outcome, results = _train(out, demo_config(iterations), listener)
    seen = outcome.iterations * settings.train.batch
    repeat = ["train", "--preset", PRESET, "--init", "random", "--micro-batch", settings.train.batch]
    for change in _changes(iterations):
        repeat += ["--set", change]
    yield f"{outcome.iterations} steps, {seen} images, from nothing", run, _command(*repeat, "--out", again / "run")
    measured = _command("eval", "--model", run, "--metric", "pq", "--out", again / "eval")
    yield _evaluated(results), run / RESULTS, measured
    loaded = load.load(run)
    for task, formats in FORMATS.items():
        folder = out / "predict" / task
        words = ["--task", task, "--save", ",".join(formats), "--out", again / task]
        predicted = _command("predict", out / "pictures", "--model", run, *words)
        yield _predict(loaded, files, task, folder), folder, predicted
    yield "images, annotation and predictions side by side", _write_page(out, scenes, outcome, results, done), ""


def _command(*words: object) -> str:
    """Return a command line of m2f, quoted for a shell."""
    return shlex.join(["m2f", *map(str, words)])


def _write_image(out: Path, name: str, drawn: Scene) -> Path:
    record_file(out, f"pictures/{name}.png")
    path = out / "pictures" / f"{name}.png"
    with atomic(path) as part:
        save_image(Image.fromarray(drawn.image_HW3), part, format="PNG")
    return path


def _train(out: Path, settings: Config, listener: training.Listener) -> tuple[training.TrainOutcome, dict[str, Any]]:
    """Train, and return the outcome and the document results.json of the best evaluation, {} without one."""
    record_file(out, "run/")
    evaluations: dict[int, EvalResult] = {}

    def evaluated(iteration: int, result: EvalResult) -> None:
        evaluations[iteration] = result
        listener.on_evaluated(iteration, result)

    listening = dataclasses.replace(listener, on_evaluated=evaluated)
    outcome = training.start(settings, out / "run", _options(settings), listening, ["m2f", "demo"])
    if outcome.stopped is not None:
        raise KeyboardInterrupt
    best = evaluations.get(outcome.best.get("iteration", -1))
    if best is None:
        return outcome, {}
    model = {"name": settings.name, "source": str(out / "run"), "weights": None}
    scenes = {"name": settings.data.dataset, "format": "synthetic", "folder": None, "split": "val"}
    data = {**scenes, "pictures": settings.data.scenes.val, "full_split": None}
    return outcome, document(best, model=model, data=data, settings={})


def _evaluated(results: dict[str, Any]) -> str:
    """Return the result of the evaluation in words."""
    if not results:
        return "nothing could be measured"
    quality, count = results["figures"]["pq"], results["scored"]
    return f"PQ {quality:.1f} on {count} images that training never saw; {results['seconds']:.0f} s of the training"


def _predict(loaded: Segmenter, files: list[Path], task: Task, folder: Path) -> str:
    """Predict as `m2f predict` does, and return the result in words."""
    summary = predict(loaded, expand(files), task, folder, FORMATS[task], overwrite=True)
    if summary.failed:
        raise M2FError(f"The demo could not segment its own image: {summary.failed[0].message}")
    return f"{summary.done / summary.seconds:.1f} images/s, saved as {', '.join(FORMATS[task])}"


def _write_page(
    out: Path,
    scenes: dict[str, Scene],
    outcome: training.TrainOutcome,
    results: dict[str, Any],
    done: list[DemoStep],
) -> Path:
    record_file(out, "index.html")
    files = {
        "Image": "pictures/{}.png",
        "Annotation": "truth/{}.jpg",
        "Panoptic prediction": "predict/panoptic/overlay/{}.jpg",
        "Instance prediction": "predict/instance/overlay/{}.jpg",
    }
    quality = f" Its panoptic quality on scenes that it never saw is {results['figures']['pq']:.1f}." if results else ""
    summary = f"A small MP-Former learned generated scenes from nothing, in {outcome.iterations} steps on this machine."
    report = DemoReport(
        summary=summary + quality,
        results=results,
        metrics=out / "run" / METRICS,
        categories=CATEGORIES,
        scenes=[
            SceneView(name, [SceneImage(caption, out / file.format(name)) for caption, file in files.items()])
            for name in scenes
        ],
        enlarged=ENLARGED,
        steps=[ReportedStep(TITLES[step.name], step.what, step.seconds, step.command) for step in done],
        next_commands=NEXT,
    )
    return write_demo_page(report, out / "index.html")


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
