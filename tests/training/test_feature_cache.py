"""Features of a frozen backbone that are kept between epochs: the same losses, fewer passes, and what is refused."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from helpers.vits import pmt_config
from training.tiny import NETWORK, settings

from m2f_cli.config.schema import Component
from m2f_cli.errors import ConfigError
from m2f_cli.model import build
from m2f_cli.structures.predictions import Tokens
from m2f_cli.training import run
from m2f_cli.training.dry_run import dry_run
from m2f_cli.training.feature_cache import FeatureCache, read_features, write_features
from m2f_cli.training.optimizer import freeze
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

STILL = "train.augment=[{name: resize_choice, short_edges: [64], max_edge: 96}]"
PMT = pmt_config()


def config_of(network=PMT, *overrides):
    made = settings("test.size_divisor=16", STILL, "data.scenes.train=4", "train.iterations=4", *overrides)
    return made.model_copy(update={"model": network})


def options(folder=None, **changes):
    return TrainOptions(**{"device": "cpu", "init": "random", "cache_features": folder, **changes})


def losses_of(config, folder, given, listener=None):
    """Losses of each step, and the number of times that the backbone was asked for an image."""
    losses, images = [], [0]

    def count(made):
        backbone = made.parts.model.backbone
        whole = type(backbone).forward

        def forward(images_BCHW):
            images[0] += len(images_BCHW) if made.parts.model.training else 0
            return whole(backbone, images_BCHW)

        backbone.forward = forward

    listener = listener or Listener()
    then = listener.on_step
    listener.on_start = count
    listener.on_step = lambda step: (losses.append(step.losses), then(step))
    run.start(config, folder, given, listener)
    return losses, images[0]


@pytest.mark.parametrize("network", [PMT, NETWORK], ids=["tokens", "maps"])
def test_losses_are_the_same_and_each_image_is_computed_once(tmp_path, network):
    frozen = {} if network is PMT else {"freeze": ("backbone",)}
    plain, asked = losses_of(config_of(network), tmp_path / "plain", options(**frozen))
    cached, computed = losses_of(config_of(network), tmp_path / "cached", options(tmp_path / "cache", **frozen))
    assert asked == 4 * 4 and computed == 4  # four steps of four images
    assert len(plain) == 4
    # The batches have the same shapes, so that each image is the same rows of the same products.
    assert cached == plain
    assert len(list((tmp_path / "cache").glob("*.features"))) == 4
    again, computed = losses_of(config_of(network), tmp_path / "again", options(tmp_path / "cache", **frozen))
    assert again == cached and computed == 0  # another run over the same backbone


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_losses(tmp_path):
    whole, _ = losses_of(config_of(), tmp_path / "whole", options(tmp_path / "cache"))

    def stop(step):
        if step.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    cut, _ = losses_of(config_of(), tmp_path / "cut", options(tmp_path / "other"), Listener(on_step=stop))
    rest, computed = losses_of(config_of(), tmp_path / "cut", options(tmp_path / "other", resume=True, init=None))
    assert cut + rest == whole and computed == 0


def small_backbone(**changes):
    torch.manual_seed(0)
    return build(pmt_config(**changes), 3).backbone


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_read_as_they_were_computed(tmp_path, precision):
    backbone, images = small_backbone(), torch.randn(3, 3, 64, 32)
    cache = FeatureCache(tmp_path, PMT.backbone)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected, computed, read = backbone(images), cache(backbone, images), cache(backbone, images)
    assert isinstance(read, Tokens) and (read.num_prefix, read.grid) == (expected.num_prefix, expected.grid) == (
        5,
        (4, 2),
    )
    for levels in (computed.levels, read.levels):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(levels, expected.levels, strict=True))


def test_a_file_is_for_one_image_one_set_of_weights_one_backbone_and_one_precision(tmp_path):
    images = torch.randn(1, 3, 64, 64)
    files = lambda: len(list(tmp_path.glob("*.features")))  # noqa: E731
    with torch.no_grad():
        FeatureCache(tmp_path, PMT.backbone)(small_backbone(), images)
        FeatureCache(tmp_path, PMT.backbone)(small_backbone(), images.clone())
        assert files() == 1
        FeatureCache(tmp_path, PMT.backbone)(small_backbone(), images + 1e-3)
        assert files() == 2
        other = small_backbone()
        other.net.blocks[3].mlp.fc2.bias += 1e-3
        FeatureCache(tmp_path, PMT.backbone)(other, images)
        assert files() == 3
        norm = Component(**{**PMT.backbone.model_dump(), "norm": False})
        FeatureCache(tmp_path, norm)(small_backbone(norm=False), images)
        assert files() == 4
        with torch.autocast("cpu", torch.bfloat16):
            FeatureCache(tmp_path, PMT.backbone)(small_backbone(), images)
        assert files() == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "other"])
def test_a_broken_file_is_computed_again(tmp_path, damage):
    backbone, images = small_backbone(), torch.randn(2, 3, 64, 64)
    cache = FeatureCache(tmp_path, PMT.backbone)
    with torch.no_grad():
        expected = cache(backbone, images)
        path = sorted(tmp_path.glob("*.features"))[0]
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes({"cut": content[:-9], "empty": b"", "bit": content, "other": b"x" * 200}[damage])
        assert read_features(path) is None
        again = cache(backbone, images)
    # alone, and no longer beside another image: the same products of other shapes
    for ours, theirs in zip(again.levels, expected.levels, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert read_features(path) is not None


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.features"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_features(path, {"0": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []


# --- the frozen backbone ----------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_in_evaluation_mode_and_keeps_nothing_for_a_gradient():
    model = build(NETWORK, 3)
    freeze(model, ("backbone",))
    model.train()
    assert model.decoder.training and not any(module.training for module in model.backbone.modules())
    features = model.features(torch.randn(1, 3, 64, 64, requires_grad=True))
    assert not any(level.requires_grad for level in features.values())
    again = model.features(torch.randn(1, 3, 64, 64))
    assert features.keys() == again.keys()
    half = build(NETWORK, 3)
    freeze(half, ("backbone.stages.0",))
    assert half.train().backbone.training


def test_stochastic_depth_does_not_move_the_features_of_a_frozen_backbone():
    model = build(NETWORK, 3)  # with drop_path
    freeze(model, ("backbone",))
    images = torch.randn(2, 3, 64, 64)
    one, other = (copy.deepcopy(model.train()).features(images) for _ in range(2))
    assert all(torch.equal(level, other[stride]) for stride, level in one.items())


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_backbone_that_is_trained_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a backbone that never changes; this one is trained") as caught:
        run.start(config_of(NETWORK), tmp_path / "run", options(tmp_path / "cache"))
    assert "--freeze backbone" in caught.value.hint
    lora = {**NETWORK.model_dump(exclude_none=True)}
    lora["backbone"]["lora"] = {"rank": 2}
    with pytest.raises(ConfigError, match="this one is trained. LoRA trains it"):
        run.start(config_of(type(NETWORK).model_validate(lora)), tmp_path / "run", options(tmp_path / "cache"))


def test_a_random_augmentation_is_refused_with_its_steps(tmp_path):
    augment = (
        "train.augment=[{name: resize_choice, short_edges: [48, 64], max_edge: 96}, {name: color_jitter,"
        " brightness: 32, contrast: [0.5, 1.5], saturation: [0.5, 1.5], hue: 18},"
        " {name: crop, height: 64, width: 64, category_max_area: 1.0}, {name: flip, p: 0.5}, {name: drop_vanished}]"
    )
    with pytest.raises(
        ConfigError, match=r"steps of train\.augment are random: resize_choice, color_jitter, crop, flip\. "
    ):
        run.start(config_of(PMT, augment), tmp_path / "run", options(tmp_path / "cache"))


def test_steps_that_draw_but_change_nothing_are_not_random(tmp_path):
    augment = "train.augment=[{name: crop, height: 64, width: 96, category_max_area: 1.0}, {name: flip, p: 0.0}]"
    losses, _ = losses_of(config_of(PMT, augment), tmp_path / "run", options(tmp_path / "cache"))
    assert len(losses) == 4


def test_a_dry_run_writes_no_features(tmp_path):
    dry_run(config_of(), tmp_path / "run", options(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
