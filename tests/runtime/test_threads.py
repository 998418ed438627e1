"""Cores that a container grants, and threads to match; no test here changes this process's threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from m2f_cli import cli
from m2f_cli.runtime import threads as cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that shows eight cores, without a limit."""
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(cores, "visible_cores", lambda: 8)
    monkeypatch.delenv(cores.VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("much too", 8),
    ],
)
def test_the_share_of_a_container(machine, text, usable):
    (machine / "cpu.max").write_text(text)
    assert cores.usable_cores() == usable


@pytest.mark.parametrize(("load", "is_told"), [(12.5, True), (11.5, False)])
def test_a_busy_machine_is_told_once_and_changes_no_threads(machine, monkeypatch, caplog, load, is_told):
    monkeypatch.setattr(cores.os, "getloadavg", lambda: (load, 0.0, 0.0))
    cores.note_busy_machine.cache_clear()
    for _ in range(2):
        cores.note_busy_machine()
    assert [f"load {load} on 8 cores" in record.getMessage() for record in caplog.records] == [True] * is_told
    assert cores.VARIABLE not in cores.os.environ


def test_who_chose_the_number_of_threads_is_not_told(machine, monkeypatch, caplog):
    monkeypatch.setattr(cores.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setenv(cores.VARIABLE, "2")
    cores.note_busy_machine.cache_clear()
    cores.note_busy_machine()
    assert not caplog.records


@pytest.mark.parametrize(("quota", "usable"), [("-1", 8), ("300000", 3)])
def test_the_first_version_of_control_groups(machine, quota, usable):
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable_cores() == usable


def test_without_control_groups_there_is_no_limit(machine):
    assert cores.usable_cores() == 8


def test_threads_follow_the_share_unless_somebody_says_otherwise(machine, monkeypatch):
    cores.choose_threads()
    assert cores.VARIABLE not in cores.os.environ  # libraries see the same
    (machine / "cpu.max").write_text("200000 100000")
    cores.choose_threads()
    assert cores.os.environ[cores.VARIABLE] == "2"
    monkeypatch.setenv(cores.VARIABLE, "5")
    cores.choose_threads()
    assert cores.os.environ[cores.VARIABLE] == "5"
    cores.choose_threads(3)
    assert cores.os.environ[cores.VARIABLE] == "3"


def test_the_command_line_says_how_many(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "choose_threads", asked.append)
    assert cli.run(["--threads", "3", "presets", "list"]) == 0 and cli.run(["presets", "list"]) == 0
    assert asked == [3, None]
    assert cli.run(["--threads", "0", "presets", "list"]) == 2


def test_pytorch_has_as_many():
    program = (
        "from m2f_cli.runtime.threads import choose_threads; choose_threads(1)\n"
        "import torch; print(torch.get_num_threads())\n"
        "choose_threads(2); print(torch.get_num_threads())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "2"]
