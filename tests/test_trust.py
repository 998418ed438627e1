"""Nothing that stands in a file is imported unless the user says so: every entry that reads a file is tried."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export.tiny import tiny_segmenter
from PIL import Image
from training.tiny import settings

import m2f_cli
from m2f_cli import cli, plugins, weights
from m2f_cli.benchmark.case import Case
from m2f_cli.config import presets as config
from m2f_cli.config.schema import Component, Config
from m2f_cli.data.synthetic.scenes import CATEGORIES
from m2f_cli.errors import ConfigError
from m2f_cli.evaluation import compare
from m2f_cli.export.base import ExportOptions, export
from m2f_cli.inference.engines import base as engines
from m2f_cli.model import build
from m2f_cli.results import writers as output
from m2f_cli.runtime import jsonl
from m2f_cli.training import resume as state

EVIL = "evil_of_somebody"
CODE = """
import pathlib
pathlib.Path(__file__).with_name("MARKER").touch()
from m2f_cli.data.transforms.resize import Flip
from m2f_cli.results.writers import write_overlay as write
from m2f_cli.metrics.panoptic_quality import PanopticQuality as Metric
from m2f_cli.model.backbones.swin import Swin
from m2f_cli.model.decoders.masked import MaskedDecoder
from m2f_cli.model.pixel_decoders.deformable import DeformablePixelDecoder
"""
PARTS = {"backbone": "Swin", "pixel_decoder": "DeformablePixelDecoder", "decoder": "MaskedDecoder"}
ON_CPU = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch) -> Path:
    """The file that importing the evil module would make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / f"{EVIL}.py").write_text(CODE)
    importlib.invalidate_caches()
    yield tmp_path / "MARKER"
    sys.modules.pop(EVIL, None)


def evil(part: str = "backbone") -> Config:
    """The tiny configuration with code of somebody's as one of its parts; "augment" is a step of the augmentation."""
    clean = settings("train.iterations=2", "train.batch=2", "train.checkpoint_every=1")
    if part == "augment":
        steps = tuple(
            each.model_copy(update={"name": f"{EVIL}:Flip"}) if each.name == "flip" else each
            for each in clean.train.augment
        )
        return clean.model_copy(update={"train": clean.train.model_copy(update={"augment": steps})})
    named = getattr(clean.model, part).model_copy(update={"name": f"{EVIL}:{PARTS[part]}"})
    return clean.model_copy(update={"model": clean.model.model_copy(update={part: named})})


def clean_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(settings().model, len(CATEGORIES))


def write_checkpoint(path: Path, part: str = "backbone") -> Path:
    return weights.save(path, clean_network().state_dict(), evil(part), CATEGORIES)


def write_random_image(path: Path) -> Path:
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(path)
    return path


def write_started_run(folder: Path) -> Path:
    """A run of one iteration, of built-in parts."""
    Path("clean.yaml").write_text(
        config.dump(settings("train.iterations=2", "train.batch=2", "train.checkpoint_every=1"))
    )
    assert (
        cli.run(
            [
                "train",
                "--preset",
                "clean.yaml",
                "--init",
                "random",
                "--workers",
                "0",
                "--out",
                str(folder),
                "--val-images",
                "1",
                *ON_CPU,
            ]
        )
        == 0
    )
    return folder


def write_evaluation(folder: Path, metric: str) -> Path:
    folder.mkdir()
    header = {"header": {"categories": [category.to_dict() for category in CATEGORIES]}}
    line = {"name": "x", "number": 0, "seconds": 1, "metrics": {metric: {"classes": []}}}
    (folder / "pictures.jsonl").write_text(f"{json.dumps(header)}\n{json.dumps(line)}\n")
    return folder


# --- entries ----------------------------------------------------------------------------------------------------------


def checkpoint(part="backbone"):
    write_checkpoint(Path("evil.safetensors"), part)
    return ["predict", str(write_random_image(Path("a.png"))), "--model", "evil.safetensors", "--out", "o", *ON_CPU]


def pixel_decoder_of_a_checkpoint():
    return checkpoint("pixel_decoder")


def decoder_of_a_checkpoint():
    return checkpoint("decoder")


def evaluated_run():
    write_checkpoint(Path("run/checkpoints/best.safetensors"))
    return ["eval", "--model", "run", "--out", "o", "--limit", "1", *ON_CPU]


def evaluated_as_a_preset():
    write_checkpoint(Path("evil.safetensors"))
    Path("clean.yaml").write_text(config.dump(settings()))
    return [
        "eval",
        "--preset",
        "clean.yaml",
        "--model",
        "evil.safetensors",
        "--out",
        "o",
        "--limit",
        "1",
        "--data",
        str(_scenes()),
        *ON_CPU,
    ]


def _scenes() -> Path:
    """Annotated scenes on disk."""
    from helpers.folders import write_ids, write_json

    from m2f_cli.data.synthetic.dataset import synthetic_dataset

    data = synthetic_dataset("val", 1, size=(64, 96), objects=(3, 8), difficulty=0.3, task="panoptic")
    [record] = data.records
    annotation = record.read_annotation()
    folder = Path("scenes")
    (folder / "val").mkdir(parents=True)
    Image.fromarray(record.read_image()).save(folder / "val" / "1.png")
    write_ids(folder / "panoptic_val" / "1.png", annotation.ids_HW)
    rows = [
        {"id": s.id, "category_id": data.categories[s.label].id, "iscrowd": 0, "area": 1} for s in annotation.segments
    ]
    write_json(
        folder / "annotations" / "panoptic_val.json",
        {
            "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 96}],
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": rows}],
            "categories": [{**c.to_dict(), "isthing": int(c.isthing)} for c in data.categories],
        },
    )
    return folder


def exported():
    write_checkpoint(Path("evil.safetensors"))
    return ["export", "--model", "evil.safetensors", "--format", "safetensors", "--out", "o/model.safetensors"]


def timed():
    write_checkpoint(Path("evil.safetensors"))
    return [
        "bench",
        "--model",
        "evil.safetensors",
        "--what",
        "post",
        "--rounds",
        "1",
        "--warm-up",
        "0",
        "--size",
        "64",
        "64",
        "--out",
        "o",
        *ON_CPU,
    ]


def replayed():
    tree = {
        "iteration": 3,
        "losses": {"loss_ce": float("nan")},
        "batches": [],
        "model": clean_network().state_dict(),
        "config": evil().model_dump_json(),
        "num_classes": len(CATEGORIES),
    }
    state.write(Path("trouble.pt"), tree)
    return ["train", "--replay", "trouble.pt", *ON_CPU]


def resumed(part="backbone"):
    folder = write_started_run(Path("run"))
    (folder / "config.yaml").write_text(config.dump(evil(part)))
    return ["train", "--out", "run", "--resume", "--workers", "0", *ON_CPU]


def resumed_augmentation():
    return resumed("augment")


def resumed_with_options_that_trust():
    arguments = resumed()
    tree = json.loads(Path("run/env.json").read_text())
    tree["options"] |= {"trust_code": True, "resume": False}
    del tree["crc32"]
    Path("run/env.json").write_text(json.dumps(tree))
    return arguments


def compared():
    write_evaluation(Path("a"), f"{EVIL}:Metric")
    write_evaluation(Path("b"), f"{EVIL}:Metric")
    return ["eval", "--compare", "a", "b"]


ENTRIES = [
    checkpoint,
    pixel_decoder_of_a_checkpoint,
    decoder_of_a_checkpoint,
    evaluated_run,
    evaluated_as_a_preset,
    exported,
    pytest.param(timed, marks=pytest.mark.slow),
    replayed,
    resumed,
    resumed_augmentation,
    resumed_with_options_that_trust,
    compared,
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_a_file_that_names_code_is_refused_before_anything_is_imported(entry, marker, capsys):
    arguments = entry()
    assert EVIL not in sys.modules and not marker.exists()
    capsys.readouterr()
    assert cli.run(arguments) == 2
    _, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "--trust-code" in errors[0] and f"{EVIL}:" in errors[0]
    assert "bug in m2f" not in err
    assert not marker.exists() and EVIL not in sys.modules
    assert cli.run([*arguments, "--trust-code"]) == 0
    assert marker.exists()


# --- files whose code nobody needs ------------------------------------------------------------------------------------


def started_from_it():
    """Its tensors go into a network that is there already."""
    write_checkpoint(Path("evil.safetensors"))
    Path("clean.yaml").write_text(config.dump(settings("train.iterations=1", "train.batch=2")))
    return [
        "train",
        "--preset",
        "clean.yaml",
        "--init",
        "evil.safetensors",
        "--workers",
        "0",
        "--out",
        "run",
        "--val-images",
        "1",
        *ON_CPU,
    ]


def started_from_a_part_of_it():
    return [*started_from_it(), "--init-partial"]


def started_from_its_backbone():
    """As `pretrained` of a configuration names it."""
    arguments = started_from_it()
    named = settings("train.iterations=1", "train.batch=2")
    backbone = named.model.backbone.model_copy(update={"pretrained": "evil.safetensors"})
    model = named.model.model_copy(update={"backbone": type(backbone)(**backbone.model_dump())})
    Path("clean.yaml").write_text(config.dump(named.model_copy(update={"model": model})))
    return [word for word in arguments if word not in ("--init", "evil.safetensors")]


def predicted_with_an_exported_file():
    """An exported file is run by its engine; its description is never built."""
    onnx = pytest.importorskip("onnx", reason="the extra m2f-cli[onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra m2f-cli[onnx] is not installed")
    export(tiny_segmenter("maskformer-resnet"), Path("model.onnx"), "onnx", ExportOptions(size=(64, 96)))
    model = onnx.load("model.onnx")
    [entry] = [each for each in model.metadata_props if each.key == engines.KEY]
    entry.value = json.dumps(json.loads(entry.value) | {"config": evil().model_dump(mode="json", exclude_none=True)})
    onnx.save(model, "model.onnx")
    return ["predict", str(write_random_image(Path("a.png"))), "--model", "model.onnx", "--out", "o", *ON_CPU]


def evaluation_that_goes_on():
    """The metrics are those that the user typed, whatever the journal has."""
    weights.save(Path("clean.safetensors"), clean_network().state_dict(), settings(), CATEGORIES)
    arguments = ["eval", "--model", "clean.safetensors", "--out", "o", *ON_CPU]
    assert cli.run([*arguments, "--limit", "1"]) == 0
    lines = [jsonl.parse(line) for _, line in jsonl.whole_lines(Path("o/pictures.jsonl"))]
    lines[1]["metrics"] |= {f"{EVIL}:Metric": {}}
    Path("o/pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [*arguments, "--resume"]


def presets_table_over_results():
    folder = Path("runs/eval/x")
    folder.mkdir(parents=True)
    tree = {"model": {"name": f"{EVIL}:Metric", "source": f"{EVIL}:Metric (x)"}, "published": [], "settings": {}}
    (folder / "results.json").write_text(json.dumps(tree))
    return ["presets", "table"]


@pytest.mark.parametrize(
    "entry",
    [
        started_from_it,
        started_from_a_part_of_it,
        started_from_its_backbone,
        pytest.param(predicted_with_an_exported_file, marks=pytest.mark.slow),
        evaluation_that_goes_on,
        presets_table_over_results,
    ],
    ids=lambda entry: entry.__name__,
)
def test_code_that_nobody_needs_is_not_run(entry, marker, capsys):
    arguments = entry()
    assert cli.run(arguments) == 0, capsys.readouterr().err
    assert not marker.exists() and EVIL not in sys.modules


@pytest.mark.parametrize(
    "journal", ["another metric in the header", "another metric in a line"], ids=lambda text: text.replace(" ", "-")
)
def test_a_journal_of_another_evaluation_is_refused(journal, marker, capsys):
    arguments = evaluation_that_goes_on()
    lines = [jsonl.parse(line) for _, line in jsonl.whole_lines(Path("o/pictures.jsonl"))]
    if journal.endswith("header"):
        lines[0]["header"]["metrics"] = [f"{EVIL}:Metric"]
    else:
        lines[1]["metrics"] = {f"{EVIL}:Metric": {}}
    Path("o/pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.run(arguments) in (2, 3)
    assert "bug in m2f" not in capsys.readouterr().err and not marker.exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"model_type": f"{EVIL}:Swin"},
        {"model_type": "mask2former", "backbone_config": {"model_type": f"{EVIL}:Swin"}},
        {"model_type": "mask2former", "use_timm_backbone": True, "backbone": "hf-hub:x/y"},
        {"model_type": "mask2former", "auto_map": {"AutoModel": f"{EVIL}.Swin"}},
    ],
)
def test_a_hugging_face_folder_names_no_code(tree, marker, capsys):
    folder = Path("hf")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tree))
    weights.save(folder / "model.safetensors", clean_network().state_dict(), settings(), CATEGORIES)
    shutil.copy(f"{EVIL}.py", folder)
    arguments = ["predict", str(write_random_image(Path("a.png"))), "--model", "hf", "--out", "o", *ON_CPU]
    for more in ([], ["--trust-code"]):
        assert cli.run([*arguments, *more]) == 4
        assert "bug in m2f" not in capsys.readouterr().err
    assert not marker.exists() and EVIL not in sys.modules


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "evil.pth"},
        {"pretrained_cfg": {"file": "evil.pth"}},
        {"pretrained_cfg_overlay": {}},
        {"cache_dir": "/tmp"},
        {"model": "hf-hub:somebody/model"},
        {"model": "local-dir:/tmp"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_configuration_cannot_make_timm_read_files(options, marker):
    pytest.importorskip("timm", reason="the extra m2f-cli[timm] is not installed")
    backbone = {"name": "timm", "model": "resnet18", **options}
    named = settings().model.model_copy(update={"backbone": Component(**backbone)})
    with pytest.raises(ConfigError, match="is none of a network|no timm model"):
        build(named, 3, trust_code=True)


# --- what the user typed ----------------------------------------------------------------------------------------------


def test_what_the_user_typed_may_name_code(marker, capsys):
    base = config.dump(evil())
    Path("base.yaml").write_text(base)
    Path("mine.yaml").write_text("extends: base\nname: mine\n")
    assert (
        cli.run(
            [
                "train",
                "--preset",
                "mine.yaml",
                "--init",
                "random",
                "--workers",
                "0",
                "--out",
                "run",
                "--val-images",
                "1",
                *ON_CPU,
            ]
        )
        == 0
    )
    assert marker.exists()
    capsys.readouterr()
    assert cli.run(["train", "--out", "run", "--resume", "--workers", "0", *ON_CPU]) == 2
    assert "config.yaml names code of its own" in capsys.readouterr().err.replace("\n", " ")
    assert cli.run(["train", "--out", "run", "--resume", "--workers", "0", "--trust-code", *ON_CPU]) == 0


@pytest.mark.parametrize("option", [["--metric", f"{EVIL}:Metric"], ["--save", f"{EVIL}:write"]])
def test_a_metric_or_format_that_the_user_typed_is_imported(option, marker, capsys):
    weights.save(Path("clean.safetensors"), clean_network().state_dict(), settings(), CATEGORIES)
    assert cli.run(["eval", "--model", "clean.safetensors", "--out", "o", "--limit", "1", *option, *ON_CPU]) == 0
    assert marker.exists()


def test_a_metric_that_the_user_typed_may_be_compared(marker, capsys):
    arguments = compared()
    assert cli.run([*arguments, "--metric", f"{EVIL}:Metric"]) == 0
    assert marker.exists()


# --- the library ------------------------------------------------------------------------------------------------------


def functions() -> list:
    """Every function and method of the package; a module that needs a missing extra has none."""
    found = []
    for module in pkgutil.walk_packages(m2f_cli.__path__, "m2f_cli."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:
            continue
        for value in vars(loaded).values():
            if inspect.isclass(value) and value.__module__ == module.name:
                found += [each for each in vars(value).values() if inspect.isfunction(each)]
            elif inspect.isfunction(value) and value.__module__ == module.name:
                found.append(value)
    return found


def test_nobody_trusts_by_default():
    names = ("trust_code", "trust_names")
    found = [
        (each.__qualname__, inspect.signature(each).parameters[name].default)
        for each in functions()
        for name in names
        if name in inspect.signature(each).parameters
    ]
    assert len(found) > 20
    assert [name for name, default in found if default not in (False, inspect.Parameter.empty)] == []


# The only places that trust: what the user typed, what this process wrote, and tensors without their code.
TRUSTING = {
    "commands/data/convert.py": 1,
    "commands/data/prepare.py": 1,
    "commands/data/reading.py": 1,
    "commands/data/split.py": 1,
    "commands/data/view.py": 1,
    "commands/eval.py": 2,
    "commands/export.py": 2,
    "commands/predict.py": 2,
    "export/safetensors.py": 1,
    "training/initialise.py": 1,
    "weights/pretrained.py": 1,
    "weights/trained_only.py": 1,
}


def test_few_places_trust():
    package, found = Path(m2f_cli.__file__).parent, {}
    for path in package.rglob("*.py"):
        given = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.keyword)
            and node.arg in ("trust_code", "trust_names")
            and isinstance(node.value, ast.Constant)
        ]
        trusting = sum(node.value.value is True for node in given)
        if trusting:
            found[path.relative_to(package).as_posix()] = trusting
    assert found == TRUSTING


@pytest.mark.parametrize("group", sorted(plugins.BUILT_IN))
def test_every_group_refuses_code(group, marker):
    with pytest.raises(ConfigError, match="names code of its own, 'evil_of_somebody:x'.*--trust-code"):
        plugins.get(group, f"{EVIL}:x")
    assert not marker.exists()


def test_functions_that_take_names_refuse_code(marker, tmp_path):
    name = f"{EVIL}:write"
    from helpers.fake_segmenter import FakeSegmenter, panoptic, scene_labels

    from m2f_cli.data.open_dataset import open_data
    from m2f_cli.dataset_tools.convert.run import convert
    from m2f_cli.dataset_tools.prepare.run import prepare
    from m2f_cli.evaluation.choose_metrics import choose
    from m2f_cli.inference.predict import predict

    for call in (
        lambda: output.save(panoptic(scene_labels()), tmp_path, [name]),
        lambda: panoptic(scene_labels()).save(tmp_path, name),
        lambda: output.writers_for([name], "panoptic"),
        lambda: predict(FakeSegmenter(), [], None, tmp_path / "o", [name]),
        lambda: choose([name], CATEGORIES, ["panoptic"], "panoptic"),
        lambda: open_data(tmp_path, "train", format=name),
        lambda: convert(tmp_path, tmp_path.parent / "x", name),
        lambda: prepare(name, tmp_path),
        lambda: engines.load(write_checkpoint(tmp_path / "x.safetensors"), engine=name),
        lambda: build(evil().model, 3),
        lambda: compare.compare(*(write_evaluation(tmp_path / each, name) for each in "ab")),
    ):
        with pytest.raises(ConfigError, match="names code of its own"):
            call()
    assert not marker.exists() and not Case(model="x").trust_code
