"""Prediction of many images to files on disk, in a stream and with a journal of the run."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, M2FError
from ..results.draw_options import DrawOptions
from ..results.places import Places
from ..results.rows import row_of
from ..results.shards.base import Provenance, ShardFormat
from ..results.types import Instances, PanopticMap, Result, SemanticMap
from ..results.views import NAME, header_of, view_of_result
from ..results.writers import SCHEMA_VERSION, Writer, listed, stem_for, writers_for
from ..runtime.files import remove_parts, writing_to
from ..runtime.jsonl import JsonLines, whole_lines
from ..runtime.locks import locked
from ..structures import Task
from ..structures.categories import Categories
from .base import BaseSegmenter
from .journal import PAGE, SHARED, Journal, assemble, check_folder, erase
from .provenance import provenance_of
from .remote import RemoteFolder, check_remote, claim, upload
from .results_folder import ResultsFolder
from .shards import FAILURES, SIZE, Shards, formats_for
from .sources import ImageSource
from .stream import Job, Streamer, stream

VIEW = "view"  # of an image, on its way to the journal of the views


@dataclass(frozen=True)
class PredictFailure:
    """Failure of one image.

    Attributes:
        file: the image, or its shown URI.
        message: the error.
    """

    file: Path | str
    message: str


@dataclass(frozen=True)
class PredictProgress:
    """Record that `on_progress` receives after each image, in the order of the sources, in the caller's thread.

    Attributes:
        file: the image, or its shown URI.
        state: "skipped" where an earlier run finished it.
        message: the error of a failed image.
    """

    file: Path | str
    state: Literal["done", "skipped", "failed"]
    message: str | None = None


@dataclass
class Summary:
    """Summary of a run.

    Attributes:
        done: number of images that were segmented.
        skipped: number of images that an earlier run finished.
        failed: images that could not be segmented.
        seconds: duration of the run.
    """

    done: int = 0
    skipped: int = 0
    failed: list[PredictFailure] = field(default_factory=list)
    seconds: float = 0.0


def predict(
    segmenter: BaseSegmenter,
    sources: Iterable[ImageSource],
    task: Task | None,
    out: Path,
    formats: Sequence[str],
    *,
    batch: int = 1,
    workers: int = 2,
    skip_existing: bool = False,
    overwrite: bool = False,
    thresholds: dict[str, float | int | None] | None = None,
    model: str | None = None,
    draw: DrawOptions | None = None,
    thumbnails: int = 0,
    shard_size: int = SIZE,
    on_progress: Callable[[PredictProgress], None] | None = None,
    trust_code: bool = False,
    streamer: Streamer = stream,
    remote: RemoteFolder | None = None,
) -> Summary:
    """Segment images and write the results below `out`, with predictions.json about all of them.

    Args:
        segmenter: the model.
        sources: the images, from `sources.expand`.
        task: panoptic, instance or semantic; None is the model's own.
        out: the folder of results.
        formats: names of writers and of formats of shards; see `results.writers` and `results.shards` for their files.
        batch: images per forward pass.
        workers: threads that read, and as many that write, beside a network on a GPU. None run beside one on the CPU.
        skip_existing: resume an earlier run into `out`; finished images keep their files and records.
        overwrite: first remove the files that an earlier run wrote to `out`.
        thresholds: object_threshold, overlap_threshold, score_threshold, top_k; None leaves the model's own.
        model: name of the model in predictions.json; by default its source.
        draw: what overlays draw, and how.
        thumbnails: longest edge in pixels of the images in views.jsonl (`results.views`), for a page; 0 writes none.
        shard_size: images in each shard.
        on_progress: called after each image.
        trust_code: allow `formats` to be "module:function".
        streamer: what sends the images through the model; by default this process alone.
        remote: folder of a store for the results; `out` is its folder on this machine then.

    An image that cannot be read or segmented is reported in the summary, and the run continues. After Ctrl-C,
    predictions.json has all finished images.

    Raises:
        ConfigError: the task or a format does not fit, or the output folder is in use, also by another process.
        M2FError: a file cannot be written. Finished images stay, and `skip_existing` resumes the run.
    """
    task = segmenter.check_task(task or segmenter.default_task)
    sharded = formats_for(formats, task)
    writers = writers_for([name for name in formats if name not in sharded], task, draw=draw, trust_code=trust_code)
    if batch < 1 or workers < 1 or shard_size < 1:
        raise ConfigError(f"batch, workers and shard_size are at least 1, not {batch}, {workers} and {shard_size}.")
    pages = (*((NAME, PAGE) if thumbnails else ()), *((FAILURES,) if sharded else ()))
    check = partial(check_folder, out, formats, pages, skip_existing=skip_existing, overwrite=overwrite)
    if remote is None:
        check()
    else:
        check_remote(formats, thumbnails)
    is_known = isinstance(sources, Sequence)  # otherwise they arrive one by one, as from a list on stdin
    sources = Places(out, formats).claimed(sources, "local")
    sources = list(sources) if is_known else sources
    chosen = {key: value for key, value in (thresholds or {}).items() if value is not None}
    place = remote or ResultsFolder(out)
    job = PredictJob(out, task, writers, chosen, thumbnails, rows=bool(sharded), uri=place.uri)
    head, origin = _head(segmenter, model or segmenter.source, job, sharded, shard_size)

    with locked(out, "A prediction", shown=place.shown):
        images = sources if is_known else ()
        if remote is not None:
            claim(remote, formats, [each.path for each in images])
        else:
            check()  # again, because another process may have written to the folder
            remove_parts(out)
            if overwrite:
                erase(out, [each.local for each in images if each.local])
        with Journal(out, head, place) as journal, ExitStack() as stack:
            views = stack.enter_context(_views(out, task, segmenter.categories, journal)) if thumbnails else None
            items = ((each, journal.is_finished(each.name, str(each.path))) for each in sources)
            threads = job.threads(segmenter, workers)
            shards = stack.enter_context(Shards(journal, sharded, shard_size, origin, background=threads > 0))
            recorder = _RunRecorder(shards, views)
            outcomes = streamer(segmenter, items, job, batch=batch, workers=workers)
            started = time.perf_counter()
            place.flush()  # says before the first image whether the place can be written
            try:
                with closing(outcomes):
                    for (source, _), outcome, seconds in outcomes:
                        step = recorder.add(source, outcome, seconds)
                        if on_progress is not None:
                            on_progress(step)
            except KeyboardInterrupt:
                recorder.conclude(writers, segmenter.categories)
                raise
            if streamer is not stream:
                remove_parts(out)  # a process that was lost may have left some
            recorder.conclude(writers, segmenter.categories)
        place.clear()
        return replace(recorder.summary, seconds=time.perf_counter() - started)


def _head(
    segmenter: BaseSegmenter, model: str, job: PredictJob, sharded: Mapping[str, ShardFormat], shard_size: int
) -> tuple[dict[str, Any], Provenance | None]:
    """Return the head of the journal; with formats of shards also the origin of the results."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "task": job.task,
        "formats": [*job.writers, *sharded],
        "thresholds": job.thresholds,
    }
    if not sharded:
        return head, None
    origin = provenance_of(segmenter, model, job.task, job.thresholds)
    head |= {"shard_size": shard_size, "weights": origin.weights, "configuration": origin.configuration}
    return head, origin


Source: TypeAlias = tuple[ImageSource, bool]  # and whether an earlier run has finished it


@dataclass(frozen=True)
class PredictJob(Job[Source, dict[str, Any]]):
    """Reading and writing of the images of a run; the outcome of an image is its entry for the journal.

    Attributes:
        out: the folder of results.
        task: the task.
        writers: the writers of the formats by their names.
        thresholds: those that differ from the model's own.
        thumbnails: longest edge of the views in pixels; 0 makes none.
        rows: True to keep the row of each image, for shards.
        uri: URI of a folder of a store to which files are uploaded; None leaves them in `out`.
    """

    out: Path
    task: Task
    writers: Mapping[str, Writer]
    thresholds: dict[str, Any]
    thumbnails: int = 0
    rows: bool = False
    uri: str | None = None

    def is_done(self, item: Source) -> bool:
        return item[1]

    def read(self, item: Source) -> tuple[np.ndarray, np.ndarray]:
        image = item[0].image()
        return image, image

    def finish(self, segmenter: BaseSegmenter, kept: np.ndarray, raw: Any) -> Result:
        result = segmenter.finish(raw, self.task, **self.thresholds)
        result.image = kept
        return result

    def use(self, item: Source, results: Result) -> dict[str, Any]:
        source = item[0]
        written = [(name, write, results) for name, write in self.writers.items()]
        entry = write_image(source.name, source.path, self.out, results, written)
        if self.uri is not None:
            upload(self.out, self.uri, entry["record"]["files"])
        if self.rows:
            entry["row"] = row_of(results, source.name, str(source.path))
        if self.thumbnails:
            entry[VIEW] = view_of_result(source.name, results, self.thumbnails)
        return entry

    def threads(self, segmenter: BaseSegmenter, workers: int) -> int:
        """Return no threads beside a network on the CPU: it uses all cores, and waits for the slowest one."""
        return 0 if segmenter.device.type == "cpu" else workers


def write_image(
    name: str, image: Path | str | None, out: Path, main: Result, results: Iterable[tuple[str, Writer, Result]]
) -> dict[str, Any]:
    """Write the result files of one image and return its entry for the journal.

    Args:
        name: name of the results, without a suffix.
        image: file of the image, or its shown URI; None for an image that was not read from a file.
        out: the folder of results.
        main: the result that the entry describes.
        results: (format, writer, result) of each format.
    """
    files, shared = [], {}
    file_name = (Path(name).parent / (Path(image).name if image else f"{name}.png")).as_posix()
    for format_name, write, result in results:
        if format_name in SHARED:
            write = SHARED[format_name].write
            shared[format_name] = SHARED[format_name].entry(result, name, file_name)
        files += write(result, stem_for(out, format_name, name))
    height, width = main.size
    record = {"name": name, "file": str(image or name), "width": width, "height": height, **contents(main)}
    return {"record": {**record, "files": listed(files, out)}, "shared": shared}


def _views(out: Path, task: Task, categories: Categories, journal: Journal) -> JsonLines:
    """Open the journal of the views, or start one. A view whose image a killed process did not finish is taken away."""
    path = out / NAME
    last = deque(whole_lines(path), maxlen=1) if path.is_file() else ()
    for offset, line in last:
        if offset and not journal.has(line):
            with writing_to(path):
                os.truncate(path, offset)
    views = JsonLines(path, compact=True)
    if not views.size:
        views.append({"header": header_of((task,), categories)})
    return views


@dataclass
class _RunRecorder:
    """Recorder of the images of a run: in the journal, its shards, the views and the summary.

    Attributes:
        shards: the shards and the journal that they are written from.
        views: the journal of the views; None for a run without.
        names: names of the images so far, in their order.
        summary: summary of the images so far.
    """

    shards: Shards
    views: JsonLines | None
    names: list[str] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)

    def add(self, source: ImageSource, outcome: Any, seconds: Mapping[str, float]) -> PredictProgress:
        """Record the outcome of the next image in a stream."""
        self.names.append(source.name)
        if outcome is None:
            self.summary.skipped += 1
            return PredictProgress(source.path, "skipped")
        if isinstance(outcome, M2FError):
            self.shards.append({"record": {"name": source.name, "file": str(source.path), "error": str(outcome)}})
            self.summary.failed.append(PredictFailure(source.path, str(outcome)))
            return PredictProgress(source.path, "failed", str(outcome))
        if self.views is not None:  # before the journal: an image in the journal is never done again
            self.views.append({**outcome.pop(VIEW), "number": len(self.names) - 1})
        outcome["record"]["times_ms"] = {stage: round(1000 * each, 3) for stage, each in seconds.items()}
        self.shards.append(outcome)
        self.summary.done += 1
        return PredictProgress(source.path, "done")

    def conclude(self, formats: Iterable[str], categories: Categories) -> None:
        """Write the files that several images share."""
        assemble(self.shards.journal, self.names, formats, categories)
        self.shards.conclude()
        self.shards.place.conclude()


def contents(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Return a result without its pixels: {"segments" | "instances" | "classes": [{"label", "area", …}]}."""
    named = [{"label": category.name, "category_id": category.id} for category in result.categories]
    if isinstance(result, PanopticMap):
        return {
            "segments": [
                {
                    "id": each.id,
                    **named[each.label],
                    "isthing": result.categories[each.label].isthing,
                    "score": round(float(each.score), 4),
                    "area": int(each.area),
                }
                for each in result.segments
            ]
        }
    if isinstance(result, Instances):
        return {
            "instances": [
                {**named[int(label)], "score": round(float(score), 4), "area": int(coco_mask.area(rle))}
                for label, score, rle in zip(result.labels_N, result.scores_N, result.rles, strict=True)
            ]
        }
    if isinstance(result, SemanticMap):
        areas = np.bincount(result.labels_HW.ravel(), minlength=len(named))
        return {"classes": [{**named[i], "area": int(areas[i])} for i in range(len(named)) if areas[i]]}
    raise TypeError(f"{type(result).__name__} is no result of this package")
