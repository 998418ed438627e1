"""Exported files as segmenters, over an engine that is the network itself."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.small_segmenter import random_image, small_segmenter

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, M2FError, WeightsError
from m2f_cli.inference import load
from m2f_cli.inference.engines import base as engines
from m2f_cli.inference.engines.base import EngineSegmenter
from m2f_cli.inference.tta import with_tta


class TorchEngine:
    """Runs the network of a segmenter, and notes what it is given."""

    device = torch.device("cpu")

    def __init__(self, model, **options):
        self.model, self.description, self.shapes = model, engines.described(model, **options), []

    def __call__(self, images_BCHW):
        self.shapes.append(tuple(images_BCHW.shape))
        if self.description.normalised:
            assert images_BCHW.min() > -0.001 and images_BCHW.max() <= 255.001
            mean, std = (
                torch.tensor(each)[:, None, None]
                for each in (self.model.config.input.mean, self.model.config.input.std)
            )
            images_BCHW = (images_BCHW - mean) / std
        prediction = self.model.model(images_BCHW)
        return {"class_logits": prediction.last.class_logits_BQK, "mask_logits": prediction.render()}


@pytest.fixture
def model():
    return small_segmenter()


def assert_same(ours, theirs):
    assert type(ours) is type(theirs) and ours.size == theirs.size
    if hasattr(ours, "ids_HW"):
        assert np.array_equal(ours.ids_HW, theirs.ids_HW) and len(ours.segments) == len(theirs.segments)
    elif hasattr(ours, "labels_HW"):
        assert (ours.labels_HW != theirs.labels_HW).mean() < 1e-3
    else:
        assert np.allclose(ours.scores_N, theirs.scores_N, atol=1e-5)
        assert np.array_equal(ours.masks_NHW(), theirs.masks_NHW())


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_same_results_as_the_network(model, task):
    exported = EngineSegmenter(TorchEngine(model))
    for size in ((50, 70), (96, 64), (61, 130)):
        image = random_image(*size)
        assert_same(model(image, task), exported(image, task))


def test_test_time_augmentation_goes_around_it(model):
    exported = EngineSegmenter(TorchEngine(model))
    for task in ("panoptic", "semantic"):
        image = random_image(60, 80)
        assert_same(with_tta(model, sizes=[64, 96])(image, task), with_tta(exported, sizes=[64, 96])(image, task))


def test_a_file_that_normalises_gets_raw_pixels(model):
    exported = EngineSegmenter(TorchEngine(model, normalised=True))
    [raw], [expected] = (each.infer([each.prepare(random_image())]) for each in (exported, model))
    assert torch.allclose(raw.class_logits_QK, expected.class_logits_QK, atol=1e-3)


def test_a_fixed_size_takes_any_image(model):
    exported = EngineSegmenter(TorchEngine(model, size=(64, 96)))
    assert exported.notes == ["The file takes images of 64 x 96: others are resized to fit."]
    assert exported.prepare(random_image(64, 128)).pixels_CHW.shape == (3, 48, 96)  # 50 x 100 would be the test size
    assert exported.prepare(random_image(128, 64)).pixels_CHW.shape == (3, 64, 32)
    for size in ((64, 96), (50, 200), (300, 30)):
        assert exported(random_image(*size), "panoptic").size == size
    assert set(exported.engine.shapes) == {(1, 3, 64, 96)}
    assert_same(model(random_image(64, 96), "panoptic"), exported(random_image(64, 96), "panoptic"))


def test_small_images_are_padded_to_the_least_size(model):
    exported = EngineSegmenter(TorchEngine(model))
    exported.config = exported.config.model_copy(
        update={
            "test": exported.config.test.model_copy(
                update={"resize": model.config.test.resize.model_copy(update={"short_edge": 20, "max_edge": 40})}
            )
        }
    )
    exported(random_image(20, 40), "panoptic")
    assert exported.engine.shapes == [(1, 3, 64, 64)]


def test_a_fixed_batch_takes_any_number_of_images(model):
    exported = EngineSegmenter(TorchEngine(model, batch=2))
    prepared = [model.prepare(random_image(64, 96, seed=seed)) for seed in range(5)]
    found, expected = exported.infer(prepared), model.infer(prepared)
    assert exported.engine.shapes == [(2, 3, 64, 96)] * 3 and len(found) == 5
    for ours, theirs in zip(expected, found, strict=True):
        assert torch.allclose(ours.class_logits_QK, theirs.class_logits_QK, atol=1e-4)


def test_what_is_not_finite_is_an_error(model):
    engine = TorchEngine(model)
    exported = EngineSegmenter(SimpleNamespace(description=engine.description, device=engine.device))
    nan = {"class_logits": torch.zeros(1, 2, 7), "mask_logits": torch.full((1, 2, 4, 4), torch.nan)}
    exported.engine = lambda images_BCHW: nan
    with pytest.raises(M2FError, match="NaN or infinity"):
        exported(random_image(), "panoptic")
    with pytest.raises(ConfigError, match="no post-processing inside"):
        exported.answers([exported.prepare(random_image())])


@pytest.mark.parametrize(
    "outputs",
    [
        {"class_logits": torch.zeros(1, 2, 7)},
        {"class_logits": torch.zeros(1, 2, 9), "mask_logits": torch.zeros(1, 2, 4, 4)},
        {"class_logits": torch.zeros(1, 3, 7), "mask_logits": torch.zeros(1, 2, 4, 4)},
        {"class_logits": torch.zeros(1, 2, 4, 4), "mask_logits": torch.zeros(1, 2, 7)},
    ],
)
def test_answers_that_do_not_fit_the_description(outputs, model):
    engine = TorchEngine(model)
    exported = EngineSegmenter(SimpleNamespace(description=engine.description, device=engine.device))
    exported.engine = lambda images_BCHW: outputs
    with pytest.raises(WeightsError, match=f"does not fit its {len(model.categories)} classes"):
        exported(random_image(), "panoptic")


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_a_description_survives_its_file(model):
    described = engines.described(model, size=(64, 96), batch=2, postprocess="panoptic", extra={"opset": 18})
    again = engines.Description.from_json(described.to_json(), "a.onnx")
    assert again == replace(described, size=(64, 96))
    assert again.config == model.config and again.categories == model.categories


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "version 99 of its description.*pip install"),
        ({"config": {}}, "is damaged"),
        ({"unheard_of": 1}, "is damaged"),
        ({"categories": [{}]}, "is damaged"),
        ({"batch": -1}, "is damaged: batch"),
        ({"batch": "2"}, "is damaged: batch"),
        ({"size": [64]}, "is damaged: size"),
        ({"size": [-1, 64]}, "is damaged: size"),
        ({"size": [64, 10**8]}, "is damaged: size"),
        ({"multiple": 0}, "is damaged: multiple"),
        ({"normalised": "no"}, "is damaged: normalised"),
        ({"postprocess": "all"}, "is damaged: postprocess"),
        ({"extra": []}, "is damaged: extra"),
    ],
)
def test_a_damaged_description(model, change, message):
    tree = {**json.loads(engines.described(model).to_json()), **change}
    with pytest.raises(WeightsError, match=message):
        engines.Description.from_json(json.dumps(tree), "a.onnx")
    with pytest.raises(WeightsError, match="a.onnx is not valid json"):
        engines.Description.from_json("{", "a.onnx")
    with pytest.raises(WeightsError, match="nested too deeply"):
        engines.Description.from_json("[" * 200_000, "a.onnx")


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_engine(model, monkeypatch):
    class Fake(TorchEngine):
        def __init__(self, path, device):
            super().__init__(model, precision="fp16")
            self.opened = (path, device)

        @staticmethod
        def recognises(path):
            return path.suffix == ".fake"

    table = plugins.table
    monkeypatch.setattr(plugins, "table", lambda group: {"fake": "x:y"} if group == "engines" else table(group))
    monkeypatch.setattr(plugins, "get", lambda group, name, **_: Fake)
    return Fake


def test_a_file_of_an_engine_is_a_model(fake_engine, tmp_path):
    path = tmp_path / "model.fake"
    path.write_bytes(b"")
    loaded = load.load(path, task="semantic", device="cpu")
    assert isinstance(loaded, EngineSegmenter) and loaded.engine.opened == (path, "cpu")
    assert (loaded.source, loaded.precision, loaded.default_task, loaded.model) == (str(path), "fp16", "semantic", None)
    other = path.rename(tmp_path / "model.bin")
    assert isinstance(load.load(other, engine="fake", precision="fp16"), EngineSegmenter)
    with pytest.raises(ConfigError, match="computes in fp16, not in bf16"):
        load.load(other, engine="fake", precision="bf16")
    with pytest.raises(WeightsError, match="no file or folder"):
        load.load(tmp_path / "gone.fake", engine="fake")


def test_no_engine_for_a_file(tmp_path):
    path = tmp_path / "model.xyz"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="No engine runs .*Engines: .*onnx"):
        engines.load(path)
    with pytest.raises(ConfigError, match="no engine named 'onx'. Did you mean onnx"):
        engines.load(path, engine="onx")


def test_onnx_files_of_others_and_damaged_ones(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    floats = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("a", "b")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "foreign", floats[:1], floats[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match=r"foreign.onnx was not exported by m2f.*m2f export"):
        load.load(tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("not an onnx file")
    with pytest.raises(WeightsError, match="onnxruntime cannot open .*text.onnx"):
        load.load(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match="no device 'tpu' here; it has cpu"):
        load.load(tmp_path / "foreign.onnx", device="tpu")
