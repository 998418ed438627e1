"""Conversion of annotated images between formats, with a list of what the new format cannot hold."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import plugins
from ...data.formats import coco_instance
from ...data.formats.coco import has_json
from ...data.records import Record
from ...errors import ConfigError
from ...storage.uris import place_of
from ...structures.categories import default_color
from .base import CLASSES, Lost, OutputFormat
from .retask import BACKGROUND, Recast, plan
from .source import ConvertSource, open_source
from .write import ConvertOutcome, Written, refuse_existing, write_splits

TEXTS = {
    "overlaps": "pixels that several objects share belong to the smallest of them now",
    "hidden": "objects without a visible pixel are left out",
    "crowds": "crowds are left out, or are no longer told from objects",
    "objects": "objects are no longer told apart from their neighbours of the same class",
    "outlines": "polygons became pixels",
    "groups": "regions of countable classes are crowds, because nobody told their objects apart",
    "merged": "segments of one class became one: this format holds one region of stuff, and one crowd, per class",
    "stuff": "classes have no objects and are left out",
    "unevaluated": "regions of labels that Cityscapes does not evaluate, such as caravans or parking, became void",
    "void": "pixels of no class can no longer be told from background",
    "background": f"pixels of no object became the class {BACKGROUND!r}",
    "nobody": "pixels of no object became void: they count nowhere",
    "category ids": "ids of categories are numbered anew",
    "colours": "colours of classes have no place in this format",
    "image ids": "ids of images have no place in this format",
    "areas": "areas as annotated have no place in this format; they are counted from the pixels",
    "polygons": "gtFine_polygons.json files are not written; published training of instances takes its masks from them",
    "instances": "outlines in instances_*.json are not copied: instances are the visible parts of segments now; "
    "--format coco-instance converts them",
    "json extras": "supercategories, licences and further keys of the json are not copied",
}


@dataclass(frozen=True)
class Loss:
    """Information that the new data set does not hold.

    Attributes:
        kind: a key of TEXTS.
        count: how often it was lost. None if the loss is about the format as a whole.
    """

    kind: str
    count: int | None

    @property
    def text(self) -> str:
        return TEXTS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, "text": self.text}


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        source: folder of the source.
        destination: folder of the new data set.
        format: format of the source.
        to: format of the new data set.
        classes: number of classes.
        splits: the written splits, with their failures.
        losses: the information that was lost.
        notes: notes of the reader.
    """

    source: Path | str
    destination: Path
    format: str
    to: str
    classes: int
    splits: tuple[Written, ...]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]

    @property
    def failures(self) -> list[tuple[str, str, str]]:
        """Failures as (split, image, reason)."""
        return [(each.split, *failure) for each in self.splits for failure in each.failures]

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": str(self.source),
            "destination": str(self.destination),
            "format": self.format,
            "to": self.to,
            "classes": self.classes,
            "splits": [
                {
                    "split": s.split,
                    "pictures": s.images,
                    "failures": [{"picture": name, "reason": reason} for name, reason in s.failures],
                }
                for s in self.splits
            ],
            "losses": [loss.to_dict() for loss in self.losses],
            "notes": list(self.notes),
        }


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    splits: Sequence[str] = (),
    separate: Sequence[str] = (),
    shard_size: int | None = None,
    link: bool = False,
    workers: int | None = 1,
    on_start: Callable[[int], None] | None = None,
    on_image: Callable[[ConvertOutcome], None] | None = None,
    trust_code: bool = False,
    **options: Any,
) -> Conversion:
    """Write the annotated images of a folder in another format.

    Args:
        destination: a folder that does not exist yet. It appears under its name when it is complete.
        to: a name of the group "converters": coco-instance, coco-panoptic, label-maps, yolo-seg, cityscapes, labelme,
            webdataset.
        splits: splits to convert. By default train, val and test as far as they exist.
        separate: classes of label maps whose connected regions become objects.
        shard_size: images of a shard, for formats of shards. None takes the format's own number.
        link: True for symbolic links to the images instead of copies.
        workers: number of processes. None chooses a useful number; see `write.write_splits`.
        on_start: called with the number of images.
        on_image: called with the outcome for each image.
        trust_code: True if `to` and `format` may be module:object, as when a user typed it.
        options: format, classes, ignore_index and label_map, as in `open_dataset.open_data`.

    Raises:
        ConfigError: the destination exists or lies in the source, the format is unknown, or it cannot hold the classes.
        DataError: the source cannot be opened, or not one image could be used.
        M2FError: the destination cannot be written.
    """
    source, destination = place_of(source), Path(destination)
    target: OutputFormat = plugins.get("converters", to, trust_code=trust_code)
    check_destination(source, destination)
    with plugins.using(to):
        task = target.task
    opened = open_source(source, task, splits, trust_code=trust_code, **options)
    parts = {data.split: data.records for data in opened.splits}
    return write_out(
        opened,
        parts,
        destination,
        to,
        separate=separate,
        shard_size=shard_size,
        link=link,
        workers=workers,
        on_start=on_start,
        on_image=on_image,
        trust_code=trust_code,
    )


def write_out(
    opened: ConvertSource,
    parts: Mapping[str, Sequence[Record]],
    destination: Path,
    to: str,
    *,
    separate: Sequence[str] = (),
    shard_size: int | None = None,
    link: bool = False,
    workers: int | None = 1,
    on_start: Callable[[int], None] | None = None,
    on_image: Callable[[ConvertOutcome], None] | None = None,
    trust_code: bool = False,
) -> Conversion:
    """Write records of an opened source, divided into splits in any way; see `convert`."""
    target: OutputFormat = plugins.get("converters", to, trust_code=trust_code)
    recast = plan(opened.categories, opened.task, target.task or opened.task, separate)
    writer = target.open(recast.categories, destination.name)
    if target.task is None:
        writer = dataclasses.replace(writer, task=recast.task)
    if shard_size is not None:
        if writer.images_per_file is None:
            raise ConfigError(f"The format {to} has no shards.", hint="Leave out --shard-size.")
        writer = dataclasses.replace(writer, images_per_file=shard_size)
    if on_start is not None:
        on_start(sum(map(len, parts.values())))
    written = write_splits(parts, destination, writer, recast, link=link, workers=workers, on_image=on_image)
    counted = sum((each.lost for each in written), Counter())
    losses = [*_of_format(opened, target, recast), *_counted(counted)]
    notes = tuple(dict.fromkeys(note for data in opened.splits for note in data.notes))
    return Conversion(
        opened.folder, destination, opened.format, to, len(recast.categories), tuple(written), tuple(losses), notes
    )


def check_destination(source: Path | str, destination: Path) -> None:
    """Refuse a destination that exists, or that lies in the source, where the next reader would see both.

    Raises:
        ConfigError: one of these is the case.
    """
    refuse_existing(destination)
    if isinstance(source, Path) and destination.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{destination} lies in {source}.", hint="Choose a folder beside it.")


# --- losses -----------------------------------------------------------------------------------------------------------


def _counted(lost: Lost) -> Iterable[Loss]:
    return (Loss(kind, lost[kind]) for kind in TEXTS if lost[kind])


def _of_format(opened: ConvertSource, target: OutputFormat, recast: Recast) -> Iterable[Loss]:
    kinds: dict[str, int | None] = dict.fromkeys(target.lacks)
    before, after = opened.task, recast.task
    stuff = set(opened.dropped) | ({c.name for c in recast.source} - {c.name for c in recast.categories})
    if stuff:
        kinds["stuff"] = len(stuff)
    if after == "instance" != opened.richest:
        kinds["void"] = None
    if after == "semantic" == before != opened.richest:
        kinds["objects"] = None
    if before == "instance" != after:
        kinds["background" if after == "semantic" else "nobody"] = None
    if opened.format == "cityscapes" and not (opened.folder / CLASSES).is_file():
        kinds["unevaluated"] = None
    if opened.format == "coco-panoptic" and before != "instance" and has_json(opened.folder, coco_instance.KIND):
        kinds["instances"] = None
    if "coco" in opened.format:
        kinds["json extras"] = None
    has = _own(opened, recast)
    return [Loss(kind, kinds.get(kind)) for kind in TEXTS if kind in kinds or kind in has - target.keeps]


def _own(opened: ConvertSource, recast: Recast) -> frozenset[str]:
    """Return the kinds of information that the source has and that not every format keeps."""
    ids = [category.id for category in recast.categories] != list(range(len(recast.categories)))
    colours = any(c.color != default_color(number) for number, c in enumerate(recast.categories))
    images = any(record.image_id is not None for data in opened.splits for record in data.records[:1])
    kinds = {"category ids": ids, "colours": colours, "image ids": images, "areas": opened.format == "coco-instance"}
    return frozenset(kind for kind, is_there in kinds.items() if is_there)
