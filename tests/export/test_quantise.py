"""int8 ONNX, what an export costs in quality, and exporters of other packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from export.tiny import tiny_segmenter
from helpers.small_segmenter import random_image

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError, ExportError, MissingDependency
from m2f_cli.evaluation.dataset import EvalData
from m2f_cli.export import quantise
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.export.verify import Tolerance
from m2f_cli.inference.base import Wrapper
from m2f_cli.inference.load import load
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

SIZE = (64, 96)
LOOSE = Tolerance(logits=1.0, moved=1.0, pixels=1.0)  # random weights are no trained ones: int8 is far off


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network in fp32 and int8."""
    folder, model = tmp_path_factory.mktemp("files"), tiny_segmenter()
    whole = export(model, folder / "fp32" / "model.onnx", "onnx", ExportOptions(size=SIZE))
    options = ExportOptions(size=SIZE, precision="int8", tolerance=LOOSE, postprocess="semantic", runner=True)
    return whole, export(model, folder / "int8" / "model.onnx", "onnx", options)


@pytest.mark.slow  # two exports
def test_linear_layers_are_int8_and_the_rest_is_not(files):
    whole, small = (onnx.load(report.path) for report in files)
    kinds = {node.op_type for node in small.graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds
    assert sum(node.op_type == "Conv" for node in small.graph.node) == sum(
        node.op_type == "Conv" for node in whole.graph.node
    )
    stored = {tensor.data_type for tensor in small.graph.initializer}
    assert onnx.TensorProto.INT8 in stored
    assert files[1].bytes < files[0].bytes


@pytest.mark.slow
def test_only_the_file_and_its_record_stay(files):
    report = files[1]
    files_there = sorted(path.name for path in report.path.parent.iterdir())
    assert files_there == ["export.json", "model.onnx", "run_onnx.py"]
    record = json.loads(report.path.with_name("export.json").read_text())
    assert (record["format"], record["options"]["precision"]) == ("onnx", "int8")
    assert 0 < record["largest"]["mask_logits.largest_share"] < 0.5
    loaded = load(report.path, device="cpu")
    assert (loaded.precision, loaded.description.postprocess) == ("int8", "semantic")
    assert loaded.categories == tiny_segmenter().categories


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(precision="int4"), "no precision 'int4'"),
        (ExportOptions(precision="int8", size=(65, 96)), "no multiple"),
    ],
)
def test_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export(tiny_segmenter(), tmp_path / "model.onnx", "onnx", options)


def test_a_missing_onnxruntime_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="onnxruntime"):
        quantise.quantise_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx")


# --- quality ----------------------------------------------------------------------------------------------------------


class Worse(Wrapper):
    """A segmenter whose segments are cut off at half the height."""

    def finish(self, raw, task=None, **thresholds):
        result = self.inner.finish(raw, task, **thresholds)
        result.ids_HW[result.size[0] // 2 :] = 0
        gone = [segment for segment in result.segments if not (result.ids_HW == segment.id).any()]
        result.segments = [segment for segment in result.segments if segment not in gone]
        return result


@pytest.fixture
def own_data(monkeypatch):
    """Annotated images of which the model's own results are the annotation."""
    model = tiny_segmenter()

    def record(seed):
        image = random_image(64, 96, seed=seed)
        found = model(image)
        annotation = PanopticAnnotation(
            found.ids_HW, [AnnotatedSegment(each.id, each.label) for each in found.segments]
        )
        return SimpleNamespace(name=str(seed), read_image=lambda: image, read_annotation=lambda: annotation)

    def opened(config, categories, folder, split, tasks):
        return EvalData("own", "own", split, folder, tuple(tasks), [record(seed) for seed in range(3)])

    monkeypatch.setattr(quantise, "open_for", opened)
    return opened(None, None, Path("somewhere"), "val", ["panoptic"])


def test_what_an_export_costs(own_data, tmp_path):
    model = tiny_segmenter()
    same = quantise.measure(model, model, own_data)
    assert (same["task"], same["pictures"], same["model"]["pq"]) == ("panoptic", 3, 100.0)
    assert same["difference"]["pq"] == 0
    worse = quantise.measure(model, Worse(model), own_data, limit=2)
    assert worse["pictures"] == 2
    assert worse["exported"]["pq"] < 100
    assert worse["difference"]["pq"] == worse["exported"]["pq"] - 100


def test_it_is_measured_by_the_command_that_exports(own_data, tmp_path):
    steps = []
    report = export(tiny_segmenter(), tmp_path / "model.safetensors", "safetensors", ExportOptions(measure=tmp_path))
    record = json.loads((tmp_path / "export.json").read_text())
    assert record["quality"] == report.quality
    assert (record["quality"]["folder"], record["quality"]["difference"]["pq"]) == (str(tmp_path), 0)
    limited = export(
        tiny_segmenter(),
        tmp_path / "two" / "model.safetensors",
        "safetensors",
        ExportOptions(measure=tmp_path, measure_limit=2),
        on_step=lambda step: steps.append(step.message),
    )
    assert limited.quality["pictures"] == 2
    assert steps[-2:] == ["Measuring the model on 2 images", "Measuring the file on 2 images"]
    with pytest.raises(DataError, match="no folder"):
        export(
            tiny_segmenter(), tmp_path / "other.safetensors", "safetensors", ExportOptions(measure=tmp_path / "nothing")
        )


# --- exporters of other packages --------------------------------------------------------------------------------------

PACKAGE = '''
import torch
from m2f_cli.inference.segmenter import Segmenter


class Numbers:
    """The weights as a plain file of PyTorch; one number is changed where `broken` is asked for."""

    suffix = ".numbers"
    packages = ()

    def check(self, model, options):
        pass

    def write(self, model, path, options):
        state = dict(model.model.state_dict())
        if options.extra.get("broken"):
            state["decoder.class_embed.bias"] = state["decoder.class_embed.bias"] + 3 * torch.arange(7)
        torch.save(state, path)

    def open(self, path, model, options):
        import copy

        network = copy.deepcopy(model.model)
        network.load_state_dict(torch.load(path))
        return Segmenter(network, model.config, model.categories)
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with an entry point of the group m2f.exporters, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "numbers_format-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "numbers_format.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[m2f.exporters]\nnumbers = numbers_format:Numbers\n")
    monkeypatch.syspath_prepend(str(site))
    plugins.table.cache_clear()
    yield
    sys.modules.pop("numbers_format", None)
    monkeypatch.undo()
    plugins.table.cache_clear()


def test_an_exporter_of_another_package(installed, tmp_path):
    assert "numbers" in plugins.names("exporters")
    report = export(tiny_segmenter(), tmp_path / "out" / "model.numbers", "numbers")
    assert sorted(path.name for path in report.path.parent.iterdir()) == ["export.json", "model.numbers"]
    assert report.to_dict()["largest"]["mask_logits.largest"] == 0
    assert np.isfinite(torch.load(report.path)["decoder.class_embed.bias"]).all()


def test_an_exporter_of_another_package_is_verified_too(installed, tmp_path):
    with pytest.raises(ExportError, match="is not the model"):
        export(tiny_segmenter(), tmp_path / "out" / "model.numbers", "numbers", ExportOptions(extra={"broken": True}))
    assert list((tmp_path / "out").iterdir()) == []
