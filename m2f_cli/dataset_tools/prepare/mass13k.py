"""MaSS13K (docs/methods/published-behaviour.md#8-8): 4K images with label maps.

They get the names that the reader of label maps expects.
"""

from __future__ import annotations

from pathlib import Path

from ...runtime.trees import Tree
from .base import IMAGES, Count, Item, Plan, Preparer, Stage, as_it_is, class_file, pairs, stem

_SIZES = {"train": 11348, "val": 500, "test": 1500}


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: an image has no labels, or labels have no image.
    """
    counts, stages, needed = [], [], []
    for split, size in _SIZES.items():
        padded = tree.names(f"images_pad/{split}", IMAGES)
        both = pairs(
            padded or tree.names(f"images/{split}", IMAGES),
            tree.names(f"annotations/{split}", ".png"),
            partial=partial,
        )
        counts.append(Count(split, len(both), size, sure=False))
        needed += [mask if padded else name for image, mask in both for name in ((mask,) if padded else (image, mask))]
        if padded:
            items = [Item(stem(image), (image,), f"images/{split}/{Path(image).name}") for image, _ in both]
            stages.append(Stage(f"images/{split}", items, as_it_is))
    return Plan(tuple(counts), (*stages, class_file("mass13k")), tuple(needed))


PREPARER = Preparer(
    title="MaSS13K",
    folder="mass13k",
    marks=("images_pad", "images", "annotations"),
    layout="images_pad/{train,val}/*.jpg, images/test/*.jpg and annotations/{train,val,test}/*.png",
    origin="the Google Drive folder that the data set's repository names",
    licence="the data set's own terms",
    plan=plan,
)
