"""ONNX files: they run, they are the model, and no compiler has a reason to refuse them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from export.tiny import WINDOWS, tiny_segmenter
from helpers.small_segmenter import random_image
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from m2f_cli.errors import ConfigError, MissingDependency, WeightsError
from m2f_cli.export import base, graph, verify
from m2f_cli.export import onnx as exporting_onnx
from m2f_cli.export.base import ExportOptions
from m2f_cli.export.verify import Tolerance, differing
from m2f_cli.inference import load
from m2f_cli.inference.sliding_window import sliding
from m2f_cli.model.backbones.swin import SwinStage
from m2f_cli.model.layers.conv import FrozenBatchNorm

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
optimize = pytest.importorskip("onnxscript.optimizer").optimize

EXPORTS = {  # tracing and translating takes long: one file of each kind by default, the others are slow
    "mask2former-resnet": ExportOptions(size=(64, 96), batch=2, postprocess="panoptic", normalise=True, runner=True),
    "mask2former-swin": ExportOptions(size=(64, 96), batch=2, postprocess="panoptic", normalise=True, runner=True),
    "maskformer-resnet": ExportOptions(size=(64, 96), postprocess="semantic"),
    "mpformer-resnet": ExportOptions(size=(96, 64), postprocess="instance", opset=20),
    "eomt-dinov2": ExportOptions(size=(64, 64), postprocess="panoptic"),
    "eomt-dinov3": ExportOptions(size=(64, 64), postprocess="semantic"),
    "pmt": ExportOptions(size=(64, 64), postprocess="instance"),
}
BY_DEFAULT = ("mask2former-resnet", "eomt-dinov2")
# Of the table of operators in NVIDIA's onnx-tensorrt, release 10, that an exported network may need.
TENSORRT = set(
    re.findall(
        r"\w+",
        """
    Abs Add And ArgMax BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
    CumSum Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater
    GreaterOrEqual GroupNormalization Identity InstanceNormalization LayerNormalization Less LessOrEqual Log
    MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum
    Relu Reshape Resize Shape Sigmoid Sin Size Slice Softmax Split Sqrt Squeeze Sub Sum Tile TopK Transpose
    Unsqueeze Where Xor
""",
    )
)


NAMES = [pytest.param(name, marks=[] if name in BY_DEFAULT else pytest.mark.slow, id=name) for name in EXPORTS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported("mask2former-resnet")` gives the report; each network is exported once."""
    done = {}

    def get(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = base.export(tiny_segmenter(name), folder / "model.onnx", "onnx", EXPORTS[name])
        return done[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_model(exported, name):
    report = exported(name)
    figures = report.to_dict()["largest"]
    assert figures["mask_logits.largest_share"] < 1e-5 and figures["class_logits.largest_share"] < 1e-5
    assert figures["mask_logits.range"] > 1 and figures["class_logits.range"] > 1
    shares = {key: value for key, value in figures.items() if key.startswith(("maps.", "inside.")) or key == "moved"}
    assert f"inside.{EXPORTS[name].postprocess}" in shares and not any(shares.values())
    record = json.loads((report.path.parent / "export.json").read_text())
    assert record["largest"] == figures and record["bytes"] == report.path.stat().st_size + _runner_size(report)
    assert [each["batch"] for each in record["comparisons"]] == [EXPORTS[name].batch or 1] * 6
    inputs = [tuple(each["size"]) for each in record["comparisons"]]
    assert set(inputs) == {EXPORTS[name].size}
    assert sorted(path.name for path in report.path.parent.iterdir()) == sorted(
        {"model.onnx", "export.json", *(["run_onnx.py"] if EXPORTS[name].runner else [])}
    )


def _runner_size(report):
    runner = report.path.with_name("run_onnx.py")
    return runner.stat().st_size if runner.exists() else 0


@pytest.mark.parametrize("name", NAMES)
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
    proto = onnx.load(exported("mask2former-resnet").path)
    options = EXPORTS["mask2former-resnet"]
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
    model = tiny_segmenter("mask2former-resnet")
    opened = load.load(exported("mask2former-resnet").path, device="cpu")
    images = [random_image(64, 96, seed=seed) for seed in range(3)]  # of the input's size: no padding, no resizing
    for task in model.tasks:
        for ours, theirs in zip(model(images, task), opened(images, task), strict=True):
            assert differing(ours, theirs) == 0
    raws = opened.infer([opened.prepare(each) for each in images])  # three images, in batches of two
    alone = opened.infer([opened.prepare(images[2])])
    assert torch.allclose(raws[2].class_logits_QK, alone[0].class_logits_QK, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), WINDOWS], ids=["square", "windows"])
def test_a_plain_vit_is_exported_for_the_size_that_it_is_tested_at(tmp_path, overrides):
    model = tiny_segmenter("eomt-dinov2", *overrides)
    report = base.export(model, tmp_path / "model.onnx", "onnx", ExportOptions())
    opened = load.load(report.path, device="cpu")
    assert opened.description.size == (64, 64)
    expected = sliding(model) if overrides else model
    for size in ((80, 150), (64, 64)):
        for task in model.tasks:
            image = random_image(*size)
            assert differing(expected(image, task), opened(image, task)) == 0


@pytest.fixture
def runner(tmp_path):
    """The program alone, without a file beside it."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "run_onnx.py").write_text(exporting_onnx.runner_source())
    return tmp_path / "alone" / "run_onnx.py"


def run_alone(folder, *arguments):
    """The runner in a Python that has no PyTorch."""
    blocked = folder / "blocked"
    for name in ("torch", "m2f_cli", "cv2", "scipy"):
        (blocked / name).mkdir(parents=True, exist_ok=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is blocked')\n")
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(blocked)})


def segments_in(path):
    """What the runner wrote: ids (H, W) and the list of segments."""
    ids_HW = np.asarray(Image.open(path)).astype(np.int32) @ [1, 256, 65536]
    return ids_HW, json.loads(path.with_suffix(".json").read_text())["segments"]


def test_the_runner_needs_no_torch(exported, tmp_path):
    report = exported("mask2former-resnet")
    image = random_image(80, 120, seed=5)
    Image.fromarray(image).save(tmp_path / "in.png")
    done = run_alone(tmp_path, report.path.with_name("run_onnx.py"), tmp_path / "in.png")
    assert done.returncode == 0, done.stderr
    expected = load.load(report.path, device="cpu")(image, "panoptic")
    found, listed = segments_in(tmp_path / "in-segments.png")
    assert (found != expected.ids_HW).mean() < 1e-3 and len(np.unique(found)) > 1
    assert [each["id"] for each in listed] == [segment.id for segment in expected.segments]
    names = [expected.categories[segment.label].name for segment in expected.segments]
    assert [each["name"] for each in listed] == names
    assert [each["score"] for each in listed] == pytest.approx([s.score for s in expected.segments], abs=1e-4)


@pytest.mark.slow
def test_the_runner_with_instances(exported, runner, tmp_path):
    path, image = exported("mpformer-resnet").path, random_image(120, 80, seed=5)
    Image.fromarray(image).save(tmp_path / "in.png")
    done = run_alone(tmp_path, runner, tmp_path / "in.png", "--model", path, "--out", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    expected = load.load(path, device="cpu")(image, "instance")
    order = np.argsort(-expected.scores_N, kind="stable")
    found, listed = segments_in(tmp_path / "out.png")
    assert len(listed) == len(expected) >= 2
    assert [each["score"] for each in listed] == pytest.approx(expected.scores_N[order].tolist(), abs=1e-4)
    names = [expected.categories[label].name for label in expected.labels_N[order]]
    assert [each["name"] for each in listed] == names
    ids_HW = np.zeros(expected.size, np.int32)
    for number in reversed(range(len(order))):
        ids_HW[expected.masks_NHW()[order[number]]] = number + 1
    assert (found != ids_HW).mean() < 1e-3


def test_the_runner_says_what_is_wrong(exported, runner, tmp_path):
    (tmp_path / "text.onnx").write_text("no ONNX")
    (tmp_path / "text.png").write_text("no image")
    path = exported("mask2former-resnet").path
    for arguments, message in (
        ([tmp_path / "gone.png", "--model", path], "No such file"),
        ([tmp_path / "text.png", "--model", path], "cannot identify image file"),
        ([tmp_path / "text.png", "--model", tmp_path / "text.onnx"], "text.onnx cannot be opened"),
        ([tmp_path / "text.png"], "there are 0 .onnx files beside this program: pass --model"),
        ([tmp_path / "in.png", "--model", path, "--out", "a.jpg"], "--out should end in .png"),
    ):
        done = run_alone(tmp_path, runner, *arguments)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_a_truncated_file(exported, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported("mask2former-resnet").path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="onnxruntime cannot open .*broken.onnx: Protobuf parsing failed"):
        load.load(broken)


def test_the_folder_of_an_export_stands_for_its_file(exported, tmp_path):
    path = exported("mask2former-resnet").path
    loaded = load.load(path.parent, device="cpu")
    assert (loaded.source, loaded.description.size) == (str(path), (64, 96))
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(WeightsError, match="export.json is not valid json"):
        load.load(tmp_path)
    (tmp_path / "export.json").write_text('{"file": "gone.onnx"}')
    with pytest.raises(WeightsError, match="holds no weights"):
        load.load(tmp_path)


def test_openvino_runs_the_file_too(exported):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    path, image = exported("mask2former-resnet").path, random_image(64, 96)
    with_onnx, with_openvino = (load.load(path, engine=name, device="cpu") for name in ("onnx", "openvino"))
    assert with_openvino.description == with_onnx.description
    assert differing(with_onnx(image, "panoptic"), with_openvino(image, "panoptic")) == 0
    outputs = with_openvino.outputs([with_openvino.prepare(image)])
    assert set(outputs) == set(graph.output_names(EXPORTS["mask2former-resnet"]))


def test_large_weights_go_into_a_file_of_their_own(exported, tmp_path, monkeypatch):
    proto = onnx.load(exported("mask2former-resnet").path)
    monkeypatch.setattr(exporting_onnx, "LARGE", 1000)
    exporting_onnx.save_proto(proto, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size
    opened = load.load(tmp_path / "model.onnx", device="cpu")
    before = load.load(exported("mask2former-resnet").path, device="cpu")
    image = random_image(64, 96)
    assert differing(opened(image, "panoptic"), before(image, "panoptic")) == 0
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(WeightsError, match="data file beside it"):
        load.load(tmp_path / "model.onnx", device="cpu")


needs_free_sizes = pytest.mark.skipif(not exporting_onnx.TAKES_ANY_SIZE, reason="torch 2.7 or newer takes any size")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(opset=11), "opset 11 will not do: it is from 18"),
        (ExportOptions(size=(100, 96)), "100 x 96 is no multiple of 32.*nearest is --size 96 96"),
        (ExportOptions(precision="fp8"), "no precision 'fp8'. It has: fp32, fp16, int8"),
        (ExportOptions(batch=0), "at least one image"),
        (ExportOptions(extra={"fast": True}), "no --option"),
    ],
)
def test_wrong_options_fail_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        base.export(tiny_segmenter(), tmp_path / "model.onnx", "onnx", options)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting_onnx, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingDependency, match=r"needs the package onnxscript.*m2f-cli\[onnx\]"):
        base.export(tiny_segmenter(), tmp_path / "model.onnx", "onnx")


@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(size=(64, 96), batch=None)])
def test_an_old_pytorch_is_asked_for_fixed_sizes_only(tmp_path, monkeypatch, options):
    monkeypatch.setattr(exporting_onnx, "TAKES_ANY_SIZE", False)
    with pytest.raises(ConfigError, match="any size or batch is more than PyTorch.*Pass --size H W"):
        base.export(tiny_segmenter(), tmp_path / "model.onnx", "onnx", options)


@needs_free_sizes
@pytest.mark.slow
def test_any_size_and_batch(tmp_path):
    model = tiny_segmenter("mask2former-resnet")
    report = base.export(model, tmp_path / "model.onnx", "onnx", ExportOptions(batch=None))
    assert {(each.batch, each.size) for each in report.comparisons} == {(1, (64, 96)), (2, (96, 64)), (1, (64, 64))}
    assert max(each.mask_logits.to_dict()["largest_share"] for each in report.comparisons) < 1e-5
    opened = load.load(report.path, device="cpu")
    for size in ((50, 100), (200, 90)):  # 64 x 128, and 142 x 64, which is padded
        ours, theirs = model(random_image(*size), "semantic"), opened(random_image(*size), "semantic")
        padded = opened.padded_size([opened.prepare(random_image(*size)).pixels_CHW])
        assert theirs.size == size and all(edge % 32 == 0 and edge >= 64 for edge in padded)
        if model.padded_size([model.prepare(random_image(*size)).pixels_CHW]) == padded:
            assert differing(ours, theirs) == 0
    assert exporting_onnx.operators(onnx.load(report.path)) <= TENSORRT


@needs_free_sizes
@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4])  # also windows that are cut; whole ones
def test_windows_of_any_size(tmp_path, step):
    """What a network with windows needs of the translator, in seconds: shifted windows, padding, sizes as symbols."""

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = SwinStage(8, [0.0, 0.0], num_heads=2, window=4, merge=False)

        def forward(self, x_BCHW):
            height, width = x_BCHW.shape[2:]
            return self.stage(x_BCHW.flatten(2).transpose(1, 2), height, width)

    model = Shifted().eval()
    sizes = {axis: step * torch.export.Dim(name, min=2, max=64) for axis, name in ((2, "rows"), (3, "columns"))}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as `graph.exported_program`
        x = torch.randn(1, 8, 7 * step, 11 * step)
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,), strict=False)
        program = program.run_decompositions(graph.decompositions())
    translated = torch.onnx.export(program, dynamo=True, opset_version=18, optimize=False, verbose=False)
    optimize(translated.model, output_size_limit=exporting_onnx.FOLDED)
    onnx.save(translated.model_proto, tmp_path / "windows.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "windows.onnx")
    for rows, columns in ((7, 11), (2, 15), (12, 3), (5, 5)):
        x = torch.randn(1, 8, step * rows, step * columns, generator=torch.Generator().manual_seed(0))
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-5, rtol=1e-5)


@needs_free_sizes
@pytest.mark.slow  # a minute or more: the tracer reasons about every window
def test_any_size_with_windows(tmp_path):
    model = tiny_segmenter("mask2former-resnet")
    report = base.export(model, tmp_path / "model.onnx", "onnx", ExportOptions())
    assert max(each.mask_logits.to_dict()["largest_share"] for each in report.comparisons) < 1e-5
    opened = load.load(report.path, device="cpu")
    for size in ((224, 160), (160, 320)):  # several windows in the coarsest map, too, whole ones and cut ones
        batch = [verify.prepared_as_is(random_image(*size))]
        [expected], [found] = model.infer(batch), opened.infer(batch)
        assert torch.allclose(verify.stride4(found.masks), verify.stride4(expected.masks), atol=1e-3)


@pytest.mark.slow
def test_half_precision_halves_the_file(tmp_path):
    model = tiny_segmenter("mask2former-resnet")
    options = ExportOptions(size=(64, 96), precision="fp16", tolerance=Tolerance(logits=1.0, moved=1.0, pixels=1.0))
    report = base.export(model, tmp_path / "model.onnx", "onnx", options)  # random weights: any cell may move a query
    types = {each.name: each.data_type for each in onnx.load(report.path).graph.initializer}
    halves = sum(kind == onnx.TensorProto.FLOAT16 for kind in types.values())
    assert halves > 40 and report.bytes < 0.75 * report.weight_bytes
    largest = report.to_dict()["largest"]
    assert 0 < largest["mask_logits.mean"] < 0.01 * largest["mask_logits.range"]
    assert load.load(report.path, device="cpu").precision == "fp16"


def test_batch_norms_go_into_convolutions():
    """What torch 2.6 is given; newer ones need no such help."""
    model = tiny_segmenter("maskformer-resnet")
    whole = graph.network(model, ExportOptions())
    images = graph.example(model, ExportOptions(size=(64, 96)))
    fused = graph.fused(whole)
    kinds = {type(module).__name__ for module in fused.modules()}
    assert not kinds & {"FrozenBatchNorm", "BatchNorm2d"} and "GroupNorm" in kinds
    for expected, found in zip(whole(images), fused(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.detach().std()), rtol=1e-4)
    assert any(isinstance(module, FrozenBatchNorm) for module in whole.modules())
