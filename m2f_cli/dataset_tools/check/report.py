"""What a data set is, split by split, and whether it can be trained on. Everything is counted in one pass over the
pictures; of each, only numbers stay."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...data.records import DataSet, PassedOver
from ...errors import DataError
from .inspect_image import Look, Problem, look_at
from .issues import Finding, of_classes, of_leftovers, of_no_split, of_split, of_twins
from .mistakes import SplitCounts
from .near_duplicates import Prints, Twin, repeats, twins
from .orphans import leftovers

SPLITS = ("train", "val", "test")
EDGES = (8, 16, 32, 64, 128, 256, 512)  # square roots of areas in pixels, between the bars of the size histogram
COCO_SIZES = (32**2, 96**2)  # small below, large from here on
MOST_NAMES = 100  # of empty pictures, and of sizes
_IN_FLIGHT = 4  # pictures per thread

Open = Callable[[str], DataSet]


def edge_names() -> list[str]:
    """What the bars of `SplitReport.object_edges` stand for."""
    return [f"below {EDGES[0]}", *(f"{low} to {high}" for low, high in itertools.pairwise(EDGES)), f"from {EDGES[-1]}"]


@dataclass(frozen=True)
class ClassCount:
    """One class in one split. pixels: of all its objects. small, medium, large: objects by COCO's bounds of area."""

    name: str
    isthing: bool
    pictures: int
    objects: int
    pixels: int
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class SplitReport:
    """One split.

    description: the counts that `data.checks` works with.
    problems: why pictures cannot be used. empty: names of pictures without an object, the first hundred.
    object_edges: objects by the square root of their area, below 8, 16, 32, … 512 pixels, and larger.
    repeats: files that are in it twice. num_bytes: of all files of pictures.
    passed_over: annotations that the reader does not use; `notes` has the reader's other notes.
    """

    description: SplitCounts
    classes: tuple[ClassCount, ...]
    problems: tuple[Problem, ...]
    empty: tuple[str, ...]
    object_edges: tuple[int, ...]
    repeats: tuple[Twin, ...]
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
        counted = self.description.to_dict()
        del counted["failures"]
        sizes = Counter(self.description.sizes).most_common(MOST_NAMES)
        histogram = sorted(Counter(self.description.objects).items())
        return {
            **counted,
            "notes": list(self.notes),
            "bytes": self.num_bytes,
            "classes": [asdict(each) for each in self.classes],
            "different_sizes": len(self.description.sizes),
            "sizes": [{"height": h, "width": w, "pictures": count} for (h, w), count in sizes],
            "pictures_by_objects": [{"objects": objects, "pictures": count} for objects, count in histogram],
            "object_edges": {"bounds": list(EDGES), "objects": list(self.object_edges)},
            "empty": {"pictures": self.num_empty, "first": list(self.empty)},
            "problems": [asdict(problem) for problem in self.problems],
            "repeats": [asdict(twin) for twin in self.repeats],
            "passed_over": self.passed_over.to_dict(),
        }


@dataclass(frozen=True)
class DataReport:
    """All splits that were looked at, pictures that are in two of them, and what is wrong."""

    splits: tuple[SplitReport, ...]
    twins: tuple[Twin, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "would_train": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "splits": {each.split: each.to_dict() for each in self.splits},
            "twins": [asdict(twin) for twin in self.twins],
        }


def class_rows(splits: Sequence[SplitReport]) -> list[tuple[ClassCount, list[ClassCount | None]]]:
    """Each class, from the first split that has it, with its counts in every split; None where a split has no such."""
    counts = [{each.name: each for each in split.classes} for split in splits]
    first = {name: count for known in reversed(counts) for name, count in known.items()}
    names = dict.fromkeys(name for known in counts for name in known)
    return [(first[name], [known.get(name) for known in counts]) for name in names]


# --- opening ----------------------------------------------------------------------------------------------------------


def open_splits(open_split: Open, wanted: Sequence[str] = ()) -> tuple[list[DataSet], list[Finding]]:
    """The splits of a folder: those that were asked for, or train, val and test as far as they are there; and what is
    wrong with it as a whole: splits that are missing, files that are in none.

    Raises:
        DataError: a split that was asked for cannot be opened, or none at all can.
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
            if not any(_same_pictures(data, other) for other in opened):  # val may have borrowed test
                opened.append(data)
    if not opened:
        raise failed["train"]
    missing = [of_no_split(name, error) for name, error in failed.items() if name != "test"]
    return opened, [*missing, *map(of_leftovers, leftovers(opened))]


def _same_pictures(data: DataSet, other: DataSet) -> bool:
    return data.records[0].image is not None and data.records[0].image == other.records[0].image


# --- counting ---------------------------------------------------------------------------------------------------------


def inspect(data: DataSet, *, workers: int = 1, on_look: Callable[[Look], None] | None = None) -> SplitReport:
    """Look at every picture of a split and count.

    Args:
        workers: threads that read.
        on_look: is told of each picture, in order.
    """
    tally = _Tally(data)
    for look in _looks(data, workers):
        tally.add(look)
        if on_look is not None:
            on_look(look)
    return tally.report()


def _looks(data: DataSet, workers: int) -> Iterator[Look]:
    """In order, with a few pictures at a time in memory."""
    waiting: deque[Future[Look]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for record in data.records:
            waiting.append(pool.submit(look_at, record, len(data.categories)))
            if len(waiting) == _IN_FLIGHT * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Tally:
    """Sums over the pictures of a split."""

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
        self.pictures_of, self.pixels_of = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.coco_sizes_of = np.zeros((count, len(COCO_SIZES) + 1), dtype=np.int64)
        self.edges = np.zeros(len(EDGES) + 1, dtype=np.int64)

    def add(self, look: Look) -> None:
        self.num_bytes += look.num_bytes
        if look.exact is not None:
            self.prints.add(look.name, look.exact, look.look)
        if look.problem is not None:
            self.problems.append(look.problem)
            return
        found = look.regions
        self.sizes[look.size] += 1
        self.objects.append(len(found.labels))
        self.crowds, self.hidden = self.crowds + found.crowds, self.hidden + found.hidden
        self.ignored, self.pixels = self.ignored + found.ignored, self.pixels + look.size[0] * look.size[1]
        self.hidden_in = self.hidden_in or (look.name if found.hidden else "")
        if not found.labels and len(self.empty) < MOST_NAMES:
            self.empty.append(look.name)
        self._add_regions(np.array(found.labels, dtype=np.int64), np.array(found.areas, dtype=np.int64))

    def _add_regions(self, labels: np.ndarray, areas: np.ndarray) -> None:
        self.pictures_of[np.unique(labels)] += 1
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
            pictures=len(data.records),
            looked_at=len(self.objects),
            failures=tuple((problem.name, problem.message) for problem in self.problems),
            objects=tuple(self.objects),
            pictures_of=tuple(self.pictures_of.tolist()),
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
                int(self.pictures_of[i]),
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
    """Look at splits, compare them with each other, and say what is wrong.

    Args:
        opened, before: from `open_splits`.
        workers, on_look: as in `inspect`.
    """
    splits = [inspect(data, workers=workers, on_look=on_look) for data in opened]
    pairs = itertools.combinations(splits, 2)
    shared = [twin for first, second in pairs for twin in twins(second.prints, first.prints)]
    of_each = [each for data, split in zip(opened, splits, strict=True) for each in of_split(data, split)]
    return DataReport(tuple(splits), tuple(shared), (*before, *of_classes(splits), *of_each, *of_twins(shared)))
