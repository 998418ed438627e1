"""How right results are: panoptic quality, mask average precision, mean intersection over union and the like."""

from __future__ import annotations

from typing import Any, Protocol

from ..results.types import Instances, PanopticMap, SemanticMap
from ..structures import Task
from ..structures.annotations import Annotation

Figures = dict[str, Any]
State = dict[str, Any]


class Metric(Protocol):
    """Collects images, then says how right they were. A constructor takes the categories first; it pickles.

    task: which kind of result `update` eats. The annotation may be of any kind that holds what the metric needs.
    """

    task: Task

    def update(self, result: PanopticMap | Instances | SemanticMap, annotation: Annotation) -> None:
        """Add one image.

        Raises:
            DataError: result and annotation do not fit each other; nothing was added.
        """

    def merge(self, other: Metric) -> None:
        """Add what `other` collected, after what is here. Parts that are merged in the order of their images give
        the figures of one metric that saw all of them, to the last bit."""

    def fresh(self) -> Metric:
        """An empty one with the same settings."""

    def state(self) -> State:
        """What was collected, as plain values that survive json to the last bit; of one image, a few kB."""

    def restore(self, state: State) -> None:
        """Add what a state holds, as if the metric that it came from was merged.

        Raises:
            DataError: the state is damaged, or came from a metric with other settings; nothing was added.
        """

    def compute(self) -> Figures:
        """Name → percent, 0 to 100; "per_class": class name → (name → percent or count); "tables", where there are
        any: name → plain lists and dictionaries.

        NaN says that there was nothing to measure, such as a class that does not occur. Calling it changes nothing.
        """
