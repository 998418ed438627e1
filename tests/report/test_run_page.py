"""The page of a training: made of whatever its folder has, at any time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from report.page_parser import PageParser

from m2f_cli.errors import DataError
from m2f_cli.report.run import is_going_on, is_run, write_run_page
from m2f_cli.report.write import write_report
from m2f_cli.runtime.locks import locked

HOSTILE = """</script><script>alert(1)</script>"' onerror=alert(2) \u202egnp\x1b[31m"""


def write_run(folder: Path, *, evaluations=(2, 4), **results) -> Path:
    folder.mkdir(parents=True)
    steps = [{"kind": "train", "iteration": i, "loss": 9.0 - i, "loss_ce": 4.0, "lr": 0.1} for i in range(4)]
    figures = [{"kind": "val", "iteration": i, "pq": 10.0 * i, "pq_things": 5.0, "sq": 1.0} for i in evaluations]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, *figures]))
    (folder / "config.yaml").write_text("name: tiny\ntrain: {iterations: 8, batch: 2}\n")
    environment = {"m2f": "0.1.0", "command": ["m2f", "train", "--out", "a b"], "notes": ["A remark."], "crc32": "0"}
    (folder / "env.json").write_text(json.dumps(environment))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def read(path: Path) -> PageParser:
    page = PageParser(path.read_text(encoding="utf-8"))
    assert not page.errors
    return page


def test_it_shows_curves_figures_settings_and_the_command(tmp_path):
    best = {"metric": "pq", "value": 40.0, "iteration": 4}
    folder = write_run(tmp_path / "mine", ended="finished", best=best, seconds=12.3)
    page = read(write_report([folder]))
    assert is_run(folder) and (folder / "report.html").is_file()
    for text in (
        *("Training mine", "4 of 8 iterations; finished.", "Best pq 40.0 after 4 iterations.", "12 seconds"),
        *("Loss", "Learning rate", "Figures on the validation images", "m2f train --out 'a b'", "train.batch"),
        *("The last evaluation, after 4 iterations", "A remark."),
    ):
        assert text in page.text
    assert "crc32" not in page.text and not [a for _, a in page.tags if a.get("http-equiv") == "refresh"]


def test_the_classes_of_the_best_evaluation_are_a_table(tmp_path):
    rows = {HOSTILE: {"pq": 40.0, "tp": 3}, "sky": {"pq": None, "tp": 0}}
    best = {"metric": "pq", "value": 40.0, "iteration": 4, "per_class": {"pq": rows}}
    page = read(write_run_page(write_run(tmp_path / "mine", best=best)))
    assert "Classes, after 4 iterations" in page.text and "</script><script>alert(1)</script>" in page.text
    assert [a["data-value"] for _, a in page.tags if "data-value" in a] == ["40.0", "3.0", "", "0.0"]
    assert "kind" not in page.text  # which nobody knows here


def test_a_run_that_goes_on_says_so_and_its_page_renews_itself(tmp_path):
    folder = write_run(tmp_path / "mine", evaluations=())
    with locked(folder, "A training"):
        assert is_going_on(folder)
        page = read(write_run_page(folder, refresh=5))
    assert "4 of 8 iterations; going on." in page.text and "not evaluated yet" in page.text
    assert [a["content"] for _, a in page.tags if a.get("http-equiv") == "refresh"] == ["5"]
    assert not is_going_on(folder)


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    page = read(write_run_page(folder))
    assert "0 iterations" in page.text and "Nothing was logged yet." in page.text and "None" not in page.text


def test_samples_are_inside_of_the_page(tmp_path):
    folder = write_run(tmp_path / "mine")
    (folder / "samples").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "samples" / "0_a.jpg")
    [address] = read(write_run_page(folder)).addresses()
    assert address.startswith("data:image/jpeg;base64,")


def test_hostile_names_and_odd_values_do_nothing(tmp_path):
    folder = write_run(tmp_path / "mine", ended=HOSTILE, best=[HOSTILE], seconds="x")
    (folder / "env.json").write_text(json.dumps({"command": HOSTILE, "notes": [HOSTILE], HOSTILE: HOSTILE}))
    (folder / "config.yaml").write_text(json.dumps({"name": HOSTILE, "train": [1]}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "val", "iteration": HOSTILE, HOSTILE: 1.0, "pq": float("nan")}) + "\n")
    page = read(write_run_page(folder))
    assert [tag for tag, _ in page.tags].count("script") == 3 and "\u202e" not in page.text and "\x1b" not in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_another_folder_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no training"):
        write_run_page(tmp_path)
    folder = write_run(tmp_path / "mine")
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(DataError, match="config.yaml is not valid YAML"):
        write_run_page(folder)
