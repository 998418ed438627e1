"""Test-time augmentation: an image at several sizes, plain and mirrored, gives one result.

Semantic: class scores at the image's own size are averaged, as published (docs/methods/published-behaviour.md#2-2,
"ms+flip"). Panoptic and instance: no rule is published; `merge_views` has one of m2f.
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

DEFAULT_PLAN = TtaConfig(scales=(0.75, 1.0, 1.25))  # type: ignore[call-arg]  # where none is published


@dataclass
class View:
    """Augmented version of an image, before or after the network.

    Attributes:
        data: the `Prepared` image or its `RawOutput`.
        flipped: True if it is mirrored left to right.
    """

    data: Any
    flipped: bool


def with_tta(segmenter: BaseSegmenter, *, sizes: Sequence[int] | None = None, flip: bool | None = None) -> Augmented:
    """Wrap a segmenter to see every image at several sizes and mirrored.

    The mask features of all views are in memory until an image is finished.

    Args:
        segmenter: the segmenter to wrap, which is no wrapper.
        sizes: short edges in pixels of the network's input. By default those of `test.tta`, which are the published
            ones, or 0.75, 1 and 1.25 times the test size where none are published.
        flip: add the mirrored image of each size; by default as in `test.tta`, or True.

    Raises:
        ConfigError: `segmenter` is a wrapper, or a size is below 1.
    """
    refuse_wrapped(segmenter, "with_tta")
    plan = segmenter.config.test.tta or DEFAULT_PLAN
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
    """Return the limit of long edges for `size`, in proportion to the limit of the test resize."""
    if resize.max_edge is None or resize.short_edge is None:
        return None
    return -(-resize.max_edge * size // resize.short_edge)


class Augmented(Wrapper):
    """Segmenter that runs another one on several views of each image; see `with_tta`."""

    def __init__(self, inner: BaseSegmenter, plan: TtaConfig):
        super().__init__(inner)
        self.plan = plan
        count = len(plan.short_edges or plan.scales) * (1 + plan.flip)
        self.notes = [*inner.notes, f"Test-time augmentation: {count} views of each image."]

    def prepare(self, image_HWC: np.ndarray) -> list[View]:
        """Return all views of an image (H, W, 3), uint8 RGB: the sizes in order, each plain, then mirrored."""
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
        """Run the network on one view at a time, because a batch would pad them to the largest one."""
        return [[View(self.inner.infer([view.data])[0], view.flipped) for view in views] for views in batch]

    @torch.inference_mode()
    def finish(
        self, raw: list[View], task: Task | None = None, **thresholds: Any
    ) -> PanopticMap | Instances | SemanticMap:
        """Turn the outputs of all views into one result, as `Segmenter.finish` does for one."""
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
        """Return a function of class scores (classes, rows, W) at the image's own size, averaged over the views."""
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
