"""COCO's rules of matching and ranking objects, as in pycocotools' evaluateImg and accumulate, one class at a time.

Each found object leaves only its verdicts at each IoU threshold and range of areas, so that images can be forgotten at
once. Letters: A ranges of areas, T thresholds, R points of recall, M limits of objects in one image, F found and N true
objects.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..structures.rle import RLE
from .state_io import whole

SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_LOW_A1, _HIGH_A1 = np.array(list(SIZES.values()), dtype=np.float64).T[..., None]
_PLANE = len(SIZES) * len(THRESHOLDS)  # bits
_BYTES = 2 * _PLANE // 8

Overlaps = Callable[[list[RLE], list[RLE], list[int]], np.ndarray]  # found, true, crowds → (F, N)


@dataclass
class Objects:
    """Annotated or found objects of one class in one image.

    Attributes:
        rles: run lengths of the masks.
        areas: pixels, or the annotated area.
        crowds: 1 for a crowd, else 0.
        scores: 1 for annotated objects.
    """

    rles: list[RLE] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowds: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, rle: RLE, area: float, *, crowd: bool = False, score: float = 1.0) -> None:
        self.rles.append(rle)
        self.areas.append(area)
        self.crowds.append(int(crowd))
        self.scores.append(score)

    def best(self, count: int) -> Objects:
        """Return the `count` objects with the highest scores, best first; equal scores stay in their order."""
        order = sorted(range(len(self.rles)), key=lambda i: -self.scores[i])[:count]
        return Objects(
            [self.rles[i] for i in order],
            [self.areas[i] for i in order],
            [self.crowds[i] for i in order],
            [self.scores[i] for i in order],
        )


@dataclass
class Ranked:
    """Judged objects of one class, in the order of their images and best first in each image.

    Attributes:
        scores: scores of the found objects.
        per_image: number of found objects of each image that has any.
        judged: 10 bytes for each found object. A bit for each range of areas and each threshold says if it is a hit;
            the same number of bits after them says if it is ignored.
        true: number of true objects that count, by range of areas.
    """

    scores: array[float] = field(default_factory=lambda: array("d"))
    per_image: array[int] = field(default_factory=lambda: array("I"))
    judged: bytearray = field(default_factory=bytearray)
    true: list[int] = field(default_factory=lambda: [0] * len(SIZES))

    def __bool__(self) -> bool:
        return bool(self.scores) or any(self.true)

    def add(self, other: Ranked) -> None:
        self.scores.extend(other.scores)
        self.per_image.extend(other.per_image)
        self.judged += other.judged
        self.true = [a + b for a, b in zip(self.true, other.true, strict=True)]

    def state(self) -> dict[str, Any]:
        judged = base64.b64encode(self.judged).decode()
        return {
            "true": list(self.true),
            "per_picture": self.per_image.tolist(),
            "scores": self.scores.tolist(),
            "judged": judged,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any], most: int) -> Ranked:
        """Return the objects that a state holds.

        Args:
            most: the most objects in one image.

        Raises:
            KeyError: the state is damaged.
            TypeError: the state is damaged.
            ValueError: the state is damaged.
        """
        ranked = cls(
            array("d", state["scores"]),
            array("I", [whole(count, most + 1) for count in state["per_picture"]]),
            bytearray(base64.b64decode(state["judged"], validate=True)),
            [whole(count) for count in state["true"]],
        )
        count = len(ranked.scores)
        lengths = sum(ranked.per_image), len(ranked.judged), len(ranked.true)
        if lengths != (count, count * _BYTES, len(SIZES)) or not np.isfinite(ranked.scores).all():
            raise ValueError(f"{count} scores do not fit {lengths[0]} objects, {lengths[1]} bytes, {lengths[2]} areas")
        return ranked

    def curves(self, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Compute precision (T, R, A) and recall (T, A, M); -1 where no true object counts.

        Args:
            limits: the most objects in one image that count. Precision takes the last number, recall each of them.
        """
        precision_TRA = -np.ones((len(THRESHOLDS), len(RECALLS), len(SIZES)))
        recall_TAM = -np.ones((len(THRESHOLDS), len(SIZES), len(limits)))
        scores_F = np.frombuffer(self.scores, dtype=np.float64) if self.scores else np.zeros(0)
        order_F = np.argsort(-scores_F, kind="mergesort")  # stable, as in the originals: equal scores keep their order
        judged_FB = np.frombuffer(bytes(self.judged), dtype=np.uint8).reshape(-1, _BYTES)[order_F]
        rank_F = self._ranks()[order_F]
        for a, count in enumerate(self.true):
            for t in range(len(THRESHOLDS)) if count else ():
                hit_F, out_F = (_bit(judged_FB, plane * _PLANE + a * len(THRESHOLDS) + t) for plane in (0, 1))
                for m, limit in enumerate(limits):
                    recall_TAM[t, a, m] = np.count_nonzero(hit_F & (rank_F < limit)) / count
                precision_TRA[t, :, a] = precision_at_recalls(hit_F[~out_F], count)
        return precision_TRA, recall_TAM

    def _ranks(self) -> np.ndarray:
        """Return the rank by score of each found object in its image, from 0 on."""
        counts = np.array(self.per_image, dtype=np.int64)
        return np.arange(len(self.scores)) - np.repeat(np.cumsum(counts) - counts, counts)


def judge(found: Objects, true: Objects, overlaps: Overlaps) -> Ranked:
    """Match the objects of one class in one image.

    The found objects are taken in turn. Each takes the free true object that it overlaps most, at least by the
    threshold; of equal overlaps the last. It takes a true object that does not count (a crowd, or one of another size)
    only if there is no other. It is then ignored itself. A crowd is always free. A found object that takes none is
    wrong; it is ignored if its own area is out of the range.

    Args:
        found: the found objects, best first.
        true: the true objects.
        overlaps: function that compares the masks.
    """
    found_areas_F, true_areas_N = np.array(found.areas), np.array(true.areas)
    crowd_N = np.array(true.crowds, dtype=bool)
    ignored_AN = crowd_N | (true_areas_N < _LOW_A1) | (true_areas_N > _HIGH_A1)
    outside_AF = (found_areas_F < _LOW_A1) | (found_areas_F > _HIGH_A1)
    shape = len(found.areas), len(SIZES), len(THRESHOLDS)
    hit_FAT, ignored_FAT = np.zeros(shape, dtype=bool), np.repeat(outside_AF.T[..., None], len(THRESHOLDS), axis=2)
    if found.rles and true.rles:
        overlap_FN = np.asarray(overlaps(found.rles, true.rles, true.crowds))
        _match(overlap_FN, crowd_N, ignored_AN, hit_FAT, ignored_FAT)
    bits = np.stack([hit_FAT, ignored_FAT], axis=1).reshape(len(found.areas), 2 * _PLANE)
    counts = array("I", [len(found.areas)] if found.areas else [])
    return Ranked(
        array("d", found.scores),
        counts,
        bytearray(np.packbits(bits, axis=1).tobytes()),
        np.count_nonzero(~ignored_AN, axis=1).tolist(),
    )


def _match(
    overlap_FN: np.ndarray, crowd_N: np.ndarray, ignored_AN: np.ndarray, hit_FAT: np.ndarray, ignored_FAT: np.ndarray
) -> None:
    """Write the verdicts into hit_FAT and ignored_FAT, object by object, for all ranges and thresholds at once."""
    needed_T1 = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    free_ATN = np.ones((len(SIZES), len(THRESHOLDS), len(crowd_N)), dtype=bool)
    near_FN = overlap_FN >= THRESHOLDS[0]
    for f in np.flatnonzero(near_FN.any(axis=1)):
        # Only a small number of true objects overlap. They are reversed, so that argmax finds the last of equal ones.
        near = np.flatnonzero(near_FN[f])[::-1]
        overlap_n, ignored_An = overlap_FN[f, near], ignored_AN[:, near]
        open_ATn = free_ATN[:, :, near] & (overlap_n >= needed_T1)
        counting_ATn = open_ATn & ~ignored_An[:, None]
        counts_AT = counting_ATn.any(axis=2)
        wanted_ATn = np.where(counts_AT[..., None], counting_ATn, open_ATn)
        taken_AT = wanted_ATn.any(axis=2)
        best_AT = np.where(wanted_ATn, overlap_n, -1).argmax(axis=2)
        hit_FAT[f] = counts_AT
        ignored_FAT[f] = np.where(taken_AT, ~counts_AT, ignored_FAT[f])
        a, t = np.nonzero(taken_AT)
        chosen = near[best_AT[a, t]]
        free_ATN[a, t, chosen] = crowd_N[chosen]


def precision_at_recalls(hits: np.ndarray, count: int) -> np.ndarray:
    """Compute the precision at the 101 points of recall, forced to fall, and 0 beyond the highest recall.

    Precision rises only at a hit, so that no other rank needs to be looked at.

    Args:
        hits: True where an object is a hit; best first, of those that count.
        count: number of true objects.
    """
    ranks = np.flatnonzero(hits)
    right = np.arange(1, len(ranks) + 1, dtype=np.float64)
    wrong = ranks + 1 - right
    precision = right / (wrong + right + np.spacing(1))
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(falling, 0.0)[np.searchsorted(right / count, RECALLS, side="left")]


def _bit(bytes_FB: np.ndarray, number: int) -> np.ndarray:
    is_set_F: np.ndarray = (bytes_FB[:, number // 8] & (128 >> number % 8)) != 0
    return is_set_F
