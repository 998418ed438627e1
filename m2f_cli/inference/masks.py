"""The masks of one picture as dot products, rendered a band of rows at a time.

The published order of resizing is: stride 4 → the padded network input → (crop the padding) → the picture's own size,
bilinear each time (facts 5.1). A `Band` function gives rows [start, stop) of such a stack of maps; resizing a Band
makes another Band. So any number of rows at any size is rendered without anything larger ever existing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.cache import cached_by_shape

Size = tuple[int, int]
Band = Callable[[int, int], Tensor]  # (start, stop) → (…, stop - start, W)

BAND_ELEMENTS = 2**22  # values in one band: 16 MiB of floats


@dataclass
class MaskLogits:
    """Mask logits of one picture, not rendered yet.

    embeds_QC, features_CHW: their dot product is the logits at stride 4.
    padded: size of the network's input, with padding; valid: without; size: of the picture itself.
    """

    embeds_QC: Tensor
    features_CHW: Tensor
    padded: Size
    valid: Size
    size: Size

    @property
    def device(self) -> torch.device:
        return self.embeds_QC.device

    def at_input(self, queries: Tensor) -> Band:
        """Logits of the chosen queries at the size of the network's input, padding cropped."""
        embeds_QC, features_CHW = self.embeds_QC[queries].float(), self.features_CHW

        def coarse(start: int, stop: int) -> Tensor:
            rows_CHW = features_CHW[:, start:stop].float()
            return torch.einsum("qc,chw->qhw", embeds_QC, rows_CHW)

        full = resized(coarse, tuple(features_CHW.shape[-2:]), self.padded)
        width = self.valid[1]
        return lambda start, stop: full(start, stop)[..., :width]

    def at_output(self, queries: Tensor) -> Band:
        """Logits of the chosen queries at the size of the picture."""
        return resized(self.at_input(queries), self.valid, self.size)


def resized(band: Band, from_size: Size, to_size: Size) -> Band:
    """The same maps at another size: bilinear, half-pixel centres, no antialiasing, as `F.interpolate`."""
    if from_size == to_size:
        return band

    def rows(start: int, stop: int) -> Tensor:
        low, high, _ = _source_rows(from_size[0], to_size[0], torch.device("cpu"))
        first = int(low[start])
        x = band(first, int(high[stop - 1]) + 1)
        low, high, weight = (part[start:stop] for part in _source_rows(from_size[0], to_size[0], x.device))
        x = torch.lerp(x.index_select(-2, low - first), x.index_select(-2, high - first), weight[:, None])
        return F.interpolate(x[None], size=(stop - start, to_size[1]), mode="bilinear", align_corners=False)[0]

    return rows


@cached_by_shape
def _source_rows(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which two source rows each target row lies between, and the weight of the second. Not every device can compute
    them (float64); once per size they are copied there."""
    place = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    place = place.clamp_(min=0)
    low = place.floor().long().clamp_(max=source - 1)
    return low.to(device), (low + 1).clamp_(max=source - 1).to(device), (place - low).float().to(device)


def bands(height: int, width: int, maps: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) that cover a height, few enough that `maps` maps of them stay small."""
    rows = max(8, BAND_ELEMENTS // max(1, maps * width))
    for start in range(0, height, rows):
        yield start, min(start + rows, height)
