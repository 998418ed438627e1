"""m2f export from the command line, over an exporter that writes a few bytes."""

from __future__ import annotations

import json
import sys
import types
from copy import copy, deepcopy

import pytest
import torch
from export.tiny import tiny_segmenter

from m2f_cli import cli, plugins


class Fake:
    suffix = ".fake"
    packages = ()
    noise = 0.0

    def check(self, model, options):
        Fake.seen = (model, options)

    def write(self, model, path, options):
        path.write_bytes(b"1234")

    def open(self, path, model, options):
        other = copy(model)
        other.model = deepcopy(model.model)
        with torch.no_grad():
            other.model.decoder.mask_embed.layers[-1].bias.add_(self.noise)
        return other


@pytest.fixture
def fake(monkeypatch, tmp_path):
    from m2f_cli.inference import load

    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("fake_exporters")
    module.Fake = type("Fake", (Fake,), {})
    module.loads = []

    def given(ref, **options):
        module.loads.append((ref, options))
        return copy(tiny_segmenter())

    monkeypatch.setitem(sys.modules, "fake_exporters", module)
    monkeypatch.setattr(load, "load", given)
    table = plugins.table
    monkeypatch.setattr(
        plugins, "table", lambda group: {"fake": "fake_exporters:Fake"} if group == "exporters" else table(group)
    )
    return module


def test_the_short_way(fake, tmp_path, capsys):
    assert cli.run(["export", "--model", "runs/train/cells/checkpoints/best.safetensors", "--format", "fake"]) == 0
    folder = tmp_path / "runs/export/cells-fake"
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "model.fake"]
    out, err = capsys.readouterr()
    assert "Wrote runs/export/cells-fake/model.fake (0.0 MiB; the weights are" in out
    assert out.endswith("Next: m2f predict IMAGES --model runs/export/cells-fake/model.fake\n")
    header, *rows = (line.split("\t") for line in out.splitlines()[:-2])
    assert header[:3] == ["input", "batch x size", "class_logits.largest/range"] and "maps.panoptic" in header
    assert [row[0] for row in rows] == ["scene", "random"] * 3 and "Writing fake" in err
    assert cli.run(["export", "--model", "runs/train/cells/checkpoints/best.safetensors", "--format", "fake"]) == 2
    assert "exists already. Choose another --out, or pass --overwrite." in capsys.readouterr().err


def test_every_option_arrives(fake, tmp_path, capsys):
    (tmp_path / "in.png").write_bytes(b"")
    options = (
        "export --model my/model --format fake --out a/b.fake --postprocess semantic --size 64 96 --batch dynamic "
        "--precision fp16 --opset 19 --normalise --with-runner --tolerance 0.5 --set test.object_threshold=0.1 "
        "--option compile=true --option level=3 --overwrite --trust-code --json"
    )
    assert cli.run(options.split()) == 0
    ((ref, loading),) = fake.loads
    assert callable(loading["progress"]) and ref == "my/model"
    assert (loading["device"], loading["precision"], loading["trust_code"]) == ("cpu", "fp32", True)
    model, given = Fake.seen
    assert (given.size, given.batch, given.precision, given.postprocess) == ((64, 96), None, "fp16", "semantic")
    assert (given.opset, given.normalise, given.runner) == (19, True, True)
    assert given.extra == {"compile": True, "level": 3} and given.tolerance.logits == 0.5
    assert model.config.test.object_threshold == 0.1 and tiny_segmenter().config.test.object_threshold == 0.4
    tree = json.loads(capsys.readouterr().out)
    assert tree["schema_version"] == 1 and tree["file"] == "b.fake" and tree["options"]["size"] == [64, 96]
    assert {key: tree[key] for key in tree if key != "path"} == json.loads((tmp_path / "a/export.json").read_text())


def test_out_of_tolerance_is_exit_code_5_and_no_file(fake, tmp_path, capsys):
    fake.Fake.noise = 0.5
    assert cli.run(["export", "--model", "m", "--format", "fake", "--out", "a.fake"]) == 5
    assert "a.fake is not the model" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--format onx", 2, "no format named 'onx'"),
        ("--precision fp8", 2, "no precision named 'fp8'"),
        ("--postprocess panoptc", 2, "no task named 'panoptc'"),
        ("--batch many", 2, "a number from 1 on, or dynamic, not 'many'"),
        ("--batch 0", 2, "a number from 1 on"),
        ("--option fast", 2, "takes key=value, not 'fast'"),
        ("--limit 5", 2, "--limit is for --measure DIR"),
    ],
)
def test_wrong_requests_fail_before_the_model_is_loaded(fake, capsys, arguments, code, message):
    assert cli.run(["export", "--model", "m", "--format", "fake", *arguments.split()]) == code
    assert message in " ".join(capsys.readouterr().err.split()) and fake.loads == []


def test_wrong_requests_that_the_model_must_answer(fake, tmp_path, capsys):
    for arguments, message in (
        ("--size 100 96", "no multiple of 32"),
        ("--set model.method=x", "no effect on an export"),
        ("--out a.onnx", "ends in .fake"),
    ):
        assert cli.run(["export", "--model", "m", "--format", "fake", *arguments.split()]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
