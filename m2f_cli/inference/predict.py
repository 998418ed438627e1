"""Prediction of many images to files on disk, in a stream and with a journal of the run."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import ConfigError, M2FError
from ..results.draw_options import DrawOptions
from ..results.places import Places
from ..results.rows import row_of
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
    plain = [name for name in formats if name not in sharded]
    writers = writers_for(plain, task, draw=draw, trust_code=trust_code)
    if batch < 1 or workers < 1 or shard_size < 1:
        raise ConfigError(f"batch, workers and shard_size are at least 1, not {batch}, {workers} and {shard_size}.")
    chosen: dict[str, Any] = {key: value for key, value in (thresholds or {}).items() if value is not None}
    pages = (*((NAME, PAGE) if thumbnails else ()), *((FAILURES,) if sharded else ()))
    if remote is None:
        check_folder(out, formats, pages, skip_existing=skip_existing, overwrite=overwrite)
    else:
        check_remote(formats, thumbnails)
    place = remote or ResultsFolder(out)
    places = Places(out, formats)
    is_known = isinstance(sources, Sequence)  # otherwise they arrive one by one, as from a list on stdin
    sources = places.claimed(sources, "local")
    sources = list(sources) if is_known else sources
    head: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": model or segmenter.source,
        "task": task,
        "formats": [*writers, *sharded],
        "thresholds": chosen,
    }
    origin = provenance_of(segmenter, head["model"], task, chosen) if sharded else None
    if origin is not None:
        head |= {"shard_size": shard_size, "weights": origin.weights, "configuration": origin.configuration}

    job = PredictJob(out, task, writers, chosen, thumbnails, rows=bool(sharded), uri=place.uri)
    with locked(out, "A prediction", shown=place.shown):
        if remote is not None:
            claim(remote, formats, [source.path for source in sources] if is_known else ())
        else:
            # Again, because another process may have written to the folder.
            check_folder(out, formats, pages, skip_existing=skip_existing, overwrite=overwrite)
            remove_parts(out)
            if overwrite:
                erase(out, spared=[source.local for source in sources if source.local] if is_known else ())
        with Journal(out, head, place) as journal, ExitStack() as stack:
            views = stack.enter_context(_views(out, task, segmenter.categories, journal)) if thumbnails else None
            items = ((each, journal.is_finished(each.name, str(each.path))) for each in sources)
            threads = job.threads(segmenter, workers)
            shards = stack.enter_context(Shards(journal, sharded, shard_size, origin, background=threads > 0))
            images = streamer(segmenter, items, job, batch=batch, workers=workers)
            names: list[str] = []
            started = time.perf_counter()
            place.flush()  # says before the first image whether the place can be written

            def conclude() -> None:
                assemble(journal, names, writers, segmenter.categories)
                shards.conclude()
                place.conclude()

            try:
                with closing(images):
                    summary = _keep(images, shards, views, names, on_progress or (lambda progress: None))
            except KeyboardInterrupt:
                conclude()
                raise
            if streamer is not stream:
                remove_parts(out)  # a process that was lost may have left some
            conclude()
        place.clear()
        return replace(summary, seconds=time.perf_counter() - started)


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
    thresholds: Mapping[str, Any]
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


def _keep(
    images: Iterable[tuple[Source, Any, dict[str, float]]],
    journal: Shards,
    views: JsonLines | None,
    names: list[str],
    on_progress: Callable[[PredictProgress], None],
) -> Summary:
    """Append the results of a stream to the journal, in order, and the name of each image to `names`."""
    summary = Summary()
    for (source, _), outcome, seconds in images:
        names.append(source.name)
        if outcome is None:
            summary.skipped += 1
            step = PredictProgress(source.path, "skipped")
        elif isinstance(outcome, M2FError):
            journal.append({"record": {"name": source.name, "file": str(source.path), "error": str(outcome)}})
            summary.failed.append(PredictFailure(source.path, str(outcome)))
            step = PredictProgress(source.path, "failed", str(outcome))
        else:
            if views is not None:  # before the journal: an image in the journal is never done again
                views.append({**outcome.pop(VIEW), "number": len(names) - 1})
            outcome["record"]["times_ms"] = {stage: round(1000 * each, 3) for stage, each in seconds.items()}
            journal.append(outcome)
            summary.done += 1
            step = PredictProgress(source.path, "done")
        on_progress(step)
    return summary


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
