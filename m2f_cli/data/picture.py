"""Pictures in: any file, PIL image or array that people have becomes (H, W, 3) uint8 RGB, or one clear DataError."""

from __future__ import annotations

import codecs
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError

MAX_PIXELS = 178_956_970  # where Pillow itself refuses: 512 MiB of RGB
WHITE = (255, 255, 255, 255)

# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
           struct.error, zlib.error)  # fmt: skip
# The first bytes of files that are mistaken for pictures, and what to tell their owner.
_LOOKALIKES = (
    (0, b"%PDF", "a PDF document", "Export its pages as PNG or JPEG first."),
    (0, b"PK\x03\x04", "a zip archive", "Unpack it first."),
    (0, b"version https://git-lfs", "a Git LFS pointer", "Run: git lfs pull"),
    (4, b"ftyphei", "a HEIC photo", "Convert it to JPEG or PNG first."),
    (4, b"ftypmif1", "a HEIF photo", "Convert it to JPEG or PNG first."),
    (4, b"ftyp", "a video or photo container", "Save a frame as PNG or JPEG first."),
)


def read_picture(
    source: str | os.PathLike[str] | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a picture as people see it.

    EXIF orientation is applied; transparency is laid over white; 16-bit values keep their high byte; of animations
    and multi-page files the first frame is read. Floats are accepted as 0 to 1, or as whole numbers from 0 to 255.

    Args:
        source: a file, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, whole
            numbers or floats.
        max_pixels: files and PIL images with more pixels are refused before they are unpacked.

    Returns:
        (H, W, 3) uint8, RGB, a copy of its own.

    Raises:
        DataError: missing, empty, damaged, too large, or not a picture; the message says which and what to do.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, f"The array of shape {source.shape} and type {source.dtype}")
    if isinstance(source, Image.Image):
        return _from_pil(source, "The PIL image", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), max_pixels)
    raise DataError(
        f"A picture is a path, a PIL image or a NumPy array, not {type(source).__name__}.",
        hint="For a tensor: pass tensor.permute(1, 2, 0).numpy()." if hasattr(source, "permute") else None,
    )


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the pixels that `read_picture` gives, from the head of the file where that is possible.

    Raises:
        DataError: as `read_picture`.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else image.size[::-1]
    except (Image.DecompressionBombError, *_DAMAGE):
        return read_picture(path).shape[:2]  # it knows rare TIFFs, and says what is wrong with the others


def _from_file(path: Path, max_pixels: int) -> np.ndarray:
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise DataError(f"{path} is empty (0 bytes).", hint="Copy or download it again.")
        with Image.open(path) as image:
            return _from_pil(image, str(path), max_pixels)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a picture.") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read: permission denied.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(path), str(error).split(" could be")[0], max_pixels) from error
    except UnidentifiedImageError as error:
        return _from_tiff(path, error)
    except _DAMAGE as error:
        raise _damaged(str(path), error) from error


def _from_tiff(path: Path, error: UnidentifiedImageError) -> np.ndarray:
    """What Pillow does not know: OpenCV reads several colour TIFFs of 16-bit and float values; the rest is refused."""
    content = path.read_bytes()
    if content[:4] not in (b"II*\0", b"MM\0*"):
        raise _not_a_picture(path, content[:512]) from error
    import cv2

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"{path} is a TIFF of a kind that cannot be read.", hint="Save it as 8-bit RGB.") from error
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] in (3, 4) else pixels
    return _from_array(pixels, str(path))


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    if image.width * image.height > max_pixels:
        raise _too_large(name, f"Image size ({image.width * image.height} pixels)", max_pixels)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            return _from_array(_deep_values(upright, name), name)
        return np.array(_flatten(upright).convert("RGB"))
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _deep_values(image: Image.Image, name: str) -> np.ndarray:
    """The values of a grey picture with more than 8 bits. Pillow before 11 opens 16-bit PNGs as 32-bit integers."""
    values = np.asarray(image)
    if image.mode != "I":
        return values
    if values.min() < 0 or values.max() > 65535 or (image.format or "PNG") not in ("PNG", "PPM"):
        raise DataError(
            f"{name} holds 32-bit whole numbers from {values.min()} to {values.max()}, a range without a meaning.",
            hint="Scale it to 8 or 16 bits.",
        )
    return values.astype(np.uint16)


def _flatten(image: Image.Image) -> Image.Image:
    """Lay transparent pictures over white, as a page would show them."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba)


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
        hint = "Move the channels to the end: np.moveaxis(x, 0, -1)." if channels_first else None
        raise DataError(f"{name} should be (H, W), (H, W, 3) or (H, W, 4), not {pixels.shape}.", hint=hint)
    if pixels.size == 0:
        raise DataError(f"{name} has no pixels.")
    values = _to_uint8(pixels, name)
    if values.shape[2] == 4:
        return np.array(_flatten(Image.fromarray(values)).convert("RGB"))
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3))).copy()


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    kind = pixels.dtype.kind
    if pixels.dtype == np.uint8:
        return pixels
    if kind == "b":
        return pixels.astype(np.uint8) * 255
    if kind == "u" and pixels.dtype.itemsize == 2:
        return (pixels >> 8).astype(np.uint8)
    if kind == "f":
        return _floats_to_uint8(pixels, name)
    if kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255:
        return pixels.astype(np.uint8)
    raise DataError(f"{name} has {_range(pixels)}.", hint="Give uint8 from 0 to 255, uint16, or floats from 0 to 1.")


def _floats_to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(pixels).all():
        raise DataError(f"{name} holds NaN or infinity.", hint="Replace them, for example with np.nan_to_num.")
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return np.rint(pixels * 255.0).astype(np.uint8)
    if low >= 0 and high <= 255 and np.array_equal(pixels, np.rint(pixels)):
        return pixels.astype(np.uint8)
    raise DataError(f"{name} has {_range(pixels)}.", hint="Scale floats to the range from 0 to 1.")


def _range(pixels: np.ndarray) -> str:
    if pixels.dtype.kind not in "iuf":
        return f"values of type {pixels.dtype}"
    return f"{pixels.dtype} values from {pixels.min():g} to {pixels.max():g}"


def _too_large(name: str, what: str, max_pixels: int) -> DataError:
    return DataError(
        f"{name} is too large: {what.lower()} is above the limit of {max_pixels:,} pixels.",
        hint="Scale it down or cut it into tiles; a small file that claims this size may be a decompression bomb.",
    )


def _damaged(name: str, error: BaseException) -> DataError:
    reason: Any = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{name} is damaged or cut off: {reason.rstrip('.')}.", hint="Copy or download it again.")


def _not_a_picture(path: Path, head: bytes) -> DataError:
    for offset, magic, what, advice in _LOOKALIKES:
        if head[offset:].startswith(magic):
            return DataError(f"{path} is {what}, not a picture.", hint=advice)
    if head.lstrip()[:1] == b"<":
        return DataError(f"{path} is a web page or XML, not a picture.", hint="A failed download? Fetch it again.")
    if _is_text(head):
        return DataError(f"{path} is text, not a picture.", hint="Give JPEG, PNG, WebP, TIFF or BMP files.")
    return DataError(
        f"{path} is not a picture that can be read (it starts with {head[:8].hex(' ')}).",
        hint="Give JPEG, PNG, WebP, TIFF or BMP files.",
    )


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)
