"""Is an exported file still the model? Both see the same images; logits and final maps are compared.

Masks are thresholded inside the network (docs/methods/published-behaviour.md#3-5): a logit within rounding of zero may
open or close one cell of an attention mask and move one query, in any two correct implementations. So a small share of
queries may differ by more than rounding, and the final maps are compared too.
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

LARGEST_EDGE = 480  # of a comparison's short edge: larger images say no more and take minutes


@dataclass(frozen=True)
class Tolerance:
    """How much an export may differ.

    logits: largest difference, as a share of the range (largest minus smallest) of the model's own.
    moved: share of queries that may differ more than that.
    pixels: share of pixels that may differ in the final maps.
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
    """What an export of this precision may differ by when nobody says otherwise."""
    return _TOLERANCES[precision]


def scaled_tolerance(precision: str, logits: float) -> Tolerance:
    """That of a precision, with another limit for logits; the others grow with it and do not shrink."""
    usual = _TOLERANCES[precision]
    factor = max(1.0, logits / usual.logits)
    return Tolerance(logits, min(1.0, usual.moved * factor), min(1.0, usual.pixels * factor))


@dataclass(frozen=True)
class VerifyBatch:
    """A batch of images that both see. kind: "picture" (the user's), "scene" (generated) or "random" (noise)."""

    kind: str
    batch: list[Prepared]

    @property
    def size(self) -> Size:
        return self.batch[0].size


@dataclass(frozen=True)
class LogitDifference:
    """Of two tensors of logits: largest and mean absolute difference, and the range of the model's own."""

    largest: float
    mean: float
    range: float

    @classmethod
    def of(cls, expected: Tensor, found: Tensor) -> LogitDifference:
        delta = (expected - found).abs()
        return cls(delta.max().item(), delta.mean().item(), (expected.max() - expected.min()).item())

    def to_dict(self) -> dict[str, float]:
        share = self.largest / self.range if self.range else self.largest
        return {"largest": self.largest, "mean": self.mean, "range": self.range, "largest_share": share}


@dataclass(frozen=True)
class ExportComparison:
    """One case.

    moved: share of the queries whose class or mask logits differ by more than the tolerance.
    maps: task → share of differing pixels after the same post-processing.
    inside: the same for the post-processing inside the file, where it has one.
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
        """All figures by a flat name, such as "mask_logits.largest" or "maps.panoptic"."""
        logits = {"class_logits": self.class_logits.to_dict(), "mask_logits": self.mask_logits.to_dict()}
        found = {f"{kind}.{name}": value for kind, each in logits.items() for name, value in each.items()}
        found |= {f"maps.{task}": share for task, share in self.maps.items()}
        found |= {f"inside.{task}": share for task, share in self.inside.items()}
        return {**found, "moved": self.moved}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "size": list(self.size), "batch": self.batch, **self.figures()}


# --- what is compared -------------------------------------------------------------------------------------------------


def default_cases(
    model: Segmenter, exported: Segmenter, images: Sequence[Path] = (), seed: int = 0
) -> list[VerifyBatch]:
    """Noise, and real images (generated scenes where there are none), in sizes and batches that the file takes:
    three of each kind at least.

    All are of exactly the size of a network input, so that no padding makes a difference of its own.
    """
    described = exported.description if isinstance(exported, EngineSegmenter) else None
    sizes = _sizes(model, exported.divisor)
    if described is not None and described.size:
        sizes = [described.size] * len(sizes)
    fixed = described.batch if described is not None else None
    rng = np.random.default_rng(seed)
    found: list[VerifyBatch] = []
    for i, size in enumerate(sizes):
        count = fixed or 1 + i % 2
        real = [
            _image(model, size, images[(i + j) % len(images)]) if images else scene(seed + i + j, *size).image_HW3
            for j in range(count)
        ]
        found.append(VerifyBatch("picture" if images else "scene", [prepared_as_is(each) for each in real]))
        found.append(VerifyBatch("random", [prepared_as_is(_noise(rng, size)) for _ in range(count)]))
    return found


def _sizes(model: Segmenter, multiple: int) -> list[Size]:
    resize = model.config.test.resize
    edge = min(LARGEST_EDGE, resize.short_edge or (min(resize.fixed) if resize.fixed else LARGEST_EDGE))
    shapes = [(edge, edge * 4 / 3), (edge * 4 / 3, edge), (edge * 3 / 4, edge * 3 / 4)]
    return [(_round(height, multiple), _round(width, multiple)) for height, width in shapes]


def _round(edge: float, multiple: int) -> int:
    return max(2, round(edge / multiple)) * multiple


def _image(model: Segmenter, size: Size, path: Path) -> np.ndarray:
    return RESAMPLERS[model.config.test.resize.resampling](read_image(path), (size[1], size[0]))


def _noise(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Patches of random colours under noise: noise alone has no regions for queries to find."""
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
    """Run both on every case. `exported` is anything with the methods of a `Segmenter`."""
    found = []
    for case in cases:
        if on_case is not None:
            on_case(f"Comparing: {case.kind}, {len(case.batch)} x {case.size[0]} x {case.size[1]}")
        found.append(compare_case(model, exported, case, tolerance))
    return found


def compare_case(model: Segmenter, exported: Segmenter, case: VerifyBatch, tolerance: Tolerance) -> ExportComparison:
    expected, found = model.infer(case.batch), exported.infer(case.batch)
    classes = [torch.stack([raw.class_logits_QK.cpu() for raw in raws]) for raws in (expected, found)]
    masks = [torch.stack([stride4(raw.masks).cpu() for raw in raws]) for raws in (expected, found)]
    by_task = {task: _differing_maps(model, exported, expected, found, task) for task in model.tasks}
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
    """(Q, H/4, W/4): mask logits as the network gives them."""
    return masks.coarse(torch.arange(len(masks.embeds_QC), device=masks.device)).logits_QHW


def _moved(classes: Sequence[Tensor], masks: Sequence[Tensor], tolerance: float) -> float:
    far = torch.zeros(classes[0].shape[:2], dtype=torch.bool)
    for expected, found in (classes, [each.flatten(2) for each in masks]):
        far |= (expected - found).abs().amax(-1) > tolerance * (expected.max() - expected.min())
    return far.float().mean().item()


def _differing_maps(
    model: Segmenter, exported: Segmenter, expected: Sequence[RawOutput], found: Sequence[RawOutput], task: Task
) -> float:
    pairs = zip(expected, found, strict=True)
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
    """Instances that people look at, as `Segmenter.finish` chooses them by default; other results as they are."""
    from ..inference.segmenter import DEFAULT_SCORE_THRESHOLD

    if not isinstance(result, Instances):
        return result
    kept = np.flatnonzero(result.scores_N >= DEFAULT_SCORE_THRESHOLD)
    return Instances(
        result.size, result.categories, result.labels_N[kept], result.scores_N[kept], [result.rles[i] for i in kept]
    )


def differing(expected: Result, found: Result) -> float:
    """The share of pixels that have another class, or belong to another region, in one result than in the other.

    Regions are matched by their overlap: what they are called does not matter. Of instances, each pixel counts for the
    best one there.
    """
    (labels_a, ids_a), (labels_b, ids_b) = painted(expected), painted(found)
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
    """Region → class, and the region of each pixel (H, W); region 0 is nothing, of class -1."""
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
    """
    Raises:
        ExportError: a figure is out of tolerance (or not a number); the message has it.
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
