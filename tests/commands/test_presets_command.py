"""m2f presets: finding, tables like the published ones, copies that stand for themselves, and the command line."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from helpers.folders import write_json
from helpers.presets import read_once
from typer.testing import CliRunner

from m2f_cli.commands import presets as command
from m2f_cli.config import presets as config
from m2f_cli.config import published as reference_table
from m2f_cli.errors import ConfigError, DataError

NAMES = config.preset_names()


@pytest.fixture(autouse=True)
def presets_are_read_once(monkeypatch):
    read_once(monkeypatch)


def test_filters_are_combined():
    wanted = {"dataset": "cityscapes", "task": "semantic", "backbone": "swin-l", "method": "mask2former"}
    assert [c.name for c in command.find(**wanted)] == ["cityscapes-swin-l", "cityscapes-swin-l-paper"]
    families = ("swin", "resnet", "vit_tokens")
    assert sum(len(command.find(backbone=family)) for family in families) == len(NAMES)
    wide = command.find(text="coco 200", method="mask2former")
    assert {c.name for c in wide} == {"coco-instance-swin-l", "coco-panoptic-swin-l", "coco-panoptic-swin-l-mmdet"}
    assert command.find(text="no such words") == []
    assert len(command.find(method="mask2former")) == sum(
        not n.startswith(("maskformer-", "mpformer-", "eomt-", "pmt-", "tiny-mpformer")) for n in NAMES
    )


@pytest.mark.parametrize(
    ("filters", "nearest"),
    [
        ({"dataset": "cityscape"}, "cityscapes"),
        ({"task": "panoptics"}, "panoptic"),
        ({"backbone": "swin-xl"}, "swin-l"),
        ({"method": "mask-former"}, "mask2former"),
    ],
)
def test_a_filter_that_nothing_has_names_the_nearest(filters, nearest):
    with pytest.raises(ConfigError, match=nearest):
        command.find(**filters)


def table_of(title: str, *, measured=None) -> tuple[list[str], list[list[str]]]:
    found = reference_table.tables(reference_table.lines(command.find(), measured))
    return next((columns, rows) for name, columns, rows in found if name == title)


def test_tables_read_like_the_published_ones():
    columns, rows = table_of("cityscapes semantic")
    assert columns == [
        "Method",
        "Backbone",
        "Crop",
        "Schedule",
        "Mem (GiB)",
        "fps",
        "Device",
        "mIoU",
        "mIoU ms+flip",
        "mIoU (derived)",
        "Preset",
    ]
    assert [row[7] for row in rows[:6]] == ["80.44", "80.80", "81.71", "82.57", "83.52", "83.65"]
    assert rows[5] == [
        "Mask2Former",
        "swin-l in22k",
        "512x1024",
        "90k",
        "15.83",
        "2.86",
        "8 A100",
        "83.65",
        "-",
        "-",
        "cityscapes-swin-l",
    ]
    [r101c] = [row for row in rows if row[1] == "r101c"]
    assert r101c[:-1] == ["MaskFormer", "r101c", "512x1024", "90k", "7.04", "-", "8 V100", "79.7", "81.4", "-"]
    columns, rows = table_of("mapillary-vistas semantic")
    at = columns.index("mIoU ms+flip")
    assert [row[at] for row in rows if row[0] == "Mask2Former"] == ["59.0?", "64.7?"]
    published = sum(bool(config.load(name).published) for name in NAMES)
    assert sum(len(rows) for _, _, rows in reference_table.tables(reference_table.lines(command.find()))) == published


def results(name: str, value: float, *, source: str = "", tta: bool = False, comparable: bool = True) -> dict:
    setting = "multi-scale + flip" if tta else "single scale"
    figure = {"metric": "miou", "setting": setting, "measured": value, "comparable": comparable}
    model = {"name": name, "source": source or f"{name} (https://example.org/model.pth)"}
    return {"model": model, "settings": {"tta": tta}, "published": [figure]}


def test_what_was_measured_here_stands_beside_it(tmp_path):
    write_json(tmp_path / "eval" / "a" / "results.json", results("ade20k-r50", 47.9))
    write_json(tmp_path / "eval" / "b" / "results.json", results("ade20k-r50", 12.3, comparable=False))
    write_json(tmp_path / "eval" / "c" / "results.json", results("ade20k-r50", 99.0, source="runs/mine"))
    write_json(tmp_path / "reproduce" / "x" / "ms" / "results.json", results("ade20k-r50-paper", 49.26, tta=True))
    write_json(tmp_path / "eval" / "d" / "results.json", results("ade20k-r101", 33.3, comparable=False))
    speed = {"model": {"name": "ade20k-r50"}, "device": "H200", "images_per_second": 31.415}
    write_json(tmp_path / "bench" / "ade20k-r50.json", speed)
    write_json(tmp_path / "bench" / "train.json", {**speed, "images_per_second": None, "train_memory_gib": 3.456})
    write_json(tmp_path / "bench" / "forward.json", {"model": {"name": "ade20k-r101"}, "device": "H200"})
    columns, rows = table_of("ade20k semantic", measured=reference_table.measured_in(tmp_path))
    by_name = {row[-1]: dict(zip(columns, row, strict=True)) for row in rows}
    assert by_name["ade20k-r50"]["mIoU here"] == "47.90"
    assert (by_name["ade20k-r50"]["fps here"], by_name["ade20k-r50"]["on"]) == ("31.41", "H200")
    assert by_name["ade20k-r50"]["Mem here"] == "3.46"
    assert (by_name["ade20k-r101"]["mIoU here"], by_name["ade20k-r101"]["on"]) == ("33.30*", "-")
    paper = by_name["ade20k-r50-paper"]
    assert (paper["mIoU here"], paper["mIoU ms+flip here"]) == ("-", "49.26")
    whole = {"metric": "mIoU", "setting": "single scale", "measured": 1.0, "comparable": True}
    lacking = [{k: v for k, v in whole.items() if k != key} for key in whole]
    for figure in (*lacking, *({**whole, "measured": number} for number in (math.nan, math.inf, 10**400, "1"))):
        write_json(tmp_path / "bench" / "bad.json", {"published": [figure]})
        with pytest.raises(DataError, match="bad.json is damaged"):
            reference_table.measured_in(tmp_path)
    (tmp_path / "bench" / "bad.json").write_text("{")
    with pytest.raises(DataError, match="bad.json is damaged"):
        reference_table.measured_in(tmp_path)


def test_summary_is_plain_data():
    told = command.summary(config.load("coco-panoptic-swin-l"))
    assert (told["backbone"], told["num_queries"], told["published"][0]["value"]) == ("swin-l", 200, 57.8)
    assert yaml.safe_load(yaml.safe_dump(told)) == told


def test_copy_stands_for_itself(tmp_path):
    written = command.copy_preset("ade20k-r50", tmp_path / "mine.yaml")
    copied = config.load(written)
    assert copied == config.load("ade20k-r50").model_copy(update={"name": "mine"})
    assert "extends" not in yaml.safe_load(written.read_text())
    assert command.copy_preset("ade20k-r50", tmp_path) == tmp_path / "ade20k-r50.yaml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ade20k-r50.yaml", "mine.yaml"]


def test_copy_overwrites_only_when_told(tmp_path):
    target = tmp_path / "mine.yaml"
    target.write_text("precious")
    with pytest.raises(ConfigError, match="--force"):
        command.copy_preset("ade20k-r50", target)
    assert target.read_text() == "precious"
    command.copy_preset("ade20k-r50", target, force=True)
    assert config.load(target).task == "semantic"


def test_copy_refuses_what_could_not_be_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"\.yaml"):
        command.copy_preset("ade20k-r50", tmp_path / "mine.txt")
    with pytest.raises(ConfigError, match="Cannot write"):
        command.copy_preset("ade20k-r50", tmp_path / "no" / "mine.yaml")
    with pytest.raises(ConfigError, match="ade20k-r50"):
        command.copy_preset("ade20k-r51", tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the command line, with a console that remembers ------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    said = []
    console = SimpleNamespace(
        show_table=lambda title, columns, rows: said.append((title, columns, rows)),
        out=said.append,
        out_text=said.append,
        emit_json=said.append,
        note=said.append,
    )
    monkeypatch.setattr(command, "console", console)
    return said


def run(*arguments):
    result = CliRunner().invoke(command.app, list(arguments))
    assert result.exit_code == 0, result.output or result.exception


def test_list_shows_the_chosen_presets_and_writes_them_as_json(shown):
    run("list", "--dataset", "coco", "--task", "instance", "--backbone", "r50", "--method", "mask2former")
    run("list", "200", "--method", "mask2former", "--json")
    title, columns, rows = shown[0]
    assert title == "3 presets" and rows.pop()[:2] == ["fast-coco-instance-r50", "instance"]
    assert rows[0] == ["coco-instance-r50", "instance", "r50", "100", "AP 43.7", "CC-BY-NC-4.0"]
    assert rows[1] == ["coco-instance-r50-mmdet", "instance", "r50", "100", "AP 42.9", "Apache-2.0"]
    assert len(columns) == len(rows[0])
    assert [preset["num_queries"] for preset in shown[1]["presets"]] == [200] * 8
    run("list", "cityscapes-instance-swin-b")
    assert shown[2][2][0][4] == "AP 42.0", "as published, and not as YAML keeps it"


def test_table_has_the_forms_terminal_markdown_csv_and_json(shown):
    only = ["--dataset", "cityscapes", "--task", "semantic", "--method", "mask2former"]
    run("table", *only)
    [(title, columns, rows)] = shown
    assert title == "cityscapes semantic" and len(rows) == 12 and all(len(row) == len(columns) for row in rows)
    run("table", *only, "--format", "markdown")
    _, _, head, dashes, *bars = shown[1].splitlines()
    assert head.startswith("| Method | Backbone | Crop | Schedule |") and set(dashes) <= set("| -") and len(bars) == 12
    assert all(line.count("|") == head.count("|") for line in [dashes, *bars])
    run("table", *only, "--format", "csv")
    found = {row["preset"]: row for row in csv.DictReader(io.StringIO(shown[2]))}
    assert len(found) == 12 and found["cityscapes-swin-l"]["mIoU"] == "83.65"
    assert (found["cityscapes-r50-paper"]["mIoU ms+flip"], found["cityscapes-r50-paper"]["mIoU here"]) == ("82.2", "")
    run("table", *only, "--json")
    run("table", *only, "--format", "json")
    assert shown[3] == shown[4] and len(shown[3]["rows"]) == 12
    figures = {row["preset"]: row["figures"][0] for row in shown[3]["rows"]}
    assert (figures["cityscapes-r50"]["published"], figures["cityscapes-r50"]["measured"]) == (80.44, None)
    result = CliRunner().invoke(command.app, ["table", "--format", "html"])
    assert isinstance(result.exception, ConfigError) and "no format named 'html'" in str(result.exception)


def test_show_prints_a_preset_that_can_be_read_again(shown):
    run("show", "ade20k-r50")
    run("show", "ade20k-r50", "--json")
    assert config.parse(yaml.safe_load(shown[0]), "show") == config.load("ade20k-r50")
    assert config.parse(shown[1]["preset"], "json") == config.load("ade20k-r50")


def test_copy_says_where(shown, tmp_path):
    run("copy", "ade20k-r50", str(tmp_path))
    assert shown == [str(tmp_path / "ade20k-r50.yaml")]
    result = CliRunner().invoke(command.app, ["copy", "ade20k-r50", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    run("copy", "ade20k-r50", str(tmp_path), "--force")


def test_the_commands_module_is_light():
    code = "import sys, m2f_cli.commands.presets; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_list_keeps_the_weights_that_may_be_used_commercially(shown):
    run("list", "coco-panoptic", "--commercial")
    names = {row[0]: row[-1] for row in shown[0][2]}
    assert names["coco-panoptic-swin-t-mmdet"] == "Apache-2.0" and names["eomt-coco-panoptic-l-640"] == "MIT?"
    assert names["pmt-coco-panoptic-l-640"] == "MIT and DINOv3?"
    assert not {"coco-panoptic-swin-t", "fast-coco-panoptic-r50", "eomt-coco-panoptic-s-640-12ep"} & names.keys()
    assert "no military" in shown[1]
