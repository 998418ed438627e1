"""Many images: order, bounds, broken files, crashes, Ctrl-C, going on later."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from helpers.fake_segmenter import FakeSegmenter, scene, scene_labels
from PIL import Image

from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.inference import journal as journals
from m2f_cli.inference.predict import predict as predict_all
from m2f_cli.inference.sources import RUN_MARK, expand
from m2f_cli.results import writers as output

COUNT = 7


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i in range(COUNT):
        name = f"sub/{i}.png" if i == 5 else f"{i}.png"
        Image.fromarray(scene(24 + i, 32)).save(tmp_path / "in" / name)
    return tmp_path


def predict(folder, segmenter=None, task="panoptic", formats=("coco-panoptic",), **options):
    segmenter = segmenter or FakeSegmenter()
    return predict_all(segmenter, expand([folder / "in"]), task, folder / "out", formats, **options)


def report(folder, name="predictions.json"):
    return json.loads((folder / "out" / name).read_text())


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != RUN_MARK}


ORDER = ["0", "1", "2", "3", "4", "6", "sub/5"]


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (1, 4), (3, 2), (20, 2)])
def test_records_are_in_the_order_of_the_sources(folder, batch, workers):
    segmenter = FakeSegmenter()
    thresholds = {"object_threshold": 0.3, "top_k": None}
    summary = predict(folder, segmenter, batch=batch, workers=workers, thresholds=thresholds)
    assert (summary.done, summary.skipped, summary.failed) == (COUNT, 0, [])
    document = report(folder)
    assert [record["name"] for record in document["predictions"]] == ORDER
    head = {key: document[key] for key in ("schema_version", "model", "task", "formats", "thresholds")}
    assert head == {
        "schema_version": 1,
        "model": "fake",
        "task": "panoptic",
        "formats": ["coco-panoptic"],
        "thresholds": {"object_threshold": 0.3},
    }
    assert segmenter.thresholds == [{"object_threshold": 0.3}] * COUNT
    assert sum(segmenter.batches) == COUNT and max(segmenter.batches) == min(batch, COUNT)
    assert segmenter.infer_threads == {threading.get_ident()}


def test_a_record_says_what_was_found_and_how_long_it_took(folder):
    predict(folder)
    record = report(folder)["predictions"][3]
    assert (record["file"], record["width"], record["height"]) == (str(folder / "in" / "3.png"), 32, 27)
    area = int((scene_labels(27, 32) == 2).sum())
    assert record["segments"][2] == {
        "id": 3,
        "label": "person",
        "category_id": 1,
        "isthing": True,
        "score": 0.7,
        "area": area,
    }
    assert record["files"] == ["panoptic/3.png"]
    assert set(record["times_ms"]) == {"read", "prepare", "network", "post_process", "write"}


def test_coco_panoptic_of_a_run(folder):
    predict(folder)
    document = report(folder, "panoptic.json")
    assert [image["id"] for image in document["images"]] == ORDER
    assert document["images"][-1] == {"id": "sub/5", "file_name": "sub/5.png", "width": 32, "height": 29}
    for annotation in document["annotations"]:
        rgb_HW3 = np.asarray(Image.open(folder / "out" / "panoptic" / annotation["file_name"])).astype(int)
        areas = {record["id"]: record["area"] for record in annotation["segments_info"]}
        assert areas == dict(zip(*np.unique(rgb_HW3 @ [1, 256, 65536], return_counts=True), strict=True))
    assert len(document["categories"]) == 3 and not list((folder / "out" / "panoptic").rglob("*.json"))


def test_coco_instances_of_a_run_is_one_list(folder):
    predict(folder, task="instance", formats=("coco-instance",))
    records = report(folder, "instances.json")
    assert [record["image_id"] for record in records] == ORDER
    assert all(record["category_id"] == 1 and record["score"] == 0.875 for record in records)
    assert report(folder)["predictions"][0]["instances"][0]["area"] == int((scene_labels(24, 32) == 2).sum())


def test_semantic_summary_counts_pixels(folder):
    predict(folder, task="semantic", formats=("label-png",))
    classes = report(folder)["predictions"][0]["classes"]
    assert {each["label"]: each["area"] for each in classes} == dict(
        zip(("sky", "grass", "person"), np.bincount(scene_labels(24, 32).ravel()).tolist(), strict=True)
    )


def test_one_broken_file_is_reported_and_the_rest_go_on(folder):
    (folder / "in" / "3.png").write_bytes(b"no image")
    steps = []
    summary = predict(folder, batch=2, on_progress=steps.append)
    assert summary.done == COUNT - 1
    (failure,) = summary.failed
    assert failure.file == folder / "in" / "3.png" and "is text" in failure.message
    assert [step.state for step in steps] == ["done"] * 3 + ["failed"] + ["done"] * 3
    record = report(folder)["predictions"][3]
    assert record["name"] == "3" and "is text" in record["error"]
    assert [image["id"] for image in report(folder, "panoptic.json")["images"]] == [n for n in ORDER if n != "3"]


@pytest.mark.parametrize("stage", ["prepare", "infer", "finish"])
def test_a_image_that_the_model_refuses_does_not_spoil_its_batch(folder, stage):
    class Picky(FakeSegmenter):
        def refuse(self, stage_now, height):
            if stage_now == stage and height == 26:
                raise M2FError("refused")

        def prepare(self, image_HW3):
            self.refuse("prepare", len(image_HW3))
            return super().prepare(image_HW3)

        def infer(self, prepared):
            for each in prepared:
                self.refuse("infer", len(each.labels_HW))
            return super().infer(prepared)

        def finish(self, raw, task=None, **thresholds):
            self.refuse("finish", len(raw))
            return super().finish(raw, task, **thresholds)

    summary = predict(folder, Picky(), batch=3)
    assert summary.done == COUNT - 1 and [failure.message for failure in summary.failed] == ["refused"]
    assert report(folder)["predictions"][2]["error"] == "refused"


@pytest.mark.parametrize(("batch", "workers"), [(1, 2), (2, 3)])
def test_memory_is_bounded_when_the_network_is_slow(folder, batch, workers):
    class Slow(FakeSegmenter):
        def infer(self, prepared):
            time.sleep(0.02)
            return super().infer(prepared)

    for i in range(100, 130):
        Image.fromarray(scene(8, 8)).save(folder / "in" / f"{i}.png")
    segmenter = Slow()
    assert predict(folder, segmenter, batch=batch, workers=workers, formats=["label-png"]).done == COUNT + 30
    assert segmenter.most_alive <= workers + 2 * batch
    assert segmenter.alive == 0


def test_beside_a_network_on_the_cpu_nothing_runs(folder, monkeypatch):
    threads = set()

    def write(result, stem):
        threads.add(threading.get_ident())
        return []

    monkeypatch.setattr(output, "write_label_png", write)
    segmenter = FakeSegmenter()
    segmenter.device = torch.device("cpu")
    assert predict(folder, segmenter, workers=2, formats=["label-png"]).done == COUNT
    assert threads == segmenter.infer_threads == {threading.get_ident()}


def test_results_do_not_pile_up_when_writing_is_slow(folder, monkeypatch):
    inferred, written = [0], [0]
    most_waiting = [0]

    class Counting(FakeSegmenter):
        def infer(self, prepared):
            inferred[0] += len(prepared)
            most_waiting[0] = max(most_waiting[0], inferred[0] - written[0])
            return super().infer(prepared)

    def slow_write(result, stem):
        time.sleep(0.02)
        written[0] += 1
        return []

    monkeypatch.setattr(output, "write_label_png", slow_write)
    for i in range(100, 120):
        Image.fromarray(scene(8, 8)).save(folder / "in" / f"{i}.png")
    predict(folder, Counting(), workers=2, formats=["label-png"])
    assert written[0] == COUNT + 20 and most_waiting[0] <= 4


@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug in a writer")])
def test_a_crash_in_a_writer_ends_the_run_and_it_goes_on_later(folder, monkeypatch, error):
    write, others = output.write_label_png, set(threading.enumerate())

    def crash(result, stem):
        if stem.name == "3":
            with output.atomic(output.add_suffix(stem, ".png")) as part:
                part.write_text("half a file")
                raise error
        return write(result, stem)

    monkeypatch.setattr(output, "write_label_png", crash)
    expected = M2FError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(expected, match=r"No space left|a bug"):
        predict(folder, formats=["label-png"])
    assert not list((folder / "out").rglob("*.part")) and not (folder / "out" / "labels" / "3.png").exists()
    assert set(threading.enumerate()) <= others

    monkeypatch.setattr(output, "write_label_png", write)
    summary = predict(folder, formats=["label-png"], skip_existing=True)
    assert summary.skipped == 3 and summary.done == COUNT - 3
    assert [record["name"] for record in report(folder)["predictions"]] == ORDER


@pytest.mark.timeout(30)
def test_ctrl_c_keeps_what_is_finished(folder):
    class Interrupted(FakeSegmenter):
        def infer(self, prepared):
            if sum(self.batches) == 5:
                raise KeyboardInterrupt
            return super().infer(prepared)

    with pytest.raises(KeyboardInterrupt):
        predict(folder, Interrupted(), workers=1)
    kept = [record["name"] for record in report(folder)["predictions"]]
    assert kept == ORDER[: len(kept)] and len(kept) >= 3
    assert predict(folder, skip_existing=True).skipped == len(kept)
    assert [record["name"] for record in report(folder)["predictions"]] == ORDER


def test_a_second_run_skips_what_is_finished_and_changes_nothing(folder):
    predict(folder)
    before = snapshot(folder / "out")
    segmenter = FakeSegmenter()
    steps = []
    summary = predict(folder, segmenter, skip_existing=True, on_progress=steps.append)
    assert (summary.done, summary.skipped) == (0, COUNT) and segmenter.batches == []
    assert {step.state for step in steps} == {"skipped"}
    assert snapshot(folder / "out") == before


def test_only_what_is_missing_or_failed_is_done_again(folder):
    good = (folder / "in" / "3.png").read_bytes()
    (folder / "in" / "3.png").write_bytes(good[:60])
    predict(folder)
    (folder / "in" / "3.png").write_bytes(good)
    (folder / "out" / "panoptic" / "1.png").unlink()
    Image.fromarray(scene(20, 20)).save(folder / "in" / "25.png")
    summary = predict(folder, skip_existing=True)
    assert (summary.done, summary.skipped, summary.failed) == (3, COUNT - 2, [])
    names = ["0", "1", "2", "25", "3", "4", "6", "sub/5"]
    assert [record["name"] for record in report(folder)["predictions"]] == names
    assert [image["id"] for image in report(folder, "panoptic.json")["images"]] == names


def test_a_line_that_was_cut_off_by_a_crash_is_done_again(folder):
    predict(folder)
    path = folder / "out" / RUN_MARK
    path.write_bytes(path.read_bytes()[:-40])
    assert predict(folder, skip_existing=True).done == 1
    assert [record["name"] for record in report(folder)["predictions"]] == ORDER


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "semantic", "formats": ["label-png"]}, "task"),
        ({"formats": ["label-png"]}, "formats"),
        ({"thresholds": {"object_threshold": 0.1}}, "thresholds"),
        ({"model": "other"}, "model"),
    ],
)
def test_going_on_with_other_settings_is_refused(folder, change, named):
    predict(folder)
    with pytest.raises(ConfigError, match=f"with {named} .*--overwrite"):
        predict(folder, skip_existing=True, **change)


def test_a_folder_in_use_is_not_written_over(folder):
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty"):
        predict(folder)
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.txt"]
    predict(folder, overwrite=True, task="semantic", formats=["crops"])
    predict(folder, overwrite=True)
    files = {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*") if path.is_file()}
    assert files == {"mine.txt", "predictions.json", "panoptic.json", RUN_MARK, *(f"panoptic/{n}.png" for n in ORDER)}
    with pytest.raises(ConfigError, match="exclude each other"):
        predict(folder, overwrite=True, skip_existing=True)


def test_erasing_stays_inside_the_folder(tmp_path):
    (tmp_path / "precious").touch()
    (tmp_path / "out").mkdir()
    entry = {"record": {"name": "a", "files": ["../precious", str(tmp_path / "precious")]}}
    (tmp_path / "out" / RUN_MARK).write_text("{}\n" + json.dumps(entry) + "\n")
    journals.erase(tmp_path / "out")
    assert (tmp_path / "precious").exists() and not list((tmp_path / "out").iterdir())


def test_a_damaged_journal_is_said(folder):
    predict(folder)
    (folder / "out" / RUN_MARK).write_text("not json\n")
    with pytest.raises(DataError, match="is damaged"):
        predict(folder, skip_existing=True)


def test_wrong_requests_are_refused_before_the_first_image(folder):
    with pytest.raises(ConfigError, match="fake does panoptic, semantic, not 'instance'"):
        predict(folder, FakeSegmenter(("panoptic", "semantic")), task="instance", formats=["overlay"])
    with pytest.raises(ConfigError, match="not for semantic"):
        predict(folder, task="semantic", formats=["coco-instance"])
    with pytest.raises(ConfigError, match="at least 1, not 0, 2 and 1000"):
        predict(folder, batch=0)
    assert not (folder / "out").exists()
    assert predict(folder, FakeSegmenter(("semantic",)), task=None, formats=["label-png"]).done == COUNT


def test_nothing_to_do_still_gives_whole_files(tmp_path):
    summary = predict_all(FakeSegmenter(), [], "panoptic", tmp_path / "out", ["coco-panoptic"])
    assert summary.done == 0
    assert report(tmp_path)["predictions"] == [] == report(tmp_path, "panoptic.json")["images"]


def test_a_flipped_bit_of_the_journal_is_found(folder):
    predict(folder)
    path = folder / "out" / RUN_MARK
    whole = path.read_bytes()
    for at in [*range(0, len(whole) - 1, len(whole) // 40), *(i for i, byte in enumerate(whole[:-1]) if byte == 10)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"predict.jsonl is damaged. Use --overwrite or another --out."):
            predict(folder, skip_existing=True)
    path.write_bytes(whole[:-1] + b"\x0b")  # half a line: its image is done again
    assert predict(folder, skip_existing=True).done == 1
    assert path.read_bytes().count(b"crc32") == COUNT + 1


def test_a_journal_of_an_older_version_is_gone_on_with(folder):
    predict(folder)
    path = folder / "out" / RUN_MARK
    before = report(folder)
    path.write_text(re.sub(r', "crc32": "[0-9a-f]{8}"}', "}", path.read_text()))
    assert predict(folder, skip_existing=True).skipped == COUNT
    assert report(folder) == before and "crc32" not in json.dumps(before)
