"""Windows over the resized image, with class scores averaged where they overlap.

They come in steps, as in the mode `slide` of MMSegmentation, or spread evenly. MMSegmentation tests Mask2Former on
whole images (docs/methods/published-behaviour.md#2-6). Models that were trained and tested with windows set
`test.slide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config.schema import SlideConfig
from ..errors import ConfigError
from ..results.types import SemanticMap
from ..structures import Task
from .base import BaseSegmenter, Prepared, RawOutput, Wrapper, refuse_wrapped
from .mask_rendering import Band, Size, resized, size_of
from .postprocess import best_classes
from .segmenter import Segmenter


@dataclass
class SlideRaw:
    """Outputs of the network for the windows of one image.

    Attributes:
        windows: (top, left, output) of each window, in pixels of the network's input.
        valid: size of the network's input without padding.
        size: size of the image itself.
    """

    windows: list[tuple[int, int, RawOutput]]
    valid: Size
    size: Size


def sliding(segmenter: Segmenter) -> Sliding:
    """Wrap a segmenter to run in windows, as `test.slide` of its configuration says. Semantic segmentation only.

    Raises:
        ConfigError: the configuration has no `test.slide`, or the model does no semantic segmentation.
    """
    refuse_wrapped(segmenter, "sliding")
    segmenter.check_task("semantic")
    _slide_of(segmenter)
    return Sliding(segmenter)


def _slide_of(segmenter: BaseSegmenter) -> SlideConfig:
    slide = segmenter.config.test.slide
    if slide is None:
        raise ConfigError(
            f"The configuration of {segmenter.source} has no test.slide.",
            hint="For example: --set 'test.slide={crop: [512, 512], stride: [341, 341]}'",
        )
    return slide


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Return the starts of windows along an axis: every `stride`, the last one moved back to end at the edge."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride + crop, length) - crop, 0) for i in range(count)]


def even_starts(length: int, crop: int) -> list[int]:
    """Return the starts of the fewest windows that cover an axis, spread evenly: the first at 0, the last at the edge.

    Other starts are rounded down.
    """
    last = -(-length // crop) - 1
    return [0, *(i * (length - crop) // last for i in range(1, last + 1))]


class Sliding(Wrapper):
    """Segmenter that runs another one in windows; see `sliding`."""

    tasks: tuple[Task, ...] = ("semantic",)
    default_task: Task = "semantic"

    def check_task(self, task: str) -> Task:
        if task != "semantic":
            raise ConfigError(
                f"Windows (test.slide) give class scores: {self.source} does semantic segmentation here, not {task!r}.",
                hint="Use --task semantic, or --tile for large images.",
            )
        return "semantic"

    def infer(self, batch: Sequence[Prepared]) -> list[SlideRaw]:
        """Run the network, one window at a time."""
        return [self._infer(prepared) for prepared in batch]

    def _infer(self, prepared: Prepared) -> SlideRaw:
        pixels_CHW, slide = prepared.pixels_CHW, _slide_of(self.inner)
        size, crop = size_of(pixels_CHW), slide.crop
        tops, lefts = (
            window_starts(size[axis], crop[axis], slide.stride[axis])
            if slide.stride is not None
            else even_starts(size[axis], crop[axis])
            for axis in (0, 1)
        )
        windows = []
        for top in tops:
            for left in lefts:
                crop_CHW = pixels_CHW[:, top : top + crop[0], left : left + crop[1]]
                [raw] = self.inner.infer([Prepared(crop_CHW, size_of(crop_CHW))])
                windows.append((top, left, raw))
        return SlideRaw(windows, size, prepared.size)

    @torch.inference_mode()
    def finish(self, raw: SlideRaw, task: Task | None = None, **_: Any) -> SemanticMap:
        """Return the class of the highest mean score at each pixel. Thresholds of other tasks are ignored."""
        self.check_task(task or self.default_task)
        first = raw.windows[0][2]
        return best_classes(
            self.semantic_scores(raw),
            raw.size,
            self.categories,
            maps=sum(first.class_logits_QK.shape),
            device=first.masks.device,
        )

    def semantic_scores(self, raw: SlideRaw) -> Band:
        """Return a function of class scores (classes, rows, W), averaged over the windows, then resized."""
        windows = [(top, left, each.masks.size, self.inner.semantic_scores(each)) for top, left, each in raw.windows]
        device = raw.windows[0][2].masks.device

        def scores(start: int, stop: int) -> torch.Tensor:
            total_KHW = torch.zeros(len(self.categories), stop - start, raw.valid[1], device=device)
            counts_HW = torch.zeros(stop - start, raw.valid[1], device=device)
            for top, left, (height, width), band in windows:
                low, high = max(start, top), min(stop, top + height)
                if low < high:
                    rows, columns = slice(low - start, high - start), slice(left, left + width)
                    total_KHW[:, rows, columns] += band(low - top, high - top)
                    counts_HW[rows, columns] += 1
            return total_KHW / counts_HW

        return resized(scores, raw.valid, raw.size)
