"""Comparison of an exported file with its model: logits and final maps on the same images.

Masks are thresholded inside the network (docs/methods/published-behaviour.md#3-5). A logit within rounding of zero may
open or close one cell of an attention mask and change one query, in any two correct implementations. So a small share
of queries may differ by more than rounding, and the final maps are compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.synthetic.scenes import scene
from ..errors import ExportError
from ..inference.base import Prepared, RawOutput
from ..inference.engines.base import EngineSegmenter
from ..inference.mask_rendering import MaskLogits, Size
from ..inference.preprocess import RESAMPLERS
from ..inference.segmenter import Segmenter
from ..results.types import Instances, PanopticMap, Result
from ..structures import Task
from ..structures.images import read_image

LARGEST_EDGE = 480  # pixels of the short edge of compared images: larger ones take long and show no more


@dataclass(frozen=True)
class Tolerance:
    """Largest differences of an export from its model.

    Attributes:
        logits: largest difference of logits, as a share of the range (largest minus smallest) of the model's logits.
        moved: share of queries that may differ by more than that, 0 to 1.
        pixels: share of pixels that may differ in the final maps, 0 to 1.
    """

    logits: float
    moved: float
    pixels: float


_TOLERANCES = {
    "fp32": Tolerance(logits=1e-3, moved=0.02, pixels=1e-3),
    "fp16": Tolerance(logits=3e-2, moved=0.1, pixels=2e-2),
    "int8": Tolerance(logits=2e-1, moved=0.2, pixels=1e-1),
}


def tolerance_for(precision: str) -> Tolerance:
    """Return the default tolerance of a precision."""
    return _TOLERANCES[precision]


def scaled_tolerance(precision: str, logits: float) -> Tolerance:
    """Return the tolerance of a precision with another limit of logits. Other limits grow with it or stay."""
    usual = _TOLERANCES[precision]
    factor = max(1.0, logits / usual.logits)
    return Tolerance(logits, min(1.0, usual.moved * factor), min(1.0, usual.pixels * factor))


@dataclass(frozen=True)
class VerifyBatch:
    """Batch of images that the model and the file are compared on.

    Attributes:
        kind: "picture" (image of the user), "scene" (generated) or "random" (noise).
        batch: images of one size.
    """

    kind: str
    batch: list[Prepared]

    @property
    def size(self) -> Size:
        return self.batch[0].size


@dataclass(frozen=True)
class LogitDifference:
    """Difference of two tensors of logits.

    Attributes:
        largest: largest absolute difference.
        mean: mean absolute difference.
        range: largest minus smallest logit of the model.
    """

    largest: float
    mean: float
    range: float

    @classmethod
    def of(cls, expected: Tensor, actual: Tensor) -> LogitDifference:
        delta = (expected - actual).abs()
        return cls(delta.max().item(), delta.mean().item(), (expected.max() - expected.min()).item())

    def to_dict(self) -> dict[str, float]:
        share = self.largest / self.range if self.range else self.largest
        return {"largest": self.largest, "mean": self.mean, "range": self.range, "largest_share": share}


@dataclass(frozen=True)
class ExportComparison:
    """Differences on one batch of images.

    Attributes:
        kind: kind of the images, as in `VerifyBatch`.
        size: (height, width) of the images.
        batch: number of images.
        class_logits: difference of class logits.
        mask_logits: difference of mask logits.
        moved: share of the queries whose class or mask logits differ by more than the tolerance.
        maps: task → share of differing pixels after the same post-processing.
        inside: task → share of differing pixels after the post-processing in the file, where it has one.
    """

    kind: str
    size: Size
    batch: int
    class_logits: LogitDifference
    mask_logits: LogitDifference
    moved: float
    maps: dict[Task, float]
    inside: dict[Task, float]

    def figures(self) -> dict[str, float]:
        """Return all figures by flat names, such as "mask_logits.largest" or "maps.panoptic"."""
        logits = {"class_logits": self.class_logits.to_dict(), "mask_logits": self.mask_logits.to_dict()}
        figures = {f"{kind}.{name}": value for kind, each in logits.items() for name, value in each.items()}
        figures |= {f"maps.{task}": share for task, share in self.maps.items()}
        figures |= {f"inside.{task}": share for task, share in self.inside.items()}
        return {**figures, "moved": self.moved}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "size": list(self.size), "batch": self.batch, **self.figures()}


# --- what is compared -------------------------------------------------------------------------------------------------


def default_cases(
    model: Segmenter, exported: Segmenter, images: Sequence[Path] = (), seed: int = 0
) -> list[VerifyBatch]:
    """Return batches of noise, and of images or generated scenes, in sizes and numbers that the file takes.

    There are three batches of each kind. All have the size of a network input, so that padding causes no differences.

    Args:
        model: the model.
        exported: the file.
        images: images of the user; generated scenes where there are none.
        seed: seed of noise and scenes.
    """
    described = exported.description if isinstance(exported, EngineSegmenter) else None
    sizes = _sizes(model, exported.divisor)
    fixed = getattr(exported, "only_size", None) if described is None else described.size
    if fixed:
        sizes = [fixed] * len(sizes)
    fixed_batch = described.batch if described is not None else None
    rng = np.random.default_rng(seed)
    cases: list[VerifyBatch] = []
    for i, size in enumerate(sizes):
        count = fixed_batch or 1 + i % 2
        real = [
            _image(model, size, images[(i + j) % len(images)]) if images else scene(seed + i + j, *size).image_HW3
            for j in range(count)
        ]
        cases.append(VerifyBatch("picture" if images else "scene", [prepared_as_is(each) for each in real]))
        cases.append(VerifyBatch("random", [prepared_as_is(_noise(rng, size)) for _ in range(count)]))
    return cases


def _sizes(model: Segmenter, multiple: int) -> list[Size]:
    resize = model.config.test.resize
    tested = resize.short_edge or resize.fit or (min(resize.fixed) if resize.fixed else LARGEST_EDGE)
    edge = min(LARGEST_EDGE, tested)
    shapes = [(edge, edge * 4 / 3), (edge * 4 / 3, edge), (edge * 3 / 4, edge * 3 / 4)]
    return [(_round(height, multiple), _round(width, multiple)) for height, width in shapes]


def _round(edge: float, multiple: int) -> int:
    return max(2, round(edge / multiple)) * multiple


def _image(model: Segmenter, size: Size, path: Path) -> np.ndarray:
    return RESAMPLERS[model.config.test.resize.resampling](read_image(path), (size[1], size[0]))


def _noise(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Return patches of random colours under noise, because noise alone has no regions."""
    patches = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    return (patches + rng.normal(0, 30, patches.shape)).clip(0, 255).astype(np.uint8)


def prepared_as_is(image_HWC: np.ndarray) -> Prepared:
    return Prepared(torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1), image_HWC.shape[:2])


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(
    model: Segmenter,
    exported: Segmenter,
    cases: Sequence[VerifyBatch],
    tolerance: Tolerance,
    on_case: Callable[[str], None] | None = None,
) -> list[ExportComparison]:
    """Run the model and the file on every case and return their differences."""
    comparisons = []
    for case in cases:
        if on_case is not None:
            on_case(f"Comparing: {case.kind}, {len(case.batch)} x {case.size[0]} x {case.size[1]}")
        comparisons.append(compare_case(model, exported, case, tolerance))
    return comparisons


def compare_case(model: Segmenter, exported: Segmenter, case: VerifyBatch, tolerance: Tolerance) -> ExportComparison:
    expected, actual = model.infer(case.batch), exported.infer(case.batch)
    classes = [torch.stack([raw.class_logits_QK.cpu() for raw in raws]) for raws in (expected, actual)]
    masks = [torch.stack([stride4(raw.masks).cpu() for raw in raws]) for raws in (expected, actual)]
    by_task = {task: _differing_maps(model, exported, expected, actual, task) for task in model.tasks}
    return ExportComparison(
        case.kind,
        case.size,
        len(case.batch),
        LogitDifference.of(*classes),
        LogitDifference.of(*masks),
        _moved(classes, masks, tolerance.logits),
        by_task,
        _inside(model, exported, case, expected),
    )


def stride4(masks: MaskLogits) -> Tensor:
    """Return mask logits (Q, H/4, W/4), as the network computes them."""
    return masks.coarse(torch.arange(len(masks.embeds_QC), device=masks.device)).logits_QHW


def _moved(classes: Sequence[Tensor], masks: Sequence[Tensor], tolerance: float) -> float:
    far = torch.zeros(classes[0].shape[:2], dtype=torch.bool)
    for expected, actual in (classes, [each.flatten(2) for each in masks]):
        far |= (expected - actual).abs().amax(-1) > tolerance * (expected.max() - expected.min())
    return far.float().mean().item()


def _differing_maps(
    model: Segmenter, exported: Segmenter, expected: Sequence[RawOutput], actual: Sequence[RawOutput], task: Task
) -> float:
    pairs = zip(expected, actual, strict=True)
    shares = [differing(model.finish(a, task), exported.finish(b, task)) for a, b in pairs]
    return sum(shares) / len(shares)


def _inside(
    model: Segmenter, exported: Segmenter, case: VerifyBatch, expected: Sequence[RawOutput]
) -> dict[Task, float]:
    task = exported.description.postprocess if isinstance(exported, EngineSegmenter) else None
    if task is None:
        return {}
    answers = zip(expected, exported.answers(case.batch), strict=True)
    shares = [differing(model.finish(raw, task), shown(answer)) for raw, answer in answers]
    return {task: sum(shares) / len(shares)}


def shown(result: Result) -> Result:
    """Return instances above the default score threshold of `Segmenter.finish`, and other results unchanged."""
    from ..inference.segmenter import DEFAULT_SCORE_THRESHOLD

    if not isinstance(result, Instances):
        return result
    kept = np.flatnonzero(result.scores_N >= DEFAULT_SCORE_THRESHOLD)
    return Instances(
        result.size, result.categories, result.labels_N[kept], result.scores_N[kept], [result.rles[i] for i in kept]
    )


def differing(expected: Result, actual: Result) -> float:
    """Return the share of pixels whose class or region differs between two results.

    Regions are matched by their overlap, not by their ids. A pixel of several instances counts for the best one.
    """
    (labels_a, ids_a), (labels_b, ids_b) = painted(expected), painted(actual)
    pairs, counts = np.unique(np.stack([ids_a.ravel(), ids_b.ravel()]), axis=1, return_counts=True)
    agreed, taken_a, taken_b = 0, set(), set()
    for place in np.argsort(-counts, kind="stable"):
        a, b = pairs[:, place].tolist()
        if a not in taken_a and b not in taken_b and labels_a[a] == labels_b[b]:
            taken_a.add(a)
            taken_b.add(b)
            agreed += int(counts[place])
    return 1 - agreed / ids_a.size


def painted(result: Result) -> tuple[dict[int, int], np.ndarray]:
    """Return a map from region to class, and the region of each pixel (H, W); region 0 means none, of class -1."""
    if isinstance(result, PanopticMap):
        return {0: -1, **{segment.id: segment.label for segment in result.segments}}, result.ids_HW
    if isinstance(result, Instances):
        ids_HW = np.zeros(result.size, np.int32)
        for number, mask_HW in _worst_first(result):
            ids_HW[mask_HW] = number
        return {0: -1, **{i + 1: int(label) for i, label in enumerate(result.labels_N)}}, ids_HW
    labels_HW = result.labels_HW.astype(np.int32)
    return {int(label): int(label) for label in np.unique(labels_HW)}, labels_HW


def _worst_first(result: Instances) -> Iterator[tuple[int, np.ndarray]]:
    masks_NHW = result.masks_NHW()
    return ((i + 1, masks_NHW[i]) for i in reversed(range(len(result))))


def check(comparisons: Sequence[ExportComparison], tolerance: Tolerance, name: str) -> None:
    """Refuse a file that differs from its model by more than the tolerance.

    Raises:
        ExportError: a figure is out of tolerance, or not a number. The message has the figure.
    """
    for each in comparisons:
        shares = {f"of the pixels of the {task} map": share for task, share in {**each.maps, **each.inside}.items()}
        shares["of the queries"] = each.moved
        for what, share in shares.items():
            limit = tolerance.moved if what == "of the queries" else tolerance.pixels
            if not share <= limit:
                raise ExportError(
                    f"{name} is not the model: {share:.2%} {what} differ (at most {limit:.2%} may), on a {each.kind} "
                    f"input of {each.batch} x {each.size[0]} x {each.size[1]}; mask logits differ by up to "
                    f"{each.mask_logits.largest:.3g} of {each.mask_logits.range:.3g}.",
                    hint="Nothing was kept. Another --opset or --precision may do; else please report it.",
                )
