"""Plan of a large prediction: the hours, devices and storage that a number of images takes, from a few measured here.

One worker is this machine as `m2f predict` uses it: one GPU, or all CPU cores. Two processes, on two GPUs or with half
of the cores each, show how much speed stays when they work side by side. One process, the driver, hands the images out
and keeps the journal. Its time for each image limits any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..cluster.processes import Processes
from ..errors import ConfigError, M2FError
from ..inference.base import BaseSegmenter
from ..inference.journal import PREDICTIONS
from ..inference.predict import PredictProgress, predict
from ..inference.sources import ImageSource
from ..inference.stream import Streamer, stream
from ..runtime.documents import read_json
from ..runtime.threads import usable_cores
from .case import Case
from .model_under_test import load_subject
from .workloads import FORMAT, images_of

WORKERS = (1, 8, 64)
LEAST_IMAGES = 8  # the first half is not counted: processes start, caches fill
DRIVER = "driver"
STAGES = ("read", "prepare", "network", "post_process", "write")


@dataclass(frozen=True)
class Outlook:
    """Expectation for a number of workers.

    Attributes:
        workers: machines like this one, each with one GPU or all of its cores.
        images_per_second: of all workers together.
        hours: until the last image is done.
        device_hours: hours of all workers together.
        bottleneck: stage that takes most of a worker's time; "driver" where workers would wait for that.
    """

    workers: int
    images_per_second: float
    hours: float
    device_hours: float
    bottleneck: str


@dataclass(frozen=True)
class PredictPlan:
    """Plan of a large prediction.

    Attributes:
        images: number of images.
        measured: number of images that were measured.
        formats: names of the writers.
        stages_ms: milliseconds of each stage for one image, in one process.
        images_per_second: of one worker.
        driver_ms: processor time of the driver for each image, in milliseconds; None where two processes do not fit.
        efficiency: speed of two processes, as a share of twice that of one; None where two do not fit.
        bytes_per_image: size of the output.
        outlooks: one for each number of workers.
    """

    images: int
    measured: int
    formats: tuple[str, ...]
    stages_ms: Mapping[str, float]
    images_per_second: float
    driver_ms: float | None
    efficiency: float | None
    bytes_per_image: float
    outlooks: tuple[Outlook, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "formats": list(self.formats), "outlooks": [asdict(each) for each in self.outlooks]}


@dataclass(frozen=True)
class MeasuredSpeed:
    """Measurement of a prediction, without its first half.

    Attributes:
        images_per_second: speed.
        driver_seconds: processor time of this process for each image.
    """

    images_per_second: float
    driver_seconds: float


def make_plan(
    case: Case, images: int, formats: Sequence[str] = (), on_phase: Callable[[str], None] = lambda phase: None
) -> PredictPlan:
    """Measure a few images, and work out what many take.

    Args:
        case: the model and its images. `case.images` of them are measured.
        images: number of images to plan for.
        formats: names of writers; by default the COCO format of the task, or label maps.
        on_phase: called with a sentence before each measurement.

    Raises:
        ConfigError: `images` is not positive, or fewer than `LEAST_IMAGES` can be measured.
        M2FError: the model cannot be opened, or an image cannot be segmented.
    """
    if images < 1:
        raise ConfigError(f"--plan {images}: a plan is for at least one image.")
    with TemporaryDirectory(prefix="m2f-plan-") as temporary:
        folder = Path(temporary)
        segmenter = load_subject(case)
        files = images_of(case, segmenter.config, folder / "images")
        if len(files) < LEAST_IMAGES:
            raise ConfigError(f"A plan measures {LEAST_IMAGES} images or more, not {len(files)}.", hint="Use --images.")
        sources = [ImageSource(path, f"{number:06d}") for number, path in enumerate(files)]
        chosen = tuple(formats or (FORMAT[segmenter.default_task],))
        run = partial(_measure, segmenter, sources, chosen, case.batch)
        on_phase(f"Segmenting {len(files)} images in one process.")
        alone = run(folder / "alone", stream)
        stages = _stages(folder / "alone")
        size = sum(path.stat().st_size for path in (folder / "alone").rglob("*") if path.is_file()) / len(files)
        efficiency = driver = None
        if (devices := _two_devices(segmenter)) is not None:
            on_phase("Segmenting them in one process and in two beside each other.")
            threads = max(1, usable_cores() // 2) if segmenter.device.type == "cpu" else None
            openers = [(device, partial(_open, case, device)) for device in devices]
            one, two = (run(folder / f"of-{count}", Processes(openers[:count], threads)) for count in (1, 2))
            efficiency = min(1.0, two.images_per_second / (2 * one.images_per_second))
            driver = two.driver_seconds
    outlooks = tuple(outlook(images, count, alone.images_per_second, stages, efficiency, driver) for count in WORKERS)
    driver_ms = None if driver is None else 1000 * driver
    return PredictPlan(
        images, len(files), chosen, stages, alone.images_per_second, driver_ms, efficiency, size, outlooks
    )


def _open(case: Case, device: str) -> BaseSegmenter:
    """Open the model in another process."""
    return load_subject(replace(case, device=device))


def _two_devices(segmenter: BaseSegmenter) -> tuple[str, str] | None:
    """Return the devices of two processes; None where there is only one GPU or core."""
    if segmenter.device.type == "cpu":
        return ("cpu", "cpu") if usable_cores() > 1 else None
    if segmenter.device.type == "cuda" and torch.cuda.device_count() > 1:
        return "cuda:0", "cuda:1"
    return None


def _measure(
    segmenter: BaseSegmenter,
    sources: Sequence[ImageSource],
    formats: Sequence[str],
    batch: int,
    out: Path,
    streamer: Streamer,
) -> MeasuredSpeed:
    times: list[tuple[float, float]] = []  # wall clock, and processor time of this process

    def note(progress: PredictProgress) -> None:
        times.append((time.perf_counter(), time.process_time()))

    summary = predict(segmenter, sources, None, out, formats, batch=batch, on_progress=note, streamer=streamer)
    if summary.failed:
        raise M2FError(f"An image cannot be measured: {summary.failed[0].message}")
    first, last = times[len(times) // 2 - 1], times[-1]
    count = len(times) - len(times) // 2
    return MeasuredSpeed(count / (last[0] - first[0]), (last[1] - first[1]) / count)


def _stages(out: Path) -> dict[str, float]:
    """Return the mean milliseconds of each stage, without the first half of the images."""
    records = read_json(out / PREDICTIONS)["predictions"]
    counted = [record["times_ms"] for record in records[len(records) // 2 :]]
    return {stage: sum(times.get(stage, 0.0) for times in counted) / len(counted) for stage in STAGES}


def outlook(
    images: int,
    workers: int,
    speed: float,
    stages_ms: Mapping[str, float],
    efficiency: float | None,
    driver_seconds: float | None,
) -> Outlook:
    """Return what a number of workers takes, from the speed of one; other arguments as in `PredictPlan`."""
    speed *= workers * (1.0 if workers == 1 or efficiency is None else efficiency)
    bottleneck = max(stages_ms, key=lambda stage: stages_ms[stage])
    if workers > 1 and driver_seconds is not None and speed > 1 / driver_seconds:
        speed, bottleneck = 1 / driver_seconds, DRIVER
    hours = images / speed / 3600
    return Outlook(workers, speed, hours, hours * workers, bottleneck)
