"""What a number format costs: the same weights evaluated on annotated images in fp32 and in that format."""

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
    """Whether there is something to compare, found out before minutes of timing.

    Raises:
        ConfigError: the weights are random, or the format is fp32 itself; M2FError: what `prepare` finds wrong.
    """
    if case.model is None:
        raise ConfigError("--quality needs trained weights, and these are random.", hint="Pass --model REF.")
    if case.precision == EXACT:
        raise ConfigError(f"--quality compares a number format with {EXACT}.", hint="Pass --precision bf16, say.")
    prepare(Path("."), case.model_options, DataOptions(data))


def lost(case: Case, data: Path | None) -> dict[str, Any]:
    """The first figures of both evaluations and their difference, in percent: a Difference of `compare` as a dict, with
    "a" of fp32 and "b" of the case's precision, "pictures" and "data".

    Args:
        data: a folder of annotated images, as `m2f eval --data` takes it; all of its "val" split. None: what the
            model was trained on.

    Raises:
        M2FError: as of `check`.
    """
    check(case, data)
    with tempfile.TemporaryDirectory(prefix="m2f-quality-") as folder:
        runs = []
        for precision in (EXACT, case.precision):
            run = Path(folder) / precision
            execute(prepare(run, replace(case.model_options, precision=precision), DataOptions(data)))
            runs.append(run)
        found = compare(*runs)
    return without_nan({**asdict(found.figures[0]), "pictures": found.images, "data": str(data)})
