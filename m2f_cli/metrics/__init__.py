"""Metrics of segmentation results: panoptic quality, average precision, mean intersection over union and others."""

from __future__ import annotations

from typing import Any, Protocol

from ..results.types import Instances, PanopticMap, SemanticMap
from ..structures import Task
from ..structures.annotations import Annotation

Figures = dict[str, Any]
State = dict[str, Any]


class Metric(Protocol):
    """Protocol of a metric, which collects images and then computes figures.

    The constructor takes the categories as its first argument. A metric can be pickled.

    Attributes:
        task: the kind of result that `update` takes. The annotation may be of any kind that holds what the metric
            needs.
    """

    task: Task

    def update(self, result: PanopticMap | Instances | SemanticMap, annotation: Annotation) -> None:
        """Add one image.

        Raises:
            DataError: the result and the annotation do not fit each other; nothing was added.
        """

    def merge(self, other: Metric) -> None:
        """Add the images that `other` collected, after those that are already here.

        Metrics that are merged in the order of their images give exactly the figures of one metric that saw all
        images.
        """

    def fresh(self) -> Metric:
        """Return an empty metric with the same settings."""

    def state(self) -> State:
        """Return the collected images as plain values that survive JSON to the last bit.

        The state of one image has several kB.
        """

    def restore(self, state: State) -> None:
        """Add the images of a state, as `merge` adds those of a metric.

        Raises:
            DataError: the state is damaged, or came from a metric with other settings; nothing was added.
        """

    def compute(self) -> Figures:
        """Compute the figures of all images that were added; the metric itself does not change.

        Returns:
            Name → percent, 0 to 100. Two further keys are optional. "per_class": class name → (name → percent or
            count). "tables": name → plain lists and dictionaries. NaN stands for a figure with nothing to measure, such
            as that of a class that does not occur.
        """
