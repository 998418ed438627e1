"""ONNX files: they run, they are the model, and no compiler has a reason to refuse them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from exporting.tiny import tiny_segmenter
from PIL import Image
from small_segmenter import picture

from m2f_cli.errors import ConfigError, MissingDependency, WeightsError
from m2f_cli.exporting import base, graph
from m2f_cli.exporting import onnx as exporting_onnx
from m2f_cli.exporting.base import Options
from m2f_cli.exporting.verify import differing
from m2f_cli.inference import segmenter as segmenters

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXPORTS = {  # tracing and translating takes seconds: three files prove most of it
    "mask2former-swin": Options(size=(64, 96), batch=2, postprocess="panoptic", normalise=True, runner=True),
    "maskformer-resnet": Options(size=(64, 96), postprocess="semantic"),
    "mpformer-resnet": Options(size=(96, 64), postprocess="instance", opset=20),
}
# Of the table of operators in NVIDIA's onnx-tensorrt, release 10, that an exported network may need.
TENSORRT = set(re.findall(r"\w+", """
    Abs Add And ArgMax Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum Div Einsum Equal Erf Exp Expand
    Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual GroupNormalization Identity
    InstanceNormalization LayerNormalization Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow
    Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Shape Sigmoid Sin Size Slice
    Softmax Split Sqrt Squeeze Sub Sum Tile TopK Transpose Unsqueeze Where Xor
"""))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported("mask2former-swin")` gives the report; each network is exported once."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = base.export(tiny_segmenter(name), folder / "model.onnx", "onnx", EXPORTS[name])
        return done[name]

    return get


@pytest.mark.parametrize("name", EXPORTS)
def test_the_file_is_the_model(exported, name):
    report = exported(name)
    figures = report.to_dict()["largest"]
    assert figures["mask_logits.largest_share"] < 1e-5 and figures["class_logits.largest_share"] < 1e-5
    assert figures["mask_logits.range"] > 1 and figures["class_logits.range"] > 1
    shares = {key: value for key, value in figures.items() if key.startswith(("maps.", "inside.")) or key == "moved"}
    assert f"inside.{EXPORTS[name].postprocess}" in shares and not any(shares.values())
    record = json.loads((report.path.parent / "export.json").read_text())
    assert record["largest"] == figures and record["bytes"] == report.path.stat().st_size + _runner_size(report)
    assert [each["batch"] for each in record["comparisons"]] == [EXPORTS[name].batch or 1] * 2
    assert sorted(path.name for path in report.path.parent.iterdir()) == sorted(
        {"model.onnx", "export.json", *(["run_onnx.py"] if EXPORTS[name].runner else [])}
    )


def _runner_size(report):
    runner = report.path.with_name("run_onnx.py")
    return runner.stat().st_size if runner.exists() else 0


@pytest.mark.parametrize("name", EXPORTS)
def test_no_compiler_has_a_reason_to_refuse_it(exported, name):
    proto = onnx.load(exported(name).path)
    used = exporting_onnx.operators(proto)
    assert not used & set(exporting_onnx.AVOIDED)
    assert used <= TENSORRT, used - TENSORRT
    assert {node.domain for node in proto.graph.node} == {""} and not proto.functions
    constants = {initializer.name: initializer for initializer in proto.graph.initializer}
    for node in proto.graph.node:  # TensorRT sorts at most 3840 numbers
        if node.op_type == "TopK":
            assert onnx.numpy_helper.to_array(constants[node.input[1]]).item() <= 3840
    [opset] = proto.opset_import
    assert opset.version == (EXPORTS[name].opset or exporting_onnx.OPSET)


def test_names_shapes_and_metadata(exported):
    proto = onnx.load(exported("mask2former-swin").path)
    options = EXPORTS["mask2former-swin"]
    assert [value.name for value in proto.graph.input] == ["images"]
    assert [value.name for value in proto.graph.output] == graph.output_names(options)
    [images] = proto.graph.input
    assert [dim.dim_value for dim in images.type.tensor_type.shape.dim] == [2, 3, 64, 96]
    plain = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(plain["classes"]) == ["cat", "dog", "bus", "sky", "road", "wall"]
    assert (plain["method"], plain["object_threshold"]) == ("mask2former", "0.4")
    described = json.loads(plain["m2f"])
    assert (described["size"], described["batch"], described["normalised"]) == ([64, 96], 2, True)
    assert described["extra"]["opset"] == 18 and described["postprocess"] == "panoptic"
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_predicting_with_the_file_is_predicting_with_the_model(exported):
    model = tiny_segmenter("mask2former-swin")
    opened = segmenters.load(exported("mask2former-swin").path, device="cpu")
    pictures = [picture(64, 96, seed=seed) for seed in range(3)]  # of the input's size: no padding, no resizing
    for task in model.tasks:
        for ours, theirs in zip(model(pictures, task), opened(pictures, task), strict=True):
            assert differing(ours, theirs) == 0
    raws = opened.infer([opened.prepare(each) for each in pictures])  # three pictures, in batches of two
    alone = opened.infer([opened.prepare(pictures[2])])
    assert torch.allclose(raws[2].class_logits_QK, alone[0].class_logits_QK, atol=1e-4)


def test_the_runner_needs_no_torch(exported, tmp_path):
    report = exported("mask2former-swin")
    image = picture(80, 120, seed=5)
    Image.fromarray(image).save(tmp_path / "in.png")
    blocked = tmp_path / "blocked"
    for name in ("torch", "m2f_cli", "cv2", "scipy"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')\n")
    command = [sys.executable, str(report.path.with_name("run_onnx.py")), str(tmp_path / "in.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(blocked)})
    assert done.returncode == 0, done.stderr
    expected = segmenters.load(report.path, device="cpu")(image, "panoptic")
    found = np.asarray(Image.open(tmp_path / "in-segments.png")).astype(np.int32) @ [1, 256, 65536]
    assert (found != expected.ids_HW).mean() < 1e-3 and len(np.unique(found)) > 1
    listed = json.loads((tmp_path / "in-segments.json").read_text())["segments"]
    assert [each["id"] for each in listed] == [segment.id for segment in expected.segments]
    names = [expected.categories[segment.label].name for segment in expected.segments]
    assert [each["name"] for each in listed] == names
    assert [each["score"] for each in listed] == pytest.approx([s.score for s in expected.segments], abs=1e-4)


def test_a_truncated_file(exported, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported("maskformer-resnet").path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="onnxruntime cannot open .*broken.onnx"):
        segmenters.load(broken)


def test_large_weights_go_into_a_file_of_their_own(exported, tmp_path, monkeypatch):
    proto = onnx.load(exported("maskformer-resnet").path)
    monkeypatch.setattr(exporting_onnx, "LARGE", 1000)
    exporting_onnx._save(proto, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size
    opened = segmenters.load(tmp_path / "model.onnx", device="cpu")
    before = segmenters.load(exported("maskformer-resnet").path, device="cpu")
    image = picture(64, 96)
    assert differing(opened(image, "semantic"), before(image, "semantic")) == 0
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(WeightsError, match="data file beside it"):
        segmenters.load(tmp_path / "model.onnx", device="cpu")


@pytest.mark.parametrize(("options", "message"), [
    (Options(opset=11), "opset 11 will not do: it is from 18"),
    (Options(size=(100, 96)), "100 x 96 is no multiple of 32.*nearest is --size 96 96"),
    (Options(precision="int8"), "exported in fp32 or fp16, not int8"),
    (Options(batch=0), "at least one picture"),
    (Options(extra={"fast": True}), "no --extra"),
])  # fmt: skip
def test_wrong_options_fail_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        base.export(tiny_segmenter(), tmp_path / "model.onnx", "onnx", options)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting_onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingDependency, match=r"needs the package onnxscript.*m2f-cli\[onnx\]"):
        base.export(tiny_segmenter(), tmp_path / "model.onnx", "onnx")


def test_any_size_and_batch(tmp_path):
    model = tiny_segmenter("mask2former-resnet")
    report = base.export(model, tmp_path / "model.onnx", "onnx", Options(batch=None))
    assert {(each.batch, each.size) for each in report.comparisons} == {(1, (64, 96)), (2, (96, 64)), (1, (64, 64))}
    assert max(each.mask_logits.to_dict()["largest_share"] for each in report.comparisons) < 1e-5
    opened = segmenters.load(report.path, device="cpu")
    for size in ((50, 100), (200, 90)):  # 64 x 128, and 142 x 64, which is padded
        ours, theirs = model(picture(*size), "semantic"), opened(picture(*size), "semantic")
        padded = opened.padded_size([opened.prepare(picture(*size)).pixels_CHW])
        assert theirs.size == size and all(edge % 32 == 0 and edge >= 64 for edge in padded)
        if model.padded_size([model.prepare(picture(*size)).pixels_CHW]) == padded:
            assert differing(ours, theirs) == 0
    assert exporting_onnx.operators(onnx.load(report.path)) <= TENSORRT


@pytest.mark.slow  # a minute or more: the tracer reasons about every window
def test_any_size_with_windows(tmp_path):
    report = base.export(tiny_segmenter("mask2former-swin"), tmp_path / "model.onnx", "onnx", Options())
    assert max(each.mask_logits.to_dict()["largest_share"] for each in report.comparisons) < 1e-5


def test_half_precision(tmp_path):
    model = tiny_segmenter("mask2former-resnet")
    report = base.export(model, tmp_path / "model.onnx", "onnx", Options(size=(64, 96), precision="fp16"))
    types = {each.name: each.data_type for each in onnx.load(report.path).graph.initializer}
    halves = sum(kind == onnx.TensorProto.FLOAT16 for kind in types.values())
    assert halves > 40 and report.bytes < 0.75 * report.weight_bytes
    assert 0 < report.to_dict()["largest"]["mask_logits.largest_share"] < 3e-2
    assert segmenters.load(report.path, device="cpu").precision == "fp16"
