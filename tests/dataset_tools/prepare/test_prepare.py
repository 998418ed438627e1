"""Carrying out a plan: only what is missing is made, in any number of processes, and nothing half-written stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.prepare_tools import ade20k_folder, save, zipped
from PIL import Image

from m2f_cli import plugins
from m2f_cli.dataset_tools.prepare import ade20k, run
from m2f_cli.errors import ConfigError, DataError, M2FError

COUNT = 5


@pytest.fixture
def ade(tmp_path):
    return ade20k_folder(tmp_path / "ADEChallengeData2016", COUNT)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def prepare(root, out=None, **options):
    return run.prepare("ade20k", root, out, **{"workers": 1, "partial": True, **options})


def made(report) -> int:
    return sum(stage.made for stage in report.stages)


def test_a_second_run_keeps_everything(ade):
    first = prepare(ade)
    assert made(first) == 3 * (COUNT + 2)
    before = {path: path.stat().st_mtime_ns for path in ade.rglob("*") if path.is_file()}
    second = prepare(ade)
    assert (made(second), sum(stage.kept for stage in second.stages)) == (0, 3 * (COUNT + 2))
    assert {path: path.stat().st_mtime_ns for path in ade.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["[" * 200_000, "{}", "[5]", ""])
def test_a_table_of_somebody_is_made_anew(ade, content):
    prepare(ade)
    [table, *_] = sorted(ade.rglob("*.json"))
    whole = table.read_bytes()
    table.write_text(content)
    prepare(ade)
    assert table.read_bytes() == whole


def test_processes_write_what_one_does(ade, tmp_path):
    seen = []
    prepare(ade, tmp_path / "one")
    prepare(ade, tmp_path / "two", workers=2, on_progress=seen.append)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    stage = [each for each in seen if each.stage == "ade20k_panoptic_train"]
    assert [each.done for each in stage] == list(range(1, COUNT + 1))
    assert {each.total for each in stage} == {COUNT}


@pytest.mark.parametrize("stopped_after", [1, 4, 9, 12, 17])
def test_a_stopped_run_goes_on_where_it_was(ade, tmp_path, stopped_after):
    prepare(ade, tmp_path / "whole")
    done, again = [], []

    def stop(progress):
        done.append((progress.stage, progress.name))
        if len(done) == stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(ade, tmp_path / "out", on_progress=stop)
    prepare(ade, tmp_path / "out", on_progress=lambda each: again.append((each.stage, each.name)))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not set(done) & set(again) and len(done) + len(again) == made_everywhere(ade, tmp_path)


def made_everywhere(ade, tmp_path):
    return made(prepare(ade, tmp_path / "count"))


def test_a_torn_line_of_the_journal_is_made_again(ade, tmp_path):
    table = tmp_path / "out" / "ade20k_instance_train.json"
    prepare(ade, tmp_path / "out")
    expected = table.read_bytes()
    journal = table.with_name(f".{table.name}.journal")
    table.unlink()
    journal.write_bytes(b'["ADE_train_00000001", [{"id": "ADE_trai')
    prepare(ade, tmp_path / "out")
    assert table.read_bytes() == expected and not journal.exists()


def test_what_a_killed_run_left_behind_is_removed(ade, tmp_path):
    """One process was killed between the table and the end of its journal, another in the middle of a file."""
    prepare(ade, tmp_path / "out")
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / ".ade20k_instance_train.json.journal").write_text("[]\n")
    (tmp_path / "out" / "annotations_detectron2" / "training" / ".12-34.part").write_text("half")
    prepare(ade, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n half"])
def test_what_is_cut_off_is_made_again(ade, damage):
    prepare(ade)
    expected = contents(ade)
    for name in ("annotations_detectron2/training/ADE_train_00000002", "ade20k_panoptic_train/ADE_train_00000003"):
        (ade / f"{name}.png").write_bytes(damage)
    report = prepare(ade)
    assert sum(stage.replaced for stage in report.stages) > 0
    assert contents(ade) == expected


def test_verify_finds_and_replaces_what_differs(ade):
    prepare(ade)
    expected = contents(ade)
    target = ade / "annotations_detectron2" / "validation" / "ADE_val_00000001.png"
    save(target, np.zeros((20, 30), np.uint8))
    table = ade / "ade20k_instance_val.json"
    table.write_text(table.read_text().replace('"area": 56', '"area": 57'))
    assert made(prepare(ade)) == 0 and contents(ade) != expected, "without --verify what is whole is kept"
    report = prepare(ade, verify=True)
    assert {stage.title: stage.replaced for stage in report.stages if stage.replaced} == {
        "annotations_detectron2/validation": 1
    }
    assert contents(ade) == expected


def test_verify_keeps_equal_pixels_in_another_packing(ade):
    prepare(ade)
    target = ade / "annotations_detectron2" / "training" / "ADE_train_00000001.png"
    Image.open(target).save(target, compress_level=0)
    before = target.read_bytes()
    prepare(ade, verify=True)
    assert target.read_bytes() == before


def test_other_counts_than_published_are_refused(ade):
    with pytest.raises(DataError, match=r"split training has 5 images; 20210 are published.*--partial"):
        prepare(ade, partial=False)
    assert not list(ade.glob("*.json")) and not (ade / "annotations_detectron2").exists()
    assert any("5 images; 20210" in note for note in prepare(ade).notes)


def test_archives_are_compared_with_their_published_hashes(ade, tmp_path, monkeypatch):
    monkeypatch.setattr(ade20k, "SPLITS", {"training": ("train", COUNT), "validation": ("val", 2)})
    path = zipped(ade, tmp_path / "packed" / "ADEChallengeData2016.zip", "ADEChallengeData2016/")
    prepare(path, partial=False)
    prepare(path, verify=True)
    with pytest.raises(DataError, match=r"ADEChallengeData2016.zip has the SHA1 .*; 219e1696.* is published"):
        prepare(path, partial=False, verify=True)
    seen = []
    monkeypatch.setitem(ade20k.PREPARER.hashes, path.name, hashlib.sha1(path.read_bytes()).hexdigest())
    prepare(path, partial=False, verify=True, on_progress=seen.append)
    assert (seen[0].stage, seen[0].done, seen[0].total, seen[0].name) == ("hashes of archives", 1, 1, path.name)


def test_a_split_without_images_is_refused(tmp_path):
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        save(tmp_path / folder / "train" / f"1.{suffix}", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="the split val has 0 images; 500 are published"):
        run.prepare("mass13k", tmp_path, workers=1)
    report = run.prepare("mass13k", tmp_path, workers=1, partial=True)
    assert any("the split train has 1 image; 11348 are published (a figure" in note for note in report.notes)


def test_half_a_copy_is_refused(ade):
    (ade / "annotations" / "training" / "ADE_train_00000004.png").unlink()
    with pytest.raises(DataError, match=r"1 of 5 files have no annotation, such as .*ADE_train_00000004.jpg"):
        prepare(ade, partial=False)
    assert [count.found for count in prepare(ade).counts] == [COUNT - 1, 2]


def test_a_damaged_image_is_named_and_the_rest_stays(ade):
    broken = ade / "annotations" / "training" / "ADE_train_00000003.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    with pytest.raises(DataError, match="ADE_train_00000003.png is damaged"):
        prepare(ade)
    assert sorted(p.name for p in (ade / "annotations_detectron2" / "training").iterdir()) == [
        "ADE_train_00000001.png",
        "ADE_train_00000002.png",
    ]
    broken.write_bytes(whole)
    assert made(prepare(ade)) == 3 * (COUNT + 2) - 2


def test_errors_of_processes_arrive(ade):
    (ade / "annotations" / "training" / "ADE_train_00000003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="ADE_train_00000003.png is text, not an image"):
        prepare(ade, workers=2)


def test_a_missing_data_set_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in plugins.names("preparers"):
        preparer = plugins.get("preparers", name)
        with pytest.raises(DataError) as caught:
            run.prepare(name)
        assert str(tmp_path / preparer.folder) in caught.value.message
        assert all(text in caught.value.hint for text in (preparer.layout, preparer.origin, preparer.licence))
    with pytest.raises(ConfigError, match="ade20k"):
        run.prepare("ade20")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"is not ADE20K .*it has no images/training"):
        prepare(tmp_path / "other")


def test_the_data_set_is_found_below_the_variable_and_in_the_folder_above(ade, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ade.parent))
    assert prepare(None).folder == ade
    assert prepare(ade.parent).folder == ade


def test_elsewhere_images_are_linked(ade, tmp_path):
    before = contents(ade)
    prepare(ade, tmp_path / "out")
    assert contents(ade) == before, "the source stays as it is"
    image = "images/training/ADE_train_00000001.jpg"
    assert (tmp_path / "out" / image).samefile(ade / image)


def test_where_links_are_not_possible_images_are_copied(ade, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(run.os, "link", refuse)
    prepare(ade, tmp_path / "out")
    before = contents(ade)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


def test_a_folder_that_cannot_be_written(ade, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(M2FError, match="Cannot write"):
        prepare(ade, tmp_path / "file" / "out")


def test_labels_out_of_range_are_refused(ade):
    path = ade / "annotations" / "training" / "ADE_train_00000002.png"
    save(path, np.full((20, 30), 150, np.uint8))
    prepare(ade)
    for pixels in (np.full((20, 30), 151, np.uint8), np.full((20, 30), 256, np.uint16)):
        save(path, pixels)
        with pytest.raises(DataError, match=rf"00000002.png holds the value {pixels.max()}; the classes are 1 to 150"):
            prepare(ade, verify=True)


def test_objects_of_two_classes_are_refused(ade):
    path = ade / "annotations_instance" / "training" / "ADE_train_00000001.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4, 0] = 5
    save(path, pixels)
    with pytest.raises(DataError, match=r"object 1 of .*ADE_train_00000001.png should have one class.*\[4, 5\]"):
        prepare(ade)


def test_without_objects_it_is_good_for_semantic_models(ade):
    for path in sorted((ade / "annotations_instance").rglob("*.png")):
        path.unlink()
    report = prepare(ade)
    assert any("semantic models only" in note and "annotations_instance.tar" in note for note in report.notes)
    assert sorted(stage.title for stage in report.stages) == [
        "annotations_detectron2/training",
        "annotations_detectron2/validation",
    ]


def test_colours_of_a_hundred_objects_are_near_their_class_and_all_different():
    colors = ade20k.SegmentColors("picture", {(0, 0, 0)})
    base = (150, 5, 61)
    found = [colors.near(base) for _ in range(100)]
    assert found[0] == base and len(set(found)) == 100
    assert max(abs(np.array(found) - np.array(base)).ravel()) <= 30
    again = ade20k.SegmentColors("picture", {(0, 0, 0)})
    assert [again.near(base) for _ in range(100)] == found


def test_the_report_is_json(ade):
    tree = json.loads(json.dumps(prepare(ade).to_dict()))
    assert tree["counts"][0] == {"split": "training", "found": COUNT, "expected": 20210, "sure": True}
