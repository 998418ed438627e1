"""Comparison of predicted masks with target masks: at random points (Mask2Former) or at all pixels (MaskFormer).

Both classes have the same methods: `for_matching` for all queries with all targets, `of_pairs` for matched pairs. Each
gives logits and target values; their last dimension is the points or pixels. `portions` says which images come
together: small ones do, because many small operations would take longer than their arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schema import LossConfig
from ..ops.point_sampling import Rand, sample_points, uniform
from ..ops.target_sampling import sample_pairs, sample_targets
from ..structures.targets import Target

Size = tuple[int, int]
Compared = tuple[Tensor, Tensor]  # logits and target values
NUMBERS_AT_ONCE = 1 << 22  # of a map or of samples, beyond which images, layers and pairs are taken in portions


def make_mask_sampling(config: LossConfig, rand: Rand = uniform) -> RandomPoints | AllPixels:
    """Return the sampling that a configuration asks for."""
    if config.masks == "full":
        return AllPixels()
    return RandomPoints(config.num_points, config.oversample_ratio, config.importance_ratio, rand)


@dataclass(frozen=True)
class RandomPoints:
    """Random points (docs/methods/published-behaviour.md#4-1, #4-2; PointRend).

    For matching, all queries and targets of a layer share their points. For the loss, each pair has its own: most where
    its logits are near zero, the rest anywhere.

    Attributes:
        num_points: points of a mask.
        oversample_ratio: candidates for uncertain points, as a multiple of `num_points`.
        importance_ratio: the share of uncertain points, in [0, 1].
        rand: the source of random points. Matching asks it once per image that has targets, for (L, num_points, 2).
        chunk: pairs that are compared together; None for all.
    """

    num_points: int
    oversample_ratio: float
    importance_ratio: float
    rand: Rand = uniform

    chunk = None

    def portions(self, numbers: Sequence[int]) -> Iterator[slice]:
        """Yield slices of consecutive images that are compared together.

        Args:
            numbers: how many numbers each image takes.
        """
        first, total = 0, 0
        for image, count in enumerate(numbers):
            if image > first and total + count > NUMBERS_AT_ONCE:
                yield slice(first, image)
                first, total = image, 0
            total += count
        yield slice(first, len(numbers))

    def for_matching(
        self, features_BCHW: Tensor, embeds_LBQC: Tensor, targets: Sequence[Target], padded_size: Size
    ) -> Iterator[Compared]:
        """Yield (l, B, Q, P) logits and (l, B, N, P) target values of a few layers at a time.

        Mask features are sampled and then multiplied with the embeddings, so no mask is rendered. Layers come a few at
        a time: the sampled features of all layers could be the largest tensor of the step.
        """
        L, B, C = len(embeds_LBQC), *features_BCHW.shape[:2]
        shape, device = (L, self.num_points, 2), embeds_LBQC.device
        drawn = [self.rand(shape, device) if len(target) else torch.zeros(shape, device=device) for target in targets]
        points_BLP2 = torch.stack(drawn)
        target_BNX = sample_targets(targets, points_BLP2.flatten(1, 2), padded_size)
        target_LBNP = target_BNX.unflatten(2, shape[:2]).permute(2, 0, 1, 3)
        features_BCHW = features_BCHW.contiguous(memory_format=torch.channels_last)
        at_once = max(1, NUMBERS_AT_ONCE // (B * C * self.num_points))
        parts = (points_BLP2.split(at_once, 1), embeds_LBQC.split(at_once), target_LBNP.split(at_once))
        for few_BLP2, few_LBQC, few_LBNP in zip(*parts, strict=True):
            sampled_BCX = sample_points(features_BCHW, few_BLP2.flatten(1, 2))
            sampled_LBCP = sampled_BCX.unflatten(2, few_BLP2.shape[1:3]).permute(2, 0, 1, 3)
            yield few_LBQC @ sampled_LBCP, few_LBNP

    def of_pairs(
        self, logits_RHW: Tensor, targets: Sequence[Target], numbers: Sequence[Tensor], padded_size: Size
    ) -> Compared:
        """Return (R, P) logits and target values of pairs, each at points of its own.

        Args:
            logits_RHW: of the pairs of all images, image by image.
            targets: one per image.
            numbers: of each image, the numbers of the targets of its pairs.
            padded_size: (height, width) of the padded batch in pixels.
        """
        at_once = max(1, NUMBERS_AT_ONCE // int(self.oversample_ratio * self.num_points))
        points_RP2 = torch.cat([self.choose(few_RHW) for few_RHW in logits_RHW.detach().split(at_once)])
        target_RP = sample_pairs(targets, numbers, points_RP2, padded_size)
        return sample_points(logits_RHW[:, None], points_RP2).squeeze(1), target_RP

    def choose(self, logits_RHW: Tensor) -> Tensor:
        """Return points for each mask, (R, P, 2): the most uncertain of many random ones, and some anywhere."""
        R, device = len(logits_RHW), logits_RHW.device
        num_uncertain = int(self.importance_ratio * self.num_points)
        candidates = self.rand((R, int(self.oversample_ratio * self.num_points), 2), device)
        certainty = sample_points(logits_RHW[:, None], candidates).squeeze(1).abs()
        undecided = certainty.topk(num_uncertain, largest=False, sorted=False).indices
        anywhere = self.rand((R, self.num_points - num_uncertain, 2), device)
        return torch.cat([candidates.gather(1, undecided[..., None].expand(-1, -1, 2)), anywhere], 1)


@dataclass(frozen=True)
class AllPixels:
    """Comparison at all pixels (docs/methods/published-behaviour.md#4-3). Padding belongs to no target.

    For matching, targets are resized to stride 4 (nearest). For the loss, predictions are resized to the size of the
    padded batch (bilinear).

    Attributes:
        num_points: 0, because nothing is drawn.
        chunk: pairs that are compared together; the gradient computes each chunk again.
    """

    num_points = 0
    chunk = 16

    def portions(self, numbers: Sequence[int]) -> Iterator[slice]:
        """Yield a slice of each image: its pixels are many."""
        return (slice(image, image + 1) for image in range(len(numbers)))

    def for_matching(
        self, features_BCHW: Tensor, embeds_LBQC: Tensor, targets: Sequence[Target], padded_size: Size
    ) -> Iterator[Compared]:
        """Yield (1, 1, Q, S) logits and (1, 1, N, S) target values of each layer of one image, S pixels at stride 4."""
        [target], features_BCS = targets, features_BCHW.flatten(2)
        target_NS = _nearest(target, padded_size, tuple(features_BCHW.shape[-2:])).flatten(1).float()
        for embeds_1BQC in embeds_LBQC.split(1):
            yield embeds_1BQC @ features_BCS, target_NS[None, None]

    def of_pairs(
        self, logits_RHW: Tensor, targets: Sequence[Target], numbers: Sequence[Tensor], padded_size: Size
    ) -> Compared:
        """Return (R, S) logits and target values of pairs of one image, S pixels of the padded batch."""
        [target], [numbers_R] = targets, numbers
        logits_R1HW = F.interpolate(logits_RHW[:, None], size=padded_size, mode="bilinear", align_corners=False)
        (height, width), (padded_height, padded_width) = target.size, padded_size
        target_RHW = F.pad(_planes(target, numbers_R).float(), (0, padded_width - width, 0, padded_height - height))
        return logits_R1HW.flatten(1), target_RHW.flatten(1)


def _planes(target: Target, numbers_R: Tensor) -> Tensor:
    """Return the masks of the given numbers: (R, H, W), bool or uint8."""
    if target.masks_NHW is not None:
        return target.masks_NHW[numbers_R]
    return target.owner_HW == numbers_R[:, None, None]


def _nearest(target: Target, padded_size: Size, size: Size) -> Tensor:
    """Resize all masks of the padded image as `F.interpolate` with "nearest" does: (N, *size)."""
    device = target.labels_N.device
    rows, columns = (_nearest_index(*lengths, device) for lengths in zip(padded_size, size, strict=True))
    height, width = target.size
    inside_HW = (rows < height)[:, None] & (columns < width)
    y, x = rows.clamp(max=height - 1)[:, None], columns.clamp(max=width - 1)
    if target.masks_NHW is not None:
        return target.masks_NHW[:, y, x].bool() & inside_HW
    numbers_N = torch.arange(len(target), device=device)
    return (target.owner_HW[y, x] == numbers_N[:, None, None]) & inside_HW


def _nearest_index(source: int, length: int, device: torch.device) -> Tensor:
    """Return which of `source` pixels each of `length` takes: PyTorch's own rule, applied to the numbers 0, 1, …"""
    pixels = torch.arange(source, dtype=torch.float32, device=device)
    return F.interpolate(pixels[None, None], size=length, mode="nearest")[0, 0].long()
