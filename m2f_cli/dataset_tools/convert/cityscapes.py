"""Writer of the Cityscapes layout: leftImg8bit/{split}/{city}/ and gtFine/{split}/{city}/.

gtFine has labelIds and instanceIds (docs/methods/published-behaviour.md#8-4). classes.yaml is added if the classes are
not those of Cityscapes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.formats.cityscapes import OBJECTS
from ...errors import ConfigError, DataError
from ...structures.annotations import PanopticAnnotation
from ...structures.categories import Categories, load_categories
from ...structures.run_lengths import renamed
from .base import Lost, OutputFormat, Place, Rows, Writer, save_classes, save_png

MOST_CLASSES = 64  # an instance id, label id * 1000 + n, has 16 bits
_VOID = 0  # "unlabeled"


@dataclass(frozen=True)
class CityscapesStyle(Writer):
    """Writer of the Cityscapes layout.

    Attributes:
        categories: the classes, with ids from 1 to 64.
        name: name of the data set. It is the city of images that lie in no folder.
    """

    categories: Categories
    name: str

    def image(self, place: Place) -> str:
        return f"leftImg8bit/{place.split}/{self._stem(place)}_leftImg8bit{place.suffix}"

    def _stem(self, place: Place) -> str:
        return place.name if "/" in place.name else f"{self.name}/{place.name}"

    def annotate(self, root: Path, place: Place, annotation: PanopticAnnotation) -> tuple[Rows, Lost]:
        values, lost = self._values(annotation, place.name)
        instances_HW = renamed(annotation.ids_HW, values, _VOID, np.uint16)
        labels_HW = np.where(instances_HW < OBJECTS, instances_HW, instances_HW // OBJECTS).astype(np.uint8)
        stem = root / "gtFine" / place.split / self._stem(place)
        save_png(stem.with_name(f"{stem.name}_gtFine_instanceIds.png"), instances_HW)
        save_png(stem.with_name(f"{stem.name}_gtFine_labelIds.png"), labels_HW)
        return {}, lost

    def _values(self, annotation: PanopticAnnotation, name: str) -> tuple[dict[int, int], Lost]:
        """Return the instance id of each segment: label id * 1000 + n, or the bare label id for stuff and crowds."""
        counts: Counter[int] = Counter()
        values: dict[int, int] = {}
        for segment in annotation.segments:
            category = self.categories[segment.label]
            values[segment.id] = category.id
            if category.isthing and not segment.iscrowd:
                values[segment.id] = category.id * OBJECTS + counts[segment.label]
                counts[segment.label] += 1
        if counts and max(counts.values()) > OBJECTS:
            raise DataError(f"{name} has {max(counts.values())} objects of a class, where {OBJECTS} fit.")
        return values, Counter(merged=len(values) - len(set(values.values())))

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        if self.categories != load_categories("cityscapes"):
            save_classes(root, self.name, self.categories, _VOID)


def open_writer(categories: Categories, name: str) -> CityscapesStyle:
    """Return a writer. If an id does not fit, the classes are numbered from 1 on.

    Raises:
        ConfigError: there are too many classes.
    """
    if len(categories) > MOST_CLASSES:
        raise ConfigError(f"The style of Cityscapes holds {MOST_CLASSES} classes, not {len(categories)}.")
    if not all(0 < category.id <= MOST_CLASSES for category in categories):
        categories = tuple(dataclasses.replace(c, id=number) for number, c in enumerate(categories, 1))
    return CityscapesStyle(categories, name)


TARGET = OutputFormat(
    task="panoptic",
    keeps=frozenset({"category ids", "colours"}),
    open=open_writer,
    # Redrawn polygons could not reproduce the ids of objects that others cut in two.
    lacks=("polygons",),
)
