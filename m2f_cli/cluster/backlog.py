"""Items of a stream whose outcomes come in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from ..inference.stream import Item


@dataclass
class Backlog(Generic[Item]):
    """Items that were taken, until they and all before them have an outcome.

    Attributes:
        items: the items by their numbers, from 0 on.
        outcomes: outcome and seconds of each stage, by the numbers of the items.
        due: number of the item that comes next.
    """

    items: dict[int, Item] = field(default_factory=dict)
    outcomes: dict[int, tuple[Any, dict[str, float]]] = field(default_factory=dict)
    due: int = 0

    def ready(self) -> Iterator[tuple[Item, Any, dict[str, float]]]:
        """Yield what `stream` yields for the items that are due, and forget them."""
        while self.due in self.outcomes:
            yield self.items.pop(self.due), *self.outcomes.pop(self.due)
            self.due += 1
