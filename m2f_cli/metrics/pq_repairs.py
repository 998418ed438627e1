"""Errors of the segments of one image, and the counts of PQ if they were repaired.

The errors are in the spirit of TIDE (Bolya et al., A General Toolbox for Identifying Object Detection Errors, ECCV
2020), for panoptic segments. IoU is that of PQ: the union leaves out the part of the found segment that lies on void. T
are the true segments without crowds, F the found segments that have pixels. Found segments that PQ excuses, since they
lie on void or on a crowd of their class, take no part. Each true and each found segment without a hit has exactly one
error, the first of these that explains it:

1. class     True and found segment have IoU > 0.5 and different classes. Repaired: the found one gets the true class
             and is a hit of this IoU.
2. split     Found segments of the class of a true one, each with more than half of its pixels (void left out) inside
             it. Together, and with its hit if it has one, they are two or more and have IoU > 0.5 with it. Repaired:
             the pieces are joined to one hit. A true segment that has a hit keeps it, with a higher IoU.
3. merged    The same with the roles exchanged: true segments of one class, each more than half inside one found
             segment. With its hit they are two or more, and together they have IoU > 0.5 with it. Repaired: the found
             one is cut along the true ones, which gives each a hit of IoU = (its pixels inside) / (its pixels). The
             rest is dropped.
4. boundary  True and found segment are of one class and 0.1 < IoU <= 0.5; the best pairs first. Repaired: a hit of
             IoU 1. The IoU that hits lack is a loss by boundaries too, and is repaired along with these.
5. missed    Any other true segment. Repaired: a hit of IoU 1.
6. spurious  Any other found segment. Repaired: it is gone.

Ties are resolved by the order of ids. Repairs of one kind do not touch each other's segments, so that all repairs of a
kind can be made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from ..results.types import PanopticMap
from ..structures.annotations import PanopticAnnotation
from ..structures.run_lengths import pair_counts
from .comparable import check_ids, segments_by_id
from .panoptic_quality import VOID

KINDS = ("class", "split", "merged", "boundary", "missed", "spurious")
SIZES = ("small", "medium", "large")
BOUNDS = (32**2, 96**2)  # pixels: areas from which a segment is medium, and large (COCO)
NEAR = 0.1  # least IoU of a pair that a better boundary would make a hit (TIDE's background threshold)


class Change(NamedTuple):
    """Change that a repair makes to the sums of PQ of one class.

    Attributes:
        label: class number.
        size: index in SIZES of the segment in question.
        iou: change of the sum of the IoUs of hits.
        hits: change of the number of hits.
        wrong: change of the number of false positives.
        missed: change of the number of false negatives.
    """

    label: int
    size: int
    iou: float
    hits: int
    wrong: int
    missed: int


Finder: TypeAlias = Callable[["ComparedImage", np.ndarray, np.ndarray], Iterator[Change]]


@dataclass
class ComparedImage:
    """Segments of one image and their overlaps: T true segments without crowds, F found segments that have pixels.

    Attributes:
        ids_T: ids of the true segments, ascending.
        ids_F: ids of the found segments, ascending.
        labels_T: class numbers of the true segments.
        labels_F: class numbers of the found segments.
        sizes_T: indices in SIZES of the true segments.
        sizes_F: indices in SIZES of the found segments.
        areas_T: pixels of the true segments.
        areas_F: pixels of the found segments, without those on void.
        overlap_TF: pixels that both have.
        iou_TF: IoU of each pair.
        same_TF: True where both are of one class.
        hit_TF: True where the pair is a hit.
        excused_F: True where PQ does not count the found segment, although it hits nothing.
    """

    ids_T: np.ndarray
    ids_F: np.ndarray
    labels_T: np.ndarray
    labels_F: np.ndarray
    sizes_T: np.ndarray
    sizes_F: np.ndarray
    areas_T: np.ndarray
    areas_F: np.ndarray
    overlap_TF: np.ndarray
    iou_TF: np.ndarray
    same_TF: np.ndarray
    hit_TF: np.ndarray
    excused_F: np.ndarray

    @property
    def is_hit_T(self) -> np.ndarray:
        return np.asarray(self.hit_TF.any(axis=1))

    @property
    def is_hit_F(self) -> np.ndarray:
        return np.asarray(self.hit_TF.any(axis=0))

    @property
    def counted_F(self) -> np.ndarray:
        return ~self.excused_F

    def joined_iou(self, true: list[int], found: list[int]) -> float:
        """Return the IoU of some true and some found segments, each group taken as one."""
        overlap = self.overlap_TF[np.ix_(true, found)].sum()
        return float(overlap / (self.areas_T[true].sum() + self.areas_F[found].sum() - overlap))


def compare_segments(result: PanopticMap, annotation: PanopticAnnotation, num_classes: int) -> ComparedImage:
    """Compare the segments of a result with the true ones.

    Raises:
        DataError: a class number does not exist, two segments have one id, or the result's map has ids without a
            segment.
    """
    true, found = segments_by_id(annotation, result, num_classes)
    first, second, counts = pair_counts(annotation.ids_HW, result.ids_HW)
    true_ids, row = np.unique(first, return_inverse=True)
    found_ids, column = np.unique(second, return_inverse=True)
    shared = np.zeros((len(true_ids) + 1, len(found_ids)), np.int64)  # the last row stands for ids that the map lacks
    shared[row, column] = counts
    row_of = {i: row for row, i in enumerate(true_ids.tolist())}
    ids_T = sorted(i for i, segment in true.items() if not segment.iscrowd)
    shared_T = shared[[row_of.get(i, -1) for i in ids_T]]
    check_ids(found_ids.tolist(), found)
    is_segment = found_ids != VOID
    labels_F = np.array([found[i].label for i in found_ids[is_segment].tolist()], np.int64)
    crowds = {segment.label: i for i, segment in true.items() if segment.iscrowd}
    on_crowd_F = np.array([row_of.get(crowds.get(label), -1) for label in labels_F.tolist()], np.int64)
    overlap_UF = shared[:, is_segment]
    void_F, total_F = overlap_UF[row_of.get(VOID, -1)], overlap_UF.sum(0)
    excused_F = 2 * (void_F + overlap_UF[on_crowd_F, np.arange(len(labels_F))]) > total_F
    labels_T = np.array([true[i].label for i in ids_T], np.int64)
    areas_T, areas_F, overlap_TF = shared_T.sum(1), total_F - void_F, shared_T[:, is_segment]
    iou_TF = overlap_TF / np.maximum(areas_T[:, None] + areas_F - overlap_TF, 1)
    same_TF = labels_T[:, None] == labels_F
    hit_TF = same_TF & (iou_TF > 0.5)
    return ComparedImage(
        ids_T=np.array(ids_T, np.int64),
        ids_F=found_ids[is_segment],
        labels_T=labels_T,
        labels_F=labels_F,
        sizes_T=np.searchsorted(BOUNDS, areas_T, side="right"),
        sizes_F=np.searchsorted(BOUNDS, total_F, side="right"),
        areas_T=areas_T,
        areas_F=areas_F,
        overlap_TF=overlap_TF,
        iou_TF=iou_TF,
        same_TF=same_TF,
        hit_TF=hit_TF,
        excused_F=excused_F & ~hit_TF.any(0),
    )


def as_found(image: ComparedImage) -> list[Change]:
    """Return the counts of PQ in the image as it is."""
    p = image
    hits = [_of_true(p, t, p.iou_TF[t, f], 1, 0, 0) for t, f in np.argwhere(p.hit_TF)]
    missed = [_of_true(p, t, 0, 0, 0, 1) for t in np.flatnonzero(~p.is_hit_T).tolist()]
    wrong = [_of_found(p, f, 1) for f in np.flatnonzero(~p.is_hit_F & p.counted_F).tolist()]
    return hits + missed + wrong


def repairs(image: ComparedImage) -> dict[str, list[Change]]:
    """Return the changes that repairing each kind of error of KINDS makes."""
    free_T = ~image.is_hit_T
    free_F = ~image.is_hit_F & image.counted_F
    # The order matters: each finder removes the segments that it explains from those that are free.
    return {kind: list(find(image, free_T, free_F)) for kind, find in _finders().items()}


def kinds_of(image: ComparedImage) -> tuple[list[str | None], list[str | None]]:
    """Return the error of KINDS that each true and each found segment has; None where it has none."""
    free_T = ~image.is_hit_T
    free_F = ~image.is_hit_F & image.counted_F
    kinds_T: list[str | None] = [None] * len(free_T)
    kinds_F: list[str | None] = [None] * len(free_F)
    for kind, find in _finders().items():
        before_T, before_F = free_T.copy(), free_F.copy()
        for _ in find(image, free_T, free_F):
            pass
        # The last two explain what is left, and remove nothing.
        named_T = before_T if kind == "missed" else before_T & ~free_T
        named_F = before_F if kind == "spurious" else before_F & ~free_F
        for kinds, named in ((kinds_T, named_T), (kinds_F, named_F)):
            for i in np.flatnonzero(named):
                kinds[i] = kind
    return kinds_T, kinds_F


def confusions(image: ComparedImage) -> Iterator[tuple[int | None, int | None]]:
    """Yield the classes (true, found) of the pairs of IoU > 0.5 of any classes; None stands for no such partner."""
    p = image
    pair_TF = (p.iou_TF > 0.5) & p.counted_F
    yield from ((int(p.labels_T[t]), int(p.labels_F[f])) for t, f in np.argwhere(pair_TF))
    yield from ((int(label), None) for label in p.labels_T[~pair_TF.any(1)])
    yield from ((None, int(label)) for label in p.labels_F[~pair_TF.any(0) & p.counted_F])


def _finders() -> dict[str, Finder]:
    return dict(zip(KINDS, (_class, _split, _merged, _boundary, _missed, _spurious), strict=True))


# --- one finder for each kind -----------------------------------------------------------------------------------------


def _class(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    for t, f in np.argwhere((p.iou_TF > 0.5) & free_T[:, None] & free_F):
        free_T[t] = free_F[f] = False
        yield _of_true(p, t, p.iou_TF[t, f], 1, 0, -1)
        yield Change(int(p.labels_F[f]), int(p.sizes_T[t]), 0.0, 0, -1, 0)


def _split(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    inside_TF = p.same_TF & (2 * p.overlap_TF > p.areas_F)
    for t in range(len(p.labels_T)):
        hit = np.flatnonzero(p.hit_TF[t]).tolist()
        pieces = np.flatnonzero(inside_TF[t] & free_F).tolist()
        if not pieces or len(pieces + hit) < 2 or not (hit or free_T[t]):
            continue
        iou = p.joined_iou([t], pieces + hit)
        if iou <= 0.5:
            continue
        before = p.iou_TF[t, hit[0]] if hit else 0.0
        yield _of_true(p, t, iou - before, int(not hit), -len(pieces), -int(not hit))
        free_T[t] = False
        free_F[pieces] = False


def _merged(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    inside_TF = p.same_TF & (2 * p.overlap_TF > p.areas_T[:, None])
    for f in range(len(p.labels_F)):
        hit = np.flatnonzero(p.hit_TF[:, f]).tolist()
        parts = np.flatnonzero(inside_TF[:, f] & free_T).tolist()
        if not parts or len(parts + hit) < 2 or not (hit or free_F[f]) or p.joined_iou(parts + hit, [f]) <= 0.5:
            continue
        for t in parts:
            yield _of_true(p, t, p.overlap_TF[t, f] / p.areas_T[t], 1, 0, -1)
        for t in hit:
            yield _of_true(p, t, p.overlap_TF[t, f] / p.areas_T[t] - p.iou_TF[t, f], 0, 0, 0)
        if not hit:
            yield Change(int(p.labels_F[f]), int(p.sizes_T[parts].max()), 0.0, 0, -1, 0)
        free_T[parts] = False
        free_F[f] = False


def _boundary(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    yield from (_of_true(p, t, 1 - p.iou_TF[t, f], 0, 0, 0) for t, f in np.argwhere(p.hit_TF))
    near_TF = p.same_TF & (p.iou_TF > NEAR) & free_T[:, None] & free_F
    pairs = np.argwhere(near_TF)
    for t, f in pairs[np.argsort(-p.iou_TF[near_TF], kind="stable")]:
        if free_T[t] and free_F[f]:
            free_T[t] = free_F[f] = False
            yield _of_true(p, t, 1.0, 1, -1, -1)


def _missed(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    return (_of_true(p, t, 1.0, 1, 0, -1) for t in np.flatnonzero(free_T).tolist())


def _spurious(p: ComparedImage, free_T: np.ndarray, free_F: np.ndarray) -> Iterator[Change]:
    return (_of_found(p, f, -1) for f in np.flatnonzero(free_F).tolist())


def _of_true(p: ComparedImage, t: int, iou: float, hits: int, wrong: int, missed: int) -> Change:
    return Change(int(p.labels_T[t]), int(p.sizes_T[t]), float(iou), hits, wrong, missed)


def _of_found(p: ComparedImage, f: int, wrong: int) -> Change:
    return Change(int(p.labels_F[f]), int(p.sizes_F[f]), 0.0, 0, wrong, 0)
