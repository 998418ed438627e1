"""Reading and writing of the pixels of annotations, and the rows of a COCO JSON about them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from ...errors import DataError
from ...runtime.trees import Tree
from ...structures import images as image_files


def open_image(tree: Tree, name: str) -> Image.Image:
    """Open an image of the tree.

    Raises:
        DataError: the file is missing, or is no image that can be read.
    """
    with image_files.open_image(tree.read(name), f"{tree}: {name}") as image:
        return image


def read_values(tree: Tree, name: str) -> np.ndarray:
    """Return the numbers of a one-channel image, (H, W). A palette image gives its indices.

    Raises:
        DataError: the file is missing, damaged, or in colours.
    """
    values_HW = np.array(open_image(tree, name))
    if values_HW.ndim != 2:
        raise DataError(f"{tree}: {name} holds colours, where one number per pixel is expected.")
    return values_HW


def read_rgb(tree: Tree, name: str) -> np.ndarray:
    """Return the channels of a colour image, (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, damaged, or not in colours.
    """
    image = open_image(tree, name)
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{tree}: {name} is of the kind {image.mode!r}, where colours are expected.")
    return np.array(image.convert("RGB"))


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def box_of(mask_HW: np.ndarray) -> list[int]:
    """Return x, y, width, height of the pixels that are set, or zeros if there are none."""
    columns, rows = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (0, 1))
    if not len(columns):
        return [0, 0, 0, 0]
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def segment_info(key: int, category_id: int, mask_HW: np.ndarray, iscrowd: int = 0) -> dict[str, Any]:
    """Return the row of a segment in COCO's panoptic JSON."""
    area, bbox = int(np.count_nonzero(mask_HW)), box_of(mask_HW)
    return {"id": int(key), "category_id": int(category_id), "area": area, "bbox": bbox, "iscrowd": iscrowd}


def image_info(name: str, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return the row of an image in COCO's JSON files. `size` is (height, width)."""
    return {"id": name, "file_name": file_name, "width": int(size[1]), "height": int(size[0])}
