"""The contract of a format that data sets are written in, and what its writers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import yaml
from PIL import Image

from ...structures import Task
from ...structures.annotations import Annotation
from ...structures.categories import Categories

# Of one image, for each list of the split's shared json its rows; a row whose "id" is None gets the next number.
Rows: TypeAlias = dict[str, list[dict[str, Any]]]
Lost: TypeAlias = Counter[str]

CLASSES = "classes.yaml"


@dataclass(frozen=True)
class Place:
    """Where one image goes.

    name: unique in its split, "/" between folders, without suffix. suffix: of the image, with its dot.
    image_id: unique in its split; the source's own where it has usable ones.
    """

    split: str
    name: str
    suffix: str
    image_id: int | str

    @property
    def file_name(self) -> str:
        return self.name + self.suffix


class Writer(Protocol):
    """Writes a data set of given classes. Small, frozen, and sent to other processes; what is not overridden does
    nothing."""

    def image(self, place: Place) -> str:
        """Return where the image goes, from the root of the data set."""

    def annotate(self, root: Path, place: Place, annotation: Annotation) -> tuple[Rows, Lost]:
        """Write the annotation of an image; returns rows for the split's json, and what had no place, by kind.

        Raises:
            DataError: this format cannot hold it. Nothing is left behind then.
        """

    def shared(self, split: str) -> str | None:
        """Return the path of the JSON that the images of a split share, from the root."""
        return None

    def head(self) -> dict[str, Any]:
        """Return what stands in that JSON beside the rows."""
        return {}

    def finish(self, root: Path, splits: Sequence[str]) -> None:
        """Write what the whole data set shares."""


@dataclass(frozen=True)
class OutputFormat:
    """A format to write, one line of the group "converters" in plugins.py.

    task: which annotations it is made of.
    keeps: of "category ids", "colours", "image ids", "areas": what travels.
    open: (classes, name of the data set) to a writer. Raises ConfigError where the format cannot hold such classes.
    lacks: of the kinds of losses in run.TEXTS, what such data sets usually have and the writer leaves out.
    """

    task: Task
    keeps: frozenset[str]
    open: Callable[[Categories, str], Writer]
    lacks: tuple[str, ...] = ()


# --- shared by writers ------------------------------------------------------------------------------------------------


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def save_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def save_classes(root: Path, name: str, categories: Categories, ignore_index: int = 255) -> None:
    """Write classes.yaml, a class table as `structures.categories` reads it."""
    tree = {"dataset": name, "ignore_index": ignore_index, "classes": [category.to_dict() for category in categories]}
    save_text(root / CLASSES, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None))
