"""Stability of the answers of the decoder's layers: agreement of their masks, and of the queries of targets.

MP-Former exists because Mask2Former's layers disagree (its abstract). The mask that a layer attends through is not the
one that it then predicts. A query may serve one target in one layer and another in the next. Both are measured here,
for any model with several supervised layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import LossConfig
from ..data.build_targets import to_target
from ..data.records import Record
from ..errors import ConfigError, DataError, M2FError
from ..inference.base import BaseSegmenter
from ..inference.mask_rendering import Size
from ..loss import Matcher, Pairs
from ..loss.mask_sampling import make_mask_sampling
from ..structures import Task
from ..structures.predictions import Prediction
from ..structures.targets import Target
from .evaluate import EvalFailure, EvalProgress, annotation_for

# The loss of Mask2Former (docs/methods/published-behaviour.md#4-1), for a configuration without training settings.
PUBLISHED_LOSS = LossConfig(
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.1,
    num_points=12544,
    oversample_ratio=3.0,
    importance_ratio=0.75,
)


@dataclass
class QueryDiagnosis:
    """Counts for predictions 0 (the queries before any layer) to L (the answer). Parts can be merged.

    Attributes:
        same_L: number of targets that have in each layer the query of the last layer.
        iou_L: sums of the overlap of each layer's mask with that of the next layer, over the queries of the last
            layer's targets. The overlap is the IoU of probabilities of at least one half, at stride 4.
        compared_L: number of overlaps in each sum. Where both masks are empty there is nothing to compare.
        same_in_all: number of targets that have that query in all layers.
        targets: number of targets that have a query in the last layer.
        images: number of images.
        failures: images that could not be used.
    """

    same_L: np.ndarray
    iou_L: np.ndarray
    compared_L: np.ndarray
    same_in_all: int = 0
    targets: int = 0
    images: int = 0
    failures: list[EvalFailure] = field(default_factory=list)

    @classmethod
    def empty(cls, layers: int) -> QueryDiagnosis:
        """Return the counts of `layers` predictions, all 0."""
        return cls(np.zeros(layers, int), np.zeros(layers - 1), np.zeros(layers - 1, int))

    @property
    def utilisation(self) -> list[float]:
        """Percent of targets that a layer matches to the same query as the last layer does; NaN without targets."""
        return _percent(self.same_L, np.full(len(self.same_L), self.targets))

    @property
    def matched_in_all_layers(self) -> float:
        """Percent of the targets that have one and the same query in all layers; NaN without targets."""
        return _percent(np.array([self.same_in_all]), np.array([self.targets]))[0]

    @property
    def mask_consistency(self) -> list[float]:
        """Mean IoU, in percent, between the masks of neighbouring layers, over the queries of targets."""
        return _percent(self.iou_L, self.compared_L)

    def merge(self, other: QueryDiagnosis) -> None:
        """Add the counts of other images."""
        self.same_L, self.iou_L = self.same_L + other.same_L, self.iou_L + other.iou_L
        self.compared_L = self.compared_L + other.compared_L
        self.same_in_all += other.same_in_all
        self.targets += other.targets
        self.images += other.images
        self.failures += other.failures

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in which NaN is None."""
        figures = {"utilisation": self.utilisation, "mask_consistency": self.mask_consistency}
        plain = {key: [None if value != value else value for value in values] for key, values in figures.items()}
        everywhere = self.matched_in_all_layers
        return {
            **plain,
            "matched_in_all_layers": None if everywhere != everywhere else everywhere,
            "targets": self.targets,
            "images": self.images,
            "failures": [{"name": each.name, "message": each.message} for each in self.failures],
        }


COLUMNS = ("layer", "mask IoU with the next layer", "targets with their final query")


def rows(diagnosis: QueryDiagnosis) -> list[tuple[str, str, str]]:
    """Return a table with the columns `COLUMNS`, one row for each prediction and one for all."""
    consistency = [*diagnosis.mask_consistency, float("nan")]
    layers = [
        (f"{i}" if i else "0 (queries alone)", _shown(iou), _shown(same))
        for i, (iou, same) in enumerate(zip(consistency, diagnosis.utilisation, strict=True))
    ]
    mean = float(np.mean(diagnosis.mask_consistency))
    return [*layers, ("all", _shown(mean), _shown(diagnosis.matched_in_all_layers))]


def diagnose_queries(
    segmenter: BaseSegmenter,
    records: Iterable[Record],
    *,
    task: Task | None = None,
    on_progress: Callable[[EvalProgress], None] | None = None,
    seed: int = 0,
) -> QueryDiagnosis:
    """Match every layer's queries with the annotated targets, as in training, and count.

    Args:
        segmenter: a `Segmenter` around a network (an exported file answers with its last layer only).
        records: annotated images with the classes of the model.
        task: the task that targets are made for; by default the model's own.
        on_progress: receives a record after each image.
        seed: seed of the points at which masks are compared when they are matched. The points are the same for all
            layers, so that only the layers differ, and the same every time.

    Raises:
        ConfigError: the model has one prediction only or does not match queries, or annotations do not fit the task.
        M2FError: no image could be used.
    """
    task = segmenter.check_task(task or segmenter.default_task)
    if segmenter.model is None:
        raise ConfigError(
            f"{segmenter.source} is an exported file, which answers with its last layer only.",
            hint="Diagnose the model that it was made from.",
        )
    matcher = _matcher(segmenter, seed)
    diagnosis: QueryDiagnosis | None = None
    failures: list[EvalFailure] = []
    for number, record in enumerate(records, 1):
        message = None
        try:
            part = _of_image(segmenter, record, task, matcher)
        except ConfigError:
            raise
        except M2FError as error:
            message = str(error)
            failures.append(EvalFailure(record.name, message))
        else:
            diagnosis = _added(diagnosis, part)
        if on_progress is not None:
            on_progress(EvalProgress(record.name, number, message))
    if diagnosis is None:
        first = f" The first, {failures[0].name}: {failures[0].message}" if failures else ""
        raise DataError(f"There is no image whose queries could be diagnosed.{first}")
    diagnosis.failures = failures
    return diagnosis


def count(prediction: Prediction, target: Target, pairs: Pairs, size: Size) -> QueryDiagnosis:
    """Count the stability of the queries of one image.

    Args:
        prediction: the prediction of a batch of one.
        target: the target of the image.
        pairs: the pairs of every layer, as the matcher gives them.
        size: (height, width) at stride 4 of the part without padding.
    """
    L = len(prediction.layers)
    query_LN = torch.full((L, len(target)), -1, device=pairs.queries_LM.device)
    query_LN.scatter_(1, pairs.targets_LM, pairs.queries_LM)
    same_LN = (query_LN == query_LN[-1]) & (query_LN[-1] >= 0)
    queries_M = pairs.queries_LM[-1]
    diagnosis = QueryDiagnosis.empty(L)
    diagnosis.same_L = same_LN.sum(1).cpu().numpy()
    diagnosis.same_in_all = int(same_LN.all(0).sum())
    diagnosis.targets, diagnosis.images = len(queries_M), 1
    before = None
    for i in range(L):
        masks = prediction.render(image=0, queries=queries_M, layer=i)[:, : size[0], : size[1]].flatten(1) >= 0
        if before is not None:
            union = (masks | before).sum(1)
            overlap = (masks & before).sum(1)[union > 0] / union[union > 0]
            diagnosis.iou_L[i - 1], diagnosis.compared_L[i - 1] = float(overlap.double().sum()), len(overlap)
        before = masks
    return diagnosis


@torch.inference_mode()
def _of_image(segmenter: BaseSegmenter, record: Record, task: Task, matcher: Matcher) -> QueryDiagnosis | None:
    annotation = annotation_for(task, record.read_annotation())
    if annotation is None:
        return None
    prepared = segmenter.prepare(record.read_image())
    valid = tuple(prepared.pixels_CHW.shape[-2:])
    target = _resized(to_target(annotation, task, segmenter.categories), valid).to(segmenter.device)
    images_1CHW = segmenter.collate([prepared.pixels_CHW])
    prediction = segmenter.model(images_1CHW)
    if len(prediction.layers) < 2:
        raise ConfigError(f"The model {segmenter.source} answers once, so it has no layers that could disagree.")
    padded = tuple(images_1CHW.shape[-2:])
    [pairs] = matcher(prediction, [target], padded).pairs
    fine = prediction.features().shape[-2:]
    size = tuple(-(-edge * cells // whole) for edge, cells, whole in zip(valid, fine, padded, strict=True))
    return count(prediction, target, pairs, size)


def _matcher(segmenter: BaseSegmenter, seed: int) -> Matcher:
    train = segmenter.config.train
    loss = PUBLISHED_LOSS if train is None else train.loss
    if loss.masks == "per_pixel":
        raise ConfigError(f"The model {segmenter.source} classifies pixels: it matches no queries with targets.")
    generator = torch.Generator().manual_seed(seed)

    def same_for_all_layers(shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.rand((1, *shape[1:]), generator=generator).to(device).expand(shape)

    sampling = make_mask_sampling(loss, same_for_all_layers)
    return Matcher(loss.class_weight, loss.mask_weight, loss.dice_weight, sampling, loss.mask_loss)


def _resized(target: Target, size: Size) -> Target:
    """Return the target at the network's input size, where each pixel is taken from the nearest one."""
    if target.size == size:
        return target

    def nearest(planes_NHW: Tensor) -> Tensor:
        return F.interpolate(planes_NHW[:, None], size=size, mode="nearest-exact")[:, 0]

    if target.masks_NHW is not None:
        return Target(target.labels_N, masks_NHW=nearest(target.masks_NHW.to(torch.uint8)))
    return Target(target.labels_N, owner_HW=nearest(target.owner_HW[None].float())[0].to(torch.int32))


def _added(total: QueryDiagnosis | None, part: QueryDiagnosis | None) -> QueryDiagnosis | None:
    if total is None or part is None:
        return total or part
    total.merge(part)
    return total


def _percent(parts: np.ndarray, of: np.ndarray) -> list[float]:
    return [100.0 * part / whole if whole else float("nan") for part, whole in zip(parts, of, strict=True)]


def _shown(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"
