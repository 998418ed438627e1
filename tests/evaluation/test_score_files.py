"""Files against files: the digits of results in memory, any tool's formats, and every way in which files are wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.fake_segmenter import FakeSegmenter
from helpers.folders import (
    image_entry,
    plane,
    rectangle,
    write_ids,
    write_image,
    write_json,
    write_mask,
    write_random_image,
)
from PIL import Image
from pycocotools import mask as coco_mask

from m2f_cli import plugins
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.evaluation.score_files.score import open_predictions, score
from m2f_cli.inference.predict import predict as predict_all
from m2f_cli.inference.sources import expand
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.categories import Category

H, W = 24, 32
ROWS = [
    {"id": 3, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 17, "name": "dog", "isthing": 1, "color": [4, 5, 6]},
    {"id": 200, "name": "sky", "isthing": 0, "color": [7, 8, 9]},
]
CATEGORIES = tuple(Category(row["id"], row["name"], bool(row["isthing"]), tuple(row["color"])) for row in ROWS)
COUNT = 5


def random_map(rng, count: int) -> np.ndarray:
    """Ids 1 to `count`, each at least one pixel, 0 elsewhere."""
    ids_HW = np.zeros((H, W), np.int32)
    for key in range(1, count + 1):
        top, left = rng.integers(0, H - 8), rng.integers(0, W - 8)
        ids_HW[top : top + rng.integers(4, 14), left : left + rng.integers(4, 14)] = key
    ids_HW[0, :count] = np.arange(1, count + 1)
    return ids_HW


def rle(mask_HW) -> dict:
    return coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))


def listed(mask_HW) -> dict:
    found = rle(mask_HW)
    return {"size": found["size"], "counts": found["counts"].decode()}


@pytest.fixture
def coco(tmp_path):
    """`.data`: a COCO data set of five images; `.results`: random results of them by task, near the annotation."""
    rng = np.random.default_rng(7)
    data, images, panoptic, objects = tmp_path / "data", [], [], []
    results = {"panoptic": [], "instance": [], "semantic": []}
    for number in range(1, COUNT + 1):
        name, key = f"{number:012d}", 1000 + number
        image = write_random_image(data / f"val2017/{name}.png", (H, W), seed=number)
        pixels = np.array(Image.open(image))
        pixels[0, 0] = number
        write_image(image, pixels)
        ids_HW = random_map(rng, 6)
        labels = rng.integers(0, 3, 6).tolist()
        infos = [
            {"id": i + 1, "category_id": ROWS[label]["id"], "iscrowd": int(i == 5)} for i, label in enumerate(labels)
        ]
        images.append(image_entry(key, f"{name}.png", (H, W)))
        write_ids(data / f"panoptic_val2017/{name}.png", ids_HW)
        panoptic.append({"image_id": key, "file_name": f"{name}.png", "segments_info": infos})
        objects += [
            {
                "id": len(objects) + i,
                "image_id": key,
                "category_id": ROWS[labels[i]]["id"],
                "iscrowd": 0,
                "area": float((ids_HW == i + 1).sum()),
                "segmentation": listed(ids_HW == i + 1),
            }
            for i in range(5)
            if ROWS[labels[i]]["isthing"]
        ]
        found_HW = np.roll(ids_HW, rng.integers(0, 3, 2), (0, 1))
        found = [label if rng.random() < 0.8 else (label + 1) % 3 for label in labels]
        segments = [Segment(i + 1, found[i], float(rng.random()), int((found_HW == i + 1).sum())) for i in range(6)]
        results["panoptic"].append(PanopticMap((H, W), CATEGORIES, found_HW, segments))
        things = [i for i in range(6) if CATEGORIES[found[i]].isthing]
        scores = np.sort(rng.random(len(things)).astype(np.float32))[::-1]
        rles = [rle(found_HW == i + 1) for i in things]
        results["instance"].append(Instances((H, W), CATEGORIES, np.array([found[i] for i in things]), scores, rles))
        label_of = np.array([255, *found], np.uint8)
        results["semantic"].append(SemanticMap((H, W), CATEGORIES, label_of[found_HW]))
    files = {
        kind: write_json(data / f"annotations/{kind}_val2017.json", {"images": images, "annotations": rows, **more})
        for kind, rows, more in (
            ("panoptic", panoptic, {"categories": ROWS}),
            ("instances", objects, {"categories": ROWS[:2]}),
        )
    }
    return SimpleNamespace(data=data, results=results, **files, out=tmp_path / "out", tmp=tmp_path)


class Recorded(FakeSegmenter):
    """Gives results that were made before, by the number in the image's first pixel."""

    def __init__(self, results):
        super().__init__()
        self.categories, self.results = CATEGORIES, results

    def prepare(self, image_HW3):
        return int(image_HW3[0, 0, 0])

    def infer(self, prepared):
        return prepared

    def finish(self, raw, task=None, **thresholds):
        return self.results[task][raw - 1]


def predict(coco, task: str, *formats: str):
    predict_all(Recorded(coco.results), expand([coco.data / "val2017"]), task, coco.out, formats)
    return coco.out


def in_memory(coco, task: str, name: str) -> dict:
    data = open_data(coco.data, "val", task=task)
    metric = plugins.get("metrics", name)(data.categories)
    for result, record in zip(coco.results[task], data.records, strict=True):
        metric.update(result, record.read_annotation())
    return metric.compute()


def same(first: dict, second: dict) -> bool:
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)  # NaN is NaN there


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [["coco-panoptic"], ["coco-panoptic-zip"]])
def test_panoptic_files_score_as_results_in_memory(coco, formats):
    expected = in_memory(coco, "panoptic", "pq")
    assert 0 < expected["pq"] < 100
    out = predict(coco, "panoptic", *formats)
    for annotation in (coco.data, coco.panoptic):
        found = score(out, annotation)
        assert same(found.metrics["pq"], expected)
        assert found.images == COUNT and not found.failures
        assert "COCO panoptic" in found.notes[0] and "coco-panoptic" in found.notes[1]
    assert same(score(out / "panoptic.json", coco.data).metrics["pq"], expected)


def test_the_archive_for_the_server_scores_the_same(coco):
    out = predict(coco, "panoptic", "coco-panoptic-zip")
    [archive] = out.glob("*.zip")
    assert archive.name == "panoptic_val2017_fake_results.zip"
    assert same(score(archive, coco.panoptic).metrics["pq"], in_memory(coco, "panoptic", "pq"))


def test_instance_files_score_as_results_in_memory(coco):
    expected = in_memory(coco, "instance", "ap")
    assert 0 < expected["ap"] < 100
    out = predict(coco, "instance", "coco-instance")
    for predictions, annotation in ((out, coco.data), (out / "instances.json", coco.instances)):
        assert same(score(predictions, annotation).metrics["ap"], expected)


def test_label_maps_score_as_results_in_memory(coco):
    expected = in_memory(coco, "semantic", "miou")
    assert 0 < expected["miou"] < 100
    out = predict(coco, "semantic", "label-png")
    for predictions in (out, out / "labels"):
        assert same(score(predictions, coco.data).metrics["miou"], expected)
    assert same(score(out, coco.panoptic, ["miou"]).metrics["miou"], expected)


def test_label_maps_are_compared_with_a_bare_folder_of_label_maps(tmp_path):
    """The numbers are those of the annotation files: 9 is ignored there."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth/classes.yaml").write_text("names: [a, b]\nignore_index: 9\n")
    write_mask(tmp_path / "truth/x.png", plane((1, 0, 0, 20, 15), (9, 0, 15, 10, 30)))
    write_mask(tmp_path / "found/x.png", plane((1, 0, 0, 20, 12), (9, 15, 20, 20, 30)))
    found = score(tmp_path / "found", tmp_path / "truth").metrics["miou"]
    # Annotation: a 150 pixels, b 300, ignored 150. Found: 60 pixels of b as a, 50 of a as nothing.
    assert found["per_class"]["a"]["iou"] == pytest.approx(100 * 100 / (150 + 60))
    assert found["per_class"]["b"]["iou"] == pytest.approx(100 * 240 / 300)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_real_annotations_against_themselves_are_perfect(shared_dir, tmp_path, task):
    folder = shared_dir / "data" / "coco_panoptic_160"
    if task == "panoptic":
        found = score(folder / "annotations/panoptic_val2017.json", folder)
        assert (found.figures["pq"], found.figures["sq"], found.figures["rq"]) == (100, 100, 100)
    else:
        annotation = folder / "annotations/instances_val2017.json"
        objects = json.loads(annotation.read_text())["annotations"]
        results = [{**each, "score": 1.0} for each in objects if not each["iscrowd"]]
        found = score(write_json(tmp_path / "r.json", results), annotation, max_dets=200)
        assert found.figures["ap"] == pytest.approx(100, abs=1e-9)
        assert found.figures["ar200"] == 100
    assert found.images == 80


def test_nuclei_against_themselves_are_perfect(nuclei_dir, tmp_path):
    annotation = nuclei_dir / "annotations/instances_val.json"
    results = [{**each, "score": 1.0} for each in json.loads(annotation.read_text())["annotations"]]
    found = score(write_json(tmp_path / "r.json", results), annotation, max_dets=400)
    assert found.figures["ap"] == pytest.approx(100, abs=1e-9)
    assert found.figures["ar400"] == 100 and found.images == 8


def test_progress_comes_in_order(coco):
    out, seen = predict(coco, "panoptic", "coco-panoptic"), []
    score(out, coco.data, on_progress=seen.append)
    assert [(each.number, each.name) for each in seen] == [(n, f"{n:012d}") for n in range(1, COUNT + 1)]


def test_the_ids_of_the_data_set_reach_the_files(coco):
    for result in coco.results["panoptic"]:
        result.image_id = 999
    out = predict(coco, "panoptic", "coco-panoptic")
    document = json.loads((out / "panoptic.json").read_text())
    assert {each["image_id"] for each in document["annotations"]} == {999}
    assert {each["id"] for each in document["images"]} == {999}
    records = open_data(coco.data, "val").records
    assert [record.image_id for record in records] == [1001, 1002, 1003, 1004, 1005]


def test_polygons_and_run_lengths_are_the_same_objects(coco):
    box = rectangle(2, 3, 12, 13)
    mask_HW = plane((1, 3, 2, 13, 12), size=(H, W)).astype(bool)
    base = {"image_id": 1001, "category_id": 3, "score": 0.5}
    before, columns = 2 * H + 3, [*([10, H - 10] * 9), 10]
    counts = [before, *columns, H * W - before - sum(columns)]
    shapes = ([box], listed(mask_HW), {"size": [H, W], "counts": counts})
    figures = [
        score(write_json(coco.tmp / "r.json", [{**base, "segmentation": shape}]), coco.instances).metrics["ap"]
        for shape in shapes
    ]
    assert same(figures[0], figures[1]) and same(figures[0], figures[2])


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(coco, change) -> None:
    """A run's panoptic.json after `change(document)`."""
    path = predict(coco, "panoptic", "coco-panoptic") / "panoptic.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def duplicate(document):
    document["annotations"].append(document["annotations"][0])


def drop_entry(document):
    del document["annotations"][2]


def segment(**more):
    def change(document):
        document["annotations"][1]["segments_info"][0].update(more)

    return change


def extra_segment(document):
    document["annotations"][1]["segments_info"].append({"id": 77, "category_id": 3})


def drop_segment(document):
    del document["annotations"][1]["segments_info"][0]


def evil_name(document):
    document["annotations"][1]["file_name"] = "../../secret.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (duplicate, "several predictions for the image_id 1"),
        (drop_entry, r"no prediction for 1 of 5 .*000000000003 \(there is a 000000000003.png, but the json"),
        (
            segment(category_id=4),
            "image_id 2 has the category_id 4; the annotations have 3 categories .* from 3 to 200",
        ),
        (segment(category_id=[3]), r"has the category_id \[3\]"),
        (segment(score=float("nan")), "has the score nan"),
        (segment(id=2), "lists the segment 2 twice"),
        (segment(id="x"), "has the id .x., which should be a whole number"),
        (extra_segment, "lists the segment 77, of which .*000000000002.png has no pixel"),
        (drop_segment, "has pixels of the segment 1, which .*panoptic.json does not list"),
        (evil_name, "leads out of it"),
        (lambda document: document["annotations"].clear(), "no prediction for 5 of 5"),
        (lambda document: document["annotations"].insert(0, {"segments_info": 3}), "has no .file_name."),
    ],
)
def test_a_panoptic_json_that_does_not_fit(coco, change, message):
    changed(coco, change)
    with pytest.raises(DataError, match=message):
        score(coco.out, coco.data)


def test_predictions_of_other_images_are_left_out_with_a_note(coco):
    expected = in_memory(coco, "panoptic", "pq")
    changed(coco, lambda document: document["annotations"].append({**document["annotations"][0], "image_id": 5555}))
    found = score(coco.out, coco.data)
    assert same(found.metrics["pq"], expected)
    assert "1 predictions of images that the annotations do not have are left out" in found.notes


def test_another_name_of_a_category_is_said(coco):
    changed(coco, lambda document: document["categories"][0].update(name="lynx"))
    assert any("the category 3 is 'lynx'" in note and "'cat'" in note for note in score(coco.out, coco.data).notes)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "000000000002.png cannot be read: No such file"),
        (cut, "000000000002.png is damaged or cut off"),
        (flip, "000000000002.png is damaged or cut off"),
        (lambda path: path.write_bytes(b""), "is no PNG, or is cut off"),
        (lambda path: write_ids(path, np.zeros((H, W + 1), int)), "has 24 x 33 pixels .*its annotation 24 x 32"),
        (lambda path: write_mask(path, np.zeros((H, W), int)), "is grey, where the ids of segments are expected"),
    ],
)
def test_a_panoptic_png_that_cannot_be_used(coco, spoil, message):
    out = predict(coco, "panoptic", "coco-panoptic")
    spoil(out / "panoptic/000000000002.png")
    with pytest.raises(DataError, match=message):
        score(out, coco.data)


def test_the_pngs_may_be_elsewhere(coco):
    out = predict(coco, "panoptic", "coco-panoptic")
    document = shutil.copy(out / "panoptic.json", coco.tmp / "results.json")
    with pytest.raises(DataError, match="cannot be read"):
        score(document, coco.data)
    found = score(document, coco.data, predictions_folder=out / "panoptic")
    assert same(found.metrics["pq"], in_memory(coco, "panoptic", "pq"))
    shutil.move(out / "panoptic", coco.tmp / "results")
    assert same(score(document, coco.data).metrics["pq"], found.metrics["pq"])


OBJECT = {"image_id": 1001, "category_id": 3, "score": 0.5, "segmentation": [rectangle(2, 3, 12, 13)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, "objects in 1 images that the annotations do not have, such as the image_id 7"),
        ({"image_id": None}, "object 0 has the image_id None, which should be a whole number or text"),
        ({"category_id": 200}, "category_id 200; the annotations have 2 categories with ids from 3 to 17"),
        ({"score": float("nan")}, "score nan, which should be a finite number"),
        ({"score": float("inf")}, "score inf"),
        ({"score": None}, "score None"),
        ({"score": True}, "score True"),
        ({"segmentation": None}, "has no mask"),
        ({"segmentation": [[1, 2, 3, 4]]}, "fewer than three points"),
        ({"segmentation": [[1, 2, "x", 4]]}, "list of numbers"),
        ({"segmentation": {"size": [H, W + 1], "counts": [H * W]}}, "the size of its mask"),
        ({"segmentation": {"size": [H, W], "counts": [10**9]}}, "run lengths cover 1000000000 pixels"),
        ({"segmentation": {"size": [H, W], "counts": [-5, H * W + 5]}}, "run length -5, which should not be negative"),
        ({"segmentation": {"size": [H, W], "counts": "zzzz"}}, "no COCO text"),
    ],
)
def test_instance_results_that_do_not_fit(coco, change, message):
    path = write_json(coco.tmp / "r.json", [{**OBJECT, **change}])
    with pytest.raises(DataError, match=message):
        score(path, coco.instances)


def test_no_objects_at_all_is_nothing_found(coco):
    found = score(write_json(coco.tmp / "r.json", []), coco.instances)
    assert (found.figures["ap"], found.figures["ar100"], found.images) == (0, 0, COUNT)
    assert "5 of 5 annotated images have no objects in the predictions" in found.notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "000000000004.png").unlink(), "no file for 1 of 5 annotated .*such as 000000000004"),
        (lambda folder: cut(folder / "000000000004.png"), "damaged or cut off"),
        (lambda folder: write_mask(folder / "000000000004.png", np.full((H, W), 4)), "holds the value 4"),
        (lambda folder: write_ids(folder / "000000000004.png", np.full((H, W), 3)), "holds colours"),
        (lambda folder: write_mask(folder / "000000000004.png", np.full((W, H), 3)), "has 32 x 24 pixels"),
    ],
)
def test_label_maps_that_do_not_fit(coco, spoil, message):
    out = predict(coco, "semantic", "label-png")
    spoil(out / "labels")
    with pytest.raises(DataError, match=message):
        score(out, coco.data)


def test_label_maps_with_a_palette_hold_its_indices(coco):
    out = predict(coco, "semantic", "label-png")
    for path in (out / "labels").glob("*.png"):
        image = Image.fromarray(np.array(Image.open(path)), mode="P")
        image.putpalette([255 - i // 3 for i in range(768)])
        image.save(path)
    assert same(score(out, coco.data).metrics["miou"], in_memory(coco, "semantic", "miou"))


def test_names_in_folders_do_not_share_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a/1", "b/1"):
        write_random_image(tmp_path / f"data/images/val/{name}.png", (4, 4))
        write_mask(tmp_path / f"data/labels/val/{name}.png", np.zeros((4, 4), int))
    (tmp_path / "data/classes.txt").write_text("x\ny\n")
    write_mask(tmp_path / "found/a/1.png", np.zeros((4, 4), int))
    with pytest.raises(DataError, match="no file for 1 of 2 annotated images, such as b/1"):
        score(tmp_path / "found", tmp_path / "data")
    shutil.move(tmp_path / "found/a/1.png", tmp_path / "found/1.png")
    with pytest.raises(DataError, match="would share the prediction"):
        score(tmp_path / "found", tmp_path / "data")


def test_a_metric_of_another_task_is_refused(coco):
    out = predict(coco, "panoptic", "coco-panoptic")
    with pytest.raises(ConfigError, match="'ap' is about instance results"):
        score(out, coco.data, ["ap"])
    assert "pq" in score(out, coco.data, ["all"]).figures


# --- what is what -----------------------------------------------------------------------------------------------------


def test_archives_are_read_like_folders(coco):
    out = predict(coco, "instance", "coco-instance")
    with zipfile.ZipFile(coco.tmp / "r.zip", "w") as archive:
        archive.write(out / "instances.json", "deep/results.json")
        archive.writestr("__MACOSX/deep/._results.json", "junk")
    assert open_predictions(coco.tmp / "r.zip").task == "instance"
    for evil in ("../up.json", "/etc/x.json", "a\\..\\..\\x.json", "C:/x.json"):
        with zipfile.ZipFile(coco.tmp / "evil.zip", "w") as archive:
            archive.writestr(evil, "[]")
        with pytest.raises(DataError, match="leads out of it"):
            score(coco.tmp / "evil.zip", coco.instances)
    (coco.tmp / "broken.zip").write_bytes((coco.tmp / "r.zip").read_bytes()[:-30])
    with pytest.raises(DataError, match="is no zip file that can be read"):
        score(coco.tmp / "broken.zip", coco.instances)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no predictions of a known kind"),
        (
            {
                "a.json": "[1",
            },
            "not valid json",
        ),
        ({"a.json": '{"images": []}'}, "no predictions of a known kind"),
        ({"a.json": "[]", "b.json": "[]"}, "several json files: a.json, b.json"),
        ({"predictions.json": '{"formats": 5}'}, "predictions.json should have a list of formats"),
        ({"predictions.json": '{"formats": ["overlay"]}'}, "were saved as overlay, which cannot be scored"),
    ],
)
def test_folders_that_hold_nothing_to_score(coco, files, message):
    (coco.tmp / "x").mkdir()
    for name, text in files.items():
        (coco.tmp / "x" / name).write_text(text)
    with pytest.raises(DataError, match=message):
        score(coco.tmp / "x", coco.data)


def test_paths_that_do_not_exist(coco):
    with pytest.raises(DataError, match="There are no predictions"):
        score(coco.tmp / "nowhere.json", coco.data)
    out = predict(coco, "panoptic", "coco-panoptic")
    with pytest.raises(DataError, match="There are no annotations"):
        score(out, coco.tmp / "nowhere.json")
    with pytest.raises(DataError, match="does not exist"):
        score(out, coco.data, predictions_folder=coco.tmp / "nowhere")
    with pytest.raises(DataError, match="only for: instance"):
        score(out, coco.instances)
