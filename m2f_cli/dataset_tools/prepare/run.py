"""Execution of a plan: in parallel, only for missing files, each of which is written completely or not at all."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import plugins
from ...errors import DataError
from ...runtime.archives import is_safe, refuse_other_content
from ...runtime.files import atomic, lies_in, remove_parts
from ...runtime.locks import locked
from ...runtime.pools import process_pool
from ...runtime.threads import usable_cores
from ...runtime.trees import Folder, Layers, Tree, archive_files, open_tree
from ...structures.images import open_image
from .base import Count, Item, Made, Plan, Preparer, Stage, as_it_is
from .journal import PrepareJournal, remove_left

_PIXELS = (".png", ".tif", ".tiff")
_PNG_END = b"IEND\xaeB`\x82"
_CHUNK = 8


@dataclass(frozen=True)
class PrepareProgress:
    """Progress of a stage. `on_progress` receives it after each image, in the caller's process.

    Attributes:
        stage: title of the stage.
        done: number of finished images.
        total: number of images.
        name: name of the last image.
    """

    stage: str
    done: int
    total: int
    name: str


@dataclass(frozen=True)
class StageReport:
    """Result of a stage, as numbers of files or entries.

    Attributes:
        title: title of the stage.
        made: number of those that were missing.
        kept: number of those that existed.
        replaced: number of those that differed.
    """

    title: str
    made: int = 0
    kept: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class PrepareReport:
    """Result of a preparation.

    Attributes:
        dataset: name of the preparer.
        source: the files that were read.
        folder: the folder that now holds the data set.
        counts: number of images in each split.
        stages: result of each stage.
        notes: remarks for the user.
    """

    dataset: str
    source: str
    folder: Path
    counts: tuple[Count, ...]
    stages: tuple[StageReport, ...]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


class Done(NamedTuple):
    name: str
    outcome: str  # a field of StageReport
    entry: Any


def prepare(
    dataset: str,
    root: Path | None = None,
    out: Path | None = None,
    *,
    workers: int | None = None,
    verify: bool = False,
    partial: bool = False,
    on_progress: Callable[[PrepareProgress], None] | None = None,
    trust_code: bool = False,
) -> PrepareReport:
    """Prepare a downloaded data set for training and evaluation.

    Existing complete files are kept, so that an interrupted run is continued. Archives are read in place.

    Args:
        dataset: a name of the group "preparers".
        root: the data set's folder or archive, or a folder with its archives. By default it is the data set's folder
            below $DETECTRON2_DATASETS, or below ./datasets if that is not set.
        out: the output folder. By default it is the folder of the data set, or one of its usual name beside an archive.
            In another folder, images are linked if possible, else copied.
        workers: number of processes. By default it is one per core that this process may use.
        verify: compare archives with their published hashes, as far as there are any (not with `partial`). Also create
            everything again, compare it with the existing files, and replace those that differ.
        partial: True if a part of the published images is enough.
        on_progress: called after each image.
        trust_code: True if `dataset` may be "module:object", as when a user typed it.

    Raises:
        ConfigError: the data set is unknown, is code without `trust_code`, or another process prepares it there.
        DataError: files are missing, too few or damaged. The message names the missing files and their source.
        M2FError: the output cannot be written.
    """
    preparer: Preparer = plugins.get("preparers", dataset, trust_code=trust_code)
    with plugins.using(dataset):
        tree, folder = find(preparer, root, out)
        plan = preparer.plan(tree, partial)
    notes = (*check_counts(plan, preparer, partial), *plan.notes)
    if verify and not partial:
        check_archives(tree, preparer, on_progress)
    stages = (*_placing(tree, plan, folder), *plan.stages)
    everything = tree if _is_at(tree, folder) else Layers((tree, Folder(folder)))
    with alone_in(folder), _mapping(workers or usable_cores()) as map_:
        job = _Job(everything, folder, verify, map_, on_progress)
        reports = tuple(job.run(stage) for stage in stages)
    check_output(stages, folder)
    return PrepareReport(dataset, str(tree), folder, plan.counts, reports, notes)


# --- finding ----------------------------------------------------------------------------------------------------------


def find(preparer: Preparer, root: Path | None, out: Path | None) -> tuple[Tree, Path]:
    """Return the files of a data set, and its future folder.

    Raises:
        DataError: the data set does not exist. The message says what was expected and where it comes from.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / preparer.folder
    if not root.exists():
        raise DataError(f"There is no {root} with {preparer.title}.", hint=f"{preparer.how_to_get} Pass it as --root.")
    tree = open_tree(root)
    rooted = tree.rooted(preparer.marks, preparer.folder) if preparer.marks else tree
    if rooted is None:
        marks = " or ".join(preparer.marks)
        raise DataError(f"{root} is not {preparer.title}: it has no {marks}.", hint=preparer.how_to_get)
    return rooted, out or _home(rooted, root, preparer)


def _home(tree: Tree, root: Path, preparer: Preparer) -> Path:
    trees = tree.trees if isinstance(tree, Layers) else (tree,)
    folders = [each.root for each in trees if isinstance(each, Folder)]
    if folders:
        return folders[0]
    return root if root.is_dir() else root.parent / Path(preparer.folder).name


def check_counts(plan: Plan, preparer: Preparer, partial: bool) -> list[str]:
    """Return notes on the numbers of images.

    Raises:
        DataError: there are no images, or their number differs from the published one.
    """
    if not any(count.found for count in plan.counts):
        raise DataError(f"There are no images of {preparer.title}.", hint=preparer.how_to_get)
    notes = []
    for count in plan.counts:
        images = "1 image" if count.found == 1 else f"{count.found} images"
        text = f"the split {count.split} has {images}; {count.expected} are published"
        if count.differs and (count.sure or not count.found) and not partial:
            hint = f"The copy or download is incomplete: complete it, or use --partial. {preparer.how_to_get}"
            raise DataError(f"{preparer.title}: {text}.", hint=hint)
        notes += [f"{text}{'' if count.sure else ' (a figure that is not verified)'}"] if count.differs else []
    return notes


def check_archives(tree: Tree, preparer: Preparer, on_progress: Callable[[PrepareProgress], None] | None) -> None:
    """Compare archives with their published hashes.

    Raises:
        DataError: an archive is not the published one.
    """
    known = [file for file in archive_files(tree) if file.name in preparer.hashes]
    for number, file in enumerate(known, start=1):
        refuse_other_content(file, preparer.hashes[file.name])
        if on_progress is not None:
            on_progress(PrepareProgress("hashes of archives", number, len(known), file.name))


def check_output(stages: Sequence[Stage], folder: Path) -> None:
    """Check that all files that were written exist and are complete.

    Raises:
        DataError: a file is missing or cut off.
    """
    for stage in stages:
        broken = [item.target for item in stage.items if item.target and not is_whole(folder / item.target)]
        if broken:
            hint = "Something else removed or changed it: run this again."
            raise DataError(f"{folder / broken[0]} is missing or cut off, and {len(broken) - 1} others.", hint=hint)


def _is_at(tree: Tree, folder: Path) -> bool:
    return isinstance(tree, Folder) and folder.exists() and tree.root.samefile(folder)


def _placing(tree: Tree, plan: Plan, folder: Path) -> tuple[Stage, ...]:
    """Return the stage that brings files into the folder that training reads without change."""
    if not plan.needed or _is_at(tree, folder):
        return ()
    return (Stage("images and annotations", [Item(n, (n,), n) for n in plan.needed], as_it_is),)


# --- working ----------------------------------------------------------------------------------------------------------


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[Done]]]:
    """Yield `map` over processes. A failure or Ctrl-C cancels the work that has not begun."""
    if workers == 1:
        yield map
        return
    with process_pool(workers, "prepares images") as pool:
        yield functools.partial(pool.map, chunksize=_CHUNK)


@dataclass(frozen=True)
class _Job:
    tree: Tree
    out: Path
    verify: bool
    map: Callable[..., Iterator[Done]]
    on_progress: Callable[[PrepareProgress], None] | None

    def run(self, stage: Stage) -> StageReport:
        table = None if stage.table is None else self.out / stage.table
        if table is not None and not self.verify and _is_complete(table, stage.items, self.out):
            remove_left(table)
            return StageReport(stage.title, kept=len(stage.items))
        if stage.table is not None:
            _refuse_link(self.out, stage.table)
        with PrepareJournal(table, fresh=self.verify) as journal:
            kept = [] if self.verify else [item for item in stage.items if self._is_done(item, journal)]
            names = {item.name for item in kept}
            todo = [item for item in stage.items if item.name not in names]
            outcomes = {"made": 0, "kept": len(kept), "replaced": 0}
            work = functools.partial(_work, stage.make, self.tree, self.out, self.verify)
            for number, done in enumerate(self.map(work, todo), start=1 + len(kept)):
                outcomes[done.outcome] += 1
                journal.append(done.name, done.entry)
                self._tell(PrepareProgress(stage.title, number, len(stage.items), done.name))
            if table is not None:
                text = stage.join([journal.entries[item.name] for item in stage.items]).encode()
                if not table.is_file() or table.read_bytes() != text:
                    _put(table, text)
                journal.remove()
        return StageReport(stage.title, **outcomes)

    def _is_done(self, item: Item, journal: PrepareJournal) -> bool:
        has_entry = not journal.is_used or item.name in journal.entries
        return has_entry and (item.target is None or is_whole(self.out / item.target))

    def _tell(self, progress: PrepareProgress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)


def _work(make: Callable[[Tree, Item], Made], tree: Tree, out: Path, verify: bool, item: Item) -> Done:
    if item.target is not None and not is_safe(item.target):
        raise DataError(f"{tree}: the name {item.target!r} leads out of the folder that is prepared.")
    if item.target is not None:
        _refuse_link(out, item.target)
    result = make(tree, item)
    if item.target is None:
        return Done(item.name, "made", result.entry)
    target = out / item.target
    there = target.is_file()
    if verify and there and _is_same(target, result.content):
        return Done(item.name, "kept", result.entry)
    _put(target, result.content)
    return Done(item.name, "replaced" if there else "made", result.entry)


# --- files ------------------------------------------------------------------------------------------------------------


def is_whole(path: Path) -> bool:
    """Return True if a file exists and is not cut off, judging by its length and a PNG's last bytes."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    if path.suffix != ".png":
        return True
    with path.open("rb") as file:
        file.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        return file.read() == _PNG_END


def _refuse_link(folder: Path, name: str) -> None:
    """Refuse to write a file to a place outside of its folder.

    Raises:
        DataError: a link leads there.
    """
    if not lies_in(folder, name):
        hint = "Remove the link, or prepare into another folder with --out."
        raise DataError(f"A link leads {folder / name} out of the folder that is prepared.", hint=hint)


def _is_complete(table: Path, items: Sequence[Item], out: Path) -> bool:
    """Return True if a table lists exactly these images, and the files of all exist."""
    if not table.is_file():
        return False
    try:
        listed = [image["id"] for image in json.loads(table.read_bytes())["images"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # of another program, or damaged: it is written anew
    whole = all(item.target is None or is_whole(out / item.target) for item in items)
    return whole and sorted(map(str, listed)) == sorted(item.name for item in items)


def _is_same(path: Path, content: bytes | Path) -> bool:
    """Return True if a file holds this content. Images are compared by their pixels, not by their compression."""
    if isinstance(content, Path):
        if path.samefile(content):
            return True
        content = content.read_bytes()
    old = path.read_bytes()
    if old == content or path.suffix not in _PIXELS:
        return old == content
    try:
        new_values, old_values = (_values(each) for each in (content, old))
    except DataError:
        return False
    return new_values.dtype == old_values.dtype and np.array_equal(new_values, old_values)


def _values(content: bytes) -> np.ndarray:
    with open_image(content, "The file") as image:
        return np.array(image)


def _put(path: Path, content: bytes | Path) -> None:
    """Write a file completely or not at all. Another file is linked if that is possible, else copied.

    Raises:
        M2FError: there is no space, or no permission.
    """
    with atomic(path) as part:
        _link(content, part) if isinstance(content, Path) else part.write_bytes(content)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder, and remove the unfinished files of killed ones.

    There is no lock for a folder without write permission, which may hold a complete data set.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK):
        yield
        return
    with locked(folder, "A preparation"):
        remove_parts(folder)
        yield


def _link(source: Path, target: Path) -> None:
    """Create a hard link, whose target cannot move away. Other disks, and systems without links, get a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
