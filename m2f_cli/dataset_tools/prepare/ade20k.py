"""ADE20K SceneParse150 (docs/methods/published-behaviour.md#8-2).

The results are semantic label maps, objects as COCO JSON, and segments as panoptic JSON and PNGs.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...config.presets import read_yaml
from ...errors import DataError
from ...runtime.trees import Tree
from ...structures.annotations import ids_to_rgb
from ...structures.categories import load_categories
from ...structures.rle import as_text, encode_mask
from ...structures.run_lengths import values_in
from .base import IMAGES, Count, Item, Made, Plan, Preparer, Stage, pairs, stem
from .pixels import box_of, encode, image_info, read_rgb, read_values, segment_info

SPLITS = {"training": ("train", 20210), "validation": ("val", 2000)}
_CLASSES = 150
_NEAR = 30  # grey levels by which the colour of a further object of a class may differ from the class's own


def labels_minus_one(tree: Tree, item: Item) -> Made:
    """Turn 0 (other) into 255, and class k into k - 1.

    Raises:
        DataError: the file is missing or damaged, or has a value that is not a class.
    """
    [name] = item.sources
    labels_HW = read_values(tree, name)
    most = labels_HW.max()
    if most > _CLASSES:
        hint = "These are not the labels of SceneParse150; those of the full release: m2f data prepare ade20k-full."
        raise DataError(f"{tree}: {name} holds the value {most}; the classes are 1 to {_CLASSES}.", hint=hint)
    return Made(encode(labels_HW.astype(np.uint8) - np.uint8(1)))


@dataclass(frozen=True)
class ObjectReader:
    """Reader of annotations_instance. Red is the number of a thing from 1 on, green that of an object of the image.

    Attributes:
        things: class ids of the instance classes, ascending.
    """

    things: tuple[int, ...]

    def read(self, tree: Tree, name: str) -> tuple[tuple[int, int], list[tuple[int, np.ndarray]]]:
        """Return the image's size, and (class id, mask) of each object in the order of their numbers.

        Raises:
            DataError: the file is missing or damaged, or an object has several classes or none.
        """
        rgb_HW3 = read_rgb(tree, name)
        kinds_HW, numbers_HW = rgb_HW3[..., 0], rgb_HW3[..., 1]
        objects = []
        for number in filter(None, values_in(numbers_HW).tolist()):
            mask_HW = numbers_HW == number
            kinds = np.unique(kinds_HW[mask_HW])
            if len(kinds) > 1 or not 1 <= kinds[0] <= len(self.things):
                where = f"{tree}: the object {number} of {name}"
                raise DataError(f"{where} should have one class from 1 to {len(self.things)}, not {kinds.tolist()}.")
            objects.append((self.things[kinds[0] - 1], mask_HW))
        return rgb_HW3.shape[:2], objects


@dataclass(frozen=True)
class ObjectEntry:
    """Function that gives the image and its objects for the instance JSON, as run lengths."""

    objects: ObjectReader

    def __call__(self, tree: Tree, item: Item) -> Made:
        size, objects = self.objects.read(tree, item.sources[0])
        rows = [
            {
                "image_id": item.name,
                "iscrowd": 0,
                "category_id": category,
                "bbox": box_of(mask_HW),
                "segmentation": as_text(encode_mask(mask_HW)),
                "area": int(np.count_nonzero(mask_HW)),
            }
            for category, mask_HW in objects
        ]
        return Made(entry=[image_info(item.name, item.facts, size), rows])


@dataclass(frozen=True)
class Ade20kSegments:
    """Function that gives the PNG of segments and the image's entry.

    There is one segment for each stuff class, and the objects lie over them. Pixels of a thing without an object stay
    void. Areas of stuff are those before objects cover them, as published. The published script draws the colours of
    further objects at random. Here they depend on the image's name, so that a second run gives the same.

    Attributes:
        objects: reader of the objects.
        colors: colours of the classes by their id.
        stuff: ids of stuff classes.
    """

    objects: ObjectReader
    colors: tuple[tuple[int, int, int], ...]
    stuff: frozenset[int]

    def __call__(self, tree: Tree, item: Item) -> Made:
        labels, instances = item.sources
        labels_HW = read_values(tree, labels).astype(np.int32) - 1
        size, objects = self.objects.read(tree, instances)
        if size != labels_HW.shape:
            raise DataError(f"{tree}: {instances} has {size} pixels (height, width), {labels} {labels_HW.shape}.")
        colors = SegmentColors(item.name, {(0, 0, 0), *(self.colors[key] for key in self.stuff)})
        ids_HW, infos = np.zeros(size, dtype=np.int32), []
        regions = [(int(k), labels_HW == k) for k in values_in(labels_HW) if int(k) in self.stuff]
        for category, mask_HW in (*regions, *objects):
            color = self.colors[category]
            red, green, blue = color if category in self.stuff else colors.near(color)
            key = red + 256 * green + 65536 * blue
            ids_HW[mask_HW] = key
            infos.append(segment_info(key, category, mask_HW))
        annotation = {"image_id": item.name, "file_name": f"{item.name}.png", "segments_info": infos}
        return Made(encode(ids_to_rgb(ids_HW)), [image_info(item.name, item.facts, size), annotation])


class SegmentColors:
    """Distinct colours of objects: the class's own for its first object, similar ones for the others."""

    def __init__(self, name: str, taken: set[tuple[int, int, int]]):
        self.random = np.random.default_rng(zlib.crc32(name.encode(errors="surrogatepass")))
        self.taken = taken

    def near(self, color: tuple[int, int, int]) -> tuple[int, int, int]:
        chosen = color
        while chosen in self.taken:
            shifted = np.array(color) + self.random.integers(-_NEAR, _NEAR, 3, endpoint=True)
            chosen = tuple(int(value) for value in shifted.clip(0, 255))
        self.taken.add(chosen)
        return chosen


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ade20kTable:
    """Functions that join the entries of images to a COCO JSON."""

    categories: tuple[dict[str, Any], ...]

    def panoptic(self, entries: list[Any]) -> str:
        images, annotations = zip(*entries, strict=True) if entries else ((), ())
        return json.dumps({"images": images, "annotations": annotations, "categories": self.categories})

    def instances(self, entries: list[Any]) -> str:
        images, rows = zip(*entries, strict=True) if entries else ((), ())
        numbered = [{"id": i, **row} for i, row in enumerate((row for each in rows for row in each), start=1)]
        return json.dumps({"images": images, "categories": self.categories, "annotations": numbered})


def _published() -> dict[str, Any]:
    return read_yaml(Path(__file__).parent / "tables" / "ade20k.yaml")


def panoptic_categories() -> tuple[dict[str, Any], ...]:
    published = _published()
    names, colors = published["panoptic_names"], published["panoptic_colors"]
    return tuple(
        {
            "name": names.get(c.id, c.name),
            "id": c.id,
            "isthing": int(c.isthing),
            "color": list(colors.get(c.id, c.color)),
        }
        for c in load_categories("ade20k")
    )


def instance_categories() -> tuple[dict[str, Any], ...]:
    names = _published()["instance_names"]
    return tuple({"id": c.id, "name": names.get(c.id, c.name)} for c in load_categories("ade20k-instance"))


# --- plan -------------------------------------------------------------------------------------------------------------


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: an image has no annotation, or an annotation has no image.
    """
    counts, stages, needed, notes = [], [], [], []
    for split, (short, size) in SPLITS.items():
        images, labels = tree.names(f"images/{split}", IMAGES), tree.names(f"annotations/{split}", ".png")
        both = pairs(images, labels, partial=partial)
        counts.append(Count(split, len(both), size))
        if not both:
            continue
        out = f"annotations_detectron2/{split}"
        items = [Item(stem(mask), (mask,), f"{out}/{stem(mask)}.png") for _, mask in both]
        stages.append(Stage(out, items, labels_minus_one))
        objects = tree.names(f"annotations_instance/{split}", ".png")
        needed += [name for pair in both for name in pair]
        if objects:
            needed += objects
            stages += _richer(short, both, pairs(images, objects, partial=partial))
        else:
            notes.append(f"annotations_instance/{split} is missing: {split} is good for semantic models only. {_MORE}")
    return Plan(tuple(counts), tuple(stages), (*needed, *filter(tree.has, ("objectInfo150.txt",))), tuple(notes))


def _richer(short: str, labels: list[tuple[str, str]], objects: list[tuple[str, str]]) -> list[Stage]:
    """Return the stages of a split that need objects."""
    categories = panoptic_categories()
    things = ObjectReader(tuple(row["id"] for row in categories if row["isthing"]))
    stuff = frozenset(row["id"] for row in categories if not row["isthing"])
    segments = Ade20kSegments(things, tuple(tuple(row["color"]) for row in categories), stuff)
    of_image, folder = dict(labels), f"ade20k_panoptic_{short}"
    both = [(image, mask) for image, mask in objects if image in of_image]
    plain = [Item(stem(image), (mask,), None, PurePosixPath(image).name) for image, mask in both]
    full = [
        Item(i.name, (of_image[p], m), f"{folder}/{i.name}.png", i.facts) for i, (p, m) in zip(plain, both, strict=True)
    ]
    return [
        Stage(
            f"ade20k_instance_{short}.json",
            plain,
            ObjectEntry(things),
            f"ade20k_instance_{short}.json",
            Ade20kTable(instance_categories()).instances,
        ),
        Stage(folder, full, segments, f"{folder}.json", Ade20kTable(categories).panoptic),
    ]


_MORE = (
    "The objects are a download of their own, which may stay packed beside the other folders: "
    "sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar"
)
PREPARER = Preparer(
    title="ADE20K (SceneParse150)",
    folder="ADEChallengeData2016",
    marks=("images/training", "images/validation", "annotations/training", "annotations_instance"),
    layout="{images,annotations,annotations_instance}/{training,validation}; the last only for panoptic and instance",
    origin="data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and "
    "sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar",
    licence="non-commercial research and education",
    plan=plan,
    hashes={"ADEChallengeData2016.zip": "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"},
)
