"""A segmenter without a network, for the tests of what surrounds it: the red channel says which class a pixel is."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from pycocotools import mask as coco_mask

from m2f_cli.errors import ConfigError
from m2f_cli.inference.base import BaseSegmenter
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.categories import Category

SKY, GRASS, PERSON = 0, 1, 2
CATEGORIES = (
    Category(187, "sky", False, (70, 130, 180)),
    Category(193, "grass", False, (152, 251, 152)),
    Category(1, "person", True, (220, 20, 60)),
)
RED = {SKY: 10, GRASS: 110, PERSON: 210}


def scene(height: int = 48, width: int = 64) -> np.ndarray:
    """Sky above grass, and a person of a quarter of the height and width in the middle. (H, W, 3) uint8."""
    labels_HW = scene_labels(height, width)
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    image_HW3[..., 0] = np.array([RED[SKY], RED[GRASS], RED[PERSON]])[labels_HW]
    image_HW3[..., 1] = np.arange(width) % 256
    return image_HW3


def scene_labels(height: int = 48, width: int = 64) -> np.ndarray:
    labels_HW = np.full((height, width), GRASS, np.uint8)
    labels_HW[: height // 2] = SKY
    labels_HW[3 * height // 8 : 5 * height // 8, 3 * width // 8 : 5 * width // 8] = PERSON
    return labels_HW


def panoptic(labels_HW: np.ndarray, **extra) -> PanopticMap:
    ids_HW = labels_HW.astype(np.int32) + 1
    present = [i for i in range(3) if (labels_HW == i).any()]
    segments = [Segment(i + 1, i, 0.9 - 0.1 * i, int((labels_HW == i).sum())) for i in present]
    return PanopticMap(labels_HW.shape, CATEGORIES, ids_HW, segments, **extra)


def instances(labels_HW: np.ndarray, **extra) -> Instances:
    rle = coco_mask.encode(np.asfortranarray(labels_HW == PERSON, dtype=np.uint8))
    return Instances(labels_HW.shape, CATEGORIES, np.array([PERSON]), np.array([0.875], np.float32), [rle], **extra)


def semantic(labels_HW: np.ndarray, **extra) -> SemanticMap:
    return SemanticMap(labels_HW.shape, CATEGORIES, labels_HW, **extra)


class Prepared:
    def __init__(self, labels_HW: np.ndarray):
        self.labels_HW = labels_HW


class FakeSegmenter(BaseSegmenter):
    """Counts the Prepared objects that are alive, and records its calls."""

    tasks = ()

    def __init__(self, tasks=("panoptic", "instance", "semantic")):
        self.categories = CATEGORIES
        self.source = "fake"
        self.device = torch.device("cuda")  # where the network leaves the processor to the threads beside it
        self.notes: list[str] = []
        self.tasks = tasks
        self.default_task = tasks[0]
        self.batches: list[int] = []
        self.thresholds: list[dict] = []
        self.infer_threads: set[int] = set()
        self.most_alive = 0
        self.alive = 0
        self._lock = threading.Lock()

    def check_task(self, task):
        if task not in self.tasks:
            raise ConfigError(f"The model {self.source} does {', '.join(self.tasks)}, not {task!r}.")
        return task

    def prepare(self, image_HW3):
        assert image_HW3.dtype == np.uint8 and image_HW3.ndim == 3
        prepared = Prepared((image_HW3[..., 0] // 86).clip(0, 2).astype(np.uint8))
        with self._lock:
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(prepared, self._gone)
        return prepared

    def infer(self, prepared):
        self.batches.append(len(prepared))
        self.infer_threads.add(threading.get_ident())
        return [each.labels_HW for each in prepared]

    def finish(self, raw, task=None, **thresholds):
        self.thresholds.append(thresholds)
        return {"panoptic": panoptic, "instance": instances, "semantic": semantic}[task or self.default_task](raw)

    def semantic_scores(self, raw):
        classes = torch.arange(3)[:, None, None]
        return lambda start, stop: (torch.from_numpy(raw[start:stop]) == classes).float()

    def _gone(self):
        with self._lock:
            self.alive -= 1
