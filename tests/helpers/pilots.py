"""Help for tests of MP-Former: the cases of golden file 09 as decoders, pilots and features of ours."""

from __future__ import annotations

import torch
from helpers.parts import levels_of, load_published

from m2f_cli.config.schema import LossConfig, PilotingConfig
from m2f_cli.model.decoders.masked import MaskedDecoder
from m2f_cli.model.pilots import Piloting, Pilots
from m2f_cli.structures.predictions import PixelFeatures
from m2f_cli.structures.targets import Target

FIRST_LAYERS = 4  # that look through given masks where not all do: a constant of the published code


def piloting_config(config: dict) -> PilotingConfig:
    """The settings of a file in our names (docs/methods/published-behaviour.md#6-6)."""
    count = config["NUM_DN (scalar)"]
    return PilotingConfig(
        **({"groups": count} if count < 100 else {"budget": count}),
        mask_noise=config["NOISE_SCALE"],
        label_noise=max(0.0, config["LB_NOISE_RATIO"]),
        noise_per_head=config["HEAD_DN"],
        layers="all" if config["ALL_LY_DN"] else FIRST_LAYERS,
    )


def loss_config(config: dict) -> LossConfig:
    """The criterion's settings of a file in our names."""
    weights = config["cost/loss weights"]
    return LossConfig(
        class_weight=weights["class"],
        mask_weight=weights["mask"],
        dice_weight=weights["dice"],
        no_object_weight=config["eos_coef"],
        num_points=config["num_points"],
        oversample_ratio=config["oversample_ratio"],
        importance_ratio=config["importance_sample_ratio"],
    )


def piloted_layers(config: dict) -> int:
    """How many layers look through given masks."""
    return config["decoder_layers"] if config["ALL_LY_DN"] else min(FIRST_LAYERS, config["decoder_layers"])


def level_sizes(file) -> list[tuple[int, int]]:
    return [tuple(level.shape[-2:]) for level in levels_of(file.tensors)]


def padded_size(file) -> tuple[int, int]:
    """The size of the batch: that of the largest mask."""
    sizes = [target.size for target in targets_of(file)]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def decoder_of(file) -> MaskedDecoder:
    config = file.info["config"]
    decoder = MaskedDecoder(
        config["num_classes"],
        config["in_channels"],
        config["mask_dim"],
        config["hidden_dim"],
        config["num_queries"],
        config["decoder_layers"],
        config["heads"],
        config["dim_feedforward"],
        piloted=True,
    )
    return load_published(decoder, "decoder", file)


def features_of(file) -> PixelFeatures:
    return PixelFeatures(file.tensors["in/mask_features"], levels_of(file.tensors))


def targets_of(file) -> list[Target]:
    return [
        Target(file.tensors[f"in/target.{b}.labels"], file.tensors[f"in/target.{b}.masks"])
        for b in range(len(file.info["masks_per_image"]))
    ]


class Recorded:
    """A `Rand` that gives the recorded draws, which are for used slots only, in the order in which we ask."""

    def __init__(self, file):
        self.file, tensors, config = file, file.tensors, file.info["config"]
        draws = [(entry["use"], f"rng/{entry['index']:03}") for entry in file.info["rng"]]
        named = [(use, tensors[name]) for use, name in draws if "points" not in use]
        labels = [draw for use, draw in named if use.startswith("label noise")]
        masks = [draw for use, draw in named if use.startswith("mask flip")]
        self.draws: list[torch.Tensor] = []
        if labels:
            chosen, others = labels
            numbers = torch.zeros_like(chosen)
            numbers[chosen < config["LB_NOISE_RATIO"]] = (others + 0.5) / config["num_classes"]
            self.draws += [chosen, numbers]
        if config["NOISE_SCALE"]:  # nothing is drawn for no noise
            # the original draws one more, for a layer that does not exist
            self.draws += masks[: piloted_layers(config)]

    def __call__(self, shape, device) -> torch.Tensor:
        full = torch.ones(shape)
        if full.numel():
            draw = self.draws.pop(0)
            batch, slots = (self.file.tensors[f"dn/known_{name}_index"] for name in ("batch", "slot"))
            if len(shape) == 4:
                full[batch, :, slots] = draw
            else:
                full[batch, slots] = draw
        return full


def pilots_of(file) -> Pilots:
    config = file.info["config"]
    piloting = Piloting(piloting_config(config), config["num_classes"], Recorded(file))
    return piloting(targets_of(file), padded_size(file))
