"""m2f presets: finding, tables like the published ones, copies that stand for themselves, and the command line."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from m2f_cli import config
from m2f_cli.commands import presets as command
from m2f_cli.errors import ConfigError

NAMES = config.preset_names()


def test_find_filters():
    wanted = {"dataset": "cityscapes", "task": "semantic", "backbone": "swin-l", "method": "mask2former"}
    assert [c.name for c in command.find(**wanted)] == ["cityscapes-swin-l", "cityscapes-swin-l-paper"]
    assert len(command.find(backbone="swin")) + len(command.find(backbone="resnet")) == len(NAMES)
    wide = command.find(text="coco 200", method="mask2former")
    assert {c.name for c in wide} == {"coco-instance-swin-l", "coco-panoptic-swin-l"}
    assert command.find(text="no such words") == []
    assert len(command.find(method="mask2former")) == sum(not n.startswith(("maskformer-", "mpformer-")) for n in NAMES)


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


def test_tables_read_like_the_published_ones():
    found = {title: (columns, rows) for title, columns, rows in command.tables(command.find())}
    columns, rows = found["cityscapes semantic, mask2former (MMSegmentation)"]
    assert columns[2] == "mIoU" and columns[3].startswith("fps")
    assert [row[2] for row in rows] == ["80.44", "80.80", "81.71", "82.57", "83.52", "83.65"]
    assert rows[-1] == ["swin-l in22k", "100", "83.65", "2.86", "16207", "cityscapes-swin-l"]
    columns, rows = found["mapillary-vistas semantic, mask2former (Mask2Former model zoo)"]
    assert columns == ["backbone", "queries", "mIoU", "mIoU (multi-scale + flip)", "preset"]
    assert [row[3] for row in rows] == ["59.0?", "64.7?"]
    assert sum(len(rows) for _, rows in found.values()) == len(NAMES)


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
        emit_json=said.append,
    )
    monkeypatch.setattr(command, "console", console)
    return said


def run(*arguments):
    result = CliRunner().invoke(command.app, list(arguments))
    assert result.exit_code == 0, result.output or result.exception


def test_list(shown):
    run("list", "--dataset", "coco", "--task", "instance", "--backbone", "r50", "--method", "mask2former")
    run("list", "200", "--method", "mask2former", "--json")
    title, columns, rows = shown[0]
    assert title == "1 preset"
    assert rows == [["coco-instance-r50", "instance", "r50", "100", "AP 43.7", "CC-BY-NC-4.0"]]
    assert len(columns) == len(rows[0])
    assert [preset["num_queries"] for preset in shown[1]["presets"]] == [200] * 7


def test_table(shown):
    run("table", "--dataset", "cityscapes", "--task", "semantic", "--method", "mask2former")
    run("table", "--dataset", "cityscapes", "--task", "semantic", "--method", "mask2former", "--json")
    assert [len(rows) for _, _, rows in shown[:2]] == [6, 6]
    assert all(len(row) == len(columns) for _, columns, rows in shown[:2] for row in rows)
    assert [(t["title"], t["columns"], t["rows"]) for t in shown[2]["tables"]] == shown[:2]


def test_show(shown):
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
