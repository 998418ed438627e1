"""What a run trains on: instances have things alone, whatever the data annotate."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from helpers import folders
from training.tiny import settings

from m2f_cli.data.records import DataSet, Record
from m2f_cli.data.synthetic import dataset as synthetic_data
from m2f_cli.data.transforms.geometry import mask_of
from m2f_cli.errors import DataError
from m2f_cli.structures.annotations import AnnotatedObject, InstanceAnnotation
from m2f_cli.structures.categories import load_categories
from m2f_cli.training import run
from m2f_cli.training.data import open_split, things_only
from m2f_cli.training.options import TrainOptions
from m2f_cli.training.run import Listener


def names(data: DataSet) -> list[str]:
    return [category.name for category in data.categories]


def test_instances_of_generated_scenes_are_their_things():
    whole = open_split(settings(), None, "val")
    data = open_split(settings("task=instance"), None, "val")
    things = [category.name for category in synthetic_data.CATEGORIES if category.isthing]
    assert names(data) == things and 0 < len(things) < len(whole.categories)
    for record, other in zip(data.records, whole.records, strict=True):
        found = [
            (data.categories[item.label].name, int(mask_of(item, record_size(record)).sum()))
            for item in record.read_annotation().objects
        ]
        annotation = other.read_annotation()
        expected = [
            (whole.categories[s.label].name, int((annotation.ids_HW == s.id).sum()))
            for s in annotation.segments
            if whole.categories[s.label].isthing
        ]
        assert sorted(found) == sorted(expected) and np.array_equal(record.read_image(), other.read_image())


def record_size(record: Record) -> tuple[int, int]:
    return record.height, record.width


def test_instances_of_133_panoptic_classes_are_80(tmp_path):
    """COCO's own categories: the head has 80 classes, and the annotations their numbers among things."""
    coco = load_categories("coco-panoptic")
    rows = [{"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in coco]
    ids = folders.plane((1, 0, 0, 10, 10), (2, 0, 10, 10, 20), (3, 10, 0, 20, 25))
    segments = [
        {"id": 1, "category_id": 90, "iscrowd": 0},
        {"id": 2, "category_id": 1, "iscrowd": 0},
        {"id": 3, "category_id": 200, "iscrowd": 0},
    ]
    for split in ("train2017", "val2017"):
        folders.coco_panoptic(tmp_path, name=split, ids_HW=ids, segments=segments, categories=rows)
    instance, panoptic = (
        run.prepare(
            settings(f"task={task}"),
            tmp_path / "run",
            TrainOptions(data=tmp_path, init="random", device="cpu"),
            torch.device("cpu"),
            Listener(),
        )
        for task in ("instance", "panoptic")
    )
    heads = [prepared.parts.model.decoder.class_embed.out_features for prepared in (instance, panoptic)]
    assert heads == [80 + 1, 133 + 1]
    assert len(instance.val_data.categories) == 80
    [annotation] = [record.read_annotation() for record in instance.train_data.records]
    assert [instance.train_data.categories[item.label].name for item in annotation.objects] == ["toothbrush", "person"]
    batch = next(iter(instance.loader))
    assert set(batch.targets[0].labels_N.tolist()) <= {0, 79}


class Objects:
    """Reads one object of each class."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self) -> InstanceAnnotation:
        return InstanceAnnotation(
            (4, 6), [AnnotatedObject(i, [np.array([[i, 0], [6, 0], [6, 4]])]) for i in range(self.count)]
        )


def mixed() -> DataSet:
    """Ten classes, things and stuff by turns."""
    categories = tuple(load_categories("cityscapes"))[:10]
    categories = tuple(dataclasses.replace(c, isthing=i % 2 == 1) for i, c in enumerate(categories))
    records = [
        Record("a", None, Objects(10), 4, 6, tuple(range(10)), read_image=Objects(0)),
        Record("b", None, Objects(1), 4, 6, (0,), read_image=Objects(0)),
        Record("c", None, Objects(3), 4, 6, None, read_image=Objects(0)),
    ]
    return DataSet("mixed", "test", "train", "instance", categories, records)


def test_numbers_of_things_close_their_ranks():
    data = mixed()
    found = things_only(data)
    assert names(found) == names(data)[1::2]
    assert [record.labels for record in found.records] == [(0, 1, 2, 3, 4), (), None]
    objects = [record.read_annotation().objects for record in found.records]
    assert [[item.label for item in each] for each in objects] == [[0, 1, 2, 3, 4], [], [0]]
    assert [float(item.shape[0][0, 0]) for item in objects[0]] == [1, 3, 5, 7, 9], "each keeps its own shape"
    assert pickle.loads(pickle.dumps(found.records[0])).read_annotation().objects[1].label == 1, "workers get records"
    assert things_only(found) is found


def test_stuff_alone_has_no_instances(tmp_path):
    data = mixed()
    stuff = tuple(dataclasses.replace(c, isthing=False) for c in data.categories)
    with pytest.raises(DataError, match="None of the 10 classes of mixed is a thing.*task semantic"):
        things_only(dataclasses.replace(data, categories=stuff))


def test_other_tasks_keep_all_classes():
    for task in ("panoptic", "semantic"):
        assert names(open_split(settings(f"task={task}"), None, "val")) == [c.name for c in synthetic_data.CATEGORIES]


# --- a task that the data does not have -------------------------------------------------------------------------------


def instances_in(folder) -> None:
    for split in ("train2017", "val2017"):
        one = [folders.annotation(1, 1, 17, [folders.rectangle(2, 2, 20, 15)])]
        folders.coco_instances(folder, one, name=split, images=split)


def test_a_preset_of_another_task_takes_that_of_the_data(tmp_path):
    """A semantic preset on instance annotations: annotation, crop, figure and checkpoint are of instances."""
    instances_in(tmp_path)
    chosen = settings("task=semantic", "train.augment=[{name: crop, height: 32, width: 32, category_max_area: 0.75}]")
    options = TrainOptions(data=tmp_path, init="random", device="cpu")
    prepared = run.prepare(chosen, tmp_path / "run", options, torch.device("cpu"), Listener())
    assert prepared.settings.task == "instance" and prepared.settings.test.tasks == ("instance",)
    assert prepared.settings.train.augment[0].options == {"height": 32, "width": 32, "category_max_area": 1.0}
    assert isinstance(prepared.train_data.records[0].read_annotation(), InstanceAnnotation)
    assert [note for note in prepared.notes if "this run's task is instance" in note]
    next(iter(prepared.loader))  # a crop with a limit would refuse


def test_a_network_made_for_one_task_refuses_another(tmp_path):
    instances_in(tmp_path)
    chosen = settings("task=semantic")
    loss = chosen.train.loss.model_copy(update={"masks": "per_pixel"})
    chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"loss": loss})})
    options = TrainOptions(data=tmp_path, init="random", device="cpu")
    with pytest.raises(DataError, match="no annotations for the task 'semantic', only for: instance"):
        run.prepare(chosen, tmp_path / "run", options, torch.device("cpu"), Listener())
