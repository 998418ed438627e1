"""Files for the papers' own code: names, versions, and the weights themselves to the last bit."""

from __future__ import annotations

import pickle

import pytest
import torch
from export.models import MODELS, segmenter_of
from torch import nn

from m2f_cli.config.schema import Component
from m2f_cli.errors import ConfigError, ExportError
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.export.detectron2 import to_tensors
from m2f_cli.inference.segmenter import Segmenter
from m2f_cli.model import build
from m2f_cli.weights import readers as containers
from m2f_cli.weights.key_mapping import to_m2f
from m2f_cli.weights.key_tables import DETECTRON2


class Head(nn.Module):
    """The rule of the papers' segmentation head (docs/methods/published-behaviour.md#7-3): before version 2 there was
    no level `pixel_decoder.`."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") is None or metadata["version"] < 2:
            for name in [name for name in state if name.startswith(prefix) and "predictor" not in name]:
                state[name.replace(prefix, prefix + "pixel_decoder.")] = state.pop(name)
        super()._load_from_state_dict(state, prefix, metadata, *others)


def modules_for(names) -> nn.Module:
    """A tree of modules that has these names as its buffers."""
    root = nn.Module()
    for name in names:
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Head() if part == "sem_seg_head" else nn.Module())
            module = module._modules[part]
        module.register_buffer(last, torch.zeros(()))
    return root


def load_as_published(tensors) -> None:
    """`load_state_dict`, strictly, in modules that behave as the papers' do."""
    target = modules_for(tensors)
    for name, buffer in target.named_buffers():
        buffer.resize_(tensors[name].shape)
    target.load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_to_the_last_bit_and_load_strictly(name):
    model = segmenter_of(name)
    tensors = to_tensors(model)
    load_as_published(tensors)
    shapes = {key: tuple(value.shape) for key, value in model.model.state_dict().items()}
    found = to_m2f(DETECTRON2, tensors, shapes)
    assert set(found) == set(shapes)
    for key, value in model.model.state_dict().items():
        assert torch.equal(found[key], value), key


def test_without_the_versions_the_papers_code_would_not_take_it():
    with pytest.raises(RuntimeError, match="pixel_decoder.pixel_decoder"):
        load_as_published(dict(to_tensors(segmenter_of("mask2former"))))


def test_names_of_both_papers():
    mask2former, maskformer = (to_tensors(segmenter_of(name)) for name in ("mask2former", "maskformer"))
    layer = "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn."
    assert mask2former[layer + "in_proj_weight"].shape == (192, 64)
    assert "sem_seg_head.predictor.transformer.decoder.layers.0.multihead_attn.in_proj_weight" in maskformer
    assert mask2former["criterion.empty_weight"].tolist() == pytest.approx([1, 1, 1, 1, 0.1])
    assert "criterion.empty_weight" not in to_tensors(segmenter_of("per-pixel"))


def test_index_of_relative_positions():
    index = to_tensors(segmenter_of("mask2former"))["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert (index.shape, index.dtype) == ((49, 49), torch.int64)
    for query, key in ((0, 0), (0, 48), (48, 0), (10, 3), (23, 44)):
        down, right = query // 7 - key // 7, query % 7 - key % 7
        assert index[query, key] == (down + 6) * 13 + right + 6


@pytest.mark.parametrize(("format", "suffix"), [("detectron2", ".pth"), ("detectron2-pkl", ".pkl")])
def test_the_file_has_the_published_names(tmp_path, format, suffix):
    model = segmenter_of("resnet")
    report = export(model, tmp_path / f"model{suffix}", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", f"model{suffix}"]
    assert report.to_dict()["largest"]["mask_logits.largest"] == 0
    found = containers.read(report.path)
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        name: tensor.shape for name, tensor in to_tensors(model).items()
    }
    if suffix == ".pkl":
        tree = pickle.loads(report.path.read_bytes())
        assert "__author__" in tree
        load_as_published(tree["model"])
        assert report.bytes < 1.05 * report.weight_bytes + 200_000  # names; bytes are not stored as text
    else:
        load_as_published(torch.load(report.path, weights_only=True)["model"])


def test_a_backbone_that_detectron2_does_not_have(tmp_path):
    model = segmenter_of("mask2former")
    timm = Component(name="timm", model="resnet18", pretrained=None)
    network = model.config.model.model_copy(update={"backbone": timm})
    config = model.config.model_copy(update={"model": network})
    other = Segmenter(build(config.model, len(model.categories)), config, model.categories)
    with pytest.raises(ExportError, match="no place for 'backbone"):
        export(other, tmp_path / "model.pth", "detectron2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [ExportOptions(size=(64, 64)), ExportOptions(precision="fp16"), ExportOptions(normalise=True)]
)
def test_options_that_weights_do_not_have(tmp_path, options):
    with pytest.raises(ConfigError, match="detectron2 has no"):
        export(segmenter_of("mask2former"), tmp_path / "model.pth", "detectron2", options)
