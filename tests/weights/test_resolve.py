"""What a reference names: presets, runs, files, folders, repositories, and what somebody mistyped."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from weights.models import CATEGORIES, RESNET, assert_equal, config_of, network_of, shapes_of

from m2f_cli import weights
from m2f_cli.config import presets as config
from m2f_cli.config.schema import ResizeConfig, WeightsSource
from m2f_cli.errors import WeightsError
from m2f_cli.weights import download, hub, huggingface, write_huggingface
from m2f_cli.weights import resolve as refs
from m2f_cli.weights.infer_config import same_network
from m2f_cli.weights.key_mapping import from_m2f
from m2f_cli.weights.key_tables import DETECTRON2, HUGGINGFACE, OPENMMLAB


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("M2F_OFFLINE", "1")
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def network():
    return network_of(config_of(RESNET))


def detectron2_file(path, network, **more):
    theirs = {name: tensor.numpy() for name, tensor in from_m2f(DETECTRON2, network.state_dict()).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"model": theirs, "__author__": "third_party", **more}))
    return path


# --- files of every format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piloted", [False, True])
@pytest.mark.parametrize("backbone", [None, RESNET])
@pytest.mark.parametrize("kind", ["pkl", "pth", "bare"])
def test_files_of_detectron2_are_read(tmp_path, kind, backbone, piloted):
    settings = config_of(backbone, piloted=piloted)
    network = network_of(settings)
    theirs = from_m2f(DETECTRON2, network.state_dict())
    path = tmp_path / "model_final.pth"
    if kind == "pkl":
        detectron2_file(path, network)
    else:
        torch.save(theirs if kind == "bare" else {"model": theirs, "iteration": 9, "optimizer": {}}, path)
    found = weights.load(path)
    assert (found.format, found.config, found.num_classes) == ("detectron2", None, len(CATEGORIES))
    assert same_network(found.model, settings.model)
    assert found.model.method == ("mpformer" if piloted else "mask2former")
    assert any("attention heads" in note for note in found.notes)
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


@pytest.mark.parametrize(
    "meta",
    [
        {"dataset_meta": {"classes": ("a", "b", "c", "d")}},
        {"dataset_meta": {"CLASSES": ["a", "b", "c", "d"]}},
        {"CLASSES": ["a", "b", "c", "d"], "config": "model = dict()"},
    ],
)
@pytest.mark.parametrize("prefix", ["decode_head.", "panoptic_head."])
def test_files_of_openmmlab_are_read(tmp_path, prefix, meta):
    settings = config_of()
    network = network_of(settings)
    theirs = {n.replace("decode_head.", prefix): t for n, t in from_m2f(OPENMMLAB, network.state_dict()).items()}
    unused = "decode_head.conv_seg.weight" if prefix == "decode_head." else "backbone.norm0.num_batches_tracked"
    theirs[unused] = torch.ones(1)
    torch.save({"state_dict": theirs, "meta": meta}, tmp_path / "iter_90000.pth")
    found = weights.load(str(tmp_path / "iter_90000.pth"))
    assert found.format == "openmmlab"
    assert found.class_names == ["a", "b", "c", "d"]
    assert same_network(found.model, settings.model)
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


def test_a_transformers_file_without_its_folder(tmp_path, network):
    theirs = {name: tensor.clone() for name, tensor in from_m2f(HUGGINGFACE, network.state_dict()).items()}
    save_file(theirs, tmp_path / "model.safetensors")
    found = weights.load(tmp_path / "model.safetensors")
    assert found.format == "huggingface"
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight"], "a backbone alone"),
        (["layer1.0.conv1.weight", "fc.weight"], "a backbone alone"),
        (["sem_seg_head.predictor.transformer.decoder.norm.weight"], "no Mask2Former and no MaskFormer"),
        (["encoder.weight", "head.bias"], "names in .* are of no format"),
        (["sem_seg_head.predictor.query_feat.weight"], "no Mask2Former"),
    ],
)
def test_files_of_other_networks_are_refused(tmp_path, names, message):
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=message):
        weights.load(tmp_path / "model.pth")


# --- runs and folders -------------------------------------------------------------------------------------------------


def test_a_run_is_its_best_checkpoint_else_its_last(tmp_path, network):
    settings, run = config_of(RESNET), tmp_path / "runs" / "train" / "cells"
    state = network.state_dict()
    weights.save(run / "checkpoints" / "last.safetensors", {n: t * 0 for n, t in state.items()}, settings, CATEGORIES)
    assert weights.load(run).tensors["decoder.norm.weight"].sum() == 0
    weights.save(run / "checkpoints" / "best.safetensors", state, settings, CATEGORIES)
    assert_equal(weights.load("runs/train/cells").state_for(shapes_of(network)), state)
    assert weights.load(run / "checkpoints").source.endswith("best.safetensors")


def test_folders_without_weights(tmp_path):
    with pytest.raises(WeightsError, match="holds no weights"):
        weights.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match=r"has no best\.safetensors and no last\.safetensors"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mask2former"}')
    with pytest.raises(WeightsError, match=r"config\.json but no weights"):
        weights.load(tmp_path)


# --- transformers' configurations -------------------------------------------------------------------------------------

HF = {"model_type": "mask2former", "backbone_config": {"model_type": "swin"}}


def test_defaults_of_transformers():
    """transformers leaves out what equals its defaults: an empty configuration is a whole model."""
    from transformers import Mask2FormerConfig

    theirs = Mask2FormerConfig().to_dict()
    assert huggingface.model_config({"model_type": "mask2former"}, "x") == huggingface.model_config(theirs, "x")
    inner = Mask2FormerConfig(backbone_config={"model_type": "swin"}).to_dict()
    assert huggingface.model_config(HF, "x") == huggingface.model_config(inner, "x")
    assert huggingface.model_config(HF, "x").decoder.num_layers == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "oneformer"}, "of the kind 'oneformer'"),
        ({"model_type": "maskformer", "decoder_config": {"activation_function": "gelu"}}, "activation_function = 'ge"),
        ({"model_type": None}, "of the kind None"),
        ({"pre_norm": True}, "pre_norm = True"),
        ({"backbone_config": {"model_type": "convnext"}}, "backbone of the kind 'convnext'"),
        ({"backbone_config": {"model_type": "swin", "mlp_ratio": 2}}, "mlp_ratio = 2"),
        ({"backbone_config": {"model_type": "resnet", "depths": [2, 2, 2, 2]}}, "none of R18, R34, R50 and R101"),
        (
            {"backbone_config": {"model_type": "resnet", "layer_type": "basic", "hidden_sizes": [64, 128, 256, 2048]}},
            "basic blocks, .* and widths .64",
        ),
        ({"backbone_config": {"model_type": "resnet", "layer_type": "dense"}}, "dense blocks"),
        ({"backbone_config": None, "backbone": "resnet50", "use_timm_backbone": True}, "'resnet50' of another library"),
    ],
)
def test_variants_that_m2f_does_not_have(change, message):
    with pytest.raises(WeightsError, match=message):
        huggingface.model_config({**HF, **change}, "x")


@pytest.mark.parametrize(
    ("processor", "resize", "mean"),
    [
        ({"size": {"height": 384, "width": 384}}, {"fixed": (384, 384)}, 123.675),
        ({"size": {"shortest_edge": 640, "longest_edge": 2560}}, {"short_edge": 640, "max_edge": 2560}, 123.675),
        ({"size": 512, "max_size": 2048}, {"short_edge": 512, "max_edge": 2048}, 123.675),
        ({"do_resize": False, "image_mean": [0.5] * 3}, {}, 127.5),
        ({"do_normalize": False}, {"short_edge": 800, "max_edge": 1333}, 0.0),
        ({"do_rescale": False, "image_mean": [100.0] * 3}, {"short_edge": 800, "max_edge": 1333}, 100.0),
    ],
)
def test_the_processor_says_how_to_resize(tmp_path, processor, resize, mean):
    settings, folder = config_of(RESNET, heads=4), tmp_path / "model"
    write_huggingface.write_folder(folder, network_of(settings).state_dict(), settings, CATEGORIES)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = weights.load(folder)
    assert found.resize == ResizeConfig(**resize)
    assert found.input.mean[0] == mean
    if "do_normalize" in processor:
        assert found.input.std == (255, 255, 255)


def test_a_processor_that_makes_no_sense(tmp_path):
    settings, folder = config_of(RESNET, heads=4), tmp_path / "model"
    write_huggingface.write_folder(folder, network_of(settings).state_dict(), settings, CATEGORIES)
    for text in ('{"size": {"breadth": 3}}', '{"image_std": "wide"}', "[]", "{"):
        (folder / "preprocessor_config.json").write_text(text)
        with pytest.raises(WeightsError, match="preprocessor_config"):
            weights.load(folder)


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def preset(monkeypatch):
    """A preset of the tiny network, released at two places."""

    def make(*sources):
        settings = config_of(RESNET).model_copy(update={"name": "tiny-cells", "weights": sources})
        monkeypatch.setattr(config, "preset_names", lambda: ("tiny-cells",))
        monkeypatch.setattr(config, "load", lambda name: settings)
        refs.shipped_presets.cache_clear()
        return settings

    yield make
    refs.shipped_presets.cache_clear()


def source(**place):
    return WeightsSource(format="detectron2", licence="MIT", **place)


def test_a_preset_is_its_first_released_weights(preset, network, tmp_path):
    released = detectron2_file(tmp_path / "released.pkl", network)
    md5 = hashlib.md5(released.read_bytes()).hexdigest()
    first = source(url="https://example.org/x/model_final_abcdef.pkl", hash_prefix=md5[:6])
    settings = preset(first, source(hub="a/b"))
    with pytest.raises(WeightsError, match=r"https://example\.org/x/model_final_abcdef\.pkl is not here yet") as caught:
        weights.load("tiny-cells")
    assert "also released as a/b" in caught.value.hint
    download.weights_dir().mkdir(parents=True)
    shutil.copy(released, download.weights_dir() / "model_final_abcdef.pkl")
    found = weights.load("tiny-cells")
    assert found.config == settings
    assert found.notes == []
    assert found.source == "tiny-cells (https://example.org/x/model_final_abcdef.pkl)"
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


@pytest.mark.parametrize("known", ["hash_prefix", "sha256"])
def test_a_local_copy_has_the_content_that_is_published(preset, network, tmp_path, known):
    copy = detectron2_file(download.weights_dir() / "model_final_abcdef.pkl", network)
    sha256 = hashlib.sha256(copy.read_bytes()).hexdigest()
    url = "https://example.org/x/model_final_abcdef.pkl"
    preset(source(url=url, **{known: sha256 if known == "sha256" else sha256[:8]}))
    assert weights.load("tiny-cells").tensors
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match=r"abcdef.pkl has another content than published: .*remove it, and it is"):
        weights.load("tiny-cells")
    assert copy.is_file()


@pytest.mark.parametrize("sha256", ["abc", "A" * 64, "g" * 64])
def test_a_sha256_is_given_whole(sha256):
    with pytest.raises(ValueError, match="sha256"):
        source(url="https://example.org/x.pkl", sha256=sha256)


def test_a_preset_without_weights(preset):
    preset()
    with pytest.raises(WeightsError, match="Nobody has released weights"):
        weights.load("tiny-cells")


def test_a_released_file_is_known_by_its_name_or_its_hash(preset, network, tmp_path):
    by_name = detectron2_file(tmp_path / "model_final_abcdef.pkl", network)
    renamed = detectron2_file(tmp_path / "mine.pkl", network, comment="other bytes")
    md5 = hashlib.md5(renamed.read_bytes()).hexdigest()
    settings = preset(source(url="https://example.org/model_final_abcdef.pkl", hash_prefix=md5[:6]))
    assert weights.load(by_name).config == settings
    assert weights.load(renamed).config == settings
    other = detectron2_file(tmp_path / "other.pkl", network)
    assert weights.load(other).config is None


def test_a_name_alone_is_not_enough(preset, tmp_path):
    preset(source(url="https://example.org/model_final_abcdef.pkl", hash_prefix="abcdef"))
    path = detectron2_file(tmp_path / "model_final_abcdef.pkl", network_of(config_of()))  # another network
    assert weights.load(path).config is None


def test_a_repository_of_a_preset(preset, monkeypatch, tmp_path):
    settings = preset(source(hub="facebook/mask2former-tiny-cells"))
    narrow = config_of(RESNET, heads=8)
    write_huggingface.write_folder(tmp_path / "hub", network_of(narrow).state_dict(), narrow, CATEGORIES)
    monkeypatch.setattr(hub, "fetch_repo", lambda repo, progress: tmp_path / "hub")
    assert weights.load("facebook/mask2former-tiny-cells").config == settings
    assert weights.load("somebody/else").config is None


# --- what somebody mistyped -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "message", "hint"),
    [
        ("coco-panoptic-swin-tt", "no model named 'coco-panoptic-swin-tt'", "Did you mean coco-panoptic-swin-t"),
        ("Cityscapes-Swin-L", "no model named", "Did you mean cityscapes-swin-l"),
        ("gibberish", "no model named 'gibberish'", "a Hugging Face repository"),
        ("model_final_94dc52.pkl", "no file or folder 'model_final_94dc52.pkl'", "m2f presets list"),
        ("./coco-panoptic-swin-t", "no file or folder", "m2f presets list"),
        ("here/best.safetensor", "no file or folder", r"Did you mean here/best\.safetensors"),
        ("nowhere/at/all", "no file or folder", "nowhere/at does not exist either"),
        ("/nowhere/model.pth", "no file or folder", "/nowhere does not exist either"),
        ("here/bst", "no file or folder", "Check the path|Did you mean"),
        ("runs/cell", "no file or folder 'runs/cell'", "runs does not exist either"),
        ("facebook/mask2former-swin-tiny-coco-panopti", "not in the local cache", "give m2f the folder"),
        ("https://example.org/model.pth", "does not fetch addresses", "Download the file"),
    ],
)
def test_refs_that_name_nothing(tmp_path, ref, message, hint):
    import re

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "best.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(ref)
    assert re.search(hint, caught.value.hint), caught.value.hint


def test_a_preset_wins_over_a_file_of_its_name(tmp_path):
    (tmp_path / "cityscapes-r50").mkdir()
    with pytest.raises(WeightsError, match="download.openmmlab.com"):
        weights.load("cityscapes-r50")
    with pytest.raises(WeightsError, match="holds no weights"):
        weights.load("./cityscapes-r50")


# --- what trainers put around weights ---------------------------------------------------------------------------------

PREFIXES = ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod.", "module.model._orig_mod.", "segmenter.net."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("table", [DETECTRON2, HUGGINGFACE, OPENMMLAB], ids=lambda table: table.format)
def test_a_common_prefix_is_taken_off(tmp_path, network, prefix, table):
    theirs = {prefix + name: tensor for name, tensor in from_m2f(table, network.state_dict()).items()}
    torch.save(
        {"state_dict": {**theirs, prefix + "criterion.empty_weight": torch.ones(5)}, "epoch": 3}
        if table is not OPENMMLAB
        else {"state_dict": theirs},
        tmp_path / "last.ckpt",
    )
    found = weights.load(tmp_path / "last.ckpt")
    assert found.format == table.format
    assert all("attention heads" in note for note in found.notes)
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


def test_compiled_parts_inside_of_a_network(tmp_path, network):
    theirs = from_m2f(DETECTRON2, network.state_dict())
    torch.save({n.replace("backbone.", "backbone._orig_mod."): t for n, t in theirs.items()}, tmp_path / "last.ckpt")
    assert_equal(weights.load(tmp_path / "last.ckpt").state_for(shapes_of(network)), network.state_dict())


def test_a_prefix_in_a_transformers_folder(tmp_path):
    settings, folder = config_of(heads=4), tmp_path / "model"
    network = network_of(settings)
    write_huggingface.write_folder(folder, network.state_dict(), settings, CATEGORIES)
    theirs = write_huggingface.to_tensors(network.state_dict(), settings.model)
    theirs = {f"model._orig_mod.{name}": tensor for name, tensor in theirs.items()}
    save_file(theirs, folder / "model.safetensors")
    assert_equal(weights.load(folder).state_for(shapes_of(network)), network.state_dict())


def test_a_network_beside_its_average_is_taken_and_said(tmp_path, network):
    theirs = from_m2f(DETECTRON2, network.state_dict())
    average = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    both = {f"model.{n}": t for n, t in theirs.items()} | {f"ema_model.{n}": t for n, t in average.items()}
    torch.save(both, tmp_path / "last.ckpt")
    found = weights.load(tmp_path / "last.ckpt")
    assert "that under 'model.' was taken, not 'ema_model.'" in found.notes[0]
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


@pytest.mark.parametrize("key", ["ema", "weights", "ema_state_dict", "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("inner", [None, "state_dict", "module"])
def test_keys_that_hold_the_weights(tmp_path, network, key, inner):
    theirs = from_m2f(DETECTRON2, network.state_dict())
    torch.save({"epoch": 1, key: theirs if inner is None else {inner: theirs, "updates": 7}}, tmp_path / "x.pt")
    found = weights.load(tmp_path / "x.pt")
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())
    assert all("attention heads" in note for note in found.notes)


def test_several_candidates_are_said(tmp_path, network):
    theirs = from_m2f(DETECTRON2, network.state_dict())
    average = {name: torch.zeros_like(tensor) for name, tensor in theirs.items()}
    torch.save({"ema_state_dict": average, "model": theirs}, tmp_path / "x.pt")
    found = weights.load(tmp_path / "x.pt")
    assert found.notes[0] == "The file holds weights under 'model' and 'ema_state_dict': those of 'model' were taken."
    assert_equal(found.state_for(shapes_of(network)), network.state_dict())


def test_two_names_for_one_tensor_are_refused(tmp_path, network):
    theirs = from_m2f(DETECTRON2, network.state_dict())
    torch.save({**theirs, "sem_seg_head._orig_mod.predictor.query_feat.weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="two tensors for the same place"):
        weights.load(tmp_path / "x.pt")
