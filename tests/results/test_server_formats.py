"""What evaluation servers take: read back by the official readers."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, FakeSegmenter, instances, panoptic, scene, scene_labels, semantic
from PIL import Image
from pycocotools.coco import COCO

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import expand
from m2f_cli.results import server_formats
from m2f_cli.results.types import Instances, PanopticMap, Segment, SemanticMap
from m2f_cli.structures.categories import Category, load_categories

LABELS = scene_labels()
STREET = load_categories("cityscapes")
NAMES = [category.name for category in STREET]
FRAME = "aachen/aachen_000000_000019"


def run(tmp_path, task, formats, **options):
    for number in (139, 285):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(scene()).save(tmp_path / "in" / f"{number:012d}.png")
    predict(FakeSegmenter(), expand([tmp_path / "in"]), task, tmp_path / "out", formats, **options)
    return tmp_path / "out"


def test_the_panoptic_archive_has_the_names_of_the_server(tmp_path):
    out = run(tmp_path, "panoptic", ["coco-panoptic-zip"], model="models/Mask2Former_R50 v2")
    path = out / "panoptic_val2017_Mask2Former-R50-v2_results.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        stem = path.stem
        assert sorted(archive.namelist()) == [f"{stem}.json", f"{stem}/000000000139.png", f"{stem}/000000000285.png"]
        document = json.loads(archive.read(f"{stem}.json"))
        assert [each["image_id"] for each in document["annotations"]] == [139, 285]
        for annotation in document["annotations"]:
            rgb = np.asarray(Image.open(io.BytesIO(archive.read(f"{stem}/{annotation['file_name']}")))).astype(int)
            ids = np.unique(rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])
            assert set(ids.tolist()) - {0} == {info["id"] for info in annotation["segments_info"]}
            official = {info["category_id"] for info in annotation["segments_info"]}
            assert official == {category.id for category in CATEGORIES}


def test_an_archive_of_another_test_set_and_its_errors(tmp_path):
    out = run(tmp_path, "panoptic", ["coco-panoptic"])
    path = server_formats.pack_panoptic(out, testset="test-dev2017", name="mine")
    assert path.name == "panoptic_test-dev2017_mine_results.zip"
    (out / "panoptic/000000000139.png").unlink()
    with pytest.raises(DataError, match="000000000139.png is missing, which panoptic.json lists"):
        server_formats.pack_panoptic(out)
    assert [each.name for each in out.glob("*.zip")] == [path.name]
    with pytest.raises(DataError, match="panoptic.json cannot be read"):
        server_formats.pack_panoptic(tmp_path)


@pytest.mark.parametrize(
    ("head", "stem"),
    [
        ({"split": "val", "model": "a/b"}, "panoptic_val2017_b_results"),
        ({"split": "val2017", "model": ""}, "panoptic_val2017_m2f_results"),
        ({}, "panoptic_val2017_m2f_results"),
    ],
)
def test_the_head_of_a_run_names_its_archive(tmp_path, head, stem):
    out = run(tmp_path, "panoptic", ["coco-panoptic"])
    assert server_formats.pack_run(out, head).stem == stem


def test_overwriting_a_run_takes_its_archive_away(tmp_path):
    out = run(tmp_path, "panoptic", ["coco-panoptic-zip"], model="first")
    run(tmp_path, "panoptic", ["coco-panoptic-zip"], model="second", overwrite=True)
    assert [path.name for path in out.glob("*.zip")] == ["panoptic_val2017_second_results.zip"]
    run(tmp_path, "panoptic", ["label-png"], overwrite=True)
    assert not list(out.glob("*.zip")) and not (out / "panoptic.json").exists()


def test_one_result_as_an_archive(tmp_path):
    [path] = panoptic(LABELS).save(tmp_path, ["coco-panoptic-zip"], name="000000000139")
    assert path == tmp_path / "panoptic/000000000139.zip" and list(tmp_path.rglob("*.*")) == [path]
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["000000000139.json", "000000000139/000000000139.png"]
        assert json.loads(archive.read("000000000139.json"))["annotations"][0]["image_id"] == 139


def test_coco_reads_instance_results_as_its_own(tmp_path):
    """`loadRes` refuses results with ids that are not the data set's."""
    out = run(tmp_path, "instance", ["coco-instance"])
    annotation = COCO()
    annotation.dataset = {
        "images": [{"id": number, "height": 48, "width": 64} for number in (139, 285)],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    annotation.createIndex()
    found = annotation.loadRes(str(out / "instances.json"))
    assert [(each["image_id"], each["category_id"]) for each in found.dataset["annotations"]] == [(139, 1), (285, 1)]
    for each in found.dataset["annotations"]:
        np.testing.assert_array_equal(found.annToMask(each), LABELS == 2)


# --- Cityscapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_cityscapes_pixels_are_label_ids_and_zero_where_there_is_none(tmp_path, kind):
    labels_HW = np.full((6, 8), 255, np.uint8)
    labels_HW[:3], labels_HW[3:, :4] = NAMES.index("sky"), NAMES.index("car")
    if kind == "semantic":
        result = SemanticMap((6, 8), STREET, labels_HW)
    else:
        segments = [Segment(NAMES.index(name) + 1, NAMES.index(name), 1.0, 1) for name in ("sky", "car")]
        result = PanopticMap((6, 8), STREET, np.where(labels_HW == 255, 0, labels_HW + 1).astype(np.int32), segments)
    [path] = result.save(tmp_path, "cityscapes-semantic", name=f"{FRAME}_leftImg8bit")
    assert path == tmp_path / f"cityscapes-semantic/{FRAME}_pred.png"
    image = Image.open(path)
    assert image.mode == "L"
    expected = np.select([labels_HW == NAMES.index("sky"), labels_HW == NAMES.index("car")], [23, 26], 0)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_cityscapes_classes_go_by_name_and_not_by_id(tmp_path):
    own = tuple(
        Category(number, category.name, category.isthing, category.color)
        for number, category in enumerate(reversed(STREET))
    )
    [path] = SemanticMap((2, 2), own, np.zeros((2, 2), np.uint8)).save(tmp_path, "cityscapes-semantic", name=FRAME)
    assert (np.asarray(Image.open(path)) == 33).all()  # bicycle


def test_cityscapes_objects_are_a_text_and_masks(tmp_path):
    labels_HW = scene_labels(48, 64)
    one = instances(labels_HW).rles[0]
    empty = instances(np.zeros_like(labels_HW)).rles[0]
    labels_N = np.array([NAMES.index("car"), NAMES.index("person"), NAMES.index("bus")])
    result = Instances((48, 64), STREET, labels_N, np.array([0.9, 0.1 + 0.2, 0.1]), [one, one, empty])
    text, *masks = result.save(tmp_path, "cityscapes-instance", name=f"{FRAME}_leftImg8bit")
    folder = tmp_path / "cityscapes-instance/aachen"
    assert text == folder / "aachen_000000_000019_pred.txt"
    assert text.read_text() == (
        "aachen_000000_000019_pred/000_26.png 26 0.9\naachen_000000_000019_pred/001_24.png 24 0.30000000000000004\n"
    )
    assert masks == [folder / line.split()[0] for line in text.read_text().splitlines()]
    for mask in masks:
        np.testing.assert_array_equal(np.asarray(Image.open(mask)), np.where(labels_HW == 2, 255, 0))


def test_a_image_without_objects_has_an_empty_text(tmp_path):
    result = Instances((4, 4), STREET, np.zeros(0, int), np.zeros(0), [])
    [text] = result.save(tmp_path, "cityscapes-instance", name=FRAME)
    assert text.read_bytes() == b""


def test_what_cityscapes_does_not_know_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Cityscapes has no class 'grass'"):
        semantic(LABELS).save(tmp_path, "cityscapes-semantic", name=FRAME)
    with pytest.raises(ConfigError, match="not 'photo'"):
        SemanticMap((2, 2), STREET, np.zeros((2, 2), np.uint8)).save(tmp_path, "cityscapes-semantic", name="photo")
    with pytest.raises(ConfigError, match="is for panoptic and semantic results, not for instance"):
        instances(LABELS).save(tmp_path, "cityscapes-semantic", name=FRAME)
    assert not list(tmp_path.iterdir())
