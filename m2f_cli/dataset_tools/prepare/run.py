"""Carrying out a plan: in parallel, only what is missing, each file whole or not at all."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import plugins
from ...errors import DataError
from ...runtime.archives import Folder, Layers, Tree, archive_files, is_safe, open_tree, refuse_other_content
from ...runtime.files import atomic
from ...runtime.locks import locked
from ...runtime.threads import usable_cores
from ...structures.images import open_image
from .base import Count, Item, Made, Plan, Preparer, Stage, as_it_is
from .journal import PrepareJournal

_PIXELS = (".png", ".tif", ".tiff")
_PNG_END = b"IEND\xaeB`\x82"
_CHUNK = 8


@dataclass(frozen=True)
class PrepareProgress:
    """What `on_progress` gets after each image, in the caller's process: `done` of `total` of a stage."""

    stage: str
    done: int
    total: int
    name: str


@dataclass(frozen=True)
class StageReport:
    """made: files or entries that were missing. kept: those that were there. replaced: those that differed."""

    title: str
    made: int = 0
    kept: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class PrepareReport:
    """What was found, and what was done. `folder` holds the data set now."""

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
    """Make of a downloaded data set what training and evaluation read.

    What exists and is whole is kept; a run that was stopped goes on where it was. Archives are read in place.

    Args:
        dataset: a name of the group "preparers".
        root: the data set's folder or archive, or a folder with its archives; by default its folder below
            $DETECTRON2_DATASETS (./datasets where that is not set).
        out: where to; by default the folder of the data set, or one of its usual name beside an archive. Elsewhere,
            images are linked if they can be, else copied.
        workers: processes; by default one per core that this process may use.
        verify: compare archives with their published hashes, as far as there are any (with `partial`, none is
            compared); make everything again and compare with what is there; what differs is replaced.
        partial: a part of the published images is enough.
        trust_code: whether `dataset` may be "module:object", as what a user typed may.

    Raises:
        ConfigError: an unknown data set, code without `trust_code`, or another process prepares it there.
        DataError: files are missing (says what was expected and where it comes from), too few or damaged.
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
    with alone_in(folder), _mapping(workers or usable_cores(), [__name__, preparer.plan.__module__]) as map_:
        job = _Job(everything, folder, verify, map_, on_progress)
        reports = tuple(job.run(stage) for stage in stages)
    check_output(stages, folder)
    return PrepareReport(dataset, str(tree), folder, plan.counts, reports, notes)


# --- finding ----------------------------------------------------------------------------------------------------------


def find(preparer: Preparer, root: Path | None, out: Path | None) -> tuple[Tree, Path]:
    """The files of a data set, and the folder in which it will be.

    Raises:
        DataError: not found; says what was expected and where it comes from.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets") / preparer.folder
    if not root.exists():
        raise DataError(f"There is no {root} with {preparer.title}.", hint=f"{preparer.how_to_get} Pass it as --root.")
    tree = open_tree(root)
    found = tree.rooted(preparer.marks, preparer.folder) if preparer.marks else tree
    if found is None:
        marks = " or ".join(preparer.marks)
        raise DataError(f"{root} is not {preparer.title}: it has no {marks}.", hint=preparer.how_to_get)
    return found, out or _home(found, root, preparer)


def _home(tree: Tree, root: Path, preparer: Preparer) -> Path:
    trees = tree.trees if isinstance(tree, Layers) else (tree,)
    folders = [each.root for each in trees if isinstance(each, Folder)]
    if folders:
        return folders[0]
    return root if root.is_dir() else root.parent / Path(preparer.folder).name


def check_counts(plan: Plan, preparer: Preparer, partial: bool) -> list[str]:
    """Notes on the numbers of images.

    Raises:
        DataError: none at all, or others than published.
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
    """
    Raises:
        DataError: an archive is not the published one.
    """
    known = [file for file in archive_files(tree) if file.name in preparer.hashes]
    for number, file in enumerate(known, start=1):
        refuse_other_content(file, preparer.hashes[file.name])
        if on_progress is not None:
            on_progress(PrepareProgress("hashes of archives", number, len(known), file.name))


def check_output(stages: Sequence[Stage], folder: Path) -> None:
    """
    Raises:
        DataError: a file that was made is not there, or is not whole.
    """
    for stage in stages:
        broken = [item.target for item in stage.items if item.target and not is_whole(folder / item.target)]
        if broken:
            hint = "Something else removed or changed it: run this again."
            raise DataError(f"{folder / broken[0]} is missing or cut off, and {len(broken) - 1} others.", hint=hint)


def _is_at(tree: Tree, folder: Path) -> bool:
    return isinstance(tree, Folder) and folder.exists() and tree.root.samefile(folder)


def _placing(tree: Tree, plan: Plan, folder: Path) -> tuple[Stage, ...]:
    """The stage that brings files which training reads as they are into the folder."""
    if not plan.needed or _is_at(tree, folder):
        return ()
    return (Stage("images and annotations", [Item(n, (n,), n) for n in plan.needed], as_it_is),)


# --- working ----------------------------------------------------------------------------------------------------------


@contextmanager
def _mapping(workers: int, modules: list[str]) -> Iterator[Callable[..., Iterator[Done]]]:
    """`map` over processes, which need `modules`. A failure or Ctrl-C drops what has not begun."""
    if workers == 1:
        yield map
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(modules)  # imported once, not once per process
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield functools.partial(pool.map, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


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
            return StageReport(stage.title, kept=len(stage.items))
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
    made = make(tree, item)
    if item.target is None:
        return Done(item.name, "made", made.entry)
    target = out / item.target
    there = target.is_file()
    if verify and there and _is_same(target, made.content):
        return Done(item.name, "kept", made.entry)
    _put(target, made.content)
    return Done(item.name, "replaced" if there else "made", made.entry)


# --- files ------------------------------------------------------------------------------------------------------------


def is_whole(path: Path) -> bool:
    """Whether a file is there and not cut off, as far as its length and a PNG's last bytes can tell."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    if path.suffix != ".png":
        return True
    with path.open("rb") as file:
        file.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        return file.read() == _PNG_END


def _is_complete(table: Path, items: Sequence[Item], out: Path) -> bool:
    """Whether a table lists just these images, and the files of all are there."""
    if not table.is_file():
        return False
    try:
        listed = [image["id"] for image in json.loads(table.read_bytes())["images"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # not ours, or damaged: it is made anew
    whole = all(item.target is None or is_whole(out / item.target) for item in items)
    return whole and sorted(map(str, listed)) == sorted(item.name for item in items)


def _is_same(path: Path, content: bytes | Path) -> bool:
    """Whether a file holds this content; of pixels, whether they are equal, however they are packed."""
    if isinstance(content, Path):
        if path.samefile(content):
            return True
        content = content.read_bytes()
    old = path.read_bytes()
    if old == content or path.suffix not in _PIXELS:
        return old == content
    try:
        ours, theirs = (_values(each) for each in (content, old))
    except DataError:
        return False
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def _values(content: bytes) -> np.ndarray:
    with open_image(content, "The file") as image:
        return np.array(image)


def _put(path: Path, content: bytes | Path) -> None:
    """Write a file whole or not at all; another file is linked if that is possible, else copied.

    Raises:
        M2FError: no space, or no permission.
    """
    with atomic(path) as part:
        _link(content, part) if isinstance(content, Path) else part.write_bytes(content)


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Nobody else writes there meanwhile. Where nobody can write, a data set may still be found complete."""
    if folder.is_dir() and not os.access(folder, os.W_OK):
        return nullcontext()
    return locked(folder, "A preparation")


def _link(source: Path, target: Path) -> None:
    """A hard link has no target that may move away; other disks get a copy, as do systems without links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
