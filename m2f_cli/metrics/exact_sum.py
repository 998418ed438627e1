"""Sums that come out the same in whatever order they are added up: shares are whole numbers of 2^-40."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNIT = 2**40  # a share of 1; int64 holds the sum of eight million of them


def to_units(share: float) -> int:
    """A share, -1 to 1, as a whole number of 2^-40: off by less than 5e-13."""
    return round(share * UNIT)


class ExactSum:
    """A table of sums of whole numbers, kept sparse.

    Args:
        shape: how many rows there are, in each dimension of their numbers.
        columns: sums in each row.
    """

    def __init__(self, shape: Sequence[int], columns: int):
        self.shape, self.columns = tuple(shape), columns
        self._rows: dict[tuple[int, ...], list[int]] = {}

    def add(self, place: tuple[int, ...], *values: int) -> None:
        row = self._rows.setdefault(place, [0] * self.columns)
        for i, value in enumerate(values):
            row[i] += value

    def merge(self, other: ExactSum) -> None:
        for place, values in other._rows.items():
            self.add(place, *values)

    def array(self) -> np.ndarray:
        """(*shape, columns) int64."""
        table = np.zeros((*self.shape, self.columns), np.int64)
        for place, values in self._rows.items():
            table[place] = values
        return table

    def state(self) -> list[list[int]]:
        """One list for each row that was added to: its place, then its sums."""
        return [[*place, *values] for place, values in sorted(self._rows.items())]

    def restore(self, state: Any) -> None:
        """Add what a state holds.

        Raises:
            ValueError: it is not the state of such a table; nothing was added.
        """
        depth = len(self.shape)
        rows = list(state)
        for row in rows:
            whole = isinstance(row, list) and len(row) == depth + self.columns and all(type(i) is int for i in row)
            if not whole or not all(0 <= i < size for i, size in zip(row, self.shape, strict=False)):
                raise ValueError(f"{row!r} is no row of a table {self.shape} of {self.columns} sums")
        for row in rows:
            self.add(tuple(row[:depth]), *row[depth:])
