"""Mapping of the pixel values of masks to class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import ConfigError, DataError, unknown_name
from ...structures.annotations import SemanticAnnotation, ignore_value
from ...structures.categories import Categories
from ...structures.run_lengths import values_in

_SHOWN = 5
_LARGEST = (1 << 24) - 1  # the largest value of a pixel


@dataclass(frozen=True, eq=False)
class ValueMap:
    """Meaning of the pixel values of masks.

    Attributes:
        lookup: (largest known value + 1,) int32: the class number of a value, `ignore`, or -1 for a value without
            meaning.
        ignore: the ignored label of the result: 255, or 65535 if there are more than 255 classes.
    """

    lookup: np.ndarray = field(repr=False)
    ignore: int

    def labels(self, values_HW: np.ndarray, where: Path) -> SemanticAnnotation:
        """Return the labels (H, W), uint8 or uint16, of the values of a mask.

        Raises:
            DataError: a value has no meaning.
        """
        strange = [v for v in values_in(values_HW).tolist() if not 0 <= v < len(self.lookup) or self.lookup[v] < 0]
        if strange:
            raise DataError(
                f"{where} holds the value {strange[0]}; known are {self._known()}.",
                hint="Say with label_map what each value means (a class, or null: ignore), or with ignore_index which "
                "one counts nowhere.",
            )
        labels_HW = self.lookup.astype(np.min_scalar_type(self.ignore))[values_HW]
        return SemanticAnnotation(labels_HW, self.ignore, source=where)

    def _known(self) -> str:
        classes = np.flatnonzero((self.lookup >= 0) & (self.lookup != self.ignore))
        ignored = np.flatnonzero(self.lookup == self.ignore)[:_SHOWN]
        known = f"{classes[0]} to {classes[-1]}" if len(classes) else "no classes"
        return known + "".join(f", {value} (ignored)" for value in ignored)


def value_map(meanings: Mapping[int, int], categories: Categories, ignored: Iterable[int] = ()) -> ValueMap:
    """Return the map of values with class numbers and of ignored values. A value that is in both is ignored.

    Numbers that no pixel can have are left out, because ids may be of any size.
    """
    ignore = ignore_value(len(categories))
    everything = {**meanings, **dict.fromkeys(ignored, ignore)}
    everything = {value: meaning for value, meaning in everything.items() if 0 <= value <= _LARGEST}
    lookup = np.full(max(everything, default=0) + 1, -1, dtype=np.int32)
    lookup[list(everything)] = list(everything.values())
    return ValueMap(lookup, ignore)


def named_values(
    label_map: Mapping[int, str | int | None], categories: Categories, ignored: Iterable[int] = ()
) -> ValueMap:
    """Return the map of the meanings that the user gave.

    A meaning is a class name or number, or None for a value that does not count. Other values have no meaning. If only
    1 and 2 are named, keeping 0 as 0 would be a silent mistake.

    Raises:
        ConfigError: a class is unknown, or a key is not a pixel value.
    """
    for value in label_map:
        if not isinstance(value, int) or not 0 <= value <= 65535:
            raise ConfigError(f"label_map: {value!r} should be a pixel value, a whole number from 0 to 65535.")
    named = {value: _class_number(m, categories) for value, m in label_map.items() if m is not None}
    return value_map(named, categories, {*ignored, *label_map} - named.keys())


def _class_number(meaning: str | int, categories: Categories) -> int:
    names = [category.name for category in categories]
    if meaning in names:
        return names.index(meaning)
    if not isinstance(meaning, int):
        raise unknown_name("class", str(meaning), names)
    if not 0 <= meaning < len(names):
        raise ConfigError(f"label_map: there is no class number {meaning}; there are 0 to {len(names) - 1}.")
    return meaning
