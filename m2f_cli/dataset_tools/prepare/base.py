"""What a preparer is: where a data set comes from, what must be found, and a plan of what is made of each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import DataError
from ...runtime.archives import Tree
from ...structures import categories

IMAGES = (".jpg", ".jpeg", ".png")
_SHOWN = 3


@dataclass(frozen=True)
class Made:
    """What became of one image. content: of the file, bytes or another file that is linked; None where there is none.
    entry: what it adds to the table of its stage, to be written as json."""

    content: bytes | Path | None = None
    entry: Any = None


@dataclass(frozen=True)
class Item:
    """One image of a stage.

    name: unique in its stage; in a table it is the id of the image.
    sources: files of the tree that it is made of.
    target: the file that is written, relative to the output folder; None where there is only an entry.
    facts: what else is known of it.
    """

    name: str
    sources: tuple[str, ...]
    target: str | None
    facts: Any = None


@dataclass(frozen=True)
class Stage:
    """The same work for many images.

    make: of one image; runs in other processes, so it can be pickled.
    table: the json file that the entries of all images make, if any; `join` gives its text.
    """

    title: str
    items: Sequence[Item] = field(repr=False)
    make: Callable[[Tree, Item], Made]
    table: str | None = None
    join: Callable[[list[Any]], str] | None = None


@dataclass(frozen=True)
class Count:
    """How many images a split has, and how many the published one has. `sure`: whether that figure is verified."""

    split: str
    found: int
    expected: int | None
    sure: bool = True

    @property
    def differs(self) -> bool:
        return self.expected is not None and self.found != self.expected


@dataclass(frozen=True)
class Plan:
    """needed: files that training reads as they are: they are linked or unpacked where the output is elsewhere."""

    counts: tuple[Count, ...]
    stages: tuple[Stage, ...] = ()
    needed: tuple[str, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparer:
    """A data set that is known.

    folder: where it lies below $DETECTRON2_DATASETS (docs/methods/published-behaviour.md#8).
    marks: folders of which at least one is there, whatever else is missing.
    layout: what must be there; origin: where a user gets it; licence: its terms.
    plan: (tree, partial) to what is to be done; `partial`: whether a part of the data is enough.
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
    """The source itself: linked where it is a file, unpacked where it is in an archive."""
    [source] = item.sources
    return Made(tree.path(source) or tree.read(source))


def text_file(tree: Tree, item: Item) -> Made:
    """A small file whose text is the item's `facts`."""
    return Made(item.facts.encode())


def class_file(table: str) -> Stage:
    """classes.yaml beside label maps: the shipped table, by which readers know their classes."""
    path = Path(categories.__file__).parent / "classes" / f"{table}.yaml"
    return Stage("classes.yaml", [Item(table, (), "classes.yaml", path.read_text(encoding="utf-8"))], text_file)


def stem(name: str) -> str:
    """The last part of a name without its suffix."""
    return PurePosixPath(name).stem


def pairs(
    images: Sequence[str], annotations: Sequence[str], key: Callable[[str], str] = stem, *, partial: bool = False
) -> list[tuple[str, str]]:
    """Each image with its annotation, by what `key` makes of their names, sorted by it.

    Args:
        partial: leave out what has no partner.

    Raises:
        DataError: an image without annotation, an annotation without image, or two for one.
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
    found: dict[str, str] = {}
    for name in names:
        twin = found.setdefault(key(name), name)
        if twin != name:
            raise DataError(f"{twin} and {name} are of the same image, {key(name)!r}.", hint="Remove one of them.")
    return found
