"""Parameter groups and schedules against golden 10, name by name and point by point."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.golden_files import read_list
from helpers.parts import randomise, tiny_config
from torch import nn

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import OptimizerConfig, ScheduleConfig
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.training.optimizer import (
    clip_gradients,
    freeze,
    frozen_norms,
    lay_out_moments,
    make_optimizer,
    set_learning_rate,
    settings,
    train_mode,
    trainable_table,
)
from m2f_cli.training.schedule import factor
from m2f_cli.weights.key_tables import DETECTRON2

PUBLISHED = OptimizerConfig(
    learning_rate=1e-4,
    weight_decay=0.05,
    norm_weight_decay=0.0,
    embedding_weight_decay=0.0,
    backbone_multiplier=0.1,
    clip_norm=0.01,
)
PRESETS = {"swin_tiny": "ade20k-swin-t-paper", "R50": "ade20k-r50-paper"}


@pytest.mark.parametrize("method", ["mask2former", "mpformer"])
def test_groups_are_the_published_ones(method):
    checked = 0
    for name, entry in read_list(f"10_optimiser_{method}")["models"].items():
        preset = next((preset for key, preset in PRESETS.items() if key in name or key.lower() in name.lower()), None)
        if preset is None:
            continue
        model_config = configuration.load(preset).model
        if method == "mpformer":
            decoder = model_config.decoder.model_copy(update={"piloted": True})
            model_config = model_config.model_copy(update={"method": "mpformer", "decoder": decoder})
        with torch.device("meta"):
            model = build(model_config, 150)
        expected = {theirs: (multiplier, decay) for theirs, _, multiplier, decay in entry["groups"]}
        found = {}
        for ours, setting in settings(model, PUBLISHED).items():
            (theirs,), _ = DETECTRON2.find(ours)
            found[theirs] = (setting.multiplier, setting.weight_decay)
        assert found == expected
        checked += 1
    assert checked, "the fixture has no model that m2f builds"


@pytest.mark.parametrize("method", ["mask2former", "maskformer", "mpformer"])
def test_learning_rates_are_the_published_ones(method):
    curves = read_list(f"10_optimiser_{method}")["lr_curves"]
    assert curves
    for curve in curves.values():
        theirs = curve["scheduler"]
        assert theirs["name"] in ("WarmupPolyLR", "WarmupMultiStepLR")
        schedule = ScheduleConfig(
            name="poly" if theirs["name"] == "WarmupPolyLR" else "step",
            power=theirs.get("poly_power", 0.9),
            steps=theirs["steps"],
            gamma=theirs["gamma"],
            warmup_iterations=theirs["warmup_iters"],
            warmup_factor=theirs["warmup_factor"],
            floor=theirs["poly_constant_ending"],
        )
        for iteration, head, backbone in curve["points"]:
            rate = theirs["base_lr"] * factor(iteration, theirs["max_iter"], schedule)
            # the same formula in double precision
            assert rate == pytest.approx(head, rel=1e-12, abs=1e-20)
            assert rate * theirs["backbone_multiplier"] == pytest.approx(backbone, rel=1e-12, abs=1e-20)


def test_cosine_and_constant():
    cosine = ScheduleConfig(name="cosine", warmup_iterations=2, warmup_factor=0.5)
    assert [factor(i, 4, cosine) for i in (0, 2, 4)] == [0.5, pytest.approx(0.5), pytest.approx(0.0)]
    assert factor(99, 100, ScheduleConfig(name="constant")) == 1.0


def test_learning_rate_reaches_the_groups():
    model = build(tiny_config(), 3)
    optimizer = make_optimizer(model, PUBLISHED)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_learning_rate(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}


def test_frozen_parts_have_no_trainable_parameters():
    model = build(tiny_config(), 3)
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert freeze(model, ("backbone",)) == backbone
    table = {part: (trainable, everything) for part, trainable, everything in trainable_table(model)}
    assert table["backbone"] == (0, backbone) and table["decoder"][0] == table["decoder"][1] > 0
    assert not any(name.startswith("backbone") for name in settings(model, PUBLISHED))
    with pytest.raises(ConfigError, match="'backbon'.*Did you mean backbone"):
        freeze(model, ("backbon",))
    freeze(model, ("pixel_decoder", "decoder"))
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(model, PUBLISHED)


def test_frozen_batch_norms_are_found():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    freeze(model, ("0",))
    assert list(frozen_norms(model, ("0",))) == [model[0]]
    train_mode(model, ("0",))
    assert [norm.training for norm in model] == [False, True]


def test_clipping_is_global():
    model = randomise(nn.Linear(20, 30))
    model(torch.ones(1, 20)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = clip_gradients(model, 0.01)
    expected = math.sqrt(sum(float(g.double().square().sum()) for g in before.values()))
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    after = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    assert after == pytest.approx(0.01, rel=1e-4)  # PyTorch adds 1e-6 to the norm that it divides by
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad / before[name], torch.full_like(p.grad, 0.01 / expected), rtol=2e-4, atol=0)
    assert clip_gradients(model, 0.0) > 0


def test_fixed_affine_batch_norms_move_their_statistics_alone():
    """MMSegmentation's norm: what is trained is everything but scale and shift; frozen, nothing of it moves."""
    resnet = {"name": "resnet", "depth": 50, "stem": "basic", "norm": "fixed_affine_bn", "stem_channels": 8, "width": 8}
    model = build(tiny_config(**resnet), 3)
    norm = model.backbone.stem[0].norm
    assert not norm.weight.requires_grad and not norm.bias.requires_grad
    trained = settings(model, PUBLISHED)
    assert "backbone.stem.0.conv.weight" in trained
    assert not [name for name in trained if name.startswith("backbone.") and ".norm." in name]
    for frozen, moves in (((), True), (("backbone",), False)):
        if frozen:
            freeze(model, frozen)
        train_mode(model, frozen)
        before = {name: buffer.clone() for name, buffer in norm.named_buffers()} | {"weight": norm.weight.clone()}
        model.backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(norm.running_mean, before["running_mean"]) is not moves
        assert torch.equal(norm.weight, before["weight"])
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model).backbone.stem[0].norm
    assert isinstance(synchronised, nn.SyncBatchNorm) and not synchronised.weight.requires_grad
    train_mode(model, ("backbone",))
    assert not synchronised.training


def prediction_of(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images_BCHW).render()


@pytest.mark.parametrize("ours", [True, False], ids=["optimiser of training", "another fused optimiser"])
def test_a_prediction_after_a_step_is_that_of_the_new_weights(ours):
    """PyTorch counts no change by a fused optimiser; a copy of the network has no cached forms of weights."""
    torch.manual_seed(0)
    model = build(configuration.load("tiny", ["model.backbone.depth=18", "model.backbone.norm=frozen_bn"]).model, 5)
    images_BCHW = torch.randn(2, 3, 128, 192)
    optimizer = make_optimizer(model, PUBLISHED) if ours else torch.optim.AdamW(model.parameters(), fused=True)
    before = prediction_of(model, images_BCHW)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if not ours:  # the forward pass of a training step comes first
        model.train()(images_BCHW).render().mean().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    after = prediction_of(model, images_BCHW)
    assert not torch.equal(after, before)
    assert torch.equal(after, prediction_of(copy.deepcopy(model), images_BCHW))


def test_moments_that_were_saved_in_another_layout_belong_to_the_same_weights():
    """A run of a GPU goes on with a CPU, whose convolutions lie in memory as its kernels want them."""
    torch.manual_seed(0)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = torch.nn.Conv2d(3, 4, 3)
        first = torch.optim.AdamW(model.parameters(), fused=True)
        with torch.no_grad():
            model.weight.copy_(torch.arange(108.0).reshape(4, 3, 3, 3) / 108)
            model.bias.zero_()
        images = torch.arange(300.0).reshape(1, 3, 10, 10) / 300
        model(images).square().mean().backward()
        first.step()
        saved = first.state_dict()
        model = model.to(memory_format=memory_format)
        second = torch.optim.AdamW(model.parameters(), fused=True)
        second.load_state_dict(saved)
        lay_out_moments(second)
        model.zero_grad()
        model(images).mean().backward()
        second.step()
        results.append(model.weight.detach().contiguous())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
