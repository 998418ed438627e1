"""Rehearsal of a training: checks that samples can be made, drawn and written. It leaves no files."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from ..config.schema import Config
from ..data.loader import training_loader
from ..data.records import DataSet
from ..errors import M2FError
from ..runtime.files import writing_to
from .visualise import draw_batch

SAMPLES = 32  # of a split: all of a small one


def rehearse(data: DataSet, settings: Config, samples: int = SAMPLES) -> list[str]:
    """Make the first samples of a training, and draw those that a run draws.

    Args:
        data: data set to train on.
        samples: number of samples, limited to the number of images.

    Returns:
        Reasons why training would stop, or an empty list.
    """
    problems: list[str] = []
    try:
        loader = training_loader(settings, data, batch=1, on_error="skip")
        for batch in itertools.islice(loader, min(samples, len(data))):
            problems += batch.skipped
        with tempfile.TemporaryDirectory(prefix="m2f-rehearsal-") as folder:
            draw_batch(data, settings, Path(folder))
    except M2FError as error:
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def refuse_unwritable(folder: Path) -> None:
    """Check that a run could be written to a folder, which need not exist. No files stay there.

    Raises:
        M2FError: it could not be written, for the reason that the operating system gives.
    """
    above = folder.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    with writing_to(folder), tempfile.TemporaryDirectory(prefix=".m2f-", dir=above):
        pass
