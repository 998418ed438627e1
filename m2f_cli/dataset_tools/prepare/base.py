"""Interface of a preparer: the origin of a data set, the files that must exist, and a plan of what is created."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DataError
from ...runtime.trees import Tree
from ...structures import categories

IMAGES = (".jpg", ".jpeg", ".png")
_SHOWN = 3


@dataclass(frozen=True)
class Made:
    """Result of one image.

    Attributes:
        content: bytes of the file, or another file to be linked. None if there is no file.
        entry: the image's entry in the table of its stage, to be written as JSON.
    """

    content: bytes | Path | None = None
    entry: Any = None


@dataclass(frozen=True)
class Item:
    """Image of a stage.

    Attributes:
        name: unique in its stage. In a table it is the id of the image.
        sources: files of the tree that the result is made from.
        target: the file that is written, relative to the output folder. None if there is only an entry.
        facts: further data about the image.
    """

    name: str
    sources: tuple[str, ...]
    target: str | None
    facts: Any = None


@dataclass(frozen=True)
class Stage:
    """Common work for many images.

    Attributes:
        title: name of the stage.
        items: the images.
        make: processes one image. It runs in other processes, so it can be pickled.
        table: the JSON file that the entries of all images form, if any.
        join: gives the text of the table.
    """

    title: str
    items: Sequence[Item] = field(repr=False)
    make: Callable[[Tree, Item], Made]
    table: str | None = None
    join: Callable[[list[Any]], str] | None = None


@dataclass(frozen=True)
class Count:
    """Number of images in a split.

    Attributes:
        split: name of the split.
        found: number of images in the data.
        expected: number of images in the published data set. None if it is unknown.
        sure: True if the published figure is verified.
    """

    split: str
    found: int
    expected: int | None
    sure: bool = True

    @property
    def differs(self) -> bool:
        return self.expected is not None and self.found != self.expected


@dataclass(frozen=True)
class Plan:
    """Work that a preparation consists of.

    Attributes:
        counts: number of images in each split.
        stages: the stages, in order.
        needed: files that training reads without change. They are linked or unpacked if the output is elsewhere.
        notes: remarks for the user.
    """

    counts: tuple[Count, ...]
    stages: tuple[Stage, ...] = ()
    needed: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparer:
    """Known data set that can be prepared.

    Attributes:
        title: name of the data set.
        folder: its folder below $DETECTRON2_DATASETS (docs/methods/published-behaviour.md#8).
        marks: folders of which at least one exists, even in incomplete data.
        layout: the files that must exist.
        origin: where a user gets the data set.
        licence: its terms.
        plan: turns (tree, partial) into a plan. `partial` is True if a part of the data is enough.
        hashes: MD5 or SHA-1 of its archives by their names, as far as they are published.
    """

    title: str
    folder: str
    marks: tuple[str, ...]
    layout: str
    origin: str
    licence: str
    plan: Callable[[Tree, bool], Plan]
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def how_to_get(self) -> str:
        return f"Expected: {self.layout}. Get it from {self.origin} ({self.licence})."


def as_it_is(tree: Tree, item: Item) -> Made:
    """Return the source itself: linked if it is a file, unpacked if it is in an archive."""
    [source] = item.sources
    return Made(tree.path(source) or tree.read(source))


def text_file(tree: Tree, item: Item) -> Made:
    """Return a small file whose text is the item's `facts`."""
    return Made(item.facts.encode())


def class_file(table: str) -> Stage:
    """Return the stage that writes classes.yaml beside label maps.

    The file is a shipped table, from which readers know the classes.
    """
    path = Path(categories.__file__).parent / "classes" / f"{table}.yaml"
    return Stage("classes.yaml", [Item(table, (), "classes.yaml", path.read_text(encoding="utf-8"))], text_file)


def stem(name: str) -> str:
    """Return the last part of a name without its suffix."""
    return PurePosixPath(name).stem


def pairs(
    images: Sequence[str], annotations: Sequence[str], key: Callable[[str], str] = stem, *, partial: bool = False
) -> list[tuple[str, str]]:
    """Return each image with its annotation. They are matched and sorted by the `key` of their names.

    Args:
        partial: True to leave out files without a partner.

    Raises:
        DataError: an image has no annotation, an annotation has no image, or two files have the same key.
    """
    of_image, of_mask = (_by_key(names, key) for names in (images, annotations))
    for own, others, kind in ((of_image, of_mask, "annotation"), (of_mask, of_image, "image")):
        alone = sorted(own.keys() - others.keys())
        if alone and not partial:
            shown = ", ".join(own[each] for each in alone[:_SHOWN])
            raise DataError(
                f"{len(alone)} of {len(own)} files have no {kind}, such as {shown}.",
                hint="The copy or download is incomplete: complete it, or prepare what there is with --partial.",
            )
    return [(of_image[each], of_mask[each]) for each in sorted(of_image.keys() & of_mask.keys())]


def _by_key(names: Sequence[str], key: Callable[[str], str]) -> dict[str, str]:
    by_key: dict[str, str] = {}
    for name in names:
        first = by_key.setdefault(key(name), name)
        if first != name:
            raise DataError(f"{first} and {name} are of the same image, {key(name)!r}.", hint="Remove one of them.")
    return by_key
