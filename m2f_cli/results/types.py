"""What was found in one image: a panoptic map, instances or a semantic map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plugins
from ..structures.categories import Categories

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Result:
    """What was found in one picture. `image` is where it came from (a path) or its pixels (H, W, 3, uint8 RGB);
    `image_id` is the picture's id in its data set's own files, for the COCO formats."""

    size: tuple[int, int]
    categories: Categories
    image: Path | np.ndarray | None = field(default=None, kw_only=True, repr=False, compare=False)
    image_id: int | str | None = field(default=None, kw_only=True, repr=False, compare=False)

    def plot(self, image: Any = None) -> Image:
        """The picture with this result drawn over it: outlines, names and scores, one colour per class.

        Args:
            image: the picture, where the result does not know it (path, array or PIL image).
        """
        return plugins.load("m2f_cli.results.drawing:plot")(self, self.image if image is None else image)

    def save(
        self, folder: str | Path, formats: str | Sequence[str] = "overlay", *, name: str | None = None,
        trust_code: bool = False,
    ) -> list[Path]:
        """Write this result in any of the formats of `m2f predict --save`; returns the files written.

        Args:
            folder: where to; made if it is missing.
            formats: names of writers, such as "overlay", "coco-panoptic", "label-png".
            name: the stem of the files; the picture's own stem by default.
            trust_code: whether `formats` may be "module:function".
        """
        save = plugins.load("m2f_cli.results.writers:save")
        named = [formats] if isinstance(formats, str) else list(formats)
        return save(self, Path(folder), named, name=name, trust_code=trust_code)


@dataclass
class SemanticMap(Result):
    """One class for every pixel: labels_HW holds class numbers (uint8 or uint16), 255 / 65535 where there is none."""

    labels_HW: np.ndarray

    def to_coco(self) -> list[dict[str, Any]]:
        """One record per class present: {"category_id", "segmentation" (RLE), "area"} (COCO stuff results)."""
        return plugins.load("m2f_cli.results.bridges:semantic_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score": None, "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.results.bridges:semantic_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per class present."""
        return plugins.load("m2f_cli.results.bridges:semantic_to_supervision")(self)


@dataclass
class Segment:
    """One region of a panoptic map. `label` is a class number, `score` the class probability of its query."""

    id: int
    label: int
    score: float
    area: int


@dataclass
class PanopticMap(Result):
    """One segment for every pixel: ids_HW (int32) holds ids of `segments`, 0 where there is none (void)."""

    ids_HW: np.ndarray
    segments: list[Segment]

    def to_coco(self) -> dict[str, Any]:
        """The annotation of this picture in a COCO panoptic json: {"segments_info": [...]}; ids as in ids_HW."""
        return plugins.load("m2f_cli.results.bridges:panoptic_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score", "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.results.bridges:panoptic_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per segment."""
        return plugins.load("m2f_cli.results.bridges:panoptic_to_supervision")(self)


@dataclass
class Instances(Result):
    """Objects that may overlap, best first: class numbers (N), scores (N) and COCO run-length masks (N).

    Each mask is {"size": [H, W], "counts": bytes}, as pycocotools makes them; `masks_NHW()` unpacks them.
    """

    labels_N: np.ndarray
    scores_N: np.ndarray
    rles: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rles)

    def masks_NHW(self) -> np.ndarray:
        """All masks as booleans (N, H, W). Large: prefer the run lengths where they will do."""
        from pycocotools import mask as coco_mask

        if not self.rles:
            return np.zeros((0, *self.size), dtype=bool)
        return coco_mask.decode(self.rles).transpose(2, 0, 1).astype(bool)

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO instance results: [{"category_id", "segmentation" (RLE), "bbox" (x, y, w, h), "score"}]."""
        return plugins.load("m2f_cli.results.bridges:instances_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score", "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.results.bridges:instances_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per object."""
        return plugins.load("m2f_cli.results.bridges:instances_to_supervision")(self)
