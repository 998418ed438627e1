"""Segmenter of a network of PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Config
from ..errors import ConfigError, M2FError, is_out_of_memory, unknown_name
from ..ops.cache import cached_by_shape
from ..results.types import Instances, PanopticMap, SemanticMap
from ..runtime.devices import DTYPES, Precision
from ..structures import Task
from ..structures.categories import Categories
from . import postprocess
from .base import BaseSegmenter, Prepared, RawOutput
from .mask_rendering import Band, MaskLogits, Size, size_of
from .preprocess import RESAMPLERS, padded_shape, resized_shape

DEFAULT_SCORE_THRESHOLD = 0.5  # of instances, for visualisation; 0 gives the published top 100


@contextlib.contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "Use a smaller --batch, a smaller model, or --device cpu."
        raise M2FError(f"Not enough memory for {what}.", hint=hint) from error


class Segmenter(BaseSegmenter):
    """Network with its classes and its published way of inference.

    Args:
        model: the network.
        config: its configuration.
        categories: its classes, in the order of their class numbers.
        task: task of a call that names none; by default that of the configuration.
        device: device of the network.
        precision: number format, as in `load`.
        channels_last: keep the backbone's convolutions in this memory format, as in `load`.
        source: origin of the model, for messages; by default the name of the configuration.
        notes: remarks for people.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: Config,
        categories: Categories,
        *,
        task: Task | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        channels_last: bool = False,
        source: str = "",
        notes: Sequence[str] = (),
    ):
        if precision not in DTYPES:
            raise unknown_name("precision", precision, DTYPES)
        self.model = model.eval().to(device)
        if channels_last:  # the output of a convolution has the format of its weights, so images need no change
            self.model.backbone.to(memory_format=torch.channels_last)
        self.config, self.categories = config, categories
        self.device, self.precision = torch.device(device), precision
        self.source, self.notes = source or config.name, list(notes)
        self.default_task = self.check_task(task or config.task)

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.config.test.tasks

    def check_task(self, task: str) -> Task:
        if task not in self.tasks:
            raise ConfigError(
                f"The model {self.source} does {', '.join(self.tasks)} segmentation, not {task!r}.",
                hint=f"Use --task {self.tasks[0]}, or a model for {task} (see `m2f presets list`).",
            )
        return task

    def prepare(self, image_HWC: np.ndarray) -> Prepared:
        """Resize an image (H, W, 3), uint8 RGB, to the published test size."""
        height, width = image_HWC.shape[:2]
        new_height, new_width = self.input_shape(height, width)
        if (new_height, new_width) != (height, width):
            image_HWC = RESAMPLERS[self.config.test.resize.resampling](image_HWC, (new_width, new_height))
        pixels_HWC = torch.from_numpy(np.array(image_HWC))
        if self.device.type == "cuda":  # the copy to the device then overlaps with what runs there
            pixels_HWC = pixels_HWC.pin_memory()
        return Prepared(pixels_HWC.permute(2, 0, 1), (height, width))

    def input_shape(self, height: int, width: int) -> Size:
        """Return the size of the network's input, without padding, for an image of this size."""
        return resized_shape(height, width, self.config.test.resize)

    @torch.inference_mode()
    def infer(self, batch: Sequence[Prepared]) -> list[RawOutput]:
        """Run the network. Images of a batch are padded to the largest one; a single image gives the published numbers.

        Raises:
            M2FError: the output of the network is not finite, or the device has too little memory.
        """
        images_BCHW = self.collate([prepared.pixels_CHW for prepared in batch])
        dtype = DTYPES.get(self.precision, torch.float32)  # int8 is computed inside an exported file
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)
        with autocast, _memory_errors(f"a network input of {' x '.join(map(str, images_BCHW.shape))}"):
            classes, embeds, features = self._forward(images_BCHW)
        wide = torch.float32 if features.dtype is torch.float16 else None  # so that the sum stays in range
        outputs = (classes, embeds, features.sum(dtype=wide))  # a sum is finite only if all of its terms are
        if not torch.stack([each.isfinite().all() for each in outputs]).all():  # the host waits once, not three times
            raise M2FError(
                f"The network {self.source} answered with NaN or infinity in {self.precision}.",
                hint="Use --precision fp32; if it stays, the weights are broken.",
            )
        padded = size_of(images_BCHW)
        masks = [
            MaskLogits(embeds[i], features[i], padded, size_of(image.pixels_CHW), image.size)
            for i, image in enumerate(batch)
        ]
        return [RawOutput(*answer) for answer in zip(classes, masks, strict=True)]

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits, mask embeddings and mask features; a mask is the dot product of the last two."""
        if self.model is None:
            raise TypeError(f"{type(self).__name__} has no network of PyTorch")
        prediction = self.model(images_BCHW)
        last = prediction.last
        return last.class_logits_BQK.float(), last.mask_embeds_BQC.float(), prediction.features()

    def collate(self, images: Sequence[Tensor]) -> Tensor:
        """Normalise images, and pad them at the right and bottom to one size; see `padded_size`."""
        height, width = self.padded_size(images)
        mean, std = (_per_channel(values, self.device) for values in (self.config.input.mean, self.config.input.std))
        images_BCHW = torch.zeros(len(images), 3, height, width, device=self.device)
        if self.config.test.pad_value is not None:
            images_BCHW += (self.config.test.pad_value - mean) / std
        for image_CHW, pixels_CHW in zip(images_BCHW, images, strict=True):
            h, w = pixels_CHW.shape[1:]
            pixels_CHW = pixels_CHW.to(self.device, non_blocking=self.device.type == "cuda")  # bytes, not floats
            image_CHW[:, :h, :w] = (pixels_CHW.float() - mean) / std
        return images_BCHW

    @property
    def divisor(self) -> int:
        """Number that height and width of the network's input are multiples of."""
        return max(1, self.config.test.size_divisor)

    def padded_size(self, images: Sequence[Tensor]) -> Size:
        """Return the (height, width) of a batch of these images, with padding."""
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        return padded_shape(height, width, self.divisor, least=self.config.test.resize.fit or 1)

    @torch.inference_mode()
    def finish(
        self,
        raw: RawOutput,
        task: Task | None = None,
        *,
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> PanopticMap | Instances | SemanticMap:
        """Turn the output of the network into a result at the image's own size.

        Args:
            raw: output of `infer` for the image.
            task: by default `default_task`.
            object_threshold: panoptic, least class probability of a query; by default as configured.
            overlap_threshold: panoptic, least visible share of a mask; by default as configured.
            top_k: instance, number of (query, class) pairs; by default as configured.
            score_threshold: instance, least score of an object; by default 0.5. 0 gives the published result.
        """
        test = self.config.test
        task = self.check_task(task or self.default_task)
        if task == "panoptic":
            return postprocess.panoptic(
                raw.class_logits_QK,
                raw.masks,
                self.categories,
                object_threshold=test.object_threshold if object_threshold is None else object_threshold,
                overlap_threshold=test.overlap_threshold if overlap_threshold is None else overlap_threshold,
                only_sure_pixels=test.only_sure_pixels,
            )
        if task == "instance":
            return postprocess.instances(
                raw.class_logits_QK,
                raw.masks,
                self.categories,
                top_k=test.top_k if top_k is None else top_k,
                only_things="panoptic" in test.tasks,
                score_threshold=DEFAULT_SCORE_THRESHOLD if score_threshold is None else score_threshold,
            )
        scores, maps = self.semantic_scores(raw), sum(raw.class_logits_QK.shape)
        return postprocess.best_classes(scores, raw.masks.size, self.categories, maps=maps, device=raw.masks.device)

    def semantic_scores(self, raw: RawOutput) -> Band:
        """Return a function of class scores (classes, rows, W) at the image's own size, for a band of rows."""
        test = self.config.test
        return postprocess.semantic_scores(
            raw.class_logits_QK,
            raw.masks,
            resize_scores=test.tasks == ("semantic",),
            of_logits=test.semantic_scores == "logits",
        )


@cached_by_shape
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]
