"""`.pt2`: PyTorch's exported program is the model, and opening one needs the user's word."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from export.tiny import tiny_segmenter
from helpers.small_segmenter import random_image

from m2f_cli.errors import ConfigError, ExportError, M2FError, MissingDependency, WeightsError
from m2f_cli.export import graph, torch_export
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.inference import load
from m2f_cli.inference.engines import base as engines
from m2f_cli.inference.engines.torch_engine import TorchEngine, read_description

SIZE = (64, 96)


@pytest.fixture(scope="module")
def program():
    """Tracing takes most of the time: once for all tests."""
    return graph.exported_program(tiny_segmenter(), ExportOptions(size=SIZE))


@pytest.fixture
def model(program, monkeypatch):
    monkeypatch.setattr(graph, "exported_program", lambda model, options: program)
    return tiny_segmenter()


@pytest.fixture(scope="module")
def file(program, tmp_path_factory):
    """An exported file; nothing was warned of."""
    path = tmp_path_factory.mktemp("file") / "model.pt2"
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        patched.setattr(graph, "exported_program", lambda model, options: program)
        warnings.simplefilter("error", UserWarning)
        report = export(tiny_segmenter(), path, "torch", ExportOptions(size=SIZE))
    assert report.path == path
    return path


def test_it_is_the_model(file):
    assert sorted(path.name for path in file.parent.iterdir()) == ["export.json", "model.pt2"]
    largest = json.loads((file.parent / "export.json").read_text())["largest"]
    assert largest["class_logits.largest_share"] < 1e-4
    assert largest["mask_logits.largest_share"] < 1e-4


@pytest.mark.slow
def test_as_an_engine_it_gives_the_models_results(model, file):
    engine = TorchEngine(file, "cpu")
    loaded = engines.EngineSegmenter(engine)
    assert (loaded.categories, loaded.config) == (model.categories, model.config)
    assert engine.description.extra["torch"] == torch.__version__
    image = random_image(*SIZE)
    expected, found = model(image), loaded(image)
    assert 0.1 < (expected.ids_HW > 0).mean() < 0.9
    assert np.array_equal(expected.ids_HW, found.ids_HW)


def test_what_is_in_the_file(file):
    """No example image, no paths of this machine, no addresses in its memory, no pickles of code."""
    with zipfile.ZipFile(file) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
        samples = [name for name in archive.namelist() if "sample_inputs" in name]
        assert all(archive.getinfo(name).file_size < 3 * SIZE[0] * SIZE[1] for name in samples)
    assert b"m2f_cli/model/classifier.py" not in text
    assert b"graph_id" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a file's size are those of Linux")
def test_a_full_disk_is_one_error_and_ends_no_process(model, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(M2FError, match="Cannot write .*model.pt2"):
            export(model, tmp_path / "model.pt2", "torch", ExportOptions(size=SIZE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_the_description_is_read_without_running_anything(file, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("was opened"))
    described = read_description(file)
    assert (described.size, described.batch, described.precision) == (SIZE, 1, "fp32")
    assert described.extra["outputs"] == ["class_logits", "mask_logits"]


def test_a_program_is_not_opened_without_the_users_word(file, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="is a program.*--trust-code"):
        patched.setattr(torch.export, "load", lambda *_, **__: pytest.fail("was opened"))
        load.load(file)
    assert load.load(file, device="cpu", trust_code=True).description.size == SIZE


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (ExportOptions(precision="fp16"), ConfigError, "no precision 'fp16'"),
        (ExportOptions(opset=18), ConfigError, "--opset"),
        (ExportOptions(extra={"compil": True}), ConfigError, "compile"),
        (ExportOptions(size=(65, 96)), ConfigError, "no multiple of 32"),
    ],
)
def test_what_it_cannot_do(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export(model, tmp_path / "model.pt2", "torch", options)
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_export.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependency, match="Compiling a network"):
        export(model, tmp_path / "model.pt2", "torch", ExportOptions(size=SIZE, extra={"compile": True}))


def test_a_network_that_cannot_be_traced(tmp_path, monkeypatch):
    model = tiny_segmenter()
    monkeypatch.setattr(model.model.decoder, "forward", lambda *_: torch.zeros(1).item().nothing)
    with pytest.raises(ExportError, match="cannot be traced"):
        export(model, tmp_path / "model.pt2", "torch", ExportOptions(size=SIZE))
    assert list(tmp_path.iterdir()) == []


# --- files that are none ----------------------------------------------------------------------------------------------


def test_a_truncated_file(file, tmp_path):
    (tmp_path / "model.pt2").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged or no .pt2"):
        TorchEngine(tmp_path / "model.pt2")


def test_a_program_of_somebody_else(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(WeightsError, match="was not exported by m2f"):
        TorchEngine(tmp_path / "other.pt2")


def test_a_program_that_this_pytorch_cannot_open(file, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("unknown operator")

    monkeypatch.setattr(torch.export, "load", fail)
    with pytest.raises(WeightsError, match="unknown operator.*exported with PyTorch"):
        TorchEngine(file)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_ahead_of_time(model, tmp_path):
    options = ExportOptions(size=SIZE, extra={"compile": True})
    report = export(model, tmp_path / "model.pt2", "torch", options)
    assert report.to_dict()["largest"]["mask_logits.largest_share"] < 1e-4
    assert read_description(report.path).extra["compiled_for"] == "cpu"
    with zipfile.ZipFile(report.path) as archive:
        assert any(name.endswith((".so", ".dll", ".dylib")) for name in archive.namelist())
    with pytest.raises(ConfigError, match="compiled for cpu, not for"):
        TorchEngine(report.path, "meta")
