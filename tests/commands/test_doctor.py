"""m2f doctor from the command line."""

from __future__ import annotations

import json

import pytest

from m2f_cli import cli
from m2f_cli.workflows import doctor as diagnose
from m2f_cli.workflows.doctor import DoctorFinding

FINE = [DoctorFinding("packages", "torch", "2.6.0"), DoctorFinding("devices", "cpu", "Some CPU")]
NOTED = [*FINE, DoctorFinding("devices", "cuda", "no GPU", "note", "See nvidia-smi.")]
BROKEN = [*NOTED, DoctorFinding("packages", "numpy", "not installed", "problem", "Run: pip install 'numpy'")]


@pytest.fixture
def findings(monkeypatch):
    return lambda given: monkeypatch.setattr(diagnose, "diagnose", lambda: given)


def test_all_is_well(findings, capsys):
    findings(NOTED)
    assert cli.run(["doctor"]) == 0
    assert capsys.readouterr() == (
        "packages\tfound\tstatus\n"
        "torch\t2.6.0\tok\n"
        "devices\tfound\tstatus\twhat to do\n"
        "cpu\tSome CPU\tok\t\n"
        "cuda\tno GPU\tnote\tSee nvidia-smi.\n"
        "everything that m2f needs is here\n",
        "",
    )


def test_a_problem_is_named_in_the_last_line_and_in_the_exit_code(findings, capsys):
    findings(BROKEN)
    assert cli.run(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 problem: numpy (packages): not installed" and err == ""
    assert "numpy\tnot installed\tproblem\tRun: pip install 'numpy'" in out
    findings([*BROKEN, DoctorFinding("caches", "x", "y", "problem", "z")])
    assert cli.run(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "2 problems: numpy (packages): not installed; x (caches): y"


def test_json_has_every_finding_and_the_number_of_problems(findings, capsys):
    findings(BROKEN)
    assert cli.run(["doctor", "--json"]) == 1
    tree = json.loads(capsys.readouterr().out)
    assert (tree["schema_version"], tree["problems"]) == (1, 1)
    assert tree["findings"][2] == {
        "group": "devices",
        "name": "cuda",
        "value": "no GPU",
        "status": "note",
        "hint": "See nvidia-smi.",
    }


def test_the_real_examination(capsys):
    assert cli.run(["doctor", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["problems"] == 0
    assert {each["name"] for each in tree["findings"]} >= {"torch", "cpu bag", "M2F_HOME", "presets", "--device auto"}
