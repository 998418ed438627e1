"""Writer of label maps: images/{split}/, labels/{split}/NAME.png with class numbers, and classes.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...structures.annotations import SemanticAnnotation, ignore_value
from ...structures.categories import Categories
from .base import Lost, OutputFormat, Place, Rows, Writer, save_classes, save_png


@dataclass(frozen=True)
class LabelMaps(Writer):
    """Writer of label maps.

    With at most 255 classes, pixels have 8 bits and 255 stands for no class. Otherwise they have 16 bits, and 65535
    does.
    """

    categories: Categories
    name: str

    def image(self, place: Place) -> str:
        return f"images/{place.split}/{place.file_name}"

    def annotate(self, root: Path, place: Place, annotation: SemanticAnnotation) -> tuple[Rows, Lost]:
        ignore = ignore_value(len(self.categories))
        labels_HW = np.where(annotation.labels_HW == annotation.ignore, ignore, annotation.labels_HW)
        pixels_HW = labels_HW.astype(np.min_scalar_type(ignore))
        save_png(root / "labels" / place.split / f"{place.name}.png", pixels_HW)
        return {}, Counter()

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        save_classes(root, self.name, self.categories, ignore_value(len(self.categories)))


TARGET = OutputFormat(task="semantic", keeps=frozenset({"category ids", "colours"}), open=LabelMaps)
