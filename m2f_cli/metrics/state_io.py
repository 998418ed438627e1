"""Checks for the states of metrics that are read back from JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import DataError


@contextlib.contextmanager
def reading(metric: object) -> Iterator[None]:
    """Turn any error that a damaged state raises into one DataError that names the metric."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"The stored state of {type(metric).__name__} is damaged, or of other settings: {error!r}.",
            hint="Start the evaluation anew.",
        ) from error


def whole(value: Any, below: int | None = None) -> int:
    """Return a whole number from 0 on.

    Raises:
        ValueError: the value is no whole number, or not less than `below`.
    """
    if type(value) is not int or value < 0 or (below is not None and value >= below):
        raise ValueError(f"{value!r} should be a whole number from 0 to {'…' if below is None else below - 1}")
    return value


def share(value: Any) -> float:
    """Return a finite number from 0 to 1.

    Raises:
        ValueError: the value is no such number.
    """
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} should be a number from 0 to 1")
    return float(value)
