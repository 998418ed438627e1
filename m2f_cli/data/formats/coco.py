"""What COCO's json files of instances and of panoptic segments have in common."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from .files import read_json
from .layout import find_split, spellings

YEAR = "[0-9][0-9][0-9][0-9]"


@dataclass(frozen=True)
class CocoFile:
    """A parsed json file. `annotations` has those of each image id; `images` is in the order of the file."""

    path: Path
    categories: list[Any]
    images: dict[int | str, dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]
    notes: tuple[str, ...]

    def file_names(self) -> list[str]:
        return [image["file_name"] for image in self.images.values()]

    def size(self, key: int | str) -> tuple[int, int] | None:
        """(height, width) of an image; None where the file does not say."""
        image = self.images[key]
        return (image["height"], image["width"]) if image.get("height") and image.get("width") else None


def read_coco(path: Path) -> CocoFile:
    """Read a COCO json.

    Raises:
        DataError: unreadable, damaged, without pictures, or with an entry that lacks its key.
    """
    tree = read_json(path, "images", "annotations", "categories")
    images = {_value(image, "id", path): image for image in tree["images"]}
    if not images:
        raise DataError(f"{path} lists no pictures.", hint="Choose another split, or export the data again.")
    for image in images.values():
        if not isinstance(_value(image, "file_name", path), str):
            raise DataError(f"{path}: the file_name {image['file_name']!r} should be text.")
    annotations = defaultdict(list)
    for annotation in tree["annotations"]:
        annotations[_value(annotation, "image_id", path)].append(annotation)
    strays = annotations.keys() - images.keys()
    notes = [f"annotations of {len(strays)} pictures that {path.name} does not list are left out"] if strays else []
    if len(images) < len(tree["images"]):
        notes.append(f"{len(tree['images']) - len(images)} pictures of {path.name} repeat the id of another")
    return CocoFile(path, tree["categories"], images, dict(annotations), tuple(notes))


def _value(entry: Any, key: str, path: Path) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get(key), (int, str)):
        raise DataError(f"{path}: an entry has no usable {key!r}: {str(entry)[:80]}.", hint="Export the data again.")
    return entry[key]


def find_json(folder: Path, kind: str, split: str) -> tuple[Path, tuple[str, ...]]:
    """annotations/{kind}_{split}.json, or the one of that split with a year, and notes.

    Raises:
        DataError: none, or several years of which none was chosen.
    """
    path, _, notes = find_split(folder, split, lambda name: json_at(folder, kind, name))
    return path, notes


def json_at(folder: Path, kind: str, name: str) -> Path | None:
    """The json of a split under this very name, with or without a year.

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


def picture_folders(folder: Path, json_path: Path, kind: str, split: str) -> list[Path]:
    """Where the pictures of a json may be, best first."""
    tag = json_path.stem.removeprefix(f"{kind}_")
    names = dict.fromkeys((tag, *spellings(split)))
    inside = [parent / name for name in names for parent in (folder, folder / "images")]
    return [*inside, folder / "images", folder]
