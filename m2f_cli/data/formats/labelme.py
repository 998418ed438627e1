"""LabelMe: a JSON with shapes for each image, in {split}/ or in one folder without splits."""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import DataError
from ...runtime import documents
from ...structures import schemas
from ...structures.annotations import AnnotatedObject, InstanceAnnotation
from ...structures.categories import Categories, from_names
from ...structures.images import decode_image, image_size, open_image
from ...structures.rle import encode_mask, encode_polygons
from ..records import DataSet, PassedOver, Record, check_size, is_file
from .base import Format, ReadOptions, choose_task
from .class_map import ClassMap, class_names, map_classes, read_class_file
from .files import read_json
from .layout import IMAGES, NAMES, find_split, record_name
from .shapes import check_canvas, check_polygons

CROWD = "iscrowd"  # the flag of a shape that is a group; LabelMe keeps it
NO_CLASSES = ("__ignore__", "_background_")  # entries of labels.txt in LabelMe's own examples
_CLASS_FILES = ("classes.yaml", "classes.yml", "classes.txt", "labels.txt")
_POLYGONS = ("polygon", "oriented_rectangle")  # the latter since LabelMe 6: its four corners
_AREAS = (*_POLYGONS, "rectangle", "circle", "mask")
_ALL = "train"  # the split of a folder without splits
_CIRCLE = 64  # corners
_TRIED, _SHOWN = 3, 8
_LARGEST = 64 << 20  # bytes; larger JSON files are not opened to recognise the format


@dataclass(frozen=True)
class EmbeddedImage:
    """Reader of an image that a JSON contains."""

    file: Path

    def __call__(self) -> np.ndarray:
        """Read the image, (H, W, 3) uint8 RGB.

        Raises:
            DataError: the JSON contains no image, or a damaged one.
        """
        data = read_json(self.file, "shapes").get("imageData")
        if not isinstance(data, str):
            raise DataError(f"The image of {self.file} is missing.", hint="Put it beside the json.")
        try:
            content = base64.b64decode(data)
        except ValueError as error:
            raise DataError(f"{self.file}: its imageData is no image: {error}.") from error
        return decode_image(content, f"The imageData of {self.file}")


@dataclass(frozen=True)
class ShapesOfImage:
    """Reader of the objects of one image: polygons, rectangles, circles and masks.

    Shapes that share a label and group_id are one object. Points and lines have no area and are passed over.

    Attributes:
        file: the JSON file.
        image: the image file. None if the JSON contains the image.
        classes: the classes.
        ids: category id of each label.
    """

    file: Path
    image: Path | None
    classes: ClassMap
    ids: Mapping[str, int]

    def __call__(self) -> InstanceAnnotation:
        """Read the objects.

        Raises:
            DataError: the JSON or a shape is damaged, a label is unknown, or the size is not that of the image.
        """
        tree = read_json(self.file, "shapes")
        size = self._size(tree)
        check_canvas(size, str(self.file))
        objects = [self._object(group, size) for group in _groups(tree["shapes"], self.file)]
        return InstanceAnnotation(size, [item for item in objects if item is not None], source=self.file)

    def _size(self, tree: dict[str, Any]) -> tuple[int, int]:
        tree = schemas.read_as(schemas.LabelMeImage, tree, str(self.file), hint="Save it with LabelMe again.")
        said = (tree.imageHeight, tree.imageWidth) if tree.imageHeight and tree.imageWidth else None
        if self.image is None:
            return said or EmbeddedImage(self.file)().shape[:2]
        size = image_size(self.image)
        if said is not None:
            check_size(self.image, size, said, self.file)
        return size

    def _object(self, group: list[dict[str, Any]], size: tuple[int, int]) -> AnnotatedObject | None:
        name = str(group[0].get("label"))
        if name in NO_CLASSES:
            return None
        if name not in self.ids:
            raise DataError(
                f"{self.file} has the label {name!r}; known are {', '.join(list(self.ids)[:_SHOWN])}.",
                hint="Add it to the file of classes, or correct the shape.",
            )
        label = self.classes.number(self.ids[name], str(self.file))
        shapes = [shape for shape in (_read_shape(shape, size, self.file) for shape in group) if shape is not None]
        if label is None or not shapes:
            return None
        return AnnotatedObject(label, _union(shapes, size), any(_is_crowd(shape, self.file) for shape in group))


def _is_crowd(shape: dict[str, Any], file: Path) -> bool:
    flags = shape.get("flags")
    try:
        return isinstance(flags, dict) and flags.get(CROWD) is not None and schemas.flag(flags[CROWD])
    except ValueError as reason:
        said = schemas.shown(flags[CROWD])
        raise DataError(f"{file}: the flag {CROWD} of a shape is {said}, which should be {reason}.") from reason


def _groups(shapes: list[Any], file: Path) -> list[list[dict[str, Any]]]:
    """Return the shapes of each object. Objects are in the order of their first shapes."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict):
            raise DataError(f"{file}: a shape should be an object, not {str(shape)[:60]}.")
        group = shape.get("group_id")
        groups.setdefault(number if group is None else (str(shape.get("label")), str(group)), []).append(shape)
    return list(groups.values())


def _read_shape(shape: dict[str, Any], size: tuple[int, int], file: Path) -> np.ndarray | dict[str, Any] | None:
    """Return a polygon (points, 2), a run-length mask, or None for a shape without area."""
    if _why_passed_over(shape) is not None:
        return None
    kind = shape.get("shape_type") or "polygon"
    try:
        points_P2 = np.array(shape.get("points"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: the points of a {kind} should be pairs of numbers.") from error
    if not np.isfinite(points_P2).all() or (kind not in _POLYGONS and len(points_P2) != 2):
        raise DataError(f"{file}: a {kind} has the points {points_P2.tolist()}."[:300], hint="Draw it again.")
    if kind == "mask":
        return _read_mask(shape.get("mask"), points_P2, size, file)
    outline_P2 = _outline(kind, points_P2)
    check_polygons([outline_P2], size, f"{file}: a {kind}")
    return outline_P2


def _outline(kind: str, points_P2: np.ndarray) -> np.ndarray:
    if kind == "rectangle":
        (left, top), (right, bottom) = points_P2
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if kind == "circle":
        turn = np.arange(_CIRCLE) * 2 * np.pi / _CIRCLE
        radius = np.hypot(*(points_P2[1] - points_P2[0]))
        return points_P2[0] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return points_P2


def _why_passed_over(shape: dict[str, Any]) -> str | None:
    """Return the reason for leaving out a shape, as in `PassedOver`, or None for a shape that is read."""
    kind = shape.get("shape_type") or "polygon"
    if str(shape.get("label")) in NO_CLASSES:
        return f"shapes of the label {shape['label']}"
    if kind not in _AREAS:
        return f"shapes of the type {schemas.shown(kind)}"
    points = shape.get("points")
    is_short = kind in _POLYGONS and isinstance(points, list) and len(points) < 3
    return "polygons of fewer than three points" if is_short else None


def _read_mask(data: Any, corners_22: np.ndarray, size: tuple[int, int], file: Path) -> dict[str, Any]:
    """Return the run-length mask of a PNG whose corner pixels have their centres at `corners_22`."""
    try:
        with open_image(base64.b64decode(data), "it") as image:
            inside_HW = np.array(image) > 0
    except (TypeError, ValueError, DataError) as error:
        reason = str(error).rstrip(".")
        raise DataError(f"{file}: a shape of the type mask holds no PNG: {reason}.") from error
    left, top = (int(edge) for edge in corners_22[0])
    mask_HW = np.zeros(size, dtype=np.uint8, order="F")
    window = mask_HW[max(top, 0) : top + inside_HW.shape[0], max(left, 0) : left + inside_HW.shape[1]]
    if inside_HW.ndim != 2 or window.shape != inside_HW.shape:
        raise DataError(f"{file}: a mask of {inside_HW.shape} pixels at x = {left}, y = {top} leaves the image.")
    window[...] = inside_HW
    return encode_mask(mask_HW)


def _union(shapes: list[np.ndarray | dict[str, Any]], size: tuple[int, int]) -> list[np.ndarray] | dict[str, Any]:
    polygons = [shape for shape in shapes if isinstance(shape, np.ndarray)]
    if len(polygons) == len(shapes):
        return polygons
    masks = [shape for shape in shapes if isinstance(shape, dict)]
    return coco_mask.merge([encode_polygons(polygons, size), *masks])


# --- the folder -------------------------------------------------------------------------------------------------------


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    choose_task(options.task, ("instance",), folder)
    files, name, notes = find_split(folder, split, lambda name: _files_at(folder, name))
    seen: dict[Path, list[dict[str, Any]]] = {}
    own = _own_classes(folder, seen)
    classes = map_classes(own, options.classes, folder)
    ids = {category.name: category.id for category in own}
    below = folder / name if (folder / name).is_dir() else folder
    records = tuple(_record(file, below, classes, ids) for file in files)
    loose = _images(below) - {record.image for record in records}
    more = (f"{len(loose)} images have no json and are left out: nobody annotated them",) if loose else ()
    passed = _passed_over(files, seen)
    notes = (*notes, *more, *classes.notes, *passed.notes)
    return DataSet(folder.name, "labelme", split, "instance", classes.categories, records, notes, passed)


def _passed_over(files: Sequence[Path], seen: Mapping[Path, list[dict[str, Any]]]) -> PassedOver:
    passed = PassedOver()
    for file in files:
        try:
            shapes = seen[file] if file in seen else _outlines_of(file)
        except DataError:
            continue  # the image is refused when it is read
        for number, shape in enumerate(shapes):
            reason = _why_passed_over(shape)
            if reason is not None:
                passed.add(reason, f"shape {number} of {file}")
    return passed


def _outlines_of(file: Path) -> list[dict[str, Any]]:
    """Return the shapes of a JSON without masks and with at most three points.

    This small part is enough to decide which of them are read.
    """
    kept = ("label", "shape_type")
    return [
        {**{key: shape.get(key) for key in kept}, "points": _first(shape.get("points"))}
        for shape in read_json(file, "shapes")["shapes"]
        if isinstance(shape, dict)
    ]


def _first(points: Any) -> Any:
    return points[:3] if isinstance(points, list) else None


def _record(file: Path, below: Path, classes: ClassMap, ids: dict[str, int]) -> Record:
    image = _image_of(file)
    name = record_name(file.relative_to(below))
    read_image = EmbeddedImage(file) if image is None else None
    return Record(name, image, ShapesOfImage(file, image, classes, ids), read_image=read_image)


def _image_of(file: Path) -> Path | None:
    """Return the image beside a JSON, else the one that the JSON names, or None if only the JSON may contain it."""
    beside = next((path for path in map(file.with_suffix, IMAGES) if path.is_file()), None)
    if beside is not None:
        return beside
    said = read_json(file, "shapes").get("imagePath")
    # LabelMe on Windows writes backslashes.
    there = file.parent / PureWindowsPath(said).as_posix() if isinstance(said, str) and said else file
    return there if there != file and is_file(there) else None


def _own_classes(folder: Path, seen: dict[Path, list[dict[str, Any]]]) -> Categories:
    """Return the classes of a file beside the splits, else all labels of all splits in alphabetical order.

    Shapes that were read for the latter are added to `seen`.
    """
    path = next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)
    if path is not None and path.suffix != ".txt":
        return tuple(dataclasses.replace(category, isthing=True) for category in read_class_file(path).categories)
    if path is not None:
        names = class_names(path)
    else:
        seen |= {file: _outlines_of(file) for file in sorted(_jsons(folder))}
        names = sorted({str(shape.get("label")) for shapes in seen.values() for shape in shapes})
    names = [name for name in names if name not in NO_CLASSES]
    if not names:
        raise DataError(f"{path or folder} names no class.", hint="Give the shapes labels first.")
    return from_names(names, where=path or folder)


def _files_at(folder: Path, name: str) -> list[Path] | None:
    if (folder / name).is_dir():
        return sorted(_jsons(folder / name)) or None
    has_splits = any((folder / each).is_dir() and any(_jsons(folder / each)) for each in NAMES)
    return None if has_splits or name != _ALL else sorted(_jsons(folder)) or None


def _jsons(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*.json") if not path.name.startswith((".", "_")))


def _images(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and not p.name.startswith(".")}


def _finds(folder: Path) -> bool:
    splits = [folder / name for name in NAMES if (folder / name).is_dir()]
    candidates = (folder.glob("*.json"), *(split.glob(kind) for split in splits for kind in ("*.json", "*/*.json")))
    return any(_is_labelme(path) for paths in candidates for path in itertools.islice(paths, _TRIED))


def _is_labelme(path: Path) -> bool:
    try:
        content = documents.read_bytes(path, largest=_LARGEST)
    except DataError:
        return False
    try:
        tree = documents.parse_json(content, str(path))
    except DataError:  # damaged or in another encoding, which reading reports
        return b'"shapes"' in content and b'"imagePath"' in content
    return isinstance(tree, dict) and isinstance(tree.get("shapes"), list) and "imagePath" in tree


FORMAT = Format(
    layout="{train,val}/NAME.jpg with NAME.json of LabelMe beside it, or all of them in one folder",
    finds=_finds,
    open=open_split,
)
