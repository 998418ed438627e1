"""Test-time augmentation: an image at several sizes, plain and mirrored, and one answer for all of them.

Semantic: class scores at the image's own size are averaged, as published (docs/methods/published-behaviour.md#2-2,
"ms+flip"). Panoptic and instance: nobody published a rule; `merge.py` has ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..config.schema import ResizeConfig, TtaConfig
from ..errors import ConfigError
from ..results.types import Instances, PanopticMap, SemanticMap
from ..structures import Task
from .base import BaseSegmenter, Prepared, RawOutput, Wrapper, refuse_wrapped
from .mask_rendering import Band, Size
from .merge_views import merge_views
from .postprocess import best_classes
from .preprocess import RESAMPLERS, resized_shape

OURS = TtaConfig(scales=(0.75, 1.0, 1.25))  # type: ignore[call-arg]  # where nothing was published


@dataclass
class View:
    """One version of an image before (`Prepared`) or after (`RawOutput`) the network, mirrored left to right or not."""

    data: Any
    flipped: bool


def with_tta(segmenter: BaseSegmenter, *, sizes: Sequence[int] | None = None, flip: bool | None = None) -> Augmented:
    """`segmenter`, with every image seen in several sizes and mirrored.

    Args:
        sizes: short edges in pixels of the network's input; by default those of `test.tta`, which are the published
            ones, or 0.75, 1 and 1.25 times the test size where nothing was published.
        flip: whether each size is also seen mirrored; by default as `test.tta` says, or True.

    Memory: the mask features of all views are kept until an image is finished; 12 views of a Cityscapes image
    are 2.3 GB, of an ADE20K image 0.4 GB.

    Raises:
        ConfigError: sizes that are not above 0.
    """
    refuse_wrapped(segmenter, "with_tta")
    plan = segmenter.config.test.tta or OURS
    if sizes is not None:
        if not sizes or any(size < 1 for size in sizes):
            raise ConfigError(f"sizes are short edges of at least 1 pixel, not {list(sizes)}.")
        limit = plan.max_edge or _limit(segmenter.config.test.resize, max(sizes))
        plan = TtaConfig(  # type: ignore[call-arg]
            short_edges=tuple(sizes), max_edge=limit, of=plan.of, softmax=plan.softmax
        )
    if flip is not None:
        plan = plan.model_copy(update={"flip": flip})
    return Augmented(segmenter, plan)


def _limit(resize: ResizeConfig, size: int) -> int | None:
    """The limit on long edges that stands to `size` as the test resize's own limit to its size."""
    if resize.max_edge is None or resize.short_edge is None:
        return None
    return -(-resize.max_edge * size // resize.short_edge)


class Augmented(Wrapper):
    """See `with_tta`."""

    def __init__(self, inner: BaseSegmenter, plan: TtaConfig):
        super().__init__(inner)
        self.plan = plan
        count = len(plan.short_edges or plan.scales) * (1 + plan.flip)
        self.notes = [*inner.notes, f"Test-time augmentation: {count} views of each image."]

    def prepare(self, image_HWC: np.ndarray) -> list[View]:
        """All views of an image (H, W, 3, uint8 RGB): sizes in their order, each plain, then mirrored."""
        prepared = self.inner.prepare(image_HWC)
        base_HWC = image_HWC if self.plan.of == "picture" else prepared.pixels_CHW.permute(1, 2, 0).numpy()
        resample = RESAMPLERS[self.config.test.resize.resampling]
        views = []
        for height, width in self._sizes(base_HWC.shape[:2]):
            same = (height, width) == base_HWC.shape[:2]
            pixels_HWC = np.array(base_HWC if same else resample(np.ascontiguousarray(base_HWC), (width, height)))
            pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
            views.append(View(Prepared(pixels_CHW, prepared.size), False))
            if self.plan.flip:
                views.append(View(Prepared(pixels_CHW.flip(2), prepared.size), True))
        return views

    def _sizes(self, size: Size) -> list[Size]:
        plan, (height, width) = self.plan, size
        if plan.scales:
            return [(max(1, int(height * x + 0.5)), max(1, int(width * x + 0.5))) for x in plan.scales]
        limits = [
            ResizeConfig(short_edge=edge, max_edge=plan.max_edge)  # type: ignore[call-arg]
            for edge in plan.short_edges
        ]
        return [resized_shape(height, width, limit) for limit in limits]

    def infer(self, batch: Sequence[list[View]]) -> list[list[View]]:
        """Run the network, one view at a time: in a batch they would be padded to the largest."""
        return [[View(self.inner.infer([view.data])[0], view.flipped) for view in views] for views in batch]

    @torch.inference_mode()
    def finish(
        self, raw: list[View], task: Task | None = None, **thresholds: Any
    ) -> PanopticMap | Instances | SemanticMap:
        """As `Segmenter.finish`, over all views."""
        task = self.check_task(task or self.default_task)
        first: RawOutput = raw[0].data
        if len(raw) == 1 and not raw[0].flipped:
            return self.inner.finish(first, task, **thresholds)
        if task == "semantic":
            maps = sum(first.class_logits_QK.shape)
            scores, device = self.semantic_scores(raw), first.masks.device
            return best_classes(scores, first.masks.size, self.categories, maps=maps, device=device)
        merged = merge_views([(view.data, view.flipped) for view in raw])
        return self.inner.finish(merged, task, **thresholds)

    def semantic_scores(self, raw: list[View]) -> Band:
        """Class scores (classes, rows, W) at the image's own size, mirrored back, summed in order, averaged."""
        bands = [(self.inner.semantic_scores(view.data), view.flipped) for view in raw]

        def scores(start: int, stop: int) -> torch.Tensor:
            views = (self._view(band(start, stop), flipped) for band, flipped in bands)
            total_KHW = next(views)
            for view_KHW in views:
                total_KHW.add_(view_KHW)
            return total_KHW.div_(len(bands))

        return scores

    def _view(self, scores_KHW: torch.Tensor, flipped: bool) -> torch.Tensor:
        scores_KHW = scores_KHW.softmax(0) if self.plan.softmax else scores_KHW
        return scores_KHW.flip(-1) if flipped else scores_KHW
