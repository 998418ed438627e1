"""Cityscapes' polygons as images of numbers, drawn like the official tools draw them.

Polygons are drawn in the order of the file, each over the earlier ones, with Pillow's polygons.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ...config.presets import read_yaml
from ...errors import DataError, unknown_name
from ...runtime import documents
from ...runtime.trees import Tree
from ...structures import schemas
from ...structures.categories import load_categories
from .base import Item, Made
from .pixels import encode

_GROUP = "group"
_NO_CLASS = 255
_LARGEST = 1 << 15  # pixels; limit for edges and coordinates


@dataclass(frozen=True)
class Label:
    """Label that a polygon may have.

    Attributes:
        id: labelId.
        name: name of the label.
        group: name of its group.
        train_id: trainId, or 255 if the label is not evaluated.
        has_objects: True if its objects are counted.
    """

    id: int
    name: str
    group: str
    train_id: int
    has_objects: bool


def load_labels() -> tuple[Label, ...]:
    train_ids = {category.id: number for number, category in enumerate(load_categories("cityscapes"))}
    rows = read_yaml(Path(__file__).parent / "tables" / "cityscapes.yaml")["labels"]
    return tuple(
        Label(row["id"], row["name"], row["group"], train_ids.get(row["id"], _NO_CLASS), row["instances"])
        for row in rows
    )


@dataclass(frozen=True)
class Polygons:
    """Function that draws the polygons of one image.

    Attributes:
        kind: "labelIds" or "labelTrainIds" (8 bits), or "instanceIds" (16 bits). The n-th object of a label that has
            objects gets the instance id labelId * 1000 + n. Other labels and groups get the bare labelId.
        labels: the known labels.
    """

    kind: str
    labels: tuple[Label, ...]

    def __call__(self, tree: Tree, item: Item) -> Made:
        """Return the image of numbers.

        Raises:
            DataError: the file is missing or damaged, or has an unknown label.
        """
        [name] = item.sources
        size, objects = read_polygons(tree, name)
        background = _NO_CLASS if self.kind == "labelTrainIds" else 0
        image = Image.new("I" if self.kind == "instanceIds" else "L", size, background)
        draw, counts = ImageDraw.Draw(image), Counter()
        for text, points in objects:
            label, is_group = self._label(text, f"{tree}: {name}")
            value = self._value(label, is_group, counts)
            if label.id >= 0 and len(points) > 1:
                draw.polygon(points, fill=value)
        # Pillow draws 32-bit images but no longer writes them. The official files have 16 bits.
        return Made(encode(np.asarray(image).astype(np.uint16) if image.mode == "I" else image))

    def _label(self, text: str, where: str) -> tuple[Label, bool]:
        known = {label.name: label for label in self.labels}
        if text in known:
            return known[text], False
        single = text.removesuffix(_GROUP)
        if single == text or single not in known:
            raise unknown_name(f"label of Cityscapes ({where})", text, known, error=DataError)
        return known[single], True

    def _value(self, label: Label, is_group: bool, counts: Counter[str]) -> int:
        if self.kind != "instanceIds":
            return label.train_id if self.kind == "labelTrainIds" else label.id
        if not label.has_objects or is_group:
            return label.id
        counts[label.name] += 1
        return label.id * 1000 + counts[label.name] - 1


def read_polygons(tree: Tree, name: str) -> tuple[tuple[int, int], list[tuple[str, list[tuple[float, float]]]]]:
    """Return (width, height), and the label and points (x, y) of each object that was not deleted.

    Raises:
        DataError: the file is missing or damaged.
    """
    where, hint = f"{tree}: {name}", "Copy or download it again."
    said = schemas.read_as(schemas.CityscapesFile, documents.parse_json(tree.read(name), where), where, hint=hint)
    size = said.imgWidth, said.imgHeight
    rows = [schemas.read_as(schemas.CityscapesPolygon, row, f"{where}: an object", hint=hint) for row in said.objects]
    objects = [(row.label, row.polygon) for row in rows if not row.deleted]
    far = next((x for _, points in objects for point in points for x in point if abs(x) > _LARGEST), None)
    if far is not None or not all(0 < side <= _LARGEST for side in size):
        what = f"an image of {size[0]} x {size[1]} pixels" if far is None else f"a point at {far:g}"
        raise DataError(f"{where} has {what}, where 1 to {_LARGEST} are possible.", hint=hint)
    return size, objects
