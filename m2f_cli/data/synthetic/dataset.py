"""Generated scenes as a data set, for trying a model, a loop or an idea without any data."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError
from ...structures import Task
from ...structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from ..records import DataSet, Record
from .scenes import CATEGORIES, Scene, scene

SPLITS = ("train", "val", "test")
MOST = 1 << 20  # largest number of scenes in a split


@functools.lru_cache(maxsize=64)
def _scene(seed: int, height: int, width: int, objects: tuple[int, int], difficulty: float) -> Scene:
    """Return a scene. It is cached, because image and annotation are read one after the other.

    The arrays are shared and therefore read-only.
    """
    generated = scene(seed, height, width, objects=objects, difficulty=difficulty)
    generated.image_HW3.flags.writeable = generated.ids_HW.flags.writeable = False
    return generated


@dataclass(frozen=True)
class _SceneReader:
    seed: int
    size: tuple[int, int]
    objects: tuple[int, int]
    difficulty: float

    def scene(self) -> Scene:
        return _scene(self.seed, *self.size, self.objects, self.difficulty)


class _ReadImage(_SceneReader):
    def __call__(self) -> np.ndarray:
        return self.scene().image_HW3


class _ReadPanoptic(_SceneReader):
    def __call__(self) -> PanopticAnnotation:
        generated = self.scene()
        return PanopticAnnotation(
            generated.ids_HW, [AnnotatedSegment(segment.id, segment.label) for segment in generated.segments]
        )


class _ReadSemantic(_SceneReader):
    def __call__(self) -> SemanticAnnotation:
        return SemanticAnnotation(self.scene().semantic().labels_HW)


class _ReadInstances(_SceneReader):
    def __call__(self) -> InstanceAnnotation:
        instances = self.scene().instances()
        labels = instances.labels_N.tolist()
        return InstanceAnnotation(
            self.size, [AnnotatedObject(*pair) for pair in zip(labels, instances.rles, strict=True)]
        )


_READERS: dict[Task, type[_SceneReader]] = {
    "panoptic": _ReadPanoptic,
    "semantic": _ReadSemantic,
    "instance": _ReadInstances,
}


def synthetic_dataset(
    split: str = "train",
    count: int = 512,
    seed: int = 0,
    size: tuple[int, int] = (160, 240),
    task: Task = "panoptic",
    objects: tuple[int, int] = (3, 8),
    difficulty: float = 0.5,
) -> DataSet:
    """Return a data set of generated scenes. The same arguments give the same pixels on every machine.

    Args:
        split: train, val or test. No two splits and no two seeds share a scene.
        count: number of scenes, at most 2^20.
        seed: seed of the scenes, 0 or more.
        size: (height, width) in pixels.
        task: the task of the annotations.
        objects: see `synthetic.scenes.scene`.
        difficulty: see `synthetic.scenes.scene`.

    Raises:
        ConfigError: the split is unknown, or a number is out of range.
    """
    if split not in SPLITS:
        raise ConfigError(f"Generated scenes have no split named {split!r}.", hint=f"Known: {', '.join(SPLITS)}.")
    if not 0 < count <= MOST or seed < 0:
        raise ConfigError(f"count = {count}, seed = {seed} should be 1 to {MOST} scenes, and 0 or more.")
    first = (seed * len(SPLITS) + SPLITS.index(split)) * MOST
    how = tuple(size), tuple(objects), task, difficulty
    records = [_record(first + number, number, *how) for number in range(count)]
    return DataSet("synthetic", "synthetic", split, task, CATEGORIES, records)


def _record(
    seed: int, number: int, size: tuple[int, int], objects: tuple[int, int], task: Task, difficulty: float
) -> Record:
    what = seed, size, objects, difficulty
    return Record(f"scene-{number:06d}", None, _READERS[task](*what), *size, read_image=_ReadImage(*what))
