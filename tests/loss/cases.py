"""Published criterion cases as predictions and targets of ours, with the random draws in our order."""

from __future__ import annotations

import torch
from torch import Tensor

from m2f_cli.config.schema import LossConfig
from m2f_cli.structures.predictions import LayerOutput, Prediction
from m2f_cli.structures.targets import Target

CONFIG = LossConfig(
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.1,
    num_points=112,
    oversample_ratio=3.0,
    importance_ratio=0.75,
)


def prediction_of(class_logits: list[Tensor], mask_logits: list[Tensor]) -> Prediction:
    """A prediction whose masks are the given ones: they are its features, and the embeddings select them.

    The gradient of layer l's masks is then that of `mask_features_BCHW.split(Q, dim=1)[l]`.
    """
    B, Q = mask_logits[0].shape[:2]
    selectors = torch.eye(len(mask_logits) * Q).split(Q)
    layers = [
        LayerOutput(logits, select.expand(B, -1, -1)) for logits, select in zip(class_logits, selectors, strict=True)
    ]
    return Prediction(torch.cat(mask_logits, 1), layers)


def random_case(
    masks_per_image: list[int],
    seed: int = 0,
    layers: int = 2,
    queries: int = 6,
    classes: int = 4,
    dim: int = 8,
    size: tuple[int, int] = (7, 9),
    padded: tuple[int, int] = (28, 36),
) -> tuple[Prediction, list[Target]]:
    """Random embeddings over random features (leaves with gradients) and random, overlapping targets."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(masks_per_image)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    outputs = [LayerOutput(leaf(batch, queries, classes + 1), leaf(batch, queries, dim)) for _ in range(layers)]
    targets = [
        Target(
            torch.randint(classes, (n,), generator=generator),
            torch.rand((n, padded[0] - 5 * b, padded[1] - 3 * b), generator=generator) < 0.4,
        )
        for b, n in enumerate(masks_per_image)
    ]
    return Prediction(leaf(batch, dim, *size), outputs), targets


def same_for_all(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random numbers that depend on all but the first dimension: the same for each mask, however many come at once."""
    generator = torch.Generator().manual_seed(shape[1])
    return torch.rand((1, *shape[1:]), generator=generator).expand(shape)


def leaves(prediction: Prediction) -> list[Tensor]:
    """Everything that a loss has a gradient for."""
    embeds = [layer.mask_embeds_BQC for layer in prediction.layers]
    return [prediction.mask_features_BCHW, *(layer.class_logits_BQK for layer in prediction.layers), *embeds]


class Streams:
    """Random points that were drawn before, one stream per number of points: however many masks ask at once."""

    def __init__(self, draws: list[Tensor]):
        counts = {draw.shape[1] for draw in draws}
        self.left = {count: torch.cat([draw for draw in draws if draw.shape[1] == count]) for count in counts}

    def __call__(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        if not shape[0]:
            return torch.empty(shape)
        taken, self.left[shape[1]] = self.left[shape[1]].tensor_split([shape[0]])
        assert taken.shape == shape
        return taken

    @property
    def used_up(self) -> bool:
        return not any(map(len, self.left.values()))


def our_order(
    match_points: list[list[Tensor]], refined: list[tuple[list[list[Tensor]], list[list[Tensor]]]]
) -> Streams:
    """Published draws to ours, which go image by image through all layers at once.

    Args:
        match_points: per image the (1, P, 2) points of each layer; [] without targets.
        refined: of each call of `losses_for`: per image the candidates (M, 3P, 2) of each layer, and
            the random points.
    """
    draws = [torch.cat(layers) for layers in match_points if layers]
    for candidates, anywhere in refined:
        for image in zip(candidates, anywhere, strict=True):
            draws += [torch.cat(layers) for layers in image if layers[0].numel()]
    return Streams(draws)


def by_image(draws_per_layer: list[Tensor], pairs_per_image: list[int]) -> list[list[Tensor]]:
    """Draws for all pairs of the batch, cut into images: image → layer → (M, …)."""
    return [list(image) for image in zip(*(draw.split(pairs_per_image) for draw in draws_per_layer), strict=True)]
