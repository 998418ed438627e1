"""What a shell completes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from m2f_cli import cli, plugins
from m2f_cli.config import presets


@pytest.fixture
def complete(monkeypatch, capsys, tmp_path):
    """`complete("predict --task pan")` gives the words that bash would show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["m2f"])
    monkeypatch.setenv("_M2F_COMPLETE", "complete_bash")

    def words(line):
        monkeypatch.setenv("COMP_WORDS", f"m2f {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(f"m2f {line}".split(" ")) - 1))
        assert cli.run() == 0
        shown, said = capsys.readouterr()
        assert said == ""
        return shown.split()

    return words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pre", ["predict", "presets"]),
        ("data con", ["convert"]),
        ("predict --prec", ["--precision"]),
        ("predict --task pan", ["panoptic"]),
        ("predict --precision b", ["bf16"]),
        ("train --precision b", ["bf16"]),
        ("eval --metric miou", ["miou"]),
        ("eval --metric pq,mi", ["pq,miou"]),
        ("export --format openv", ["openvino"]),
        ("predict --save overlay,poly", ["overlay,polygons"]),
        ("data convert a b --to yolo", ["yolo-seg"]),
        ("data check x --format labelm", ["labelme"]),
        ("data check x --classes mass", ["mass13k"]),
        ("data prepare nuins", ["nuinsseg"]),
        ("presets show tin", ["tiny", "tiny-mpformer"]),
        ("nonsense --wh", []),
    ],
)
def test_names_are_completed(complete, line, expected):
    assert complete(line) == expected


def test_presets_and_runs_are_completed(complete, tmp_path):
    assert complete("train --preset ") == list(presets.preset_names())
    assert "mine" not in complete("predict --model runs/")
    for name in ("mine", "train/tiny"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    assert set(complete("predict --model runs/")) == {"runs/mine", "runs/train/tiny"}


def test_each_metric_is_completed(complete):
    assert complete("eval --metric ") == plugins.names("metrics")


def test_completion_imports_no_pytorch():
    code = (
        "import sys; sys.argv = ['m2f']; from m2f_cli.cli import run; code = run(); "
        "print(code, [name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    asked = {"_M2F_COMPLETE": "complete_bash", "COMP_WORDS": "m2f predict --model coco-pan", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "0 []" and "coco-panoptic-r50" in lines


def test_the_script_of_a_shell_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("_M2F_COMPLETE", "source_zsh")
    monkeypatch.setattr(sys, "argv", ["m2f"])
    assert cli.run() == 0
    assert "compdef _m2f_completion m2f" in capsys.readouterr().out
