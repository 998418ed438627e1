"""A model ready for use: pictures in, results out, in three steps that a pipeline can overlap."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config, ResizeConfig, preset_names
from ..data.picture import read_picture
from ..errors import ConfigError, M2FError, unknown_name
from ..ops.cache import cached_by_shape
from ..types import Categories, Instances, PanopticMap, SemanticMap, Task
from . import postprocess
from .loading import load_model
from .masks import Band, MaskLogits, Size

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_MODELS: dict[Task, str] = {
    "panoptic": "coco-panoptic-swin-t",
    "instance": "coco-instance-swin-t",
    "semantic": "ade20k-swin-t",
}
DEFAULT_SCORE_THRESHOLD = 0.5  # of instances for people to look at; 0 gives the published top 100


@dataclass
class Prepared:
    """A picture at the network's input size, (3, h, w) uint8 RGB, and the size that it had."""

    pixels_CHW: Tensor
    size: Size


@dataclass
class Raw:
    """The network's answer for one picture: class logits and masks that are not rendered yet."""

    class_logits_QK: Tensor
    masks: MaskLogits


def load(
    ref: str | Path | None = None,
    *,
    task: Task | None = None,
    device: str = "auto",
    precision: Precision | Literal["auto"] = "fp32",
    channels_last: bool = False,
    trust_code: bool = False,
    progress: Callable | None = None,
    engine: str | None = None,
) -> Segmenter:
    """Load a model.

    Args:
        ref: a preset (its released weights), a run folder, a checkpoint file, a Hugging Face folder or repository, a
            detectron2 .pkl/.pth, an OpenMMLab .pth, or what `m2f export` wrote. None: the default model of `task`
            (panoptic without a task).
        task: what to do when a call does not say; the model's own task by default.
        device: "auto" (CUDA, then MPS, then CPU), or any device that PyTorch knows.
        precision: "fp32" as published, or "bf16" / "fp16": the backbone, the pixel decoder's products but those that
            say where to look, and the decoder's keys and values in that format, everything else in fp32. "auto": the
            fastest for which the device has instructions.
        channels_last: keep the backbone's convolutions in the memory format that tensor cores work in: for a ResNet on
            CUDA, in bf16 or fp16 above all. The numbers are the same to rounding. Not measured on a GPU.
        trust_code: allow a checkpoint's configuration to name code, and an exported file to be a program (.pt2).
        progress: called with records of a download.
        engine: what runs an exported file; by default what its name says (see `engines`).

    Raises:
        WeightsError: no such model, or its weights do not fit; ConfigError: a device or precision that is not there.
    """
    if ref is None:
        ref = DEFAULT_MODELS[task or "panoptic"]
    ref = _file_of_export(ref)
    exported = _exported(ref, engine)
    if exported is not None:
        known = "fp32" if precision == "auto" else precision  # an exported file has its own
        segmenter = exported(task=task, device=device, precision=known, trust_code=trust_code)
    else:
        chosen = choose_device(device)
        loaded = load_model(ref, trust_code=trust_code, progress=progress)
        format = choose_precision(precision, chosen)
        notes = [*loaded.notes, *([f"The network runs in {format}."] if precision == "auto" else [])]
        segmenter = Segmenter(
            loaded.model, loaded.config, loaded.categories, task=task, device=chosen, precision=format,
            channels_last=channels_last, source=loaded.source, notes=notes,
        )
    if segmenter.config.test.slide is None:
        return segmenter
    from .slide import sliding  # it stands around a Segmenter

    return sliding(segmenter)


def _file_of_export(ref: str | Path) -> str | Path:
    """The file in a folder of `m2f export`; `ref` itself where it is something else."""
    from . import engines  # they stand around a Segmenter

    path = Path(ref).expanduser()
    return engines.file_in(path) if path.is_dir() and ref not in preset_names() else ref


def _exported(ref: str | Path, engine: str | None) -> Callable[..., Segmenter] | None:
    """How to open `ref` with an engine, if it is an exported file or somebody says so."""
    from . import engines  # they stand around a Segmenter

    path = Path(ref).expanduser()
    if engine is None and not (path.exists() and ref not in preset_names() and engines.engine_for(path)):
        return None
    return functools.partial(engines.load, path, engine=engine)


def choose_precision(name: str, device: torch.device) -> str:
    """`name`; for "auto" bf16, else fp16, where the device computes it fast, and fp32 where neither."""
    if name != "auto":
        return name
    from .diagnose import good_precisions  # only here: it knows much else

    good = good_precisions(device)
    return next((each for each in ("bf16", "fp16") if each in good), "fp32")


def choose_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is the fastest kind present.

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("nothing is computed there")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        hint = "Use --device cpu, or see `m2f doctor`."
        raise ConfigError(f"The device {name!r} cannot be used: {reason.rstrip('.')}.", hint=hint) from error
    return device


@contextlib.contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; the CPU's allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        hint = "Use a smaller --batch, a smaller model, or --device cpu."
        raise M2FError(f"Not enough memory for {what}.", hint=hint) from error


def _pillow(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BILINEAR))


def _opencv(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_LINEAR)


RESAMPLERS = {"pillow": _pillow, "opencv": _opencv}


class Segmenter:
    """A network with its classes and its published way of inference.

    Call it with one picture (path, PIL image or array) or a list of them. A pipeline calls the three steps itself:
    `prepare` (any thread), `infer` (one thread), `finish` (any thread).
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
        if channels_last:  # convolutions answer in the format of their weights, so that the pictures need no change
            self.model.backbone.to(memory_format=torch.channels_last)
        self.config, self.categories = config, categories
        self.device, self.precision = torch.device(device), precision
        self.source, self.notes = source or config.name, list(notes)
        self.default_task = self.check_task(task or config.task)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the published model was made for, and so can be asked for."""
        return self.config.test.tasks

    def check_task(self, task: str) -> Task:
        """`task`, if this model does it.

        Raises:
            ConfigError: it does not.
        """
        if task not in self.tasks:
            raise ConfigError(
                f"The model {self.source} does {', '.join(self.tasks)} segmentation, not {task!r}.",
                hint=f"Use --task {self.tasks[0]}, or a model for {task} (see `m2f presets list`).",
            )
        return task

    def __call__(self, images: Any, task: Task | None = None, **thresholds: float | int | None) -> Any:
        """Segment pictures.

        Args:
            images: a path, a PIL image, an array (H, W, 3) or (H, W), or a list of these.
            task: "panoptic", "instance" or "semantic"; the model's own by default.
            thresholds: object_threshold, overlap_threshold, top_k, score_threshold, as in `finish`.

        Returns:
            A PanopticMap, Instances or SemanticMap; a list of them for a list.

        Raises:
            DataError: something is not a picture; ConfigError: the model does not do this task.
        """
        if isinstance(images, (list, tuple)):
            return [self(image, task, **thresholds) for image in images]
        pixels = read_picture(images)
        [raw] = self.infer([self.prepare(pixels)])
        result = self.finish(raw, task, **thresholds)
        result.image = Path(images) if isinstance(images, (str, os.PathLike)) else pixels
        return result

    def prepare(self, image_HWC: np.ndarray) -> Prepared:
        """Resize a picture (H, W, 3, uint8 RGB) to the published test size, as the models were tested."""
        height, width = image_HWC.shape[:2]
        new_height, new_width = self.input_shape(height, width)
        if (new_height, new_width) != (height, width):
            image_HWC = RESAMPLERS[self.config.test.resize.resampling](image_HWC, (new_width, new_height))
        pixels_HWC = torch.from_numpy(np.array(image_HWC))
        if self.device.type == "cuda":  # the copy to the device then overlaps with what runs there
            pixels_HWC = pixels_HWC.pin_memory()
        return Prepared(pixels_HWC.permute(2, 0, 1), (height, width))

    def input_shape(self, height: int, width: int) -> Size:
        """The size at which the network sees a picture of this size, without padding."""
        return resized_shape(height, width, self.config.test.resize)

    @torch.inference_mode()
    def infer(self, batch: Sequence[Prepared]) -> list[Raw]:
        """Run the network. Pictures of a batch are padded to the largest; alone, each gives the published numbers.

        Raises:
            M2FError: the network's answer is not finite, or the device has too little memory.
        """
        images_BCHW = self._collate([prepared.pixels_CHW for prepared in batch])
        dtype = DTYPES.get(self.precision, torch.float32)  # the int8 of an exported file is its own affair
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)
        with autocast, _memory_errors(f"a network input of {' x '.join(map(str, images_BCHW.shape))}"):
            classes, embeds, features, offsets = self._forward(images_BCHW)
        answers = (classes, embeds) if offsets is None else (classes, embeds, offsets)
        if not torch.stack([each.isfinite().all() for each in answers]).all():  # one answer to wait for, not three
            raise M2FError(
                f"The network {self.source} answered with NaN or infinity in {self.precision}.",
                hint="Use --precision fp32; if it stays, the weights are broken.",
            )
        padded = tuple(images_BCHW.shape[-2:])
        masks = [
            MaskLogits(embeds[i], features[i], padded, tuple(picture.pixels_CHW.shape[-2:]), picture.size,
                       None if offsets is None else offsets[i])
            for i, picture in enumerate(batch)
        ]  # fmt: skip
        return [Raw(*answer) for answer in zip(classes, masks, strict=True)]

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Class logits, mask embeddings, mask features, offsets: a mask is the dot product of the second and the third,
        plus the last (of each query) where there are any."""
        prediction = self.model(images_BCHW)
        embeds_BQC, offsets_BQ1 = prediction.of_queries()
        return prediction.last.class_logits_BQK.float(), embeds_BQC.float(), prediction.mask_features_BCHW, offsets_BQ1

    def _collate(self, pictures: Sequence[Tensor]) -> Tensor:
        """Normalise, then pad right and bottom with zeros to a common multiple of the size divisor."""
        height, width = self.padded_size(pictures)
        mean, std = (_per_channel(values, self.device) for values in (self.config.input.mean, self.config.input.std))
        images_BCHW = torch.zeros(len(pictures), 3, height, width, device=self.device)
        for image_CHW, pixels_CHW in zip(images_BCHW, pictures, strict=True):
            h, w = pixels_CHW.shape[1:]
            pixels_CHW = pixels_CHW.to(self.device, non_blocking=self.device.type == "cuda")  # bytes, not floats
            image_CHW[:, :h, :w] = (pixels_CHW.float() - mean) / std
        return images_BCHW

    @property
    def divisor(self) -> int:
        """Height and width of the network's input are multiples of this."""
        return max(1, self.config.test.size_divisor)

    def padded_size(self, pictures: Sequence[Tensor]) -> Size:
        """The size of a batch of these pictures."""
        height, width = (-(-max(p.shape[axis] for p in pictures) // self.divisor) * self.divisor for axis in (1, 2))
        return height, width

    @torch.inference_mode()
    def finish(
        self,
        raw: Raw,
        task: Task | None = None,
        *,
        object_threshold: float | None = None,
        overlap_threshold: float | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> PanopticMap | Instances | SemanticMap:
        """Turn the network's answer into a result at the picture's own size.

        Args:
            object_threshold, overlap_threshold: panoptic; the preset's values by default.
            top_k, score_threshold: instance; the preset's top k, and 0.5. A score threshold of 0 gives the published
                result.
        """
        test = self.config.test
        task = self.check_task(task or self.default_task)
        if task == "panoptic":
            return postprocess.panoptic(
                raw.class_logits_QK, raw.masks, self.categories,
                object_threshold=test.object_threshold if object_threshold is None else object_threshold,
                overlap_threshold=test.overlap_threshold if overlap_threshold is None else overlap_threshold,
                only_sure_pixels=test.only_sure_pixels,
            )
        if task == "instance":
            return postprocess.instances(
                raw.class_logits_QK, raw.masks, self.categories,
                top_k=test.top_k if top_k is None else top_k,
                only_things="panoptic" in test.tasks,
                score_threshold=DEFAULT_SCORE_THRESHOLD if score_threshold is None else score_threshold,
            )
        scores, maps = self.semantic_scores(raw), sum(raw.class_logits_QK.shape)
        return postprocess.best_classes(scores, raw.masks.size, self.categories, maps=maps, device=raw.masks.device)

    def semantic_scores(self, raw: Raw) -> Band:
        """Class scores (classes, rows, W) of a picture at its own size, a band of rows at a time."""
        test = self.config.test
        return postprocess.semantic_scores(
            raw.class_logits_QK, raw.masks, resize_scores=test.tasks == ("semantic",),
            of_logits=test.semantic_scores == "logits",
        )


@cached_by_shape
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]


def resized_shape(height: int, width: int, resize: ResizeConfig) -> Size:
    """(height, width) at test time: the short edge becomes `short_edge` unless the long one would pass `max_edge`.

    Rounded half up, at least one pixel (detectron2's ResizeShortestEdge, facts 2.2).
    """
    if resize.fixed is not None:
        return resize.fixed
    scale = resize.short_edge / min(height, width) if resize.short_edge else 1.0
    if resize.max_edge and max(height, width) * scale > resize.max_edge:
        scale = resize.max_edge / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
