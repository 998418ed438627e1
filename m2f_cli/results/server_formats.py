"""Results as the evaluation servers take them.

    panoptic_val2017_NAME_results.zip         COCO panoptic: a json and a folder of that name with the PNGs in it
    cityscapes-semantic/CITY/FRAME_pred.png   the labelId of each pixel, 0 where there is none
    cityscapes-instance/CITY/FRAME_pred.txt   a line for each object: its mask, its labelId, its score
    cityscapes-instance/CITY/FRAME_pred/000_24.png   the masks, 255 on the object

FRAME is <city>_<sequence>_<frame>, by which Cityscapes finds a prediction. COCO's server for instances takes the
instances.json of the format coco-instance. All files are written under a temporary name and renamed.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..errors import ConfigError, DataError
from ..runtime import documents
from ..runtime.files import atomic, read_file, safe_name
from ..runtime.text import json_text
from ..structures.categories import Categories, load_categories
from . import writers as output
from .writers import add_suffix, for_tasks, write_image

if TYPE_CHECKING:
    from .types import Instances, PanopticMap, SemanticMap

PACKED = "panoptic_*_results.zip"
FRAME = re.compile(r"[^/_]+_\d+_\d+")
FRAMED = ("cityscapes-semantic", "cityscapes-instance")  # formats that name their files by the frame
UNLABELED = 0


# --- COCO -------------------------------------------------------------------------------------------------------------


def pack_panoptic(folder: Path, *, testset: str = "val2017", name: str = "m2f") -> Path:
    """Pack a folder with panoptic.json and panoptic/ (format coco-panoptic) for COCO's panoptic server.

    Args:
        folder: the folder of predictions.
        testset: val2017, test-dev2017, …
        name: the name of the algorithm, for the names of the files.

    Returns:
        FOLDER/panoptic_{testset}_{name}_results.zip.

    Raises:
        DataError: the folder holds no such predictions, or a PNG is missing.
    """
    stem = f"panoptic_{_word(testset) or 'val2017'}_{_word(name) or 'm2f'}_results"
    where = folder / "panoptic.json"
    try:
        document = read_file(where)
        pngs = [annotation["file_name"] for annotation in documents.parse_json(document, str(where))["annotations"]]
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{where} holds no predictions of segments: it has no annotations with a file_name.") from error
    strange = [png for png in pngs if not isinstance(png, str) or png != f"{safe_name(png.removesuffix('.png'))}.png"]
    if strange:
        raise DataError(f"{where} lists a PNG that no folder of predictions holds: {strange[0]!r}.")
    missing = next((png for png in pngs if not (folder / "panoptic" / png).is_file()), None)
    if missing is not None:
        raise DataError(f"{folder / 'panoptic' / missing} is missing, which panoptic.json lists.")
    path = folder / f"{stem}.zip"
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        archive.writestr(f"{stem}.json", document, zipfile.ZIP_DEFLATED)
        for png in pngs:  # PNGs are compressed already
            archive.write(folder / "panoptic" / png, f"{stem}/{png}", zipfile.ZIP_STORED)
    return path


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")


def pack_run(folder: Path, head: dict[str, Any]) -> Path:
    """Pack a run as `pack_panoptic` does, named by its split (val by default) and its model.

    Args:
        folder: the folder of predictions.
        head: the head of the run's journal, which holds the split and the model.
    """
    split = str(head.get("split") or "val")
    model = PurePosixPath(str(head.get("model") or "m2f")).name
    return pack_panoptic(folder, testset=split if split[-1:].isdigit() else f"{split}2017", name=model)


@for_tasks("panoptic")
def write_coco_panoptic_zip(result: PanopticMap, stem: Path) -> list[Path]:
    """Write STEM.zip: the JSON and the PNG of one image as the server takes them. A run shares one archive."""
    path, document = add_suffix(stem, ".zip"), output.panoptic_document(result, stem.name)
    with atomic(path) as part, zipfile.ZipFile(part, "w") as archive:
        archive.writestr(f"{stem.name}.json", json_text(document))
        with archive.open(f"{stem.name}/{stem.name}.png", "w") as png:
            output.panoptic_image(result).save(png, format="PNG")
    return [path]


# --- Cityscapes -------------------------------------------------------------------------------------------------------


def cityscapes_ids(categories: Categories) -> list[int]:
    """Return the labelId of each class, by its name: models may number their classes in another way.

    Raises:
        ConfigError: Cityscapes does not have a class.
    """
    official = {category.name: category.id for category in load_categories("cityscapes")}
    strange = [category.name for category in categories if category.name not in official]
    if strange:
        raise ConfigError(
            f"Cityscapes has no class {strange[0]!r}; the formats of its server hold its own classes only.",
            hint=f"Its classes are: {', '.join(official)}.",
        )
    return [official[category.name] for category in categories]


@for_tasks("panoptic", "semantic")
def write_cityscapes_semantic(result: PanopticMap | SemanticMap, stem: Path) -> list[Path]:
    """Write FRAME_pred.png: the labelId of each pixel (8 bits), 0 where there is none.

    Raises:
        ConfigError: Cityscapes does not have a class or the name.
    """
    labels_HW = label_ids(result)
    return write_image(add_suffix(_frame(stem), "_pred.png"), Image.fromarray(labels_HW), format="PNG")


def label_ids(result: PanopticMap | SemanticMap) -> np.ndarray:
    """Return the labelId of each pixel (H, W, uint8), 0 where there is none."""
    ids = cityscapes_ids(result.categories)
    labels_HW = np.full(result.size, UNLABELED, dtype=np.uint8)
    for region in result.regions():
        labels_HW[region.window][region.mask_HW] = ids[region.label]
    return labels_HW


@for_tasks("instance")
def write_cityscapes_instance(result: Instances, stem: Path) -> list[Path]:
    """Write FRAME_pred.txt with a line "mask labelId score" for each object that has pixels, and the masks.

    The masks (8 bits, 255 on the object) are in the folder FRAME_pred beside the text; paths are relative to the text.

    Raises:
        ConfigError: Cityscapes does not have a class or the name.
    """
    ids, frame = cityscapes_ids(result.categories), _frame(stem)
    masks, lines = add_suffix(frame, "_pred"), []
    files = []
    for k, (label, score, rle) in enumerate(zip(result.labels_N, result.scores_N, result.rles, strict=True)):
        if coco_mask.area(rle):
            path = masks / f"{k:03d}_{ids[int(label)]}.png"
            files += write_image(path, Image.fromarray(coco_mask.decode(rle) * np.uint8(255)), format="PNG")
            lines.append(f"{masks.name}/{path.name} {ids[int(label)]} {float(score)!r}\n")
    text = add_suffix(frame, "_pred.txt")
    with atomic(text) as part:
        part.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return [text, *files]


def frame_of(stem: Path) -> Path | None:
    """Return the stem of Cityscapes' files for a result; None where the name has no frame."""
    frame = FRAME.match(stem.name)
    return None if frame is None else stem.with_name(frame.group())


def _frame(stem: Path) -> Path:
    frame = frame_of(stem)
    if frame is None:
        raise ConfigError(
            f"Cityscapes finds predictions by names such as aachen_000000_000019, not {stem.name!r}.",
            hint="For other images use label-png or coco-instance.",
        )
    return frame
