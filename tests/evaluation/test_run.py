"""An evaluation in a folder: killed and gone on with, shared by processes, it gives the figures of one that was not."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, FakeSegmenter, scene, scene_labels

from m2f_cli.errors import ConfigError, DataError, M2FError
from m2f_cli.evaluation import journal
from m2f_cli.evaluation.evaluate import default_metrics, evaluate
from m2f_cli.evaluation.run import EvalRun, header_of, run
from m2f_cli.inference.stream import stream
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation

COUNT = 9


class Record:
    """A scene whose annotation is moved by some rows; `sleep` makes it slow, `broken` unreadable."""

    image = None

    def __init__(self, number: int, *, sleep: float = 0.0, broken: bool = False):
        self.name, self.moved, self.height = f"{number:03}", number % 5, 40 + 8 * (number % 3)
        self.sleep, self.broken = sleep, broken

    def read_image(self):
        time.sleep(self.sleep)
        if self.broken:
            raise DataError("is damaged.")
        return scene(self.height)

    def read_annotation(self):
        ids_HW = np.roll(scene_labels(self.height), self.moved, axis=0).astype(np.int32) + 1
        return PanopticAnnotation(ids_HW, [AnnotatedSegment(label + 1, label) for label in (SKY, GRASS, PERSON)])


def records(count: int = COUNT, **more) -> list[Record]:
    return [Record(number, **more) for number in range(count)]


def metrics():
    return default_metrics("panoptic", CATEGORIES, also=("instance", "semantic"))


def evaluation(folder: Path, items: list[Record] | None = None, *, segmenter=None, seed: int = 0, **more) -> EvalRun:
    items = records() if items is None else items
    segmenter = segmenter or FakeSegmenter()
    header = header_of(segmenter, [item.name for item in items], metrics=["ap", "miou", "pq"], seed=seed)
    return EvalRun(folder, segmenter, items, metrics(), header, **more)


def text(result) -> str:
    """To the last bit."""
    return json.dumps({**result.to_dict(), "seconds": 0})


@pytest.fixture(scope="module")
def expected() -> str:
    return text(evaluate(FakeSegmenter(), records(), metrics()))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]


def test_the_journal_and_the_figures(tmp_path, expected):
    seen, counts = [], []
    result = run(evaluation(tmp_path / "a"), on_progress=seen.append, on_start=counts.append)
    assert text(result) == expected and counts == [COUNT]
    assert [(each.name, each.number) for each in seen] == [(f"{i:03}", i + 1) for i in range(COUNT)]
    header, *images = lines(tmp_path / "a")
    assert header["header"]["model"] == "fake"
    assert [each["name"] for each in header["header"]["categories"]] == ["sky", "grass", "person"]
    assert [(line["name"], line["number"]) for line in images] == [(f"{i:03}", i) for i in range(COUNT)]
    assert all(line["seconds"] > 0 and list(line["metrics"]) == ["pq", "ap", "miou"] for line in images)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["pictures.jsonl"]


def test_a_folder_is_not_used_twice(tmp_path):
    run(evaluation(tmp_path / "a"))
    with pytest.raises(ConfigError, match="exists already"):
        run(evaluation(tmp_path / "a"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        run(evaluation(tmp_path / "file"))


@pytest.mark.parametrize("resume", [False, True])
def test_the_files_of_a_training_are_not_replaced(tmp_path, resume):
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "env.json", "results.json"):
        (tmp_path / "run" / name).write_text("of the training")
    with pytest.raises(ConfigError, match="holds files already, and no evaluation"):
        run(evaluation(tmp_path / "run"), resume=resume, on_start=lambda _: pytest.fail("it has begun"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "env.json", "results.json"]


def test_killed_before_its_first_image_it_goes_on(tmp_path, expected):
    def killed(_):
        (tmp_path / "a" / "config.yaml").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(evaluation(tmp_path / "a"), on_start=killed)
    assert text(run(evaluation(tmp_path / "a"), resume=True)) == expected


@pytest.mark.parametrize("kept", range(COUNT + 1))
@pytest.mark.parametrize("torn", [False, True])
def test_stopped_anywhere_it_goes_on_to_the_same_figures(tmp_path, expected, kept, torn):
    run(evaluation(tmp_path / "a"))
    path = tmp_path / "a" / "pictures.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    half = (whole[kept + 1] if kept < COUNT else whole[1])[: 40 + kept]
    path.write_bytes(b"".join(whole[: kept + 1]) + (half if torn else b""))
    segmenter = FakeSegmenter()
    result = run(evaluation(tmp_path / "a", segmenter=segmenter), resume=True)
    assert text(result) == expected
    assert len(segmenter.batches) == COUNT - kept
    assert [line["number"] for line in lines(tmp_path / "a")[1:]] == list(range(COUNT))


def test_stopped_before_its_first_line_was_complete(tmp_path, expected):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pictures.jsonl").write_bytes(b'{"header": {"sch')
    assert text(run(evaluation(tmp_path / "a"), resume=True)) == expected


def test_another_evaluation_is_refused(tmp_path):
    run(evaluation(tmp_path / "a"))
    before = (tmp_path / "a" / "pictures.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="with seed 0, not 1"):
        run(evaluation(tmp_path / "a", seed=1), resume=True)
    with pytest.raises(ConfigError, match="with pictures"):
        run(evaluation(tmp_path / "a", records(COUNT + 1)), resume=True)
    other = FakeSegmenter()
    other.source = "other"
    with pytest.raises(ConfigError, match='with model "fake", not "other"'):
        run(evaluation(tmp_path / "a", segmenter=other), resume=True)
    assert (tmp_path / "a" / "pictures.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        b"{]\n",
        b'{"name": "003"}\n',
        b"[1]\n",
        b"7\n",
        b'{"name": "003", "number": -1, "error": "x"}\n',
        b'{"name": "003", "number": true, "error": "x"}\n',
    ],
)
def test_a_damaged_journal(tmp_path, damage):
    run(evaluation(tmp_path / "a"))
    path = tmp_path / "a" / "pictures.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    for where in (0, 4):
        path.write_bytes(b"".join([*whole[:where], damage, *whole[where + 1 :]]))
        with pytest.raises(DataError, match=r"pictures\.jsonl is damaged"):
            run(evaluation(tmp_path / "a"), resume=True)


def test_what_failed_is_reported_and_tried_again(tmp_path, expected):
    items = records()
    items[3].broken = items[7].broken = True
    first = run(evaluation(tmp_path / "a", items))
    assert first.images == COUNT - 2
    assert [(each.name, each.message) for each in first.failures] == [("003", "is damaged."), ("007", "is damaged.")]
    items[3].broken = False
    again = run(evaluation(tmp_path / "a", items), resume=True)
    assert again.images == COUNT - 1 and [each.name for each in again.failures] == ["007"]
    items[7].broken = False
    segmenter = FakeSegmenter()
    assert text(run(evaluation(tmp_path / "a", items, segmenter=segmenter), resume=True)) == expected
    assert len(segmenter.batches) == 1
    assert [line["number"] for line in lines(tmp_path / "a")[1:]] == list(range(COUNT))


def test_a_limit_can_be_raised_and_lowered(tmp_path, expected):
    small = text(evaluate(FakeSegmenter(), records(4), metrics()))
    assert text(run(evaluation(tmp_path / "a", limit=4))) == small
    segmenter = FakeSegmenter()
    assert text(run(evaluation(tmp_path / "a", limit=100, segmenter=segmenter), resume=True)) == expected
    assert len(segmenter.batches) == COUNT - 4
    assert text(run(evaluation(tmp_path / "a", limit=4), resume=True)) == small


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(M2FError, match="None of 2 images"):
        run(evaluation(tmp_path / "a", records(2, broken=True)))


def test_predictions_are_written_while_scoring(tmp_path):
    items = records(4)
    items[2].broken = True
    folder, formats = tmp_path / "a", ["coco-panoptic", "overlay", "coco-instance", "label-png"]
    run(evaluation(folder, items, save=formats))
    out = folder / "predictions"
    document = json.loads((out / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in document["annotations"]] == ["000.png", "001.png", "003.png"]
    assert len(document["categories"]) == 3 and len(json.loads((out / "instances.json").read_text())) == 3
    for kind in ("panoptic", "labels"):
        assert sorted(path.stem for path in (out / kind).iterdir()) == ["000", "001", "003"]
    assert len(list((out / "overlay").iterdir())) == 3
    assert [each["name"] for each in json.loads((out / "predictions.json").read_text())["predictions"]] == [
        "000",
        "001",
        "003",
    ]
    items[2].broken = False
    run(evaluation(folder, items, save=formats), resume=True)
    document = json.loads((out / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in document["annotations"]] == ["000.png", "001.png", "002.png", "003.png"]


@pytest.mark.parametrize("lost", [".predict.jsonl", "overlay/001.jpg", "", "never"])
def test_predictions_that_were_lost_are_made_again(tmp_path, lost):
    items, folder = records(3), tmp_path / "a"
    out = folder / "predictions"
    whole = run(evaluation(folder, items, save=[] if lost == "never" else ["overlay"]))
    if lost == ".predict.jsonl":
        (out / lost).write_bytes(b"")
    elif lost == "":
        shutil.rmtree(out)
    elif lost != "never":
        (out / lost).unlink()
    segmenter = FakeSegmenter()
    again = run(evaluation(folder, items, segmenter=segmenter, save=["overlay"]), resume=True)
    assert len(segmenter.batches) == (1 if "001" in lost else 3) and text(again) == text(whole)
    tree = json.loads((out / "predictions.json").read_text())
    assert [each["name"] for each in tree["predictions"]] == ["000", "001", "002"]
    assert all((out / file).is_file() for each in tree["predictions"] for file in each["files"])
    assert [line["number"] for line in lines(folder)[1:]] == [0, 1, 2]
    segmenter = FakeSegmenter()
    run(evaluation(folder, items, segmenter=segmenter, save=["overlay"]), resume=True)
    assert not segmenter.batches


def test_predictions_of_a_further_process_that_was_killed_are_kept(tmp_path):
    items, folder = records(3), tmp_path / "a"
    run(evaluation(folder, items, save=["overlay"]))
    shard = folder / "predictions" / ".process-1"
    shard.mkdir()
    (folder / "predictions" / ".predict.jsonl").rename(shard / ".predict.jsonl")
    segmenter = FakeSegmenter()
    run(evaluation(folder, items, segmenter=segmenter, save=["overlay"]), resume=True)
    assert not segmenter.batches and not shard.exists()


def test_a_format_for_a_task_that_is_not_measured(tmp_path):
    made = evaluation(tmp_path / "a", save=["coco-instance"])
    made.metrics.pop("ap")
    with pytest.raises(ConfigError, match="coco-instance"):
        run(made)


def test_memory_holds_only_the_images_on_their_way(tmp_path):
    segmenter = FakeSegmenter()
    run(evaluation(tmp_path / "a", records(60), segmenter=segmenter))
    assert segmenter.most_alive <= 5


# --- processes that are killed, and several of them -------------------------------------------------------------------


def python(code: str, **environment: str) -> subprocess.Popen:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {folders!r}\nfrom pathlib import Path\nimport test_run as here\n{code}"
    return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **environment})


@pytest.mark.slow  # the faults of the default suite kill an evaluation, too
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_killed_for_good_it_goes_on_to_the_same_figures(tmp_path, expected):
    folder = tmp_path / "a"
    process = python(f"here.run(here.evaluation(Path({str(folder)!r}), here.records(sleep=0.3)))")
    path = folder / "pictures.jsonl"
    while process.poll() is None and (not path.is_file() or path.read_bytes().count(b"\n") < 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    done = path.read_bytes().count(b"\n") - 1
    assert 2 <= done < COUNT
    segmenter = FakeSegmenter()
    assert text(run(evaluation(folder, segmenter=segmenter), resume=True)) == expected
    assert len(segmenter.batches) == COUNT - done


def run_as(rank: int, store: str, folder: str, count: int = COUNT, resume: bool = False) -> None:
    """One of two processes that meet in `store`; the second also writes what it was told."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        segmenter, items = FakeSegmenter(), records(count)
        result = run(evaluation(Path(folder), items, segmenter=segmenter, save=["coco-panoptic"]), resume=resume)
    finally:
        dist.destroy_process_group()
    Path(f"{store}.{rank}.txt").write_text(f"{len(segmenter.batches)} {text(result)}")


def two_processes(tmp_path: Path, folder: Path, *, count: int = COUNT, resume: bool = False) -> list[str]:
    """What each said: the number of images that went through its network, and the figures. This one is the first."""
    store = str(tmp_path / f"store-{folder.name}-{resume}")
    second = python(f"here.run_as(1, {store!r}, {str(folder)!r}, {count}, {resume})")
    run_as(0, store, str(folder), count, resume)
    assert second.wait(timeout=100) == 0
    return [Path(f"{store}.{rank}.txt").read_text() for rank in range(2)]


HAS_GLOO = dist.is_available() and dist.is_gloo_available()
needs_gloo = pytest.mark.skipif(not HAS_GLOO, reason="this PyTorch has no gloo")


@pytest.mark.slow
@needs_gloo
def test_two_processes_get_the_figures_of_one_and_go_on(tmp_path, expected):
    folder = tmp_path / "a"
    assert two_processes(tmp_path, folder) == [f"4 {expected}", f"5 {expected}"]
    assert [line["number"] for line in lines(folder)[1:]] == list(range(COUNT))
    assert sorted(path.name for path in folder.iterdir()) == ["pictures.jsonl", "predictions"]
    document = json.loads((folder / "predictions" / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in document["annotations"]] == [f"{i:03}.png" for i in range(COUNT)]
    assert not list((folder / "predictions").glob(".process*"))
    # As if both had been killed: the second process's journal is there, with a torn end, and the first one's, too.
    whole = (folder / "pictures.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "pictures.jsonl").write_bytes(b"".join(whole[:3]))
    (folder / "pictures.1.jsonl").write_bytes(whole[0] + b"".join(whole[5:8]) + whole[8][:30])
    assert two_processes(tmp_path, folder, resume=True) == [f"2 {expected}", f"2 {expected}"]
    assert [line["number"] for line in lines(folder)[1:]] == list(range(COUNT))


@pytest.mark.slow
@needs_gloo
def test_a_process_without_images(tmp_path):
    alone = text(evaluate(FakeSegmenter(), records(1), metrics()))
    assert two_processes(tmp_path, tmp_path / "a", count=1) == [f"0 {alone}", f"1 {alone}"]


def test_other_streams_score_where_they_finish_and_the_figures_stay(tmp_path, expected):
    """What a cluster is given, and what it gives, can be pickled."""

    def elsewhere(segmenter, items, job, **options):
        job = pickle.loads(pickle.dumps(job))
        for item, outcome, seconds in stream(segmenter, items, job, **options):
            yield item, pickle.loads(pickle.dumps(outcome)), seconds

    items = records()
    for name, more in (("a", {}), ("b", {"streamer": elsewhere})):
        result = run(evaluation(tmp_path / name, items, save=["coco-panoptic"], thumbnails=32), **more)
        assert text(result) == expected
    figures = [[line.get("metrics") for line in lines(tmp_path / name)] for name in ("a", "b")]
    assert figures[0] == figures[1]
    for name in ("views.jsonl", "predictions/panoptic.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_journals_of_several_processes_become_one(tmp_path):
    header = {"schema_version": 1}
    for rank, numbers in ((0, [0, 1]), (1, [3, 2]), (2, [1, 4])):
        with journal.appending(journal.journal_of(tmp_path, rank), header) as add:
            for number in numbers:
                state = {"error": "x"} if (rank, number) in ((0, 1), (1, 2)) else {"metrics": {"rank": rank}}
                add({"name": f"{number}", "number": number, "seconds": 0.5, **state})
    journal.consolidate(tmp_path, header)
    found = list(journal.read(journal.journal_of(tmp_path)))
    assert [(line["number"], line.get("metrics", {}).get("rank")) for line in found] == [
        (0, 0),
        (1, 2),
        (2, None),
        (3, 1),
        (4, 2),
    ]
    assert journal.finished(tmp_path) == {0, 1, 3, 4} and len(list(tmp_path.iterdir())) == 1


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_the_journal_is_found(tmp_path, expected):
    """The last line end is the exception: without it, the line is half a line, and its image is scored again."""
    run(evaluation(tmp_path / "a"))
    path = tmp_path / "a" / "pictures.jsonl"
    whole = path.read_bytes()
    for at in [*range(0, len(whole), len(whole) // 40), *(i for i, byte in enumerate(whole[:-1]) if byte == 10)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"pictures.jsonl is damaged. Choose another --out, and evaluate again"):
            run(evaluation(tmp_path / "a"), resume=True, on_start=lambda _: pytest.fail("it has begun"))
    path.write_bytes(whole[:-1] + b"\x0b")
    assert text(run(evaluation(tmp_path / "a"), resume=True)) == expected


def test_a_journal_of_an_older_version_is_gone_on_with(tmp_path, expected):
    run(evaluation(tmp_path / "a"))
    path = tmp_path / "a" / "pictures.jsonl"
    old = re.sub(r', "crc32": "[0-9a-f]{8}"}', "}", path.read_text()).splitlines(keepends=True)
    path.write_text("".join(old[:4]))
    assert text(run(evaluation(tmp_path / "a"), resume=True)) == expected
    assert ["crc32" in line for line in lines(tmp_path / "a")] == [False] * 4 + [True] * (COUNT - 3)
