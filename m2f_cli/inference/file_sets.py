"""Files of a folder or of a zip archive, by their names relative to it; and PNGs as numbers."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from ..errors import DataError

LARGEST = 4 << 30  # bytes of one file of an archive: more is no prediction but a bomb
_IGNORED = "__MACOSX"
_GREY, _RGB, _RGBA = 0, 2, 6  # kinds of PNG that OpenCV reads as they are
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class FileSet(Protocol):
    """Names have "/" between folders, and never lead out of the set."""

    def names(self, suffix: str, *, deep: bool = True) -> list[str]:
        """Names that end in `suffix`, sorted, without hidden files; not `deep`: of the folder itself only."""

    def has(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes:
        """Raises:
        DataError: missing, unreadable, or a name that leads out of the set.
        """

    def below(self, folder: str) -> FileSet: ...


@dataclass(frozen=True)
class Folder:
    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def names(self, suffix: str, *, deep: bool = True) -> list[str]:
        found = self.root.rglob(f"*{suffix}") if deep else self.root.glob(f"*{suffix}")
        files = (path for path in found if not path.name.startswith(".") and path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def has(self, name: str) -> bool:
        return _is_safe(name) and (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        _refuse_evil(name, self)
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.root / name} cannot be read: {error.strerror or error}.") from error

    def below(self, folder: str) -> Folder:
        return Folder(Path(os.path.normpath(self.root / folder)))


@dataclass(frozen=True)
class Archive:
    """Of a zip file, read without unpacking it. Threads may read at the same time."""

    path: Path
    file: zipfile.ZipFile
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.prefix}".rstrip("/")

    def names(self, suffix: str, *, deep: bool = True) -> list[str]:
        inside = [name.removeprefix(self.prefix) for name in self.file.namelist() if name.startswith(self.prefix)]
        plain = (name for name in inside if _IGNORED not in name and not PurePosixPath(name).name.startswith("."))
        return sorted(name for name in plain if name.endswith(suffix) and (deep or "/" not in name))

    def has(self, name: str) -> bool:
        return self.prefix + name in self.file.NameToInfo

    def read(self, name: str) -> bytes:
        _refuse_evil(name, self)
        if not self.has(name):
            raise DataError(f"{self.path} holds no {self.prefix}{name}.")
        info = self.file.getinfo(self.prefix + name)
        if info.file_size > LARGEST:
            raise DataError(f"{self.path}: {info.filename} claims {info.file_size:,} bytes; {LARGEST:,} are allowed.")
        try:
            return self.file.read(info)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, *_DAMAGE) as error:
            raise DataError(f"{self.path}: {info.filename} cannot be unpacked: {error}.") from error

    def below(self, folder: str) -> Archive:
        parts = PurePosixPath(os.path.normpath(f"{self.prefix}{folder}")).parts
        inside = [part for part in parts if part != "."]
        return Archive(self.path, self.file, "/".join([*inside, ""]) if inside else "")


def open_archive(path: Path) -> Archive:
    """
    Raises:
        DataError: no zip file, a damaged one, or one with names that lead out of it.
    """
    try:
        archive = Archive(path, zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path} is no zip file that can be read: {error}.", hint="Copy or make it again.") from error
    for name in archive.file.namelist():
        _refuse_evil(name.rstrip("/"), archive)
    return archive


def _is_safe(name: str) -> bool:
    parts = re.split(r"[\\/]", name)  # archives of Windows have "\\"
    return bool(name) and ".." not in parts and bool(parts[0]) and not re.match("[A-Za-z]:", name) and "\0" not in name


def _refuse_evil(name: str, where: FileSet) -> None:
    if not _is_safe(name):
        raise DataError(f"{where}: the name {name!r} leads out of it.", hint="Such a file is not to be trusted.")


def parse_json(content: bytes, where: str) -> Any:
    """
    Raises:
        DataError: no valid json, with line and column.
    """
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not valid json: {error}.", hint="Copy or write it again.") from error


# --- PNGs -------------------------------------------------------------------------------------------------------------


def decode_ids(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """A COCO panoptic PNG: (H, W) int32, id = R + 256 G + 65536 B.

    Raises:
        DataError: damaged, in grey, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if depth == 8 and kind in (_RGB, _RGBA):
        bgr_HWC = _opencv(content, where)
        order = cv2.COLOR_BGR2RGBA if bgr_HWC.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        # Four bytes are one number, a fifth faster than shifts; the fourth, opaque or not, is no part of the id.
        return cv2.cvtColor(bgr_HWC, order).view("<i4")[..., 0] & 0xFFFFFF
    if kind in (_GREY, 4):
        raise DataError(f"{where} is grey, where the ids of segments are expected as RGB colours.")
    rgb_HW3 = np.array(_pillow(content, where).convert("RGB")).astype(np.int32)
    return rgb_HW3[..., 0] | rgb_HW3[..., 1] << 8 | rgb_HW3[..., 2] << 16


def decode_values(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """A PNG of numbers: (H, W) uint8 or uint16; of a palette the indices; of equal channels one.

    Raises:
        DataError: damaged, in colours, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if kind == _GREY and depth >= 8:
        values_HW = _opencv(content, where)
        if values_HW.ndim == 2:  # else it has a transparent value
            return values_HW
    image = _pillow(content, where)
    values_HW = np.array(image.convert("RGB") if image.mode == "RGBA" else image)
    if values_HW.dtype == bool:
        return values_HW.astype(np.uint8)
    if values_HW.ndim == 3:
        if (values_HW != values_HW[..., :1]).any():
            raise DataError(f"{where} holds colours, where one class number per pixel is expected.")
        values_HW = np.ascontiguousarray(values_HW[..., 0])
    return values_HW


def decode_mask(content: bytes, size: tuple[int, int], where: str) -> np.ndarray:
    """A PNG of an object: (H, W) bool, true where its brightness is not 0, as cityscapesScripts reads it.

    Raises:
        DataError: damaged, or not of `size`.
    """
    depth, kind = _head(content, size, where)
    if kind == _GREY and depth == 8:
        return _opencv(content, where) != 0
    return np.array(_pillow(content, where).convert("L")) != 0


def _head(content: bytes, size: tuple[int, int], where: str) -> tuple[int, int]:
    """Bits per channel and kind of colour. A picture of another size is refused before it takes memory."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        raise DataError(f"{where} is no PNG, or is cut off.", hint="Predictions are PNGs: other files lose values.")
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    if (height, width) != tuple(size):
        found, true = f"{height} x {width}", f"{size[0]} x {size[1]}"
        raise DataError(f"{where} has {found} pixels (height x width), its annotation {true}.")
    return depth, kind


def _opencv(content: bytes, where: str) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"{where} is damaged or cut off.", hint="Copy or write it again.")
    return pixels


def _pillow(content: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except _DAMAGE as error:
        raise DataError(f"{where} is damaged or cut off: {error}.", hint="Copy or write it again.") from error
    return image
