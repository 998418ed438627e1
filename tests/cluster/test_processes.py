"""Images through several processes: the files are those of one process, and what ends a process is one error."""

from __future__ import annotations

import json
import multiprocessing
import threading

import pytest
from helpers.fake_segmenter import FakeSegmenter, scene
from helpers.folders import tree_without_times
from helpers.process_segmenters import DEADLY, Deadly, Faulty, refused
from PIL import Image

from m2f_cli.cluster.processes import Processes, Worker, dispatch, serve
from m2f_cli.errors import ConfigError, M2FError
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import expand
from m2f_cli.inference.stream import Job

FORMATS = ["coco-panoptic", "overlay"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(scene(30 + number)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    return folder


def run(images, out, streamer=None, **options):
    more = {} if streamer is None else {"streamer": streamer}
    return predict(FakeSegmenter(), list(expand([images])), None, out, FORMATS, **more, **options)


def test_two_processes_write_the_files_of_one(images, tmp_path):
    seen, options = [], {"batch": 2, "thumbnails": 32}
    two = Processes([("cpu", FakeSegmenter), ("cpu", FakeSegmenter)])
    summary = run(images, tmp_path / "two", two, on_progress=seen.append, **options)
    run(images, tmp_path / "one", **options)
    assert tree_without_times(tmp_path / "two") == tree_without_times(tmp_path / "one")
    assert [step.file.name for step in seen] == [f"{number}.png" for number in range(7)]
    assert summary.done == 6 and [each.file.name for each in summary.failed] == ["4.png"]
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_one_error_and_the_next_run_goes_on(images, tmp_path):
    with pytest.raises(M2FError, match=r"The process of cpu was killed. Finished images stay, and --skip-existing"):
        run(images, tmp_path / "out", Processes([("cpu", Deadly)]))
    lines = (tmp_path / "out" / ".predict.jsonl").read_text().splitlines()[1:]
    done = [json.loads(line)["record"]["name"] for line in lines]
    assert done == ["0", "1", "2"][: len(done)] and DEADLY == 30 + 3
    assert not multiprocessing.active_children()
    summary = run(images, tmp_path / "out", skip_existing=True)
    assert summary.skipped == len(done)
    run(images, tmp_path / "one")
    assert tree_without_times(tmp_path / "out") == tree_without_times(tmp_path / "one")


def test_a_model_that_cannot_be_opened_in_a_process(images, tmp_path):
    with pytest.raises(ConfigError, match=r"The device 'cuda:7' cannot be used."):
        run(images, tmp_path / "out", Processes([("cuda:7", refused)]))


class Numbers(Job):
    """Pixels of a number; its outcome is the number, some are done, and number 5 waits until `others` were seen."""

    def __init__(self, done=()):
        self.done = done

    def is_done(self, item):
        return item in self.done

    def read(self, item):
        return scene(), item

    def finish(self, segmenter, kept, raw):
        return kept

    def use(self, item, results):
        return results


def in_threads(count, make=FakeSegmenter):
    """Workers in threads of this process."""
    pairs = [multiprocessing.Pipe() for _ in range(count)]
    for _, theirs in pairs:
        threading.Thread(target=serve, args=(theirs, make()), daemon=True).start()
    return [Worker(str(number), ours) for number, (ours, _) in enumerate(pairs)]


class Gated(FakeSegmenter):
    """Waits in its first image until `gate` opens."""

    gate = threading.Event()

    def infer(self, prepared):
        self.gate.wait(60)
        return super().infer(prepared)


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (1, 2), (4, 3)])
def test_items_that_are_done_keep_their_place(batch, workers):
    job = Numbers(done={*range(0, 90, 3), 40, 41, 43, 44})
    found = list(dispatch(in_threads(3), iter(range(90)), job, batch=batch, workers=workers))
    assert [(item, outcome) for item, outcome, _ in found] == [(i, None if i in job.done else i) for i in range(90)]


def test_a_bug_keeps_its_kind_and_shows_where_it_was():
    with pytest.raises(IndexError) as caught:
        list(dispatch(in_threads(1, Faulty), range(3), Numbers(), batch=1, workers=0))
    assert "process_segmenters.py" in str(caught.value.__cause__)


def test_a_process_that_is_slow_does_not_let_the_others_run_away():
    """The number of items on their way is bounded, and the slow one gets what it needs to give its oldest."""
    taken = []

    def items():
        for number in range(2000):
            taken.append(number)
            yield number

    slow, fast = in_threads(1, Gated), in_threads(2)
    images = dispatch([*slow, *fast], items(), Numbers(), batch=1, workers=2)
    opener = threading.Timer(1.0, Gated.gate.set)
    opener.start()
    assert next(images)[0] == 0
    assert len(taken) < 200
    assert [item for item, _, _ in images] == list(range(1, 2000))
