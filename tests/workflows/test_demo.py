"""m2f demo, whole: few scenes and few steps, but the real training, evaluation and prediction."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.command_tree import COMMANDS
from PIL import Image

from m2f_cli import cli
from m2f_cli.commands.demo import DemoDisplay
from m2f_cli.config import presets as config
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.errors import ConfigError
from m2f_cli.inference import load
from m2f_cli.workflows import demo

TASKS = ("panoptic", "semantic", "instance")
SMALL = (
    *("model.backbone.depth=18", "model.pixel_decoder.num_layers=1"),
    *("data.scenes.train=8", "data.scenes.val=3", "train.batch=2", "train.loss.num_points=64"),
)


def small_config(iterations=None):
    return config.load("tiny", [*SMALL, f"train.iterations={iterations or 2}"])


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "demo_config", small_config)
    monkeypatch.setattr(demo, "fitting_iterations", lambda _: 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo of two images, made once."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "demo_config", small_config)
        patch.setattr(demo, "fitting_iterations", lambda _: 2)
        begun, told = [], []
        steps = demo.run(folder, 2, on_begin=begun.append, on_step=told.append)
    assert told == steps and len(steps) == demo.STEPS and begun == [step.name for step in steps] == [*demo.TITLES]
    return folder, steps


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_written(made):
    folder, steps = made
    found = names(folder)
    for name in ("scene-00", "scene-01"):
        expected = {f"pictures/{name}.png", f"truth/{name}.jpg", *(f"predict/{t}/overlay/{name}.jpg" for t in TASKS)}
        assert expected <= found
    assert {"run/checkpoints/best.safetensors", "run/curves.png", "run/results.json", "index.html"} <= found
    assert not [name for name in found if "tmp" in name or name.endswith(".part")]
    assert [step.name for step in steps] == ["pictures", "truth", "train", "evaluate", *TASKS, "page"]
    assert all(step.where.exists() and step.seconds >= 0 for step in steps)


def test_the_page_shows_the_images_the_measured_quality_and_the_commands(made):
    folder, steps = made
    page = (folder / "index.html").read_text()
    shown = re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', page)
    files = ("pictures/{}.png", "truth/{}.jpg", "predict/panoptic/overlay/{}.jpg", "predict/instance/overlay/{}.jpg")
    expected = [folder / file.format(name) for name in ("scene-00", "scene-01") for file in files]
    assert [base64.b64decode(each) for each in shown] == [path.read_bytes() for path in expected]
    value = json.loads((folder / "run" / "results.json").read_text())["best"]["value"]
    assert f"<dd>{value:.1f}</dd>" in page and all(f">{name}</th>" in page for name in ("circle", "grass"))
    commands = [step.command for step in steps if step.command]
    assert len(commands) == 2 + len(TASKS) and all(html.escape(command) in page for command in commands)


def test_the_commands_on_the_page_are_complete_and_name_existing_options(made):
    _, steps = made
    for line in [*(step.command for step in steps if step.command), *(line for _, line in demo.NEXT)]:
        words = shlex.split(line)
        name = next(name for name in sorted(COMMANDS, key=len, reverse=True) if line.startswith(f"{name} "))
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_commands_repeat_the_evaluation_and_the_prediction(made, tmp_path, monkeypatch, capsys):
    folder, steps = made
    commands = {step.name: step.command.replace(f"{folder}-again", str(tmp_path)) for step in steps}
    monkeypatch.setattr("sys.argv", ["m2f"])
    assert cli.run([*shlex.split(commands["evaluate"])[1:], "--limit", "1"]) == 0
    assert cli.run(shlex.split(commands["panoptic"])[1:]) == 0
    name = "panoptic/scene-01.png"
    assert (tmp_path / "panoptic" / name).read_bytes() == (folder / "predict/panoptic" / name).read_bytes()


def test_a_run_that_was_not_measured_has_a_page(small, monkeypatch):
    monkeypatch.setattr(demo, "document", lambda *_, **__: {})
    steps = demo.run(small / "out", 1)
    assert next(step.what for step in steps if step.name == "evaluate") == "nothing could be measured"
    assert "No class was measured." in (small / "out" / "index.html").read_text()


def test_the_split_is_honest(made):
    """Scenes to look at, to evaluate on and to train on are different ones."""
    settings = demo.demo_config()
    seen = {
        split: {
            record.read_image().tobytes()
            for record in synthetic_dataset(
                split,
                50,
                size=settings.data.scenes.size,
                objects=settings.data.scenes.objects,
                difficulty=settings.data.scenes.difficulty,
            ).records
        }
        for split in ("train", "val", "test")
    }
    assert len(seen["train"] | seen["val"] | seen["test"]) == 150


def test_the_predictions_are_those_of_the_run(made):
    folder, _ = made
    loaded = load.load(folder / "run", device="cpu")
    result = loaded(folder / "pictures/scene-01.png", "semantic")
    assert np.array_equal(np.asarray(Image.open(folder / "predict/semantic/labels/scene-01.png")), result.labels_HW)


def test_again_it_replaces_its_own_files_only(small, capsys):
    assert cli.run(["demo", "--out", "out", "--images", "2"]) == 0
    strangers = {"mine.txt", "pictures/mine.png", "predict/mine.json", "predict/panoptic/overlay/mine.jpg"}
    for name in strangers:
        (small / "out" / name).write_text("keep me")
    with (small / "out" / demo.MARK).open("a") as mark:
        mark.write('"pictures/mi')  # a demo that was killed
    assert cli.run(["demo", "--out", "out", "--images", "1"]) == 0
    assert all((small / "out" / name).read_text() == "keep me" for name in strangers)
    assert not [name for name in names(small / "out") if "scene-01" in name]


def test_a_mark_cannot_lead_outside(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("keep me")
    (tmp_path / "out" / demo.MARK).write_text(f'"../a.txt"\n{json.dumps(str(tmp_path / "b.txt"))}\n')
    demo.claim(tmp_path / "out")
    assert (tmp_path / "a.txt").exists() and (tmp_path / "b.txt").exists()


def test_folders_of_others_are_refused(small, capsys):
    (small / "photos").mkdir()
    (small / "photos" / "a.jpg").write_text("a photo")
    assert cli.run(["demo", "--out", "photos"]) == 2
    assert "error: photos holds files, and not those of a demo. Choose another --out." in capsys.readouterr().err
    assert cli.run(["demo", "--out", "photos/a.jpg"]) == 2
    assert "is a file" in capsys.readouterr().err
    (small / "photos" / demo.MARK).write_text("no json\n")
    assert cli.run(["demo", "--out", "photos"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert names(small / "photos") == {"a.jpg", demo.MARK}
    with pytest.raises(ConfigError, match="not 0"):
        demo.run(small / "none", 0)
    assert not (small / "none").exists()


def test_the_story_and_the_json(small, capsys, monkeypatch):
    monkeypatch.setattr(DemoDisplay, "every_seconds", 0.0)
    assert cli.run(["demo", "--images", "1"]) == 0
    out, err = capsys.readouterr()
    header, *rows, remark = out.splitlines()
    assert header == "step\twhat\tseconds\twhere"
    assert [row.split("\t")[0] for row in rows] == ["images", "annotations", "train", "evaluate", *TASKS, "page"]
    assert "runs/demo/index.html" in remark and "from nothing" in err and "never saw" in err
    assert re.search(r"Train: step 2 of 2, loss [\d.]+, about \d+ s left\.\n", err)
    assert re.search(r"PQ [\d.]+ after 2 steps, on 3 scenes", err)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["demo", "--images", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    tree = json.loads(out)
    assert (tree["schema_version"], tree["out"], len(tree["steps"])) == (1, "runs/demo", demo.STEPS)
    assert tree["steps"][3]["command"].startswith("m2f eval --model runs/demo/run ")
    assert "100%" in err and "evaluating" in err and "s left" not in err  # a bar in a terminal instead of lines


@pytest.mark.parametrize(("step", "evaluation", "count"), [(0.2, 10.0, 600), (5.0, 1.0, 200), (0.001, 0.0, 2000)])
def test_as_many_steps_as_fit_into_the_time(tmp_path, monkeypatch, step, evaluation, count):
    """150 s, less three evaluations."""
    monkeypatch.setattr(demo, "demo_config", small_config)
    measured = SimpleNamespace(step_seconds=step, evaluation_seconds=evaluation)
    monkeypatch.setattr(demo, "dry_run", lambda *_, **__: measured)
    assert demo.fitting_iterations(tmp_path) == count


def test_evaluations_of_the_demo_are_spread_evenly_to_its_end():
    train = demo.demo_config(700).train
    assert (train.iterations, train.eval_every) == (700, 234)


@pytest.mark.slow
def test_the_whole_demo_learns_what_it_promises(tmp_path):
    """PQ at least 75 on images that training never saw, where there is time for 750 steps."""
    steps = demo.run(tmp_path / "out", iterations=750)
    value = float(re.search(r"PQ ([\d.]+)", next(s.what for s in steps if s.name == "evaluate"))[1])
    assert value >= 75
