"""YOLO segmentation: data.yaml, and beside images/ a folder labels/ with a text file of polygons per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config.presets import read_yaml
from ...errors import ConfigError, DataError
from ...runtime import documents
from ...runtime.files import read_file
from ...structures import schemas
from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.categories import TEXTS, from_names
from ...structures.images import image_size
from ..records import DataSet, Record, is_file, is_there
from .base import Format, ReadOptions, choose_task
from .class_map import ClassMap, listed_names, map_classes
from .layout import find_split, images_below, record_name
from .shapes import check_polygons

_SLACK = 1e-3  # tolerance in image edges, because coordinates are often rounded outwards


@dataclass(frozen=True)
class PolygonFile:
    """Reader of the objects of one image. An image without a file has no objects."""

    labels: Path
    image: Path
    classes: ClassMap

    def __call__(self) -> InstanceAnnotation:
        """Read the objects.

        Raises:
            DataError: a line is not a polygon, a class is unknown, or coordinates are not shares of the image.
        """
        height, width = image_size(self.image)
        lines = documents.read_lines(self.labels) if is_file(self.labels) else []
        objects = [self._object(line, number, (width, height)) for number, line in enumerate(lines, 1) if line.strip()]
        return InstanceAnnotation((height, width), [item for item in objects if item is not None])

    def _object(self, line: str, number: int, edges: tuple[int, int]) -> AnnotatedObject | None:
        where = f"{self.labels}, line {number}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError as error:
            raise DataError(f"{where} should be numbers, not {line[:60]!r}.") from error
        if len(values) == 5:
            raise DataError(f"{where} is a box, not a polygon.", hint="Boxes are not enough to segment.")
        if len(values) < 7 or len(values) % 2 == 0 or not values[0].is_integer():
            raise DataError(f"{where} should be `class x y x y x y …`, not {line[:60]!r}.")
        shares_P2 = np.array(values[1:]).reshape(-1, 2)
        if not ((shares_P2 >= -_SLACK) & (shares_P2 <= 1 + _SLACK)).all():
            raise DataError(
                f"{where} has coordinates from {shares_P2.min():g} to {shares_P2.max():g}, which should be 0 to 1.",
                hint="Divide x by the image's width and y by its height.",
            )
        label = self.classes.number(int(values[0]), where)
        polygon_P2 = np.clip(shares_P2, 0, 1) * edges
        check_polygons([polygon_P2], edges[::-1], where)
        return None if label is None else AnnotatedObject(label, [polygon_P2])


def find_yaml(folder: Path) -> Path | None:
    """Return data.yaml, or else the first YAML file that has names and splits, or None."""
    for path in (folder / "data.yaml", folder / "data.yml", *sorted(folder.glob("*.y*ml"))):
        if path.is_file() and _is_description(path):
            return path
    return None


def _is_description(path: Path) -> bool:
    try:
        content = read_file(path).replace(b"\0", b"")  # drops the null bytes of UTF-16, which reading reports later
    except OSError:
        return False
    lines = content.decode("utf-8-sig", errors="ignore").splitlines()
    keys = {line.split(":")[0].strip() for line in lines if ":" in line and not line[:1].isspace()}
    return "names" in keys and bool(keys & {"train", "val"})


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    choose_task(options.task, ("instance",), folder)
    path = find_yaml(folder)
    if path is None:
        raise DataError(f"{folder} has no data.yaml.", hint="Write one with the keys train, val and names.")
    tree = read_yaml(path, texts=TEXTS)
    said = schemas.read_as(schemas.YoloDataset, tree, str(path), error=ConfigError, hint=None)
    names = listed_names(said.names, path)
    if said.nc not in (None, len(names)):
        raise ConfigError(f"{path}: nc = {said.nc}, but there are {len(names)} names.", hint="Correct one of them.")
    classes = map_classes(from_names(names, where=path), options.classes, path)
    images, _, notes = find_split(folder, split, lambda name: _images(path, tree, name))
    records = tuple(_record(image, classes) for image in images)
    empty = [record for record in records if not is_there(record.read_annotation.labels)]
    if len(empty) == len(records):
        raise DataError(
            f"No image of the split {split!r} has polygons, such as {records[0].read_annotation.labels}.",
            hint="The text files lie in a folder `labels` beside `images`, with the names of the images.",
        )
    if empty:
        notes = (
            *notes,
            f"{len(empty)} of {len(records)} images have no text file and count as empty, such as {empty[0].image}",
        )
    return DataSet(folder.name, "yolo-seg", split, "instance", classes.categories, records, (*notes, *classes.notes))


def _images(path: Path, tree: dict[str, Any], split: str) -> list[Path] | None:
    """Return the images of a split, which is a folder, several folders, or a text file with an image per line."""
    entries = tree.get(split)
    if entries is None:
        return None
    if isinstance(entries, str):
        entries = [entries]
    if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
        said = schemas.shown(entries)
        raise ConfigError(f"{path}: {split} = {said} should be a folder, a text file, or a list of these.")
    images = []
    for entry in entries:
        there = _resolve(path, tree, entry)
        images += _listed(path, tree, there) if there.suffix == ".txt" else images_below(there)
    if not images:
        raise DataError(f"{path}: the split {split!r} has no images.")
    return images


def _listed(path: Path, tree: dict[str, Any], text: Path) -> list[Path]:
    return [_resolve(path, tree, line.strip()) for line in documents.read_lines(text) if line.strip()]


def _resolve(path: Path, tree: dict[str, Any], entry: str) -> Path:
    """Return the path that an entry of data.yaml means.

    Exporters write paths from the root of the data, from the YAML file, or from a folder that does not exist.
    """
    root = Path(str(tree.get("path") or ""))
    written = dict.fromkeys((Path(entry), Path(entry.replace("\\", "/"))))  # Windows separates folders by backslashes
    candidates = [path.parent / root / plain for plain in written]
    for plain in written:
        below = Path(*(part for part in plain.parts if part not in ("..", ".", plain.anchor)))
        candidates += [path.parent / plain, path.parent / below]
    return next(
        (candidate for candidate in candidates if is_there(candidate)), candidates[-1 if len(written) > 1 else 0]
    )


def _record(image: Path, classes: ClassMap) -> Record:
    parts = list(image.parts)
    if "images" not in parts[:-1]:
        raise DataError(f"{image} is in no folder `images`, beside which `labels` would be.", hint="Rename its folder.")
    at = len(parts) - 2 - parts[-2::-1].index("images")
    labels = Path(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
    return Record(record_name(Path(*parts[at + 1 :])), image, PolygonFile(labels, image, classes))


FORMAT = Format(
    layout="data.yaml, images/{train,val} and labels/{train,val}/NAME.txt",
    finds=lambda folder: find_yaml(folder) is not None,
    open=open_split,
)
