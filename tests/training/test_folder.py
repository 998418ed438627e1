"""The folder of a run: it can be gone on with whenever it was killed, by one process, on the same data."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.tiny import settings

from m2f_cli import cli
from m2f_cli.errors import ConfigError, M2FError
from m2f_cli.inference.load_network import load_model
from m2f_cli.runtime import files, locks
from m2f_cli.training import loggers as logs
from m2f_cli.training import lr_finder, run
from m2f_cli.training import resume as state
from m2f_cli.training.data import identity, open_splits, refuse_other_data
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener

OPTIONS = TrainOptions(init="random", device="cpu")
RESUME = replace(OPTIONS, resume=True)
CHANGES = ("train.batch=2", "train.iterations=4", "train.checkpoint_every=2")


class Killed(BaseException):
    """The process is gone: nothing else happens."""


@pytest.fixture
def no_rescue(monkeypatch):
    """A killed process saves nothing."""
    monkeypatch.setattr(run, "rescue", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.start(settings(*CHANGES), folder, OPTIONS)
    return folder


def model_of(folder: Path) -> dict:
    return state.read(folder / "checkpoints" / "resume.pt")["model"]


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = model_of(one), model_of(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def die_in(step):
    def on_step(now):
        if now.iteration == step:
            raise Killed

    return Listener(on_step=on_step)


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, whole, no_rescue):
    with pytest.raises(Killed):
        run.start(settings(*CHANGES), tmp_path / "run", OPTIONS, die_in(0))
    with pytest.raises(ConfigError, match="started already and has no checkpoint yet. Use --resume, which begins it"):
        run.start(settings(*CHANGES), tmp_path / "run", OPTIONS)
    notes = []
    listener = Listener(on_start=lambda started: notes.extend(started.notes))
    run.start(settings("train.seed=5"), tmp_path / "run", RESUME, listener)
    assert "No checkpoint was written: the run begins anew, as it was started." in notes
    assert_same_weights(whole, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "train"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("config.yaml", 1),
        ("resume.pt", 2),
        ("last.safetensors", 1),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("env.json", 1),
                ("0_scene-000000.jpg", 1),
                ("resume.pt", 1),
                ("last.safetensors", 2),
                ("best.safetensors", 1),
                ("curves.png", 1),
                ("results.json", 1),
            )
        ),
    ],
)
def test_a_kill_while_a_file_is_written_ends_no_run(tmp_path, whole, no_rescue, monkeypatch, name, time):
    real, seen = os.replace, []

    def dying(part, path):
        seen.append(Path(path).name)
        if seen.count(name) == time:
            raise Killed
        real(part, path)

    monkeypatch.setattr(files.os, "replace", dying)
    with pytest.raises(Killed):
        run.start(settings(*CHANGES), tmp_path / "run", OPTIONS)
    monkeypatch.setattr(files.os, "replace", real)
    if name in ("env.json", "config.yaml"):  # it is no run yet, and starts as if nothing had been there
        run.start(settings(*CHANGES), tmp_path / "run", OPTIONS)
    else:
        run.start(settings(*CHANGES), tmp_path / "run", RESUME)
    assert_same_weights(whole, tmp_path / "run")
    for kind in ("last", "best"):
        states = [
            load_model(each / "checkpoints" / f"{kind}.safetensors").model.state_dict()
            for each in (whole, tmp_path / "run")
        ]
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert json.loads((tmp_path / "run" / "results.json").read_text())["iteration"] == 4


def test_a_resumed_run_leaves_what_says_how_it_was_started_and_removes_unfinished_files(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    parts = [folder / ".1234-5.part", folder / "checkpoints" / ".1234-5.part"]
    for part in parts:
        part.write_text("half")
    before = {name: (folder / name).stat().st_ino for name in ("config.yaml", "env.json")}
    run.start(settings(), folder, RESUME, command=["other"])
    assert {name: (folder / name).stat().st_ino for name in before} == before
    assert not any(part.exists() for part in parts)
    run.start(settings(), folder, replace(RESUME, keep=3))
    environment = json.loads((folder / "env.json").read_text())
    assert environment["options"]["keep"] == 3 and environment["options"]["init"] == "random"


@pytest.mark.parametrize("options", [OPTIONS, RESUME], ids=["start", "resume"])
@pytest.mark.parametrize("name", ["last", "best", "iteration_0000002"])
def test_weights_without_what_resuming_needs_are_not_trained_over(tmp_path, whole, options, name):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    weights = tmp_path / "run" / "checkpoints" / f"{name}.safetensors"
    shutil.copy(whole / "config.yaml", tmp_path / "run")
    shutil.copy(whole / "checkpoints" / "last.safetensors", weights)
    before = weights.read_bytes()
    with pytest.raises(ConfigError, match=r"has weights but no checkpoints/resume.pt.* m2f train --init .*run --out"):
        run.start(settings(), tmp_path / "run", options)
    assert weights.read_bytes() == before


@pytest.mark.parametrize("name", ["best.safetensors", "iteration_0000001.safetensors"])
def test_weights_are_written_after_what_resuming_needs(tmp_path, no_rescue, monkeypatch, name):
    """So a run killed beside its first weights can go on."""
    real = os.replace

    def dying(part, path):
        real(part, path)
        if Path(path).name == name:
            raise Killed

    changes = ("train.batch=1", "train.iterations=1", "train.eval_every=1", "data.scenes.val=1")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying)
        with pytest.raises(Killed):
            run.start(settings(*changes), tmp_path / "run", replace(OPTIONS, keep=1))
    assert (tmp_path / "run" / "checkpoints" / name).is_file()
    assert run.start(settings(), tmp_path / "run", replace(RESUME, keep=1)).iteration == 1
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"resume.pt", "last.safetensors", "best.safetensors", "iteration_0000001.safetensors"}


def test_a_file_of_somebody_else_that_is_called_env_json_is_kept(tmp_path):
    (tmp_path / "env.json").write_text('{"options": {}, "mine": 1}')
    with pytest.raises(ConfigError, match="holds files already, and no run"):
        run.start(settings(), tmp_path, OPTIONS)
    assert "mine" in (tmp_path / "env.json").read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"options": 1}', '{"options": {"keep": "x"}}'])
def test_a_damaged_record_is_one_sentence(tmp_path, whole, content, capsys):
    """Of an m2f that did not write it whole."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "env.json").write_text(content)
    assert cli.run(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    err = capsys.readouterr().err
    assert "env.json" in err and "Remove it, and give --data and the other options" in err and "bug" not in err
    (tmp_path / "run" / "env.json").unlink()
    assert cli.run(["train", "--out", str(tmp_path / "run"), "--resume", "--device", "cpu"]) == 0


def test_a_damaged_configuration_says_what_to_do(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("")
    assert cli.run(["train", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert f"m2f train --init {tmp_path / 'run'} --out NEW_RUN" in capsys.readouterr().err


# --- another process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [OPTIONS, RESUME], ids=["start", "resume"])
def test_a_second_process_is_refused(tmp_path, whole, options):
    shutil.copytree(whole, tmp_path / "run")
    refused = pytest.raises(ConfigError, match=rf"A training is at work in .*run already \(process {os.getpid()} on ")
    with locks.locked(tmp_path / "run", "A training"):
        with refused:
            run.start(settings(), tmp_path / "run", options)
        with refused:
            lr_finder.search(settings(), tmp_path / "run", OPTIONS)


def test_a_folder_with_nothing_but_remains_of_a_start_is_a_new_one(tmp_path):
    for name in (".m2f.lock", ".m2f.lock.json", ".1-2.part", "lr_finder.json"):
        (tmp_path / name).write_text("")
    run.start(settings(*CHANGES, "train.iterations=1"), tmp_path, OPTIONS)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- other data -------------------------------------------------------------------------------------------------------


def label_maps(root: Path, names: list[str], images: int) -> Path:
    for split in ("train", "val"):
        for number in range(images):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            mask = np.zeros((64, 96), np.uint8)
            mask[10:40] = 1
            Image.fromarray(np.full((64, 96, 3), 100 + number, np.uint8)).save(root / f"images/{split}/{number}.png")
            Image.fromarray(mask).save(root / f"labels/{split}/{number}.png")
    (root / "classes.txt").write_text("\n".join(names))
    return root


SMALLER = ("model.backbone.depth=18", "model.pixel_decoder.num_layers=1")


def test_other_data_is_refused_with_a_way_to_train_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    label_maps(tmp_path / "one", ["a", "b"], 3)
    start = [
        "train",
        "--preset",
        "tiny",
        "--init",
        "random",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--batch",
        "1",
        *(word for pair in (*SMALLER, "train.iterations=1", "train.loss.num_points=32") for word in ("--set", pair)),
    ]
    assert cli.run([*start, "--data", "one", "--out", "run"]) == 0
    config_before = (tmp_path / "run" / "config.yaml").read_bytes()
    resume = ["train", "--out", str(tmp_path / "run"), "--resume", "--device", "cpu", "--workers", "0"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli.run(resume) == 0, "the data is found from any folder"
    shutil.copytree(tmp_path / "one", elsewhere / "moved")
    assert cli.run([*resume, "--data", "moved"]) == 0, "the same data in another place"
    other = {
        "class 0 was 'a' and is 'x' now": label_maps(tmp_path / "names", ["x", "y"], 3),
        "it had 2 classes and has 3 now": label_maps(tmp_path / "classes", ["a", "b", "c"], 3),
        "it had 3 images to train on and has 4 now": label_maps(tmp_path / "more", ["a", "b"], 4),
    }
    capsys.readouterr()
    for says, folder in other.items():
        assert cli.run([*resume, "--data", str(folder)]) == 2
        err = capsys.readouterr().err
        assert f"The data is not what {tmp_path / 'run'} was trained on: {says}." in err
        assert f"m2f train --init {tmp_path / 'run'} --data DIR --out NEW_RUN" in err
    label_maps(elsewhere / "moved", ["a", "b"], 4)  # images were added to the folder of the run, which is this one now
    assert cli.run(resume) == 2 and "has 4 now" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config_before


def test_what_identifies_data(tmp_path):
    train, _ = open_splits(settings(), None, None, [])
    same = identity(train)
    refuse_other_data(same, json.loads(json.dumps(same)), tmp_path)
    record = train.records[0]
    things = tuple(replace(category, isthing=not category.isthing) for category in train.categories)
    for other, says in (
        (replace(train, format="coco"), "the format was synthetic and is coco now"),
        (replace(train, task="semantic"), "the task was panoptic and is semantic now"),
        (replace(train, categories=things), "other classes are countable"),
        (replace(train, records=train.records[::-1]), "another order"),
        (replace(train, records=[replace(record, name="x"), *train.records[1:]]), "other names"),
        (replace(train, records=[replace(record, labels=(3,)), *train.records[1:]]), "classes"),
    ):
        with pytest.raises(ConfigError, match=says):
            refuse_other_data(same, identity(other), tmp_path)


def test_a_run_that_does_not_say_its_data_goes_on_with_a_note(tmp_path, whole):
    """Of an older m2f."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "resume.pt"
    tree = state.read(path)
    for key in ("data", "evaluated", "in_a_row"):
        del tree[key]
    state.write(path, tree)
    notes = []
    run.start(settings(), tmp_path / "run", RESUME, Listener(on_start=lambda started: notes.extend(started.notes)))
    assert any("whether this is the same data is not checked" in note for note in notes)


# --- places that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "file/x", "/proc/x", "x" * 300])
@pytest.mark.parametrize("more", [[], ["--find-lr"]], ids=["train", "find-lr"])
def test_an_out_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys, name, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert cli.run(["train", "--preset", "tiny", "--init", "random", "--out", name, *more]) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: Cannot write {name}: ") and "bug" not in error
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_numbers_on_a_full_disk_are_one_sentence_and_half_a_line_is_forgotten(tmp_path):
    log = logs.JsonLinesLogger(tmp_path / "metrics.jsonl")
    log.log("train", 0, {"loss": 1.0})
    whole_file, short = log.file, []

    class Full:
        def write(self, line):
            short.append(line)
            return whole_file.write(line[:7])

        def close(self):
            whole_file.close()

    log.file = Full()
    with pytest.raises(M2FError, match=r"Cannot write .*metrics.jsonl: No space left on device"):
        log.log("train", 1, {"loss": 2.0})
    log.close()
    again = logs.JsonLinesLogger(tmp_path / "metrics.jsonl", from_iteration=1)
    again.log("train", 1, {"loss": 3.0})
    again.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1.0, 3.0]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_all_files_of_a_run_and_of_its_exports_obey_the_umask(tmp_path, umask):
    from m2f_cli.export.base import export
    from m2f_cli.inference.load import load

    old = os.umask(umask)
    try:
        run.start(settings(*CHANGES, "train.iterations=1"), tmp_path / "run", replace(OPTIONS, keep=1))
        model = load(tmp_path / "run", device="cpu")
        export(model, tmp_path / "out" / "x.safetensors", "safetensors")
        files.write_text(tmp_path / "plain", "")
    finally:
        os.umask(old)
    modes = {str(path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: mode for path, mode in modes.items() if mode != 0o666 & ~umask} == {}
