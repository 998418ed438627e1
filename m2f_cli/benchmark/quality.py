"""Loss of quality by a number format: the same weights evaluated on annotated images in fp32 and in that format."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..evaluation.compare import compare
from ..evaluation.evaluate import without_nan
from ..evaluation.setup import DataOptions, execute, prepare
from .case import Case

EXACT = "fp32"


def check(case: Case, data: Path | None) -> None:
    """Check that there is something to compare, before minutes of timing.

    Raises:
        ConfigError: the weights are random, or the format is fp32 itself.
        M2FError: the evaluation cannot be prepared.
    """
    if case.model is None:
        raise ConfigError("--quality needs trained weights, and these are random.", hint="Pass --model REF.")
    if case.precision == EXACT:
        raise ConfigError(f"--quality compares a number format with {EXACT}.", hint="Pass --precision bf16, say.")
    prepare(Path("."), case.model_options, DataOptions(data))


def lost(case: Case, data: Path | None) -> dict[str, Any]:
    """Return the first figure of both evaluations and their difference, in percent.

    The dictionary is a `Difference` of `compare`, with "a" in fp32 and "b" in the case's precision, and "pictures" and
    "data".

    Args:
        data: folder of annotated images, as for `m2f eval --data`. The whole "val" split is used. None: the data set
            that the model was trained on.

    Raises:
        M2FError: see `check`.
    """
    check(case, data)
    with tempfile.TemporaryDirectory(prefix="m2f-quality-") as folder:
        runs = []
        for precision in (EXACT, case.precision):
            run = Path(folder) / precision
            execute(prepare(run, replace(case.model_options, precision=precision), DataOptions(data)))
            runs.append(run)
        comparison = compare(*runs)
    return without_nan({**asdict(comparison.figures[0]), "pictures": comparison.images, "data": str(data)})
