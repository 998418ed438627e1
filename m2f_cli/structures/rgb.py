"""Reader of the pixels of an image file: upright RGB. Programs that m2f exports hold a copy of this file."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .tiff import TiffHead, read_tiff_head

# A list of our own, because some formats of Pillow start other programs (EPS) or are no images (FITS, MPEG, HDF5).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses: 512 MiB of RGB
MAX_BYTES = 8 * MAX_PIXELS  # of a decoded TIFF: four channels of 16 bits
WHITE = (255, 255, 255, 255)
VALUES_AT_ONCE = 1 << 22  # values of deep images that are converted together: more would only take memory

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN_EXIF = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class NoRGBError(ValueError):
    """Error for values that mean no colours.

    Args:
        message: description of the values, which follows the name of the image.
        hint: advice for the user.
    """

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class TooLargeError(ValueError):
    """Error for an image with more pixels, or a TIFF with more bytes, than the limits."""


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS, num_bytes: int = 0) -> None:
    """Refuse an image above the limits.

    Args:
        size: (height, width) in pixels.
        max_pixels: largest number of pixels.
        num_bytes: size of the decoded image.

    Raises:
        TooLargeError: the image is above a limit; the message has the number and the limit.
    """
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise TooLargeError(f"image size ({pixels} pixels) is above the limit of {max_pixels:,} pixels")
    if num_bytes > MAX_BYTES:
        raise TooLargeError(f"decoded it would take {num_bytes:,} bytes, and {MAX_BYTES:,} are allowed")


def identify(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image | None, TiffHead | None]:
    """Open an image of one of `FORMATS` without reading its pixels.

    Args:
        file: an open file. Given a path, Pillow misplaces the rows of a TIFF that is to be turned.
        max_pixels: largest number of pixels.

    Returns:
        The image, or None where Pillow does not know the format; the head of the file, or None where it is no TIFF.

    Raises:
        TooLargeError: the image has more pixels or bytes than the limits.
        Exception: the head is damaged; Pillow raises errors of many kinds.
    """
    head = read_tiff_head(file)
    if head is not None:
        check_size(head.size, max_pixels, head.num_bytes)
    for load_plugins in (Image.preinit, Image.init):  # most files need the few plugins of the first alone
        load_plugins()
        file.seek(0)
        try:
            image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError:
            continue
        check_size(image.size[::-1], max_pixels)
        return image, head
    return None, head


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 for other values and for broken EXIF."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # its EXIF may lie behind the pixels
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN_EXIF:
        return 1
    return next((turn for turn in _TURNS if value == turn), 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) that `upright` would give, of an image that is open but not loaded."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow 11 on turns the size when it opens a TIFF, before that when it loads it
        tags = image.tag_v2  # type: ignore[attr-defined]  # of TiffImageFile, whose import most files do not need
        width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (width, height) if orientation(image) >= 5 else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """Load an image and turn it as its EXIF says. Return the image itself where nothing is to be turned."""
    image.load()  # Pillow itself turns a TIFF here, and removes its tag
    return turned(image, orientation(image))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image by its EXIF orientation, 1 to 8. Return the image itself where nothing is to be turned."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def image_to_rgb(image: Image.Image) -> np.ndarray:
    """Return an image as (H, W, 3) uint8: upright, transparency over white, the high byte of 16-bit values.

    Raises:
        NoRGBError: the values mean no colours.
        Exception: the pixels are damaged; Pillow raises errors of many kinds.
    """
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return array_to_rgb(_deep_values(image))
    return np.array(_flatten(image).convert("RGB"))


def tiff_to_rgb(content: bytes, head: TiffHead) -> np.ndarray:
    """Return as (H, W, 3) uint8 a TIFF that Pillow does not know, such as 16-bit or float colours, read by OpenCV.

    Args:
        content: the whole file. The caller has checked the size of its image.
        head: the head of the file.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
        NoRGBError: OpenCV does not know the format either, or the values mean no colours.
        ValueError: the file is damaged.
    """
    import cv2

    try:
        values = cv2.imdecode(np.frombuffer(head.unturned(content), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(error.err or str(error)) from error
    if values is None or not all(head.size):
        raise NoRGBError("is a TIFF of a kind that cannot be read.", "Save it as 8-bit RGB.")
    values = to_uint8(values)
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return np.array(turned(Image.fromarray(array_to_rgb(values)), head.orientation))


def array_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return an array as (H, W, 3) uint8.

    Args:
        pixels: (H, W), or (H, W, C) of grey, RGB or RGBA.

    Raises:
        NoRGBError: the array has another shape, no pixels, or values that mean no colours.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        hint = "Move the channels to the end: np.moveaxis(x, 0, -1)." if channels_first else None
        raise NoRGBError(f"should be (H, W), (H, W, 3) or (H, W, 4), not {pixels.shape}.", hint)
    if pixels.size == 0:
        raise NoRGBError("has no pixels.")
    values = to_uint8(pixels)
    if values.shape[2] == 4:
        return np.array(_flatten(Image.fromarray(values)).convert("RGB"))
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return values of any type as uint8. An array of uint8 is returned itself.

    Raises:
        NoRGBError: the range of the values has no meaning as colours.
    """
    kind = pixels.dtype.kind
    if pixels.dtype == np.uint8:
        return pixels
    if kind == "b":
        return pixels.astype(np.uint8) * 255
    if kind == "u" and pixels.dtype.itemsize == 2:
        return (pixels >> 8).astype(np.uint8)
    if kind == "f":
        return _floats_to_uint8(pixels)
    if kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    raise NoRGBError(f"has {_range(pixels)}.", "Give uint8 from 0 to 255, uint16, or floats from 0 to 1.")


def _deep_values(image: Image.Image) -> np.ndarray:
    """Return the values of a grey image with more than 8 bits. Pillow before 11 opens 16-bit PNGs as 32-bit."""
    values = np.asarray(image)
    if image.mode != "I":
        return values
    if values.min() < 0 or values.max() > 65535 or (image.format or "PNG") not in ("PNG", "PPM"):
        raise NoRGBError(
            f"holds 32-bit whole numbers from {values.min()} to {values.max()}, a range without a meaning.",
            "Scale it to 8 or 16 bits.",
        )
    return values.astype(np.uint16)


def _flatten(image: Image.Image) -> Image.Image:
    """Lay a transparent image over white."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba)


def _floats_to_uint8(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())  # NaN where one value is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NoRGBError("holds NaN or infinity.", "Replace them, for example with np.nan_to_num.")
    rows = max(1, VALUES_AT_ONCE // max(1, pixels[0].size))
    parts = [slice(start, start + rows) for start in range(0, len(pixels), rows)]
    values = np.empty(pixels.shape, np.uint8)
    if low >= 0 and high <= 1:
        for part in parts:
            values[part] = np.rint(pixels[part] * 255.0)
        return values
    if low >= 0 and high <= 255 and all(np.array_equal(pixels[part], np.rint(pixels[part])) for part in parts):
        return pixels.astype(np.uint8)
    raise NoRGBError(f"has {_range(pixels)}.", "Scale floats to the range from 0 to 1.")


def _range(pixels: np.ndarray) -> str:
    if pixels.dtype.kind not in "iuf":
        return f"values of type {pixels.dtype}"
    return f"{pixels.dtype} values from {pixels.min():g} to {pixels.max():g}"
