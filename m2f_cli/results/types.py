"""Results of one image: a panoptic map, instances or a semantic map."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..runtime.notebook import show_image
from ..structures import Task
from ..structures.categories import Categories
from ..structures.rle import runs_of
from ..structures.run_lengths import values_in
from .regions import Region, TopMap, box_of, masks_of, number_type, numbered

if TYPE_CHECKING:
    from PIL.Image import Image

    from .draw_options import DrawOptions


@dataclass
class Result(ABC):
    """Result of one image.

    Attributes:
        size: (height, width) in pixels.
        categories: the classes, by number.
        image: the path of the image, or its pixels (H, W, 3, uint8 RGB).
        image_id: the image's id in the files of its data set, for the COCO formats.
        task: the task that the result belongs to.
    """

    size: tuple[int, int]
    categories: Categories
    image: Path | np.ndarray | None = field(default=None, kw_only=True, repr=False, compare=False)
    image_id: int | str | None = field(default=None, kw_only=True, repr=False, compare=False)

    task: ClassVar[Task]

    @abstractmethod
    def regions(self) -> Iterator[Region]:
        """Yield the regions that have pixels: segments in their order, classes by number, instances best first."""

    @abstractmethod
    def on_top(self, classes: Collection[int] | None = None) -> TopMap:
        """Return which region is on top at each pixel; of `classes` alone, unless it is None."""

    def backwards(self) -> Result:
        """Return the same result with instances worst first, so that the best are painted last and stay visible."""
        return self

    def plot(self, image: Any = None, options: DrawOptions | None = None) -> Image:
        """Draw this result over its image: outlines, names and scores, one colour for each class.

        Args:
            image: the image, where the result does not know it (path, array or PIL image).
            options: what is drawn, and how.

        Raises:
            DataError: there is no image, it cannot be read, or it has another size.
            ConfigError: the options name a class that the result does not have.
        """
        from . import drawing

        return drawing.plot(self, self.image if image is None else image, options)

    def show(self, image: Any = None, options: DrawOptions | None = None) -> None:
        """Show the drawing of `plot`: below the cell of a notebook, else in the system's viewer of images.

        Raises:
            M2FError: there is no such viewer; or as `plot` does.
        """
        show_image(self.plot(image, options))

    def _repr_html_(self) -> str:
        """Return the drawing and the classes as HTML: a notebook shows a result that ends a cell."""
        from . import html

        return html.as_html(self)

    def save(
        self,
        folder: str | Path,
        formats: str | Sequence[str] = "overlay",
        *,
        name: str | None = None,
        draw: DrawOptions | None = None,
        trust_code: bool = False,
    ) -> list[Path]:
        """Write this result in any of the formats of `m2f predict --save`.

        Args:
            folder: the output folder, which is created if it is missing.
            formats: names of writers, such as "overlay", "coco-panoptic", "label-png".
            name: the stem of the files; by default the image's own stem.
            draw: what overlays draw, and how.
            trust_code: True if `formats` may be "module:function".

        Returns:
            The files that were written.
        """
        from . import writers

        named = [formats] if isinstance(formats, str) else list(formats)
        return writers.save(self, Path(folder), named, name=name, draw=draw, trust_code=trust_code)

    def to_hf(self) -> list[dict[str, Any]]:
        """Return the output of transformers' pipeline: [{"score", "label", "mask": PIL image}]; no score of a class."""
        from . import bridges

        return bridges.to_hf(self)

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, one for each region."""
        from . import bridges

        return bridges.to_supervision(self)


@dataclass
class SemanticMap(Result):
    """Map of one class for every pixel.

    Attributes:
        labels_HW: class numbers (uint8 or uint16), 255 or 65535 where there is none.
    """

    task = "semantic"
    labels_HW: np.ndarray

    def regions(self) -> Iterator[Region]:
        for label, window, mask_HW in masks_of(self.labels_HW, range(len(self.categories))):
            yield Region(label, label, None, box_of(window), mask_HW)

    def on_top(self, classes: Collection[int] | None = None) -> TopMap:
        wanted = range(len(self.categories)) if classes is None else classes
        labels = [value for value in values_in(self.labels_HW).tolist() if value in wanted]
        return TopMap(numbered(self.labels_HW, labels), labels, [None] * len(labels))

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO stuff results: {"category_id", "segmentation" (RLE), "area"} for each class that is present."""
        from . import bridges

        return bridges.semantic_to_coco(self)


@dataclass
class Segment:
    """Region of a panoptic map.

    Attributes:
        id: the id of its pixels in the map.
        label: class number.
        score: the class probability of its query.
        area: pixels.
    """

    id: int
    label: int
    score: float
    area: int


@dataclass
class PanopticMap(Result):
    """Map of one segment for every pixel.

    Attributes:
        ids_HW: ids of `segments` (int32), 0 where there is none (void).
        segments: the segments of the map.
    """

    task = "panoptic"
    ids_HW: np.ndarray
    segments: list[Segment]

    def regions(self) -> Iterator[Region]:
        for number, window, mask_HW in masks_of(self.ids_HW, [segment.id for segment in self.segments]):
            segment = self.segments[number]
            yield Region(segment.id, segment.label, segment.score, box_of(window), mask_HW)

    def on_top(self, classes: Collection[int] | None = None) -> TopMap:
        segments = [each for each in self.segments if classes is None or each.label in classes]
        numbers_HW = numbered(self.ids_HW, [each.id for each in segments])
        return TopMap(numbers_HW, [each.label for each in segments], [each.score for each in segments])

    def to_coco(self) -> dict[str, Any]:
        """Return the annotation of this image in a COCO panoptic JSON: {"segments_info": [...]}; ids as in ids_HW."""
        from . import bridges

        return bridges.panoptic_to_coco(self)


@dataclass
class Instances(Result):
    """Objects that may overlap, best first.

    Attributes:
        labels_N: class numbers.
        scores_N: scores.
        rles: masks as {"size": [H, W], "counts": bytes}, as pycocotools makes them; `masks_NHW()` unpacks them.
    """

    task = "instance"
    labels_N: np.ndarray
    scores_N: np.ndarray
    rles: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rles)

    def regions(self) -> Iterator[Region]:
        from pycocotools import mask as coco_mask

        for i, rle in enumerate(self.rles):
            left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
            if width and height:
                box = (top, left, top + height, left + width)
                mask_HW = coco_mask.decode(rle)[top : top + height, left : left + width].astype(bool)
                yield Region(i, int(self.labels_N[i]), float(self.scores_N[i]), box, mask_HW)

    def on_top(self, classes: Collection[int] | None = None) -> TopMap:
        labels = self.labels_N.tolist()
        own = [i for i, label in enumerate(labels) if classes is None or label in classes]
        height, width = self.size
        numbers_WH = np.zeros((width, height), dtype=number_type(len(own)))  # run lengths go down the columns
        pixels_P, boxes = numbers_WH.reshape(-1), {}
        for position, i in reversed(list(enumerate(own))):  # the best last, so that it is on top
            starts, ends = runs_of(self.rles[i])
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                pixels_P[start:end] = position + 1
            if starts.size:
                boxes[position] = _box_of_runs(starts, ends, height)
        numbers_HW = np.ascontiguousarray(numbers_WH.T)
        return TopMap(numbers_HW, [labels[i] for i in own], [float(self.scores_N[i]) for i in own], boxes)

    def backwards(self) -> Instances:
        return dataclasses.replace(
            self, labels_N=self.labels_N[::-1], scores_N=self.scores_N[::-1], rles=self.rles[::-1]
        )

    def masks_NHW(self) -> np.ndarray:
        """Return all masks as booleans (N, H, W). They are large: prefer the run lengths where those will do."""
        from pycocotools import mask as coco_mask

        if not self.rles:
            return np.zeros((0, *self.size), dtype=bool)
        masks_NHW: np.ndarray = coco_mask.decode(self.rles).transpose(2, 0, 1).astype(bool)
        return masks_NHW

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO instance results: [{"category_id", "segmentation" (RLE), "bbox" (x, y, w, h), "score"}]."""
        from . import bridges

        return bridges.instances_to_coco(self)


def _box_of_runs(starts: np.ndarray, ends: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return the box (top, left, bottom, right; half open) around runs down the columns of an image."""
    lasts = ends - 1
    left, right = int(starts[0]) // height, int(lasts[-1]) // height + 1
    if (starts // height != lasts // height).any():  # a run that goes on in the next column
        return 0, left, height, right
    return int((starts % height).min()), left, int((lasts % height).max()) + 1, right
