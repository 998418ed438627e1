"""Matching of predictions with annotated images, by ids and by names of files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ...data.records import DataSet, Record
from ...errors import DataError
from ...results.server_formats import FRAME
from ...runtime.files import safe_name
from ...runtime.trees import Tree

_SHOWN = 3


def known_ids(records: Sequence[Record], ids: Iterable[int | str]) -> list[int | str]:
    """Return the id of each record, as the predictions call it; the data set's own where they do not have the record.

    The ids of a record are the data set's own, its name, the end of its image's path, and the number that its name is.

    Raises:
        DataError: two images share a prediction.
    """
    taken = {record.image_id for record in records}  # an id of another image is not a name of this one
    present = set(ids)
    keys = []
    for record in records:
        own = record.name if record.image_id is None else record.image_id
        others = [key for key in _names(record) if key not in taken]
        keys.append(next((key for key in (own, *others) if key in present), own))
    _refuse_shared([key for key in keys if key in present])
    return keys


def _names(record: Record) -> list[int | str]:
    parts = () if record.image is None else record.image.with_suffix("").parts
    number = [int(record.name)] if record.name.isdecimal() else []
    return [record.name, *("/".join(parts[-count:]) for count in (1, 2) if parts), *number]


def by_name(names: list[str], data: DataSet, where: Tree) -> tuple[list[str], int]:
    """Return the file of each record, and the number of files of other images.

    The file has the same path, or the same name where one side has no folders. Cityscapes' files go by city, sequence
    and frame.

    Raises:
        DataError: an image has no file or several, or a file belongs to several images.
    """
    frames = data.format == "cityscapes"
    keyed: dict[str, list[str]] = defaultdict(list)
    for name in names:
        path = PurePosixPath(name).with_suffix("")
        for key in _frame(path, frames) or (path.as_posix(), f"/{path.name}"):
            keyed[key].append(name)
    files = [keyed.get(key, []) for key in (_key(record.name, keyed, frames) for record in data.records)]
    missing = [record.name for record, own in zip(data.records, files, strict=True) if not own]
    if missing:
        raise DataError(
            f"{where} has no file for {len(missing)} of {len(data)} annotated images, such as {missing[0]}.",
            hint="A prediction has the name of its image.",
        )
    several = next((own for own in files if len(own) > 1), None)
    if several:
        raise DataError(f"{where} has several files for one image: {', '.join(several[:_SHOWN])}.")
    _refuse_shared([own[0] for own in files])
    return [own[0] for own in files], len(names) - len(files)


def _key(name: str, known: Iterable[str], frames: bool) -> str:
    path = PurePosixPath(name)
    candidates = _frame(path, frames) or (name, path.name if len(path.parts) > 1 else f"/{name}", safe_name(name))
    return next((key for key in candidates if key in known), name)


def _frame(path: PurePosixPath, frames: bool) -> tuple[str, ...]:
    frame = FRAME.match(path.name) if frames else None
    return (frame.group(),) if frame else ()


def _refuse_shared(keys: list[int | str]) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise DataError(f"Several annotated images would share the prediction {twice!r}.")
