"""Mean intersection over union of semantic maps, from one confusion matrix over all images.

The conventions are in docs/methods/published-behaviour.md#9.
"""

from __future__ import annotations

import numpy as np

from ..results.types import SemanticMap
from ..structures.annotations import Annotation
from ..structures.categories import Categories
from ..structures.run_lengths import pair_counts
from . import Figures, State
from .comparable import check_found, check_labels, check_sizes, semantic_annotation
from .state_io import reading, whole


class MeanIoU:
    """Mean IoU and related figures.

    Pixels that are annotated as `ignore` count nowhere. A pixel that the result leaves without a class is a miss of its
    true class.

    Figures, in percent:
        miou: mean over the classes that occur in the annotation (detectron2 today, OpenMMLab up to classes that nobody
            has).
        miou_union: the same sum over the number of classes in the annotation or in the results. So did detectron2 when
            the papers were written; it matters where classes are rare (ADE20K-Full, Mapillary).
        fwiou: IoU weighted by the class's share of the true pixels.
        macc: mean of the accuracies of the classes.
        pacc: accuracy of the pixels.
        tables.confusion: "classes", names; "pixels", [true class, found class (the number of classes: none), pixels] of
            each pair that occurs.
    """

    task = "semantic"

    def __init__(self, categories: Categories):
        self.categories = categories
        count = len(categories)
        self.confusion = np.zeros((count, count + 1), dtype=np.int64)  # true class, found class; last: none

    def update(self, result: SemanticMap, annotation: Annotation) -> None:
        check_sizes(result, annotation)
        annotation, count = semantic_annotation(annotation, self.categories), len(self.categories)
        true, found, pixels = pair_counts(annotation.labels_HW, result.labels_HW)
        check_found(found, count)
        counted = true != annotation.ignore
        true, found, pixels = true[counted], np.minimum(found[counted], count), pixels[counted]
        check_labels(true.tolist(), count)
        np.add.at(self.confusion, (true, found), pixels)

    def merge(self, other: MeanIoU) -> None:
        self.confusion += other.confusion

    def fresh(self) -> MeanIoU:
        return MeanIoU(self.categories)

    def state(self) -> State:
        """Return the pixels of each pair of classes that occurs.

        Returns:
            {"pixels": [[true class, found class (the number of classes: none), pixels], …]}.
        """
        true, found = np.nonzero(self.confusion)
        return {"pixels": np.stack([true, found, self.confusion[true, found]], axis=1).tolist()}

    def restore(self, state: State) -> None:
        part, count = self.fresh(), len(self.categories)
        with reading(self):
            for true, found, pixels in state["pixels"]:
                part.confusion[whole(true, count), whole(found, count + 1)] += whole(pixels, 2**62)
        self.merge(part)

    def compute(self) -> Figures:
        hits = np.diagonal(self.confusion).astype(np.float64)
        true = self.confusion.sum(1).astype(np.float64)
        found = self.confusion[:, :-1].sum(0).astype(np.float64)
        union = true + found - hits
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: nothing to measure
            iou, accuracy, share = hits / union, hits / true, true / true.sum()
            present = true > 0
            figures = {
                "miou": iou[present].sum() / present.sum(),
                "miou_union": iou[present].sum() / (union > 0).sum(),
                "fwiou": (iou[present] * share[present]).sum() if present.any() else np.nan,
                "macc": accuracy[present].sum() / present.sum(),
                "pacc": hits.sum() / true.sum(),
            }
        iou[~present] = np.nan
        names = [category.name for category in self.categories]
        rows = [{"iou": 100 * float(i), "acc": 100 * float(a)} for i, a in zip(iou, accuracy, strict=True)]
        percent = {name: 100 * float(value) for name, value in figures.items()}
        table = {"classes": names, **self.state()}
        return {**percent, "per_class": dict(zip(names, rows, strict=True)), "tables": {"confusion": table}}
