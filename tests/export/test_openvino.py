"""OpenVINO: what is written is run by OpenVINO itself, in all three number formats, and is the model."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from export.models import images_in
from export.tiny import tiny_segmenter
from helpers.small_segmenter import random_image

from m2f_cli.errors import ConfigError, ExportError, MissingDependency, WeightsError
from m2f_cli.export import openvino as exporting
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.export.verify import Tolerance
from m2f_cli.inference import load
from m2f_cli.inference.engines import base as engines
from m2f_cli.structures.images import read_image

openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
SIZE = (64, 96)
LOOSE = Tolerance(logits=1.0, moved=1.0, pixels=1.0)  # random weights are no trained ones: int8 is far off


@pytest.fixture(scope="module")
def converted():
    """The conversion takes most of the time: once for all tests."""
    return exporting.convert(tiny_segmenter(), ExportOptions(size=SIZE))


@pytest.fixture
def model(converted, monkeypatch):
    monkeypatch.setattr(exporting, "convert", lambda model, options: converted.clone())
    return tiny_segmenter()


@pytest.fixture
def folder(model, tmp_path):
    return export(model, tmp_path / "model", "openvino", ExportOptions(size=SIZE)).path


def test_it_is_the_model(model, tmp_path):
    report = export(model, tmp_path / "model", "openvino", ExportOptions(size=SIZE))
    assert sorted(path.name for path in report.path.iterdir()) == ["export.json", "model.bin", "model.xml"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    record = json.loads((report.path / "export.json").read_text())
    assert record["largest"]["class_logits.largest_share"] < 1e-4
    assert record["largest"]["mask_logits.largest_share"] < 1e-4
    assert record["largest"]["maps.panoptic"] == 0
    assert {each["kind"] for each in record["comparisons"]} == {"scene", "random"}
    assert record["versions"]["openvino"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"), [("eomt-dinov2", "panoptic"), ("eomt-dinov3", "semantic"), ("pmt", "instance")]
)
def test_plain_vits_are_the_model_too(tmp_path, name, task):
    report = export(tiny_segmenter(name), tmp_path / "model", "openvino", ExportOptions(postprocess=task))
    largest = report.to_dict()["largest"]
    assert largest["class_logits.largest_share"] < 1e-5 and largest["mask_logits.largest_share"] < 1e-5
    assert largest[f"inside.{task}"] == 0


def test_what_is_a_formula_stays_one(folder):
    """Positions and masks are not stored: the file is as large as the weights. (Of an image as small as this one the
    reference points are: the translator folds what has few numbers.)"""
    network = tiny_segmenter().model
    weights = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    tokens = sum(SIZE[0] // stride * (SIZE[1] // stride) for stride in (8, 16, 32))
    references = 4 * tokens * network.pixel_decoder.layers[0].attn.sampling_offsets.out_features
    assert (folder / "model.bin").stat().st_size < 1.05 * weights + references


def test_names_and_shapes(converted):
    [image] = converted.inputs
    assert image.any_name == "images"
    assert list(image.partial_shape.to_shape()) == [1, 3, *SIZE]
    assert [output.any_name for output in converted.outputs] == ["class_logits", "mask_logits"]
    assert [list(output.shape) for output in converted.outputs] == [[1, 12, 7], [1, 12, 16, 24]]


def test_as_an_engine_it_gives_the_models_results(model, folder):
    loaded = load.load(folder, device="cpu")
    assert isinstance(loaded, engines.EngineSegmenter)
    assert (loaded.categories, loaded.config) == (model.categories, model.config)
    image = random_image(*SIZE)  # of the file's size: a smaller one would be padded, a larger one shrunk
    expected, found = model(image), loaded(image)
    assert 0.1 < (expected.ids_HW > 0).mean() < 0.9
    assert np.array_equal(expected.ids_HW, found.ids_HW)
    assert [segment.label for segment in expected.segments] == [segment.label for segment in found.segments]
    # What the first answer holds is not overwritten by the second.
    first = loaded.engine(torch.zeros(1, 3, *SIZE))["mask_logits"]
    kept = first.clone()
    loaded.engine(torch.ones(1, 3, *SIZE))
    assert torch.equal(first, kept)


def test_fp16_halves_the_weights(model, folder, tmp_path):
    options = ExportOptions(size=SIZE, precision="fp16", tolerance=LOOSE)
    report = export(model, tmp_path / "half", "openvino", options)
    share = (report.path / "model.bin").stat().st_size / (folder / "model.bin").stat().st_size
    assert 0.45 < share < 0.6
    largest = report.to_dict()["largest"]
    assert 0 < largest["mask_logits.mean"] < 0.01 * largest["mask_logits.range"]
    assert load.load(report.path, device="cpu").precision == "fp16"


def test_int8_after_calibration(model, folder, tmp_path, capfd):
    pytest.importorskip("nncf", reason="needs the extra openvino")
    options = ExportOptions(size=SIZE, precision="int8", images=images_in(tmp_path / "pictures"), tolerance=LOOSE)
    report = export(model, tmp_path / "int8", "openvino", options)
    share = (report.path / "model.bin").stat().st_size / (folder / "model.bin").stat().st_size
    assert share < 0.6
    assert capfd.readouterr().out == "", "nncf's progress is no result"
    xml = (report.path / "model.xml").read_text()
    assert "FakeQuantize" in xml
    assert {each.kind for each in report.comparisons} == {"picture", "random"}


def test_calibration_sees_what_the_file_will_be_given(model, tmp_path):
    [path] = images_in(tmp_path, 1)
    made = exporting.network_input(model, ExportOptions(size=SIZE, batch=2))(path)
    assert (made.shape, made.dtype) == ((2, 3, *SIZE), np.float32)
    expected = model.collate([model.prepare(read_image(path)).pixels_CHW])[0].numpy()
    assert np.array_equal(made[0], expected)
    raw = exporting.network_input(model, ExportOptions(size=SIZE, normalise=True))(path)
    assert raw.max() <= 255 + 1e-3
    assert raw.max() > 100


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (ExportOptions(precision="int8"), ConfigError, "needs images"),
        (ExportOptions(precision="bf16"), ConfigError, "no precision 'bf16'"),
        (ExportOptions(opset=18), ConfigError, "--opset"),
        (ExportOptions(size=(65, 96)), ConfigError, "no multiple of 32"),
    ],
)
def test_what_it_cannot_do(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export(model, tmp_path / "model", "openvino", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_a_missing_extra(model, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    options = ExportOptions(precision="int8", images=images_in(tmp_path / "pictures", 1))
    with pytest.raises(MissingDependency, match=rf"{package}.*m2f-cli\[openvino\]"):
        export(model, tmp_path / "model", "openvino", options)


def test_a_wrong_conversion_gets_no_name(converted, monkeypatch, tmp_path):
    """The file is that of other weights: verification says so."""
    other = copy.deepcopy(tiny_segmenter())
    with torch.no_grad():
        other.model.decoder.class_embed.weight.neg_()
    monkeypatch.setattr(exporting, "convert", lambda model, options: converted.clone())
    with pytest.raises(ExportError, match="is not the model"):
        export(other, tmp_path / "model", "openvino", ExportOptions(size=SIZE))
    assert list(tmp_path.iterdir()) == []


# --- files that are none ----------------------------------------------------------------------------------------------


def test_damaged_foreign_and_missing_files(converted, folder, tmp_path):
    xml, binary = folder / "model.xml", folder / "model.bin"
    whole = xml.read_text()
    xml.write_text(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged or no OpenVINO file"):
        load.load(folder)
    xml.write_text(whole)
    binary.unlink()
    with pytest.raises(WeightsError, match="no weights beside it"):
        load.load(folder)
    image = openvino.opset13.parameter([1, 3, 8, 8], np.float32, name="a")
    foreign = openvino.Model([openvino.opset13.relu(image)], [image], "foreign")
    openvino.save_model(foreign, tmp_path / "foreign" / "model.xml")
    with pytest.raises(WeightsError, match="was not exported by m2f"):
        load.load(tmp_path / "foreign")


def test_a_device_that_is_not_there(folder):
    with pytest.raises(ConfigError, match="no device 'npu'"):
        load.load(folder, device="npu")
