"""Summary of a data set: the counts of each split, and the findings about it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ...data.records import PassedOver
from ...structures.categories import Categories
from .inspect_image import Problem
from .near_duplicates import DuplicatePair, Prints

EDGES = (8, 16, 32, 64, 128, 256, 512)  # square roots of areas in pixels, between the bars of the size histogram
MOST_NAMES = 100  # largest number of empty images, and of sizes, in a report


@dataclass(frozen=True)
class Finding:
    """Finding for the user.

    Attributes:
        level: an error stops training, a warning impairs its result.
        kind: identifier of the kind of finding.
        split: the split that it is about.
        message: description.
        hint: suggestion.
    """

    level: Literal["error", "warning"]
    kind: str
    split: str
    message: str
    hint: str


@dataclass(frozen=True)
class SplitCounts:
    """Counts over the usable images of a split.

    Attributes:
        name: name of the data set.
        format: format of the data set.
        split: name of the split.
        task: task of the annotations.
        categories: the classes.
        images: number of images in the split.
        looked_at: number of these that could be used.
        objects: for each usable image, the number of annotated regions that are not crowds. A class of a semantic map
            is one region.
        images_of: for each class number, the number of images that show it.
        objects_of: for each class number, the number of its objects.
        crowds: number of crowds of all classes.
        hidden: number of regions without a single pixel.
        ignored: share of the pixels that belong to no class, 0 to 1. None for instances.
        sizes: number of images of each (height, width).
        hidden_in: name of the first image with a region without pixels.
    """

    name: str
    format: str
    split: str
    task: str
    categories: Categories
    images: int
    looked_at: int
    objects: tuple[int, ...]
    images_of: tuple[int, ...]
    objects_of: tuple[int, ...]
    crowds: int
    hidden: int
    ignored: float | None
    sizes: dict[tuple[int, int], int]
    hidden_in: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the counts for JSON: names instead of numbers, summaries instead of one number per image."""
        objects = np.array(self.objects or (0,))
        rows = zip(self.categories, self.images_of, self.objects_of, strict=True)
        return {
            "name": self.name,
            "format": self.format,
            "split": self.split,
            "task": self.task,
            "pictures": self.images,
            "looked_at": self.looked_at,
            "things": sum(c.isthing for c in self.categories),
            "stuff": sum(not c.isthing for c in self.categories),
            "objects_per_picture": {
                "least": int(objects.min()),
                "mean": float(objects.mean()),
                "most": int(objects.max()),
            },
            "classes": [{"name": c.name, "isthing": c.isthing, "pictures": p, "objects": o} for c, p, o in rows],
            "crowds": self.crowds,
            "hidden": self.hidden,
            "ignored": self.ignored,
        }


def edge_names() -> list[str]:
    """Return the labels of the bars of `SplitReport.object_edges`."""
    return [f"below {EDGES[0]}", *(f"{low} to {high}" for low, high in itertools.pairwise(EDGES)), f"from {EDGES[-1]}"]


@dataclass(frozen=True)
class ClassCount:
    """Counts of one class in one split.

    Attributes:
        name: name of the class.
        isthing: True for a thing, False for stuff.
        pictures: number of images that show the class.
        objects: number of objects.
        pixels: number of pixels of all objects.
        small: number of objects that are small by COCO's bounds of area.
        medium: number of medium objects.
        large: number of large objects.
    """

    name: str
    isthing: bool
    pictures: int  # number of images; the name is the JSON key
    objects: int
    pixels: int
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class SplitReport:
    """Report on one split.

    Attributes:
        description: the counts that `mistakes.check` works with.
        classes: counts of each class.
        problems: reasons why images cannot be used.
        empty: names of images without an object, the first hundred.
        object_edges: number of objects by the square root of their area: below 8, 16, 32, … 512 pixels, and larger.
        repeats: files that occur in the split twice.
        num_bytes: size of all image files.
        notes: the reader's notes, without those about `passed_over`.
        prints: digests and hashes of the images.
        passed_over: annotations that the reader does not use.
    """

    description: SplitCounts
    classes: tuple[ClassCount, ...]
    problems: tuple[Problem, ...]
    empty: tuple[str, ...]
    object_edges: tuple[int, ...]
    repeats: tuple[DuplicatePair, ...]
    num_bytes: int
    notes: tuple[str, ...]
    prints: Prints = field(repr=False)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def split(self) -> str:
        return self.description.split

    @property
    def num_empty(self) -> int:
        return self.description.objects.count(0)

    def to_dict(self) -> dict[str, Any]:
        sizes = Counter(self.description.sizes).most_common(MOST_NAMES)
        histogram = sorted(Counter(self.description.objects).items())
        return {
            **self.description.to_dict(),
            "notes": list(self.notes),
            "bytes": self.num_bytes,
            "classes": [asdict(each) for each in self.classes],
            "different_sizes": len(self.description.sizes),
            "sizes": [{"height": h, "width": w, "pictures": count} for (h, w), count in sizes],
            "pictures_by_objects": [{"objects": objects, "pictures": count} for objects, count in histogram],
            "object_edges": {"bounds": list(EDGES), "objects": list(self.object_edges)},
            "empty": {"pictures": self.num_empty, "first": list(self.empty)},
            "problems": [asdict(problem) for problem in self.problems],
            "repeats": [asdict(pair) for pair in self.repeats],
            "passed_over": self.passed_over.to_dict(),
        }


@dataclass(frozen=True)
class DataReport:
    """Report on all splits.

    Attributes:
        splits: the report on each split.
        twins: images that are in two splits.
        findings: the findings.
    """

    splits: tuple[SplitReport, ...]
    duplicates: tuple[DuplicatePair, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "would_train": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "splits": {each.split: each.to_dict() for each in self.splits},
            "twins": [asdict(pair) for pair in self.duplicates],
        }


def class_rows(splits: Sequence[SplitReport]) -> list[tuple[ClassCount, list[ClassCount | None]]]:
    """Return each class of any split with its counts in every split, or None for a split without the class."""
    counts = [{each.name: each for each in split.classes} for split in splits]
    first = {name: count for known in reversed(counts) for name, count in known.items()}
    names = dict.fromkeys(name for known in counts for name in known)
    return [(first[name], [known.get(name) for known in counts]) for name in names]
