"""Opening of a folder of annotated images: recognition of its format, and one split of it as a data set."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .. import plugins
from ..errors import ConfigError, DataError
from ..storage import uris
from ..structures import Task
from ..structures.schemas import shown
from .formats.base import Format, ReadOptions
from .formats.files import read_json
from .records import DataSet

_SHOWN = 8
_TRIED = 20  # JSON files that are opened to give a hint
_CONVERT = (
    "Convert other data where its files are (m2f data convert DIR OUT --to webdataset), and copy OUT to the store."
)


def detect(folder: str | Path) -> str:
    """Return the name of the format of a folder, or of the URI of one in an object store.

    Raises:
        DataError: the folder does not exist, or has none or several of the known formats.
    """
    folder = _existing(folder)
    with _listing(folder):
        names = _found_in(folder)
    if len(names) == 1:
        return names[0]
    if names:
        raise DataError(
            f"{uris.shown(str(folder))} looks like {' and like '.join(names)}.", hint="Say which it is (--format)."
        )
    if isinstance(folder, str):
        readers = (plugins.get("formats", name) for name in plugins.names("formats"))
        layouts = "; ".join(reader.layout for reader in readers if reader.in_stores)
        name = " (with the '?' and what follows it, which are part of the name)" if "?" in folder else ""
        said = f"{uris.shown(folder)}{name} holds no data set that is read from a store: {layouts}."
        raise DataError(said, hint=f"Check the names of bucket and folder. {_CONVERT}")
    with _listing(folder):
        raise _unrecognised(folder)


def open_data(
    folder: str | Path,
    split: str,
    *,
    format: str | None = None,
    task: Task | None = None,
    classes: str | Path | None = None,
    ignore_index: int | None = None,
    label_map: Mapping[int, str | int | None] | None = None,
    trust_code: bool = False,
) -> DataSet:
    """Open one split. Annotation files are parsed here; images and masks are read with their record.

    Args:
        folder: a folder, or the URI of one in an object store.
        split: "train", "val", or a name that the folder itself uses. "val" also finds val2017, valid, validation and,
            with a note, test.
        format: a name of the group "formats" or module:object. None recognises the format.
        task: the task of the annotations. None takes the richest that the data supports.
        classes: a class table (shipped name or YAML file) that replaces the data's own classes.
        ignore_index: the pixel value that does not count, for label maps.
        label_map: pixel value to class name or number, or to None for a value that does not count, for label maps.
            Values that it does not list are errors.
        trust_code: True if `format` may be module:object, as when a user typed it.

    Raises:
        DataError: the folder, format, split or images do not exist, an annotation file is damaged, or the classes do
            not fit.
        ConfigError: the format or class table is unknown, or the format does not support an option.
    """
    folder = _existing(folder)
    name = detect(folder) if format is None else format
    reader: Format = plugins.get("formats", name, trust_code=trust_code)
    with plugins.using(name):
        raw_values, in_stores = reader.raw_values, reader.in_stores
    if isinstance(folder, str) and not in_stores:
        raise DataError(f"{uris.shown(folder)}: the format {name} is not read from a store.", hint=_CONVERT)
    if not raw_values and (ignore_index is not None or label_map is not None):
        raise ConfigError(
            f"ignore_index and label_map are for masks of pixel values; {uris.shown(str(folder))} has the format "
            f"{name}, which says what its values mean.",
            hint="Leave them out.",
        )
    with plugins.using(name), _listing(folder):
        data = reader.open(folder, split, ReadOptions(task, classes, ignore_index, label_map))
    _refuse_twins(data, folder)
    return data


def _existing(folder: str | Path) -> str | Path:
    folder = uris.place_of(folder)
    if isinstance(folder, str):
        uris.scheme_of(folder)
        return folder
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"The data folder {folder} {what}.", hint="Give the folder of a data set.")
    return folder.resolve() if folder.name in ("", "..") else folder


@contextmanager
def _listing(folder: str | Path) -> Iterator[None]:
    """Turn an `OSError`, such as that of a folder that may not be listed, into one sentence."""
    try:
        yield
    except OSError as error:
        where = f"{folder}: {shown(str(error.filename))}" if error.filename else str(folder)
        raise DataError(f"{where} cannot be read: {error.strerror or error}.") from error


def _found_in(folder: str | Path) -> list[str]:
    """Return the formats that a folder may have. Generic ones are returned only if no other format fits."""
    readers = {name: plugins.get("formats", name) for name in plugins.names("formats")}
    if isinstance(folder, str):
        readers = {name: reader for name, reader in readers.items() if reader.in_stores}
    matching = [name for name, reader in readers.items() if reader.finds(folder)]
    return [name for name in matching if not readers[name].generic] or matching


def _unrecognised(folder: Path) -> DataError:
    if not any(folder.iterdir()):
        return DataError(f"The data folder {folder} is empty.", hint="Give the folder of a data set.")
    inside = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    shown = ", ".join(inside[:_SHOWN]) + (", …" if len(inside) > _SHOWN else "")
    nested = [path for path in sorted(folder.iterdir()) if path.is_dir() and _found_in(path)]
    elsewhere = None if nested else _coco_elsewhere(folder)
    if elsewhere is not None:
        path, kind = elsewhere
        hint = f"{path} is a COCO json under another name: move it to {folder / 'annotations' / kind}_train.json."
    elif nested:
        hint = f"Did you mean {' or '.join(map(str, nested[:3]))}?"
    else:
        layouts = (f"{name}: {plugins.get('formats', name).layout}" for name in plugins.names("formats"))
        hint = f"Known are {'; '.join(layouts)}."
    return DataError(f"{folder} has no known format; it holds {shown}.", hint=hint)


def _coco_elsewhere(folder: Path) -> tuple[Path, str] | None:
    """Return a COCO JSON whose name or folder is not the expected one, and the kind of its annotations."""
    for path in itertools.islice(itertools.chain(folder.glob("*.json"), folder.glob("*/*.json")), _TRIED):
        try:
            tree = read_json(path, "images", "annotations", "categories")
        except DataError:
            continue
        first = next(iter(tree["annotations"]), None)
        return path, "panoptic" if isinstance(first, dict) and "segments_info" in first else "instances"
    return None


def _refuse_twins(data: DataSet, folder: str | Path) -> None:
    name, count = Counter(record.name for record in data.records).most_common(1)[0]
    if count > 1:
        where = uris.shown(str(folder))
        raise DataError(
            f"{where}: {count} images of the split {data.split!r} are called {name!r} (without suffix).",
            hint="Rename them, so that results can be told apart.",
        )
