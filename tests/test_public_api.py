"""The public names: what the page promises is what the package has, documented, annotated and cheap to import."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.folders import scenes_as_coco
from helpers.small_segmenter import write_model
from PIL import Image
from pytest import approx

import m2f_cli as m2f
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.structures.categories import load_categories

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
TINY = [  # a network of a few thousand numbers on generated scenes of 64 x 96
    "train.iterations=2",
    "train.batch=2",
    "train.loss.num_points=64",
    "data.scenes.train=4",
    "data.scenes.val=2",
    "data.scenes.size=[64, 96]",
    "test.resize.short_edge=64",
    "test.resize.max_edge=96",
    "model.backbone.depth=18",
    "model.backbone.width=8",
    "model.pixel_decoder.num_layers=1",
    "model.decoder.num_layers=2",
]
FUNCTIONS = [name for name in m2f.__all__ if inspect.isroutine(getattr(m2f, name)) or name == "preset_names"]


def test_the_page_lists_the_public_names_and_no_others():
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == sorted(m2f.__all__)


def test_the_lists_of_the_package_agree():
    """Names for type checkers, names for `import *`, and names that are found on first use."""
    tree = ast.parse(Path(m2f.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    hinted = [alias.asname or alias.name for node in block.body for alias in node.names]
    assert sorted([*hinted, "__version__"]) == sorted(m2f.__all__)
    assert set(m2f.__all__) <= set(dir(m2f))
    with pytest.raises(AttributeError, match="no_such_name"):
        m2f.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", [name for name in m2f.__all__ if name != "__version__"])
def test_a_public_name_is_documented(name):
    thing = getattr(m2f, name)
    documented = next((each for each in getattr(thing, "__mro__", ()) if "__doc__" in vars(each)), thing)
    assert documented is thing and len(inspect.getdoc(thing)) > 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_annotated(name):
    signature = inspect.signature(inspect.unwrap(getattr(m2f, name)))
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not bare and signature.return_annotation is not signature.empty


@pytest.mark.parametrize("contract", [m2f.Metric, m2f.Transform, m2f.Exporter, m2f.Engine])
def test_methods_of_a_contract_are_annotated(contract):
    methods = [value for value in vars(contract).values() if inspect.isfunction(value) and value.__name__ != "_no_init"]
    own = [each for each in methods if each.__module__ == contract.__module__]
    assert own
    for method in own:
        signature = inspect.signature(method)
        bare = [p.name for p in signature.parameters.values() if p.name != "self" and p.annotation is p.empty]
        assert not bare and signature.return_annotation is not signature.empty, method


def test_importing_the_package_imports_no_room():
    code = "import sys, m2f_cli; print([m for m in sys.modules if m.startswith('m2f_cli.') or m in ('torch', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['m2f_cli.version']"


def test_export_is_the_function_when_its_room_was_imported_first(fresh):
    code = (
        "import sys; import m2f_cli.export.base, m2f_cli as m2f; from m2f_cli import export; "
        "assert export is m2f.export is sys.modules['m2f_cli.export.base'].export"
    )
    done = fresh(code)
    assert done.returncode == 0, done.stderr


def test_annotations_are_declared_to_type_checkers():
    assert (Path(m2f.__file__).parent / "py.typed").is_file()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A trained tiny model, an image and a data set."""
    folder = tmp_path_factory.mktemp("api")
    run = m2f.train(m2f.load_config("tiny", TINY), out=folder / "run", init="random", device="cpu")
    assert isinstance(run, m2f.TrainOutcome) and (run.iteration, run.stopped) == (2, None)
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(folder / "photo.jpg")
    return folder


def test_the_example_of_the_page_runs(home, monkeypatch):
    """Every line of the page, with a tiny model and generated data in place of the released ones."""
    example = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
    scenes_as_coco(home / "coco", count=2, size=(64, 96))
    (home / "coco" / "train2017").symlink_to(home / "coco" / "val2017")
    (home / "coco" / "panoptic_train2017").symlink_to(home / "coco" / "panoptic_val2017")
    annotations = home / "coco" / "annotations"
    (annotations / "panoptic_train2017.json").write_text((annotations / "panoptic_val2017.json").read_text())
    model = write_model(home / "coco.safetensors", m2f.load_config("tiny", TINY), load_categories("coco-panoptic"))
    for line, tiny in {
        'm2f.load("coco-panoptic-swin-t", ': f"m2f.load({str(model)!r}, ",
        'm2f.load_config("coco-panoptic-r50", ["train.iterations=1000"])': f"m2f.load_config('tiny', {TINY!r})",
        'out="runs/mine")': 'out="runs/mine", init="random")',
        '"model.onnx", format="onnx", size=(512, 1024))': '"model.safetensors", format="safetensors")',
    }.items():
        assert line in example
        example = example.replace(line, tiny)
    monkeypatch.chdir(home)
    names: dict = {}
    exec(compile(example, "api.md", "exec"), names)
    assert isinstance(names["model"], m2f.Segmenter) and isinstance(names["result"], m2f.PanopticMap)
    assert isinstance(names["dataset"], m2f.Dataset) and isinstance(names["dataset"].records[0], m2f.Record)
    assert isinstance(names["report"], m2f.EvalResult) and names["report"].images == 2
    assert isinstance(names["config"], m2f.Config) and isinstance(names["run"], m2f.TrainOutcome)
    assert names["network"].num_classes == 133
    assert json.loads((home / "export.json").read_text())["format"] == "safetensors"


def test_evaluate_gives_the_figures_of_the_command(home):
    model = m2f.load(home / "run", device="cpu")
    data = synthetic_dataset("val", 2, size=(64, 96))
    report = m2f.evaluate(model, data, ["pq", "miou"])
    from m2f_cli.evaluation.evaluate import default_metrics, evaluate

    metrics = default_metrics("panoptic", model.categories, also=("semantic",))
    expected = evaluate(model, data.records, metrics).figures
    assert report.figures == approx(expected, nan_ok=True) and report.images == 2
    assert m2f.evaluate(model, data, limit=1).images == 1


def test_evaluate_refuses_other_classes_than_the_models(home):
    scenes_as_coco(home / "other", count=1, size=(64, 96))
    with pytest.raises(m2f.DataError, match="classes"):
        m2f.evaluate(m2f.load(home / "run", device="cpu"), m2f.open_dataset(home / "other", "val"))


def test_a_model_in_bf16_is_exported_and_compared_in_fp32(home):
    model = m2f.load(home / "run", device="cpu", precision="bf16")
    report = m2f.export(model, home / "from-bf16.safetensors", format="safetensors")
    assert all(value == 0 for each in report.comparisons for name, value in each.figures().items() if "large" in name)
    assert model.precision == "bf16"


def test_export_takes_options_by_name_and_refuses_unknown_ones(home):
    model = m2f.load(home / "run", device="cpu")
    report = m2f.export(model, home / "half.safetensors", format="safetensors", precision="fp16")
    assert isinstance(report, m2f.ExportReport) and report.options.precision == "fp16"
    with pytest.raises(TypeError, match="colour"):
        m2f.export(model, home / "x.safetensors", format="safetensors", colour="red")
