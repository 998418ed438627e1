"""Masks of one image as dot products, rendered a band of rows at a time.

The published order of resizing is: stride 4 → the padded network input → (crop the padding) → the image's own size,
bilinear each time (docs/methods/published-behaviour.md#5-1). A `Band` function returns rows [start, stop) of such a
stack of maps at the last size. It computes them from stride 4 by two small matrix products, so that nothing larger than
a band is in memory, not even at the size in between.
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
    """Mask logits of one image that are not rendered yet.

    Attributes:
        embeds_QC: mask embeddings. Their dot products with the features are the logits at stride 4.
        features_CHW: mask features at stride 4.
        padded: size of the network's input with padding.
        valid: size of the network's input without padding.
        size: size of the image itself.
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
        """Return the logits of the chosen queries at stride 4. Later stages are computed in bands."""
        embeds_QC, (height, width) = self.embeds_QC[queries].float(), self.features_CHW.shape[-2:]
        logits_QS = embeds_QC @ self.features_CHW.float().flatten(1)
        logits_QHW = logits_QS.view(len(queries), height, width)
        return CoarseMasks(logits_QHW, self.padded, self.valid, self.size)

    def objects(self, queries: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the masks of `at_once` queries at a time.

        Yields:
            Where the logits are positive, (Q, W, H) bool: run lengths need columns one after the other. And the sum of
            the mask probabilities there, (Q,).
        """
        for chunk in self.coarse(queries).transposed().split(at_once) if len(queries) else ():
            count, (width, height), band = len(chunk.logits_QHW), chunk.size, chunk.at(chunk.size)
            inside_QWH = torch.empty(count, width, height, dtype=torch.bool, device=self.device)
            total = torch.zeros(count, device=self.device)
            for start, stop in bands(width, height, count):
                logits = band(start, stop)
                inside = torch.gt(logits, 0, out=inside_QWH[:, start:stop])
                total += logits.sigmoid_().mul_(inside).sum((1, 2))
            yield inside_QWH, total

    def at_input(self, queries: Tensor) -> Band:
        """Return the logits of the chosen queries at the size of the network's input without padding."""
        return self.coarse(queries).at(self.valid)

    def at_output(self, queries: Tensor) -> Band:
        """Return the logits of the chosen queries at the size of the image."""
        return self.coarse(queries).at(self.size)


@dataclass
class CoarseMasks:
    """Mask logits at stride 4.

    Attributes:
        logits_QHW: the logits.
        padded: size of the network's input with padding.
        valid: size of the network's input without padding.
        size: size of the image itself.
    """

    logits_QHW: Tensor
    padded: Size
    valid: Size
    size: Size

    def transposed(self) -> CoarseMasks:
        """Exchange rows and columns, so that code for bands of rows also works on columns."""
        sizes = (size[::-1] for size in (self.padded, self.valid, self.size))
        return CoarseMasks(self.logits_QHW.transpose(1, 2).contiguous(), *sizes)

    def split(self, count: int) -> Iterator[CoarseMasks]:
        """Yield the masks of `count` queries at a time."""
        for logits_QHW in torch.split(self.logits_QHW, count):
            yield CoarseMasks(logits_QHW, self.padded, self.valid, self.size)

    def at(self, size: Size) -> Band:
        """Return the masks at the size `valid`, or resized from there to another size."""
        device, lengths = self.logits_QHW.device, self.logits_QHW.shape[-2:]
        stages = zip(lengths, self.padded, self.valid, size, strict=True)
        rows, columns = (resize_weights(*stage, device) for stage in stages)
        return partial(self.band, rows, columns.blocks(device))

    def band(self, rows: ResizeWeights, blocks: list[tuple[int, int, Tensor]], start: int, stop: int) -> Tensor:
        """Return rows [start, stop); `blocks` are the weights of all columns."""
        first, last, weights = rows.block(start, stop)
        x = weights @ self.logits_QHW[:, first:last]
        return torch.cat([x[..., low:high] @ part.T for low, high, part in blocks], dim=-1)


class ResizeWeights(NamedTuple):
    """Weights that resize an axis: each of T pixels is a weighted sum of K neighbouring source pixels.

    Attributes:
        first: first source pixel of each target pixel, on the host.
        last: last source pixel of each target pixel, on the host.
        sources_TK: source pixels of each target pixel, int64.
        weights_TK: their weights, fp32.
    """

    first: list[int]
    last: list[int]
    sources_TK: Tensor
    weights_TK: Tensor

    def block(self, start: int, stop: int) -> tuple[int, int, Tensor]:
        """Return the range [low, high) of source pixels of target pixels [start, stop), and the matrix of weights."""
        low, high = self.first[start], self.last[stop - 1] + 1
        weights = self.weights_TK.new_zeros(stop - start, high - low)
        return low, high, weights.scatter_add_(1, self.sources_TK[start:stop] - low, self.weights_TK[start:stop])

    def blocks(self, device: torch.device) -> list[tuple[int, int, Tensor]]:
        """Return the blocks of all target pixels.

        In short blocks, few weights are zero. A GPU gets longer ones, because each call to it costs time.
        """
        step, count = 64 if device.type == "cpu" else 1024, len(self.first)
        return [self.block(start, min(start + step, count)) for start in range(0, count, step)]


@cached_by_shape
def resize_weights(coarse: int, padded: int, valid: int, size: int, device: torch.device) -> ResizeWeights:
    """Return the weights of both published resizes of one axis together.

    The resizes go from stride 4 to the padded input, and from its valid part to the image. Both are linear, so that
    the product of their weights replaces them, and no map at the input's size is needed.

    Args:
        coarse: length at stride 4.
        padded: length of the network's input with padding.
        valid: length of the network's input without padding.
        size: length at the end.
        device: device of the weights.
    """
    weights = csr_array(_bilinear(valid, size) @ _bilinear(coarse, padded)[:valid])
    weights.eliminate_zeros()
    weights.sort_indices()
    counts, ends = np.diff(weights.indptr), weights.indptr[1:]
    first, last = weights.indices[weights.indptr[:-1]], weights.indices[ends - 1]
    steps = np.arange(counts.max())
    entries = np.minimum(weights.indptr[:-1, None] + steps, ends[:, None] - 1)
    values = np.where(steps < counts[:, None], weights.data[entries], 0).astype(np.float32)
    sources = weights.indices[entries].astype(np.int64)
    return ResizeWeights(
        first.tolist(), last.tolist(), torch.from_numpy(sources).to(device), torch.from_numpy(values).to(device)
    )


def _bilinear(source: int, target: int) -> csr_array:
    """Return the weights (target, source) of a resize with half-pixel centres, without antialiasing.

    Coordinates are rounded to fp32 at every step, as in PyTorch.
    """
    scale, half = np.float32(source) / np.float32(target), np.float32(0.5)
    centre = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(centre.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    part = np.minimum(centre - low, np.float32(1)).astype(np.float64)
    rows = np.arange(target)
    entries = (np.concatenate([1 - part, part]), (np.concatenate([rows, rows]), np.concatenate([low, high])))
    return csr_array(entries, shape=(target, source))


def resized(band: Band, from_size: Size, to_size: Size) -> Band:
    """Return maps at another size, resized as by `F.interpolate`: bilinear, half-pixel centres, no antialiasing."""
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
    """Return the two source rows around each target row, and the weight of the second.

    They are computed on the host, because some devices have no float64, and copied to the device once per size.
    """
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5
    centre = centre.clamp_(min=0)
    low = centre.floor().long().clamp_(max=source - 1)
    return low.to(device), (low + 1).clamp_(max=source - 1).to(device), (centre - low).float().to(device)


def bands(height: int, width: int, maps: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) of rows that cover a height; a band of `maps` maps stays small."""
    rows = max(8, BAND_ELEMENTS // max(1, maps * width))
    for start in range(0, height, rows):
        yield start, min(start + rows, height)
