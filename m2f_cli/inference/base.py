"""The contract of everything that segments images, what goes between its steps, and what stands around another."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Config
from ..errors import ConfigError
from ..results.types import Instances, PanopticMap, SemanticMap
from ..structures import Task
from ..structures.categories import Categories
from ..structures.images import read_image
from .mask_rendering import Band, MaskLogits, Size


@dataclass
class Prepared:
    """An image at the network's input size, (3, h, w) uint8 RGB, and the size that it had."""

    pixels_CHW: Tensor
    size: Size


@dataclass
class RawOutput:
    """The network's answer for one image: class logits and masks that are not rendered yet."""

    class_logits_QK: Tensor
    masks: MaskLogits


class BaseSegmenter(ABC):
    """A model ready for use. Call it with one image (path, PIL image or array) or a list of them.

    A call has three steps, which a stream of images overlaps: `prepare` (any thread), `infer` (one thread) and `finish`
    (any thread). What goes from one step to the next is each segmenter's own.

    Attributes:
        model: the network; None for an exported file.
        default_task: what it does when a call does not say.
        notes: what a person should know about it.
    """

    model: torch.nn.Module | None
    config: Config
    categories: Categories
    device: torch.device
    precision: str
    source: str
    notes: list[str]
    default_task: Task

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this model does."""

    def __call__(self, images: Any, task: Task | None = None, **thresholds: Any) -> Any:
        """Segment images.

        Args:
            images: a path, a PIL image, an array (H, W, 3) or (H, W), or a list of these.
            task: "panoptic", "instance" or "semantic"; the model's own by default.
            thresholds: object_threshold, overlap_threshold, top_k, score_threshold, as in `finish`.

        Returns:
            A PanopticMap, Instances or SemanticMap; a list of them for a list.

        Raises:
            DataError: something is not an image; ConfigError: the model does not do this task.
        """
        if isinstance(images, (list, tuple)):
            return [self(image, task, **thresholds) for image in images]
        pixels = read_image(images)
        [raw] = self.infer([self.prepare(pixels)])
        result = self.finish(raw, task, **thresholds)
        result.image = Path(images) if isinstance(images, (str, os.PathLike)) else pixels
        return result

    @abstractmethod
    def check_task(self, task: str) -> Task:
        """Return `task`, if this model does it.

        Raises:
            ConfigError: it does not.
        """

    @abstractmethod
    def prepare(self, image_HWC: np.ndarray) -> Any:
        """Make an image (H, W, 3, uint8 RGB) ready for the network."""

    @abstractmethod
    def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the network on what `prepare` gave."""

    @abstractmethod
    def finish(
        self,
        raw: Any,
        task: Task | None = None,
        *,
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> PanopticMap | Instances | SemanticMap:
        """Turn what `infer` gave for one image into a result at the image's own size.

        Args:
            object_threshold, overlap_threshold: of panoptic segmentation; None is the model's own.
            top_k, score_threshold: of instance segmentation; None is the model's own.
        """

    def finish_all(
        self, raw: Any, tasks: Sequence[Task], **thresholds: Any
    ) -> dict[Task, PanopticMap | Instances | SemanticMap]:
        """Return the results of several tasks."""
        return {task: self.finish(raw, task, **thresholds) for task in tasks}

    @abstractmethod
    def semantic_scores(self, raw: Any) -> Band:
        """Return class scores (classes, rows, W) at the image's own size, a band of rows at a time."""


class Wrapper(BaseSegmenter):
    """Base class for segmenters around another. What a subclass does not define is the inner one's."""

    def __init__(self, inner: BaseSegmenter):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet, as while a copy is unpacked: asking the inner one would never end
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.inner.tasks

    def check_task(self, task: str) -> Task:
        return self.inner.check_task(task)

    def prepare(self, image_HWC: np.ndarray) -> Any:
        return self.inner.prepare(image_HWC)

    def infer(self, batch: Sequence[Any]) -> list[Any]:
        return self.inner.infer(batch)

    def finish(self, raw: Any, task: Task | None = None, **thresholds: Any) -> Any:
        return self.inner.finish(raw, task, **thresholds)

    def semantic_scores(self, raw: Any) -> Band:
        return self.inner.semantic_scores(raw)


def innermost(segmenter: BaseSegmenter) -> Any:
    """Return the segmenter inside all wrappers: the one that has the network."""
    while isinstance(segmenter, Wrapper):
        segmenter = segmenter.inner
    return segmenter


def refuse_wrapped(segmenter: BaseSegmenter, what: str) -> None:
    """Raises:
    ConfigError: `segmenter` is a wrapper already.
    """
    if isinstance(segmenter, Wrapper):
        raise ConfigError(
            f"{what} goes directly around a model, not around {type(segmenter).__name__}.",
            hint="Tiles go around test-time augmentation: tiled(with_tta(model), 1024).",
        )
