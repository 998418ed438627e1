"""Files in a zip or tar, which are read in place. `runtime/trees.py` gives them as trees of files.

Archives are not trusted: no name leads out of them, links are no files, and what is unpacked stays within limits that
the size of the archive sets.
"""

from __future__ import annotations

import functools
import hashlib
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import DataError

LARGEST = 4 << 30  # bytes of one file, of a folder or an archive: more is no part of a data set but a bomb
LARGEST_IMAGE = 1 << 30  # bytes of one image; the largest that can be read has less, even unpacked
MOST_FILES = 4_000_000  # of an archive
MOST_DIRECTORY = 1 << 29  # bytes of a zip's table of contents, which Python reads whole
MOST_GROWTH = 200  # times the packed size: json, text and masks stay below, what only claims to be them does not
FREE_GROWTH = 64 << 20  # bytes of a file, and
FREE_TOTAL = 4 << 30  # of an archive, that may grow more: a small uncompressed mask may hold but one value
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")
_CHUNK = 1 << 20  # bytes
_LONGEST_END = 1 << 17  # bytes that the end of a zip takes: its records, and a remark of 64 kB
_LOCAL_HEADER = 30  # bytes before the name of a file in a zip
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstd"}
_HALF_A_DOWNLOAD = "It may be half a download: fetch it again."
DAMAGE = (  # what Python's readers of archives raise for damaged ones
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)


class ArchiveFile(Protocol):
    """The file of an archive: a `Path`, or what stands for a file elsewhere. It is hashable; its text is its name."""

    def open(self, mode: Literal["rb"], /) -> Any: ...

    def stat(self) -> Any: ...

    def is_file(self) -> bool: ...


def refuse_other_content(file: Path, published: str) -> None:
    """
    Args:
        published: the file's MD5 or SHA-1 in hexadecimal digits, as data sets publish it: it finds damage, not malice.

    Raises:
        DataError: the file cannot be read, or has another one.
    """
    digest = hashlib.new({32: "md5", 40: "sha1"}[len(published)], usedforsecurity=False)
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if digest.hexdigest() != published:
        hint = "The download is damaged, or of another release: fetch it again."
        raise DataError(
            f"{file} has the {digest.name.upper()} {digest.hexdigest()}; {published} is published.", hint=hint
        )


@contextmanager
def _unpacking(where: str, fault: str, hint: str) -> Iterator[None]:
    """Turn whatever a damaged archive raises into one sentence."""
    try:
        yield
    except MemoryError as error:
        raise DataError(f"{where} needs more memory than there is.") from error
    except DAMAGE as error:
        raise DataError(f"{where} {fault}: {error}.", hint=hint) from error


@dataclass(frozen=True)
class _ZipMember:
    zip: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.info.file_size

    @property
    def packed(self) -> int:
        return self.info.compress_size

    @property
    def is_encrypted(self) -> bool:
        return bool(self.info.flag_bits & 1)

    def read(self, file: ArchiveFile) -> bytes:
        """Read as many bytes as are claimed, and check the CRC. Python itself would first unpack all there is."""
        content = io.BytesIO()
        with self.zip.open(self.info) as opened:
            while content.tell() < self.size and (chunk := opened.read(min(_CHUNK, self.size - content.tell()))):
                content.write(chunk)
        if content.tell() < self.size:
            raise EOFError("it is shorter than the archive says")
        return content.getvalue()


@dataclass(frozen=True)
class TarMember:
    """Plain file of a tar, whose bytes lie in it as they are."""

    offset: int
    size: int
    is_encrypted = False

    @property
    def packed(self) -> int:
        return self.size

    def read(self, file: ArchiveFile) -> bytes:
        with file.open("rb") as opened:
            opened.seek(self.offset)
            content = opened.read(self.size)
        if len(content) < self.size:
            raise EOFError("the archive is cut off")
        return content


def refuse_large(size: int, name: str, where: str, packed: int | None = None) -> None:
    """Refuse a file that claims more bytes than one of its kind has, or than its packed size can mean."""
    most = min(LARGEST, LARGEST_IMAGE) if name.lower().endswith(_IMAGES) else LARGEST
    if packed is not None:
        most = min(most, max(FREE_GROWTH, MOST_GROWTH * packed))
    if size > most:
        raise DataError(
            f"{where} claims {size:,} bytes; {most:,} are allowed.",
            hint="It may be a decompression bomb; if you trust it, unpack the archive and give the folder.",
        )


def index_of(file: ArchiveFile) -> Mapping[str, Any]:
    """Return the plain files of an archive by their names.

    Raises:
        DataError: it is damaged, compressed, too large or no archive, or has a name that leads out of it.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    return _index_of(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=32)
def _index_of(file: ArchiveFile, changed: int, size: int) -> Mapping[str, Any]:
    """Return what `index_of` returns. Time and size are part of the key, because the file may be replaced."""
    index = _zip_index(file) if _head(file)[:2] == b"PK" else _tar_index(file)
    for name in index:
        refuse_evil(name, str(file))
    return index


def read_member(file: ArchiveFile, name: str, member: Any) -> bytes:
    """Return the content of a file of `index_of`.

    Raises:
        DataError: it is encrypted, damaged or too large.
    """
    where = f"{file}: {name}"
    if member.is_encrypted:
        raise DataError(f"{where} is encrypted.", hint="Unpack the archive with its password, give the folder.")
    refuse_large(member.size, name, where, member.packed)
    with _unpacking(where, "cannot be unpacked", "Copy or download the archive again."):
        return member.read(file)


def _head(file: ArchiveFile) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


def _zip_index(file: ArchiveFile) -> dict[str, _ZipMember]:
    with _unpacking(str(file), "is no zip file that can be read", _HALF_A_DOWNLOAD):
        refuse_long_directory(file)
        archive = _open_zip(file)
    members = archive.infolist()
    _refuse_many(file, len(members))
    _refuse_overlaps(file, members)
    total = sum(info.file_size for info in members)
    most = max(FREE_TOTAL, MOST_GROWTH * file.stat().st_size)
    if total > most:
        raise DataError(
            f"{file} claims {total:,} bytes unpacked; {most:,} are allowed for its size.",
            hint="It may be a decompression bomb.",
        )
    index: dict[str, _ZipMember] = {}
    for info in members:
        if info.filename.endswith("/") or stat.S_ISLNK(info.external_attr >> 16):
            continue
        twin = index.setdefault(info.filename, _ZipMember(archive, info)).info
        if (twin.CRC, twin.file_size) != (info.CRC, info.file_size):
            raise DataError(f"{file} holds two files {info.filename!r} that differ.", hint="Make the archive anew.")
    return index


def _open_zip(file: ArchiveFile) -> zipfile.ZipFile:
    opened = file.open("rb")
    try:
        return zipfile.ZipFile(opened)
    except BaseException:
        opened.close()
        raise


def refuse_long_directory(file: ArchiveFile) -> None:
    """Refuse a zip whose table of contents is too long, before Python reads all of it.

    Raises:
        DataError: it is too long.
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        start = max(0, opened.seek(0, os.SEEK_END) - _LONGEST_END)
        opened.seek(start)
        end = opened.read()
    at = end.rfind(b"PK\5\6")
    length = struct.unpack_from("<I", end, at + 12)[0] if 0 <= at <= len(end) - 16 else 0
    far = end.rfind(b"PK\6\6")
    if length == 0xFFFFFFFF and 0 <= far <= len(end) - 48:
        length = struct.unpack_from("<Q", end, far + 40)[0]
    if length > MOST_DIRECTORY:
        raise DataError(f"{file} has a table of contents of {length:,} bytes; {MOST_DIRECTORY:,} are allowed.")


def _refuse_many(file: ArchiveFile, number: int) -> None:
    if number > MOST_FILES:
        raise DataError(f"{file} holds more than {MOST_FILES:,} files.", hint="Unpack it, and give the folder.")


def _refuse_overlaps(file: ArchiveFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse an archive in which several files share their bytes: a small one can hold terabytes that way."""
    end, before = 0, ""
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            hint = "Such a file is not to be trusted."
            raise DataError(f"{file}: {before!r} and {info.filename!r} overlap.", hint=hint)
        end, before = info.header_offset + _LOCAL_HEADER + info.compress_size, info.filename


def tar_files(file: ArchiveFile) -> list[tuple[str, int, int]]:
    """Return the name of each plain file of a tar, and where its bytes begin and end, in the order of the tar.

    Links, devices and sparse files are no plain files. A name that occurs twice is listed twice.

    Raises:
        DataError: the tar is missing, damaged, cut off or compressed, or has a name that leads out of it.
    """
    files = _tar_files(file)
    for name, _ in files:
        refuse_evil(name, str(file))
    return [(name, member.offset, member.offset + member.size) for name, member in files]


def _tar_index(file: ArchiveFile) -> dict[str, TarMember]:
    """Return the plain files; of equal names the last one counts, as tar appends."""
    return dict(_tar_files(file))


def _tar_files(file: ArchiveFile) -> list[tuple[str, TarMember]]:
    kind = next((kind for magic, kind in _PACKED.items() if _head(file).startswith(magic)), None)
    if kind:
        raise DataError(
            f"{file} is compressed as a whole ({kind}): no file of it can be read without unpacking all before it.",
            hint="Uncompress it to a plain .tar, or unpack it.",
        )
    with (
        _unpacking(str(file), "is no zip or tar file that can be read", _HALF_A_DOWNLOAD),
        file.open("rb") as opened,
        tarfile.open(fileobj=opened, mode="r:") as archive,
    ):
        found = list(_tar_members(file, archive))
        _refuse_no_end(opened, archive.offset)
        return found


def _tar_members(file: ArchiveFile, archive: tarfile.TarFile) -> Iterator[tuple[str, TarMember]]:
    size, last = file.stat().st_size, -1
    for number, member in enumerate(iter(archive.next, None), start=1):
        archive.members = []  # they are a kilobyte each
        _refuse_many(file, number)
        if member.size < 0 or member.offset <= last:  # else Python reads the same place for ever
            raise ValueError(f"{member.name!r} has a negative size")
        last = member.offset
        if member.isreg() and not member.issparse():
            if member.offset_data + member.size > size:
                raise EOFError("it is cut off")
            yield member.name.removeprefix("./"), TarMember(member.offset_data, member.size)


def _refuse_no_end(opened: Any, at: int) -> None:
    """Refuse a tar that does not end with a block of zeros. Python takes one that is cut off there as whole.

    Args:
        at: place of the first block that is no header.

    Raises:
        EOFError: it is cut off there, or a header is damaged.
    """
    opened.seek(at)
    block = opened.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise EOFError("it is cut off, or was never finished")
    if any(block):
        raise EOFError(f"the header at byte {at:,} is damaged")


def is_safe(name: str) -> bool:
    """Return True if a name stays inside its tree, on any system."""
    parts = re.split(r"[\\/]", name)  # archives of Windows have "\\"
    return bool(parts[0]) and ".." not in parts and not re.match("[A-Za-z]:", name) and "\0" not in name


def refuse_evil(name: str, where: str) -> None:
    """
    Raises:
        DataError: the name does not stay inside its tree.
    """
    if not is_safe(name):
        raise DataError(f"{where}: the name {name!r} leads out of it.", hint="Such a file is not to be trusted.")
