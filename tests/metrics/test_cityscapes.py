"""The official scores, image by image, against the official tool run over a whole folder of our files."""

from __future__ import annotations

import copy
import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.folders import plane, write_mask, write_random_image
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError, DataError, MissingDependency
from m2f_cli.evaluation.score_files.score import score
from m2f_cli.metrics import cityscapes as cityscapes_scores
from m2f_cli.metrics.cityscapes import CityscapesObjects, CityscapesPixels
from m2f_cli.results.types import Instances, SemanticMap
from m2f_cli.structures.annotations import SemanticAnnotation
from m2f_cli.structures.categories import load_categories

pytest.importorskip("cityscapesscripts", reason="needs cityscapesScripts: pip install 'm2f-cli[cityscapes]'")

SIZE = (60, 100)
STREET = load_categories("cityscapes")
LABEL_OF = {category.id: label for label, category in enumerate(STREET)}
ROAD, SKY, PERSON, CAR, CARAVAN = 7, 23, 24, 26, 29
CARS = [(10, 5, 30, 25), (10, 40, 28, 60), (35, 70, 55, 95)]


def instance_ids(seed: int) -> np.ndarray:
    """Road, sky, three cars, two persons, a group of persons, a tiny car, a caravan, void."""
    shift = 2 * seed
    boxes = [(SKY, 0, 0, 8, 100), (0, 8, 0, 10, 100), (29000, 40, 2, 58, 30), (24, 32, 35, 50, 60)]
    boxes += [(26000 + i, top, left + shift, *corner) for i, (top, left, *corner) in enumerate(CARS)]
    boxes += [(26003, 58, 60, 60, 64)]
    boxes += [(24000, 12, 70, 30, 78), (24001, 12, 82 + shift, 30, 92)]
    return plane(*boxes, size=SIZE, fill=ROAD)


@pytest.fixture
def street(tmp_path):
    """A miniature of Cityscapes: `.data`, random results of its three images, and `.gt`, its label images."""
    rng, gt = np.random.default_rng(5), []
    results = SimpleNamespace(semantic=[], instance=[])
    for number in range(3):
        ids_HW = instance_ids(number)
        labels_HW = np.where(ids_HW < 1000, ids_HW, ids_HW // 1000)
        city = "aachen" if number < 2 else "bonn"
        stem = f"val/{city}/{city}_000000_{number:06d}"
        write_random_image(tmp_path / f"data/leftImg8bit/{stem}_leftImg8bit.png", SIZE, seed=number)
        write_mask(tmp_path / f"data/gtFine/{stem}_gtFine_instanceIds.png", ids_HW)
        gt.append(write_mask(tmp_path / f"data/gtFine/{stem}_gtFine_labelIds.png", labels_HW))
        found_HW = np.full(SIZE, 255, np.uint8)
        shifted_HW = np.roll(labels_HW, rng.integers(-3, 4, 2), (0, 1))
        for label_id, label in LABEL_OF.items():
            found_HW[shifted_HW == label_id] = label
        found_HW[:, :3] = LABEL_OF[PERSON]
        results.semantic.append(SemanticMap(SIZE, STREET, found_HW))
        results.instance.append(objects_near(ids_HW, rng))
    return SimpleNamespace(data=tmp_path / "data", results=results, gt=gt, out=tmp_path / "out", tmp=tmp_path)


def objects_near(ids_HW, rng) -> Instances:
    found = []
    for value in np.unique(ids_HW[ids_HW >= 1000]).tolist():
        label_id = CAR if value // 1000 == CARAVAN else value // 1000  # a caravan is taken for a car
        for _ in range(rng.integers(1, 3)):
            mask_HW = np.roll(ids_HW == value, rng.integers(-2, 3, 2), (0, 1))
            found.append((LABEL_OF[label_id], float(rng.random()), mask_HW))
    found.append((LABEL_OF[PERSON], 0.7, ids_HW == PERSON))  # on the group
    found.append((LABEL_OF[SKY], 0.9, ids_HW == SKY))  # no object
    found.sort(key=lambda each: -each[1])
    rles = [coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)) for *_, mask_HW in found]
    return Instances(SIZE, STREET, np.array([f[0] for f in found]), np.array([f[1] for f in found]), rles)


def measured(street, make, task: str, results):
    metric = make(STREET)
    for result, record in zip(results, open_data(street.data, "val", task="panoptic").records, strict=True):
        part = metric.fresh()
        part.update(result, record.read_annotation())
        metric.merge(part)
    return metric


def save_all(street, task: str):
    for result, gt in zip(getattr(street.results, task), street.gt, strict=True):
        name = gt.parent.name + "/" + gt.name.removesuffix("_gtFine_labelIds.png")
        result.save(street.out, f"cityscapes-{task}", name=name)
    return street.out / f"cityscapes-{task}"


def official(street, module: str, end: str):
    """The official tool's own search for predictions and its whole evaluation."""
    tools = cityscapes_scores.official_tools(module)
    args = copy.copy(tools.args)
    args.JSONOutput, args.quiet = False, True
    args.gtInstancesFile = str(street.tmp / "gtInstances.json")
    of_pixels = "Pixel" in module
    args.predictionPath = str(street.out.absolute() / f"cityscapes-{'semantic' if of_pixels else 'instance'}")
    annotations = [str(path).replace("labelIds", end) for path in street.gt]
    found = [tools.getPrediction(*((args, path) if of_pixels else (path, args))) for path in annotations]
    return tools.evaluateImgLists(found, annotations, args)


def test_pixel_scores_are_the_official_ones(street):
    save_all(street, "semantic")
    expected = official(street, "evalPixelLevelSemanticLabeling", "labelIds")
    found = measured(street, CityscapesPixels, "semantic", street.results.semantic).compute()
    assert found["iou"] == 100 * expected["averageScoreClasses"]
    assert found["iiou"] == pytest.approx(100 * expected["averageScoreInstClasses"], rel=1e-12)
    assert found["iou_sup"] == pytest.approx(100 * expected["averageScoreCategories"], rel=1e-12)
    assert found["iiou_sup"] == pytest.approx(100 * expected["averageScoreInstCategories"], rel=1e-12)
    for name, row in found["per_class"].items():
        np.testing.assert_equal(row["iou"], 100 * expected["classScores"][name])
        np.testing.assert_allclose(row["iiou"], 100 * expected["classInstScores"][name], rtol=1e-12)
    assert found["tables"]["categories"].keys() == expected["categoryScores"].keys() - {"void"}
    assert 0 < found["iiou"] < 100 and 0 < found["iou"] < 100


def test_iou_and_iiou_as_the_facts_define_them(street):
    """Half of the first car is taken for road. Void counts nowhere; a car's pixels weigh mean size / own size."""
    [record, *_] = open_data(street.data, "val", task="semantic").records
    annotation = record.read_annotation()
    found_HW = annotation.labels_HW.copy()
    found_HW[10:30, 5:15] = LABEL_OF[ROAD]
    found_HW[8:10] = LABEL_OF[CAR]  # on void
    metric = CityscapesPixels(STREET)
    metric.update(SemanticMap(SIZE, STREET, found_HW), annotation)
    figures = metric.compute()
    sizes, size = [20 * 20, 18 * 20, 20 * 25, 2 * 4], 12794.0202738185
    assert figures["per_class"]["car"]["iou"] == pytest.approx(100 * (sum(sizes) - 200) / sum(sizes))
    weighted = [(size / 400) * 200, size, size, size]
    assert figures["per_class"]["car"]["iiou"] == pytest.approx(100 * sum(weighted) / (4 * size))
    road = int((annotation.labels_HW == LABEL_OF[ROAD]).sum())
    assert figures["per_class"]["road"]["iou"] == pytest.approx(100 * road / (road + 200))
    assert math.isnan(figures["per_class"]["road"]["iiou"]) and math.isnan(figures["per_class"]["bus"]["iou"])


def test_object_scores_are_the_official_ones(street, monkeypatch):
    save_all(street, "instance")
    tools = cityscapes_scores.official_tools("evalInstanceLevelSemanticLabeling")
    # The tool dumps its matches where it stands, which fails with the numbers of NumPy 2.4.
    monkeypatch.setattr(tools, "writeDict2JSON", lambda *_: None)
    expected = official(street, "evalInstanceLevelSemanticLabeling", "instanceIds")["averages"]
    found = measured(street, CityscapesObjects, "instance", street.results.instance).compute()
    assert found["ap"] == 100 * expected["allAp"] and found["ap50"] == 100 * expected["allAp50%"]
    assert 0 < found["ap"] < found["ap50"] < 100
    assert list(found["per_class"]) == [category.name for category in STREET if category.isthing]
    for name, row in found["per_class"].items():
        np.testing.assert_equal(row["ap"], 100 * expected["classes"][name]["ap"])


def test_a_region_that_is_not_evaluated_but_has_a_number_excuses_nothing(street):
    """The official tool knows caravans by their bare labelId only: our own annotation has them as void."""
    [record, *_] = open_data(street.data, "val", task="instance").records
    annotation, ids_HW = record.read_annotation(), instance_ids(0)

    def ap(*masks_HW) -> float:
        rles = [coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)) for mask_HW in masks_HW]
        things = load_categories("cityscapes-instance")
        metric = CityscapesObjects(things)
        scores = np.linspace(0.9, 0.5, len(rles))
        metric.update(Instances(SIZE, things, np.full(len(rles), 2), scores, rles), annotation)
        return metric.compute()["per_class"]["car"]["ap"]

    cars = [ids_HW == 26000 + i for i in range(3)]
    assert ap(*cars) == pytest.approx(100)
    assert ap(ids_HW == 26003, ids_HW == 0, *cars) == pytest.approx(100)  # a tiny car and void are excused
    assert ap(ids_HW == 29000, *cars) < 90


@pytest.mark.parametrize(
    ("task", "name", "make"),
    [
        ("semantic", "cityscapes-pixels", CityscapesPixels),
        ("instance", "cityscapes-ap", CityscapesObjects),
    ],
)
class TestBoth:
    def test_states_survive_json_and_parts_merge_to_the_last_bit(self, street, task, name, make):
        records = open_data(street.data, "val", task=task).records
        categories = STREET if task == "semantic" else load_categories("cityscapes-instance")
        whole, restored = make(categories), make(categories)
        for result, record in zip(getattr(street.results, task), records, strict=True):
            result = result if task == "semantic" else only_things(result, categories)
            whole.update(result, record.read_annotation())
            part = whole.fresh()
            part.update(result, record.read_annotation())
            restored.restore(json.loads(json.dumps(part.state())))
        expected = json.dumps(whole.compute())
        assert json.dumps(restored.compute()) == json.dumps(pickle.loads(pickle.dumps(whole)).compute()) == expected

    def test_a_damaged_state_is_refused(self, street, task, name, make):
        bad = {
            "semantic": [{"pixels": [], "objects": [[1.0]]}, {"pixels": [[40, 0, 1]], "objects": []}],
            "instance": [{"pictures": 3}, {"pictures": [{"true": {}, "found": {"car": [{}]}}]}],
        }
        metric = make(STREET)
        for state in ({}, *bad[task]):
            with pytest.raises(DataError, match="damaged"):
                metric.restore(state)
        assert metric.state() == make(STREET).state()

    def test_nothing_at_all_is_nan(self, street, task, name, make):
        figures = make(STREET).compute()
        assert all(math.isnan(value) for key, value in figures.items() if key not in ("per_class", "tables"))

    def test_other_annotations_and_classes_are_refused(self, street, task, name, make):
        with pytest.raises(ConfigError, match="need the classes of Cityscapes"):
            make(STREET[:5])
        result = getattr(street.results, task)[0]
        with pytest.raises(ConfigError, match="need its own annotations"):
            make(STREET).update(result, SemanticAnnotation(np.zeros(SIZE, np.uint8)))
        with pytest.raises(DataError, match="pixels"):
            make(STREET).update(result, SemanticAnnotation(np.zeros((4, 4), np.uint8)))

    def test_without_the_package_it_is_said_what_to_install(self, street, task, name, make, monkeypatch):
        monkeypatch.setattr(cityscapes_scores.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependency, match=r"m2f-cli\[cityscapes\]"):
            make(STREET)

    def test_files_score_as_results_in_memory(self, street, task, name, make):
        """As `m2f eval --predictions` reads them: PNGs of labelIds, or texts and masks."""
        assert plugins.get("metrics", name) is make
        folder = save_all(street, task)
        categories = STREET if task == "semantic" else load_categories("cityscapes-instance")
        expected = make(categories)
        for result, record in zip(
            getattr(street.results, task), open_data(street.data, "val", task=task).records, strict=True
        ):
            expected.update(result if task == "semantic" else only_things(result, categories), record.read_annotation())
        found = score(folder, street.data, [name])
        assert json.dumps(found.metrics[name]) == json.dumps(expected.compute())
        plain = "miou" if task == "semantic" else "ap"
        assert 0 < score(folder, street.data).figures[plain] < 100


def only_things(result: Instances, categories) -> Instances:
    number = {category.name: label for label, category in enumerate(categories)}
    kept = [i for i, label in enumerate(result.labels_N) if STREET[label].isthing]
    labels_N = np.array([number[STREET[result.labels_N[i]].name] for i in kept])
    return Instances(result.size, categories, labels_N, result.scores_N[kept], [result.rles[i] for i in kept])


def test_a_png_that_cannot_be_read_is_a_data_error(street):
    street.gt[0].write_bytes(street.gt[0].read_bytes()[:40])
    [record, *_] = open_data(street.data, "val", task="panoptic").records
    with pytest.raises(DataError, match="cityscapesScripts: Unable to load"):
        CityscapesPixels(STREET).update(street.results.semantic[0], record.read_annotation())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 26", "line 1 should be .mask labelId score."),
        ("a.png 40 0.5", "labelId from 0 to 33"),
        ("a.png 26 nan", "the score nan"),
        ("../../x.png 26 0.5", "leads out of it"),
        ("gone.png 26 0.5", "gone.png cannot be read"),
    ],
)
def test_texts_that_are_wrong(street, line, message):
    folder = save_all(street, "instance")
    next(folder.rglob("aachen_000000_000000_pred.txt")).write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        score(folder, street.data)
    next(folder.rglob("aachen_000000_000000_pred.txt")).unlink()
    with pytest.raises(DataError, match="no file for 1 of 3 annotated images, such as aachen/aachen_000000_000000"):
        score(folder, street.data)
