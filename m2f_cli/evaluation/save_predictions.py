"""Predictions written while they are scored, as `m2f predict` writes them, for the images of an evaluation.

Each process has a journal of its own; the first one puts them together and writes the files that all images share.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..inference.base import BaseSegmenter
from ..inference.journal import Journal, assemble
from ..inference.predict import write_image
from ..metrics import Metric
from ..results.draw_options import DrawOptions
from ..results.types import Result
from ..results.writers import SCHEMA_VERSION, Writer, writers_for
from ..structures import Task

SHARD = ".process-{}"


@dataclass(frozen=True)
class PredictionWriter:
    """Writer of the files of images, without those that all images share; any thread or process may use it.

    Attributes:
        folder: the folder of predictions.
        writers: the writers of each task by the names of their formats.
    """

    folder: Path
    writers: Mapping[Task, Mapping[str, Writer]]

    def write(self, record: Any, results: Mapping[Task, Result]) -> dict[str, Any]:
        """Write the files of one image and return its entry for `Saver.append`."""
        pairs = [(name, writer, results[task]) for task in self.writers for name, writer in self.writers[task].items()]
        return write_image(record.name, getattr(record, "image", None), self.folder, pairs[0][2], pairs)


class Saver:
    """Writer of results below a folder; a context manager, since it keeps a journal open.

    Args:
        folder: the folder of predictions.
        formats: names of writers.
        segmenter: the model.
        metrics: the metrics that are measured: only results of their tasks can be saved.
        header: the header of the evaluation's journal.
        rank: the number of this process.
        draw: what overlays draw, and how.
        trust_code: True if `formats` may be "module:function", as those that a user typed may.

    Raises:
        ConfigError: a format is unknown, or for a task that is not measured.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        segmenter: BaseSegmenter,
        metrics: Mapping[str, Metric],
        header: Mapping[str, Any],
        rank: int = 0,
        *,
        draw: DrawOptions | None = None,
        trust_code: bool = False,
    ):
        self.folder, self.formats, self.categories = folder, list(formats), segmenter.categories
        self.writer = PredictionWriter(folder, writers_by_task(formats, metrics, draw=draw, trust_code=trust_code))
        self.head = {
            "schema_version": SCHEMA_VERSION,
            "model": segmenter.source,
            "formats": self.formats,
            "weights": header.get("weights"),
            "split": header.get("split"),
        }
        self.own = folder / SHARD.format(rank) if rank else folder
        self.stack = ExitStack()

    def __enter__(self) -> Saver:
        self.journal = self.stack.enter_context(Journal(self.own, self.head))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def append(self, entry: dict[str, Any]) -> None:
        self.journal.append(entry)

    def is_saved(self, record: Any) -> bool:
        """Return True if an image is in this journal and all its files are there."""
        return self.journal.is_finished(record.name, _file_of(record))

    def gather(self) -> None:
        """Put the journals of all processes together."""
        for shard in sorted(self.folder.glob(SHARD.format("*"))):
            with Journal(shard, self.head) as other:
                for entry in other.entries(list(other.numbers)):
                    self.journal.append(entry)
            shutil.rmtree(shard)

    def conclude(self, names: Sequence[str]) -> None:
        """Put the journals of all processes together, and write the shared files, in the order of `names`."""
        self.gather()
        assemble(self.journal, names, self.formats, self.categories)


def _file_of(record: Any) -> str:
    return str(getattr(record, "image", None) or record.name)


def writers_by_task(
    formats: Sequence[str],
    metrics: Mapping[str, Metric],
    *,
    draw: DrawOptions | None = None,
    trust_code: bool = False,
) -> dict[Task, dict[str, Writer]]:
    """Return the writers of each task; each format goes to the first of the measured tasks that it fits.

    Raises:
        ConfigError: a format is unknown, or fits none of the tasks.
    """
    tasks = list(dict.fromkeys(metric.task for metric in metrics.values()))
    writers: dict[Task, dict[str, Writer]] = {}
    for name in dict.fromkeys(formats):
        for task in tasks:
            try:
                writers.setdefault(task, {}).update(writers_for([name], task, draw=draw, trust_code=trust_code))
            except ConfigError:
                if task == tasks[-1]:
                    raise
            else:
                break
    return {task: by_name for task, by_name in writers.items() if by_name}
