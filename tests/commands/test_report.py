"""m2f report: pages of evaluations, and what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
from report.small_evaluation import evaluate
from report.test_run_page import write_run

from m2f_cli import cli
from m2f_cli.runtime.locks import LOCK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("evaluation") / "a", count=2)


def test_it_writes_the_page_and_says_where(folder, capsys):
    assert cli.run(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == f"Report: {folder / 'report.html'}"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_out_names_the_page_and_json_lists_it(folder, tmp_path, capsys):
    page = tmp_path / "deep" / "page.html"
    assert cli.run(["report", str(folder), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(page) and page.is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone"], 3, "gone does not exist"),
        ([__file__], 3, "test_report.py is no folder"),
        (["A", "gone"], 3, "gone does not exist"),
        (["A", "--out", "page.pdf"], 2, "page.pdf is no page"),
        (["A", "A", "A"], 2, "one folder or two, not 3"),
        (["A", "--watch"], 2, "takes one folder of m2f train"),
        ([], 2, "REF"),
        (["A", "--thumbnail", "3"], 2, "--thumbnail"),
    ],
)
def test_what_cannot_be_shown_is_refused(folder, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["report", *(str(folder) if word == "A" else word for word in arguments)]) == code
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_a_training_has_a_page_too(tmp_path, capsys):
    folder = write_run(tmp_path / "mine")
    assert cli.run(["report", str(folder)]) == 0
    assert "Training mine" in (folder / "report.html").read_text()


def test_watching_ends_with_the_training(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "mine")
    lock, pages = folder / LOCK, []

    def wait(seconds):
        pages.append((folder / "report.html").read_text())
        if len(pages) == 2:
            lock.unlink()

    lock.write_text("")
    monkeypatch.setattr(time, "sleep", wait)
    assert cli.run(["report", str(folder), "--watch", "--every", "7"]) == 0
    assert all('http-equiv="refresh" content="7"' in page for page in pages) and len(pages) == 2
    assert 'http-equiv="refresh"' not in (folder / "report.html").read_text()


def test_watching_a_killed_training_ends(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "mine")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / LOCK).write_text("")
    owner = {"pid": ended.pid, "host": socket.gethostname(), "since": "now"}
    (folder / f"{LOCK}.json").write_text(json.dumps(owner))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("It waits for a process that is gone."))
    assert cli.run(["report", str(folder), "--watch"]) == 0
    assert "ended without a result" in (folder / "report.html").read_text()


def test_watching_begins_before_anything_is_logged(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / LOCK).write_text("")

    def wait(seconds):
        if (folder / "metrics.jsonl").exists():
            (folder / LOCK).unlink()
        (folder / "metrics.jsonl").write_text("")

    monkeypatch.setattr(time, "sleep", wait)
    assert cli.run(["report", str(folder), "--watch"]) == 0
    assert "Nothing is logged in" in capsys.readouterr().err and (folder / "report.html").is_file()


def test_ctrl_c_ends_watching_with_a_last_page(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "mine")
    (folder / LOCK).write_text("")

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert cli.run(["report", str(folder), "--watch"]) == 0
    assert "No longer watched." in capsys.readouterr().err
    assert 'http-equiv="refresh"' not in (folder / "report.html").read_text()


def test_two_evaluations_are_compared(folder, tmp_path, capsys):
    other = evaluate(tmp_path / "b", count=2)
    assert cli.run(["report", str(folder), str(other)]) == 0
    assert capsys.readouterr().out == f"Report: {other / 'comparison.html'}\n"
    assert cli.run(["eval", "--compare", str(other), str(folder)]) == 0
    assert capsys.readouterr().out.endswith(f"Report: {folder / 'comparison.html'}\n")
    assert cli.run(["eval", "--compare", str(folder), str(other), "--no-report"]) == 0
    assert "Report:" not in capsys.readouterr().out
