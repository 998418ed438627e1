"""COCO panoptic (docs/methods/published-behaviour.md#8-1): label maps of all classes from the PNGs of segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ...runtime import documents
from ...runtime.trees import Tree
from ...structures.categories import load_categories
from ...structures.run_lengths import renamed, values_in
from .base import IMAGES, Count, Item, Made, Plan, Preparer, Stage, stem
from .pixels import encode, read_rgb

_SIZES = {"train2017": 118287, "val2017": 5000}
_VOID = 255


@dataclass(frozen=True)
class SemanticFromSegments:
    """Function that gives the class of every pixel, crowds included, and 255 for pixels without a segment.

    An item's `facts` are pairs of a segment's id and its class number.
    """

    def __call__(self, tree: Tree, item: Item) -> Made:
        """Return the label map of one image.

        Raises:
            DataError: the PNG is missing, damaged, or has ids that the JSON does not list for it.
        """
        [png] = item.sources
        rgb_HW3 = read_rgb(tree, png).astype(np.int32)
        ids_HW = rgb_HW3[..., 0] | rgb_HW3[..., 1] << 8 | rgb_HW3[..., 2] << 16
        numbers = {0: _VOID, **dict(item.facts)}
        strange = [key for key in values_in(ids_HW).tolist() if key not in numbers]
        if strange:
            hint = "Json and PNGs must be of one release: copy both again."
            raise DataError(f"{tree}: {png} has the segment {strange[0]}, which its json does not list.", hint=hint)
        return Made(encode(renamed(ids_HW, numbers, _VOID, np.uint8)))


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: a split is missing or damaged.
    """
    counts, stages, needed = [], [], []
    for split, size in _SIZES.items():
        table = f"annotations/panoptic_{split}.json"
        if partial and not tree.has(table):
            continue
        annotations = _annotations(tree, table)
        pngs, images = tree.names(f"panoptic_{split}", ".png"), tree.names(split, IMAGES)
        present = {f"panoptic_{split}/*.png": set(map(stem, pngs)), f"{split}/*.jpg": set(map(stem, images))}
        annotations = _whole(annotations, present) if partial else annotations
        _refuse_gaps(tree, annotations, present)
        counts.append(Count(split, len(annotations), size))
        needed += [table, *pngs, *images]
        stages.append(_stage(split, annotations))
    objects = [f"annotations/instances_{split}.json" for split in _SIZES]
    notes = [f"{name} is missing: the average precision of objects needs it" for name in objects if not tree.has(name)]
    return Plan(tuple(counts), tuple(stages), (*needed, *filter(tree.has, objects)), tuple(notes))


def _stage(split: str, annotations: list[dict[str, Any]]) -> Stage:
    numbers = {category.id: number for number, category in enumerate(load_categories("coco-panoptic"))}
    folder, items = f"panoptic_semseg_{split}", []
    for annotation in annotations:
        name = stem(annotation["file_name"])
        known = tuple((segment["id"], numbers[segment["category_id"]]) for segment in annotation["segments_info"])
        items.append(Item(name, (f"panoptic_{split}/{name}.png",), f"{folder}/{name}.png", known))
    return Stage(folder, items, SemanticFromSegments())


def _annotations(tree: Tree, table: str) -> list[dict[str, Any]]:
    if not tree.has(table):
        raise DataError(f"{tree} has no {table}.", hint=PREPARER.how_to_get)
    try:
        annotations = documents.parse_json(tree.read(table), f"{tree}: {table}")["annotations"]
        known = {category.id for category in load_categories("coco-panoptic")}
        used = {segment["category_id"] for each in annotations for segment in each["segments_info"]}
        if not all(isinstance(segment["id"], int) for each in annotations for segment in each["segments_info"]):
            raise TypeError("an id that is no whole number")
        ordered = sorted(annotations, key=lambda each: stem(each["file_name"]))
    except (ValueError, KeyError, TypeError) as error:
        hint = "Copy or download it again."
        raise DataError(f"{tree}: {table} is no panoptic json, or is damaged: {error!r}.", hint=hint) from error
    if used - known:
        raise DataError(f"{tree}: {table} has the category {min(used - known)}, which COCO's 133 classes do not have.")
    return ordered


def _whole(annotations: list[Any], there: dict[str, set[str]]) -> list[Any]:
    """Return the annotations whose files all exist."""
    return [each for each in annotations if all(stem(each["file_name"]) in names for names in there.values())]


def _refuse_gaps(tree: Tree, annotations: list[Any], there: dict[str, set[str]]) -> None:
    listed = {stem(each["file_name"]) for each in annotations}
    for kind, names in there.items():
        missing = sorted(listed - names)
        if missing:
            raise DataError(
                f"{tree}: {len(missing)} of {len(listed)} files {kind} are missing, such as {missing[0]}.",
                hint=f"{PREPARER.how_to_get} Archives may stay packed beside each other.",
            )


PREPARER = Preparer(
    title="COCO panoptic",
    folder="coco",
    marks=("annotations", "train2017", "val2017", "panoptic_train2017", "panoptic_val2017"),
    layout="annotations/panoptic_{train,val}2017.json, panoptic_{train,val}2017/*.png and {train,val}2017/*.jpg",
    origin="https://cocodataset.org/#download: train2017.zip, val2017.zip, annotations_trainval2017.zip and "
    "panoptic_annotations_trainval2017.zip (unpack the last one: it holds zips of its own, which may stay packed)",
    licence="annotations CC BY 4.0; the images belong to their authors on Flickr",
    plan=plan,
    hashes={
        "train2017.zip": "cced6f7f71b7629ddf16f17bbcfab6b2",
        "val2017.zip": "442b8da7639aecaf257c1dceb8ba8c80",
        "annotations_trainval2017.zip": "f4bbac642086de4f52a3fdda2de5fa2c",
    },
)
