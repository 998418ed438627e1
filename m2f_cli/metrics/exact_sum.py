"""Sums that do not depend on the order of their terms: shares are whole numbers of 2^-40."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNIT = 2**40  # stands for a share of 1; int64 holds eight million of them


def to_units(share: float) -> int:
    """Return a share, -1 to 1, as a whole number of 2^-40; the error is less than 5e-13."""
    return round(share * UNIT)


class ExactSum:
    """Sparse table of sums of whole numbers.

    Args:
        shape: the number of rows in each dimension.
        columns: the number of sums in each row.
    """

    def __init__(self, shape: Sequence[int], columns: int):
        self.shape, self.columns = tuple(shape), columns
        self._rows: dict[tuple[int, ...], list[int]] = {}

    def add(self, position: tuple[int, ...], *values: int) -> None:
        row = self._rows.setdefault(position, [0] * self.columns)
        for i, value in enumerate(values):
            row[i] += value

    def merge(self, other: ExactSum) -> None:
        for position, values in other._rows.items():
            self.add(position, *values)

    def array(self) -> np.ndarray:
        """Return the table as an array (*shape, columns) of int64."""
        table = np.zeros((*self.shape, self.columns), np.int64)
        for position, values in self._rows.items():
            table[position] = values
        return table

    def state(self) -> list[list[int]]:
        """Return one list for each row that was added to: its position, then its sums."""
        return [[*position, *values] for position, values in sorted(self._rows.items())]

    def restore(self, state: Any) -> None:
        """Add the sums of a state.

        Raises:
            ValueError: the state is not that of such a table; nothing was added.
        """
        depth = len(self.shape)
        rows = list(state)
        for row in rows:
            whole = isinstance(row, list) and len(row) == depth + self.columns and all(type(i) is int for i in row)
            if not whole or not all(0 <= i < size for i, size in zip(row, self.shape, strict=False)):
                raise ValueError(f"{row!r} is no row of a table {self.shape} of {self.columns} sums")
        for row in rows:
            self.add(tuple(row[:depth]), *row[depth:])
