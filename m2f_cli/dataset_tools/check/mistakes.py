"""What is in a data set, and the classic mistakes in it, before days of training find them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.records import DataSet, Record, check_size, is_file
from ...errors import DataError
from ...structures.annotations import Truth
from ...structures.categories import Categories
from ...structures.images import picture_size
from .region_stats import Regions, regions_of

BACKGROUNDS = frozenset(("background", "bg", "_background_", "unlabeled", "unlabelled", "void", "ignore", "none"))
LEAST_EDGE, MOST_PIXELS = 32, 50_000_000  # 32 is the stride of the coarsest features
USUAL_QUERIES = 100
_SHOWN = 5


@dataclass(frozen=True)
class DataWarning:
    """A likely mistake. `kind` names it for programs, `message` and `hint` are a sentence each."""

    kind: str
    message: str
    hint: str


@dataclass(frozen=True)
class SplitCounts:
    """Counts over the pictures that were looked at.

    pictures: of the split; looked_at: of those, how many were read without an error; failures: (name, message).
    objects: of each picture, how many regions are annotated that are no crowds; a class of a semantic map is one.
    pictures_of, objects_of: for each class number, pictures that show it and objects of it. crowds: of all classes.
    hidden: regions without a single pixel; hidden_in: the name of the first picture that has one.
    ignored: the share of the pixels that belong to no class, 0 to 1; None for instances.
    sizes: (height, width) to pictures of that size.
    """

    name: str
    format: str
    split: str
    task: str
    categories: Categories
    pictures: int
    looked_at: int
    failures: tuple[tuple[str, str], ...]
    objects: tuple[int, ...]
    pictures_of: tuple[int, ...]
    objects_of: tuple[int, ...]
    crowds: int
    hidden: int
    ignored: float | None
    sizes: dict[tuple[int, int], int]
    hidden_in: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For json: names instead of numbers, summaries instead of one number per picture."""
        objects = np.array(self.objects or (0,))
        rows = zip(self.categories, self.pictures_of, self.objects_of, strict=True)
        return {
            "name": self.name,
            "format": self.format,
            "split": self.split,
            "task": self.task,
            "pictures": self.pictures,
            "looked_at": self.looked_at,
            "failures": [list(pair) for pair in self.failures],
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


# --- counting ---------------------------------------------------------------------------------------------------------


def describe(
    data: DataSet, limit: int | None = None, *, pixels: bool = False, on_picture: Callable[[int], None] | None = None
) -> SplitCounts:
    """Read annotations and count.

    Args:
        limit: at most so many pictures, spread evenly over the split.
        pixels: also decode every picture, which finds the damaged ones.
        on_picture: is told after each picture how many were looked at.
    """
    failures, found, hidden_in = [], [], ""
    for count, record in enumerate(_sample(data.records, limit), 1):
        try:
            truth = record.read_truth()
            _check_picture(record, truth, pixels)
            found.append((_size(truth), regions_of(truth)))
            hidden_in = hidden_in or (record.name if found[-1][1].hidden else "")
        except DataError as error:
            failures.append((record.name, str(error)))
        if on_picture is not None:
            on_picture(count)
    return _sum_up(data, found, failures, hidden_in)


def _size(truth: Truth) -> tuple[int, int]:
    return truth.size[0], truth.size[1]


def _sum_up(
    data: DataSet, found: list[tuple[tuple[int, int], Regions]], failures: list[tuple[str, str]], hidden_in: str
) -> SplitCounts:
    sizes, counted = [size for size, _ in found], [regions for _, regions in found]
    pictures_of = Counter(label for regions in counted for label in set(regions.labels))
    objects_of = Counter(label for regions in counted for label in regions.labels)
    numbers = range(len(data.categories))
    area = sum(height * width for height, width in sizes)
    return SplitCounts(
        name=data.name,
        format=data.format,
        split=data.split,
        task=data.task,
        categories=data.categories,
        pictures=len(data.records),
        looked_at=len(found),
        failures=tuple(failures),
        objects=tuple(len(regions.labels) for regions in counted),
        pictures_of=tuple(pictures_of[number] for number in numbers),
        objects_of=tuple(objects_of[number] for number in numbers),
        crowds=sum(regions.crowds for regions in counted),
        hidden=sum(regions.hidden for regions in counted),
        ignored=None if data.task == "instance" else sum(regions.ignored for regions in counted) / max(1, area),
        sizes=dict(Counter(sizes)),
        hidden_in=hidden_in,
    )


def _sample(records: Sequence[Record], limit: int | None) -> list[Record]:
    if limit is None or limit >= len(records):
        return list(records)
    return [records[index * len(records) // limit] for index in range(limit)]


def _check_picture(record: Record, truth: Truth, pixels: bool) -> None:
    if pixels or record.image is None:
        check_size(Path(record.name), record.read_image().shape[:2], truth.size)
    else:
        check_size(record.image, picture_size(record.image), truth.size)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def check(
    data: DataSet,
    limit: int | None = None,
    *,
    against: DataSet | None = None,
    description: SplitCounts | None = None,
    on_picture: Callable[[int], None] | None = None,
) -> list[DataWarning]:
    """Look for classic mistakes.

    Args:
        limit: read at most so many pictures, spread evenly; rare classes may then look as if nobody annotated them.
        against: another split, whose pictures should be others.
        description: that of `data`, where it was made before.
        on_picture: as in `describe`.
    """
    found = description or describe(data, limit, pixels=True, on_picture=on_picture)
    warnings = [finding(found) for finding in _CHECKS]
    if against is not None:
        warnings.append(_shared(data, against))
    return [warning for warning in warnings if warning is not None]


def _failures(found: SplitCounts) -> DataWarning | None:
    if not found.failures:
        return None
    total = found.looked_at + len(found.failures)
    first = found.failures[0][1]
    return DataWarning(
        "unusable",
        f"{len(found.failures)} of {total} pictures cannot be used; the first: {first}",
        "Repair them or leave them out.",
    )


def _binary(found: SplitCounts) -> DataWarning | None:
    """Masks of 0 and 255 look like class 0 and ignored pixels."""
    only_zero = found.task == "semantic" and found.pictures_of[0] and not any(found.pictures_of[1:])
    if not only_zero or not found.ignored:
        return None
    return DataWarning(
        "binary-masks",
        f"Every pixel is {found.categories[0].name!r} (value 0) or ignored ({found.ignored:.0%}): "
        "these look like masks of 0 and 255.",
        "If 255 is the object, say so: --label-map 0=REST,255=OBJECT, or data.label_map in a preset.",
    )


def _background(found: SplitCounts) -> DataWarning | None:
    names = [category.name for category in found.categories if category.name.casefold() in BACKGROUNDS]
    if not names:
        return None
    number = [category.name for category in found.categories].index(names[0])
    hint = "Remove the category: what was not annotated needs none."
    if found.task == "semantic":
        hint = f"If it means that nothing was annotated, ignore its pixels: data.ignore_index={number}."
    return DataWarning("background-class", f"The class {number}, {names[0]!r}, is learned like any other.", hint)


def _one_class(found: SplitCounts) -> DataWarning | None:
    seen = [c.name for c, pictures in zip(found.categories, found.pictures_of, strict=True) if pictures]
    if found.task != "semantic" or len(seen) != 1 or found.ignored:
        return None
    return DataWarning(
        "one-class",
        f"Every pixel is {seen[0]!r}: there is nothing to tell apart.",
        "Annotate the rest as another class.",
    )


def _unseen(found: SplitCounts) -> DataWarning | None:
    unseen = [c.name for c, pictures in zip(found.categories, found.pictures_of, strict=True) if not pictures]
    if not unseen or not found.looked_at:
        return None
    names = ", ".join(unseen[:_SHOWN]) + (", …" if len(unseen) > _SHOWN else "")
    return DataWarning(
        "unseen-classes",
        f"{len(unseen)} of {len(found.categories)} classes are nowhere in {found.looked_at} pictures of "
        f"{found.split}: {names}.",
        "They cannot be learned or measured here; check that ids and names belong together.",
    )


def _no_objects(found: SplitCounts) -> DataWarning | None:
    empty = found.objects.count(0)
    if 2 * empty <= found.looked_at:
        return None
    return DataWarning(
        "empty-pictures",
        f"{empty} of {found.looked_at} pictures have no annotated object.",
        "If they are not really empty, leave them out, or set train.drop_empty.",
    )


def _hidden(found: SplitCounts) -> DataWarning | None:
    if not found.hidden:
        return None
    return DataWarning(
        "hidden-objects",
        f"{found.hidden} annotated regions have no pixel, the first in {found.hidden_in}.",
        "They count as missed in evaluation; remove them.",
    )


def _many(found: SplitCounts) -> DataWarning | None:
    crowded = sum(count > USUAL_QUERIES for count in found.objects)
    if not crowded:
        return None
    return DataWarning(
        "many-objects",
        f"{crowded} pictures have more than {USUAL_QUERIES} objects, one up to {max(found.objects)}.",
        "A model finds no more objects than it has queries: give it more, or cut pictures into tiles.",
    )


def _sizes(found: SplitCounts) -> DataWarning | None:
    absurd = [size for size in found.sizes if min(size) < LEAST_EDGE or size[0] * size[1] > MOST_PIXELS]
    if not absurd:
        return None
    height, width = absurd[0]
    return DataWarning(
        "absurd-sizes",
        f"{sum(found.sizes[size] for size in absurd)} pictures are tiny or huge, such as {height} x {width}.",
        f"Edges below {LEAST_EDGE} pixels show nothing; above {MOST_PIXELS // 10**6} megapixels, cut tiles.",
    )


_CHECKS = (_failures, _binary, _background, _one_class, _unseen, _no_objects, _hidden, _many, _sizes)


def _shared(data: DataSet, other: DataSet) -> DataWarning | None:
    pairs = shared_pictures(data, other)
    if not pairs:
        return None
    first, second = pairs[0]
    return DataWarning(
        "shared-pictures",
        f"{len(pairs)} pictures are in {data.split} and in {other.split}, such as {first} and {second}.",
        "Results on pictures that were trained on mean nothing: remove them from one split.",
    )


def shared_pictures(data: DataSet, other: DataSet) -> list[tuple[str, str]]:
    """Pictures whose files are the same byte for byte, by their names in both. Only files of one length are read."""
    mine, theirs = _by_length(data), _by_length(other)
    pairs = []
    for length in mine.keys() & theirs.keys():
        known = {_digest(record): record.name for record in theirs[length]}
        pairs += [(r.name, known[d]) for r in mine[length] if (d := _digest(r)) in known]
    return sorted(pairs)


def _by_length(data: DataSet) -> dict[int, list[Record]]:
    found = defaultdict(list)
    for record in data.records:
        if record.image is not None and is_file(record.image):
            found[record.image.stat().st_size].append(record)
    return found


def _digest(record: Record) -> bytes:
    return hashlib.blake2b(record.image.read_bytes()).digest()
