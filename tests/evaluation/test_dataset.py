"""Where data are found, whose classes they have, and which annotation each task gets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.folders import SEGMENTS, annotation, coco_instances, coco_panoptic, label_maps, plane, rectangle
from training.tiny import settings

from m2f_cli.config import presets as config
from m2f_cli.config.schema import DataConfig
from m2f_cli.data.synthetic.scenes import CATEGORIES as SCENES
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.evaluation.dataset import FULL_SPLITS, LAYOUT, check_classes, folder_of, how_to_get, open_for
from m2f_cli.evaluation.evaluate import Annotations, annotation_for
from m2f_cli.structures.annotations import InstanceAnnotation, PanopticAnnotation, SemanticAnnotation
from m2f_cli.structures.categories import from_names, load_categories

OWN = settings().model_copy(update={"data": DataConfig(dataset="mine", classes="checkpoint")})
CAT_DOG_SKY = from_names(["cat", "dog", "sky"], ["cat", "dog"])


def both(folder):
    """Segments, and objects of which one is larger than what of it is visible."""
    coco_panoptic(folder)
    return coco_instances(folder, [annotation(1, 1, 3, [rectangle(0, 0, 10, 20)], area=200.0)])


def test_objects_of_their_own_go_before_visible_parts(tmp_path):
    data = open_for(OWN, CAT_DOG_SKY, both(tmp_path), "val", ["panoptic", "instance", "semantic"])
    annotation = data.records[0].read_annotation()
    assert data.tasks == ("panoptic", "instance", "semantic") and isinstance(annotation, Annotations)
    assert isinstance(annotation_for("panoptic", annotation), PanopticAnnotation)
    assert annotation_for("semantic", annotation) is annotation.main  # derived: the metric does that itself
    [cat] = annotation_for("instance", annotation).objects
    assert (cat.label, cat.area) == (0, 200.0)


def test_objects_are_numbered_as_the_models_classes(tmp_path):
    """The json of objects has cat and dog; the model has them in another order, and the sky."""
    folder = coco_instances(tmp_path, [annotation(1, 1, 17, [rectangle(0, 0, 5, 5)])])
    categories = from_names(["sky", "dog", "cat"], ["cat", "dog"])
    [record] = open_for(OWN, categories, folder, "val", ["instance"]).records
    assert [each.label for each in record.read_annotation().objects] == [1]
    coco_panoptic(tmp_path)
    result = open_for(OWN, categories, folder, "val", ["panoptic", "instance"]).records[0].read_annotation()
    assert [each.label for each in annotation_for("instance", result).objects] == [1]
    assert [each.label for each in result.main.segments] == [2, 1, 0]
    assert [each.iscrowd for each in result.main.segments] == [bool(each["iscrowd"]) for each in SEGMENTS]


def test_without_objects_the_visible_parts_count(tmp_path):
    data = open_for(OWN, CAT_DOG_SKY, coco_panoptic(tmp_path), "val", ["panoptic", "instance"])
    assert isinstance(data.records[0].read_annotation(), PanopticAnnotation) and data.tasks == ("panoptic", "instance")
    alone = open_for(OWN, CAT_DOG_SKY, tmp_path, "val", ["semantic"])
    assert isinstance(alone.records[0].read_annotation(), SemanticAnnotation)


def test_a_image_without_objects_in_the_other_file_does_not_count_there(tmp_path):
    folder = both(tmp_path)
    path = folder / "annotations" / "panoptic_val2017.json"
    tree = json.loads(path.read_text())
    tree["images"].append({**tree["images"][0], "id": 2, "file_name": "2.jpg"})
    tree["annotations"].append({**tree["annotations"][0], "image_id": 2})
    path.write_text(json.dumps(tree))
    data = open_for(OWN, CAT_DOG_SKY, folder, "val", ["panoptic", "instance"])
    first, second = (record.read_annotation for record in data.records)
    assert annotation_for("instance", first()) is not None and any("do not count" in note for note in data.notes)
    assert data.records[1].name == "2"
    (folder / "val2017" / "2.jpg").write_bytes((folder / "val2017" / "1.jpg").read_bytes())
    assert annotation_for("instance", second()) is None


def test_tasks_that_the_annotations_cannot_tell(tmp_path):
    maps = label_maps(tmp_path, [plane((1, 0, 0, 5, 5))], split="val")
    classes = from_names(["a", "b", "c"])
    with pytest.raises(DataError, match="no annotations for the task 'panoptic'"):
        open_for(OWN, classes, maps, "val", ["panoptic", "semantic"])
    data = open_for(OWN, classes, maps, "val", ["panoptic", "semantic"], every=False)
    assert data.tasks == ("semantic",) and isinstance(data.records[0].read_annotation(), SemanticAnnotation)
    assert any("panoptic" in note for note in data.notes)
    objects = coco_instances(tmp_path / "o", [annotation(1, 1, 3, [rectangle(0, 0, 5, 5)])])
    data = open_for(OWN, CAT_DOG_SKY, objects, "val", ["panoptic", "instance", "semantic"], every=False)
    assert data.tasks == ("instance",) and isinstance(data.records[0].read_annotation(), InstanceAnnotation)
    with pytest.raises(DataError, match="no annotations for the task"):
        open_for(OWN, CAT_DOG_SKY, objects, "val", ["panoptic", "semantic"], every=False)


@pytest.mark.parametrize("names", [["b", "a", "c"], ["a", "b"], ["x", "y", "z"]])
def test_label_maps_of_other_classes_are_refused(tmp_path, names):
    maps = label_maps(tmp_path, [plane((1, 0, 0, 5, 5))], split="val")
    with pytest.raises(DataError, match=f"The model has {len(names)} classes and .* have 3"):
        open_for(OWN, from_names(names), maps, "val", ["semantic"])


def test_ids_alone_make_no_class_the_same(tmp_path):
    """The data's ids 3 and 17 are ids of ADE20K, too: that must not turn cats into floors."""
    objects = coco_instances(tmp_path, [annotation(1, 1, 3, [rectangle(0, 0, 5, 5)])])
    ade = config.load("ade20k-panoptic-r50")
    with pytest.raises(DataError, match="class 0 is 'wall' in the model and 'cat' in the data"):
        open_for(ade, load_categories("ade20k"), objects, "val", ["instance"])


def test_names_are_compared_as_people_read_them():
    check_classes(from_names(["Traffic_Light"]), from_names(["traffic light"]), "here")
    with pytest.raises(DataError, match="class 1 is 'b' in the model and 'c' in the data"):
        check_classes(from_names(["a", "b"]), from_names(["a", "c"]), "here")


def test_without_data_the_generated_scenes_are_evaluated():
    own = settings("data.scenes.val=3")
    data = open_for(own, SCENES, None, "val", ["panoptic", "semantic"])
    assert len(data) == 3 and data.tasks == ("panoptic", "semantic") and data.full is None
    assert isinstance(data.records[0].read_annotation(), PanopticAnnotation)
    assert isinstance(open_for(own, SCENES, None, "val", ["semantic"]).records[0].read_annotation(), SemanticAnnotation)
    train = open_for(settings("data.scenes.train=5"), SCENES, None, "train", ["panoptic"])
    assert len(train) == 5
    assert not np.array_equal(train.records[0].read_image(), data.records[0].read_image())
    with pytest.raises(DataError, match="The model has 3 classes and the data \\(the generated images\\) have 9"):
        open_for(own, CAT_DOG_SKY, None, "val", ["panoptic"])


def test_every_published_data_set_has_a_place_and_a_preparer():
    names = {config.load(name).data.dataset for name in config.preset_names() if config.load(name).published}
    assert names == set(LAYOUT)
    assert all("m2f data prepare " in how_to_get(place) for place in LAYOUT.values())
    released = {config.load(name).data.dataset for name in config.preset_names() if config.load(name).weights}
    assert {name for name, _ in FULL_SPLITS} == released, "without it, reproducing a row would judge nothing"


def test_where_data_are(tmp_path, monkeypatch):
    coco = config.load("coco-panoptic-r50")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match="there is no .*coco. Pass --data DIR, .* m2f data prepare coco-panoptic says"):
        folder_of(coco, None, None)
    for name, layout in (
        ("coco-panoptic-r50", "coco"),
        ("ade20k-r50", "ADEChallengeData2016"),
        ("cityscapes-r50", "cityscapes"),
    ):
        (tmp_path / layout).mkdir()
        assert folder_of(config.load(name), None, None) == tmp_path / layout
    assert folder_of(coco, None, tmp_path / "given") == tmp_path / "given"
    assert folder_of(settings(), None, None) is None
    with pytest.raises(ConfigError, match="does not say where"):
        folder_of(OWN, None, None)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "env.json").write_text(json.dumps({"options": {"data": "here"}}))
    for ref in (run, run / "checkpoints" / "best.safetensors"):
        assert str(folder_of(settings(), str(ref), None)) == "here"
    (run / "env.json").write_text("{")
    with pytest.raises(ConfigError, match=r"env\.json is damaged"):
        folder_of(settings(), str(run), None)


def test_the_real_pack(shared_dir):
    """All of COCO's categories, in COCO's order, whatever part of the images is there."""
    folder = shared_dir / "data" / "coco_panoptic_160"
    preset = config.load("coco-panoptic-r50")
    data = open_for(preset, load_categories("coco-panoptic"), folder, "val", ["panoptic", "instance", "semantic"])
    assert len(data) == 80 and data.full == 5000 and data.tasks == ("panoptic", "instance", "semantic")
    other = config.load("coco-instance-r50")
    instances = open_for(other, load_categories(other.data.classes), folder, "val", ["instance"])
    assert len(instances) == 80
    for record, same in zip(data.records[:5], instances.records[:5], strict=True):
        annotation = record.read_annotation()
        things = [each.label for each in annotation_for("panoptic", annotation).segments if each.label < 80]
        assert sorted(each.label for each in same.read_annotation().objects) == sorted(things)
