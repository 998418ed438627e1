"""Inspection of one annotated image: its usability, regions and size. Its pixels are not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.records import ImageFile, PackedImage, Record, check_size, is_file
from ...errors import DataError
from ...structures.images import open_small, read_image
from .near_duplicates import difference_hash, digest
from .region_stats import Regions, regions_of

DRAFT_EDGE = 64  # least edge in pixels for the hash of a JPEG; libjpeg decodes all of it at a reduced size
_JPEG = b"\xff\xd8"
# Kinds of problems by words in the messages of m2f's readers. The first match counts.
_WORDS = (
    ("missing-file", ("is missing", "There is no file")),
    ("size-mismatch", ("pixels (height x width)", "run lengths cover", "the size of its mask is")),
    ("unknown-class", ("holds the value", "has the category_id", "has the class number", "pixels of the segment")),
)


@dataclass(frozen=True)
class Problem:
    """Reason why an image cannot be used.

    Attributes:
        name: name of the image.
        kind: missing-file, damaged-picture, damaged-annotation, size-mismatch (image and annotation disagree) or
            unknown-class (an id that is out of range or not listed).
        message: description for the user.
    """

    name: str
    kind: str
    message: str


@dataclass(frozen=True)
class Look:
    """Result of inspecting one image, with either `regions` or a `problem`.

    Attributes:
        name: name of the image.
        size: (height, width). None if the image cannot be read.
        exact: digest of the content, see `near_duplicates.digest`. None if the image cannot be read.
        look: hash of the appearance, see `near_duplicates.difference_hash`. None if the image cannot be read or has too
            little contrast.
        num_bytes: size of the file.
        regions: the annotated regions.
        problem: the reason why the image cannot be used.
    """

    name: str
    size: tuple[int, int] | None = None
    exact: bytes | None = None
    look: bytes | None = None
    num_bytes: int = 0
    regions: Regions | None = None
    problem: Problem | None = None


def look_at(record: Record, num_classes: int) -> Look:
    """Inspect an image and its annotation. Both are read completely, as in training."""
    try:
        image = _image(record)
    except DataError as error:
        return Look(record.name, problem=_problem(record, error, "damaged-picture"))
    try:
        annotation = record.read_annotation()
        check_size(record.image or Path(record.name), image["size"], annotation.size)
        regions = regions_of(annotation)
        _check_labels(regions.labels, num_classes)
    except DataError as error:
        return Look(record.name, **image, problem=_problem(record, error, "damaged-annotation"))
    return Look(record.name, **image, regions=regions)


def _problem(record: Record, error: DataError, otherwise: str) -> Problem:
    kinds = (kind for kind, words in _WORDS if any(word in error.message for word in words))
    return Problem(record.name, next(kinds, otherwise), error.message)


def _check_labels(labels: Sequence[int], num_classes: int) -> None:
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise DataError(f"The annotation has the class number {wrong[0]}; there are {num_classes} classes.")


# --- the image ------------------------------------------------------------------------------------------------------


def _image(record: Record) -> dict[str, Any]:
    if isinstance(record.read_image, PackedImage):
        content = record.read_image.content()
        small, size = decode_small(content) or _whole(record.read_image())
    elif isinstance(record.read_image, ImageFile):
        content = _content(record.image)
        small, size = decode_small(content) or _whole(read_image(record.image))
    else:  # generated, or part of another file
        image_HW3 = record.read_image()
        small, content = Image.fromarray(image_HW3), image_HW3.tobytes()
        return {"size": image_HW3.shape[:2], "exact": digest(content), "look": difference_hash(small), "num_bytes": 0}
    return {"size": size, "exact": digest(content), "look": difference_hash(small), "num_bytes": len(content)}


def _content(path: Path) -> bytes:
    if not is_file(path):
        raise DataError(f"The annotated image {path} is missing.", hint="Copy it there, or drop its entry.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def decode_small(content: bytes) -> tuple[Image.Image, tuple[int, int]] | None:
    """Return a JPEG decoded to its end at a reduced size, and its full (height, width).

    None if the content is not a JPEG or cannot be decoded.
    """
    if not content.startswith(_JPEG):
        return None
    try:
        return open_small(content, DRAFT_EDGE)
    except DataError:
        return None  # `read_image` reports the error, or can read the file


def _whole(image_HW3: np.ndarray) -> tuple[Image.Image, tuple[int, int]]:
    return Image.fromarray(image_HW3), image_HW3.shape[:2]
