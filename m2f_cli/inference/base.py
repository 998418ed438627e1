"""What goes from one step of a segmenter to the next."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .mask_rendering import MaskLogits, Size


@dataclass
class Prepared:
    """A picture at the network's input size, (3, h, w) uint8 RGB, and the size that it had."""

    pixels_CHW: Tensor
    size: Size


@dataclass
class Raw:
    """The network's answer for one picture: class logits and masks that are not rendered yet."""

    class_logits_QK: Tensor
    masks: MaskLogits
