"""NuInsSeg (docs/methods/published-behaviour.md#8-9): nuclei of 31 kinds of tissue, as COCO panoptic JSON and PNGs.

There is neither a published layout for training nor an official split. In m2f's split, every fifth image of each
tissue, by name, is for validation. The masks are those of "label masks modify", in which the larger number has the
overlap.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ...errors import DataError
from ...results.writers import coco_categories
from ...runtime.trees import Tree
from ...structures.annotations import ids_to_rgb
from ...structures.categories import load_categories
from ...structures.run_lengths import values_in
from .base import Count, Item, Made, Plan, Preparer, Stage, as_it_is, pairs, stem
from .pixels import encode, image_info, read_values, segment_info

_SIZE = 665
_EVERY = 5
_MASKS, _IMAGES = "label masks modify", "tissue images"
_KINDS = (".png", ".tif", ".tiff", ".jpg")


def nuclei(tree: Tree, item: Item) -> Made:
    """Return one segment for each number of the mask. 0 is void."""
    [name] = item.sources
    values_HW = read_values(tree, name)
    if values_HW.dtype.kind not in "ui":
        raise DataError(f"{tree}: {name} holds {values_HW.dtype} values, where whole numbers are expected.")
    values_HW = values_HW.astype(np.int32)
    [category] = load_categories("nuinsseg")
    infos = [segment_info(key, category.id, values_HW == key) for key in values_in(values_HW).tolist() if key]
    annotation = {"image_id": item.name, "file_name": f"{item.name}.png", "segments_info": infos}
    return Made(encode(ids_to_rgb(values_HW)), [image_info(item.name, item.facts, values_HW.shape), annotation])


def join(entries: list[Any]) -> str:
    images, annotations = zip(*entries, strict=True) if entries else ((), ())
    categories = coco_categories(load_categories("nuinsseg"))
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: there are no masks, or an image has none.
    """
    files = tree.names("", _KINDS)
    images, masks = ([name for name in files if _kind(name) == kind] for kind in (_IMAGES, _MASKS))
    if not images or not masks:
        folders = sorted({PurePosixPath(name).parent.name for name in files})[:12]
        existing = f"It has: {', '.join(folders)}." if folders else ""
        missing = _IMAGES if masks else _MASKS
        raise DataError(f"{tree} has no tissue with a folder {missing!r}. {existing}", hint=PREPARER.how_to_get)
    both = pairs(images, masks, _key, partial=partial)
    stages = []
    for split, members in _split(both).items():
        table, items, image_items = f"panoptic_{split}", [], []
        for image, mask in members:
            name, suffix = _key(image), PurePosixPath(image).suffix
            image_items.append(Item(name, (image,), f"{split}/{name}{suffix}"))
            items.append(Item(name, (mask,), f"annotations/{table}/{name}.png", f"{name}{suffix}"))
        stages.append(Stage(split, image_items, as_it_is))
        stages.append(Stage(table, items, nuclei, f"annotations/{table}.json", join))
    note = "there is no official split: every fifth image of each tissue is for validation"
    return Plan((Count("all", len(both), _SIZE),), tuple(stages), notes=(note,))


def _split(both: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    tissues = defaultdict(list)
    for image, mask in both:
        tissues[_tissue(image)].append((image, mask))
    numbered = [(i, pair) for members in tissues.values() for i, pair in enumerate(members)]
    return {
        "train": [pair for i, pair in numbered if i % _EVERY],
        "val": [pair for i, pair in numbered if not i % _EVERY],
    }


def _kind(name: str) -> str:
    return PurePosixPath(name).parent.name.replace("_", " ").casefold()


def _tissue(name: str) -> str:
    return PurePosixPath(name).parent.parent.name.replace(" ", "_")


def _key(name: str) -> str:
    return f"{_tissue(name)}-{stem(name).replace(' ', '_')}"


PREPARER = Preparer(
    title="NuInsSeg",
    folder="nuinsseg",
    marks=(),
    layout="for each tissue a folder with 'tissue images/*.png' and 'label masks modify/*.tif'",
    origin="Kaggle, ipateam/nuinsseg",
    licence="the terms named there",
    plan=plan,
)
