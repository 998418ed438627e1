"""Files of annotations: JSON, and images whose pixels are numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import DataError
from ...runtime import documents
from ...structures.images import open_image
from ..records import is_file

_ONE_VALUE = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with lists under `keys`.

    Raises:
        DataError: the file is unreadable, damaged (with line and column), or not such an object.
    """
    tree = documents.read_json(path)
    for key in keys:
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path} has no list {key!r}.", hint=f"It should be an object with {', '.join(keys)}.")
    return tree


def read_values(path: Path) -> np.ndarray:
    """Read a mask whose pixels are numbers: (H, W), uint8, uint16 or int32. A palette image gives its indices.

    Grey images that were saved as RGB are accepted. Colours are refused.

    Raises:
        DataError: the file is missing, unreadable, or in colours.
    """
    with _opened(path) as image:
        if image.mode in _ONE_VALUE:
            values_HW = np.array(image)
            return values_HW.astype(np.uint8) if values_HW.dtype == bool else values_HW
        values_HWC = np.array(image)
    if values_HWC.dtype == np.uint8 and values_HWC.ndim == 3 and (values_HWC[..., 1:3] == values_HWC[..., :1]).all():
        return np.ascontiguousarray(values_HWC[..., 0])
    raise DataError(
        f"{path} holds colours ({values_HWC.shape[-1]} channels), where one class number per pixel is expected.",
        hint="Convert the colours to class numbers, one 8-bit or 16-bit channel.",
    )


def read_ids(path: Path) -> np.ndarray:
    """Read a COCO panoptic PNG: (H, W) int32, id = R + 256 G + 65536 B.

    Raises:
        DataError: the file is missing, unreadable, or not in colours.
    """
    with _opened(path) as image:
        return _ids(image, str(path))


def decode_ids(content: bytes, where: str) -> np.ndarray:
    """Read a COCO panoptic PNG from the content of its file, as `read_ids` does from a file.

    Args:
        where: name of the file in errors.
    """
    with open_image(content, where) as image:
        return _ids(image, where)


def _ids(image: Image.Image, where: str) -> np.ndarray:
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{where} is of the kind {image.mode!r}, where ids as RGB colours are expected.")
    rgba_HW4 = np.array(image.convert("RGBA"))
    return rgba_HW4.view("<u4")[..., 0].astype(np.int32) & 0xFFFFFF


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a mask, without turning it by its EXIF orientation.

    Its numbers are read as the tool that drew them stored them.
    """
    if not is_file(path):
        raise DataError(f"The mask {path} is missing.", hint="Copy it there, or leave its image out.")
    with open_image(path) as image:
        yield image
