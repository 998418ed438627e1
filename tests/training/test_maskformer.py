"""How MaskFormer trains: published parameter groups, and every parameter learning under its loss."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_files import read_list

from m2f_cli.config import presets as config
from m2f_cli.config.schema import ModelConfig
from m2f_cli.loss import make_criterion
from m2f_cli.model import build
from m2f_cli.model.build import checkpoint_activations
from m2f_cli.structures.targets import Target
from m2f_cli.training.optimizer import settings
from m2f_cli.weights.key_tables import DETECTRON2


@pytest.mark.parametrize(
    ("name", "preset"), [("ade20k_semantic_swin_tiny", "ade20k-swin-t"), ("ade20k_semantic_r50", "ade20k-r50")]
)
def test_groups_are_the_published_ones(name, preset):
    entry = read_list("10_optimiser_maskformer")["models"][name]
    settings_of = config.load(f"maskformer-{preset}")
    with torch.device("meta"):
        model = build(settings_of.model, 150)
    optimizer = settings_of.train.optimizer
    found = {}
    for ours, setting in settings(model, optimizer).items():
        (theirs,), _ = DETECTRON2.find(ours)
        found[theirs] = (setting.multiplier, setting.weight_decay)
    assert found == {theirs: (multiplier, decay) for theirs, _, multiplier, decay in entry["groups"]}
    assert (optimizer.learning_rate, optimizer.clip_norm) == (entry["base_lr"], 0.01)
    theirs, ours = entry["scheduler"], settings_of.train.schedule
    assert (ours.name, ours.power) == ("poly", theirs["poly_power"]) and theirs["name"] == "WarmupPolyLR"
    assert ours.warmup_iterations == theirs["warmup_iters"]
    assert not ours.warmup_iterations or ours.warmup_factor == theirs["warmup_factor"]


SMALL = {
    "fpn": {"name": "fpn", "dim": 32, "mask_dim": 16},
    "transformer_fpn": {
        "name": "transformer_fpn",
        "dim": 32,
        "mask_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_dim": 16,
        "dropout": 0.1,
    },
}
PLAIN = {"dim": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 16, "dropout": 0.1}
SWIN = {
    "name": "swin",
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "drop_path": 0.0,
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("preset", "pixel_decoder", "decoder"),
    [
        ("maskformer-ade20k-r50", "fpn", {"name": "plain", "num_queries": 6, **PLAIN}),
        ("maskformer-coco-panoptic-r50", "transformer_fpn", {"name": "plain", "num_queries": 6, **PLAIN}),
        ("maskformer-ade20k-r50-per-pixel", "fpn", {"name": "per_pixel"}),
        ("maskformer-ade20k-r50-per-pixel-plus", "fpn", {"name": "per_pixel_plus", **PLAIN}),
    ],
)
def test_every_parameter_learns(preset, pixel_decoder, decoder, recompute):
    torch.manual_seed(0)
    model_config = ModelConfig(method="maskformer", backbone=SWIN, pixel_decoder=SMALL[pixel_decoder], decoder=decoder)
    model = build(model_config, 3).train()
    if recompute:
        checkpoint_activations(model)
    criterion = make_criterion(3, config.load(preset).train.loss)
    owner_HW = torch.randint(-1, 2, (60, 50)).short()
    targets = [
        Target(torch.tensor([2, 0]), owner_HW=owner_HW),
        Target(torch.zeros(0, dtype=torch.long), owner_HW=torch.full_like(owner_HW, -1)),
    ]
    losses = criterion(model(torch.randn(2, 3, 64, 64)), targets, (64, 64))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or (parameter.dim() > 1 and not parameter.grad.any())
    ]  # biases of keys have none, but for rounding
    assert not silent, silent
