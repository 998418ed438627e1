"""Reading of images: a file, PIL image or array becomes (H, W, 3) uint8 RGB, or one clear DataError.

All image files are opened here, so that formats and limits of memory are decided in one module.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .rgb import (
    MAX_PIXELS,
    NoRGBError,
    TooLargeError,
    array_to_rgb,
    check_size,
    identify,
    image_to_rgb,
    tiff_to_rgb,
    upright,
    upright_size,
)
from .tiff import TiffHead

# Errors on damaged files: Pillow, its plugins and OpenCV do not translate those of the code that they call.
DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Warning,
)
# Offset and first bytes of files that are mistaken for images, their kind, and advice.
_LOOKALIKES = (
    (0, b"%PDF", "a PDF document", "Export its pages as PNG or JPEG first."),
    (0, b"%!PS", "a PostScript document", "Export it as PNG or JPEG first."),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document", "Export it as PNG or JPEG first."),
    (0, b"8BPS", "a Photoshop document", "Export it as PNG or TIFF first."),
    (0, b"PK\x03\x04", "a zip archive", "Unpack it first."),
    (0, b"version https://git-lfs", "a Git LFS pointer", "Run: git lfs pull"),
    (4, b"ftyphei", "a HEIC photo", "Convert it to JPEG or PNG first."),
    (4, b"ftypmif1", "a HEIF photo", "Convert it to JPEG or PNG first."),
    (4, b"ftyp", "a video or photo container", "Save a frame as PNG or JPEG first."),
)


def silence_pillow() -> None:
    """Silence Pillow's warning about large images in this process: m2f has limits and errors of its own."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_image(
    source: str | os.PathLike[str] | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read an image as it is displayed.

    EXIF orientation is applied, transparency is laid over white, and 16-bit values keep their high byte. Of animations
    and multi-page files, the first frame is read. Floats are accepted from 0 to 1, or as whole numbers from 0 to 255.

    Args:
        source: a file, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, whole
            numbers or floats.
        max_pixels: files and PIL images with more pixels are refused before they are unpacked.

    Returns:
        (H, W, 3) uint8, RGB; a copy.

    Raises:
        DataError: the file is missing, empty, damaged, too large, or no image. The message says which, and what to do.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, f"The array of shape {source.shape} and type {source.dtype}")
    if isinstance(source, Image.Image):
        with _decoding("The PIL image"):
            check_size(source.size[::-1], max_pixels)
            return image_to_rgb(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), str(Path(source)), max_pixels)
    raise DataError(
        f"An image is a path, a PIL image or a NumPy array, not {type(source).__name__}.",
        hint="For a tensor: pass tensor.permute(1, 2, 0).numpy()." if hasattr(source, "permute") else None,
    )


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Read an image from the content of its file, as `read_image` does from a file.

    Args:
        content: the bytes of the file.
        where: name of the image in errors.

    Raises:
        DataError: as in `read_image`.
    """
    return _from_file(content, where, MAX_PIXELS)


def image_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) that `read_image` would give, from the head of the file.

    Raises:
        DataError: as in `read_image`.
    """
    with _identified(path, str(path), MAX_PIXELS) as image:
        if not isinstance(image, TiffHead):
            return upright_size(image)
        height, width = image.size
        return (width, height) if image.orientation in (5, 6, 7, 8) else (height, width)


@contextmanager
def open_image(source: Path | bytes, where: str | None = None) -> Iterator[Image.Image]:
    """Open and load an image of an allowed format and size, for code that needs its values unconverted.

    Errors of decoders in the block become a DataError, so the block should do nothing else.

    Args:
        source: a file, or the content of one.
        where: name of the image in errors; by default the path.

    Raises:
        DataError: as in `read_image`.
    """
    where = str(source) if where is None else where
    with _identified(source, where, MAX_PIXELS) as image:
        if isinstance(image, TiffHead):
            raise DataError(f"{where} is a TIFF of a kind that cannot be read.", hint="Save it with 8 or 16 bits.")
        image.load()  # NumPy would do it, and pass over some errors of decoders
        yield image


def open_small(content: bytes, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a whole JPEG in grey, at the smallest size that its decoder offers.

    Args:
        content: the bytes of the file.
        edge: least height and width of the small image, in pixels.

    Returns:
        The small image, upright, and the (height, width) of the whole one.

    Raises:
        DataError: as in `read_image`.
    """
    with _identified(content, "The JPEG", MAX_PIXELS) as image:
        if isinstance(image, TiffHead):
            raise ValueError("it is a TIFF")
        size = upright_size(image)
        image.draft("L", (edge, edge))
        return upright(image), size


def decode_png(content: bytes, where: str) -> np.ndarray:
    """Decode a PNG with OpenCV, which is faster than Pillow, in BGR order and at its own depth.

    Args:
        content: the bytes of the file.
        where: name of the image in errors.

    Raises:
        DataError: the image is too large, damaged or cut off.
    """
    if len(content) < 24 or content[:8] != b"\x89PNG\r\n\x1a\n":
        raise DataError(f"{where} is no PNG, or is cut off.", hint="Copy or write it again.")
    width, height = struct.unpack(">II", content[16:24])
    import cv2

    with _decoding(where):
        check_size((height, width))
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise ValueError(error.err or str(error)) from error
    if pixels is None:
        raise DataError(f"{where} is damaged or cut off.", hint="Copy or write it again.")
    return pixels


# --- files ------------------------------------------------------------------------------------------------------------


def _from_file(source: Path | bytes, where: str, max_pixels: int) -> np.ndarray:
    with _identified(source, where, max_pixels) as image:
        if not isinstance(image, TiffHead):
            return image_to_rgb(image)
    content = source.read_bytes() if isinstance(source, Path) else source
    with _decoding(where):
        return tiff_to_rgb(content, image)


@contextmanager
def _identified(source: Path | bytes, where: str, max_pixels: int) -> Iterator[Image.Image | TiffHead]:
    """Yield the image of a file, its size checked; the head alone of a TIFF that Pillow does not know."""
    if isinstance(source, Path):
        _check_file(source)
    with _decoding(where), source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        image, tiff = identify(file, max_pixels)
        known = tiff if image is None else image
        if known is None:
            file.seek(0)
            raise _not_an_image(where, file.read(512))
        yield known


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Turn errors of decoders into one sentence about the image.

    Raises:
        DataError: the block raised one of them.
    """
    try:
        yield
    except NoRGBError as error:
        raise DataError(f"{where} {error.message}", hint=error.hint) from error
    except PermissionError as error:
        raise DataError(f"{where} may not be read: permission denied.") from error
    except TooLargeError as error:
        raise _too_large(where, str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where, str(error).split(", could be")[0].lower()) from error
    except MemoryError as error:
        hint = "Scale it down or cut it into tiles."
        raise DataError(f"{where} needs more memory than there is.", hint=hint) from error
    except DECODER_ERRORS as error:
        raise _damaged(where, error) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read: permission denied.") from error
    except (OSError, ValueError) as error:  # a name that no file can have
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder, not an image.")
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
        raise DataError(f"{path} is no regular file.", hint="Save the image to a file first.")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).", hint="Copy or download it again.")


# --- arrays and errors ------------------------------------------------------------------------------------------------


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
    try:
        return array_to_rgb(pixels)
    except NoRGBError as error:
        raise DataError(f"{name} {error.message}", hint=error.hint) from error


def _too_large(where: str, what: str) -> DataError:
    return DataError(
        f"{where} is too large: {what}.",
        hint="Scale it down or cut it into tiles; a small file that claims this size may be a decompression bomb.",
    )


def _damaged(where: str, error: BaseException) -> DataError:
    reason: Any = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{where} is damaged or cut off: {reason.rstrip('.')}.", hint="Copy or download it again.")


def _not_an_image(where: str, head: bytes) -> DataError:
    if not head:
        return DataError(f"{where} is empty (0 bytes).", hint="Copy or download it again.")
    for offset, magic, what, advice in _LOOKALIKES:
        if head[offset:].startswith(magic):
            return DataError(f"{where} is {what}, not an image.", hint=advice)
    if head.lstrip()[:1] == b"<":
        return DataError(f"{where} is a web page or XML, not an image.", hint="A failed download? Fetch it again.")
    if _is_text(head):
        return DataError(f"{where} is text, not an image.", hint="Give JPEG, PNG, WebP, TIFF or BMP files.")
    return DataError(
        f"{where} is not an image that can be read (it starts with {head[:8].hex(' ')}).",
        hint="Give JPEG, PNG, WebP, TIFF or BMP files.",
    )


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter.isspace() for letter in text)
