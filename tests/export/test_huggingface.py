"""Folders for transformers, and our own checkpoints."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from export.models import segmenter_of
from export.tiny import WINDOWS, tiny_segmenter
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from m2f_cli.errors import ExportError, MissingDependency
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.inference.load import load


@pytest.mark.parametrize("name", ["mask2former", "resnet", "resnet18", "maskformer", "mpformer"])
def test_transformers_gives_the_same_answers(tmp_path, name):
    model = segmenter_of(name)
    report = export(model, tmp_path / "folder", "huggingface")
    assert sorted(path.name for path in report.path.iterdir()) == [
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    largest = json.loads((report.path / "export.json").read_text())["largest"]
    assert largest["class_logits.largest_share"] < 1e-4
    assert largest["mask_logits.largest_share"] < 1e-4
    network = AutoModelForUniversalSegmentation.from_pretrained(report.path)
    assert network.config.id2label == {i: category.name for i, category in enumerate(model.categories)}
    assert AutoImageProcessor.from_pretrained(report.path).size["shortest_edge"] == 96


@pytest.mark.parametrize("overrides", [(), WINDOWS], ids=["square", "windows"])
@pytest.mark.parametrize("name", ["eomt-dinov2", "eomt-dinov3"])
@torch.no_grad()
def test_a_plain_vit_gives_the_same_answers_in_transformers_and_back(tmp_path, name, overrides):
    model = tiny_segmenter(name, *overrides)
    report = export(model, tmp_path / "folder", "huggingface")
    record = json.loads((report.path / "export.json").read_text())
    assert {tuple(each["size"]) for each in record["comparisons"]} == {(64, 64)}  # transformers takes no other
    theirs = AutoModelForUniversalSegmentation.from_pretrained(report.path)
    again = load(report.path, device="cpu")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found, back = model.model(images), theirs(images), again.model(images)
    torch.testing.assert_close(found.masks_queries_logits, expected.render(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.class_queries_logits, expected.last.class_logits_BQK, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.render(), expected.render(), atol=1e-4, rtol=0)
    assert (again.config.test.slide is None) == (overrides == ())


def test_masks_that_were_not_annealed_away_stay_out_of_transformers(tmp_path):
    """transformers masks attention outside training as long as a probability is above 0; ours does where asked to."""
    model = tiny_segmenter("eomt-dinov2")
    assert model.model.decoder.attn_mask_probs.abs().min() > 0
    folder = export(model, tmp_path / "folder", "huggingface").path
    assert not AutoModelForUniversalSegmentation.from_pretrained(folder).attn_mask_probs.any()


def test_a_folder_that_is_not_the_model_gets_no_name(tmp_path, monkeypatch):
    model = segmenter_of("mask2former")
    other = segmenter_of("mask2former", seed=2)
    monkeypatch.setattr(
        sys.modules["m2f_cli.export.huggingface"],
        "save_huggingface",
        lambda folder, network, *rest: _save(folder, other.model, *rest),
    )
    with pytest.raises(ExportError, match="is not the model"):
        export(model, tmp_path / "folder", "huggingface")
    assert list(tmp_path.iterdir()) == []


def _save(*args):
    from m2f_cli.inference.load_network import save_huggingface

    return save_huggingface(*args)


@pytest.mark.parametrize("name", ["maskformer+6enc", "per-pixel", "pmt"])
def test_networks_that_transformers_does_not_have(tmp_path, name):
    with pytest.raises(ExportError, match="transformers"):
        export(tiny_segmenter(name) if name == "pmt" else segmenter_of(name), tmp_path / "folder", "huggingface")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_transformers_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match="transformers"):
        export(segmenter_of("mask2former"), tmp_path / "folder", "huggingface")


# --- our own file -----------------------------------------------------------------------------------------------------


def test_our_own_file_is_identical(tmp_path):
    model = segmenter_of("mpformer")
    report = export(model, tmp_path / "model.safetensors", "safetensors")
    assert report.to_dict()["largest"]["mask_logits.largest"] == 0
    loaded = load(report.path, device="cpu")
    assert (loaded.config, loaded.categories) == (model.config, model.categories)
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_half_the_size(tmp_path):
    model = segmenter_of("mask2former")
    whole = export(model, tmp_path / "model.safetensors", "safetensors")
    half = export(model, tmp_path / "half.safetensors", "safetensors", ExportOptions(precision="fp16"))
    assert 0.4 < half.bytes / whole.bytes < 0.6
    loaded = load(half.path, device="cpu")
    name = "decoder.class_embed.weight"
    expected = model.model.state_dict()[name].half().float()
    assert torch.equal(loaded.model.state_dict()[name], expected)


def test_numbers_that_fp16_cannot_hold(tmp_path):
    model = segmenter_of("mask2former")
    with torch.no_grad():
        model.model.decoder.class_embed.bias[0] = 1e5
    with pytest.raises(ExportError, match="1e\\+05, more than fp16"):
        export(model, tmp_path / "model.safetensors", "safetensors", ExportOptions(precision="fp16"))
    assert list(tmp_path.iterdir()) == []
