"""Features of a frozen backbone that are kept between epochs: the same losses, fewer passes, and what is refused."""

from __future__ import annotations

import copy
import errno
import os
import signal

import pytest
import torch
from helpers.vits import pmt_config
from safetensors.torch import load as tensors_of
from training.tiny import NETWORK, settings

from m2f_cli.config.schema import Component
from m2f_cli.errors import ConfigError, M2FError
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
    # four steps of four images; one image is computed to know what files look like
    assert asked == 4 * 4 and computed == 4 + 1
    assert len(plain) == 4
    # The batches have the same shapes, so that each image is the same rows of the same products.
    assert cached == plain
    assert len(list((tmp_path / "cache").glob("*.features"))) == 4
    again, computed = losses_of(config_of(network), tmp_path / "again", options(tmp_path / "cache", **frozen))
    assert again == cached and computed == 1  # another run over the same backbone


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_losses(tmp_path):
    whole, _ = losses_of(config_of(), tmp_path / "whole", options(tmp_path / "cache"))

    def stop(step):
        if step.iteration == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    cut, _ = losses_of(config_of(), tmp_path / "cut", options(tmp_path / "other"), Listener(on_step=stop))
    rest, computed = losses_of(config_of(), tmp_path / "cut", options(tmp_path / "other", resume=True, init=None))
    assert cut + rest == whole and computed == 1


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
        [layout] = cache.layouts.values()
        assert read_features(path, layout) is None
        again = cache(backbone, images)
    # alone, and no longer beside another image: the same products of other shapes
    for ours, theirs in zip(again.levels, expected.levels, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert read_features(path, layout) is not None


WRONG = {  # what a stranger may write with a right checksum, by the tensors of a good file
    "none": lambda good: {},
    "fewer": lambda good: {name: x for name, x in good.items() if name != "3"},
    "more": lambda good: {**good, "4": good["3"].clone()},
    "other names": lambda good: {f"x{name}": x for name, x in good.items()},
    "another type": lambda good: {name: x.double() if name == "1" else x for name, x in good.items()},
    "another shape": lambda good: {**good, "1": good["1"][:, :-1].contiguous()},
    "a batch": lambda good: {**good, "1": good["1"].repeat(2, 1, 1)},
    "no shape": lambda good: {**good, "1": torch.tensor(1.0)},
    "channels last": lambda good: {**good, "1 BHWC": good["1"].clone()},
    "maps": lambda good: {"4": torch.zeros(1, 3, 16, 16), "8": torch.zeros(1, 3, 8, 8)},
    "another grid": lambda good: {**good, "tokens": torch.tensor([5, 2, 8])},
    "a short grid": lambda good: {**good, "tokens": torch.tensor([5])},
    "a number": lambda good: {**good, "tokens": torch.tensor(5)},
    "NaN": lambda good: {**good, "1": torch.full_like(good["1"], float("nan"))},
    "infinity": lambda good: {**good, "3": torch.full_like(good["3"], float("inf"))},
    "large": lambda good: {**good, "1": torch.zeros(1, 10_000, 36)},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_file_that_a_stranger_wrote_is_computed_again(tmp_path, change):
    backbone, images = small_backbone(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = FeatureCache(tmp_path, PMT.backbone)(backbone, images)
        for path in tmp_path.glob("*.features"):
            write_features(path, change(tensors_of(path.read_bytes()[32:])))
        again = FeatureCache(tmp_path, PMT.backbone)(backbone, images)
    assert (again.num_prefix, again.grid) == (expected.num_prefix, expected.grid)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.levels, expected.levels, strict=True))


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself", "link to a device", "link to a file"])
def test_what_is_no_file_is_computed_again_and_no_link_is_followed(tmp_path, kind):
    backbone, images = small_backbone(), torch.randn(1, 3, 64, 64)
    folder, outside = tmp_path / "cache", tmp_path / "outside"
    outside.write_bytes(b"mine")
    with torch.no_grad():
        expected = FeatureCache(folder, PMT.backbone)(backbone, images)
        [path] = folder.glob("*.features")
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            target = {"link to itself": path, "link to a device": "/dev/zero", "link to a file": outside}
            path.symlink_to(target[kind])
        if kind == "folder":
            with pytest.raises(M2FError, match=f"{path.name}"):
                FeatureCache(folder, PMT.backbone)(backbone, images)
            return
        again = FeatureCache(folder, PMT.backbone)(backbone, images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.levels, expected.levels, strict=True))
    assert path.is_file() and not path.is_symlink() and outside.read_bytes() == b"mine"


def test_a_folder_that_is_a_file_and_a_full_disk_are_one_sentence(tmp_path, monkeypatch):
    backbone, images = small_backbone(), torch.randn(1, 3, 64, 64)
    (tmp_path / "file").write_bytes(b"")
    with torch.no_grad(), pytest.raises(M2FError, match="Cannot write .*file"):
        FeatureCache(tmp_path / "file", PMT.backbone)(backbone, images)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with torch.no_grad(), pytest.raises(M2FError, match="No space left"):
        FeatureCache(tmp_path / "full", PMT.backbone)(backbone, images)
    assert not list((tmp_path / "full").iterdir())


def test_a_flipped_image_has_features_of_its_own(tmp_path):
    """Also where a step of the augmentation was taken for one that is not random."""
    backbone, images = small_backbone(), torch.randn(1, 3, 64, 64)
    cache = FeatureCache(tmp_path, PMT.backbone)
    with torch.no_grad():
        for _ in range(2):
            for view in (images, images.flip(-1)):
                ours, theirs = cache(backbone, view), backbone(view)
                assert all(torch.equal(one, other) for one, other in zip(ours.levels, theirs.levels, strict=True))
    assert len(list(tmp_path.glob("*.features"))) == 2


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


def test_a_file_in_place_of_the_folder_is_refused_before_a_run_begins(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--cache-features .*cache is no folder"):
        run.start(config_of(PMT), tmp_path / "run", options(tmp_path / "cache"))
    assert not (tmp_path / "run" / "config.yaml").exists()


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
