"""m2f demo, whole: small pictures, real network, real pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_cli import cli, weights
from m2f_cli.data.synthetic import CATEGORIES, scene
from m2f_cli.errors import ConfigError
from m2f_cli.inference import demo, segmenter


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HEIGHT", 96)
    monkeypatch.setattr(demo, "WIDTH", 128)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo of two pictures, made once."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "HEIGHT", 96)
        patch.setattr(demo, "WIDTH", 128)
        told = []
        steps = demo.run(folder, 2, on_step=told.append)
    assert told == steps and len(steps) == demo.STEPS
    return folder, steps


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_written_and_nothing_half_written(made):
    folder, steps = made
    both = lambda pattern: {pattern.format(f"scene-0{i}") for i in range(2)}  # noqa: E731
    tasks = ("panoptic", "semantic", "instance")
    expected = {demo.MARK, "checkpoints/last.safetensors", "predict/panoptic/panoptic.json"}
    expected |= {"predict/instance/instances.json"} | both("pictures/{}.png") | both("truth/{}.jpg")
    expected |= both("predict/panoptic/panoptic/{}.png") | both("predict/semantic/labels/{}.png")
    for task in tasks:
        expected |= {f"predict/{task}/predictions.json", f"predict/{task}/.predict.jsonl"}
        expected |= both(f"predict/{task}/overlay/{{}}.jpg")
    assert names(folder) == expected
    assert [step.name for step in steps] == ["pictures", "truth", "network", "load", *tasks]
    assert all(step.where.exists() and step.seconds >= 0 for step in steps)


def test_the_pictures_are_the_scenes_and_the_truth_is_drawn_over_them(made):
    folder, _ = made
    for seed in range(2):
        truth = scene(seed, 96, 128)
        picture = np.asarray(Image.open(folder / f"pictures/scene-0{seed}.png"))
        assert np.array_equal(picture, truth.image_HW3)
        drawn = np.asarray(Image.open(folder / f"truth/scene-0{seed}.jpg")).astype(int)
        assert np.abs(drawn - np.asarray(truth.panoptic().plot()).astype(int)).mean() < 5  # JPEG and grain
        assert np.abs(drawn - picture).mean() > 10


def test_the_folder_is_a_model_that_describes_itself(made):
    folder, _ = made
    checkpoint = weights.load(folder)
    assert checkpoint.categories == CATEGORIES
    assert checkpoint.config.model_dump(exclude_none=True) == demo.small_config().model_dump(exclude_none=True)
    loaded = segmenter.load(folder, device="cpu")
    assert loaded.tasks == ("panoptic", "instance", "semantic") and loaded.notes == []
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) < 4e6


def test_the_predictions_are_those_of_the_checkpoint(made):
    folder, _ = made
    loaded = segmenter.load(folder, device="cpu")
    result = loaded(folder / "pictures/scene-01.png", "semantic")
    assert np.array_equal(np.asarray(Image.open(folder / "predict/semantic/labels/scene-01.png")), result.labels_HW)
    panoptic = json.loads((folder / "predict/panoptic/predictions.json").read_text())
    instance = json.loads((folder / "predict/instance/predictions.json").read_text())
    assert sum(len(record["segments"]) for record in panoptic["predictions"]) > 0, "nothing to look at"
    assert sum(len(record["instances"]) for record in instance["predictions"]) > 0, "nothing to look at"


def test_the_caller_s_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    demo._write_network(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_again_it_replaces_its_own_files_only(small, capsys):
    assert cli.run(["demo", "--out", "out", "--pictures", "2"]) == 0
    ours = names(small / "out")
    strangers = {"mine.txt", "pictures/mine.png", "predict/mine.json", "predict/panoptic/overlay/mine.jpg"}
    for name in strangers:
        (small / "out" / name).write_text("keep me")
    with (small / "out" / demo.MARK).open("a") as mark:
        mark.write('"pictures/mi')  # a demo that was killed
    assert cli.run(["demo", "--out", "out", "--pictures", "1"]) == 0
    assert names(small / "out") == strangers | {name for name in ours if "scene-01" not in name}
    assert all((small / "out" / name).read_text() == "keep me" for name in strangers)


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
    assert capsys.readouterr().err == "error: photos holds files, and not those of a demo. Choose another --out.\n"
    assert cli.run(["demo", "--out", "photos/a.jpg"]) == 2
    assert "is a file" in capsys.readouterr().err
    (small / "photos" / demo.MARK).write_text("no json\n")
    assert cli.run(["demo", "--out", "photos"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert names(small / "photos") == {"a.jpg", demo.MARK}
    with pytest.raises(ConfigError, match="not 0"):
        demo.run(small / "none", 0)
    assert not (small / "none").exists()


def test_the_table_and_the_one_remark(small, capsys):
    assert cli.run(["demo", "--pictures", "1"]) == 0
    header, *rows, remark = capsys.readouterr().out.splitlines()
    assert header == "step\twhat\tseconds\twhere"
    assert [row.split("\t")[0] for row in rows] == [
        "pictures", "truth", "network", "load", "panoptic", "semantic", "instance",
    ]
    assert rows[0].split("\t")[1::2] == ["1 generated, 128 x 96", "runs/demo/pictures"]
    assert "weights of this network are random" in remark and "m2f predict photo.jpg --task panoptic" in remark


def test_json(small, capsys):
    assert cli.run(["demo", "--pictures", "1", "--out", "out", "--json"]) == 0
    out, _ = capsys.readouterr()
    tree = json.loads(out)
    assert (tree["schema_version"], tree["out"], len(tree["steps"])) == (1, "out", demo.STEPS)
    assert set(tree["steps"][0]) == {"name", "what", "seconds", "where"}
    assert tree["seconds"] == pytest.approx(sum(step["seconds"] for step in tree["steps"]), abs=0.01)
    assert out.count("random") == 1
