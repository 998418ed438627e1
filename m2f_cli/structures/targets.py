"""What a network is trained on: classes and masks of one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Target:
    """What one image of a training batch shows: N class numbers (int64), and where each is.

    Exactly one of the two forms is given. Masks may overlap; an id map is one plane however many targets there are:
    200 segments of a 4k image are 33 MB instead of 1.7 GB.

    masks_NHW: (N, H, W), bool or uint8.
    owner_HW: (H, W), int16 or int32: the number of the target that a pixel belongs to, -1 where there is none.

    H, W are those of the image itself; a batch's padding belongs to no target and is not stored.
    """

    labels_N: Tensor
    masks_NHW: Tensor | None = None
    owner_HW: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.masks_NHW is None) == (self.owner_HW is None):
            raise ValueError("a Target has either masks_NHW or owner_HW")

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def size(self) -> tuple[int, int]:
        return self._stored.shape[-2], self._stored.shape[-1]

    @property
    def _stored(self) -> Tensor:
        return next(form for form in (self.masks_NHW, self.owner_HW) if form is not None)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Target:
        masks_NHW, owner_HW = (
            None if form is None else form.to(device, non_blocking=non_blocking)
            for form in (self.masks_NHW, self.owner_HW)
        )
        return Target(self.labels_N.to(device, non_blocking=non_blocking), masks_NHW, owner_HW)

    def masks(self) -> Tensor:
        """(N, H, W) bool, whichever form is stored. For tests and images: large."""
        if self.masks_NHW is not None:
            return self.masks_NHW.bool()
        numbers = torch.arange(len(self), device=self._stored.device)
        return self._stored[None] == numbers[:, None, None]
