"""Interface of a format that data sets are written in, and helpers that its writers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import yaml
from PIL import Image

from ...runtime.files import save_image
from ...structures import Task
from ...structures.annotations import Annotation
from ...structures.categories import Categories

# Rows of one image for each list of the split's shared JSON. A row whose "id" is None gets the next number.
Rows: TypeAlias = dict[str, list[dict[str, Any]]]
Lost: TypeAlias = Counter[str]

CLASSES = "classes.yaml"


@dataclass(frozen=True)
class Place:
    """Destination of one image.

    Attributes:
        split: name of the split.
        name: unique in its split, with "/" between folders and without suffix.
        suffix: suffix of the image, with its dot.
        image_id: unique in its split. The source's own ids are used if they are usable.
    """

    split: str
    name: str
    suffix: str
    image_id: int | str

    @property
    def file_name(self) -> str:
        return self.name + self.suffix


class Writer(Protocol):
    """Protocol of a writer of data sets with given classes.

    A writer is small, frozen, and sent to other processes. Methods that are not overridden do nothing.

    Attributes:
        images_per_file: number of images that `bundle` gets at once. None: it is not called.
    """

    images_per_file: int | None = None

    def image(self, place: Place) -> str:
        """Return the path of the image, relative to the root of the data set."""

    def annotate(self, root: Path, place: Place, annotation: Annotation) -> tuple[Rows, Lost]:
        """Write the annotation of an image.

        Returns:
            Rows for the split's JSON, and the number of losses by kind.

        Raises:
            DataError: this format cannot hold the annotation. No file is left behind then.
        """

    def bundle(self, root: Path, number: int, places: Sequence[Place]) -> None:
        """Put the files of the next images of a split into one file.

        Args:
            number: number of that file in the split, from 0 on.
            places: places of the images that were written, in their order; at least one.
        """

    def shared(self, split: str) -> str | None:
        """Return the path of the JSON that the images of a split share, relative to the root."""
        return None

    def head(self) -> dict[str, Any]:
        """Return the content of that JSON beside the rows."""
        return {}

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        """Write the files that the whole data set shares."""


@dataclass(frozen=True)
class OutputFormat:
    """Format that data sets are written in, one line of the group "converters" in plugins.py.

    Attributes:
        task: the task of the annotations that it is written from. None keeps the richest of the source; the writer
            has a field `task` then.
        keeps: the kinds of information that it keeps, of "category ids", "colours", "image ids", "areas".
        open: turns (classes, name of the data set) into a writer. Raises ConfigError if the format cannot hold such
            classes.
        lacks: kinds of losses (keys of run.TEXTS) that data sets of this format usually have and the writer leaves out.
    """

    task: Task | None
    keeps: frozenset[str]
    open: Callable[[Categories, str], Writer]
    lacks: tuple[str, ...] = ()


# --- shared by writers ------------------------------------------------------------------------------------------------


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(Image.fromarray(pixels), path, format="PNG")


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def save_classes(root: Path, name: str, categories: Categories, ignore_index: int = 255) -> None:
    """Write classes.yaml, a class table as `structures.categories` reads it."""
    tree = {"dataset": name, "ignore_index": ignore_index, "classes": [category.to_dict() for category in categories]}
    save_text(root / CLASSES, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None))
