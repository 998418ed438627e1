"""Label maps: an image and a mask of the same name, whose pixel values are class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from ...structures.annotations import SemanticAnnotation
from ...structures.categories import ClassTable, load_class_table
from ...structures.images import image_size
from ...structures.run_lengths import values_in
from ..records import DataSet, Record, check_size
from .base import Format, ReadOptions, choose_task
from .class_map import read_class_file
from .files import read_values
from .layout import NAMES, find_split, folder_at, images_below, record_name
from .value_map import ValueMap, named_values, value_map

MASKS = ("labels", "annotations", "masks")
_PREPARED = ("images_detectron2", "annotations_detectron2")  # from `m2f data prepare` and the published scripts
_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # lossless formats
_CLASS_FILES = ("classes.yaml", "classes.yml", "classes.txt")
_LOOKED_AT = 10  # masks that are read for the values in an error message


@dataclass(frozen=True)
class LabelFile:
    """Reader of the labels of one image.

    Attributes:
        mask: the file of the mask.
        image: the file of the image, which has to have the same size.
        values: the meaning of the mask's pixel values.
    """

    mask: Path
    image: Path
    values: ValueMap

    def __call__(self) -> SemanticAnnotation:
        """Read the labels.

        Raises:
            DataError: the mask is missing, unreadable, differs in size from the image, or has unknown values.
        """
        values_HW = read_values(self.mask)
        check_size(self.image, image_size(self.image), values_HW.shape, self.mask)
        return self.values.labels(values_HW, self.mask)


class Folders(NamedTuple):
    """Folders of the images and of the masks of a split."""

    images: Path
    masks: Path


def label_records(
    folders: Folders, values: ValueMap, *, image_end: str = "", mask_end: str = ""
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Return a record per image, and notes.

    Args:
        image_end: end of image names, after the part that they share with mask names.
        mask_end: end of mask names, likewise.

    Raises:
        DataError: there are no images, or none of them has a mask.
    """
    files = _masks_below(folders.masks)
    masks = {p.relative_to(folders.masks).with_suffix("").as_posix(): p for p in files}
    repeated = len(files) - len(masks)
    records = []
    for image in images_below(folders.images):
        stem = record_name(image.relative_to(folders.images)).removesuffix(image_end)
        mask = masks.pop(stem + mask_end, folders.masks / f"{stem}{mask_end}.png")
        records.append(Record(stem, image, LabelFile(mask, image, values)))
    if not any(record.read_annotation.mask.is_file() for record in records):
        raise DataError(
            f"No image of {folders.images} has a mask in {folders.masks}, "
            f"such as {records[0].read_annotation.mask.name}.",
            hint="A mask has the name of its image and ends in .png (JPEG changes its values).",
        )
    loose = sum(name.endswith(mask_end) for name in masks)  # Cityscapes has other images of labels beside them
    notes = [f"{loose} masks in {folders.masks} belong to no image"] if loose else []
    if repeated:
        notes.append(f"{repeated} masks in {folders.masks} have the name of another and are not used")
    return tuple(records), tuple(notes)


def _masks_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def folders_at(folder: Path, name: str) -> Folders | None:
    """Return images/{name} with labels/{name}, {name}/images with {name}/labels, or the prepared folders.

    None if there are none of these.
    """
    prepared = Folders(*(folder / kind / name for kind in _PREPARED))
    if all(each.is_dir() for each in prepared):
        return prepared
    for images, above in ((folder / "images" / name, None), (folder / name / "images", folder / name)):
        masks = folder_at(*((above / kind) if above else (folder / kind / name) for kind in MASKS))
        if images.is_dir() and masks is not None:
            return Folders(images, masks)
    return None


def open_split(folder: Path, split: str, options: ReadOptions) -> DataSet:
    choose_task(options.task, ("semantic",), folder)
    folders, _, found_notes = find_split(folder, split, lambda name: folders_at(folder, name))
    table = _classes(folder, folders, options)
    ignored = {_ignored_value(table) if options.ignore_index is None else options.ignore_index}
    if options.label_map is None:
        values = value_map({number: number for number in range(len(table.categories))}, table.categories, ignored)
    else:
        values = named_values(options.label_map, table.categories, ignored)
    records, notes = label_records(folders, values)
    return DataSet(folder.name, "label-maps", split, "semantic", table.categories, records, (*found_notes, *notes))


def _ignored_value(table: ClassTable) -> int:
    """Return the ignored value of a class table.

    A table without a value of its own says 255. With more than 255 classes that is a class, so the result is 65535.
    """
    return 65535 if table.ignore_index == 255 < len(table.categories) else table.ignore_index


def _classes(folder: Path, folders: Folders, options: ReadOptions) -> ClassTable:
    if options.classes is not None:
        return load_class_table(options.classes)
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            return read_class_file(folder / name)
    values = sorted({int(v) for mask in _masks_below(folders.masks)[:_LOOKED_AT] for v in values_in(read_values(mask))})
    raise DataError(
        f"{folder} does not say what its classes are called; its first masks hold the values {_short(values)}.",
        hint="Write classes.txt into it, one name per line for 0, 1, 2, …, or name a class table (--classes).",
    )


def _short(values: Sequence[int]) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:8], "…", *shown[-3:]])


FORMAT = Format(
    layout="images/{train,val}/NAME.jpg and labels|annotations|masks/{train,val}/NAME.png, classes.yaml or classes.txt",
    finds=lambda folder: any(folders_at(folder, name) for name in NAMES),
    open=open_split,
    generic=True,
    raw_values=True,
)
