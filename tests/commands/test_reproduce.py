"""m2f reproduce over a row of our own: a small network whose weights lie in a file, and generated data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers.folders import IDS, SEGMENTS, coco_panoptic
from helpers.presets import shipped
from training.tiny import settings

from m2f_cli import cli, weights
from m2f_cli.config import presets as config
from m2f_cli.config import shipped as shipped_presets
from m2f_cli.errors import ConfigError, WeightsError
from m2f_cli.evaluation import dataset as eval_data
from m2f_cli.evaluation.report import PublishedComparison
from m2f_cli.model import build
from m2f_cli.structures.categories import from_names
from m2f_cli.workflows import reproduce
from m2f_cli.workflows.reproduce import ReproduceOptions

NAMES = ["cat", "dog", "sky"]
SETTINGS = settings()
SHIPPED = {name: shipped(name) for name in config.preset_names()}
TTA = {"short_edges": [32, 64], "max_edge": 96, "of": "test_size", "flip": True}


def write_weights(folder: Path) -> None:
    classes = from_names(NAMES, things=NAMES[:2])
    torch.manual_seed(3)
    model = build(SETTINGS.model, len(NAMES))
    with torch.no_grad():  # queries that differ, sure of many classes: otherwise everything is one class
        for name, parameter in model.decoder.named_parameters():
            if name.startswith("query"):
                parameter.normal_(0, 10)
        model.decoder.class_embed.weight.normal_(0, 1)
        model.decoder.class_embed.bias.zero_()[-1] = -9
    weights.save(folder / "fake.safetensors", model.state_dict(), SETTINGS, classes)


def write_row(name: str, published: list[dict], **more) -> None:
    tree = SETTINGS.model_dump(mode="json", exclude_none=True, exclude={"name", "published"})
    tree["data"] = {"dataset": "fake", "classes": str(Path("classes.yaml").resolve())}
    tree["test"] |= {"tasks": ["panoptic", "instance", "semantic"], "tta": TTA}
    tree["weights"] = [{"url": "https://example.invalid/fake.safetensors", "format": "m2f", "licence": "Apache-2.0"}]
    figures = [{"source": "a table", **figure} for figure in published]
    Path("presets", f"{name}.yaml").write_text(yaml.safe_dump({**tree, "published": figures, **more}))
    config.preset_names.cache_clear()


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path, monkeypatch):
    """Rows in presets/, weights where downloads go, two images of which the published split consists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M2F_OFFLINE", "1")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    for module in (config, shipped_presets):
        monkeypatch.setattr(module, "presets_dir", lambda: tmp_path / "presets")
    monkeypatch.setitem(eval_data.LAYOUT, "fake", "fake")
    monkeypatch.setitem(eval_data.FULL_SPLITS, ("fake", "val"), 1)
    monkeypatch.setattr(reproduce, "WARM_UP", 0)
    Path("presets").mkdir()
    coco_panoptic(tmp_path / "data" / "fake", name="val2017", ids_HW=IDS, segments=SEGMENTS)
    classes = [
        {"id": 3, "name": "cat", "isthing": True, "color": [1, 2, 3]},
        {"id": 17, "name": "dog", "isthing": True, "color": [4, 5, 6]},
        {"id": 200, "name": "sky", "isthing": False, "color": [7, 8, 9]},
    ]
    Path("classes.yaml").write_text(yaml.safe_dump({"classes": classes}))
    write_weights(tmp_path / "home" / "weights")
    write_row("row", [{"metric": "pq", "value": 1.0}, {"metric": "miou", "value": 1.0}])
    yield
    config.preset_names.cache_clear()


RUN = ["reproduce", "row", "--device", "cpu"]


def one_error(capsys) -> str:
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return error


def measured(capsys, *arguments: str) -> dict[str, float]:
    """What the network really gets, by a row of wrong figures."""
    assert cli.run([*RUN, "--json", "--out", "first", *arguments]) in (0, 1)
    [row] = json.loads(capsys.readouterr().out)["rows"]
    return {(check["metric"], check["setting"]): check["measured"] for check in row["checks"]}


def test_a_row_that_comes_out_passes(capsys):
    figures = measured(capsys)
    pq, miou = (round(figures[name, "single scale"], 2) for name in ("pq", "miou"))
    assert miou > 0
    write_row(
        "row",
        [
            {"metric": "pq", "value": pq},
            {"metric": "miou", "value": round(miou + 0.1, 2)},
            {"metric": "box_ap", "value": 40.0},
            {"metric": "fps_a100", "value": 9.0},
        ],
    )
    assert cli.run(RUN) == 0
    out = capsys.readouterr().out
    assert f"row\tmIoU\t{miou + 0.1:g}\t{figures['miou', 'single scale']:.2f}\t-0.10\tpass" in out
    assert "row\tbox AP\t40.0\t-\t-\tnot measured" in out and "fps" not in out and "\nrow: pass, " in out
    tree = json.loads(Path("runs/reproduce/row/row.json").read_text())
    assert (tree["verdict"], tree["device"], tree["failed"], tree["model"]["name"]) == ("pass", "cpu", 0, "row")
    assert tree["images_per_second"] > 0 and len(tree["checks"]) == 3
    assert Path("runs/reproduce/row/single-scale/results.json").is_file()
    assert not Path("runs/reproduce/row/ms-flip").exists()


def test_a_row_that_does_not_come_out_fails(capsys):
    miou = measured(capsys)["miou", "single scale"]
    wrong = round(miou + 0.12, 2)
    write_row("row", [{"metric": "miou", "value": wrong}])
    write_row("doubtful", [{"metric": "miou", "value": wrong, "verified": False}])
    assert cli.run(RUN) == 1
    assert "\nrow: FAIL, " in capsys.readouterr().out
    assert cli.run(["reproduce", "doubtful", "row", "--device", "cpu", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["verdict"] for row in rows] == ["partial", "FAIL"]
    assert [check["verdict"] for row in rows for check in row["checks"]] == ["unverified", "FAIL"]


def test_several_sizes_where_that_was_published(capsys):
    multi = {"metric": "miou", "value": 1.0, "setting": "multi-scale + flip"}
    write_row("row", [{"metric": "pq", "value": 1.0}, {"metric": "miou", "value": 1.0}, multi])
    figures = measured(capsys)
    tree = json.loads(Path("first/row/ms-flip/results.json").read_text())
    assert tree["settings"]["tta"] is True and list(tree["per_class"]) == ["miou"]
    assert figures["miou", "multi-scale + flip"] == tree["figures"]["miou"]
    assert json.loads(Path("first/row/single-scale/results.json").read_text())["settings"]["tta"] is False
    cli.run([*RUN, "--no-tta", "--out", "second", "--json"])
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert [check["verdict"] for check in row["checks"]][2] == "not measured"
    assert not Path("second/row/ms-flip").exists()


def test_several_sizes_where_nobody_published_it(capsys):
    assert cli.run([*RUN, "--tta", "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)["rows"]
    last = row["checks"][-1]
    assert (last["metric"], last["setting"], last["published"]) == ("pq", "multi-scale + flip", None)
    assert last["verdict"] == "nothing published" and last["measured"] is not None


def test_other_data_than_the_published_split_is_not_judged(capsys, monkeypatch):
    monkeypatch.setitem(eval_data.FULL_SPLITS, ("fake", "val"), 5000)
    assert cli.run([*RUN, "--limit", "1"]) == 0
    assert "\nrow: partial" in capsys.readouterr().out


def test_it_goes_on_and_the_table_shows_it(capsys):
    measured(capsys)
    before = Path("first/row/single-scale/pictures.jsonl").read_text()
    miou = measured(capsys)["miou", "single scale"]
    assert Path("first/row/single-scale/pictures.jsonl").read_text() == before
    assert cli.run(RUN) == 1
    capsys.readouterr()
    assert cli.run(["presets", "table"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    found = dict(zip(head.split("\t"), line.split("\t"), strict=True))
    assert found["mIoU here"] == f"{miou:.2f}" and found["on"] == "cpu" and float(found["fps here"]) > 0


def test_what_is_missing_is_said_at_once(capsys, tmp_path, monkeypatch):
    (tmp_path / "home" / "weights" / "fake.safetensors").unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", "nowhere")
    assert cli.run(RUN) == 3
    error = one_error(capsys)
    assert "2 things are missing" in error and "there is no nowhere/fake" in error and "Pass --data DIR" in error
    assert f"put it at {tmp_path}/home/weights/fake.safetensors" in error
    assert cli.run([*RUN, "--data", str(tmp_path / "data" / "fake")]) == 4
    assert "things are missing" not in one_error(capsys)
    assert not Path("runs").exists()


def test_rows_that_cannot_be_reproduced():
    write_row("bare", [{"metric": "pq", "value": 1.0}], weights=[])
    write_row("boxes", [{"metric": "box_ap", "value": 1.0}])
    write_row("multi", [{"metric": "pq", "value": 1.0, "setting": "multi-scale + flip"}])
    with pytest.raises(WeightsError, match="Nobody has released weights of 'bare'.*m2f train --preset bare"):
        reproduce.make_ready(["bare"], ReproduceOptions())
    with pytest.raises(ConfigError, match="no published figure that m2f measures"):
        reproduce.make_ready(["row", "boxes"], ReproduceOptions())
    with pytest.raises(ConfigError, match="no preset named 'rowe'.*row"):
        reproduce.make_ready(["rowe"], ReproduceOptions())
    with pytest.raises(ConfigError, match="test-time augmentation only"):
        reproduce.reproduce("multi", ReproduceOptions(tta=False, device="cpu"), Path("out"))


@pytest.mark.parametrize(
    ("published", "got", "verdict"),
    [
        (51.9, 51.84, "pass"),
        (51.9, 51.75, "pass"),
        (51.9, 51.74, "FAIL"),
        (51.9, 52.04, "pass"),
        (51.9, 52.06, "FAIL"),
        (83.65, 83.55, "pass"),
        (83.65, 83.54, "FAIL"),
        (44.0, 44.1, "pass"),
        (42.0, 41.6, "FAIL"),
        (42.0, 42.4, "FAIL"),
    ],
)
def test_a_verdict_follows_from_the_difference_and_what_is_known(published, got, verdict):
    def judged(**more):
        given = {"verified": True, "comparable": True, **more}
        return reproduce.judge(PublishedComparison("pq", published, got, got - published, "single scale", "s", **given))

    assert judged() == verdict
    assert judged(comparable=False) == "partial"
    assert judged(verified=False) == ("pass" if verdict == "pass" else "unverified")


def test_which_metrics_a_row_needs():
    wanted = {
        "coco-instance-r50": ["ap", "boundary-ap"],
        "cityscapes-instance-r50": ["cityscapes-ap"],
        "cityscapes-panoptic-r50": ["pq", "cityscapes-ap", "miou"],
        "coco-panoptic-r50-mmdet": ["pq", "ap"],
        "cityscapes-swin-l": ["miou"],
        "maskformer-coco-panoptic-r50-mmdet": ["pq"],
    }
    assert {name: reproduce.metrics_of(SHIPPED[name]) for name in wanted} == wanted
    assert reproduce.metrics_of(SHIPPED["ade20k-r50-paper"], multi=True) == ["miou"]
    for preset in SHIPPED.values():
        unknown = {each.metric for each in preset.published if reproduce.metric_of(preset, each.metric) is None}
        assert all(name == "box_ap" or name.startswith(("fps_", "train_memory_")) for name in unknown)
