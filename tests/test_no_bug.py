"""No value that a user types and no file that a user has is called a bug in m2f."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.folders import write_random_image
from helpers.presets import read_once
from training.tiny import settings

from m2f_cli import cli, weights
from m2f_cli.data.synthetic.scenes import CATEGORIES
from m2f_cli.model import build

LONG = "x" * 5000


@pytest.fixture(scope="module")
def weights_of_a_run(tmp_path_factory):
    path, loaded = tmp_path_factory.mktemp("weights") / "best.safetensors", settings()
    return weights.save(path, build(loaded.model, len(CATEGORIES)).state_dict(), loaded, CATEGORIES)


@pytest.fixture(autouse=True)
def in_a_folder_with_a_run(tmp_path, monkeypatch, weights_of_a_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.delenv("M2F_DEBUG", raising=False)
    monkeypatch.setenv("M2F_OFFLINE", "1")
    Path("run/checkpoints").mkdir(parents=True)
    shutil.copy(weights_of_a_run, "run/checkpoints")
    write_random_image(Path("a.png"), (64, 96))
    Path("text.txt").write_text("hello")
    Path("empty").mkdir()
    Path("folder.yaml").mkdir()
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    Path("list.yaml").write_text("- 1\n")
    Path("long.yaml").write_text(f"extends: {LONG}\n")


def refused(capsys, *arguments: str) -> str:
    """The one sentence of a command that cannot be done."""
    assert cli.run(list(arguments)) in range(1, 6)
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "bug in m2f" not in err and "Traceback" not in err and len(errors) == 1
    return errors[0]


PREDICT = ["predict", "a.png", "--model", "run", "--out", "o"]
EVAL = ["eval", "--model", "run", "--limit", "1", "--out", "o", "--device", "cpu"]
EXPORT = ["export", "--model", "run"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*PREDICT, "--save", ":"],
        [*PREDICT, "--save", "os:system"],
        [*PREDICT, "--save", "..:.."],
        [*PREDICT, "--save", "json:dumps"],
        [*PREDICT, "--save", "m2f_cli.errors:nearest"],
        [*PREDICT, "--save", "a:b"],
        [*PREDICT, "--device", "meta"],
        [*PREDICT, "--device", "privateuseone"],
        [*PREDICT, "--device", ""],
        [*PREDICT[:-1], LONG],
        [*PREDICT[:-1], "text.txt/x"],
        ["predict", LONG, "--model", "run"],
        [*EVAL, "--metric", ":"],
        [*EVAL, "--metric", "os:system"],
        [*EVAL, "--metric", "json:dumps"],
        [*EVAL, "--metric", "m2f_cli.errors:nearest"],
        [*EVAL, "--save", "os:system"],
        [*EVAL, "--data", LONG],
        [*EVAL, "--data", "text.txt"],
        [*EVAL, "--out", LONG],
        [*EVAL, "--split", "../val", "--data", "empty"],
        ["eval", "--model", LONG],
        ["eval", "--preset", "long.yaml"],
        ["eval", "--preset", "folder.yaml"],
        ["eval", "--preset", "bytes.yaml", "--model", "run"],
        ["eval", "--preset", "list.yaml", "--model", "run"],
        ["eval", "--compare", LONG, "run"],
        ["eval", "--predictions", LONG, "--ground-truth", "run"],
        [*EXPORT, "--format", "os:system"],
        [*EXPORT, "--format", ":"],
        [*EXPORT, "--batch", "²"],
        [*EXPORT, "--out", f"{LONG}.onnx"],
        [*EXPORT, "--option", "x=["],
        [*EXPORT, "--option", "x=2024-02-31"],
        ["presets", "show", LONG],
        ["presets", "show", "long.yaml"],
        ["presets", "copy", "tiny", f"{LONG}.yaml"],
        ["presets", "copy", "tiny", "text.txt/x.yaml"],
        ["presets", "copy", "tiny", "/proc/x.yaml"],
        ["reproduce", LONG],
        ["reproduce", "coco-panoptic-r50", "--data", "text.txt", "--out", "r"],
        ["bench", "--what", "a:b"],
        pytest.param(["bench", "--model", LONG, "--rounds", "1"], marks=pytest.mark.slow),
        ["data", "check", "empty", "--format", "os:system"],
        ["data", "check", "empty", "--format", ":"],
        ["data", "convert", "empty", "x", "--to", "os:system"],
        ["data", "prepare", "os:system", "--root", "empty"],
        ["data", "view", LONG],
    ],
    ids=lambda arguments: " ".join(each[:25] for each in arguments),
)
def test_values_that_make_no_sense(arguments, capsys):
    refused(capsys, *arguments)


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b'{"options": [1]}', b'{"options": {"data": 5}}', b"\xff", b"[" * 9**5], ids=range(6)
)
def test_a_damaged_record_of_a_run(content, capsys):
    Path("run/env.json").write_bytes(content)
    assert "env.json" in refused(capsys, *EVAL)
    Path("run/config.yaml").write_text("name: x\n")
    refused(capsys, "train", "--out", "run", "--resume")


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch": "many"},
        {"micro_batch": -1},
        {"freeze": 5},
        {"loggers": "abc"},
        {"keep": None},
        {"keep": -1},
        {"val_pictures": -5},
        {"data": [1]},
        {"compile": "perhaps"},
    ],
    ids=str,
)
def test_options_of_other_kinds_in_a_run_that_is_resumed(options, capsys):
    from m2f_cli.config import presets as config

    Path("run/config.yaml").write_text(config.dump(settings()))
    Path("run/env.json").write_text(json.dumps({"options": options}))
    assert f"the option {next(iter(options))}" in refused(capsys, "train", "--out", "run", "--resume")


@pytest.mark.parametrize("content", ["[]", "{}", "x", '{"file": 5}', '{"file": "../run/env.json"}', '{"file": "/a"}'])
def test_a_damaged_record_of_an_export(content, capsys):
    Path("empty/export.json").write_text(content)
    assert "export.json" in refused(capsys, "predict", "a.png", "--model", "empty", "--out", "o")


def with_line(change) -> None:
    """The journal of an evaluation of one image, with another header and line."""
    lines = Path("done/pictures.jsonl").read_text().splitlines()
    Path("b").exists() and shutil.rmtree("b")
    shutil.copytree("done", "b")
    Path("b/pictures.jsonl").write_text("\n".join(change(*lines)) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda head, line: ("[]", line),
        lambda head, line: ('{"header": 5}', line),
        lambda head, line: (head, "5"),
        lambda head, line: (head, '{"name": 5, "number": 0}'),
        lambda head, line: (head, '{"name": "a", "number": 0}'),
        lambda head, line: (head, '{"name": "a", "number": 0, "metrics": {"ap": {}}}'),
        lambda head, line: (head, '{"name": "a", "number": 0, "metrics": {"pq": {"classes": [[0, ["x"], 1, 1]]}}}'),
        lambda head, line: (head, "[" * 100_000),
        lambda head, line: ("[" * 100_000, line),
    ],
    ids=["head-list", "head-number", "line-number", "name", "metrics", "no-metric", "state", "deep", "deep-head"],
)
def test_a_damaged_journal_of_an_evaluation(change, capsys):
    assert cli.run([*EVAL[:-4], "--out", "done", "--device", "cpu"]) == 0
    capsys.readouterr()
    with_line(change)
    refused(capsys, "eval", "--compare", "b", "done")
    refused(capsys, *EVAL[:-4], "--out", "b", "--device", "cpu", "--resume")


def row(**change) -> str:
    published = {"metric": "pq", "setting": "single scale", "measured": 5.0, "comparable": True, **change}
    model = {"name": "coco-panoptic-r50", "source": "coco-panoptic-r50 (x)"}
    return json.dumps({"model": model, "published": [published], "settings": {}})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "5",
        '{"model": 5}',
        '{"model": {"name": []}}',
        '{"model": {"name": "x", "source": "x (y)"}, "published": 5}',
        '{"model": {"name": "x", "source": "x (y)"}, "published": [{}]}',
        row(measured="x"),
        row(metric=[1]),
        row(measured=None),
        '{"images_per_second": "x", "model": {"name": "coco-panoptic-r50"}}',
        "[" * 100_000,
        '{"images_per_second": 1, "model": [1]}',
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("place", ["eval/x/results.json", "bench/x.json"])
def test_results_of_somebody_in_the_tables(content, place, capsys, monkeypatch):
    read_once(monkeypatch)
    path = Path("runs", place)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    for form in ("terminal", "json", "csv", "markdown"):
        assert cli.run(["presets", "table", "coco-panoptic-r50", "--format", form]) in (0, 3)
        assert "bug in m2f" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["[]", "{}", "x", '{"images_per_second": 1}', '{"images_per_second": 1, "model": 5}', "[" * 9**5]
)
def test_results_that_a_benchmark_goes_on_with(content, monkeypatch, capsys):
    from m2f_cli.benchmark import report as results

    monkeypatch.setattr(results, "table_presets", list)
    Path("empty/x.json").write_text(content)
    code = cli.run(["bench", "--preset", "all", "--skip-existing", "--out", "empty", "--device", "cpu"])
    assert code in (0, 3) and "bug in m2f" not in capsys.readouterr().err


def test_what_the_machine_says_is_told_as_it_is(monkeypatch, capsys):
    def fails(*_):
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("m2f_cli.workflows.doctor.diagnose", fails)
    assert refused(capsys, "doctor") == "error: Permission denied: /some/file"
