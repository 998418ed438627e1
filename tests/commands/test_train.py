"""m2f train from the command line."""

from __future__ import annotations

import json

import pytest

from m2f_cli import cli
from m2f_cli.config import presets as config
from m2f_cli.training.length import TimeBudget

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
            "model.backbone.depth=18",
            "model.pixel_decoder.num_layers=1",
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
    assert "Trained 3 iterations" in out and out.endswith(
        "Next: m2f predict IMAGES --model runs/train/tiny   or   m2f eval --model runs/train/tiny\n"
        "Report: runs/train/tiny/report.html\n"
    )
    assert "Training tiny" in (folder / "report.html").read_text()
    assert "6 images to train on, 2 to evaluate on, 9 classes (4 things, 5 stuff)" in err
    assert "backbone                  0 of      702,096 numbers are trained" in err
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
        ([*SMALL, "--epochs", "2"], 2, "are both set. Set one of them"),
        (["train", "--preset", "tiny", "--epochs", "-1"], 2, "train.epochs = -1.0"),
        ([*SMALL, "--patience", "2"], 2, "eval_every is 0 (only at the end): set eval_every, too"),
        ([*SMALL, "--set", "train.best_metric=pq_thing"], 2, "Did you mean pq_things"),
        ([*SMALL, "--time-budget", "soon"], 2, "--time-budget takes a duration with its unit, not 'soon'"),
        (["train", "--out", "r", "--resume", "--dry-run"], 2, "no run that could be resumed"),
        (["train", "--replay", "none.pt"], 4, "none.pt does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, says, capsys):
    assert cli.run(arguments) == code
    _, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]


@pytest.mark.slow
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


# --- how long, and what then ------------------------------------------------------------------------------------------


def without(words: list[str], key: str) -> list[str]:
    """The command without a --set of a key."""
    at = next(i for i, word in enumerate(words) if word.startswith(f"{key}="))
    return [*words[: at - 1], *words[at + 1 :]]


def test_epochs_are_said_once_and_written_as_iterations(tmp_path, capsys):
    by_epochs = without(SMALL, "train.iterations")
    assert cli.run([*by_epochs, "--epochs", "1", "--out", "a run"]) == 0
    out, err = capsys.readouterr()
    assert err.count("1 epoch of 6 images in batches of 2 are 3 iterations.") == 1
    assert "iteration 3/3: loss" in err
    assert out.splitlines()[-2:] == [
        "Next: m2f predict IMAGES --model 'a run'   or   m2f eval --model 'a run'",
        "Report: a run/report.html",
    ]
    train = config.load(tmp_path / "a run" / "config.yaml").train
    assert (train.iterations, train.epochs) == (3, None)
    for option in ("--epochs", "--patience"):
        assert cli.run(["train", "--out", "a run", "--resume", option, "4"]) == 2
        assert f"{option} cannot change a run that goes on" in capsys.readouterr().err


def test_an_early_end_is_told_and_so_is_what_comes_next(capsys):
    """A learning rate of almost nothing: no evaluation is better than the first."""
    slow = ["--set", "train.eval_every=1", "--set", "train.optimizer.learning_rate=1e-30", "--patience", "1"]
    assert cli.run([*SMALL, *slow, "--out", "r"]) == 0
    out, err = capsys.readouterr()
    assert "warning: Stopped early after 2 of 3 iterations: pq was not better in the last evaluation." in err
    assert out.startswith("Stopped early after 2 of 3 iterations. Best pq ") and "Next: m2f predict IMAGES" in out
    assert cli.run(["train", "--out", "r", "--resume", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ended"] == "early" and json.loads(out)["stopped"] is None
    assert "This run is over. To train its weights on: m2f train --init r --out NEW_RUN" in err


def test_a_time_budget_ends_a_run_that_goes_on_later(capsys, monkeypatch):
    monkeypatch.setattr(TimeBudget, "is_used_up", lambda self, evaluates: self.seconds == 5400)
    assert cli.run([*SMALL, "--out", "r", "--time-budget", "1h30m"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "The time budget is used up after 0 of 3 iterations.",
        "Next: m2f train --out r --resume",
        "Report: r/report.html",
    ]
    assert "The time budget is used up after 0 of 3 iterations. Everything is saved." in err
    assert cli.run(["train", "--out", "r", "--resume", "--device", "cpu"]) == 0
    assert "Trained 3 iterations" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    dry = [*SMALL, "--freeze", "backbone", "--dry-run", "--out", "r"]
    assert cli.run(dry) == 0
    out, err = capsys.readouterr()
    assert "train.iterations\t" in out and "Train: 6 images, 9 classes, " in out and "Val: 2 images" in out
    assert "backbone\t0\t702,096" in out and "starts from random numbers" in err
    assert "Estimate: " in out and "(steps: 3 x " in out and "evaluations: 1 x " in out
    assert out.endswith("Nothing was written. To do it: the same command without --dry-run.\n")
    assert cli.run([*dry, "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["changed"]["train.batch"] == {"preset": config.load("tiny").train.batch, "run": 2}
    assert tree["config"]["train"]["iterations"] == tree["iterations"] == 3 and tree["problems"] == []
    assert tree["data"]["train"]["images"] == 6 and tree["data"]["train"]["objects"] > 6
    assert 0 < tree["parameters"]["trainable"] < tree["parameters"]["total"]
    whole = 3 * tree["seconds"]["step"] + tree["evaluations"] * tree["seconds"]["evaluation"]
    assert tree["seconds"]["whole"] == pytest.approx(whole)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_a_run_would(tmp_path, capsys):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "holiday.jpg").touch()
    assert cli.run([*SMALL, "--dry-run", "--out", "r"]) == 2
    assert "r holds files already, and no run" in capsys.readouterr().err


def test_unknown_contents_of_checkpoints_and_nothing_to_leave_out_are_refused(capsys):
    assert cli.run([*SMALL, "--store", "some"]) == 2
    assert "'some'" in capsys.readouterr().err
    assert cli.run([*SMALL, "--store", "trained"]) == 2
    assert "there is no such tensor" in capsys.readouterr().err
