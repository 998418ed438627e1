"""Help for tests of MP-Former: the cases of golden file 09 as decoders, pilots and features of ours."""

from __future__ import annotations

import torch
from parts import load_published, weights_of

from m2f_cli.config import PilotingConfig
from m2f_cli.model.decoders.masked import MaskedDecoder
from m2f_cli.model.piloting import Piloting, Pilots
from m2f_cli.types import PixelFeatures, Target

CASES = [
    "09a_mpformer_published_no_noise", "09b_mpformer_point_noise_two_groups",
    "09c_mpformer_first_three_layers_empty_image", "09d_mpformer_noise_per_head", "09e_mpformer_no_targets",
    "09f_mpformer_dynamic_groups",
]
PADDED = (96, 128)


def piloting_config(config: dict) -> PilotingConfig:
    """The settings of a file in our names (facts 6.6)."""
    count = config["NUM_DN (scalar)"]
    return PilotingConfig(
        **({"groups": count} if count < 100 else {"budget": count}),
        mask_noise=config["NOISE_SCALE"], label_noise=max(0.0, config["LB_NOISE_RATIO"]),
        noise_per_head=config["HEAD_DN"], layers="all" if config["ALL_LY_DN"] else 4,
    )


def decoder_of(file) -> MaskedDecoder:
    config = file.info["config"]
    decoder = MaskedDecoder(
        config["num_classes"], config["in_channels"], config["mask_dim"], config["hidden_dim"], config["num_queries"],
        config["decoder_layers"], config["heads"], config["dim_feedforward"], piloted=True,
    )
    return load_published(decoder, "decoder", weights_of(file.tensors))


def features_of(file) -> PixelFeatures:
    tensors = file.tensors
    return PixelFeatures(tensors["in/mask_features"], [tensors[f"in/multi_scale.{i}"] for i in range(3)])


def targets_of(file) -> list[Target]:
    return [Target(file.tensors[f"in/target.{b}.labels"], file.tensors[f"in/target.{b}.masks"])
            for b in range(len(file.info["masks_per_image"]))]


class Recorded:
    """A `Rand` that gives the recorded draws, which are for used slots only, in the order in which we ask."""

    def __init__(self, file):
        self.file, tensors, config = file, file.tensors, file.info["config"]
        named = [(entry["use"], tensors[f"rng/{entry['index']:03}"]) for entry in file.info["rng"]]
        labels = [draw for use, draw in named if use.startswith("label noise")]
        masks = [draw for use, draw in named if use.startswith("mask flip")]
        self.draws: list[torch.Tensor] = []
        if labels:
            chosen, others = labels
            numbers = torch.zeros_like(chosen)
            numbers[chosen < config["LB_NOISE_RATIO"]] = (others + 0.5) / config["num_classes"]
            self.draws += [chosen, numbers]
        if config["NOISE_SCALE"]:  # nothing is drawn for no noise
            piloted = config["decoder_layers"] if config["ALL_LY_DN"] else 4
            self.draws += masks[:piloted]  # the original draws one more, for a layer that does not exist

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
    return piloting(targets_of(file), PADDED)
