"""What a command imports: a prediction needs PyTorch and little beside it."""

from __future__ import annotations

import json

import pytest
from helpers.small_segmenter import random_image, small_segmenter
from PIL import Image

from m2f_cli import weights

PREDICT = """
import json, sys
import torch
before = set(sys.modules)
from m2f_cli.cli import run
code = run(["predict", "in.png", "--model", "model.safetensors", "--device", "cpu", "--out", "out"])
print(json.dumps([code, sorted(set(sys.modules) - before)]))
"""
# Each takes longer to import than m2f itself: PyTorch's compiler, and libraries of rare options.
SLOW = (
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torchvision",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.spatial",
    "transformers",
    "timm",
    "onnxruntime",
    "matplotlib",
)


@pytest.mark.parametrize("preset", ["coco-panoptic-r50", pytest.param("coco-instance-r50", marks=pytest.mark.slow)])
def test_predict_imports_no_compiler_and_no_library_of_other_commands(preset, tmp_path, fresh):
    small = small_segmenter(preset)
    weights.save(tmp_path / "model.safetensors", small.model.state_dict(), small.config, small.categories)
    Image.fromarray(random_image()).save(tmp_path / "in.png")
    done = fresh(PREDICT, folder=tmp_path)
    code, imported = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert (tmp_path / "out" / "predictions.json").is_file()
    assert [name for name in SLOW if name in imported] == []
