"""Training with pilots: the published losses and gradients from end to end, and what a run does with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.golden_files import for_files, has
from helpers.pilots import Recorded, decoder_of, features_of, loss_config, padded_size, piloting_config, targets_of
from loss.cases import Streams
from loss.test_golden import recorded_draws
from torch import nn
from torch.testing import assert_close
from training import piloting_worker
from training.tiny import settings

from m2f_cli.config.schema import Config, ModelConfig
from m2f_cli.data.loader import Batch
from m2f_cli.errors import ConfigError
from m2f_cli.inference.load_network import load_model
from m2f_cli.loss import Criterion
from m2f_cli.model.pilots import Piloting
from m2f_cli.structures.predictions import PixelFeatures
from m2f_cli.training import run
from m2f_cli.training.loop import losses_of
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")


class DecoderAlone(nn.Module):
    """A network whose images are of no account: its features are given."""

    def __init__(self, decoder: nn.Module, features: PixelFeatures):
        super().__init__()
        self.decoder, self.features = decoder, features

    def forward(self, images_BCHW, pilots=None):
        return self.decoder(self.features, pilots)


def in_float64(features: PixelFeatures) -> PixelFeatures:
    return PixelFeatures(features.mask_features_BCHW.double(), [level.double() for level in features.levels])


def golden_parts(file, **piloting):
    """What `losses_of` needs, with the recorded random numbers.

    The decoder computes in float64. In float32 the rounding of a processor decides which of two points is the more
    uncertain one, where their logits differ in the last bit only.
    """
    settings_, counts = file.info["config"], file.info["masks_per_image"]
    decoder, features = decoder_of(file).double(), in_float64(features_of(file))
    for tensor in (features.mask_features_BCHW, *features.levels):
        tensor.requires_grad_()
    rand = Streams([])
    if file.info["groups"]:
        rand = recorded_draws(file, counts, file.info["groups"], settings_["decoder_layers"] + 1)
    loss = loss_config(settings_)
    config_ = piloting_config(settings_).model_copy(update=piloting)
    parts = SimpleNamespace(
        config=SimpleNamespace(precision="fp32"),
        device=torch.device("cpu"),
        network=DecoderAlone(decoder, features),
        criterion=Criterion(settings_["num_classes"], loss, rand=rand),
        piloting=Piloting(config_, settings_["num_classes"], Recorded(file)),
        draws=rand,
    )
    targets = targets_of(file)
    return parts, Batch(torch.zeros(len(targets), 3, *padded_size(file)), targets, [""] * len(targets))


@for_files("09", where=lambda info: has(info, "grad/"))
def test_losses_and_gradients_as_published(golden_file):
    file = golden_file
    parts, batch = golden_parts(file)
    losses = losses_of(parts, batch, None)
    assert not parts.piloting.rand.draws and parts.draws.used_up, "left-over draws"
    assert losses.keys() == file.info["losses"].keys()
    weights = file.info["config"]["cost/loss weights"]
    weights = {"ce": weights["class"], **weights}
    for key, loss in losses.items():
        published = weights[key.split("_")[1]] * file.info["losses"][key]
        assert_close(loss.item(), published, atol=2e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    sum(losses.values()).backward()
    decoder, features = parts.network.decoder, parts.network.features
    found = {
        "in/mask_features": features.mask_features_BCHW,
        "weights/label_enc.weight": decoder.label_embed.weight,
        "weights/query_feat.weight": decoder.query_feat.weight,
        **{f"in/multi_scale.{i}": level for i, level in enumerate(features.levels)},
    }
    for key, tensor in found.items():
        published = file.tensors[f"grad/{key}"]
        ours = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad  # two layers never see the third level
        ours = ours.float()
        allowed = 2e-5 * float(published.abs().max())
        assert_close(ours, published, atol=allowed, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    assert decoder.query_feat.weight.grad.abs().max() > 0.01


@for_files("09", where=lambda info: has(info, "grad/") and info["groups"])
def test_without_the_class_loss_nothing_else_changes(golden_file):
    """DN_NO_LB: the pilots answer for masks only."""
    whole, masks_only = (losses_of(*golden_parts(golden_file, class_loss=given), None) for given in (True, False))
    dropped = {name for name in whole if name.startswith("loss_ce_dn")}
    assert len(dropped) == golden_file.info["config"]["decoder_layers"] + 1
    assert masks_only.keys() == whole.keys() - dropped
    for name, loss in masks_only.items():
        assert torch.equal(loss, whole[name])


# --- runs -------------------------------------------------------------------------------------------------------------


def piloted(*overrides: str, method: str = "mask2former", **piloting) -> Config:
    plain = settings(*overrides)
    tree = {**plain.model.model_dump(), "method": method, "piloting": {"groups": 2, "mask_noise": 0.1, **piloting}}
    return plain.model_copy(update={"model": ModelConfig.model_validate(tree)})


def run_of(folder: Path, tree: Config, **options) -> tuple[dict, list]:
    steps = []
    run.start(tree, folder, TrainOptions(**{**vars(OPTIONS), **options}), Listener(on_step=steps.append))
    return load_model(folder / "checkpoints" / "last.safetensors").model.state_dict(), steps


def test_a_run_has_losses_of_its_pilots_and_a_plain_one_has_not(tmp_path):
    weights, steps = run_of(tmp_path / "piloted", piloted(method="mpformer"))
    assert set(steps[0].losses) == {f"loss_{kind}{dn}" for kind in ("ce", "mask", "dice") for dn in ("", "_dn")}
    assert "decoder.query_embed.weight" not in weights
    _, steps = run_of(tmp_path / "plain", settings())
    assert set(steps[0].losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_lower_precision_accumulation_and_recomputed_activations(tmp_path):
    tree = piloted("train.precision=bf16", "train.iterations=2", noise_per_head=True)
    _, steps = run_of(tmp_path / "run", tree, micro_batch=1, checkpoint_activations=True)
    assert len(steps) == 2 and not any(step.skipped for step in steps) and steps[0].losses["loss_dice_dn"] > 0


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_noise(tmp_path):
    tree = piloted()
    straight, _ = run_of(tmp_path / "straight", tree)

    class Stop(Exception):
        pass

    def on_step(step):
        if step.iteration == 3:  # checkpoint_every is 3: the checkpoint of iteration 3 is there
            raise Stop

    with pytest.raises(Stop):
        run.start(tree, tmp_path / "cut", OPTIONS, Listener(on_step=on_step))
    resumed, _ = run_of(tmp_path / "cut", tree, resume=True)
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def test_an_mpformer_without_piloting_is_not_trained(tmp_path):
    plain = settings()
    tree = {**plain.model.model_dump(), "method": "mpformer"}
    with pytest.raises(ConfigError, match="model.piloting"):
        run.start(plain.model_copy(update={"model": ModelConfig.model_validate(tree)}), tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_one_without_targets(tmp_path):
    """They report the same losses and end with the same averaged gradients: nobody waits for anybody."""
    command = [sys.executable, Path(piloting_worker.__file__)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", tmp_path / "store", tmp_path / f"{rank}.pt"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["losses"] == other["losses"] and one["losses"]["loss_mask_dn"] > 0
    assert one["gradient"].abs().max() > 0 and torch.equal(one["gradient"], other["gradient"])
