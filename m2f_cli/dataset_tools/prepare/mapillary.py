"""Mapillary Vistas v1.2 (docs/methods/published-behaviour.md#8-5): validated as downloaded; no file is created."""

from __future__ import annotations

from ...runtime.trees import Tree
from .base import IMAGES, Count, Plan, Preparer, pairs

_SIZES = {"training": 18000, "validation": 2000}


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: an image has no labels, or labels have no image.
    """
    counts, needed, notes = [], [], []
    for split, size in _SIZES.items():
        old = f"{split}/v1.2"  # the folder in releases since v2.0
        home = old if tree.has_folder(old) else split
        images, labels = tree.names(f"{split}/images", IMAGES), tree.names(f"{home}/labels", ".png")
        both = pairs(images, labels, partial=partial)
        counts.append(Count(split, len(both), size, sure=False))
        needed += [name for pair in both for name in pair]
        table, pngs = f"{home}/panoptic/panoptic_2018.json", tree.names(f"{home}/panoptic", ".png")
        if tree.has(table) and pngs:
            needed += [table, *pngs]
        elif both:
            notes.append(f"{home}/panoptic lacks panoptic_2018.json or PNGs: {split} is good for semantic models only")
    return Plan(tuple(counts), (), tuple(needed), tuple(notes))


PREPARER = Preparer(
    title="Mapillary Vistas v1.2",
    folder="mapillary_vistas",
    marks=("training", "validation"),
    layout="{training,validation}/images/*.jpg, with labels/*.png and panoptic/ beside images or in v1.2/",
    origin="https://www.mapillary.com/dataset/vistas, after registration",
    licence="CC BY-NC-SA",
    plan=plan,
)
