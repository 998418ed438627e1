"""The masks of one image as dot products, rendered a band of rows at a time.

The published order of resizing is: stride 4 → the padded network input → (crop the padding) → the image's own size,
bilinear each time (docs/methods/published-behaviour.md#5-1). A `Band` function gives rows [start, stop) of such a stack
of maps at the last size, by two small matrix products from stride 4: nothing larger than a band ever exists, not even
at the size in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from ..ops.cache import cached_by_shape

Size = tuple[int, int]
Band = Callable[[int, int], Tensor]  # (start, stop) → (…, stop - start, W)

BAND_ELEMENTS = 2**20  # values in one band: 4 MiB of floats, near what a core's cache holds


def size_of(maps: Tensor) -> Size:
    """Return the (height, width) of maps (…, H, W)."""
    return maps.shape[-2], maps.shape[-1]


@dataclass
class MaskLogits:
    """Mask logits of one image, not rendered yet.

    embeds_QC, features_CHW: their dot product is the logits at stride 4.
    padded: size of the network's input, with padding; valid: without; size: of the image itself.
    """

    embeds_QC: Tensor
    features_CHW: Tensor
    padded: Size
    valid: Size
    size: Size

    @property
    def device(self) -> torch.device:
        return self.embeds_QC.device

    def coarse(self, queries: Tensor) -> CoarseMasks:
        """Logits of the chosen queries at stride 4: the last thing that is as large as queries times pixels."""
        embeds_QC, (height, width) = self.embeds_QC[queries].float(), self.features_CHW.shape[-2:]
        logits_QS = embeds_QC @ self.features_CHW.float().flatten(1)
        logits_QHW = logits_QS.view(len(queries), height, width)
        return CoarseMasks(logits_QHW, self.padded, self.valid, self.size)

    def objects(self, queries: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A few queries at a time: where their logits are positive, (Q, W, H), columns one after the other as run
        lengths want them, and the sum of their probabilities there."""
        for few in self.coarse(queries).turned().split(at_once) if len(queries) else ():
            count, (width, height), band = len(few.logits_QHW), few.size, few.at(few.size)
            inside_QWH = torch.empty(count, width, height, dtype=torch.bool, device=self.device)
            total = torch.zeros(count, device=self.device)
            for start, stop in bands(width, height, count):
                logits = band(start, stop)
                inside = torch.gt(logits, 0, out=inside_QWH[:, start:stop])
                total += logits.sigmoid_().mul_(inside).sum((1, 2))
            yield inside_QWH, total

    def at_input(self, queries: Tensor) -> Band:
        """Logits of the chosen queries at the size of the network's input, padding cropped."""
        return self.coarse(queries).at(self.valid)

    def at_output(self, queries: Tensor) -> Band:
        """Logits of the chosen queries at the size of the image."""
        return self.coarse(queries).at(self.size)


@dataclass
class CoarseMasks:
    """Mask logits at stride 4, and the sizes that they go through (as in `MaskLogits`)."""

    logits_QHW: Tensor
    padded: Size
    valid: Size
    size: Size

    def turned(self) -> CoarseMasks:
        """Rows and columns exchanged: for who wants columns at a time, or one after the other in memory."""
        sizes = (size[::-1] for size in (self.padded, self.valid, self.size))
        return CoarseMasks(self.logits_QHW.transpose(1, 2).contiguous(), *sizes)

    def split(self, count: int) -> Iterator[CoarseMasks]:
        """A few queries at a time."""
        for logits_QHW in torch.split(self.logits_QHW, count):
            yield CoarseMasks(logits_QHW, self.padded, self.valid, self.size)

    def at(self, size: Size) -> Band:
        """Rows of the masks at the size of the network's input without padding (`valid`), or beyond that at another."""
        device, lengths = self.logits_QHW.device, self.logits_QHW.shape[-2:]
        stages = zip(lengths, self.padded, self.valid, size, strict=True)
        rows, columns = (resize_weights(*stage, device) for stage in stages)
        return partial(self.band, rows, columns.blocks(device))

    def band(self, rows: ResizeWeights, blocks: list[tuple[int, int, Tensor]], start: int, stop: int) -> Tensor:
        """Rows [start, stop), all their columns in `blocks`."""
        first, last, weights = rows.block(start, stop)
        x = weights @ self.logits_QHW[:, first:last]
        return torch.cat([x[..., low:high] @ part.T for low, high, part in blocks], dim=-1)


class ResizeWeights(NamedTuple):
    """How each of T places along an axis is a weighted sum of a few neighbouring places of a shorter one.

    first, last: of the neighbours, on the host. sources_TK: all of them; weights_TK: what they count, fp32.
    """

    first: list[int]
    last: list[int]
    sources_TK: Tensor
    weights_TK: Tensor

    def block(self, start: int, stop: int) -> tuple[int, int, Tensor]:
        """Of places [start, stop): the range of sources that they need, and their weights as a matrix."""
        low, high = self.first[start], self.last[stop - 1] + 1
        weights = self.weights_TK.new_zeros(stop - start, high - low)
        return low, high, weights.scatter_add_(1, self.sources_TK[start:stop] - low, self.weights_TK[start:stop])

    def blocks(self, device: torch.device) -> list[tuple[int, int, Tensor]]:
        """All places. In short blocks, almost everything that a matrix product multiplies is not zero; a GPU would
        rather be called less often."""
        step, count = 64 if device.type == "cpu" else 1024, len(self.first)
        return [self.block(start, min(start + step, count)) for start in range(0, count, step)]


@cached_by_shape
def resize_weights(coarse: int, padded: int, valid: int, size: int, device: torch.device) -> ResizeWeights:
    """Both published resizes of one axis in one: stride 4 to the padded input, cropped to what is valid, to the
    image. Resizing is linear, so the weights of the two multiply; nothing of the input's size is ever made."""
    weights = csr_array(_bilinear(valid, size) @ _bilinear(coarse, padded)[:valid])
    weights.eliminate_zeros()
    weights.sort_indices()
    counts, ends = np.diff(weights.indptr), weights.indptr[1:]
    first, last = weights.indices[weights.indptr[:-1]], weights.indices[ends - 1]
    steps = np.arange(counts.max())
    places = np.minimum(weights.indptr[:-1, None] + steps, ends[:, None] - 1)
    values = np.where(steps < counts[:, None], weights.data[places], 0).astype(np.float32)
    sources = weights.indices[places].astype(np.int64)
    return ResizeWeights(
        first.tolist(), last.tolist(), torch.from_numpy(sources).to(device), torch.from_numpy(values).to(device)
    )


def _bilinear(source: int, target: int) -> csr_array:
    """(target, source): half-pixel centres, no antialiasing. Places are rounded to fp32 at every step, as PyTorch's."""
    scale, half = np.float32(source) / np.float32(target), np.float32(0.5)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(place.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    part = np.minimum(place - low, np.float32(1)).astype(np.float64)
    rows = np.arange(target)
    entries = (np.concatenate([1 - part, part]), (np.concatenate([rows, rows]), np.concatenate([low, high])))
    return csr_array(entries, shape=(target, source))


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
