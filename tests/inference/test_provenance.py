"""Hashes of weights and configurations, by which results say what made them."""

from __future__ import annotations

import torch
from helpers.fake_segmenter import FakeSegmenter

from m2f_cli.config import presets
from m2f_cli.inference.provenance import configuration_hash, provenance_of, weights_hash


def test_the_hash_is_of_the_weights():
    one, same, other = (torch.nn.Linear(3, 2) for _ in range(3))
    same.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)
    assert weights_hash(None) is None


def test_the_hash_of_a_configuration_changes_with_any_of_its_settings():
    one, same = (presets.load("coco-panoptic-swin-t") for _ in range(2))
    other = presets.load("coco-panoptic-swin-t", ["test.object_threshold=0.7"])
    assert configuration_hash(one) == configuration_hash(same) != configuration_hash(other)
    assert configuration_hash(None) is None


def test_an_exported_model_has_the_hash_of_its_file(tmp_path):
    segmenter = FakeSegmenter()
    segmenter.model, segmenter.source = None, str(tmp_path / "model.onnx")
    assert provenance_of(segmenter, "x", "panoptic", {}).weights is None
    hashes = []
    for content in (b"a", b"b", b"a"):
        (tmp_path / "model.onnx").write_bytes(content)
        hashes.append(provenance_of(segmenter, "x", "panoptic", {}).weights)
    assert hashes[0] == hashes[2] != hashes[1] and len(hashes[0]) == 16
