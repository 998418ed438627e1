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
        low, high, weight = _source_rows(start, stop, from_size[0], to_size[0])
        first = int(low[0])
        x = band(first, int(high[-1]) + 1)
        low, high, weight = (low - first).to(x.device), (high - first).to(x.device), weight.to(x.device)[:, None]
        x = torch.lerp(x.index_select(-2, low), x.index_select(-2, high), weight)
        return F.interpolate(x[None], size=(stop - start, to_size[1]), mode="bilinear", align_corners=False)[0]

    return rows


def _source_rows(start: int, stop: int, source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which two source rows each target row lies between, and the weight of the second."""
    place = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    place = place.clamp_(min=0)
    low = place.floor().long().clamp_(max=source - 1)
    return low, (low + 1).clamp_(max=source - 1), (place - low).float()


def bands(height: int, width: int, maps: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) that cover a height, few enough that `maps` maps of them stay small."""
    rows = max(8, BAND_ELEMENTS // max(1, maps * width))
    for start in range(0, height, rows):
        yield start, min(start + rows, height)
