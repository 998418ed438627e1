"""Training targets: classes and masks of one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Target:
    """Targets of one image of a training batch: classes, and masks in one of two forms.

    Exactly one of the two forms is given. Masks may overlap. An id map is one plane for any number of targets, which
    saves memory. H and W are those of the image itself: the padding of a batch belongs to no target and is not stored.

    Attributes:
        labels_N: class numbers, int64.
        masks_NHW: masks, bool or uint8.
        owner_HW: number of the target that a pixel belongs to, int16 or int32; -1 where there is none.
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
        """Return masks (N, H, W), bool, from either form. They take much memory: use it in tests and figures."""
        if self.masks_NHW is not None:
            return self.masks_NHW.bool()
        numbers = torch.arange(len(self), device=self._stored.device)
        return self._stored[None] == numbers[:, None, None]
