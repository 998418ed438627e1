"""Common parts of COCO's JSON files of instances and of panoptic segments."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...structures import schemas
from ...structures.schemas import read_as, same_key, shown
from .files import read_json
from .layout import find_split, spellings

YEAR = "[0-9][0-9][0-9][0-9]"


@dataclass(frozen=True)
class CocoFile:
    """Parsed COCO JSON file.

    Attributes:
        path: the file.
        categories: the rows of the file.
        images: the row of each image id, in the order of the file.
        annotations: the rows of each image id that has some.
        notes: remarks for the user.
    """

    path: Path
    categories: list[Any]
    images: dict[int | str, dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]
    notes: tuple[str, ...]

    def file_names(self) -> list[str]:
        return [image["file_name"] for image in self.images.values()]

    def size(self, key: int | str) -> tuple[int, int] | None:
        """Return the (height, width) of an image, or None if the file does not state it."""
        image = self.images[key]
        return (image["height"], image["width"]) if image.get("height") and image.get("width") else None


def read_coco(path: Path) -> CocoFile:
    """Read a COCO JSON.

    Raises:
        DataError: the file is unreadable, damaged or without images; an entry lacks its key; or two images share an id.
    """
    tree = read_json(path, "images", "annotations", "categories")
    images = _images(tree["images"], path)
    annotations: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for position, annotation in enumerate(tree["annotations"]):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if type(image_id) not in (int, str) or image_id not in images:
            image_id = _image_id(annotation, images, f"{path}: annotation {position}")
        annotations[image_id].append(annotation)
    notes = []
    strays = sorted(annotations.keys() - images.keys(), key=str)
    if strays:
        notes.append(
            f"annotations of {len(strays)} images that {path.name} does not list are left out, such as "
            f"those of image_id {shown(strays[0])}"
        )
    if len(images) < len(tree["images"]):
        notes.append(f"{len(tree['images']) - len(images)} images of {path.name} repeat the id of another")
    notes += _duplicates(tree["annotations"], path)
    return CocoFile(path, tree["categories"], images, dict(annotations), tuple(notes))


def _images(rows: list[Any], path: Path) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        image = row if _is_plain(row) else read_as(schemas.Image, row, f"{path}: image {position}").model_dump()
        first = images.setdefault(image["id"], image)
        if first["file_name"] != image["file_name"]:
            raise DataError(
                f"{path}: the image id {shown(image['id'])} stands for {first['file_name']} and {image['file_name']}.",
                hint="Give each image an id of its own, or export the data again.",
            )
    if not images:
        raise DataError(f"{path} lists no images.", hint="Choose another split, or export the data again.")
    return images


def _is_plain(row: Any) -> bool:
    """Return True if an image has the usual form and needs no schema. This keeps large files quick to read."""
    return (
        type(row) is dict
        and type(row.get("id")) is int
        and type(row.get("height")) is type(row.get("width")) is int
        and row["height"] > 0 < row["width"]
        and type(row.get("file_name")) is str
        and row["file_name"][-4:-3] == "."
        and "\0" not in row["file_name"]
    )


def _image_id(annotation: Any, images: dict[int | str, Any], where: str) -> int | str:
    if not isinstance(annotation, dict) or "image_id" not in annotation:
        raise DataError(f"{where} has no 'image_id': {shown(annotation)}.", hint="Export the data again.")
    try:
        return same_key(schemas.key(annotation["image_id"]), images)
    except ValueError as reason:
        said = shown(annotation["image_id"])
        raise DataError(f"{where} has the image_id {said}, which should be {reason}.") from reason


def _duplicates(annotations: list[dict[str, Any]], path: Path) -> list[str]:
    ids = [row["id"] for row in annotations if type(row.get("id")) is int]
    count = len(ids) - len(set(ids))
    if not count:
        return []
    repeated = next(key for key, times in Counter(ids).items() if times > 1)
    return [
        f"{count} annotations of {path.name} repeat the id of another, such as {repeated}: each counts as an object"
    ]


def find_json(folder: Path, kind: str, split: str) -> tuple[Path, tuple[str, ...]]:
    """Return annotations/{kind}_{split}.json, or the file of that split with a year, and notes.

    Raises:
        DataError: there is no such file, or there are several years and none was chosen.
    """
    others = [path.stem.removeprefix(f"{kind}_") for path in sorted((folder / "annotations").glob(f"{kind}_*.json"))]
    path, _, notes = find_split(folder, split, lambda name: json_at(folder, kind, name), others)
    return path, notes


def json_at(folder: Path, kind: str, name: str) -> Path | None:
    """Return the JSON of a split under exactly this name, with or without a year.

    Raises:
        DataError: there are several years.
    """
    exact = folder / "annotations" / f"{kind}_{name}.json"
    if exact.is_file():
        return exact
    years = sorted((folder / "annotations").glob(f"{kind}_{name}{YEAR}.json"))
    if len(years) > 1:
        tags = [path.stem.removeprefix(f"{kind}_") for path in years]
        raise DataError(f"{folder} has the split {name!r} of several years.", hint=f"Choose: {', '.join(tags)}.")
    return years[0] if years else None


def has_json(folder: Path, kind: str) -> bool:
    return any((folder / "annotations").glob(f"{kind}_*.json"))


def image_folders(folder: Path, json_path: Path, kind: str, split: str) -> list[Path]:
    """Return the folders that may hold the images of a JSON, best first."""
    tag = json_path.stem.removeprefix(f"{kind}_")
    names = dict.fromkeys((tag, *spellings(split)))
    inside = [parent / name for name in names for parent in (folder, folder / "images")]
    return [*inside, folder / "images", folder / "data", folder]  # "data" is FiftyOne's
