"""Cityscapes (docs/methods/published-behaviour.md#8-4).

The results are label maps of trainIds, images of ids if they are missing, and segments as panoptic JSON and PNGs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ...errors import DataError
from ...runtime.trees import Tree
from ...structures.annotations import ids_to_rgb
from ...structures.categories import load_categories
from ...structures.run_lengths import values_in
from .base import Count, Item, Made, Plan, Preparer, Stage, pairs
from .cityscapes_polygons import Label, Polygons, load_labels
from .pixels import encode, image_info, read_values, segment_info

OBJECTS = 1000  # an instance id is labelId * 1000 + n for one object, the bare labelId for stuff and for groups
_SIZES = {"train": 2975, "val": 500, "test": 1525}
_SHIPPED = ("labelIds", "instanceIds")
_IMAGE, _POLYGONS = "_leftImg8bit.png", "_gtFine_polygons.json"


@dataclass(frozen=True)
class CityscapesSegments:
    """Function that gives the PNG of segments and the image's entry.

    The ids are the instance ids, groups of things are crowds, and pixels that are not evaluated are void.

    Attributes:
        evaluated: True for things and False for stuff, for the labelId of each evaluated class.
        known: all labelIds.
    """

    evaluated: dict[int, bool]
    known: frozenset[int]

    def __call__(self, tree: Tree, item: Item) -> Made:
        """Return the PNG and the entry of one image.

        Raises:
            DataError: the image of ids is missing, damaged, or has unknown ids.
        """
        [name] = item.sources
        values_HW = read_values(tree, name).astype(np.int32)
        ids_HW, infos = np.zeros_like(values_HW), []
        for value in values_in(values_HW).tolist():
            label = value if value < OBJECTS else value // OBJECTS
            if label not in self.known:
                raise DataError(f"{tree}: {name} has the value {value}, which is no label of Cityscapes.")
            if label not in self.evaluated:
                continue
            mask_HW = values_HW == value
            ids_HW[mask_HW] = value
            infos.append(segment_info(value, label, mask_HW, int(self.evaluated[label] and value < OBJECTS)))
        annotation = {"image_id": item.name, "file_name": f"{item.name}_gtFine_panoptic.png", "segments_info": infos}
        image = image_info(item.name, f"{item.name}_gtFine_leftImg8bit.png", values_HW.shape)
        return Made(encode(ids_to_rgb(ids_HW)), [image, annotation])


@dataclass(frozen=True)
class CityscapesTable:
    """Function that joins the entries of images to the JSON, with the text layout of the official script."""

    categories: tuple[dict[str, Any], ...]

    def __call__(self, entries: list[Any]) -> str:
        images, annotations = zip(*entries, strict=True) if entries else ((), ())
        tree = {"images": images, "annotations": annotations, "categories": self.categories}
        return json.dumps(tree, sort_keys=True, indent=4)


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: an image has no polygons, or polygons have no image.
    """
    counts, stages, needed = [], [], []
    labels = load_labels()
    for split, size in _SIZES.items():
        images = tree.names(f"leftImg8bit/{split}", _IMAGE.lower())
        polygons = tree.names(f"gtFine/{split}", _POLYGONS.lower())
        both = pairs(images, polygons, _key, partial=partial)
        counts.append(Count(split, len(both), size))
        if both:
            needed += [*(name for pair in both for name in pair), *tree.names(f"gtFine/{split}", "ids.png")]
            stages += _stages(tree, split, [json_name for _, json_name in both], labels)
    return Plan(tuple(counts), tuple(stages), tuple(needed))


def _stages(tree: Tree, split: str, polygons: list[str], labels: tuple[Label, ...]) -> list[Stage]:
    stages = []
    for kind in ("labelTrainIds", "labelIds", "instanceIds"):
        items = [Item(_key(name), (name,), name.replace("_polygons.json", f"_{kind}.png")) for name in polygons]
        if kind in _SHIPPED:  # shipped ones stay, because Pillow's polygons differ between its versions
            items = [item for item in items if not tree.has(item.target)]
        stages += [Stage(f"gtFine/{split}: {kind}", items, Polygons(kind, labels))] if items else []
    evaluated = {category.id: category.isthing for category in load_categories("cityscapes")}
    maker = CityscapesSegments(evaluated, frozenset(label.id for label in labels))
    folder = f"gtFine/cityscapes_panoptic_{split}"
    items = [
        Item(
            _key(name),
            (name.replace("_polygons.json", "_instanceIds.png"),),
            f"{folder}/{_key(name)}_gtFine_panoptic.png",
        )
        for name in polygons
    ]
    return [*stages, Stage(folder, items, maker, f"{folder}.json", CityscapesTable(_categories(labels)))]


def _categories(labels: tuple[Label, ...]) -> tuple[dict[str, Any], ...]:
    groups = {label.id: label.group for label in labels}
    return tuple(
        {"id": c.id, "name": c.name, "color": list(c.color), "supercategory": groups[c.id], "isthing": int(c.isthing)}
        for c in load_categories("cityscapes")
    )


def _key(name: str) -> str:
    """Return the part CITY_SEQUENCE_FRAME of a file name."""
    return PurePosixPath(name).name.removesuffix(_IMAGE).removesuffix(_POLYGONS)


PREPARER = Preparer(
    title="Cityscapes",
    folder="cityscapes",
    marks=("leftImg8bit", "gtFine"),
    layout="leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png, gtFine/{train,val,test}/CITY/*_gtFine_polygons.json",
    origin="https://www.cityscapes-dataset.com/downloads, after registration: leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip, which may stay packed",
    licence="non-commercial, the data set's own terms",
    plan=plan,
    hashes={
        "gtFine_trainvaltest.zip": "4237c19de34c8a376e9ba46b495d6f66",
        "leftImg8bit_trainvaltest.zip": "0a6e97e94b616a514066c9e2adb0c97f",
    },
)
