"""m2f demo, whole: few scenes and few steps, but the real training, evaluation and prediction."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from m2f_cli import cli
from m2f_cli.config import presets as config
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.errors import ConfigError
from m2f_cli.inference import load
from m2f_cli.workflows import demo

TASKS = ("panoptic", "semantic", "instance")
SMALL = ("data.scenes.train=8", "data.scenes.val=3", "train.batch=2", "train.loss.num_points=64")


def small_config(iterations=None):
    return config.load("tiny", [*SMALL, f"train.iterations={iterations or 2}"])


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "demo_config", small_config)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo of two images, made once."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "demo_config", small_config)
        told = []
        steps = demo.run(folder, 2, on_step=told.append)
    assert told == steps and len(steps) == demo.STEPS
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


def test_the_page_shows_files_that_exist_and_the_measured_quality(made):
    folder, _ = made
    page = (folder / "index.html").read_text()
    shown = re.findall(r'src="([^"]+)"', page)
    assert len(shown) == 2 * 5 + 1 and all((folder / name).is_file() for name in shown)
    value = json.loads((folder / "run" / "results.json").read_text())["best"]["value"]
    assert f"<b>{value:.1f}</b>" in page


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


def test_the_story_and_the_json(small, capsys):
    assert cli.run(["demo", "--images", "1"]) == 0
    out, err = capsys.readouterr()
    header, *rows, remark = out.splitlines()
    assert header == "step\twhat\tseconds\twhere"
    assert [row.split("\t")[0] for row in rows] == ["images", "annotations", "train", "evaluate", *TASKS, "page"]
    assert "runs/demo/index.html" in remark and "from nothing" in err and "never saw" in err
    assert cli.run(["demo", "--images", "1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["schema_version"], tree["out"], len(tree["steps"])) == (1, "runs/demo", demo.STEPS)


@pytest.mark.slow
def test_the_whole_demo_learns_what_it_promises(tmp_path):
    """PQ at least 70 on images that training never saw."""
    steps = demo.run(tmp_path / "out")
    value = float(re.search(r"PQ ([\d.]+)", next(s.what for s in steps if s.name == "evaluate"))[1])
    assert value >= 70
