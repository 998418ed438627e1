"""Learning rates by depth and warm-up in stages, against the published tables (fixtures v05 and v06)."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.golden_files import read_list
from helpers.parts import tiny_config
from pydantic import ValidationError
from torch import nn

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import LayerDecayConfig, OptimizerConfig, ScheduleConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.training.optimizer import block_depths, follow_schedule, freeze, make_optimizer, settings
from m2f_cli.training.schedule import factor

ENCODER = "network.encoder.backbone."
CASES = [
    "dinov2_large_coco_panoptic",
    "dinov2_small_coco_panoptic_2x",
    "dinov3_large_coco_panoptic",
    "dinov3_large_ade20k_semantic",
]
WHOLE = {"dinov3_large_coco_panoptic": 4}  # llrd_l2_enabled is false, and four blocks carry queries


def block_of(name: str) -> int | None:
    """Return the number of the block in a parameter's name, by the contract of `lr_depths`."""
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(block[1]) if block else None if name.startswith("norm.") else -1


class Encoder(nn.Module):
    """Part of a network whose parameters are all pretrained."""

    def lr_depths(self):
        return {name: block_of(name) for name, _ in self.named_parameters()}


def network_of(parameters) -> nn.Module:
    """Return a network of these (name, shape, …), without memory, whose encoder knows its depths."""
    root = nn.Module()
    for name, shape, *_ in parameters:
        module = root
        *parents, last = name.split(".")
        for i, parent in enumerate(parents):
            if not hasattr(module, parent):
                is_encoder = ".".join(parents[: i + 1]) + "." == ENCODER
                module.add_module(parent, Encoder() if is_encoder else nn.Module())
            module = getattr(module, parent)
        module.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta")))
    return root


def optimizer_config(**changes) -> OptimizerConfig:
    same = {"weight_decay": 0.05, "norm_weight_decay": 0.05, "embedding_weight_decay": 0.05}
    return OptimizerConfig(**{"learning_rate": 1e-4, "backbone_multiplier": 1.0, "clip_norm": 0.01, **same, **changes})


@pytest.fixture(scope="module")
def cases():
    return read_list("v05_optimiser_eomt")["cases"]


def test_every_published_configuration_is_a_case(cases):
    assert sorted(cases) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_learning_rate_and_decay_of_each_parameter_are_the_published_ones(cases, name):
    case = cases[name]
    decay = LayerDecayConfig(rate=case["settings"]["llrd"], whole_blocks=WHOLE.get(name, 0))
    config = optimizer_config(learning_rate=case["settings"]["lr"], layer_decay=decay)
    found = settings(network_of(case["parameters"]), config, in_stages=True)
    assert found.keys() == {each[0] for each in case["parameters"]}
    for parameter, _, group, rate, weight_decay in case["parameters"]:
        setting = found[parameter]
        # Powers of 0.8 in another order of multiplications: a few roundings of fp64.
        assert setting.multiplier * config.learning_rate == pytest.approx(rate, rel=1e-14), parameter
        assert setting.weight_decay == weight_decay
        assert setting.is_pretrained == (group == "encoder")


@pytest.mark.parametrize("name", CASES)
def test_both_learning_rates_follow_the_published_course(cases, name):
    stated = cases[name]["settings"]
    heads, encoder = stated["warmup_steps"]
    schedule = ScheduleConfig(
        name="poly",
        power=stated["poly_power"],
        warmup_iterations=heads,
        warmup_factor=0.0,
        warmup_first=True,
        backbone_warmup_iterations=encoder,
    )
    for step, new, pretrained in cases[name]["curve"]:
        shares = [factor(step, stated["total_steps"], schedule, is_pretrained=each) for each in (False, True)]
        # Fractions of fp64, the last steps near 0.
        assert shares == pytest.approx([new, pretrained], rel=1e-12, abs=1e-15), step


def test_a_linear_warm_up_goes_over_into_a_cosine_as_published():
    published = read_list("v06_param_names_pmt")["optimiser"]
    schedule = ScheduleConfig(
        name="cosine",
        warmup_iterations=published["warmup_steps"],
        warmup_factor=0.0,
        warmup_first=True,
        end=published["min_lr"] / published["lr"],
    )
    for step, rate in published["curve"]:
        ours = published["lr"] * factor(step, published["total_steps"], schedule)
        assert ours == pytest.approx(rate, rel=1e-9, abs=1e-20), step


def test_vitdet_counts_the_embeddings_as_a_layer_and_decays_the_last_block():
    names = [f"{ENCODER}cls_token", *(f"{ENCODER}blocks.{i}.w" for i in range(12)), f"{ENCODER}norm.w", "head.w"]
    decay = LayerDecayConfig(rate=0.7, last_exponent=1, embeddings="below")
    found = settings(network_of([(name, [1]) for name in names]), optimizer_config(layer_decay=decay))
    multipliers = [setting.multiplier for setting in found.values()]
    # rate^(N - i) for block i of N = 12, rate^(N + 1) for the embeddings.
    assert dict(zip(found, multipliers, strict=True)) == pytest.approx(
        {
            names[0]: 0.7**13,
            **{f"{ENCODER}blocks.{i}.w": 0.7 ** (12 - i) for i in range(12)},
            f"{ENCODER}norm.w": 1.0,
            "head.w": 1.0,
        }
    )


def test_blocks_of_one_network_in_two_parts_have_their_numbers_in_the_whole():
    whole = nn.ModuleDict(
        {"backbone": Encoder(), "decoder": nn.ModuleDict({"end": Encoder(), "head": nn.Linear(2, 2)})}
    )
    for part, numbers in ((whole["backbone"], "01"), (whole["decoder"]["end"], "23")):
        part.blocks = nn.ModuleDict({number: nn.Linear(2, 2, bias=False) for number in numbers})
    assert block_depths(whole) == {
        "backbone.blocks.0.weight": 0,
        "backbone.blocks.1.weight": 1,
        "decoder.end.blocks.2.weight": 2,
        "decoder.end.blocks.3.weight": 3,
    }
    found = settings(whole, optimizer_config(layer_decay=LayerDecayConfig(rate=0.5)), in_stages=True)
    assert [setting.multiplier for setting in found.values()] == [0.125, 0.25, 0.5, 1.0, 1.0, 1.0]
    assert [setting.is_pretrained for setting in found.values()] == [True] * 4 + [False] * 2


def test_a_network_without_blocks_has_no_learning_rates_by_depth():
    model = build(tiny_config(), 3)
    with pytest.raises(ConfigError, match="needs a network of numbered blocks"):
        settings(model, optimizer_config(layer_decay=LayerDecayConfig(rate=0.8)))


def test_the_groups_of_an_optimiser_follow_their_own_course():
    model = build(tiny_config(), 3)
    train = configuration.load(
        "tiny",
        [
            "train.iterations=100",
            "train.schedule={name: poly, warmup_first: true, warmup_factor: 0, warmup_iterations: 10, "
            "backbone_warmup_iterations: 20}",
        ],
    ).train
    optimizer = make_optimizer(model, train.optimizer, in_stages=True)
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    for iteration, new, pretrained in ((0, 0, 0), (5, 0.5, 0), (10, 1, 0), (20, (8 / 9) ** 0.9, 0.5), (30, None, 1)):
        rate = follow_schedule(optimizer, iteration, train)
        assert new is None or rate == pytest.approx(train.optimizer.learning_rate * new)
        for group in optimizer.param_groups:
            of_backbone = {id(parameter) in backbone for parameter in group["params"]}
            assert len(of_backbone) == 1
            share = pretrained if of_backbone.pop() else rate / train.optimizer.learning_rate
            assert group["lr"] == pytest.approx(train.optimizer.learning_rate * share * group["multiplier"])


def test_without_stages_the_groups_are_those_of_before():
    model, config = build(tiny_config(), 3), optimizer_config()
    assert len(make_optimizer(model, config).param_groups) == 1
    assert len(make_optimizer(model, config, in_stages=True).param_groups) == 2


def test_a_warm_up_in_stages_precedes_the_course():
    with pytest.raises(ValidationError, match="needs warmup_first: true"):
        ScheduleConfig(name="poly", warmup_iterations=5, backbone_warmup_iterations=5)


def test_a_frozen_backbone_has_no_gradients_and_no_moments():
    model = build(tiny_config(), 3).train()
    freeze(model, ("backbone",))
    optimizer = make_optimizer(model, optimizer_config())
    prediction = model(torch.rand(1, 3, 64, 64))
    features = model.backbone(torch.rand(1, 3, 64, 64))
    assert not any(feature.requires_grad for feature in features.values())
    sum(layer.class_logits_BQK.sum() + layer.mask_embeds_BQC.sum() for layer in prediction.layers).backward()
    optimizer.step()
    frozen = set(model.backbone.parameters())
    assert all(parameter.grad is None for parameter in frozen)
    assert optimizer.state and not frozen & set(optimizer.state)
    assert not frozen & {parameter for group in optimizer.param_groups for parameter in group["params"]}
