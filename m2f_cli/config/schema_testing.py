"""Settings of inference: size of images, test-time augmentation, windows, thresholds. This module imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .schema_base import LARGEST_CANVAS, LARGEST_SIDE, Canvas, Node, Side, Task


class ResizeConfig(Node):
    """The size at test time: by the short and longest edge, within a square, or a fixed height and width."""

    short_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE, description="Length of the short edge, in pixels.")
    max_edge: int | None = Field(
        None, gt=0, le=LARGEST_SIDE, description="Most pixels of the long edge. Where it is longer, both edges shrink."
    )
    fit: int | None = Field(
        None,
        gt=0,
        le=LARGEST_CANVAS,
        description="Edge of a square: the long edge becomes this long, with the aspect kept, and the image is padded "
        "at the bottom and right to the square.",
    )
    fixed: tuple[Canvas, Canvas] | None = Field(
        None, description="(height, width), with the aspect lost (transformers' processors)."
    )
    resampling: Literal["pillow", "opencv"] = Field(
        "pillow",
        description="pillow: bilinear, averaging when it shrinks (detectron2). opencv: bilinear between four pixels "
        "(OpenMMLab). Shrunk images differ visibly.",
    )

    rounding: Literal["half_up", "half_even"] = Field(
        "half_up",
        description="Where an edge falls between two pixels. half_up: up (detectron2). half_even: to the even number "
        "(Python's round).",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ResizeConfig:
        kinds = (self.short_edge or self.max_edge, self.fit, self.fixed)
        if sum(map(bool, kinds)) > 1:
            raise ValueError("give either short_edge and max_edge, or fit, or fixed")
        if self.fixed and min(self.fixed) <= 0:
            raise ValueError("sizes are above 0")
        return self


class TtaConfig(Node):
    """Test-time augmentation: the image at several sizes, each as it is and mirrored, with scores averaged."""

    short_edges: tuple[Side, ...] = Field((), max_length=100, description="Sizes as short edges. Give these or scales.")
    max_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE, description="Most pixels of the long edge.")
    scales: tuple[Annotated[float, Field(le=100)], ...] = Field((), max_length=100, description="Sizes as factors.")
    of: Literal["test_size", "picture"] = Field(
        "test_size",
        description="Image that sizes apply to. test_size: after the test resize, so that it is resized twice "
        "(detectron2, docs/methods/published-behaviour.md#2-2). picture: the image itself (OpenMMLab).",
    )
    flip: bool = Field(True, description="Add the mirrored image of each size.")
    softmax: bool = Field(False, description="Apply a softmax to class scores before they are averaged (OpenMMLab).")

    @model_validator(mode="after")
    def _one_kind(self) -> TtaConfig:
        if bool(self.short_edges) == bool(self.scales):
            raise ValueError("give either short_edges or scales")
        if any(size <= 0 for size in (*self.short_edges, *self.scales)):
            raise ValueError("sizes are above 0")
        return self


class SlideConfig(Node):
    """Windows over the resized image: in steps (MMSegmentation's `slide`), or spread evenly."""

    crop: tuple[Canvas, Canvas] = Field(description="Height and width of a window, in pixels of the network's input.")
    stride: tuple[Canvas, Canvas] | None = Field(
        None, description="Steps between windows, down and to the right. Give this or even."
    )
    even: bool = Field(
        False, description="As few windows as cover the image, spread evenly along each edge, in place of stride."
    )

    @model_validator(mode="after")
    def _covers(self) -> SlideConfig:
        if self.even == (self.stride is not None):
            raise ValueError("give either stride, or even: true")
        if min(self.crop) < 1:
            raise ValueError(f"the crop {self.crop} is at least one pixel high and wide")
        if self.stride is None:
            return self
        if any(not 0 < stride <= crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is from 1 to the crop {self.crop}, or pixels are left out")
        if any(16 * stride < crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is at least a sixteenth of the crop {self.crop}")
        return self


class TestConfig(Node):
    """Inference as published."""

    tasks: tuple[Task, ...] = Field(
        min_length=1,
        max_length=3,
        description="Tasks that the published model was switched on for. They decide the order of operations: a "
        "model for semantic alone resizes score maps, every other one resizes mask logits first "
        "(docs/methods/published-behaviour.md#5-1).",
    )
    resize: ResizeConfig = Field(description="Size of images at test time.")
    size_divisor: int = Field(
        ge=0, le=4096, description="Images are padded at the bottom and right to a multiple of it. 0 or 1: no padding."
    )
    pad_value: int | None = Field(
        None,
        ge=0,
        le=255,
        description="Value of padding in red, green and blue, before normalisation. Null: the mean of `input`, which "
        "is 0 after normalisation.",
    )
    object_threshold: float = Field(ge=0, le=1, description="Panoptic: least class probability of a query.")
    overlap_threshold: float = Field(ge=0, le=1, description="Panoptic: least share of a mask that must stay visible.")
    top_k: int = Field(gt=0, le=1_000_000, description="Instance: number of (query, class) pairs that are kept.")
    only_sure_pixels: bool = Field(
        True,
        description="Panoptic: a segment keeps only pixels where its own mask is at least 0.5. MaskFormer's rule "
        "(false) gives it all pixels that it owns.",
    )
    semantic_scores: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="Score of a class at a pixel: the sum of its queries' mask probabilities, or of their logits "
        "(per-pixel baselines, whose queries are classes).",
    )
    tta: TtaConfig | None = Field(None, description="Test-time augmentation. Null: none was published.")
    slide: SlideConfig | None = Field(None, description="Sliding windows. Null: the whole image at once.")

    @property
    def canvas(self) -> tuple[int, int] | None:
        """The (height, width) that the network's input has for every image. None: it follows the image."""
        if self.resize.fit is not None:
            return self.resize.fit, self.resize.fit
        if self.slide is not None and set(self.slide.crop) == {self.resize.short_edge} and self.resize.max_edge is None:
            return self.slide.crop
        return None
