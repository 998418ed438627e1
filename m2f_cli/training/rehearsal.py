"""A training that begins and leaves nothing behind: whether its samples can be made, drawn and written."""

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
        data: what is trained on.
        samples: how many; no more than there are images.

    Returns:
        Why training would stop; nothing where it would not.
    """
    found: list[str] = []
    try:
        loader = training_loader(settings, data, batch=1, on_error="skip")
        for batch in itertools.islice(loader, min(samples, len(data))):
            found += batch.skipped
        with tempfile.TemporaryDirectory(prefix="m2f-rehearsal-") as folder:
            draw_batch(data, settings, Path(folder))
    except M2FError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


def refuse_unwritable(folder: Path) -> None:
    """Check that a run could be written to a folder, which may not be there yet; nothing stays there.

    Raises:
        M2FError: it could not; the reason is the operating system's.
    """
    above = folder.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    with writing_to(folder), tempfile.TemporaryDirectory(prefix=".m2f-", dir=above):
        pass
