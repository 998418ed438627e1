"""Comparison of two evaluations: paired differences, their intervals, and folders that cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, FakeSegmenter, scene, scene_labels
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.evaluation import tables as error_tables
from m2f_cli.evaluation.bootstrap import MOST_SLOW_RESAMPLES, images_of
from m2f_cli.evaluation.compare import compare, differences
from m2f_cli.evaluation.threshold_sweep import sweep
from m2f_cli.metrics.calibration import InstanceCalibration, PanopticCalibration
from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.metrics.pq_errors import PanopticErrors
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation

METRICS = ("pq", "ap", "boundary-ap", "miou", "pq-stuff", "boundary-iou", "pq-per-picture")


def annotation_of(labels_HW) -> PanopticAnnotation:
    return PanopticAnnotation(
        labels_HW.astype(np.int32) + 1, [AnnotatedSegment(k + 1, k) for k in (SKY, GRASS, PERSON)]
    )


def damaged(rng, labels_HW, noise: float):
    """The scene with moved regions and some lost pixels, as each kind of result."""
    moved = np.roll(labels_HW, rng.integers(-2, 3), axis=int(rng.integers(0, 2)))
    seen = np.where(rng.random(labels_HW.shape) < noise, rng.integers(0, 3, labels_HW.shape), moved).astype(np.uint8)
    if rng.random() < noise:
        seen[seen == PERSON] = GRASS
    segments = [Segment(k + 1, k, float(rng.uniform(0.5, 1)), int((seen == k).sum())) for k in range(3)]
    present = [each for each in segments if each.area]
    masks = [seen == PERSON, np.roll(seen == PERSON, 5, axis=1), (labels_HW == PERSON) & (rng.random() >= noise)]
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks if mask.any()]
    scores = np.sort(rng.choice([0.3, 0.5, 0.7, 0.9], len(rles)))[::-1].astype(np.float32)
    return {
        "panoptic": PanopticMap(seen.shape, CATEGORIES, seen.astype(np.int32) + 1, present),
        "instance": Instances(seen.shape, CATEGORIES, np.full(len(rles), PERSON), scores, rles),
        "semantic": SemanticMap(seen.shape, CATEGORIES, seen),
    }


def states(name: str, seed: int, count: int = 12, noise: float = 0.1):
    """A metric of all images, and the state of each."""
    rng = np.random.default_rng(seed)
    metric = plugins.get("metrics", name)(CATEGORIES)
    found = []
    for _ in range(count):
        labels_HW = scene_labels(24, 32)
        part = metric.fresh()
        part.update(damaged(rng, labels_HW, noise)[metric.task], annotation_of(labels_HW))
        found.append(json.loads(json.dumps(part.state())))
        metric.restore(found[-1])
    return metric, found


def write(folder: Path, by_metric: dict[str, list], names=None, **header) -> Path:
    folder.mkdir(parents=True)
    names = names or [f"{i:03}" for i in range(len(next(iter(by_metric.values()))))]
    lines = [{"header": {"categories": [each.to_dict() for each in CATEGORIES], **header}}]
    for number, name in enumerate(names):
        own = {metric: found[number] for metric, found in by_metric.items()}
        lines.append({"name": name, "number": number, "seconds": 0.1, "metrics": own})
    (folder / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# --- resampled figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_every_image_once_gives_the_metrics_own_figures_to_the_last_bit(name):
    metric, found = states(name, seed=3)
    images = images_of(metric.fresh(), found)
    expected = metric.compute()
    values = images(np.ones(len(found), np.int64)).tolist()
    whole = dict(zip(images.figures, values, strict=False))
    assert whole == {figure: expected[figure] for figure in images.figures}
    assert not math.isnan(next(iter(whole.values()))) and next(iter(whole.values())) not in (0, 100)
    classes = values[len(images.figures) :]
    column = {"pq-stuff": "pq", "miou": "iou"}.get(name, images.figures[0])
    assert str(classes) == str([expected["per_class"][each][column] for each in images.classes])


class Mean:
    """A metric without figures of classes: the mean of the numbers of its images."""

    def __init__(self):
        self.numbers: list[float] = []

    def fresh(self):
        return Mean()

    def restore(self, state):
        self.numbers.append(state["number"])

    def compute(self):
        return {"mean": sum(self.numbers) / len(self.numbers)}


def test_a_metric_without_figures_of_classes_is_resampled():
    images = images_of(Mean(), [{"number": 10.0}, {"number": 40.0}])
    assert images.figures == ["mean"] and images.classes == []
    assert images(np.array([2, 1])).tolist() == [20.0]


@pytest.mark.parametrize("name", METRICS)
def test_images_that_count_several_times(name):
    metric, found = states(name, seed=5)
    weights_N = np.random.default_rng(0).multinomial(len(found), np.full(len(found), 1 / len(found)))
    again = metric.fresh()
    for state, times in zip(found, weights_N, strict=True):
        for _ in range(times):
            again.restore(state)
    images = images_of(metric.fresh(), found)
    expected = [again.compute()[figure] for figure in images.figures]
    assert images(weights_N)[: len(expected)].tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert 0 in weights_N and weights_N.max() > 1


def test_intervals_cover_the_annotation_about_as_often_as_they_say():
    """B is A with a hit more or less in each image, at random: the true difference is known from many images."""
    rng = np.random.default_rng(7)

    def draw(count):
        metric = PanopticQuality(CATEGORIES)
        runs = []
        for share in (0.5, 0.6):
            hits = rng.binomial(6, share, count)
            runs.append(images_of(metric, [{"classes": [[0, [0.8] * int(h), 0, 6 - int(h)]]} for h in hits]))
        return runs

    expected = 100 * 0.8 * (0.6 / 0.8 - 0.5 / 0.75)
    inside = 0
    for trial in range(80):
        figures, _ = differences(*draw(40), 120, trial)
        inside += figures[0].low <= expected <= figures[0].high
    assert 68 <= inside <= 80  # 95 % of 80 are 76


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_identical_runs_do_not_differ(tmp_path, name):
    _, found = states(name, seed=1)
    a, b = (write(tmp_path / run, {name: found}) for run in "ab")
    comparison = compare(a, b, resamples=30)
    for each in (*comparison.figures, *comparison.per_class):
        if not math.isnan(each.a):
            assert (each.difference, each.low, each.high) == (0, 0, 0) and not each.is_clear
    assert comparison.changed == [] and comparison.images == 12
    assert comparison.resamples == 30 and comparison.metric == name
    json.dumps(comparison.to_dict(), allow_nan=False)
    assert all(len(row) == len(head) for _, head, rows in comparison.rows() for row in rows)


@pytest.mark.parametrize("name", METRICS)
def test_a_clearly_better_run(tmp_path, name):
    a = write(tmp_path / "a", {name: states(name, seed=1, count=30, noise=0.7)[1]})
    b = write(tmp_path / "b", {name: states(name, seed=2, count=30, noise=0.0)[1]})
    comparison = compare(a, b, resamples=60)
    first = comparison.figures[0]
    assert first.difference == first.b - first.a > 0 and first.low > 0 and first.is_clear
    assert first.low <= first.difference <= first.high
    assert comparison.changed and "clear over 30 images" in comparison.summary()
    changes = [abs(each.b - each.a) for each in comparison.changed]
    assert changes == sorted(changes, reverse=True) and all(changes)
    back = compare(b, a, resamples=60)
    assert back.figures[0].difference == -first.difference and back.figures[0].high < 0


def test_the_same_seed_gives_the_same_intervals(tmp_path):
    a, b = (write(tmp_path / str(seed), {"pq": states("pq", seed)[1]}) for seed in (1, 2))
    assert compare(a, b, resamples=50) == compare(a, b, resamples=50)
    assert compare(a, b, resamples=50, seed=1).figures[0].low != compare(a, b, resamples=50).figures[0].low


def test_only_images_of_both_are_compared_whatever_their_order(tmp_path):
    _, found = states("pq", seed=1, count=6)
    a = write(tmp_path / "a", {"pq": found[:5]}, ["p", "q", "r", "s", "t"])
    b = write(tmp_path / "b", {"pq": [found[5], found[4], found[3]]}, ["z", "t", "s"])
    comparison = compare(a, b, resamples=10)
    assert (comparison.images, comparison.only_a, comparison.only_b) == (2, 3, 1)
    assert comparison.figures[0].difference == 0
    expected = PanopticQuality(CATEGORIES)
    for state in found[3:5]:
        expected.restore(state)
    assert comparison.figures[0].a == expected.compute()["pq"]
    with pytest.raises(DataError, match="no scored image in common"):
        compare(a, write(tmp_path / "c", {"pq": found[:1]}, ["other"]))


def test_one_image_has_no_interval(tmp_path):
    a, b = (write(tmp_path / str(seed), {"pq": states("pq", seed, count=1)[1]}) for seed in (1, 2))
    first = compare(a, b, resamples=10).figures[0]
    assert math.isnan(first.low) and math.isnan(first.high) and not first.is_clear
    assert json.loads(json.dumps(compare(a, b, resamples=10).to_dict()))["figures"][0]["low"] is None


def test_which_metric_is_compared(tmp_path):
    pq, miou, other = (states(name, seed=1)[1] for name in ("pq", "miou", "boundary-iou"))
    a = write(tmp_path / "a", {"boundary-iou": other, "miou": miou, "pq": pq})
    b = write(tmp_path / "b", {"boundary-iou": other, "miou": miou})
    assert compare(a, b, resamples=5).metric == "miou"
    assert compare(a, b, resamples=5000, metric="boundary-iou").resamples == MOST_SLOW_RESAMPLES
    with pytest.raises(ConfigError, match="boundary-iou, miou"):
        compare(a, b, metric="pq")
    with pytest.raises(ConfigError, match="no metric in common"):
        compare(write(tmp_path / "c", {"pq": pq}), b)
    with pytest.raises(ConfigError, match="resamples = 0"):
        compare(a, b, resamples=0)


def test_average_precision_with_another_limit_of_objects(tmp_path):
    metric = plugins.get("metrics", "ap")(CATEGORIES, max_dets=[1, 2])
    labels_HW = scene_labels(24, 32)
    metric.update(damaged(np.random.default_rng(0), labels_HW, 0.0)["instance"], annotation_of(labels_HW))
    a, b = (write(tmp_path / run, {"ap": [metric.state()]}) for run in "ab")
    assert compare(a, b).figures[0].a == metric.compute()["ap"]
    c = write(tmp_path / "c", {"ap": states("ap", seed=1, count=1)[1]})
    with pytest.raises(DataError, match="max_dets"):
        compare(a, c)


# --- what cannot be compared ------------------------------------------------------------------------------------------


def test_annotations_must_be_the_same(tmp_path):
    _, found = states("pq", seed=1, count=3)
    other = [found[0], {"classes": [[0, [0.9], 0, 4]]}, found[2]]
    a, b = write(tmp_path / "a", {"pq": found}), write(tmp_path / "b", {"pq": other})
    with pytest.raises(DataError, match="annotations of 1 of 3 images differ.*001"):
        compare(a, b)


def test_classes_must_be_the_same(tmp_path):
    _, found = states("pq", seed=1, count=2)
    changed = [{**each.to_dict(), "isthing": False} for each in CATEGORIES]
    a, b = write(tmp_path / "a", {"pq": found}), write(tmp_path / "b", {"pq": found}, categories=changed)
    with pytest.raises(DataError, match="other classes.*person"):
        compare(a, b)
    c = write(tmp_path / "c", {"pq": found}, categories=changed[:2])
    with pytest.raises(DataError, match="other classes"):
        compare(a, c)
    (a / "pictures.jsonl").write_text('{"header": {}}\n' + (a / "pictures.jsonl").read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="what its classes are"):
        compare(a, b)


def test_folders_that_hold_no_evaluation(tmp_path):
    good = write(tmp_path / "good", {"pq": states("pq", seed=1, count=2)[1]})
    with pytest.raises(DataError, match="holds no evaluation"):
        compare(good, tmp_path / "nowhere")
    empty = write(tmp_path / "empty", {"pq": []})
    with pytest.raises(DataError, match="no scored image"):
        compare(good, empty)
    failed = write(tmp_path / "failed", {"pq": []})
    with (failed / "pictures.jsonl").open("a") as file:
        file.write(json.dumps({"name": "000", "number": 0, "seconds": 0, "error": "is damaged"}) + "\n")
    with pytest.raises(DataError, match="no scored image"):
        compare(good, failed)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense\n",
        '{"name": "x"}\n',
        '{"name": "x", "number": 9, "metrics": 3}\n',
        '{"name": "x", "number": 9, "metrics": {}}\n',
        '{"name": "000", "number": 9, "metrics": {"pq": {"classes": []}}}\n',
    ],
)
def test_damaged_journals_are_refused(tmp_path, line):
    found = states("pq", seed=1, count=2)[1]
    a, b = (write(tmp_path / run, {"pq": found}) for run in "ab")
    with (b / "pictures.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match="damaged|two images named"):
        compare(a, b)


@pytest.mark.parametrize("state", [None, {}, {"classes": [[99, [0.9], 0, 0]]}, {"classes": [[0, [2.0], 0, 0]]}])
def test_damaged_states_are_refused(tmp_path, state):
    found = states("pq", seed=1, count=2)[1]
    a, b = write(tmp_path / "a", {"pq": found}), write(tmp_path / "b", {"pq": [found[0], state]})
    with pytest.raises(DataError, match="damaged"):
        compare(a, b)


def test_half_a_line_at_the_end_is_not_there_yet(tmp_path):
    found = states("pq", seed=1, count=3)[1]
    a, b = (write(tmp_path / run, {"pq": found}) for run in "ab")
    text = (b / "pictures.jsonl").read_text()
    (b / "pictures.jsonl").write_text(text[:-20])
    comparison = compare(a, b, resamples=5)
    assert (comparison.images, comparison.only_a) == (2, 1)


# --- tables of errors -------------------------------------------------------------------------------------------------


def test_tables_of_errors_and_calibration():
    rng = np.random.default_rng(0)
    metrics = {
        "pq-errors": PanopticErrors(CATEGORIES),
        "calibration": PanopticCalibration(CATEGORIES),
        "calibration-instance": InstanceCalibration(CATEGORIES),
    }
    labels_HW = scene_labels(24, 32)
    for _ in range(5):
        results = damaged(rng, labels_HW, 0.4)
        for metric in metrics.values():
            metric.update(results[metric.task], annotation_of(labels_HW))
    figures = {name: metric.compute() for name, metric in metrics.items()}
    tables = error_tables.tables(figures, [f"image {i}" for i in range(5)])
    assert len(tables) == 8 and len({title for title, _, _ in tables}) == 8
    assert all(isinstance(cell, str) for _, _, rows in tables for row in rows for cell in row)
    assert all(len(row) == len(head) for _, head, rows in tables for row in rows)
    losses = [float(row[1]) for row in tables[0][2] if row[1] != "–"]
    assert losses == sorted(losses, reverse=True) and losses[0] > 0
    lost = [float(row[2]) for row in tables[4][2]]
    assert lost == sorted(lost, reverse=True) and {row[0] for row in tables[4][2]} == {f"image {i}" for i in range(5)}
    json.dumps(figures["pq-errors"]["tables"])
    empty = {name: metric.fresh().compute() for name, metric in metrics.items()}
    assert len(error_tables.tables(empty)) == 7 and error_tables.tables({"pq": {}}) == []


# --- thresholds -------------------------------------------------------------------------------------------------------


class Record:
    def __init__(self, number: int):
        self.name = str(number)

    def read_image(self):
        return scene(24, 32)

    def read_annotation(self):
        return annotation_of(scene_labels(24, 32))


class Broken(Record):
    def read_image(self):
        raise DataError("The image is damaged.")


class Thresholded(FakeSegmenter):
    """The sky is found at an object threshold below 0.5, grass at an overlap threshold below 0.7."""

    def finish(self, raw, task=None, *, object_threshold, overlap_threshold):
        found = super().finish(raw, task)
        lost = {1: object_threshold >= 0.5, 2: overlap_threshold >= 0.7, 3: False}
        found.segments = [each for each in found.segments if not lost[each.id]]
        found.ids_HW = np.where(np.isin(found.ids_HW, [each.id for each in found.segments]), found.ids_HW, 0)
        return found


def test_sweep_runs_the_network_once_and_finds_the_best_pair():
    segmenter, seen = Thresholded(), []
    found = sweep(
        segmenter,
        [Record(0), Broken(1), Record(2), Record(3)],
        object_thresholds=(0.9, 0.2),
        overlap_thresholds=(0.8, 0.6),
        on_progress=seen.append,
    )
    pq = {(each.object_threshold, each.overlap_threshold): each.pq for each in found.pairs}
    assert pq == {
        (0.9, 0.8): pytest.approx(100 / 3),
        (0.9, 0.6): pytest.approx(200 / 3),
        (0.2, 0.8): pytest.approx(200 / 3),
        (0.2, 0.6): pytest.approx(100),
    }
    assert (found.best.object_threshold, found.best.overlap_threshold) == (0.2, 0.6)
    assert found.by_halves == pytest.approx(100) and found.now is None and found.images == 3
    assert len(segmenter.batches) == 3 and [each.number for each in seen] == [1, 2, 3, 4]
    assert [each.name for each in found.failures] == ["1"]
    json.dumps(found.to_dict(), allow_nan=False)
    assert [len(rows) for _, _, rows in found.tables()] == [2, 2]


def test_sweep_measures_the_models_own_pair_too():
    class Test:
        object_threshold, overlap_threshold = 0.8, 0.8

    class Config:
        test = Test

    segmenter = Thresholded()
    segmenter.config = Config
    found = sweep(segmenter, [Record(0), Record(1)], object_thresholds=[0.2], overlap_thresholds=[0.6])
    assert found.now.pq == pytest.approx(100 / 3) and found.best.pq == pytest.approx(100) and len(found.pairs) == 2


def test_sweep_of_one_image_or_of_none():
    found = sweep(Thresholded(), [Record(0)], object_thresholds=[0.2], overlap_thresholds=[0.6])
    assert math.isnan(found.by_halves) and found.to_dict()["by_halves"] is None
    with pytest.raises(DataError, match="no images"):
        sweep(Thresholded(), [])
    with pytest.raises(Exception, match="None of 1 images"):
        sweep(Thresholded(), [Broken(0)])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        sweep(Thresholded(), [Record(0)], object_thresholds=[1.5])
