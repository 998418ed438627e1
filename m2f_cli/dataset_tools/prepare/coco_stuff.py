"""COCO-Stuff-10K v1.0 (docs/methods/published-behaviour.md#8-6): label maps from MATLAB files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ...errors import DataError, MissingDependency
from ...runtime.trees import Tree
from .base import Count, Item, Made, Plan, Preparer, Stage, as_it_is, class_file
from .pixels import encode

_SIZES = {"train": 9000, "test": 1000}
_FIRST = 2  # the value of the first class: 1 is "unlabeled", which the subtraction turns into 255


def labels_from_matlab(tree: Tree, item: Item) -> Made:
    """Return the array S of a .mat file as class numbers.

    The files are MATLAB 7.3, which is HDF5 and stores matrices transposed.

    Raises:
        DataError: the file is missing, damaged, or without S.
        MissingDependency: h5py is not installed.
    """
    [name] = item.sources
    return Made(encode((_read_s(tree, name).astype(np.uint8) - np.uint8(_FIRST)).T.copy()))


def _read_s(tree: Tree, name: str) -> np.ndarray:
    h5py = _h5py()
    content = io.BytesIO(tree.read(name))
    try:
        with h5py.File(content, "r") as file:
            values_WH = file["S"][:]
    except (OSError, KeyError) as error:
        hint = "Copy or download it again."
        raise DataError(f"{tree}: {name} is damaged, or has no array S: {error}.", hint=hint) from error
    if values_WH.ndim != 2 or not 1 <= values_WH.min() <= values_WH.max() <= 172:
        hint = "The release v1.0 is needed: later ones number the classes differently."
        raise DataError(f"{tree}: S of {name} should be a matrix of values from 1 to 172.", hint=hint)
    return values_WH


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependency("h5py", "reading the annotations of COCO-Stuff-10K", extra="prepare") from error
    return h5py


def plan(tree: Tree, partial: bool) -> Plan:
    """Return the plan of the preparation.

    Raises:
        DataError: a list, an image or an annotation is missing.
        MissingDependency: h5py is not installed.
    """
    _h5py()  # fails before any work
    counts, stages = [], []
    for split, size in _SIZES.items():
        names = _listed(tree, split, partial)
        counts.append(Count(split, len(names), size, sure=False))
        images = [Item(n, (f"images/{n}.jpg",), f"images_detectron2/{split}/{n}.jpg") for n in names]
        labels = [Item(n, (f"annotations/{n}.mat",), f"annotations_detectron2/{split}/{n}.png") for n in names]
        stages.append(Stage(f"images_detectron2/{split}", images, as_it_is))
        stages.append(Stage(f"annotations_detectron2/{split}", labels, labels_from_matlab))
    return Plan(tuple(counts), (*stages, class_file("coco-stuff-10k")))


def _listed(tree: Tree, split: str, partial: bool) -> list[str]:
    file = f"imageLists/{split}.txt"
    if not tree.has(file):
        raise DataError(f"{tree} has no {file}.", hint=PREPARER.how_to_get)
    names = tree.read(file).decode().split()
    there = [set(tree.names("images", ".jpg")), set(tree.names("annotations", ".mat"))]
    whole = [n for n in names if f"images/{n}.jpg" in there[0] and f"annotations/{n}.mat" in there[1]]
    if len(whole) < len(names) and not partial:
        missing = next(name for name in names if name not in whole)
        raise DataError(
            f"{tree}: {len(names) - len(whole)} of {len(names)} images of {file} lack images/*.jpg or "
            f"annotations/*.mat, such as {missing}.",
            hint=f"The copy or download is incomplete: complete it, or use --partial. {PREPARER.how_to_get}",
        )
    return whole


PREPARER = Preparer(
    title="COCO-Stuff-10K",
    folder="coco/coco_stuff_10k",
    marks=("imageLists", "annotations", "images"),
    layout="imageLists/{train,test}.txt, images/*.jpg and annotations/*.mat",
    origin="https://github.com/nightrome/cocostuff10k",
    licence="annotations CC BY 4.0; the images belong to their authors on Flickr",
    plan=plan,
)
