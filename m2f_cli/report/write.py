"""The page of a folder, whatever it is: an evaluation or a training."""

from __future__ import annotations

from pathlib import Path

from .evaluation import write_evaluation_page
from .run import is_run, write_run_page


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a folder of `m2f eval` or `m2f train`, and return it.

    Args:
        folder: the folder.
        out: the page; by default report.html in the folder.

    Raises:
        DataError: the folder holds neither, or a damaged file.
        M2FError: the page cannot be written.
    """
    return write_run_page(folder, out) if is_run(folder) else write_evaluation_page(folder, out)
