"""PNGs of predictions as numbers. A PNG whose size is not that of its annotation is refused."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from ...errors import DataError
from ...structures.images import decode_png, open_image

_GREY, _RGB, _RGBA = 0, 2, 6  # kinds of PNG that OpenCV reads as they are


def decode_ids(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """Return the ids of a COCO panoptic PNG (H, W, int32): R + 256 G + 65536 B.

    Raises:
        DataError: the PNG is damaged, in grey, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if depth == 8 and kind in (_RGB, _RGBA):
        bgr_HWC = decode_png(content, where)
        order = cv2.COLOR_BGR2RGBA if bgr_HWC.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        # Four bytes are read as one number, which is faster than shifts. The fourth, opacity, is no part of the id.
        return cv2.cvtColor(bgr_HWC, order).view("<i4")[..., 0] & 0xFFFFFF
    if kind in (_GREY, 4):
        raise DataError(f"{where} is grey, where the ids of segments are expected as RGB colours.")
    with open_image(content, where) as image:
        rgb_HW3 = np.array(image.convert("RGB")).astype(np.int32)
    return rgb_HW3[..., 0] | rgb_HW3[..., 1] << 8 | rgb_HW3[..., 2] << 16


def decode_values(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """Return the numbers of a PNG (H, W, uint8 or uint16): of a palette the indices, of equal channels one of them.

    Raises:
        DataError: the PNG is damaged, in colours, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if kind == _GREY and depth >= 8:
        values_HW = decode_png(content, where)
        if values_HW.ndim == 2:  # else it has a transparent value
            return values_HW
    with open_image(content, where) as image:
        values_HW = np.array(image.convert("RGB") if image.mode == "RGBA" else image)
    if values_HW.dtype == bool:
        return values_HW.astype(np.uint8)
    if values_HW.ndim == 3:
        if (values_HW != values_HW[..., :1]).any():
            raise DataError(f"{where} holds colours, where one class number per pixel is expected.")
        values_HW = np.ascontiguousarray(values_HW[..., 0])
    return values_HW


def decode_mask(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """Return the mask of a PNG of an object (H, W, bool), true where its brightness is not 0, as in cityscapesScripts.

    Raises:
        DataError: the PNG is damaged, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if kind == _GREY and depth == 8:
        return decode_png(content, where) != 0
    with open_image(content, where) as image:
        return np.array(image.convert("L")) != 0


def _head(content: bytes, size: tuple[int, int], where: str) -> tuple[int, int]:
    """Return the bits per channel and the kind of colour.

    An image of another size is refused before it takes memory.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        raise DataError(f"{where} is no PNG, or is cut off.", hint="Predictions are PNGs: other files lose values.")
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    if (height, width) != tuple(size):
        found, true = f"{height} x {width}", f"{size[0]} x {size[1]}"
        raise DataError(f"{where} has {found} pixels (height x width), its annotation {true}.")
    return depth, kind
