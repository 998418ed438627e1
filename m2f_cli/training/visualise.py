"""Images of a run: its first batch after augmentation, its results on the val split, its curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..config.schema import Config
from ..data.records import DataSet, Record
from ..data.training_set import SampleIndex, TrainingSample, TrainingSet, drop_empty
from ..data.transforms import build_transforms
from ..errors import DataError
from ..inference.segmenter import Segmenter
from ..results.draw_options import DrawOptions
from ..results.drawing import plot
from ..results.types import Instances, PanopticMap, Segment
from ..results.writers import write_image, write_overlay
from ..runtime.files import atomic, output_path, safe_name, save_image
from ..runtime.metrics_log import names_of, points_of, read_entries
from ..structures import Task
from ..structures.categories import Categories
from ..structures.targets import Target

SAMPLES = 4  # images of the first batch
ANNOTATED = DrawOptions(parts=("masks", "outlines", "labels"))  # annotations have no scores


def draw_batch(data: DataSet, settings: Config, folder: Path, *, trust_code: bool = False) -> list[Path]:
    """Draw the first training samples after augmentation, with their targets.

    Args:
        trust_code: allow the augmentation to name code.
    """
    train = settings.train
    if train.drop_empty:
        data = drop_empty(data, settings.task)
    steps = build_transforms(train.augment, trust_code=trust_code)
    samples = TrainingSet(data, steps, settings.task, seed=train.seed, tries=train.augment_tries, on_error="skip")
    paths = []
    for position in range(min(SAMPLES, len(samples))):
        sample = samples[SampleIndex(position, position)]
        drawn = plot(as_result(sample, data.categories), sample.image_CHW.permute(1, 2, 0).numpy(), ANNOTATED)
        last_part = safe_name(sample.name).rpartition("/")[2]
        paths += write_image(folder / f"{position}_{last_part}.jpg", drawn, format="JPEG", quality=90)
    return paths


def as_result(sample: TrainingSample, categories: Categories) -> PanopticMap | Instances:
    """Return the target of a sample as a perfect result, to be drawn."""
    target: Target = sample.target
    labels = target.labels_N.tolist()
    if target.owner_HW is None:
        from pycocotools import mask as coco_mask

        masks_HWN = np.asfortranarray(target.masks().permute(1, 2, 0).numpy().astype(np.uint8))
        rles = coco_mask.encode(masks_HWN) if labels else []
        return Instances(target.size, categories, np.array(labels, dtype=np.int64), np.ones(len(labels)), rles)
    ids_HW = target.owner_HW.numpy().astype(np.int32) + 1
    areas = np.bincount(ids_HW.ravel(), minlength=len(labels) + 1)
    segments = [Segment(i + 1, label, 1.0, int(areas[i + 1])) for i, label in enumerate(labels) if areas[i + 1]]
    return PanopticMap(target.size, categories, ids_HW, segments)


def draw_results(segmenter: Segmenter, records: Sequence[Record], task: Task, folder: Path) -> list[Path]:
    """Write overlays of results on some images. Images that cannot be read are skipped; the evaluation reports them."""
    paths = []
    for record in records:
        try:
            image = record.read_image()
        except DataError:
            continue
        result = segmenter(image, task)
        result.image = image
        paths += write_overlay(result, output_path(folder, record.name))
    return paths


# --- curves -----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 900, 320, 56


def draw_curves(metrics: Path, path: Path) -> Path:
    """Draw the smoothed loss and the figures of each evaluation over the iterations, from metrics.jsonl.

    Raises:
        DataError: the file is damaged.
    """
    entries = read_entries(metrics)
    panels = [("loss (smoothed)", {"loss": _smooth(points_of(entries, "train", "loss"))})]
    panels.append(("evaluation", {name: points_of(entries, "val", name) for name in names_of(entries, "val")[:4]}))
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for i, (title, curves) in enumerate(panels):
        _panel(ImageDraw.Draw(image), i * HEIGHT, title, {k: v for k, v in curves.items() if v})
    with atomic(path) as part:
        save_image(image, part, format="PNG")
    return path


def draw_sweep(rates: Sequence[float], losses: Sequence[float], suggested: float, path: Path) -> Path:
    """Draw the losses of a learning-rate sweep over the logarithm of the rate, and the suggested rate."""
    points = [(math.log10(rate), loss) for rate, loss in zip(rates, losses, strict=True)]
    nearest = min(points, key=lambda point: abs(point[0] - math.log10(suggested)))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    curves = {"loss": points, f"suggested {suggested:.1e}": [nearest]}
    _panel(ImageDraw.Draw(image), 0, "learning rate", curves, points[0][0], lambda x: f"{10**x:.0e}")
    with atomic(path) as part:
        save_image(image, part, format="PNG")
    return path


def _smooth(points: list[tuple[float, float]], weight: float = 0.95) -> list[tuple[float, float]]:
    """Return an exponential average with bias correction at the start."""
    smoothed, average, total = [], 0.0, 0.0
    for x, y in points:
        average, total = weight * average + (1 - weight) * y, weight * total + (1 - weight)
        smoothed.append((x, average / total))
    return smoothed


COLORS = ("#1f5fbf", "#c23b22", "#2b8a3e", "#7b3fa0")


def _panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    title: str,
    curves: dict[str, list[tuple[float, float]]],
    first: float = 0.0,
    x_label: Callable[[float], str] = lambda x: f"{int(x)}",
) -> None:
    font = ImageFont.load_default(13)
    draw.text((MARGIN, top + 8), title, fill="black", font=font)
    if not curves:
        draw.text((MARGIN, top + HEIGHT // 2), "nothing yet", fill="gray", font=font)
        return
    xs, ys = zip(*(point for curve in curves.values() for point in curve), strict=True)
    low, high = min(ys), max(ys) if max(ys) > min(ys) else min(ys) + 1.0
    last = max(max(xs), first + 1)

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        x = MARGIN + (point[0] - first) / (last - first) * (WIDTH - 2 * MARGIN)
        return x, top + HEIGHT - 32 - (point[1] - low) / (high - low) * (HEIGHT - 72)

    for value in np.linspace(low, high, 5):
        y = to_pixels((first, float(value)))[1]
        draw.line([(MARGIN, y), (WIDTH - MARGIN, y)], fill="#e4e4e4")
        draw.text((6, y - 8), f"{value:.3g}", fill="gray", font=font)
    for value in np.linspace(first, last, 5):
        draw.text((to_pixels((value, low))[0] - 12, top + HEIGHT - 24), x_label(value), fill="gray", font=font)
    for i, (name, curve) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        points = [to_pixels(point) for point in curve]
        draw.line(points, fill=color, width=2, joint="curve")
        if len(points) < 60:
            for x, y in points:
                draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
        draw.text((MARGIN + 180 + 130 * i, top + 8), f"{name}: {curve[-1][1]:.4g}", fill=color, font=font)
