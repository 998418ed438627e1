"""The training part of every preset on a real image of its data set, read, augmented and made a target as training
does; where the makers' packs have none, on a hand-made one in the true layout."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from helpers.folders import plane, scenes_as_coco, write_mask, write_random_image
from helpers.golden_files import reference_folder
from helpers.prepare_tools import prepare
from helpers.presets import shipped
from PIL import Image

from m2f_cli.config import presets as config
from m2f_cli.data.open_dataset import open_data
from m2f_cli.data.training_set import SampleIndex, TrainingSet
from m2f_cli.data.transforms import build_transforms
from m2f_cli.data.transforms.geometry import mask_of
from m2f_cli.structures.categories import load_categories
from m2f_cli.training.data import open_split

load = shipped
ROWS = tuple(name for name in config.preset_names() if not name.startswith(("small-", "fast-small-", "tiny")))
SPLITS = {"mapillary-vistas": "val", "ade20k": "train", "ade20k-full": "train"}  # the others: val
# The others are made, or lie in the repository.
PACKS = ("ade20k", "ade20k-full", "mapillary-vistas", "coco-stuff-10k")
NO_PACK = ("mapillary-vistas", "panoptic")  # the crop has labels only


@pytest.fixture(scope="session")
def folder_of(request, nuclei_dir, tmp_path_factory):
    """`folder_of(dataset, task)`: a folder with at least one annotated image."""
    made = tmp_path_factory.mktemp("packs")

    @functools.cache
    def folder(dataset: str, task: str):
        if dataset not in (*PACKS, "coco"):
            make = {"nuinsseg": nuclei, "cityscapes": streets, "mass13k": scenery}[dataset]
            return make(nuclei_dir, made / ("NuInsSeg" if dataset == "nuinsseg" else dataset))
        if dataset == "coco" and reference_folder() is None:
            return scenes_as_coco(made / "coco")
        packs = request.getfixturevalue("shared_dir") / "data"
        if dataset == "coco":
            return packs / ("coco_instances" if task == "instance" else "coco_panoptic_160")
        if dataset == "ade20k":
            return packs / "ade20k_sample" / "ADEChallengeData2016"
        if dataset == "ade20k-full":
            return prepare("ade20k-full", packs / "ade20k_sample" / "ADE20K_2021_17_01", made / "full").folder
        if dataset == "mapillary-vistas":
            return packs / "mapillary_crop"
        return stuff(packs, made / dataset)

    return folder


def stuff(packs, folder):
    """An image of COCO-Stuff 164k with the class numbers of the 10k release: they are the same 171 classes."""
    source = packs / "coco_stuff_sample"
    numbers = np.full(256, 255, dtype=np.uint8)
    for row in json.loads((source / "classes.json").read_text()):
        numbers[row["png_value"]] = row["train_id"]
    mask = min((source / "annotations").rglob("*.png"))
    write_mask(folder / "labels/val/0.png", numbers[np.array(Image.open(mask))])
    image = next((source / "images").rglob(f"{mask.stem}.jpg"))
    (folder / "images/val").mkdir(parents=True)
    (folder / "images/val/0.jpg").write_bytes(image.read_bytes())
    (folder / "classes.txt").write_text("\n".join(c.name for c in load_categories("coco-stuff-10k")) + "\n")
    return folder


def nuclei(pack, root):
    """One image with its nuclei numbered, as NuInsSeg has them, prepared."""
    record = open_data(pack, "val").records[0]
    annotation = record.read_annotation()
    ids_HW = np.zeros(annotation.size, dtype=np.int64)
    for number, item in enumerate(annotation.objects, 1):
        ids_HW[mask_of(item, annotation.size).astype(bool)] = number
    tissue = root / "human bladder"
    write_mask(tissue / "label masks modify" / "human_bladder_01.tif", ids_HW.astype(np.uint16))
    (tissue / "tissue images").mkdir()
    Image.fromarray(record.read_image()).save(tissue / "tissue images" / "human_bladder_01.png")
    return prepare("nuinsseg", root).folder


def streets(_, folder):
    ids_HW = plane((7, 50, 0, 100, 200), (26000, 20, 20, 90, 90), (26001, 30, 110, 80, 190), size=(100, 200), fill=23)
    stem = "val/aachen/aachen_000000_000019"
    write_random_image(folder / f"leftImg8bit/{stem}_leftImg8bit.png", ids_HW.shape)
    write_mask(folder / f"gtFine/{stem}_gtFine_instanceIds.png", ids_HW)
    write_mask(folder / f"gtFine/{stem}_gtFine_labelIds.png", np.where(ids_HW < 1000, ids_HW, ids_HW // 1000))
    return folder


def scenery(_, folder):
    write_random_image(folder / "images_pad/val/1.jpg", (60, 80))
    write_mask(folder / "annotations/val/1.png", plane((5, 0, 0, 30, 80), (6, 40, 0, 60, 80), size=(60, 80)))
    return prepare("mass13k", folder).folder


@functools.cache
def sample_of(open_folder, dataset: str, task: str, augment: str):
    """Rows that share their augmentation share the work."""
    name = next(n for n in ROWS if key(n) == (dataset, task, augment))
    data = open_split(load(name), open_folder(dataset, task), SPLITS.get(dataset, "val"))
    return data.categories, TrainingSet(data, build_transforms(load(name).train.augment), task, seed=1)[
        SampleIndex(0, 0)
    ]


def key(name: str) -> tuple[str, str, str]:
    preset = load(name)
    return preset.data.dataset, preset.task, json.dumps([step.model_dump(mode="json") for step in preset.train.augment])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.reference if key(name)[0] in PACKS else ())
        for name in ROWS
        if key(name)[:2] != NO_PACK
    ],
)
def test_training_sees_a_image_of_its_data_set(folder_of, name):
    categories, sample = sample_of(folder_of, *key(name))
    assert len(categories) == len(load_categories(load(name).data.classes))
    assert sample.image_CHW.dtype == torch.uint8 and sample.image_CHW.shape[0] == 3
    assert tuple(sample.target.size) == tuple(sample.image_CHW.shape[1:])
    assert len(sample.target) > 0 and int(sample.target.labels_N.max()) < len(categories)
    assert sample.target.masks().any(), "the window shows something that is annotated"
    assert sample.image_CHW.float().std() > 5, "and the image"


def test_hardly_any_row_has_no_image():
    assert sum(key(name)[:2] == NO_PACK for name in ROWS) == 2
