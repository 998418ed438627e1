"""Each data set: what is written equals what the published scripts wrote, and the readers read it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers.facts import class_list
from helpers.prepare_tools import pixels, prepare, save, zipped
from PIL import Image

from m2f_cli.data.open_dataset import open_data
from m2f_cli.dataset_tools.prepare import ade20k_full
from m2f_cli.errors import DataError, MissingDependency

# --- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_semantic_labels_equal_the_published_ones(shared_dir, tmp_path):
    pack = shared_dir / "data" / "coco_panoptic_160"
    report = prepare("coco-panoptic", pack, tmp_path / "out")
    assert [(count.split, count.found, count.expected) for count in report.counts] == [
        ("train2017", 80, 118287),
        ("val2017", 80, 5000),
    ]
    theirs = sorted(pack.glob("panoptic_semseg_*/*.png"))
    assert len(theirs) == 160
    for path in theirs:
        ours = pixels(tmp_path / "out" / path.relative_to(pack))
        assert ours.dtype == np.uint8 and np.array_equal(ours, pixels(path)), path.name
    assert len(open_data(tmp_path / "out", "val", task="panoptic")) == 80
    with pytest.raises(DataError, match="train2017 has 80 images; 118287 are published"):
        prepare("coco-panoptic", pack, tmp_path / "other", partial=False)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def coco(tmp_path):
    """One image with a thing, a crowd, stuff and void."""
    root = tmp_path / "coco"
    ids = np.zeros((6, 8), np.int32)
    ids[:2], ids[2:4, :4], ids[2:4, 4:] = 70000, 5, 300
    png = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    save(root / "panoptic_val2017" / "000000000009.png", png)
    save(root / "val2017" / "000000000009.jpg", np.zeros((6, 8, 3), np.uint8))
    rows = [(70000, 187, 0), (5, 90, 0), (300, 1, 1)]
    infos = [{"id": i, "category_id": c, "iscrowd": crowd, "area": 8, "bbox": [0, 0, 8, 2]} for i, c, crowd in rows]
    annotation = {"image_id": 9, "file_name": "000000000009.png", "segments_info": infos}
    tree = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 6, "width": 8}],
        "annotations": [annotation],
        "categories": [],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(tree))
    return root


EXPECTED = np.repeat([[119], [119], [0], [0], [255], [255]], 8, axis=1)
EXPECTED[2:4, :4] = 79  # toothbrush is the last thing; sky-other-merged is stuff; a crowd of persons is persons


def test_coco_things_stuff_crowds_and_void(coco):
    report = prepare("coco-panoptic", coco)
    assert np.array_equal(pixels(coco / "panoptic_semseg_val2017" / "000000000009.png"), EXPECTED)
    assert any("instances_val2017.json is missing" in note for note in report.notes)


def test_coco_archives_are_read_in_place(coco, tmp_path):
    packed = tmp_path / "packed"
    (packed / "annotations").mkdir(parents=True)
    zipped(coco / "val2017", packed / "val2017.zip", "val2017/")
    zipped(coco / "annotations", packed / "annotations_trainval2017.zip", "annotations/")
    zipped(coco / "panoptic_val2017", packed / "annotations" / "panoptic_val2017.zip", "panoptic_val2017/")
    assert prepare("coco-panoptic", packed).folder == packed
    assert np.array_equal(pixels(packed / "panoptic_semseg_val2017" / "000000000009.png"), EXPECTED)
    assert (packed / "val2017" / "000000000009.jpg").read_bytes() == (coco / "val2017/000000000009.jpg").read_bytes()


def test_nothing_is_written_through_a_link_out_of_the_folder(coco, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (coco / "panoptic_semseg_val2017").symlink_to(elsewhere)
    with pytest.raises(DataError, match="A link leads .*000000000009.png out of the folder that is prepared. Remove"):
        prepare("coco-panoptic", coco)
    assert not list(elsewhere.iterdir())


def test_coco_bad_input(coco):
    with pytest.raises(DataError, match=r"no annotations/panoptic_train2017.json.*cocodataset.org"):
        prepare("coco-panoptic", coco, partial=False)
    table = coco / "annotations" / "panoptic_val2017.json"
    whole = table.read_text()
    table.write_text(whole.replace('"category_id": 90', '"category_id": 12'))
    with pytest.raises(DataError, match="category 12, which COCO's 133 classes do not have"):
        prepare("coco-panoptic", coco)
    table.write_text(whole.replace('"id": 300', '"id": 301'))
    with pytest.raises(DataError, match="segment 300, which its json does not list"):
        prepare("coco-panoptic", coco)
    table.write_text(whole[:-20])
    with pytest.raises(DataError, match="is not valid json"):
        prepare("coco-panoptic", coco)
    for damaged in ('"file_name": 3, "old": ', '"old": '):
        table.write_text(whole.replace('"file_name": ', damaged))
        with pytest.raises(DataError, match="no panoptic json, or is damaged"):
            prepare("coco-panoptic", coco)


def test_coco_stuff_is_prepared_from_its_matrices(tmp_path):
    h5py = pytest.importorskip("h5py")
    root = tmp_path / "coco_stuff_10k"
    values = np.array([[1, 2, 3], [81, 82, 172]], np.uint8)
    for split, name in (("train", "COCO_train2014_000000000077"), ("test", "COCO_train2014_000000000078")):
        for folder in ("annotations", "images", "imageLists"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        with h5py.File(root / "annotations" / f"{name}.mat", "w", userblock_size=512) as file:
            file["S"] = values.T
        save(root / "images" / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        (root / "imageLists" / f"{split}.txt").write_text(name + "\n")
    prepare("coco-stuff-10k", root)
    name = "COCO_train2014_000000000077"
    written = pixels(root / "annotations_detectron2" / "train" / f"{name}.png")
    assert written.dtype == np.uint8 and written.tolist() == [[255, 0, 1], [79, 80, 170]]
    copied = root / "images_detectron2" / "train" / f"{name}.jpg"
    assert copied.read_bytes() == (root / "images" / f"{name}.jpg").read_bytes()
    data = open_data(root, "train", task="semantic")
    assert (len(data), len(data.categories), data.categories[79].name) == (1, 171, "toothbrush")
    assert data.records[0].read_annotation().labels_HW.tolist() == written.tolist()
    with h5py.File(root / "annotations" / f"{name}.mat", "w") as file:
        file["S"] = values.T - 1
    (root / "annotations_detectron2" / "train" / f"{name}.png").unlink()
    with pytest.raises(DataError, match="values from 1 to 172.*v1.0"):
        prepare("coco-stuff-10k", root)
    (root / "images" / f"{name}.jpg").unlink()
    with pytest.raises(DataError, match=f"1 of 1 images.*such as {name}"):
        prepare("coco-stuff-10k", root, partial=False)


def test_coco_stuff_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "imageLists").mkdir()
    with pytest.raises(MissingDependency, match=r"m2f-cli\[prepare\]"):
        prepare("coco-stuff-10k", tmp_path)


# --- ADE20K -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ade_sample(shared_dir):
    return shared_dir / "data" / "ade20k_sample"


def test_ade20k_equals_the_published_scripts(ade_sample, tmp_path):
    theirs, ours = ade_sample / "ADEChallengeData2016", tmp_path / "ADEChallengeData2016"
    prepare("ade20k", theirs, ours)
    for path in theirs.glob("annotations_detectron2/*/*.png"):
        assert np.array_equal(pixels(ours / path.relative_to(theirs)), pixels(path)), path.name
    table = "ade20k_instance_train.json"
    assert (ours / table).read_text() == (theirs / table).read_text()
    compare_panoptic(ours, theirs)
    for task, count in (("panoptic", 150), ("instance", 100), ("semantic", 150)):
        data = open_data(ours, "train", task=task)
        assert (len(data), len(data.categories)) == (3, count)
        data.records[0].read_annotation()


def compare_panoptic(ours: Path, theirs: Path) -> None:
    """The published script draws colours of further objects of a class at random; all else is equal."""
    table = "ade20k_panoptic_train.json"
    new, old = (json.loads((folder / table).read_text()) for folder in (ours, theirs))
    assert (new["images"], new["categories"]) == (old["images"], old["categories"])
    assert list(new) == list(old) and list(new["annotations"][0]) == list(old["annotations"][0])
    fixed = 0
    for mine, other in zip(new["annotations"], old["annotations"], strict=True):
        rename = {a["id"]: b["id"] for a, b in zip(mine["segments_info"], other["segments_info"], strict=True)}
        assert len(set(rename.values())) == len(rename)
        renamed = [{**segment, "id": rename[segment["id"]]} for segment in mine["segments_info"]]
        assert renamed == other["segments_info"]
        own, published = (ids_of(folder / "ade20k_panoptic_train" / mine["file_name"]) for folder in (ours, theirs))
        assert np.array_equal(np.vectorize({0: 0, **rename}.get)(own), published)
        fixed += sum(key == value for key, value in rename.items())
    assert fixed > 20, "classes and first objects have their own colours"


def ids_of(path: Path) -> np.ndarray:
    return pixels(path).astype(np.int64) @ [1, 256, 65536]


def test_instance_classes_are_the_table_of_the_release(ade_sample):
    from m2f_cli.dataset_tools.prepare.ade20k import instance_categories

    lines = (ade_sample / "ADEChallengeData2016" / "ade20k_instance_catid_mapping.txt").read_text().splitlines()[1:]
    rows = [line.split() for line in lines if line.strip()]
    scene = {int(row[0]): int(row[1]) - 1 for row in rows}  # some classes have several rows, of one scene class
    assert dict(enumerate((row["id"] for row in instance_categories()), start=1)) == scene and len(scene) == 100


def test_ade20k_full_classes_are_those_of_the_list():
    lookup = ade20k_full.lookup_table()
    rows = class_list("ade20k_full_847")
    assert [int(lookup[int(index_id)]) for _, index_id, _ in rows] == [int(train_id) for train_id, _, _ in rows]
    assert (lookup == 65535).sum() == len(lookup) - 847


def test_ade20k_full_on_real_images(ade_sample, tmp_path):
    source = ade_sample / "ADE20K_2021_17_01"
    prepare("ade20k-full", source, tmp_path)
    lookup = ade20k_full.lookup_table()
    labels = sorted(tmp_path.glob("annotations_detectron2/training/*.tif"))
    assert len(labels) == 3
    for path in labels:
        values, [record] = pixels(path), list(source.rglob(f"{path.stem}.json"))
        objects = json.loads(record.read_text(encoding="utf-8"))["annotation"]["object"]
        named = {int(lookup[o["name_ndx"]]) for o in objects if o["parts"]["part_level"] == 0}
        assert values.dtype == np.uint16 and min(values.shape) == 512
        assert set(np.unique(values).tolist()) <= {65535, *named}
        assert {0, 1, 2, 3, 4} & set(np.unique(values).tolist()), "streets have sky, trees, buildings, roads"
        small = pixels(tmp_path / "images_detectron2" / "training" / f"{path.stem}.jpg")
        assert small.shape == (*values.shape, 3)
        derived = ade_sample / "ADEChallengeData2016" / "images" / "training" / f"{path.stem}.jpg"
        assert small.shape == pixels(derived).shape
    data = open_data(tmp_path, "train", task="semantic")
    assert (len(data), len(data.categories), data.records[0].read_annotation().ignore) == (3, 847, 65535)


def test_ade20k_full_by_hand(tmp_path):
    folder = tmp_path / "images" / "ADE" / "validation" / "a" / "b"
    seg = np.zeros((600, 700, 3), np.uint8)
    seg[:300, :, 0], seg[:300, :, 1], seg[:300, :, 2] = 119, 2978 - 11 * 256, 7  # wall is 2978 = 11 * 256 + 162
    seg[300:450, :, 0], seg[300:450, :, 1] = 10, 312 - 256  # building
    seg[450:500, :, 1] = 5  # none of the 847
    save(folder / "ADE_val_00000001_seg.png", seg)
    save(folder / "ADE_val_00000001.jpg", np.zeros((600, 700, 3), np.uint8))
    save(folder / "ADE_val_00000002_seg.png", seg[::2])
    save(folder / "ADE_val_00000002.jpg", np.zeros((300, 700, 3), np.uint8))
    prepare("ade20k-full", tmp_path)
    labels = pixels(tmp_path / "annotations_detectron2" / "validation" / "ADE_val_00000001.tif")
    assert labels.shape == (512, 597)
    classes = np.full((600, 700), 65535, np.uint16)
    classes[:300], classes[300:450] = 0, 1
    assert np.array_equal(labels, cv2.resize(classes, (597, 512), interpolation=cv2.INTER_NEAREST))
    small = pixels(tmp_path / "annotations_detectron2" / "validation" / "ADE_val_00000002.tif")
    assert np.array_equal(small, classes[::2]), "what is small enough stays"
    kept = tmp_path / "images_detectron2" / "validation" / "ADE_val_00000002.jpg"
    assert kept.read_bytes() == (folder / "ADE_val_00000002.jpg").read_bytes()


# --- Mapillary, MaSS13K, NuInsSeg -------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["", "v1.2/"])
def test_mapillary_is_checked_and_placed(tmp_path, home):
    root = tmp_path / "in"
    for split in ("training", "validation"):
        save(root / split / "images" / "a.jpg", np.zeros((4, 5, 3), np.uint8))
        save(root / split / f"{home}labels" / "a.png", np.full((4, 5), 65, np.uint8))
    report = prepare("mapillary", root, tmp_path / "out")
    assert [count.found for count in report.counts] == [1, 1]
    assert any("18000 are published (a figure that is not verified)" in note for note in report.notes)
    assert any("semantic models only" in note for note in report.notes)
    assert (tmp_path / "out" / "training" / f"{home}labels" / "a.png").is_file()
    (root / "training" / f"{home}labels" / "a.png").unlink()
    with pytest.raises(DataError, match="1 of 1 files have no annotation, such as training/images/a.jpg"):
        prepare("mapillary", root, partial=False)


def test_mass13k_can_be_read(tmp_path):
    for folder, split in (("images_pad", "train"), ("images_pad", "val"), ("images", "test")):
        save(tmp_path / folder / split / "1.jpg", np.zeros((4, 5, 3), np.uint8))
        save(tmp_path / "annotations" / split / "1.png", np.full((4, 5), 6, np.uint8))
    report = prepare("mass13k", tmp_path)
    assert [(count.split, count.found) for count in report.counts] == [("train", 1), ("val", 1), ("test", 1)]
    for split in ("train", "val", "test"):
        data = open_data(tmp_path, split, task="semantic")
        assert [category.name for category in data.categories][::6] == ["background", "water"]
        assert (data.records[0].read_annotation().labels_HW == 6).all() and data.records[0].read_image().shape == (
            4,
            5,
            3,
        )
    assert yaml.safe_load((tmp_path / "classes.yaml").read_text())["dataset"] == "MaSS13K"


@pytest.fixture
def nuinsseg(tmp_path):
    root = tmp_path / "NuInsSeg"
    for tissue in ("human bladder", "mouse liver"):
        for number in range(7):
            ids = np.zeros((12, 12), np.uint16)
            ids[1:4, 1:5], ids[6:9, 2:4] = 1, 300
            name = f"{tissue.replace(' ', '_')}_{number:02d}"
            save(root / tissue / "tissue images" / f"{name}.png", np.zeros((12, 12, 3), np.uint8))
            save(root / tissue / "label masks modify" / f"{name}.tif", ids)
            save(root / tissue / "label masks" / f"{name}.tif", ids * 2)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_nuinsseg_is_prepared_from_a_folder_or_an_archive(nuinsseg, tmp_path, packed):
    root = zipped(nuinsseg, tmp_path / "nuinsseg.zip") if packed else nuinsseg
    report = prepare("nuinsseg", root)
    home = tmp_path / "nuinsseg" if packed else nuinsseg
    assert report.folder == home and report.counts[0].found == 14
    sizes = {split: len(open_data(home, split, task="panoptic")) for split in ("train", "val")}
    assert sizes == {"train": 10, "val": 4}
    record = open_data(home, "val", task="panoptic").records[0]
    annotation = record.read_annotation()
    assert record.read_image().shape == (12, 12, 3)
    assert {(s.id, s.label) for s in annotation.segments} == {(1, 0), (300, 0)}
    assert (annotation.ids_HW == 300).sum() == 6 and (annotation.ids_HW == 0).sum() == 144 - 18
    names = {split: {r.name for r in open_data(home, split).records} for split in sizes}
    assert not names["train"] & names["val"] and {name.split("-")[0] for name in names["val"]} == {
        "human_bladder",
        "mouse_liver",
    }


def test_nuinsseg_says_what_it_looks_for(nuinsseg):
    for path in nuinsseg.rglob("label masks modify/*.tif"):
        path.unlink()
    with pytest.raises(DataError, match="no tissue with a folder 'label masks modify'. It has: label masks, tissue"):
        prepare("nuinsseg", nuinsseg)


def test_png_bytes_do_not_depend_on_the_run(nuinsseg, tmp_path):
    prepare("nuinsseg", nuinsseg, tmp_path / "a")
    prepare("nuinsseg", nuinsseg, tmp_path / "b")
    pngs = sorted((tmp_path / "a").rglob("annotations/**/*.png"))
    assert len(pngs) == 14
    for path in pngs:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes() and Image.open(io.BytesIO(path.read_bytes())).mode == "RGB"
