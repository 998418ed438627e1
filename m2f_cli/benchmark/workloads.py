"""Workloads of m2f. `peers/huggingface.py` has those of a user of transformers."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..config.schema import Config
from ..data.records import Record
from ..evaluation.evaluate import default_metrics, evaluate
from ..inference.base import BaseSegmenter, Prepared, RawOutput, innermost
from ..inference.compile import parts_of
from ..inference.engines.base import CLASS_LOGITS, MASK_LOGITS
from ..inference.load import open_model
from ..inference.mask_rendering import CoarseMasks, MaskLogits, Size
from ..inference.predict import predict
from ..inference.sources import ImageSource, expand
from ..metrics import Metric
from ..results.types import Instances, PanopticMap, Result
from ..results.writers import save as save_result
from ..structures import Task
from ..structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    Annotation,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from ..structures.images import read_image
from ..weights.checkpoint import save
from .case import Case, Workload, image_size, network_size
from .model_under_test import autocast, class_logits, fixed_size, image
from .stages import Method, Stages

PUBLISHED = {"score_threshold": 0.0}  # of instances: the published top 100
FORMAT: dict[Task, str] = {"panoptic": "coco-panoptic", "instance": "coco-instance", "semantic": "label-png"}
STRIDE = 4  # of mask features
RENDER = {"render": ((MaskLogits, "coarse"), (CoarseMasks, "band"))}  # the stage that makes masks
_TINY = 64  # pixels


def of_images(segmenter: BaseSegmenter) -> dict[str, Sequence[Method]]:
    """Return the methods that are stages of work on whole images."""
    return {"preprocess": ((innermost(segmenter), "collate"),), **RENDER}


class Forward(Workload):
    """Forward pass of the network, with its last masks rendered at stride 4."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.case, self.images = segmenter, case, case.batch
        self.parts = parts_of(segmenter.model)
        self.images_BCHW = random_images(case.batch, network_size(case, segmenter.config)).to(segmenter.device)

    def touch(self) -> None:
        self._answer(self.images_BCHW[..., :_TINY, :_TINY], Stages(self.segmenter.device, live=False))

    def run(self, stages: Stages) -> None:
        self.last = self._answer(self.images_BCHW, stages)

    @torch.inference_mode()
    def _answer(self, images_BCHW: torch.Tensor, stages: Stages) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.segmenter.device, self.segmenter.precision):
            prediction = self.segmenter.model(images_BCHW)
        with stages("render"):
            return prediction.last.class_logits_BQK, prediction.render()

    def answer(self) -> dict[str, np.ndarray]:
        classes, masks = self.last
        return {"class logits": classes[0].float().cpu().numpy(), "mask logits": masks[0].float().cpu().numpy()}


def random_images(batch: int, size: Size) -> torch.Tensor:
    """Return normalised images of noise (B, 3, H, W), the same in every process."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


class ForwardOfFile(Workload):
    """Forward pass of an exported file, on images of noise that are not normalised yet."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.images = segmenter, case.batch
        size = network_size(case, segmenter.config, fixed_size(segmenter))
        generator = torch.Generator().manual_seed(1)
        pixels_BCHW = torch.randint(0, 256, (case.batch, 3, *size), dtype=torch.uint8, generator=generator)
        self.batch = [Prepared(pixels_CHW, size) for pixels_CHW in pixels_BCHW]

    def touch(self) -> None:
        """Skip this, because the file may take images of one size only."""

    def run(self, stages: Stages) -> None:
        self.last = self.segmenter.outputs(self.batch)

    def answer(self) -> dict[str, np.ndarray]:
        return {
            name: self.last[key][0].float().numpy()
            for name, key in (("class logits", CLASS_LOGITS), ("mask logits", MASK_LOGITS))
        }


def forward(case: Case, segmenter: BaseSegmenter) -> Forward | ForwardOfFile:
    """Return the workload of a forward pass, of a network or an exported file."""
    return (ForwardOfFile if segmenter.model is None else Forward)(case, segmenter)


class ImageWork(Workload):
    """Whole images in memory at the test size: normalise, network, post-processing (what MMSegmentation's fps is)."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.images = segmenter, case.batch
        self.parts, self.methods = parts_of(segmenter.model), of_images(segmenter)
        size = image_size(case, segmenter.config)
        self.batch = [segmenter.prepare(image(size, number).image_HW3) for number in range(case.batch)]

    def touch(self) -> None:
        touch(self.segmenter)

    def run(self, stages: Stages) -> None:
        raws = self.segmenter.infer(self.batch)
        with stages("post"):
            self.last = [self.segmenter.finish(raw, **PUBLISHED) for raw in raws]

    def answer(self) -> dict[str, np.ndarray]:
        return plain(self.last[0])


def touch(segmenter: BaseSegmenter) -> None:
    """Run a few pixels through network and post-processing."""
    [raw] = segmenter.infer([Prepared(torch.zeros(3, _TINY, _TINY, dtype=torch.uint8), (_TINY, _TINY))])
    segmenter.finish(raw, **PUBLISHED)


def plain(result: Result) -> dict[str, np.ndarray]:
    """Return a result as arrays to compare."""
    if isinstance(result, PanopticMap):
        labels = np.zeros(1 + max((each.id for each in result.segments), default=0), np.int32)
        for each in result.segments:
            labels[each.id] = 1 + each.label
        return {"segment ids": result.ids_HW, "segment labels": labels}
    if isinstance(result, Instances):
        bits = np.packbits(result.masks_NHW(), axis=-1)  # 8 pixels per byte, because processes exchange them
        return {"scores": result.scores_N, "labels": result.labels_N, "masks": bits}
    return {"labels": result.labels_HW.astype(np.int32)}


def plain_of_all(results: Iterable[Result]) -> dict[str, np.ndarray]:
    """Return the arrays of `plain` for images of any size, flattened and concatenated."""
    arrays = [plain(result) for result in results]
    return {name: np.concatenate([each[name].ravel() for each in arrays]) for name in arrays[0]}


class Post(Workload):
    """Post-processing alone, on masks of smooth noise and class logits like those of a trained model."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.images, self.methods = segmenter, 1, RENDER
        queries = segmenter.config.model.decoder.options.get("num_queries", len(segmenter.categories))
        prepared = segmenter.prepare(image(image_size(case, segmenter.config)).image_HW3)
        padded = network_size(case, segmenter.config)
        self.raw = answer_of_noise(
            queries,
            len(segmenter.categories),
            padded,
            tuple(prepared.pixels_CHW.shape[1:]),
            prepared.size,
            segmenter.device,
        )

    def touch(self) -> None:
        size = (_TINY, _TINY)
        tiny = answer_of_noise(8, len(self.segmenter.categories), size, size, size, self.segmenter.device)
        self.segmenter.finish(tiny, **PUBLISHED)

    def run(self, stages: Stages) -> None:
        with stages("post"):
            self.last = self.segmenter.finish(self.raw, **PUBLISHED)

    def answer(self) -> dict[str, np.ndarray]:
        return plain(self.last)


def answer_of_noise(
    queries: int,
    classes: int,
    padded: Size,
    valid: Size,
    size: Size,
    device: torch.device | str = "cpu",
    channels: int = 256,
) -> RawOutput:
    """Return a plausible output of a network, with blobs as masks. It is the same in every process."""
    generator = torch.Generator().manual_seed(2)
    embeds_QC = torch.randn(queries, channels, generator=generator) / 4
    coarse = torch.randn(1, channels, 12, 16, generator=generator)
    at = tuple(-(-edge // STRIDE) for edge in padded)
    features_CHW = nn.functional.interpolate(coarse, size=at, mode="bicubic", align_corners=False)[0]
    logits_QK = class_logits(queries, classes + 1, device)
    return RawOutput(logits_QK, MaskLogits(embeds_QC.to(device), features_CHW.to(device), padded, valid, size))


class Predict(Workload):
    """Prediction from JPEG files to written results, as `m2f predict` does. Stages are timed image by image."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.case = segmenter, case
        self.parts, self.methods = parts_of(segmenter.model), of_images(segmenter)
        self.format = FORMAT[segmenter.default_task]
        self.folder = tempfile.TemporaryDirectory(prefix="m2f-bench-")
        self.files = images_of(case, segmenter.config, Path(self.folder.name))
        self.images = len(self.files)
        self.sizes = sizes_of(self.files, case, segmenter) if case.source else None
        self.numbers = itertools.count()

    def touch(self) -> None:
        touch(self.segmenter)

    def run(self, stages: Stages) -> None:
        out = Path(self.folder.name) / f"run-{next(self.numbers)}"
        if stages.live:
            for path in self.files:
                self._one(path, out, stages)
            return
        sources = [ImageSource(path, path.stem) for path in self.files]
        predict(self.segmenter, sources, None, out, [self.format], batch=self.case.batch, thresholds=dict(PUBLISHED))

    def _one(self, path: Path, out: Path, stages: Stages) -> None:
        with stages("read"):
            image_HW3 = read_image(path)
        with stages("preprocess"):
            prepared = self.segmenter.prepare(image_HW3)
        [raw] = self.segmenter.infer([prepared])
        with stages("post"):
            result = self.segmenter.finish(raw, **PUBLISHED)
        with stages("write"):
            save_result(result, out, [self.format], name=path.stem)

    def answer(self) -> dict[str, np.ndarray]:
        return plain_of_all(self.segmenter(path, **PUBLISHED) for path in self.files)


def images_of(case: Case, config: Config, folder: Path) -> list[Path]:
    """Return the first images of the case's source, or generated images that are written to `folder`."""
    if case.source is None:
        return write_images(folder, image_size(case, config), case.images)
    return [source.path for source in itertools.islice(expand([case.source]), case.images)]


def sizes_of(files: Sequence[Path], case: Case, segmenter: BaseSegmenter) -> list[tuple[Size, Size]]:
    """Return the sizes (height, width) of each image and of its network input, without other images in the batch."""
    sizes = []
    for path in files:
        size = read_image(path).shape[:2]
        sizes.append((size, network_size(case, segmenter.config, fixed_size(segmenter), size)))
    return sizes


def write_images(folder: Path, size: Size, count: int) -> list[Path]:
    """Write generated images as JPEG files. Two scenes alternate, because generating is slower than segmenting."""
    scenes = [image(size, number).image_HW3 for number in range(min(2, count))]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"picture-{number:03d}.jpg" for number in range(count)]
    for number, path in enumerate(files):
        Image.fromarray(scenes[number % len(scenes)]).save(path, quality=92)
    return files


class Evaluate(Workload):
    """Evaluation of images in memory with the default metrics of the task, as `m2f eval` does."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.segmenter, self.images = segmenter, case.images
        self.parts, self.methods = parts_of(segmenter.model), of_images(segmenter)
        self.task: Task = segmenter.default_task
        size, classes = image_size(case, segmenter.config), len(segmenter.categories)
        scenes = [image(size, number) for number in range(min(2, case.images))]
        chosen = [scenes[number % len(scenes)] for number in range(case.images)]
        self.records = [
            Record(
                f"scene-{number}",
                None,
                partial(annotation_of, each, self.task, classes),
                *each.size,
                read_image=partial(getattr, each, "image_HW3"),
            )
            for number, each in enumerate(chosen)
        ]

    def touch(self) -> None:
        touch(self.segmenter)

    def run(self, stages: Stages) -> None:
        metrics = default_metrics(self.task, self.segmenter.categories)
        if stages.live:
            for record in self.records:
                self._one(record, metrics, stages)
            return
        self.last = evaluate(self.segmenter, self.records, metrics)

    def _one(self, record: Record, metrics: dict[str, Metric], stages: Stages) -> None:
        """Evaluate one image. `evaluate` does several at the same time."""
        with stages("read"):
            annotation, image_HW3 = record.read_annotation(), record.read_image()
        with stages("preprocess"):
            prepared = self.segmenter.prepare(image_HW3)
        [raw] = self.segmenter.infer([prepared])
        with stages("post"):
            result = self.segmenter.finish(raw, self.task, **PUBLISHED)
        with stages("score"):
            for metric in metrics.values():
                metric.update(result, annotation)

    def answer(self) -> dict[str, np.ndarray]:
        return {name: np.array([value]) for name, value in self.last.figures.items()}


def annotation_of(scene: Any, task: Task, classes: int) -> Annotation:
    """Return the annotation of a scene, with labels folded into a number of classes."""
    if task == "semantic":
        return SemanticAnnotation(scene.semantic().labels_HW % classes)
    if task == "panoptic":
        return PanopticAnnotation(
            scene.ids_HW, [AnnotatedSegment(each.id, each.label % classes) for each in scene.segments]
        )
    instances = scene.instances()
    pairs = zip(instances.labels_N.tolist(), instances.rles, strict=True)
    return InstanceAnnotation(scene.size, [AnnotatedObject(label % classes, rle) for label, rle in pairs])


class Load(Workload):
    """Loading of weights from a file to a device. The file is in the system's cache, so the disk is not timed."""

    def __init__(self, case: Case, segmenter: BaseSegmenter):
        self.case, self.images = case, 1
        self.folder = tempfile.TemporaryDirectory(prefix="m2f-bench-")
        self.ref: str | Path | None = case.model
        if case.is_random:
            path = Path(self.folder.name) / "model.safetensors"
            self.ref = save(path, segmenter.model.state_dict(), segmenter.config, segmenter.categories)

    def touch(self) -> None:
        """Skip this, because the first load is a warm-up."""

    def run(self, stages: Stages) -> None:
        open_model(replace(self.case.model_options, ref=self.ref, precision="fp32"))
