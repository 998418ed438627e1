"""Shards of WebDataset, in a folder or an object store: classes.json and {split}/*.tar, whose samples are

    KEY.jpg (or another kind of image), KEY.json (size, segments or objects), KEY.panoptic.png (ids of segments)

A sample is one read of the bytes of its members, so that samples are shuffled like those of a folder. Where the members
lie is in {split}/index.json, or is read from the headers of the tars.
"""

from __future__ import annotations

import functools
import itertools
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel

from ...errors import DataError
from ...runtime import documents
from ...runtime.archives import LARGEST_IMAGE, tar_files
from ...storage import files
from ...storage.stored_file import StoredFile
from ...storage.uris import WEB, is_uri, name_of, scheme_of
from ...structures import Task, schemas
from ...structures.annotations import InstanceAnnotation, PanopticAnnotation, ReadAs
from ...structures.categories import Category
from ...structures.images import decode_image
from ..records import DataSet, PackedImage, Record, check_size
from . import coco_instance, coco_panoptic
from .base import Format, ReadOptions, choose_task
from .class_map import ClassMap, id_or_none, is_crowd, map_classes
from .files import decode_ids
from .layout import IMAGES, find_split

CLASSES = "classes.json"
INDEX = "index.json"
JSON, IDS = "json", "panoptic.png"  # members of a sample beside its image
_CACHED = 4  # samples whose bytes a process keeps: image and annotation are read one after the other
TASKS: tuple[Task, ...] = get_args(Task)
_MAKE = "m2f data convert DIR OUT --to webdataset makes shards anew."
_WITHOUT_INDEX = f"Remove it: the shards are read instead. {_MAKE}"

Part = tuple[int, int]  # first byte of a member in its shard, and the end of its bytes


@dataclass(frozen=True)
class Shard:
    """Tar of samples, or the index of a split.

    Attributes:
        address: its path or URI.
        name: its name in the folder of its split.
        info: size and version when it was listed.
    """

    address: str
    name: str
    info: files.Info

    def __str__(self) -> str:
        return files.shown(self.address)


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Place of an annotated image in a shard.

    Attributes:
        shard: the tar.
        key: name that its members share, up to the first dot.
        suffix: suffix of the image, without its dot.
        image: the image.
        head: the JSON.
        ids: the PNG of segments. None for objects.
    """

    shard: Shard
    key: str
    suffix: str
    image: Part
    head: Part
    ids: Part | None

    def where(self, suffix: str) -> str:
        """Return the name of a member for messages."""
        return f"{self.shard}/{self.key}.{suffix}"

    def read(self, part: Part) -> bytes:
        """Return the bytes of a member.

        Raises:
            DataError: the shard cannot be read, or is not what it was when it was listed or indexed.
        """
        parts = [each for each in (self.image, self.head, self.ids) if each is not None]
        start, stop = min(first for first, _ in parts) - BLOCKSIZE, max(end for _, end in parts)
        content, at = part_of_shard(self.shard, start, stop), part[0] - start
        if not _is_header(content[at - BLOCKSIZE : at]):
            said = (
                f"{INDEX} says that a file of {self.key!r} begins at byte {part[0]:,} of {self.shard}, where none does."
            )
            raise DataError(said, hint=_WITHOUT_INDEX)
        return content[at : part[1] - start]


@functools.lru_cache(maxsize=_CACHED)
def part_of_shard(shard: Shard, start: int, stop: int) -> bytes:
    """Read a part of a shard. What was read last is kept: a store answers once for an image and its annotation."""
    content = files.read(shard.address, limit=stop - start, start=start, stop=stop, expected=shard.info)
    if len(content) < stop - start:
        raise DataError(f"{shard} is cut off.", hint="Copy or download it again.")
    return content


def _is_header(block: bytes) -> bool:
    try:
        TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except HeaderError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class ImageOfSample(PackedImage):
    """Reader of the image of a sample, which returns (H, W, 3) uint8 RGB.

    Attributes:
        sample: its place.
        size: (height, width) of the annotation.
    """

    sample: ShardSample
    size: tuple[int, int]

    @property
    def suffix(self) -> str:
        return f".{self.sample.suffix}"

    def content(self) -> bytes:
        """Return the bytes of the image's file."""
        return self.sample.read(self.sample.image)

    def __call__(self) -> np.ndarray:
        where = self.sample.where(self.sample.suffix)
        image_HW3 = decode_image(self.content(), where)
        check_size(where, image_HW3.shape[:2], self.size)
        return image_HW3


class SampleHead(BaseModel):
    """KEY.json of a sample: either `segments_info` or `annotations`, as in COCO's files."""

    name: schemas.FileName
    image_id: schemas.Key | None = None
    height: schemas.Side
    width: schemas.Side
    segments_info: list[Any] | None = None
    annotations: list[Any] | None = None

    def category_ids(self) -> list[int]:
        """Return the category ids of what is not a crowd, ascending. What is no id is refused when it is read."""
        rows = [row for row in self.segments_info or self.annotations or () if isinstance(row, dict)]
        found = {id_or_none(row.get("category_id")) for row in rows if not is_crowd(row.get("iscrowd"))}
        return sorted(found - {None})


@dataclass(frozen=True, slots=True)
class AnnotationOfSample:
    """Reader of the segments or objects of a sample.

    Attributes:
        sample: its place.
        name: name of the record.
        size: (height, width) of the image.
        labels: class numbers of what is not a crowd.
        classes: the classes.
    """

    sample: ShardSample
    name: str
    size: tuple[int, int]
    labels: tuple[int, ...]
    classes: ClassMap

    def __call__(self) -> PanopticAnnotation | InstanceAnnotation:
        """Read the annotation.

        Raises:
            DataError: a member is damaged, contradicts another one or the index, or has unknown categories.
        """
        sample, where = self.sample, self.sample.where(JSON)
        head = _head(sample.read(sample.head), where, sample.key)
        found = (head.name, (head.height, head.width), self.classes.labels(head.category_ids()))
        if found != (self.name, self.size, self.labels):
            raise DataError(f"{where} is not the sample that {INDEX} says.", hint=f"Remove {INDEX}. {_MAKE}")
        if sample.ids is None:
            rows = coco_instance.rows_of(_listed(head.annotations, "annotations", where))
            return coco_instance.annotation_of(self.size, rows, self.classes, where, sample.key)
        rows = coco_panoptic.rows_of(_listed(head.segments_info, "segments_info", where), where)
        png = sample.where(IDS)
        ids_HW = decode_ids(sample.read(sample.ids), png)
        check_size(sample.where(sample.suffix), self.size, ids_HW.shape, png)
        return coco_panoptic.annotation_of(ids_HW, rows, self.classes, PurePosixPath(sample.key), where)


def _head(content: bytes, where: str, key: str) -> SampleHead:
    tree = documents.parse_json(content, where)
    named = {"name": key, **tree} if isinstance(tree, dict) else tree
    head = schemas.read_as(SampleHead, named, where)
    if head.height is None or head.width is None:
        raise DataError(f"{where} does not say the height and width of its image.", hint=_MAKE)
    return head


def _listed(rows: list[Any] | None, key: str, where: str) -> list[Any]:
    if rows is None or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where} has no list {key!r}.", hint=f"{CLASSES} says which task the annotations are for.")
    return rows


# --- the index of a split ---------------------------------------------------------------------------------------------


class IndexedSample(BaseModel):
    """Entry of index.json: what is known of a sample without reading it.

    Attributes:
        labels: category ids of what is not a crowd.
        parts: first byte and end of each member by its suffix, the image first.
    """

    key: schemas.FileName
    name: schemas.FileName
    image_id: schemas.Key | None = None
    height: schemas.Side
    width: schemas.Side
    labels: list[schemas.WholeNumber]
    parts: dict[str, tuple[schemas.WholeNumber, schemas.WholeNumber]]


class IndexedShard(BaseModel):
    """Entry of index.json: a shard and its samples, in their order."""

    name: schemas.FileName
    bytes: schemas.WholeFrom0
    samples: list[IndexedSample]


def index_of(shard: Shard) -> IndexedShard:
    """Return the samples of a shard, from the headers of its members and from each KEY.json.

    Raises:
        DataError: the tar is damaged, cut off, compressed or has names that lead out of it; a sample lacks a member,
            has two images, occurs twice, or is too large.
    """
    uri = is_uri(shard.address)
    file = StoredFile(shard.address, shard.info) if uri else Path(shard.address)
    samples, seen = [], set()
    with file.open("rb") as opened:
        for key, members in _by_key(tar_files(file)):
            if key in seen:
                raise DataError(f"{shard} has the sample {key!r} twice.", hint="Give each image a key of its own.")
            seen.add(key)
            parts = _parts(members, key, shard)
            start, stop = parts[JSON]
            opened.seek(start)
            head = _head(opened.read(stop - start), f"{shard}/{key}.{JSON}", key)
            said = {"name": head.name, "image_id": head.image_id, "height": head.height, "width": head.width}
            samples.append(IndexedSample(key=key, **said, labels=head.category_ids(), parts=parts))
    return IndexedShard(name=shard.name, bytes=shard.info.size or 0, samples=samples)


def _by_key(members: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, list[tuple[str, Part]]]]:
    """Yield the key of each sample, and the suffix and place of each member. A key ends at the first dot of a name."""
    named = []
    for name, start, stop in members:
        folder, base = posixpath.split(name)
        stem, _, suffix = base.partition(".")
        if stem:  # others are hidden files
            named.append((posixpath.join(folder, stem), (suffix, (start, stop))))
    for key, group in itertools.groupby(named, key=lambda member: member[0]):
        yield key, [member for _, member in group]


def _parts(members: Sequence[tuple[str, Part]], key: str, shard: Shard) -> dict[str, Part]:
    """Return the members that are read: the image first, the JSON, and the PNG if there is one."""
    found = dict(members)
    if len(found) < len(members):
        raise DataError(f"{shard} has a member of {key!r} twice.", hint="Give each image a key of its own.")
    images = [suffix for suffix in found if f".{suffix.lower()}" in IMAGES]
    if len(images) != 1:
        raise DataError(
            f"The sample {key!r} of {shard} has {'two images' if images else 'no image'}.",
            hint=f"It should have one, such as {key}.jpg; links and sparse files are not read.",
        )
    if JSON not in found:
        raise DataError(
            f"The sample {key!r} of {shard} has no annotation {key}.{JSON}.",
            hint="Links and sparse files are not read.",
        )
    parts = {suffix: found[suffix] for suffix in (images[0], JSON, IDS) if suffix in found}
    _refuse_large(parts, key, shard)
    return parts


def _refuse_large(parts: Mapping[str, Part], key: str, shard: Shard) -> None:
    size = max(stop for _, stop in parts.values()) - min(start for start, _ in parts.values())
    if size > LARGEST_IMAGE:
        raise DataError(
            f"The sample {key!r} of {shard} takes {size:,} bytes; {LARGEST_IMAGE:,} are allowed.",
            hint="It may be a decompression bomb.",
        )


def _read_index(file: Shard, shards: Mapping[str, Shard]) -> list[IndexedShard]:
    """Read index.json of a split.

    Raises:
        DataError: it is damaged, or is not that of these shards.
    """
    where = str(file)
    tree = documents.parse_json(files.read(file.address, expected=file.info), where)
    rows = tree.get("shards") if isinstance(tree, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{where} has no list 'shards'.", hint=_WITHOUT_INDEX)
    index = [schemas.read_as(IndexedShard, row, f"{where}: shard {number}") for number, row in enumerate(rows)]
    listed = {each.name: each.bytes for each in index}
    there = {name: shard.info.size for name, shard in shards.items()}
    if len(listed) < len(index):
        raise DataError(f"{where} has a shard twice.", hint=_WITHOUT_INDEX)
    other = [name for name in {**there, **listed} if there.get(name) != listed.get(name)]
    if other:
        name = other[0]
        sizes = ("none" if size is None else f"{size:,} bytes" for size in (listed.get(name), there.get(name)))
        raise DataError(
            f"{where} is not of these shards: {name} had {next(sizes)}, and has {next(sizes)} now.",
            hint=_WITHOUT_INDEX,
        )
    for each in index:
        for sample in each.samples:
            _check_places(sample, each.bytes, where, shards[each.name])
    return index


def _check_places(sample: IndexedSample, size: int, where: str, shard: Shard) -> None:
    suffixes = list(sample.parts)
    is_sample = len(suffixes) > 1 and f".{suffixes[0].lower()}" in IMAGES and JSON in suffixes
    has_size = sample.height is not None and sample.width is not None
    if not (
        is_sample and has_size and all(BLOCKSIZE <= start <= stop <= size for start, stop in sample.parts.values())
    ):
        raise DataError(
            f"{where}: the entry of {sample.key!r} makes no sense.",
            hint=_WITHOUT_INDEX,
        )
    _refuse_large(sample.parts, sample.key, shard)


# --- a split ----------------------------------------------------------------------------------------------------------


def open_split(folder: Path | str, split: str, options: ReadOptions) -> DataSet:
    root = str(folder)
    if is_uri(root) and scheme_of(root) in WEB:
        raise DataError(
            f"{files.shown(root)} is an address of the web, where shards cannot be listed.",
            hint="Copy them to a folder or an object store.",
        )
    stored, own = _classes(root)
    task = choose_task(options.task, TASKS if stored == "panoptic" else (stored,), files.shown(root))
    classes = map_classes(own, options.classes, files.shown(root))
    if task == "instance" and stored == "panoptic" and options.classes is None:
        classes = classes.without_stuff()
    splits = _splits(root)
    shards, name, notes = find_split(files.shown(root), split, splits.get, splits)
    index = shards.pop(INDEX, None)
    indexed = [index_of(shards[each]) for each in sorted(shards)] if index is None else _read_index(index, shards)
    records = tuple(
        _record(sample, shards[each.name], classes, stored, task) for each in indexed for sample in each.samples
    )
    if not records:
        raise DataError(f"The shards of {_joined(files.shown(root), name)} hold no images.")
    return DataSet(name_of(root), "webdataset", split, task, classes.categories, records, (*notes, *classes.notes))


def _classes(root: str) -> tuple[Task, tuple[Category, ...]]:
    """Return the task of the annotations and the classes, in the order of their numbers."""
    where = _joined(files.shown(root), CLASSES)
    tree = documents.parse_json(files.read(_joined(root, CLASSES), limit=documents.LARGEST_TEXT), where)
    rows = tree.get("classes") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not rows or tree.get("task") not in TASKS:
        raise DataError(f"{where} should have a task ({', '.join(TASKS)}) and a list of classes.", hint=_MAKE)
    said = [schemas.read_as(schemas.StoredClass, row, f"{where}: a class") for row in rows]
    for key in ("id", "name"):
        if len({getattr(each, key) for each in said}) < len(said):
            raise DataError(f"{where}: two classes have one {key}.", hint="Merge or rename them.")
    return tree["task"], tuple(Category(**dict(each)) for each in said)


def _splits(root: str) -> dict[str, dict[str, Shard]]:
    """Return the shards of each split by their names; its index, if there is one, is among them."""
    splits: dict[str, dict[str, Shard]] = {}
    for place, address, info in _files(root):
        split, _, name = place.partition("/")
        is_hidden = split.startswith(".") or name.startswith(".")
        if not is_hidden and "/" not in name and (name == INDEX or name.endswith(".tar")):
            splits.setdefault(split, {})[name] = Shard(address, name, info)
    return {name: shards for name, shards in splits.items() if shards.keys() - {INDEX}}


def _files(root: str) -> Iterator[tuple[str, str, files.Info]]:
    """Yield the files two levels below a folder: their places in it, addresses, sizes and versions."""
    if is_uri(root):
        prefix = root.partition("://")[2].rstrip("/") + "/"
        for address, info in files.listed(root):
            yield address.partition("://")[2].removeprefix(prefix), address, info
        return
    for path in Path(root).glob("*/*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), str(path), files.info(str(path))


def _record(entry: IndexedSample, shard: Shard, classes: ClassMap, stored: Task, task: Task) -> Record:
    suffix, image = next(iter(entry.parts.items()))
    ids = None if stored == "instance" else entry.parts.get(IDS)
    if ids is None and stored != "instance":
        raise DataError(f"The sample {entry.key!r} of {shard} has no annotation {entry.key}.{IDS}.", hint=_MAKE)
    sample = ShardSample(shard, entry.key, suffix, image, entry.parts[JSON], ids)
    size = (entry.height, entry.width)
    labels = classes.labels(entry.labels)
    read = AnnotationOfSample(sample, entry.name, size, labels, classes)
    if task == "instance":
        labels = tuple(label for label in labels if classes.categories[label].isthing)
    return Record(
        entry.name,
        None,
        read if task == stored != "semantic" else ReadAs(read, task, classes.categories),
        *size,
        labels,
        ImageOfSample(sample, size),
        entry.image_id,
    )


def _joined(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if is_uri(root) else str(Path(root) / name)


def _finds(folder: Path | str) -> bool:
    if isinstance(folder, str):
        return files.exists(_joined(folder, CLASSES))
    return (folder / CLASSES).is_file() and any(folder.glob("*/*.tar"))


FORMAT = Format(
    layout="classes.json and {train,val}/*.tar, shards of WebDataset",
    finds=_finds,
    open=open_split,
    in_stores=True,
)
