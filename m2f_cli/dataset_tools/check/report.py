"""Check of the splits of a data set, in one pass over the images that keeps only numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from ...data.records import DataSet
from ...errors import DataError
from ...runtime.threads import in_order
from .inspect_image import Look, Problem, look_at
from .issues import class_issues, duplicate_issues, no_split_issues, orphan_issue, split_issues
from .mistakes import check
from .near_duplicates import Prints, duplicates, repeats, shared_files
from .orphans import orphans
from .summary import EDGES, MOST_NAMES, ClassCount, DataReport, Finding, SplitCounts, SplitReport

SPLITS = ("train", "val", "test")
COCO_SIZES = (32**2, 96**2)  # small below, large from here on
_IN_FLIGHT = 4  # images per thread

Open = Callable[[str], DataSet]


# --- opening ----------------------------------------------------------------------------------------------------------


def open_splits(open_split: Open, wanted: Sequence[str] = ()) -> tuple[list[DataSet], list[Finding]]:
    """Open the splits of a folder, and return them with findings about the folder as a whole.

    The splits are those in `wanted`, or train, val and test as far as they exist. Findings are about missing splits and
    unused files.

    Raises:
        DataError: a wanted split cannot be opened, or no split can.
    """
    if wanted:
        return [open_split(name) for name in dict.fromkeys(wanted)], []
    opened, failed = [], {}
    for name in SPLITS:
        try:
            data = open_split(name)
        except DataError as error:
            failed[name] = error
        else:
            if not any(map(data.same_images, opened)):  # val may have borrowed test
                opened.append(data)
    if not opened:
        raise failed["train"]
    missing = [no_split_issues(name, error) for name, error in failed.items() if name != "test"]
    return opened, [*missing, *map(orphan_issue, orphans(opened))]


# --- counting ---------------------------------------------------------------------------------------------------------


def inspect(data: DataSet, *, workers: int = 1, on_look: Callable[[Look], None] | None = None) -> SplitReport:
    """Inspect every image of a split and count.

    Args:
        workers: number of threads that read.
        on_look: called with the result for each image, in order.
    """
    tally = _Tally(data)
    for look in _looks(data, workers):
        tally.add(look)
        if on_look is not None:
            on_look(look)
    return tally.report()


def _looks(data: DataSet, workers: int) -> Iterator[Look]:
    """Inspect all images in order, with a small number at a time in memory."""
    with ThreadPoolExecutor(workers) as pool:
        count = len(data.categories)
        yield from in_order(pool, lambda record: look_at(record, count), data.records, _IN_FLIGHT * workers)


class _Tally:
    """Sums over the images of a split."""

    def __init__(self, data: DataSet):
        self.data = data
        self.prints = Prints(data.split)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.objects: list[int] = []
        self.problems: list[Problem] = []
        self.empty: list[str] = []
        self.hidden_in = ""
        self.num_bytes = self.crowds = self.hidden = self.ignored = self.pixels = 0
        count = len(data.categories)
        self.images_of, self.pixels_of = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.coco_sizes_of = np.zeros((count, len(COCO_SIZES) + 1), dtype=np.int64)
        self.edges = np.zeros(len(EDGES) + 1, dtype=np.int64)

    def add(self, look: Look) -> None:
        self.num_bytes += look.num_bytes
        if look.exact is not None:
            self.prints.add(look.name, look.exact, look.look)
        if look.problem is not None:
            self.problems.append(look.problem)
            return
        regions = look.regions
        self.sizes[look.size] += 1
        self.objects.append(len(regions.labels))
        self.crowds, self.hidden = self.crowds + regions.crowds, self.hidden + regions.hidden
        self.ignored, self.pixels = self.ignored + regions.ignored, self.pixels + look.size[0] * look.size[1]
        self.hidden_in = self.hidden_in or (look.name if regions.hidden else "")
        if not regions.labels and len(self.empty) < MOST_NAMES:
            self.empty.append(look.name)
        self._add_regions(np.array(regions.labels, dtype=np.int64), np.array(regions.areas, dtype=np.int64))

    def _add_regions(self, labels: np.ndarray, areas: np.ndarray) -> None:
        self.images_of[np.unique(labels)] += 1
        np.add.at(self.pixels_of, labels, areas)
        np.add.at(self.coco_sizes_of, (labels, np.searchsorted(COCO_SIZES, areas, side="right")), 1)
        np.add.at(self.edges, np.searchsorted(np.square(EDGES), areas, side="right"), 1)

    def report(self) -> SplitReport:
        return SplitReport(
            description=self._description(),
            classes=self._classes(),
            problems=tuple(self.problems),
            empty=tuple(self.empty),
            object_edges=tuple(self.edges.tolist()),
            repeats=tuple(repeats(self.prints)),
            num_bytes=self.num_bytes,
            prints=self.prints,
            passed_over=self.data.passed_over,
            notes=tuple(note for note in self.data.notes if note not in self.data.passed_over.notes),
        )

    def _description(self) -> SplitCounts:
        data = self.data
        return SplitCounts(
            name=data.name,
            format=data.format,
            split=data.split,
            task=data.task,
            categories=data.categories,
            images=len(data.records),
            looked_at=len(self.objects),
            objects=tuple(self.objects),
            images_of=tuple(self.images_of.tolist()),
            objects_of=tuple(self.coco_sizes_of.sum(axis=1).tolist()),
            crowds=self.crowds,
            hidden=self.hidden,
            ignored=None if data.task == "instance" else self.ignored / max(1, self.pixels),
            sizes=dict(self.sizes),
            hidden_in=self.hidden_in,
        )

    def _classes(self) -> tuple[ClassCount, ...]:
        return tuple(
            ClassCount(
                category.name,
                category.isthing,
                int(self.images_of[i]),
                int(self.coco_sizes_of[i].sum()),
                int(self.pixels_of[i]),
                *self.coco_sizes_of[i].tolist(),
            )
            for i, category in enumerate(self.data.categories)
        )


# --- the report -------------------------------------------------------------------------------------------------------


def report(
    opened: Sequence[DataSet],
    before: Sequence[Finding] = (),
    *,
    workers: int = 1,
    on_look: Callable[[Look], None] | None = None,
) -> DataReport:
    """Inspect splits, compare them with each other, and collect findings.

    Args:
        opened: splits, from `open_splits`.
        before: findings, from `open_splits`.
        workers: as in `inspect`.
        on_look: as in `inspect`.
    """
    splits = [inspect(data, workers=workers, on_look=on_look) for data in opened]
    pairs = itertools.combinations(splits, 2)
    shared = [pair for first, second in pairs for pair in duplicates(second.prints, first.prints)]
    of_each = [each for split in splits for each in split_issues(split)]
    return DataReport(
        tuple(splits), tuple(shared), (*before, *class_issues(splits), *of_each, *duplicate_issues(shared))
    )


def glance(data: DataSet, limit: int, against: DataSet | None = None) -> list[Finding]:
    """Look for typical mistakes in a sample of images, as training does before it starts.

    Args:
        limit: largest number of images to read, spread evenly. Rare classes may then look as if they were not
            annotated.
        against: another split, which should share no image file with this one.
    """
    count = min(limit, len(data.records))
    records = [data.records[number * len(data.records) // count] for number in range(count)]
    split = inspect(replace(data, records=records))
    findings = []
    if split.problems:
        message = f"{len(split.problems)} of {count} images cannot be used; the first: {split.problems[0].message}"
        findings.append(Finding("warning", "unusable", data.split, message, "Repair them or leave them out."))
    findings += check(split.description)
    pairs = [] if against is None else shared_files(data.records, against.records)
    if pairs:
        such = f"such as {pairs[0][0]} and {pairs[0][1]}"
        message = f"{len(pairs)} images are in {data.split} and in {against.split}, {such}."
        hint = "Results on images that were trained on mean nothing: remove them from one split."
        findings.append(Finding("warning", "shared-pictures", data.split, message, hint))
    return findings
