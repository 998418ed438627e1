"""Contract of segmenters, the values between their steps, and the base class of wrappers."""

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
    """Image at the network's input size.

    Attributes:
        pixels_CHW: uint8 RGB, without padding.
        size: (height, width) of the image itself.
    """

    pixels_CHW: Tensor
    size: Size


@dataclass
class RawOutput:
    """Output of the network for one image.

    Attributes:
        class_logits_QK: logits of the classes; the last one is "no object".
        masks: mask logits that are not rendered yet.
    """

    class_logits_QK: Tensor
    masks: MaskLogits


class BaseSegmenter(ABC):
    """Model ready for use. Call it with one image (path, PIL image or array) or a list of them.

    A call has three steps: `prepare` (any thread), `infer` (one thread) and `finish` (any thread). A stream of images
    overlaps them. Each segmenter has its own types for the values between the steps.

    Attributes:
        model: the network; None for an exported file.
        config: configuration of the model.
        categories: classes, in the order of their class numbers.
        device: device of the network.
        precision: number format of most of the network, such as "fp32".
        source: origin of the model, for messages.
        notes: remarks for people.
        default_task: task of a call that names none.
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
        """Tasks that this model does."""

    def __call__(self, images: Any, task: Task | None = None, **thresholds: Any) -> Any:
        """Segment images.

        Args:
            images: a path, a PIL image, an array (H, W, 3) or (H, W), or a list of these.
            task: "panoptic", "instance" or "semantic"; by default `default_task`.
            thresholds: object_threshold, overlap_threshold, top_k, score_threshold, as in `finish`.

        Returns:
            A PanopticMap, Instances or SemanticMap; a list of them for a list.

        Raises:
            DataError: one of `images` is not an image.
            ConfigError: the model does not do this task.
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
        """Return `task` if this model does it.

        Raises:
            ConfigError: the model does not do it.
        """

    @abstractmethod
    def prepare(self, image_HWC: np.ndarray) -> Any:
        """Prepare an image (H, W, 3), uint8 RGB, for the network."""

    @abstractmethod
    def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the network on outputs of `prepare`."""

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
        """Turn the output of `infer` for one image into a result at the image's own size.

        Args:
            raw: output of `infer` for the image.
            task: by default `default_task`.
            object_threshold: panoptic, least class probability of a query; by default as configured.
            overlap_threshold: panoptic, least visible share of a mask; by default as configured.
            top_k: instance, number of (query, class) pairs; by default as configured.
            score_threshold: instance, least score of an object; by default the segmenter's own.
        """

    def finish_all(
        self, raw: Any, tasks: Sequence[Task], **thresholds: Any
    ) -> dict[Task, PanopticMap | Instances | SemanticMap]:
        """Return the results of several tasks, each as from `finish`."""
        return {task: self.finish(raw, task, **thresholds) for task in tasks}

    @abstractmethod
    def semantic_scores(self, raw: Any) -> Band:
        """Return a function of class scores (classes, rows, W) at the image's own size, for a band of rows."""


class Wrapper(BaseSegmenter):
    """Base class for segmenters that wrap another segmenter, which provides all that a subclass does not define."""

    def __init__(self, inner: BaseSegmenter):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set while a copy is unpacked, and looking it up would recurse forever
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
    """Return the segmenter inside all wrappers, which has the network."""
    while isinstance(segmenter, Wrapper):
        segmenter = segmenter.inner
    return segmenter


def refuse_wrapped(segmenter: BaseSegmenter, what: str) -> None:
    """Refuse a segmenter that is a wrapper.

    Args:
        segmenter: the segmenter to be wrapped.
        what: name of the new wrapper, for the message.

    Raises:
        ConfigError: `segmenter` is a wrapper.
    """
    if isinstance(segmenter, Wrapper):
        raise ConfigError(
            f"{what} goes directly around a model, not around {type(segmenter).__name__}.",
            hint="Tiles go around test-time augmentation: tiled(with_tta(model), 1024).",
        )
