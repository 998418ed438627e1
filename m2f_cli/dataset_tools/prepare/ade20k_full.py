"""ADE20K-Full, 847 classes (docs/methods/published-behaviour.md#8-3).

The results are smaller images, and 16-bit label maps from the object classes of `_seg.png`. The classes are read from
the images' own files; the pickled index of the release is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ...config.presets import read_yaml
from ...errors import DataError
from ...runtime.trees import Tree
from .base import Count, Item, Made, Plan, Preparer, Stage, class_file, pairs, stem
from .pixels import encode, open_image, read_rgb

_SPLITS = {"training": ("train", 25574), "validation": ("val", 2000)}
_SHORT_SIDE = 512
_IGNORE = 65535
_SEG = "_seg"


def smaller(height: int, width: int) -> tuple[int, int]:
    """Return a (height, width) with a short side of at most 512. Images are never enlarged."""
    scale = min(1.0, _SHORT_SIDE / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def small_image(tree: Tree, item: Item) -> Made:
    """Return the image as RGB JPEG. An image that is small enough is not changed."""
    [name] = item.sources
    rgb_HW3 = np.array(open_image(tree, name).convert("RGB"))
    height, width = smaller(*rgb_HW3.shape[:2])
    if (height, width) == rgb_HW3.shape[:2]:
        return Made(tree.path(name) or tree.read(name))
    resized_HW3 = cv2.resize(rgb_HW3, (width, height), interpolation=cv2.INTER_LINEAR)
    return Made(encode(resized_HW3, "JPEG", quality=95))


@dataclass(frozen=True)
class SmallLabels:
    """Function that gives the class numbers of the 847, and 65535 elsewhere.

    Attributes:
        lookup: class number by the object index of the release.
    """

    lookup: np.ndarray = field(repr=False)

    def __call__(self, tree: Tree, item: Item) -> Made:
        """Return the label map of one image.

        Raises:
            DataError: the file is missing or damaged, or has an object index that the release does not have.
        """
        [name] = item.sources
        rgb_HW3 = read_rgb(tree, name)
        indices_HW = rgb_HW3[..., 0].astype(np.int32) // 10 * 256 + rgb_HW3[..., 1]
        if indices_HW.max() >= len(self.lookup):
            raise DataError(f"{tree}: {name} has the object index {indices_HW.max()}; the release has none above 3688.")
        labels_HW = self.lookup[indices_HW]
        height, width = smaller(*labels_HW.shape)
        if (height, width) != labels_HW.shape:
            labels_HW = cv2.resize(labels_HW, (width, height), interpolation=cv2.INTER_NEAREST)
        return Made(encode(labels_HW, "TIFF"))


def lookup_table() -> np.ndarray:
    """Return a table (3689,) uint16 from object indices of the release to class numbers.

    Indices of none of the 847 classes are 65535.
    """
    lookup = np.full(3689, _IGNORE, dtype=np.uint16)
    lookup[read_yaml(Path(__file__).parent / "tables" / "ade20k_full.yaml")["index_ids"]] = np.arange(847)
    return lookup


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: an image has no `_seg.png`, or the reverse.
    """
    images, labels = tree.names("images", ".jpg"), tree.names("images", "_seg.png")
    both = pairs(images, labels, lambda name: stem(name).removesuffix(_SEG), partial=partial)
    counts, stages, maker = [], [], SmallLabels(lookup_table())
    for split, (token, size) in _SPLITS.items():
        own = [(stem(image), image, mask) for image, mask in both if stem(image).split("_")[1:2] == [token]]
        counts.append(Count(split, len(own), size, sure=False))
        image_items = [Item(name, (image,), f"images_detectron2/{split}/{name}.jpg") for name, image, _ in own]
        masks = [Item(name, (mask,), f"annotations_detectron2/{split}/{name}.tif") for name, _, mask in own]
        stages.append(Stage(f"images_detectron2/{split}", image_items, small_image))
        stages.append(Stage(f"annotations_detectron2/{split}", masks, maker))
    return Plan(tuple(counts), (*stages, class_file("ade20k-full")))


PREPARER = Preparer(
    title="ADE20K-Full (847 classes)",
    folder="ADE20K_2021_17_01",
    marks=("images/ADE",),
    layout="images/ADE/{training,validation}/…/*.jpg, each with *_seg.png beside it (release 2021_17_01)",
    origin="https://ade20k.csail.mit.edu, after registration",
    licence="non-commercial research and education",
    plan=plan,
)
