"""Contract of a format of shards, and what each shard says of its origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.text import json_text
from ...structures import Task
from ...structures.categories import Categories
from ...version import __version__
from ..rows import Row
from ..writers import coco_categories


@dataclass(frozen=True)
class Provenance:
    """Provenance of the results in a shard.

    Attributes:
        model: the model as it was named.
        weights: start of a hash over all weights; None where they are inside an exported file that is not here.
        configuration: start of a hash over the resolved configuration; None where the model has none.
        task: the task.
        thresholds: thresholds that differ from the model's own.
        categories: classes of the model.
        version: version of m2f.
    """

    model: str
    weights: str | None
    configuration: str | None
    task: Task
    thresholds: dict[str, Any]
    categories: Categories
    version: str = __version__

    def facts(self) -> dict[str, Any]:
        """Return the origin as plain values. Classes are as in COCO's panoptic JSON."""
        return {
            "model": self.model,
            "weights": self.weights,
            "configuration": self.configuration,
            "version": self.version,
            "task": self.task,
            "thresholds": self.thresholds,
            "categories": coco_categories(self.categories),
        }

    def texts(self) -> dict[str, str]:
        """Return the origin as text under the names "m2f.model", …; what is no text is JSON."""
        return {
            f"m2f.{key}": value if isinstance(value, str) else json_text(value)
            for key, value in self.facts().items()
            if value is not None
        }


@dataclass(frozen=True)
class ShardFormat:
    """Format of shards.

    Attributes:
        write: writes the shard of some rows, from the rows, the path of the shard without its suffix, and their origin.
            Rows are taken one by one. Equal rows give equal bytes.
        suffixes: endings of the files of a shard, in the order in which they get their names.
        prefix: start of the names of these files; the number of the shard follows.
        tasks: tasks that the format holds.
    """

    write: Callable[[Iterable[Row], Path, Provenance], None]
    suffixes: tuple[str, ...]
    prefix: str = ""
    tasks: tuple[Task, ...] = ("panoptic", "instance", "semantic")

    def stem(self, folder: Path, number: int) -> Path:
        """Return the path without a suffix of a shard of a folder."""
        return folder / f"{self.prefix}{number:05d}"

    def files(self, folder: Path, number: int) -> list[Path]:
        stem = self.stem(folder, number)
        return [stem.with_name(stem.name + suffix) for suffix in self.suffixes]
