"""m2f predict from the command line, over a segmenter without a network."""

from __future__ import annotations

import json
import os
import struct
import sys

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, PERSON, FakeSegmenter, scene, scene_labels
from PIL import Image

from m2f_cli import cli
from m2f_cli.commands.predict import next_folder
from m2f_cli.results import typesetting
from m2f_cli.results.colors import COLOR_BLIND
from m2f_cli.structures.categories import Category


def tiff(width, height, bits):
    """A TIFF of three floats per pixel that claims much and holds nothing: OpenCV's assertions fail at some."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 200),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, 1000),
        (339, 3, 1, 3),
    ]
    return b"II" + struct.pack("<HIH", 42, 8, 10) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(2000)


@pytest.fixture
def fake(monkeypatch):
    from m2f_cli.inference import load

    made = FakeSegmenter()
    made.loads = []

    def given(ref=None, **options):
        made.loads.append((ref, options))
        return made

    monkeypatch.setattr(load, "load", given)
    return made


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(scene()).save(tmp_path / "in" / f"{name}.png")
    return tmp_path


def predictions(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_compile_reaches_the_network(images, fake, monkeypatch):
    compiled = []
    monkeypatch.setattr("m2f_cli.inference.load.compile_parts", compiled.append)
    assert cli.run(["predict", "in/a.png"]) == 0 and not compiled
    assert cli.run(["predict", "in/a.png", "--compile"]) == 0 and compiled == [fake]


def test_the_short_way(images, fake, capsys):
    assert cli.run(["predict", "in"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 done in ") and "Results: runs/predict/1\n" in out and err == ""
    assert sorted(path.name for path in (images / "runs/predict/1/overlay").iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert cli.run(["predict", "in/a.png", "--model", "my runs/x"]) == 0
    end = "Next: m2f eval --model 'my runs/x' --data DIR   or   m2f export --model 'my runs/x'\n"
    assert capsys.readouterr().out.endswith(end)
    assert (images / "runs/predict/2/overlay/a.jpg").is_file()


def test_every_option_arrives(images, fake):
    options = (
        "predict in/*.png --task instance --model my/model --out out --save overlay,coco-instance --save polygons "
        "--device cpu --precision bf16 --batch 2 --workers 1 --object-threshold 0.1 --overlap-threshold 0.2 "
        "--score-threshold 0 --top-k 7 --trust-code"
    )
    assert cli.run(options.split()) == 0
    ((ref, loading),) = fake.loads
    progress = loading.pop("progress")
    assert callable(progress) and ref == "my/model"
    assert loading == {"device": "cpu", "precision": "bf16", "trust_code": True, "engine": None}
    assert fake.default_task == "instance"
    thresholds = {"object_threshold": 0.1, "overlap_threshold": 0.2, "score_threshold": 0.0, "top_k": 7}
    assert fake.thresholds == [thresholds] * 3 and fake.batches == [2, 1]
    document = predictions(images / "out")
    assert document["formats"] == ["overlay", "coco-instance", "polygons"] and document["thresholds"] == thresholds
    assert (document["model"], document["task"]) == ("my/model", "instance")
    assert len(json.loads((images / "out/instances.json").read_text())) == 3


def test_options_of_drawings_reach_the_overlay(images, fake):
    def drawn(name, *options):
        command = ["predict", "in/a.png", "--task", "panoptic", "--save", "overlay-png", "--out", name, *options]
        assert cli.run(command) == 0
        with Image.open(images / name / "overlay" / "a.png") as overlay:
            return np.asarray(overlay)

    person_HW = scene_labels() == PERSON
    plain = drawn("plain", "--draw", "masks", "--opacity", "0")
    assert np.array_equal(plain, scene())
    opaque = drawn("opaque", "--draw", "masks", "--opacity", "1", "--classes", "person,person")
    assert np.array_equal((opaque != scene()).any(axis=-1), person_HW)
    assert len(np.unique(opaque[person_HW], axis=0)) == 1
    safe = drawn("safe", "--draw", "masks", "--opacity", "1", "--draw-classes", "person", "--palette", "color-blind")
    assert tuple(safe[24, 32]) == COLOR_BLIND[PERSON]
    assert drawn("legend", "--legend").shape[0] > 48


def test_an_unknown_class_to_draw_fails_before_the_first_image(images, fake, capsys):
    assert cli.run(["predict", "in", "--classes", "persn,sky", "--out", "out"]) == 2
    assert "no class named 'persn'. Did you mean person" in " ".join(capsys.readouterr().err.split())
    assert fake.batches == [] and not (images / "out").exists()


def test_a_missing_font_is_a_remark(images, fake, capsys, monkeypatch):
    monkeypatch.setattr(typesetting, "machine_fonts", lambda: ())
    fake_categories = (Category(1, "sky \u1a20", False, (9, 9, 9)), *CATEGORIES[1:])  # a letter of Tai Tham
    monkeypatch.setattr("helpers.fake_segmenter.CATEGORIES", fake_categories)
    assert cli.run(["predict", "in", "--task", "panoptic"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("No font has '\u1a20' (TAI)") and "Install Noto Sans Tai" in line


def test_the_default_score_threshold_is_a_half(images, fake):
    assert cli.run(["predict", "in", "--task", "instance"]) == 0
    assert fake.thresholds == [{"score_threshold": 0.5}] * 3


def test_a_failed_image_is_listed_and_the_others_are_done(images, fake, capsys):
    (images / "in" / "b.png").write_text("no image")
    assert cli.run(["predict", "in", "--out", "out", "--json"]) == 3
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["schema_version"], summary["done"], summary["out"]) == (1, 2, "out")
    assert [failure["file"] for failure in summary["failed"]] == ["in/b.png"]
    assert err.startswith("warning: in/b.png is text")
    assert [("error" in record) for record in predictions(images / "out")["predictions"]] == [False, True, False]


@pytest.mark.parametrize("content", [tiff(60_000, 60_000, 32), tiff(13_000, 13_000, 64), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_one_hostile_file_does_not_end_a_run(images, fake, capsys, content):
    (images / "in" / "a.tif").write_bytes(content)
    assert cli.run(["predict", "in", "--out", "out", "--json"]) == 3
    summary = json.loads(capsys.readouterr().out)
    assert summary["done"] == 3 and [failure["file"] for failure in summary["failed"]] == ["in/a.tif"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode on other systems")
def test_names_that_are_not_utf8(images, fake, capsys):
    for name in (b"latin-\xfc.png", b"new\nline\x1b[31m.png", "sep\u2028图.png".encode()):
        (images / "in" / os.fsdecode(name)).write_bytes((images / "in" / "a.png").read_bytes())
    (images / "in" / os.fsdecode(b"bad-\xfc.png")).write_text("text")
    arguments = ["predict", "in", "--out", "out", "--save", "overlay,coco-panoptic,label-png"]
    assert cli.run([*arguments, "--json"]) == 3
    summary = json.loads(capsys.readouterr().out.encode())
    assert summary["done"] == 6 and all(os.path.exists(each["file"]) for each in summary["failed"])
    records = predictions(images / "out")["predictions"]
    assert all(os.path.exists(record["file"]) for record in records) and len(records) == 7
    assert all((images / "out" / file).is_file() for record in records for file in record.get("files", []))
    assert len(json.loads((images / "out" / "panoptic.json").read_bytes())["images"]) == 6
    assert cli.run([*arguments, "--skip-existing"]) == 3
    assert "6 skipped" in capsys.readouterr().out


def test_an_existing_folder_is_gone_on_with_only_on_request(images, fake, capsys):
    assert cli.run(["predict", "in/a.png", "--out", "out"]) == 0
    assert cli.run(["predict", "in", "--out", "out"]) == 2
    assert "--skip-existing to go on, or --overwrite" in capsys.readouterr().err
    assert cli.run(["predict", "in", "--out", "out", "--skip-existing"]) == 0
    assert capsys.readouterr().out.startswith("2 done in")
    assert cli.run(["predict", "in", "--out", "out", "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith("3 done in")


def test_paths_on_stdin(images, fake, monkeypatch):
    monkeypatch.setattr(sys, "stdin", iter(["in/c.png\n", "in/a.png\n"]))
    assert cli.run(["predict", "-", "--out", "out"]) == 0
    assert [record["name"] for record in predictions(images / "out")["predictions"]] == ["c", "a"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("in --task panoptc", 2, "no task named 'panoptc'. Did you mean panoptic"),
        ("in --precision fp8", 2, "no precision named 'fp8'"),
        ("in --save overlai", 2, "no format named 'overlai'. Did you mean overlay"),
        ("in --save ,", 2, "names no format"),
        ("in --task semantic --save coco-instance", 2, "not for semantic"),
        ("in --object-threshold 1.5", 2, "--object-threshold"),
        ("gone.jpg", 3, "no file or folder 'gone.jpg'"),
        ("in/a.png --out in/b.png", 2, "is a file"),
        ("in --skip-existing --overwrite", 2, "exclude each other"),
        ("in --draw mask", 2, "no part of a drawing named 'mask'. Did you mean masks"),
        ("in --draw ,", 2, "Nothing is to be drawn. Name some of masks, outlines"),
        ("in --palette colour-blind", 2, "no palette named 'colour-blind'. Did you mean color-blind"),
        ("in --opacity 1.5", 2, "--opacity"),
        ("in --opacity nan", 2, "--opacity"),
        ("in --save label-png --task semantic --legend", 2, "none is saved. Add --save overlay"),
    ],
)
def test_wrong_requests_fail_before_the_model_is_loaded(images, fake, capsys, arguments, code, message):
    assert cli.run(["predict", *arguments.split()]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert fake.loads == [] and not (images / "runs").exists()


def test_a_task_that_the_model_cannot_do(images, fake, capsys):
    fake.tasks = ("semantic",)
    assert cli.run(["predict", "in", "--task", "panoptic"]) == 2
    assert "does semantic, not 'panoptic'" in capsys.readouterr().err


def test_the_next_free_number_names_the_folder(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "3").mkdir()
    assert next_folder(tmp_path) == tmp_path / "2"


def test_report_writes_a_page_of_all_images(fake, images, capsys):
    assert cli.run(["predict", "in", "--out", "out", "--report", "--thumbnails", "32"]) == 0
    assert "out/report.html" in capsys.readouterr().out.replace(os.sep, "/")
    page = (images / "out" / "report.html").read_text()
    assert all(f'"name":"{name}"' in page for name in "abc") and '"size":[24,32]' in page
    assert cli.run(["predict", "in", "--out", "plain"]) == 0
    assert not (images / "plain" / "report.html").exists() and not (images / "plain" / "views.jsonl").exists()


def test_commercial_use_takes_a_model_whose_licence_allows_it_and_says_which(images, fake, capsys):
    assert cli.run(["predict", "in/a.png", "--task", "panoptic", "--commercial"]) == 0
    [(ref, _)] = fake.loads
    shown = " ".join("".join(capsys.readouterr()).split())
    assert ref == "eomt-coco-panoptic-l-640"
    assert "Model: eomt-coco-panoptic-l-640" in shown and "The licence of eomt-coco-panoptic-l-640 is MIT" in shown


def test_commercial_use_of_a_model_that_forbids_it_is_refused(images, fake, capsys):
    assert cli.run(["predict", "in/a.png", "--model", "coco-panoptic-swin-t", "--commercial"]) == 2
    assert "CC-BY-NC-4.0" in "".join(capsys.readouterr()) and not fake.loads


def test_shards_are_saved_beside_other_formats(fake, images, capsys):
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes tables")
    command = ["predict", "in", "--save", "parquet,label-png", "--shard-size", "2", "--out", "out"]
    assert cli.run([*command, "--task", "panoptic"]) == 0
    assert [len(parquet.read_table(f"out/parquet/{name}.parquet")) for name in ("00000", "00001")] == [2, 1]
    assert len(list((images / "out" / "labels").iterdir())) == 3
    assert cli.run([*command, "--task", "panoptic", "--skip-existing"]) == 0
    assert cli.run(["predict", "in", "--save", "coco-panoptic-shards", "--task", "instance", "--out", "b"]) == 2
    assert "is for panoptic results, not for instance ones" in capsys.readouterr().err
    assert len(fake.loads) == 2  # a wrong format is said before the model is loaded


def test_a_format_of_shards_that_is_mistyped_gets_a_suggestion(fake, images, capsys):
    assert cli.run(["predict", "in", "--save", "parqet"]) == 2
    assert "parquet" in capsys.readouterr().err
