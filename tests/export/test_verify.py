"""What happens around an exporter: staging, comparing, the record, and nothing left of what is wrong."""

from __future__ import annotations

import json
import sys
import types
from copy import copy, deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from export.tiny import tiny_segmenter
from helpers.small_segmenter import NAMES

from m2f_cli.errors import ConfigError, ExportError
from m2f_cli.export import base, verify
from m2f_cli.export.base import ExportOptions
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.runtime.locks import locked
from m2f_cli.structures.categories import from_names

CATEGORIES = from_names(NAMES, things=NAMES[:3])


class Copies:
    """An exporter whose file is empty and whose answers are those of the model, disturbed."""

    suffix = ".copy"
    packages = ("numpy", "no-such-package")
    noise = 0.0
    fails = None

    def check(self, model, options):
        pass

    def write(self, model, path, options):
        path.write_bytes(b"12345")
        path.with_name("beside.txt").write_text("with it")
        if self.fails:
            raise self.fails

    def open(self, path, model, options):
        assert path.read_bytes() == b"12345"
        other = copy(model)
        other.model = deepcopy(model.model)
        with torch.no_grad():
            other.model.decoder.mask_embed.layers[-1].bias.add_(self.noise)
        return other


@pytest.fixture
def copies(monkeypatch):
    module = types.ModuleType("fake_exporter")
    module.Exporter = type("Exporter", (Copies,), {})
    monkeypatch.setitem(sys.modules, "fake_exporter", module)
    return module.Exporter


def export(path, **options):
    return base.export(tiny_segmenter(), path, "fake_exporter:Exporter", ExportOptions(**options), trust_code=True)


def test_a_right_file_gets_its_name_and_a_record(copies, tmp_path):
    model, steps = tiny_segmenter(), []
    report = base.export(
        model,
        tmp_path / "new" / "a.copy",
        "fake_exporter:Exporter",
        on_step=lambda step: steps.append(step.message),
        trust_code=True,
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.copy", "beside.txt", "export.json"]
    record = json.loads((tmp_path / "new" / "export.json").read_text())
    assert record == json.loads(json.dumps(report.to_dict())) and record["bytes"] == 5 + len("with it")
    assert record["versions"]["numpy"] == np.__version__ and record["versions"]["no-such-package"] == "not installed"
    assert record["weight_bytes"] == sum(4 * tensor.numel() for tensor in model.model.state_dict().values())
    assert record["largest"]["mask_logits.largest"] == 0 and record["largest"]["maps.panoptic"] == 0
    assert [each["kind"] for each in record["comparisons"]] == ["scene", "random"] * 3
    assert steps[:2] == ["Writing fake_exporter:Exporter", "Running what was written"] and len(steps) == 8


def test_a_wrong_file_leaves_nothing(copies, tmp_path):
    copies.noise = 0.5
    with pytest.raises(ExportError, match=r"a.copy is not the model: .*% .* differ") as caught:
        export(tmp_path / "a.copy")
    assert caught.value.exit_code == 5 and not list(tmp_path.iterdir())


def test_a_small_difference_is_recorded_and_the_tolerance_decides(copies, tmp_path):
    copies.noise = 1e-6
    report = export(tmp_path / "a.copy")
    share = report.to_dict()["largest"]["mask_logits.largest_share"]
    assert 0 < share < 1e-4
    with pytest.raises(ExportError, match="of the queries differ"):
        export(tmp_path / "b.copy", tolerance=verify.Tolerance(share / 100, 0.02, 1.0))
    assert not (tmp_path / "b.copy").exists()


@pytest.mark.parametrize("error", [ExportError("broken"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(copies, tmp_path, error):
    copies.fails = error
    expected = ExportError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        export(tmp_path / "a.copy")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_replaced_only_on_request(copies, tmp_path):
    (tmp_path / "a.copy").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        export(tmp_path / "a.copy")
    assert (tmp_path / "a.copy").read_text() == "mine"
    base.export(tiny_segmenter(), tmp_path / "a.copy", "fake_exporter:Exporter", overwrite=True, trust_code=True)
    assert (tmp_path / "a.copy").read_bytes() == b"12345"


class Folders(Copies):
    """An exporter whose export is a folder."""

    suffix = ""

    def write(self, model, path, options):
        path.mkdir()
        (path / "weights").write_bytes(b"12345")

    def open(self, path, model, options):
        return super().open(path / "weights", model, options)


def export_over(path, kind="Exporter"):
    base.export(tiny_segmenter(), path, f"fake_exporter:{kind}", overwrite=True, trust_code=True)


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ["config.yaml", "checkpoints/last.safetensors", "checkpoints/resume.pt"],
        ["thesis.txt"],
        ["export.json", "thesis.txt"],
    ],
)
def test_overwrite_keeps_folders_that_are_no_export(copies, tmp_path, monkeypatch, names):
    monkeypatch.setattr(sys.modules["fake_exporter"], "Folders", Folders, raising=False)
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    before = contents_of(tmp_path)
    with pytest.raises(ConfigError, match="no earlier export as fake_exporter:Folders") as caught:
        export_over(tmp_path / "out", "Folders")
    assert str(tmp_path / "out") in str(caught.value) and contents_of(tmp_path) == before


def test_overwrite_of_a_folder_keeps_what_the_export_did_not_write(copies, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["fake_exporter"], "Folders", Folders, raising=False)
    out = tmp_path / "out"
    out.mkdir()  # an empty one may be there
    base.export(tiny_segmenter(), out, "fake_exporter:Folders", trust_code=True)
    with pytest.raises(ConfigError, match="exists already"):
        base.export(tiny_segmenter(), out, "fake_exporter:Folders", trust_code=True)
    (out / "notes").mkdir()
    (out / "notes" / "thesis.txt").write_text("mine")
    (out / "weights").write_text("old")
    with locked(out, "A training"), pytest.raises(ConfigError, match="is at work in"):
        export_over(out, "Folders")
    assert (out / "weights").read_text() == "old"
    export_over(out, "Folders")
    assert set(contents_of(tmp_path)) == {"out/export.json", "out/notes/thesis.txt", "out/weights"}
    assert (out / "weights").read_bytes() == b"12345"
    (out / "weights").unlink()
    (out / "weights").mkdir()  # somebody's folder
    with pytest.raises(ConfigError, match="weights is a folder"):
        export_over(out, "Folders")
    sys.modules["fake_exporter"].Other = Folders
    with pytest.raises(ConfigError, match="no earlier export as fake_exporter:Other"):  # of another format
        export_over(out, "Other")


@pytest.mark.parametrize("name", ["a.copy", "export.json", "beside.txt"])
def test_files_and_folders_beside_an_export_are_kept(copies, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    before = contents_of(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} exists already"):
        export(tmp_path / "a.copy")
    assert contents_of(tmp_path) == before
    export_over(tmp_path / "a.copy")
    assert (tmp_path / "a.copy").read_bytes() == b"12345"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    before = contents_of(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} is a folder"):
        export_over(tmp_path / "a.copy")
    assert contents_of(tmp_path) == before


def test_a_second_export_beside_the_first(copies, tmp_path):
    export(tmp_path / "a.copy")
    export(tmp_path / "b.copy")  # the record is of an export, the companion is the same
    assert json.loads((tmp_path / "export.json").read_text())["file"] == "b.copy"


def test_requests_that_make_no_sense(copies, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in .copy"):
        export(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="no multiple of 32"):
        export(tmp_path / "a.copy", size=(64, 100))
    with pytest.raises(ConfigError, match="panoptic, semantic segmentation, not 'instance'. Use --postprocess panopt"):
        base.export(
            tiny_segmenter("maskformer-resnet"),
            tmp_path / "a.copy",
            "fake_exporter:Exporter",
            ExportOptions(postprocess="instance"),
            trust_code=True,
        )
    with pytest.raises(ConfigError, match="has no --opset"):
        base.refuse_options("copy", ExportOptions(opset=18), "size", "opset")
    with pytest.raises(ConfigError, match="has no --with-runner. Leave it out, or choose --format onnx"):
        base.refuse_options("copy", ExportOptions(runner=True), "runner")
    with pytest.raises(ConfigError, match="has no --option. Leave it out.$"):
        base.refuse_options("onnx", ExportOptions(extra={"fast": True}), "extra")


def test_inputs_are_of_the_sizes_that_a_network_takes():
    model = tiny_segmenter()
    cases = verify.default_cases(model, model)
    assert {case.kind for case in cases} == {"scene", "random"} and {len(case.batch) for case in cases} == {1, 2}
    for case in cases:
        assert all(edge % 32 == 0 for edge in case.size)
        for prepared in case.batch:
            assert prepared.pixels_CHW.shape == (3, *case.size) and prepared.pixels_CHW.dtype == torch.uint8
    assert {case.kind: len([each for each in cases if each.kind == case.kind]) for case in cases} == {
        "scene": 3,
        "random": 3,
    }
    again = verify.default_cases(model, model)
    assert all(torch.equal(a.batch[0].pixels_CHW, b.batch[0].pixels_CHW) for a, b in zip(cases, again, strict=True))


# --- differing maps ---------------------------------------------------------------------------------------------------


def panoptic(ids, labels):
    ids_HW = np.array(ids, np.int32)
    return PanopticMap(ids_HW.shape, CATEGORIES, ids_HW, [Segment(i, label, 1.0, 1) for i, label in labels.items()])


def test_names_of_segments_do_not_matter_and_classes_do():
    left = panoptic([[1, 1, 2, 0]], {1: 0, 2: 3})
    assert verify.differing(left, panoptic([[7, 7, 4, 0]], {7: 0, 4: 3})) == 0
    assert verify.differing(left, panoptic([[7, 7, 4, 0]], {7: 1, 4: 3})) == 0.5
    assert verify.differing(left, panoptic([[1, 2, 2, 0]], {1: 0, 2: 3})) == 0.25
    assert verify.differing(left, panoptic([[1, 3, 2, 0]], {1: 0, 2: 3, 3: 0})) == 0.25  # split in two
    assert verify.differing(left, panoptic([[0, 0, 0, 0]], {})) == 0.75


def test_semantic_maps_and_instances():
    first, second = (SemanticMap((1, 4), CATEGORIES, np.array([row], np.uint8)) for row in ([0, 0, 1, 2], [0, 1, 1, 0]))
    assert verify.differing(first, first) == 0 and verify.differing(first, second) == 0.5
    from pycocotools import mask as coco_mask

    def instances(*rows, labels):
        rles = [coco_mask.encode(np.asfortranarray([row], np.uint8)) for row in rows]
        return Instances((1, 4), CATEGORIES, np.array(labels), np.linspace(1, 0.5, len(rows)), rles)

    two = instances([1, 1, 0, 0], [0, 1, 1, 0], labels=[0, 1])
    assert verify.differing(two, two) == 0
    assert verify.differing(two, instances([0, 1, 1, 0], [1, 1, 0, 0], labels=[1, 0])) == 0.25  # who is in front
    assert verify.differing(two, instances([1, 1, 0, 0], labels=[0])) == 0.25


def test_not_a_number_is_out_of_tolerance():
    model = tiny_segmenter()
    [case, *_] = verify.default_cases(model, model)
    comparison = verify.compare_case(model, model, case, verify.tolerance_for("fp32"))
    verify.check([comparison], verify.tolerance_for("fp32"), "a")
    with pytest.raises(ExportError, match="nan%"):
        verify.check([replace(comparison, moved=float("nan"))], verify.tolerance_for("fp32"), "a")
