"""Runs with LoRA or frozen parts: what their checkpoints store, how they are loaded, and that they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from helpers.vits import DINOV2, DINOV3, TINY, eomt_config, pmt_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training.tiny import NETWORK, settings

from m2f_cli import weights
from m2f_cli.config.schema import ModelConfig
from m2f_cli.errors import ConfigError, WeightsError
from m2f_cli.export.base import export
from m2f_cli.inference.load import ModelOptions, open_model
from m2f_cli.inference.load_network import load_model
from m2f_cli.training import run
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

LORA = {"rank": 2, "targets": ["q", "v", "proj", "mlp"]}
QKV = "backbone.net.blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of a tiny DINOv2 with all numbers, as timm reads it; positions fit 64 pixels."""
    import timm

    torch.manual_seed(7)
    net = timm.create_model(DINOV2, num_classes=0, img_size=64, patch_size=16, **TINY)
    path = tmp_path_factory.mktemp("weights") / "dinov2.safetensors"
    save_file(net.state_dict(), path)
    return path


def config_of(pretrained, network=None, **of_backbone):
    """Mask2Former over a tiny ViT, to be trained for six steps."""
    tree = (network or NETWORK).model_dump(exclude_none=True)
    vit = {"name": "vit", "model": DINOV2, "img_size": 64, "dim": 16, **TINY}
    own = tree["backbone"] if network else vit
    tree["backbone"] = {**own, "pretrained": None if pretrained is None else str(pretrained), **of_backbone}
    base = settings("test.size_divisor=16", "train.optimizer.learning_rate=0.01")
    return base.model_copy(update={"model": ModelConfig.model_validate(tree)})


def options(**changes):
    return TrainOptions(**{"device": "cpu", **changes})


def checkpoint_of(folder, name="last"):
    return folder / "checkpoints" / f"{name}.safetensors"


def header_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["m2f"])


def probs_of(model):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval().to(memory_format=torch.contiguous_format)(images).render()  # as it is when loaded


def test_a_run_with_lora_stores_what_was_trained_and_loads_over_its_base(tmp_path, pretrained):
    made = []
    config = config_of(pretrained, lora=LORA)
    run.start(config, tmp_path / "run", options(), Listener(on_start=made.append))
    part, trained, everything = made[0].trainable()[0]
    assert part == "backbone" and 0 < trained < everything
    stored, whole = load_file(checkpoint_of(tmp_path / "run")), made[0].parts.model
    assert f"{QKV}.parametrizations.weight.original" not in stored and f"{QKV}.parametrizations.weight.0.A" in stored
    assert "backbone.net.pos_embed" in stored  # resampled where sizes differ, with a machine's rounding
    assert {name for name in whole.state_dict() if name.startswith("decoder.")} <= {*stored}
    base = header_of(checkpoint_of(tmp_path / "run"))["base"]
    assert base["reference"] == str(pretrained) and base["kind"] == "pretrained" and len(base["sha256"]) == 64
    loaded = load_model(tmp_path / "run")
    assert loaded.config.model.backbone.lora is None
    assert torch.equal(probs_of(loaded.model), probs_of(whole))
    assert not torch.equal(
        loaded.model.state_dict()[f"{QKV}.weight"], load_file(pretrained)["blocks.0.attn.qkv.weight"]
    )


def test_an_export_of_such_a_run_has_all_weights_and_needs_no_base(tmp_path, pretrained):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(pretrained.read_bytes())
    run.start(config_of(copy, lora=LORA), tmp_path / "run", options())
    model = open_model(ModelOptions(tmp_path / "run", device="cpu"))
    expected = probs_of(model.model)
    export(model, tmp_path / "whole.safetensors", "safetensors")
    copy.unlink()
    whole = load_model(tmp_path / "whole.safetensors")
    assert torch.equal(probs_of(whole.model), expected)
    assert header_of(tmp_path / "whole.safetensors")["schema_version"] == 1  # older versions read it


def test_a_run_with_lora_from_random_numbers_stores_merged_weights(tmp_path):
    made = []
    config = config_of(None, lora=LORA)
    run.start(config, tmp_path / "run", options(init="random"), Listener(on_start=made.append))
    assert "base" not in header_of(checkpoint_of(tmp_path / "run"))
    assert torch.equal(probs_of(load_model(tmp_path / "run").model), probs_of(made[0].parts.model))


@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, pretrained, ema):
    config = config_of(pretrained, lora=LORA)
    config = config.model_copy(update={"train": config.train.model_copy(update={"ema_decay": ema})})

    def stop(step):
        if step.iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run.start(config, tmp_path / "whole", options())
    run.start(config, tmp_path / "cut", options(), Listener(on_step=stop))
    run.start(config, tmp_path / "cut", options(resume=True))
    one, other = (load_file(checkpoint_of(tmp_path / name)) for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert header_of(checkpoint_of(tmp_path / "whole"))["base"] == header_of(checkpoint_of(tmp_path / "cut"))["base"]


@pytest.mark.slow
def test_a_run_can_start_from_a_run_with_lora_and_be_one_itself(tmp_path, pretrained):
    run.start(config_of(pretrained, lora=LORA), tmp_path / "first", options())
    before = load_model(tmp_path / "first").model.state_dict()
    made = []
    listener = Listener(on_start=lambda r: made.append({k: v.clone() for k, v in r.parts.model.state_dict().items()}))
    config = config_of(None, lora={"rank": 1})
    run.start(config, tmp_path / "second", options(init=str(tmp_path / "first")), listener)
    assert torch.equal(made[0][f"{QKV}.parametrizations.weight.original"], before[f"{QKV}.weight"])
    base = header_of(checkpoint_of(tmp_path / "second"))["base"]
    assert base["kind"] == "init" and base["reference"].startswith(str(tmp_path / "first" / "checkpoints"))
    assert load_model(tmp_path / "second").config.model.backbone.lora is None
    run.start(config_of(None), tmp_path / "third", options(init=str(tmp_path / "second")))  # without LoRA
    assert "base" not in header_of(checkpoint_of(tmp_path / "third"))


# --- frozen parts -----------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_left_out_when_asked_for(tmp_path, pretrained):
    sizes, answers = {}, {}
    for store in (None, "trained"):
        folder = tmp_path / str(store)
        run.start(config_of(pretrained), folder, options(freeze=("backbone",), store=store))
        sizes[store] = {name for name in load_file(checkpoint_of(folder)) if name.startswith("backbone.net.blocks.")}
        answers[store] = probs_of(load_model(folder).model)
    assert sizes[None] and not sizes["trained"]
    assert torch.equal(answers[None], answers["trained"])


def test_the_frozen_encoder_of_pmt_is_left_out_when_asked_for(tmp_path):
    import timm

    torch.manual_seed(7)
    net = timm.create_model(DINOV3, num_classes=0, img_size=64, **TINY)
    save_file(net.state_dict(), tmp_path / "dinov3.safetensors")
    config = config_of(tmp_path / "dinov3.safetensors", pmt_config())
    run.start(config, tmp_path / "run", options(store="trained"))
    stored = load_file(checkpoint_of(tmp_path / "run"))
    assert not [name for name in stored if ".blocks." in name and name.startswith("backbone.")]
    assert torch.equal(
        load_model(tmp_path / "run").model.backbone.net.blocks[0].attn.qkv.weight, net.blocks[0].attn.qkv.weight
    )


@pytest.mark.slow
def test_a_file_of_a_whole_model_is_a_base(tmp_path):
    whole = config_of(None, eomt_config())
    run.start(whole, tmp_path / "first", options(init="random"))
    first = str(tmp_path / "first")
    run.start(whole, tmp_path / "second", options(init=first, freeze=("backbone", "decoder.vit"), store="trained"))
    stored = load_file(checkpoint_of(tmp_path / "second"))
    assert not [name for name in stored if ".blocks." in name]
    assert load_model(tmp_path / "second").model.backbone.net.blocks[0].attn.qkv.weight.isfinite().all()


@pytest.mark.parametrize("changes", [{"freeze": ()}, {"freeze": ("backbone",), "init": "random"}], ids=str)
def test_nothing_to_leave_out_is_refused(tmp_path, pretrained, changes):
    with pytest.raises(ConfigError, match="--store trained leaves out what is frozen .* there is no such tensor"):
        run.start(config_of(pretrained), tmp_path / "run", options(store="trained", **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()


# --- missing and other bases ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pretrained):
    """A run over a base of its own."""
    folder = tmp_path_factory.mktemp("finished")
    base = folder / "dinov2.safetensors"
    base.write_bytes(pretrained.read_bytes())
    run.start(config_of(base, lora=LORA), folder / "run", options())
    return folder / "run", base


@pytest.fixture
def over_a_base(tmp_path, finished, pretrained):
    """A run and its base, which the test may change."""
    folder, base = finished
    base.write_bytes(pretrained.read_bytes())
    return shutil.copytree(folder, tmp_path / "run"), base


def test_a_missing_base_is_one_error_and_may_lie_beside_the_file(over_a_base, pretrained):
    folder, base = over_a_base
    expected = probs_of(load_model(folder).model)
    base.unlink()
    with pytest.raises(WeightsError, match=f"holds only what was trained, and its base {base} is not usable") as caught:
        weights.load(folder)
    assert "beside it, as base.safetensors" in caught.value.hint
    (folder / "checkpoints" / "base.safetensors").write_bytes(pretrained.read_bytes())
    assert torch.equal(probs_of(load_model(folder).model), expected)


def test_other_weights_are_not_taken_for_the_base(over_a_base):
    folder, base = over_a_base
    tensors = load_file(base)
    tensors["blocks.3.mlp.fc2.bias"] = tensors["blocks.3.mlp.fc2.bias"] + 1e-6
    save_file(tensors, base)
    with pytest.raises(WeightsError, match=f"was trained from other weights than {base} holds: their SHA-256 is"):
        weights.load(folder)


def test_a_base_of_another_network_is_refused(over_a_base):
    folder, base = over_a_base
    save_file({"blocks.0.norm1.weight": torch.ones(36)}, base)
    with pytest.raises(WeightsError, match=f"its base {base} is not usable: "):
        weights.load(folder)


@pytest.mark.parametrize("damage", [{"kind": "x"}, {"sha256": 3}, {"shapes": []}, {"reference": None}], ids=str)
def test_a_header_without_sense_is_refused(over_a_base, damage):
    folder, _ = over_a_base
    path = checkpoint_of(folder, "best")
    header = header_of(path)
    header["base"].update(damage)
    save_file(load_file(path), path, {"m2f": json.dumps(header)})
    with pytest.raises(WeightsError, match="The header of .* is damaged"):
        weights.load(folder)


def test_a_file_that_is_its_own_base_is_refused(over_a_base):
    folder, _ = over_a_base
    path = checkpoint_of(folder, "best")
    header = header_of(path)
    header["base"].update(kind="init", reference=str(path))
    save_file(load_file(path), path, {"m2f": json.dumps(header)})
    with pytest.raises(WeightsError, match="is the base of a base, more than 8 times"):
        weights.load(path)


def test_changes_that_do_not_fit_the_options_are_refused(over_a_base):
    folder, _ = over_a_base
    path = checkpoint_of(folder, "best")
    tensors = load_file(path)
    del tensors[f"{QKV}.parametrizations.weight.0.B"]
    save_file(tensors, path, {"m2f": json.dumps(header_of(path))})
    with pytest.raises(WeightsError, match="does not hold the changes of LoRA that it describes"):
        weights.load(path)


def test_a_pretrained_backbone_must_be_whole(over_a_base, tmp_path):
    folder, _ = over_a_base
    config = settings().model_copy(update={"model": NETWORK.model_copy()})
    swin = {**NETWORK.backbone.model_dump(exclude_none=True), "pretrained": str(folder)}
    tree = {**NETWORK.model_dump(exclude_none=True), "backbone": swin}
    config = config.model_copy(update={"model": ModelConfig.model_validate(tree)})
    with pytest.raises(WeightsError, match="holds only what was trained, and not its whole backbone") as caught:
        run.start(config, tmp_path / "other", options())
    assert "m2f export" in caught.value.hint


def test_a_state_of_a_run_with_a_senseless_start_is_refused(over_a_base):
    from m2f_cli.training import resume as state

    folder, _ = over_a_base
    path = folder / "checkpoints" / "resume.pt"
    tree = state.read(path)
    tree["origin"] = {"kind": "stolen"}
    state.write(path, {name: value for name, value in tree.items() if name != "schema_version"})
    with pytest.raises(WeightsError, match="the weights that it started from makes no sense"):
        run.start(settings(), folder, options(resume=True))
