"""Boundary IoU, the overlap of the edges of masks (Cheng et al., Boundary IoU, CVPR 2021).

The conventions are in docs/methods/published-behaviour.md#9.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..results.types import SemanticMap
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from ..structures.rle import RLE
from ..structures.run_lengths import renamed, starts_of_runs
from . import Figures, State
from .comparable import check_found, check_labels, check_sizes, semantic_annotation
from .state_io import reading, whole

RATIO = 0.02  # width of the edge in the paper, as a share of the diagonal


def edge_width(size: tuple[int, int], ratio: float = RATIO) -> int:
    """Return the distance in pixels, at least 1, that the edge of a mask reaches inwards from its outline."""
    return max(1, round(ratio * math.hypot(*size)))


def edge_of_rle(rle: RLE, ratio: float = RATIO) -> RLE:
    """Return the edge of a mask; both are compressed COCO run lengths.

    A pixel of the mask is in the edge if a pixel outside of the mask, or outside of the image, is near. Near is at most
    `edge_width` rows and columns away.
    """
    left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
    edge_HW = np.asfortranarray(np.zeros(rle["size"], dtype=np.uint8))
    if width and height:
        window = slice(top, top + height), slice(left, left + width)  # the edge lies inside
        crop_HW = np.ascontiguousarray(coco_mask.decode(rle)[window])
        edge_HW[window] = crop_HW & ~interior(crop_HW, edge_width(rle["size"], ratio))
    edge: RLE = coco_mask.encode(edge_HW)
    return edge


def interior(values_HW: np.ndarray, width: int, outside: int = 0) -> np.ndarray:
    """Return 1 where all pixels at most `width` rows and columns away have the same value, else 0 (H, W, uint8).

    Args:
        values_HW: uint8 or uint16.
        width: distance in pixels.
        outside: the value around the image.
    """
    # A frame of 1 is enough, since OpenCV ignores pixels beyond the border.
    framed = cv2.copyMakeBorder(values_HW, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=outside)
    square = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    same_HW: np.ndarray = cv2.erode(framed, square) == cv2.dilate(framed, square)
    return same_HW[1:-1, 1:-1].astype(np.uint8)


class BoundaryIoU:
    """IoU of the edges of the classes' regions, from sums over all images, in percent.

    The edge of a class is the part of its region that lies near the region's outline or the border of the image. Pixels
    whose annotation is `ignore` count neither as annotation nor as result.

    Figures, in percent:
        boundary_iou: mean over the classes that occur in the annotation.

    Attributes:
        figure: the name of the figure.
        counts_ignored: True if a class that is found on ignored pixels counts as wrong.

    Args:
        ratio: width of an edge as a share of the image's diagonal. An edge is at least 1 pixel wide.
    """

    task = "semantic"
    figure = "boundary_iou"
    counts_ignored = False

    def __init__(self, categories: Categories, *, ratio: float = RATIO):
        self.categories, self.ratio = categories, ratio
        self.pixels_3K = np.zeros(
            (3, len(categories)), dtype=np.int64
        )  # pixels in both edges, in the true edge, in the found edge

    def update(self, result: SemanticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        annotation = semantic_annotation(annotation, self.categories)
        true_HW = self._contiguous(annotation.labels_HW, annotation.ignore)
        found_HW = self._contiguous(result.labels_HW)
        true_edge_HW, found_edge_HW = self._edges(true_HW), self._edges(found_HW)
        if not self.counts_ignored:
            found_edge_HW &= true_HW < len(self.categories)
        both_HW = true_edge_HW & found_edge_HW & (true_HW == found_HW)
        self.pixels_3K += [
            np.bincount(labels_HW[edge_HW], minlength=len(self.categories))
            for labels_HW, edge_HW in ((true_HW, both_HW), (true_HW, true_edge_HW), (found_HW, found_edge_HW))
        ]

    def merge(self, other: BoundaryIoU) -> None:
        self.pixels_3K += other.pixels_3K

    def fresh(self) -> BoundaryIoU:
        return type(self)(self.categories, ratio=self.ratio)

    def state(self) -> State:
        """Return the sums of the classes that occur.

        Returns:
            {"ratio", "classes": [[class number, pixels in both edges, in the true edge, in the found edge], …]}.
        """
        labels = np.flatnonzero(self.pixels_3K.any(axis=0))
        return {"ratio": self.ratio, "classes": np.vstack([labels, self.pixels_3K[:, labels]]).T.tolist()}

    def restore(self, state: State) -> None:
        part = self.fresh()
        with reading(self):
            if state["ratio"] != self.ratio:
                raise ValueError(f"ratio {state['ratio']!r}, not {self.ratio}")
            for label, *pixels in state["classes"]:
                both, true, found = (whole(value, 2**62) for value in pixels)
                part.pixels_3K[:, whole(label, len(self.categories))] += [both, true, found]
        self.merge(part)

    def compute(self) -> Figures:
        both_K, true_K, found_K = self.pixels_3K.astype(np.float64)
        union_K = true_K + found_K - both_K
        iou_K = np.full(len(union_K), np.nan)
        np.divide(100 * both_K, union_K, out=iou_K, where=true_K > 0)
        present = iou_K[true_K > 0]
        mean = float(present.mean()) if present.size else math.nan
        names = (category.name for category in self.categories)
        rows = ({self.figure: value} for value in iou_K.tolist())
        return {self.figure: mean, "per_class": dict(zip(names, rows, strict=True))}

    def _contiguous(self, labels_HW: np.ndarray, ignore: int | None = None) -> np.ndarray:
        """Return class numbers as uint8 or uint16, where pixels without a class have the number of classes."""
        count = len(self.categories)
        values = np.unique(labels_HW.ravel()[starts_of_runs(labels_HW)]).astype(np.int64)
        if ignore is None:
            check_found(values, count)
        else:
            check_labels(values[values != ignore].tolist(), count)
        kept = {value: value for value in values.tolist() if value < count and value != ignore}
        return renamed(labels_HW, kept, count, np.uint8 if count < 256 else np.uint16)

    def _edges(self, labels_HW: np.ndarray) -> np.ndarray:
        count = len(self.categories)
        inside_HW = interior(labels_HW, edge_width(labels_HW.shape, self.ratio), outside=count)
        edges_HW: np.ndarray = (inside_HW == 0) & (labels_HW < count)
        return edges_HW


class MaSS13KBoundaryIoU(BoundaryIoU):
    """Boundary IoU in the convention of MaSS13K.

    Edges lie within 0.1 % of the diagonal, and a class that is found on ignored pixels counts as wrong.

    Figures, in percent:
        boundary_iou_mass13k: mean over the classes that occur in the annotation.
    """

    figure = "boundary_iou_mass13k"
    counts_ignored = True

    def __init__(self, categories: Categories, *, ratio: float = 0.001):
        super().__init__(categories, ratio=ratio)
