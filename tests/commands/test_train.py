"""m2f train from the command line."""

from __future__ import annotations

import json

import pytest

from m2f_cli import cli
from m2f_cli.config import presets as config

SMALL = [
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
    "2",
    *(
        word
        for pair in (
            "data.scenes.train=6",
            "data.scenes.val=2",
            "data.scenes.size=[64, 96]",
            "train.loss.num_points=32",
            "train.iterations=3",
            "train.checkpoint_every=2",
            "train.schedule.warmup_iterations=0",
        )
        for word in ("--set", pair)
    ),
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_and_what_it_says(tmp_path, capsys):
    assert cli.run([*SMALL, "--freeze", "backbone", "--keep", "1"]) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "runs" / "train" / "tiny"
    assert "Trained 3 iterations" in out and "m2f predict YOUR_IMAGES --model runs/train/tiny" in out
    assert "6 images to train on, 2 to evaluate on, 9 classes (4 things, 5 stuff)" in err
    assert "backbone                  0 of    1,480,976 numbers are trained" in err
    assert "starts from random numbers" in err and "iteration 3/3: loss" in err and "pq" in err
    numbered = [p.name for p in (folder / "checkpoints").glob("iteration_*")]
    assert numbered == ["iteration_0000003.safetensors"]
    assert config.load(folder / "config.yaml").train.batch == 2
    image = next((folder / "samples").glob("*.jpg"))
    assert cli.run(["predict", str(image), "--model", str(folder), "--out", "o"]) == 0


def test_a_run_is_not_overwritten_and_goes_on_as_it_was_started(tmp_path, capsys):
    assert cli.run([*SMALL, "--out", "r", "--json", "--val-images", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["iteration"], first["stopped"], first["schema_version"]) == (3, None, 1)
    assert cli.run([*SMALL, "--out", "r"]) == 2
    assert "The run r exists already. Use --resume to go on" in capsys.readouterr().err
    assert cli.run(["train", "--out", "r", "--resume", "--device", "cpu", "--json"]) == 0
    again, err = capsys.readouterr()
    assert json.loads(again)["best"] == first["best"] and "Evaluation uses the first 1 of 2" in err
    assert cli.run(["train", "--out", "r", "--resume", "--batch", "4"]) == 2
    assert "--batch cannot change a run that goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train"], 2, "Nothing says what to train"),
        (["train", "--preset", "tinny"], 2, "Did you mean tiny"),
        (["train", "--preset", "coco-panoptic-r50"], 2, "trains on coco, and m2f does not know where that is"),
        (["train", "--preset", "ade20k-r50", "--data", "nowhere"], 3, "nowhere"),
        ([*SMALL, "--set", "train.optimizer.learning_rat=1"], 2, "learning_rate"),
        ([*SMALL, "--freeze", "backbon"], 2, "Did you mean backbone"),
        ([*SMALL, "--logger", "tensorbord"], 2, "Did you mean tensorboard"),
        ([*SMALL, "--micro-batch", "3"], 2, "no multiple of the 3"),
        ([*SMALL, "--batch", "many"], 2, "train.batch = 'many'"),
        ([*SMALL, "--batch", "0"], 2, "train.batch = 0"),
        ([*SMALL, "--batch", "auto", "--micro-batch", "2"], 2, "Leave one of them out"),
        (["train", "--out", "r", "--resume", "--find-lr"], 2, "no run that could be resumed"),
        (["train", "--out", "none", "--resume"], 2, "no run that could be resumed"),
        (["train", "--replay", "none.pt"], 4, "none.pt does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, says, capsys):
    assert cli.run(arguments) == code
    _, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]


def test_find_lr_suggests_a_rate_and_leaves_room_for_the_run(tmp_path, capsys):
    sweep = [*SMALL, "--out", "r", "--set", "train.iterations=10", "--set", "train.optimizer.clip_norm=1.0"]
    assert cli.run([*sweep, "--find-lr", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["option"] == f"--set train.optimizer.learning_rate={found['suggested']:g}"
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["lr_finder.json", "lr_finder.png"]
    assert cli.run([*sweep, "--find-lr"]) == 0
    out, err = capsys.readouterr()
    assert f"Suggested: {found['option']} (the preset has 0.002)" in out and "lr_finder.png" in out
    assert "starts from random numbers" in err
    assert cli.run([*sweep, *found["option"].split(), "--set", "train.iterations=1"]) == 0
    assert config.load(tmp_path / "r" / "config.yaml").train.optimizer.learning_rate == found["suggested"]


def test_batch_auto_is_said_once_and_kept_for_resuming(tmp_path, capsys):
    assert cli.run([*SMALL, "--batch", "auto", "--set", "train.batch=4", "--out", "r"]) == 0
    assert capsys.readouterr().err.count("--batch auto: ") == 1
    kept = json.loads((tmp_path / "r" / "env.json").read_text())["options"]["micro_batch"]
    assert kept in (1, 2, 4) and config.load(tmp_path / "r" / "config.yaml").train.batch == 4
