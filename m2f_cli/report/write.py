"""The page of one folder or two, whatever they are: an evaluation, a training, a prediction, or two evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .comparison import write_comparison_page
from .evaluation import write_evaluation_page
from .predictions import is_prediction, write_predictions_page
from .run import is_run, write_run_page


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page and return it.

    Args:
        folders: one folder of `m2f eval`, `m2f train` or `m2f predict`, or two of `m2f eval`, which are compared.
        out: the page; by default report.html in the folder, or comparison.html in the second one.

    Raises:
        DataError: a path is no folder, or one that holds neither or a damaged file.
        M2FError: the folders do not fit each other, or the page cannot be written.
    """
    for folder in folders:
        if not folder.is_dir():
            reason = "is no folder" if folder.exists() else "does not exist"
            raise DataError(f"{folder} {reason}.", hint="Pass a folder of `m2f eval`, `m2f train` or `m2f predict`.")
    if len(folders) == 2:
        return write_comparison_page(folders[0], folders[1], out)
    [folder] = folders
    if is_run(folder):
        return write_run_page(folder, out)
    return write_predictions_page(folder, out) if is_prediction(folder) else write_evaluation_page(folder, out)
