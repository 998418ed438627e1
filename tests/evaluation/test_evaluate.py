"""Evaluation: figures of known results, one forward per image, order, failures, and parts that merge exactly."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY, FakeSegmenter, scene, scene_labels

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError, M2FError, MissingDependency
from m2f_cli.evaluation.evaluate import (
    Annotations,
    EvalResult,
    default_metrics,
    evaluate,
    gathered,
    headline,
    measure,
    scored,
    share,
)
from m2f_cli.metrics.panoptic_quality import PanopticQuality
from m2f_cli.structures.annotations import AnnotatedSegment, PanopticAnnotation, SemanticAnnotation

ALL = ("instance", "semantic")


class Record:
    """A scene; its annotation is moved down by some rows, so that figures differ between images."""

    def __init__(self, number: int, moved: int = 0, height: int = 48):
        self.name, self.moved, self.height = f"{number:03}", moved, height

    def read_image(self):
        return scene(self.height)

    def read_annotation(self):
        ids_HW = np.roll(scene_labels(self.height), self.moved, axis=0).astype(np.int32) + 1
        return PanopticAnnotation(ids_HW, [AnnotatedSegment(label + 1, label) for label in (SKY, GRASS, PERSON)])


class Broken(Record):
    def read_image(self):
        raise DataError("is damaged.")


class OtherSize(Record):
    def read_annotation(self):
        return SemanticAnnotation(np.zeros((5, 5), np.uint8))


def records(count: int = 7) -> list[Record]:
    return [Record(i, moved=i % 5, height=40 + 8 * (i % 3)) for i in range(count)]


def metrics():
    return default_metrics("panoptic", CATEGORIES, also=ALL)


def text(result: EvalResult) -> str:
    """To the last bit."""
    return json.dumps({**result.to_dict(), "seconds": 0})


def test_annotation_against_itself_is_100():
    result = evaluate(FakeSegmenter(), [Record(i) for i in range(3)], metrics())
    names = ("pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ap50", "miou", "pacc")
    assert [result.figures[name] for name in names] == pytest.approx([100.0] * len(names))
    assert result.images == 3 and result.failures == [] and result.seconds > 0
    assert math.isnan(result.figures["ap_large"])


def test_a_known_difference():
    """Everything moved down by 4 of 48 rows: a person of 12 rows has an IoU of 8 / 16. That is no match for PQ, which
    wants more than one half, and one for AP at the first of ten thresholds."""
    result = evaluate(FakeSegmenter(), [Record(0, moved=4)], metrics())
    person = {name: found["per_class"]["person"] for name, found in result.metrics.items()}
    assert (person["pq"]["tp"], person["pq"]["fp"], person["pq"]["fn"]) == (0, 1, 1)
    found = [result.figures[name] for name in ("pq_things", "ap50", "ap75")]
    assert found == pytest.approx([0.0, 100.0, 0.0])
    assert result.figures["ap"] == pytest.approx(10.0)
    assert person["miou"]["iou"] == pytest.approx(50.0)


def test_each_image_goes_through_the_network_once_in_the_callers_thread():
    segmenter = FakeSegmenter()
    evaluate(segmenter, records(9), metrics())
    assert segmenter.batches == [1] * 9
    assert segmenter.infer_threads == {threading.get_ident()}
    assert len(segmenter.thresholds) == 3 * 9


def test_published_thresholds_unless_told():
    segmenter = FakeSegmenter()
    evaluate(segmenter, records(1), default_metrics("instance", CATEGORIES))
    evaluate(segmenter, records(1), default_metrics("instance", CATEGORIES), score_threshold=0.3, top_k=7)
    assert segmenter.thresholds == [{"score_threshold": 0.0}, {"score_threshold": 0.3, "top_k": 7}]


def test_a_task_that_the_model_does_not_do():
    with pytest.raises(ConfigError, match="not 'instance'"):
        evaluate(FakeSegmenter(tasks=("panoptic",)), records(), metrics())


def test_progress_is_in_order_and_in_the_callers_thread():
    seen = []
    items = [*records(3), Broken(3), *records(2)]
    evaluate(
        FakeSegmenter(),
        items,
        metrics(),
        workers=3,
        on_progress=lambda p: seen.append((p.name, p.number, p.message, threading.get_ident())),
    )
    assert [each[:2] for each in seen] == [(item.name, i) for i, item in enumerate(items, 1)]
    assert [each[2] for each in seen] == [None, None, None, "is damaged.", None, None]
    assert {each[3] for each in seen} == {threading.get_ident()}


def test_memory_does_not_grow_with_the_images():
    alive, most = weakref.WeakSet(), []

    def stream():
        for i in range(60):
            record = Record(i)
            alive.add(record)
            most.append(len(alive))
            yield record

    segmenter = FakeSegmenter()
    evaluate(segmenter, stream(), metrics(), workers=2)
    assert len(most) == 60 and max(most) <= 12
    assert segmenter.most_alive <= 5


def test_what_fails_is_reported_and_not_counted():
    items = [Record(0), Broken(1), OtherSize(2), Record(3, moved=2)]
    result = evaluate(FakeSegmenter(), items, metrics())
    alone = evaluate(FakeSegmenter(), [items[0], items[3]], metrics())
    assert result.images == 2
    assert [(each.name, each.message[:25]) for each in result.failures] == [
        ("001", "is damaged."),
        ("002", "The result has 48 x 64 pi"),
    ]
    assert json.dumps(result.metrics) == json.dumps(alone.metrics)


def test_a_network_that_fails_is_reported():
    class Failing(FakeSegmenter):
        def infer(self, prepared):
            if len(self.batches) == 1:
                self.batches.append(1)
                raise M2FError("answered with NaN.")
            return super().infer(prepared)

    result = evaluate(Failing(), records(3), metrics())
    assert result.images == 2 and [each.name for each in result.failures] == ["001"]


def test_nothing_evaluated_is_an_error():
    with pytest.raises(M2FError, match=r"None of 2 images.*000: is damaged"):
        evaluate(FakeSegmenter(), [Broken(0), Broken(1)], metrics())
    with pytest.raises(DataError, match="no images"):
        evaluate(FakeSegmenter(), [], metrics())


class Strange(Record):
    """Annotated with a class that does not exist, which only some metrics find out, and not the first."""

    def read_annotation(self):
        return PanopticAnnotation(np.ones((48, 64), np.int32), [AnnotatedSegment(1, 99)])


class Tolerant(PanopticQuality):
    def update(self, result, annotation):
        super().update(
            result,
            PanopticAnnotation(annotation.ids_HW, [AnnotatedSegment(each.id, 0) for each in annotation.segments]),
        )

    def fresh(self):
        return Tolerant(self.categories)


def test_a_image_that_one_metric_refuses_counts_in_none():
    made = {"mine": Tolerant(CATEGORIES), "pq": PanopticQuality(CATEGORIES)}
    result = evaluate(FakeSegmenter(), [Record(0), Strange(1), Record(2)], made)
    alone = evaluate(FakeSegmenter(), [Record(0), Record(2)], {each: made[each].fresh() for each in made})
    assert result.images == 2 and [each.name for each in result.failures] == ["001"]
    assert "class number 99" in result.failures[0].message
    assert json.dumps(result.metrics) == json.dumps(alone.metrics)


class Bug(PanopticQuality):
    def update(self, result, annotation):
        raise self.error

    def fresh(self):
        return self


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ConfigError("The metric compares objects.")])
def test_another_error_in_a_metric_ends_it_and_leaves_no_thread(error):
    metric, before = Bug(CATEGORIES), threading.active_count()
    metric.error = error
    with pytest.raises(type(error)):
        evaluate(FakeSegmenter(), records(), {"bug": metric})
    assert threading.active_count() == before


def test_a_task_can_have_a_annotation_of_its_own():
    """Objects are annotated where they are found, segments are not; the second image has no objects at all."""

    class Both(Record):
        def read_annotation(self):
            moved = super().read_annotation()
            return Annotations(moved, {"instance": Record(0).read_annotation() if self.name == "000" else None})

    result = evaluate(FakeSegmenter(), [Both(0, moved=4), Both(1, moved=4)], metrics())
    assert result.images == 2
    assert result.figures["ap"] == pytest.approx(100.0)
    assert result.figures["pq_things"] == 0.0 and result.metrics["pq"]["per_class"]["person"]["fn"] == 2


def test_results_are_handed_on_with_their_image():
    seen = {}

    def keep(record, results, annotation):
        assert isinstance(annotation, PanopticAnnotation)
        seen[record.name] = {task: (result.image.shape, result.image_id) for task, result in results.items()}
        return record.name

    items = [Record(0), Broken(1), Record(2)]
    items[2].image_id = 42
    images = list(scored(FakeSegmenter(), items, metrics(), on_results=keep))
    assert [each.saved for each in images] == ["000", None, "002"]
    assert [each.message for each in images] == [None, "is damaged.", None]
    assert seen["000"] == dict.fromkeys(("panoptic", "instance", "semantic"), ((48, 64, 3), None))
    assert seen["002"]["panoptic"] == ((48, 64, 3), 42)
    assert all(each.seconds > 0 for each in images)


def test_interrupted_it_leaves_no_thread():
    def stop(progress):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        evaluate(FakeSegmenter(), records(20), metrics(), on_progress=stop)
    assert threading.active_count() == before


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_headline_is_a_figure_of_the_default_metrics(task):
    made = default_metrics(task, CATEGORIES)
    assert len(made) == 1 and next(iter(made.values())).task == task
    result = evaluate(FakeSegmenter(), records(2), made)
    assert 0 <= result.figures[headline(task)] <= 100


@pytest.mark.parametrize("name", plugins.BUILT_IN["metrics"])
def test_every_metric_of_the_table_obeys_the_contract(name):
    try:
        metric = plugins.get("metrics", name)(CATEGORIES)
    except (ConfigError, MissingDependency) as error:
        pytest.skip(f"not for these classes, or not on this machine: {error}")
    result = evaluate(FakeSegmenter(), records(2), {name: metric})
    assert result.figures and isinstance(result.metrics[name].get("per_class", {}), dict)
    again = metric.fresh()
    again.restore(json.loads(json.dumps(metric.state())))
    assert json.dumps(again.compute()) == json.dumps(result.metrics[name])


def test_all_tasks_of_a_panoptic_model():
    assert list(metrics()) == ["pq", "ap", "miou"]
    assert list(default_metrics("panoptic", CATEGORIES, also=("panoptic", "semantic"))) == ["pq", "miou"]


def test_equal_names_of_figures_are_told_apart_and_nan_becomes_none():
    result = EvalResult({"ap": {"ap": 1.0, "per_class": {"a": {"ap": math.nan}}}, "mine": {"ap": 2.0}}, 0.5, 3)
    assert result.figures == {"ap": 1.0, "mine.ap": 2.0}
    assert result.to_dict() == {
        "metrics": {"ap": {"ap": 1.0, "per_class": {"a": {"ap": None}}}, "mine": {"ap": 2.0}},
        "seconds": 0.5,
        "images": 3,
        "failures": [],
    }


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "processes"), [(7, 3), (2, 4), (8, 2), (0, 2)])
def test_shares_are_neighbours_and_cover_everything(count, processes):
    parts = [list(share(list(range(count)), rank, processes)) for rank in range(processes)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("processes", [2, 3, 10])
def test_merged_parts_give_the_figures_of_one_process(processes):
    items = [*records(7), Broken(7), *records(2)]
    parts = [measure(FakeSegmenter(), share(items, rank, processes), metrics()) for rank in range(processes)]
    whole, *others = pickle.loads(pickle.dumps(parts))
    for part in others:
        whole.merge(part)
    assert whole.seconds == max(part.seconds for part in parts)
    assert text(whole.result()) == text(evaluate(FakeSegmenter(), items, metrics()))


def test_without_a_group_nothing_is_gathered():
    measured = measure(FakeSegmenter(), records(1), metrics())
    assert gathered(measured) is measured
    assert evaluate(FakeSegmenter(), records(2), metrics(), distributed=True).images == 2


SECOND = """
import test_evaluate as here
here.run_as(1, {folder!r})
"""


def run_as(rank: int, folder: str) -> None:
    """Evaluate as one of two processes that meet in `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        segmenter = FakeSegmenter()
        result = evaluate(segmenter, records(5), metrics(), distributed=True)
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.txt").write_text(f"{len(segmenter.batches)} {text(result)}")


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_two_processes_get_the_figures_of_one(tmp_path):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {folders!r}\n{SECOND.format(folder=str(tmp_path))}"
    second = subprocess.Popen([sys.executable, "-c", code])
    run_as(0, str(tmp_path))
    assert second.wait(timeout=60) == 0
    expected = text(evaluate(FakeSegmenter(), records(5), metrics()))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [f"2 {expected}", f"3 {expected}"]
