"""Nouns that all rooms share: classes, annotations, targets, predictions, images.

Dimension letters, used as suffixes wherever a layout matters (`mask_logits_BQHW`):

    B images                Q queries             K classes + 1 (the last is "no object")
    N targets of one image  C channels            H W height, width       S = H·W, flattened
    L levels                A attention heads     P sampled points        T pilot queries

Class numbers are contiguous, 0-based positions in a `Categories` tuple; the ids of a data set live in `Category.id`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Task: TypeAlias = Literal["panoptic", "instance", "semantic"]
