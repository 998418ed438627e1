"""Training samples: one function of seed, position and record; damaged records; generated scenes as a data set."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from m2f_cli.data.records import DataSet, Record, labels_of
from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.data.synthetic.scenes import CATEGORIES, scene
from m2f_cli.data.training_set import SampleIndex, TrainingSet, drop_empty, is_wide, read
from m2f_cli.data.transforms.color import ColorJitter
from m2f_cli.data.transforms.crop import RandomCrop
from m2f_cli.data.transforms.geometry import Cutout
from m2f_cli.data.transforms.resize import Flip
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from m2f_cli.structures.categories import load_categories

STEPS = [RandomCrop(32, 40, 1.0), ColorJitter(32, (0.5, 1.5), (0.5, 1.5), 18), Flip(0.5)]


@dataclass(frozen=True)
class Given:
    """A reader that gives a value, or fails."""

    value: object

    def __call__(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def record(name="a", image=None, annotation=None, **known):
    image = np.zeros((6, 8, 3), np.uint8) if image is None else image
    annotation = SemanticAnnotation(np.zeros((6, 8), np.uint8)) if annotation is None else annotation
    return Record(name, None, Given(annotation), read_image=Given(image), **known)


def data_set(*records, task="semantic"):
    return DataSet("fake", "fake", "train", task, CATEGORIES, records)


def same(one, other):
    return torch.equal(one.image_CHW, other.image_CHW) and torch.equal(one.target.owner_HW, other.target.owner_HW)


def test_a_sample_is_a_function_of_seed_position_and_record():
    samples = TrainingSet(synthetic_dataset(count=4, size=(48, 64)), STEPS, "panoptic", seed=1)
    first = samples[SampleIndex(7, 2)]
    samples[SampleIndex(8, 3)]
    assert same(first, samples[SampleIndex(7, 2)])
    assert not same(first, samples[SampleIndex(8, 2)])
    other = TrainingSet(synthetic_dataset(count=4, size=(48, 64)), STEPS, "panoptic", seed=2)
    assert not same(first, other[SampleIndex(7, 2)])
    assert first.name == "scene-000002" and first.index == 2
    assert first.image_CHW.shape == (3, 32, 40) and first.image_CHW.dtype == torch.uint8


def test_an_image_is_augmented_again_until_something_is_left_in_it():
    data = synthetic_dataset(count=1, size=(48, 64), seed=5)
    tried = []

    def empties(sample, rng):
        """Take all objects away, but for the third time."""
        tried.append(rng.random())
        annotation = sample.annotation if len(tried) == 3 else replace(sample.annotation, segments=[])
        return replace(sample, annotation=annotation)

    assert len(TrainingSet(data, [empties], "panoptic", tries=5)[SampleIndex(0, 0)].target) > 0
    assert len(set(tried)) == 3  # of one generator that goes on
    tried.clear()
    assert len(TrainingSet(data, [empties], "panoptic", tries=2)[SampleIndex(0, 0)].target) == 0
    tried.clear()
    assert len(TrainingSet(data, [empties], "panoptic")[SampleIndex(0, 0)].target) == 0 and len(tried) == 1


def test_without_steps_it_is_the_record():
    samples = TrainingSet(synthetic_dataset(count=1, size=(48, 64), seed=5), [], "panoptic")
    made = scene(5 * 3 * 2**20, 48, 64)
    sample = samples[SampleIndex(0, 0)]
    np.testing.assert_array_equal(sample.image_CHW.permute(1, 2, 0).numpy(), made.image_HW3)
    np.testing.assert_array_equal(sample.target.owner_HW.numpy(), made.ids_HW - 1)
    assert sample.target.labels_N.tolist() == [segment.label for segment in made.segments]


def test_crowds_are_no_objects_and_run_lengths_are_unpacked_once():
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:5] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    square = [np.array([(0, 0), (4, 0), (4, 4)], dtype=float)]
    annotation = InstanceAnnotation(
        (6, 8), [AnnotatedObject(0, rle, iscrowd=True), AnnotatedObject(1, rle), AnnotatedObject(2, square)]
    )
    objects = read(record(annotation=annotation)).annotation.objects
    assert [item.label for item in objects] == [1, 2]
    assert isinstance(objects[0].shape, Cutout) and objects[0].shape.mask_hw.shape == (2, 2)
    assert objects[1].shape is square


# --- records that cannot be used --------------------------------------------------------------------------------------


def test_an_unreadable_record_is_named():
    damaged = record("street/7", DataError("It is damaged.", hint="Copy it again."))
    samples = TrainingSet(data_set(damaged), [], "semantic")
    with pytest.raises(DataError, match=r"^street/7: It is damaged. Copy it again.$"):
        samples[SampleIndex(0, 0)]
    told = DataError("street/7.png is empty.")
    with pytest.raises(DataError, match=r"^street/7.png is empty.$"):
        TrainingSet(data_set(record("street/7", told)), [], "semantic")[SampleIndex(0, 0)]


def test_sizes_and_classes_that_do_not_fit_are_named():
    small = record("b", annotation=SemanticAnnotation(np.zeros((6, 7), np.uint8)))
    with pytest.raises(DataError, match="b: the annotation is 6 x 7 pixels, the image 6 x 8"):
        TrainingSet(data_set(small), [], "semantic")[SampleIndex(0, 0)]
    strange = record("c", annotation=SemanticAnnotation(np.full((6, 8), 77, np.uint8)))
    with pytest.raises(DataError, match="c: .* class number 77"):
        TrainingSet(data_set(strange), [], "semantic")[SampleIndex(0, 0)]


def test_skipping_takes_the_next_one_and_says_so():
    broken = record("broken", DataError("It is damaged."))
    samples = TrainingSet(data_set(record("a"), broken, broken, record("d")), STEPS[:1], "semantic", on_error="skip")
    sample = samples[SampleIndex(5, 1)]
    assert (sample.name, sample.index) == ("d", 3)
    assert sample.skipped == ("broken: It is damaged.",) * 2
    assert samples[SampleIndex(5, 3)].skipped == ()
    assert torch.equal(sample.image_CHW, samples[SampleIndex(5, 3)].image_CHW)
    around = TrainingSet(data_set(record("a"), broken), [], "semantic", on_error="skip")
    assert around[SampleIndex(0, 1)].name == "a"


def test_skipping_ends_after_a_hundred_records_in_a_row():
    broken = data_set(*[record("broken", DataError("It is damaged."))] * 200)
    with pytest.raises(DataError, match=r"100 records in a row cannot be used. The first: broken: It is damaged."):
        TrainingSet(broken, [], "semantic", on_error="skip")[SampleIndex(0, 0)]


def test_what_no_training_set_is_made_of():
    with pytest.raises(DataError, match="train split of fake has no images"):
        TrainingSet(data_set(), [], "semantic")
    with pytest.raises(ConfigError, match="cannot train a panoptic"):
        TrainingSet(data_set(record()), [], "panoptic")
    with pytest.raises(ConfigError, match="ignore"):
        TrainingSet(data_set(record()), [], "semantic", on_error="ignore")


# --- what is known of a record ----------------------------------------------------------------------------------------


def test_labels_come_from_the_record_or_from_its_annotation():
    assert labels_of(record(labels=(4, 5))) == (4, 5)
    labels = np.array([[3, 255], [1, 3]], np.uint8)
    assert labels_of(record(annotation=SemanticAnnotation(labels))) == (1, 3)
    segments = [AnnotatedSegment(1, 8), AnnotatedSegment(2, 0, iscrowd=True), AnnotatedSegment(3, 8)]
    assert labels_of(record(annotation=PanopticAnnotation(np.ones((2, 2), np.int32), segments))) == (8,)


def test_empty_images_are_dropped():
    records = [record("none", labels=()), record("stuff", labels=(4, 8)), record("thing", labels=(8, 3))]
    assert [r.name for r in drop_empty(data_set(*records), "semantic").records] == ["stuff", "thing"]
    assert [r.name for r in drop_empty(data_set(*records), "instance").records] == ["thing"]


def test_what_is_wide(tmp_path):
    assert is_wide(record(height=5, width=6)) and not is_wide(record(height=5, width=5))
    assert is_wide(record())  # 6 x 8, read
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((9, 4, 3), np.uint8))
    assert not is_wide(Record("a", path, Given(None)))


# --- generated scenes -------------------------------------------------------------------------------------------------


def test_the_class_table_is_that_of_the_scenes():
    assert load_categories("synthetic") == CATEGORIES


def test_no_scene_is_in_two_splits():
    seeds = {
        (split, seed): {r.read_image.seed for r in synthetic_dataset(split, 50, seed).records}
        for split in ("train", "val", "test")
        for seed in (0, 1)
    }
    assert len(set().union(*seeds.values())) == 6 * 50


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_scenes_of_every_task(task):
    data = pickle.loads(pickle.dumps(synthetic_dataset("val", 3, seed=2, size=(48, 64), task=task, difficulty=0.1)))
    assert (data.task, data.categories, len(data)) == (task, CATEGORIES, 3)
    made = scene((2 * 3 + 1) * 2**20 + 1, 48, 64, difficulty=0.1)
    target = TrainingSet(data, [], task)[SampleIndex(0, 1)].target
    segments = made.segments if task != "instance" else [s for s in made.segments if CATEGORIES[s.label].isthing][::-1]
    if task == "semantic":
        labels = made.semantic().labels_HW
        assert target.labels_N.tolist() == np.unique(labels).tolist()
        np.testing.assert_array_equal(target.labels_N[target.owner_HW.long()].numpy(), labels)
        return
    assert target.labels_N.tolist() == [segment.label for segment in segments]
    for mask, segment in zip(target.masks().numpy(), segments, strict=True):
        np.testing.assert_array_equal(mask, made.ids_HW == segment.id)


@pytest.mark.parametrize("wrong", [{"split": "trainval"}, {"count": 0}, {"count": 2**20 + 1}, {"seed": -1}])
def test_scenes_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        synthetic_dataset(**wrong)


def test_a_scene_is_painted_once_for_image_and_annotation(monkeypatch):
    from m2f_cli.data.synthetic import dataset as synthetic_data

    calls = []
    monkeypatch.setattr(synthetic_data, "scene", lambda *a, **k: calls.append(a) or scene(*a, **k))
    data = synthetic_dataset("test", 2, seed=909, size=(32, 32))
    read(data.records[1])
    assert len(calls) == 1
