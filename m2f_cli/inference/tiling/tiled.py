"""Segmentation of large images in overlapping windows, each of which is an image for the network.

The memory that grows with the image is that of one row of windows, the seams to the next row, and the result.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from ...errors import ConfigError
from ...results.types import Instances, PanopticMap, Segment, SemanticMap
from ...structures import Task
from ...structures.categories import Categories
from ..base import BaseSegmenter, Wrapper
from ..mask_rendering import Band, bands
from .grid import Box, Grid
from .stitching import Joiner, union_rle

SEAM_ELEMENTS = 2**26  # class scores kept between two rows of windows: 256 MiB of floats
LEAST_TILE = 32


def tiled(segmenter: BaseSegmenter, tile: int, overlap: float = 0.25) -> Tiled:
    """Wrap a segmenter to segment images that are larger than a tile in windows. Results of smaller ones do not change.

    Semantic: class scores are blended around the seams. Panoptic: each pixel has the segment of the window that it
    belongs to, stuff is one segment per class, and things are joined (`stitching.Joiner`). Instances: a joined thing is
    the union of its pieces, and a piece that a neighbour shows better is dropped; `top_k` counts per window. The score
    of a joined thing is the mean over its pieces, weighted by area.

    A large image goes through the network in `finish`, under a lock. The data to keep of each window depends on the
    task, which `infer` does not know. `finish_all` runs the network once per window for several tasks.

    Args:
        segmenter: the segmenter to wrap.
        tile: height and width of a window, in pixels of the image. Each window is resized to the model's test size, so
            that `tile` chooses the scale. The model's short edge (800 for COCO) keeps the scale, and half of it doubles
            the scale. All windows of an image have one size.
        overlap: least share of a tile that two neighbours have in common. Things that fit into it are seen whole.

    Raises:
        ConfigError: the tile is below 32 pixels, the overlap is not above 0 and at most 0.5, or `segmenter` is tiled.
    """
    if tile < LEAST_TILE:
        raise ConfigError(f"A tile has at least {LEAST_TILE} pixels, not {tile}.")
    if not 0 < overlap <= 0.5:
        raise ConfigError(f"The overlap of tiles is a share above 0, at most 0.5, not {overlap}.")
    if isinstance(segmenter, Tiled):
        raise ConfigError("These are tiles already: tiled() goes around a model once.")
    return Tiled(segmenter, tile, max(1, round(tile * overlap)))


@dataclass(frozen=True)
class Tiles:
    """Image that goes through the network window by window."""

    image_HWC: np.ndarray


class Tiled(Wrapper):
    """Segmenter that runs another one on tiles of large images; see `tiled`."""

    def __init__(self, inner: BaseSegmenter, tile: int, overlap: int):
        super().__init__(inner)
        self.tile, self.overlap = tile, overlap
        self._network = threading.Lock()
        self.notes = [*inner.notes, f"Images above {tile} pixels are done in tiles that overlap by {overlap}."]

    def prepare(self, image_HWC: np.ndarray) -> Any:
        return Tiles(image_HWC) if max(image_HWC.shape[:2]) > self.tile else self.inner.prepare(image_HWC)

    def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the network on images that are no larger than a tile."""
        small = [each for each in batch if not isinstance(each, Tiles)]
        with self._network:
            answers = iter(self.inner.infer(small) if small else [])
        return [each if isinstance(each, Tiles) else next(answers) for each in batch]

    def finish(self, raw: Any, task: Task | None = None, **thresholds: Any) -> PanopticMap | Instances | SemanticMap:
        """Return the result as `Segmenter.finish` does. A large image goes through the network here."""
        task = self.check_task(task or self.default_task)
        return self.finish_all(raw, [task], **thresholds)[task]

    @torch.inference_mode()
    def finish_all(
        self, raw: Any, tasks: Sequence[Task], **thresholds: Any
    ) -> dict[Task, PanopticMap | Instances | SemanticMap]:
        """Return the results of several tasks. Each window goes through the network once."""
        if not isinstance(raw, Tiles):
            return self.inner.finish_all(raw, tasks, **thresholds)
        image_HWC = raw.image_HWC
        grid = Grid.of(image_HWC.shape[:2], self.tile, self.overlap)
        mosaics = {task: MOSAICS[task](grid, self.categories) for task in tasks}
        for i, j in grid:
            top, left, bottom, right = grid.box(i, j)
            prepared = self.inner.prepare(np.ascontiguousarray(image_HWC[top:bottom, left:right]))
            with self._network:
                [answer] = self.inner.infer([prepared])
            for task, mosaic in mosaics.items():
                if task == "semantic":
                    mosaic.add(i, j, self.inner.semantic_scores(answer))
                else:
                    mosaic.add(i, j, self.inner.finish(answer, task, **thresholds))
        return {task: mosaic.result() for task, mosaic in mosaics.items()}


# --- one image from its windows -------------------------------------------------------------------------------------


class SemanticMosaic:
    """Semantic map from class scores of windows, which are added row by row with weights that fade across the seams.

    The class of a pixel is chosen when all of its windows are added. Where two rows of windows meet, scores are kept
    for the next row. That strip is as wide as two windows can share, at most SEAM_ELEMENTS values.
    """

    def __init__(self, grid: Grid, categories: Categories):
        self.grid, self.categories = grid, categories
        self.fade_rows = min(grid.rows.widest_fade, max(1, SEAM_ELEMENTS // (len(categories) * grid.columns.length)))
        self.fade_columns = min(grid.columns.widest_fade, max(1, SEAM_ELEMENTS // (len(categories) * grid.rows.tile)))
        self.labels_HW = np.zeros(grid.size, np.uint8 if len(categories) < 255 else np.uint16)
        self.below: Tensor | None = None  # (K, fade_rows, W): scores of the shared rows from the row above
        self.beside: Tensor | None = None  # (K, tile, fade_columns): scores from the window to the left

    def add(self, i: int, j: int, scores: Band) -> None:
        rows, columns = self.grid.rows, self.grid.columns
        (top, bottom), (left, right) = rows.support(i, self.fade_rows), columns.support(j, self.fade_columns)
        down, across = rows.weights(i, self.fade_rows), columns.weights(j, self.fade_columns)
        is_last, fade = j == len(columns.seams), self.fade_columns
        first_row, first_column = top - rows.starts[i], left - columns.starts[j]
        for start, stop in bands(bottom - top, columns.tile, 4 * len(self.categories)):
            band = scores(start + first_row, stop + first_row)[..., first_column : first_column + right - left]
            band = band * (down[start:stop, None] * across).to(band.device)
            if j and self.beside is not None:
                band[..., :fade] += self.beside[:, start:stop]
            if not is_last:
                if self.beside is None:
                    self.beside = torch.empty(len(band), rows.tile, fade, device=band.device)
                self.beside[:, start:stop] = band[..., right - left - fade :]
                band = band[..., : right - left - fade]
            self._settle(i, top + start, left, band)

    def _settle(self, i: int, row: int, left: int, band: Tensor) -> None:
        """Choose the classes of rows that no later window sees; keep the scores of rows shared with the next ones."""
        fade, stop = self.fade_rows, row + band.shape[1]
        columns = slice(left, left + band.shape[2])
        top, bottom = self.grid.rows.support(i, fade)
        shared = min(max(top + fade - row, 0), band.shape[1]) if i else 0
        if shared and self.below is not None:
            band[:, :shared] += self.below[:, row - top : row - top + shared, columns]
        is_last = i == len(self.grid.rows.seams)
        decided = stop if is_last else max(row, min(stop, bottom - fade))
        self.labels_HW[row:decided, columns] = band[:, : decided - row].argmax(0).cpu().numpy()
        if decided < stop:
            if self.below is None:
                self.below = torch.empty(len(band), fade, self.grid.columns.length, device=band.device)
            first = decided - (bottom - fade)
            self.below[:, first : first + stop - decided, columns] = band[:, decided - row :]

    def result(self) -> SemanticMap:
        return SemanticMap(self.grid.size, self.categories, self.labels_HW)


@dataclass
class _Mean:
    """Mean score of several pieces, weighted by area."""

    total: float = 0.0
    area: int = 0

    def add(self, score: float, area: int) -> None:
        self.total += score * area
        self.area += area

    @property
    def score(self) -> float:
        return self.total / self.area


class PanopticMosaic:
    """Panoptic map of pixels from the windows that they belong to. Ids are those of pieces until the end."""

    def __init__(self, grid: Grid, categories: Categories):
        self.grid, self.categories = grid, categories
        self.ids_HW = np.zeros(grid.size, np.int32)
        self.joiner = Joiner()
        self.keys: list[int | None] = [None]  # of each id: the number of a piece, None for stuff
        self.labels: list[int] = [0]
        self.id_of_stuff: dict[int, int] = {}
        self.means: dict[int, _Mean] = {}

    def add(self, i: int, j: int, result: PanopticMap) -> None:
        box, own = self.grid.box(i, j), self.grid.own(i, j)
        isthing = [category.isthing for category in self.categories]
        new_id = np.zeros(max((each.id for each in result.segments), default=0) + 1, np.int32)
        for each in result.segments:
            if not isthing[each.label]:
                if each.label not in self.id_of_stuff:
                    self.id_of_stuff[each.label] = self._new_id(None, each.label)
                new_id[each.id] = self.id_of_stuff[each.label]
                self.means.setdefault(int(new_id[each.id]), _Mean()).add(each.score, each.area)
        things = [region for region in result.regions() if isthing[region.label]]
        for region, piece in zip(things, self.joiner.add(box, things), strict=True):
            new_id[region.id] = self._new_id(piece.number, piece.label)
            self.means.setdefault(int(new_id[region.id]), _Mean()).add(piece.score, piece.area)
        part_HW = result.ids_HW[own[0] - box[0] : own[2] - box[0], own[1] - box[1] : own[3] - box[1]]
        self.ids_HW[own[0] : own[2], own[1] : own[3]] = new_id[part_HW]

    def _new_id(self, number: int | None, label: int) -> int:
        self.keys.append(number)
        self.labels.append(label)
        return len(self.keys) - 1

    def result(self) -> PanopticMap:
        """Return the map with one segment per thing. Ids count from 1 in the order of the windows."""
        id_of_piece = {number: i for i, number in enumerate(self.keys) if number is not None}
        merged = np.array([i if key is None else id_of_piece[self.joiner.root(key)] for i, key in enumerate(self.keys)])
        areas = np.zeros(len(merged), np.int64)
        for start, stop in bands(*self.grid.size, 1):
            areas += np.bincount(merged[self.ids_HW[start:stop].ravel()], minlength=len(areas))
        means: dict[int, _Mean] = {}
        for i, mean in self.means.items():
            both = means.setdefault(int(merged[i]), _Mean())
            both.total, both.area = both.total + mean.total, both.area + mean.area
        present = [int(i) for i in np.flatnonzero(areas) if i]
        final = np.zeros(len(merged), np.int32)
        final[present] = np.arange(1, len(present) + 1)
        for start, stop in bands(*self.grid.size, 1):
            self.ids_HW[start:stop] = final[merged[self.ids_HW[start:stop]]]
        segments = [Segment(int(final[i]), self.labels[i], means[i].score, int(areas[i])) for i in present]
        return PanopticMap(self.grid.size, self.categories, self.ids_HW, segments)


class InstanceMosaic:
    """Instances from objects of windows, which are joined at the end."""

    def __init__(self, grid: Grid, categories: Categories):
        self.grid, self.categories = grid, categories
        self.joiner = Joiner()
        self.pieces: list[tuple[int, float, int, Box, dict[str, Any]]] = []  # label, score, area, box, run lengths

    def add(self, i: int, j: int, result: Instances) -> None:
        for piece in self.joiner.add(self.grid.box(i, j), result.regions()):
            rle = coco_mask.encode(np.asfortranarray(piece.mask_HW, dtype=np.uint8))
            self.pieces.append((piece.label, piece.score, piece.area, piece.box, rle))

    def result(self) -> Instances:
        groups: dict[int, list[int]] = {}
        for number in range(len(self.pieces)):
            groups.setdefault(self.joiner.root(number), []).append(number)
        kept = [each for each in groups.values() if len(each) > 1 or each[0] not in self.joiner.covered]
        labels = np.array([self.pieces[group[0]][0] for group in kept], dtype=np.int64)
        scores = np.array([self._score(group) for group in kept], dtype=np.float32)
        rles = [union_rle([self.pieces[number][3:] for number in group], self.grid.size) for group in kept]
        order = np.argsort(-scores, kind="stable")
        return Instances(self.grid.size, self.categories, labels[order], scores[order], [rles[i] for i in order])

    def _score(self, group: list[int]) -> float:
        mean = _Mean()
        for number in group:
            mean.add(self.pieces[number][1], self.pieces[number][2])
        return mean.score


MOSAICS: dict[Task, type] = {"semantic": SemanticMosaic, "panoptic": PanopticMosaic, "instance": InstanceMosaic}
