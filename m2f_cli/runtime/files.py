"""Write files whole or not at all, and keep names from data inside their folder."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import ConfigError, DataError, M2FError
from .text import json_text

if TYPE_CHECKING:
    from PIL import Image

LONGEST_PART = 180  # bytes of one part of a name; file systems allow 255, and a suffix or a mark may follow
SUFFIXES = (
    ".jpg",
    ".png",
    ".json",
    ".txt",
    ".panoptic.png",
)  # that writers of results and of annotations give to files
_PART = re.compile(r"^\.\d+-[0-9a-f]+\.part$")  # as `atomic` names it
_DRIVE = re.compile(r"^[A-Za-z]:")
# Control characters, what Windows does not allow in a name, and bytes that UTF-8 (so an archive or a json) cannot hold.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # from \udc80 to \udcff are bytes that are not UTF-8
_DEVICE = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names that Windows keeps for devices
_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # s3://bucket as a path; one letter is a drive
_PIPES_OF_A_SHELL = ("/dev/fd/", "/proc/self/fd/")
_WRITES = "Write to a folder and copy it; only m2f predict --out writes to a store itself."
_NO_FILES = {
    stat.S_ISFIFO: "named pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It takes that name at the end, and is removed after an error.

    Args:
        durable: flush the content to the disk before it gets its name, so that it survives a crash of the machine.

    Raises:
        M2FError: the file cannot be written: no space, no permission, a folder that is a file.
    """
    part = path.with_name(f".{os.getpid()}-{threading.get_ident()}.part")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            share_as_usual(part)
            if durable:
                _onto_disk(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Encode an image in memory and write it to a file.

    Pillow's own way into a file does not notice a full disk that takes only a part of the last bytes.

    Args:
        options: those of `Image.save`, such as format.
    """
    encoded = io.BytesIO()
    image.save(encoded, **options)
    path.write_bytes(encoded.getvalue())


def _onto_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def share_as_usual(path: Path) -> None:
    """Give a new file, or all files below a new folder, the mode that the umask or the folder's own rule asks for.

    Some libraries make files that only their owner may read.
    """
    for each in path.rglob("*") if path.is_dir() else (path,):
        if each.is_symlink() or not each.is_file():
            continue
        mode = stat.S_IMODE(each.stat().st_mode)
        if os.name == "posix" and not mode & 0o077:  # a umask of 077 makes such files, too: the probe tells
            usual = _usual_mode(each.parent)
            if usual != mode:
                each.chmod(usual)


def _usual_mode(folder: Path) -> int:
    """Return the mode of a new file in a folder. Asking for the umask would change it for other threads."""
    probe = folder / f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
    try:
        with probe.open("xb"):
            return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)


def open_to_read(path: Path) -> BinaryIO:
    """Open a file that somebody else may have put there, to read its bytes.

    What a shell gives for `<(command)` is read, too.

    Raises:
        OSError: it cannot be opened, or is no file: a named pipe would be waited for, and a device has no end.
    """
    mode = path.stat().st_mode
    kind = next((kind for is_one, kind in _NO_FILES.items() if is_one(mode)), None)
    if kind is not None and not (stat.S_ISFIFO(mode) and str(path).startswith(_PIPES_OF_A_SHELL)):
        raise OSError(errno.EINVAL, f"it is a {kind} and no file", str(path))
    return path.open("rb")


def read_file(path: Path) -> bytes:
    """Read a file that somebody else may have put there.

    Raises:
        OSError: see `open_to_read`.
    """
    with open_to_read(path) as file:
        return file.read()


def is_part(path: Path) -> bool:
    """Return True for temporary names of `atomic` and `staged`, which a killed process may leave behind."""
    return path.name.startswith(".") and path.name.endswith(".part")


def remove_parts(folder: Path, *, below: bool = True) -> None:
    """Remove the unfinished files of killed processes in a folder that nobody else writes.

    Args:
        below: False to spare the folders inside, where another process may be at work.

    Raises:
        M2FError: one cannot be removed.
    """
    with writing_to(folder):
        for place, _, names in os.walk(folder):
            for name in names:
                if _PART.match(name):
                    Path(place, name).unlink(missing_ok=True)
            if not below:
                break


@contextmanager
def writing_to(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` of this block into one sentence about `path`.

    Raises:
        ConfigError: the path was an address such as s3://bucket, and would be a folder "s3:" of this machine.
        M2FError: the block raised `OSError`; the reason is the operating system's.
    """
    if isinstance(path, Path) and _ADDRESS.match(path.as_posix()):
        address = path.as_posix().replace(":/", "://", 1)
        raise ConfigError(f"{address} is an address, where a path of this machine was expected.", hint=_WRITES)
    try:
        yield
    except OSError as error:
        raise M2FError(f"Cannot write {path}: {error.strerror or error}.") from error


def refuse_special(path: Path) -> None:
    """Refuse to write to a link, because the file behind it would change, or to a pipe or device.

    Raises:
        ConfigError: the path is one of these.
    """
    if path.is_symlink():
        raise ConfigError(f"{path} is a link, and m2f would write to what it leads to.", hint="Remove the link.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path} is a pipe or a device, where m2f keeps a file.", hint="Remove it.")


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write UTF-8 text, whole or not at all; see `atomic`.

    Raises:
        M2FError: the file cannot be written.
    """
    with atomic(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_json(path: Path, tree: Any, *, indent: int | None = None, durable: bool = False) -> None:
    """Write JSON in UTF-8, whole or not at all; see `atomic`.

    Raises:
        M2FError: the file cannot be written.
    """
    write_text(path, json_text(tree, indent=indent) + "\n", durable=durable)


def safe_name(name: str) -> str:
    """Return a relative name with "/" between its parts that stays below any folder that it is joined to.

    The name may come from anybody's data: an absolute path, "..", a drive, backslashes, control characters. A plain
    relative name stays unchanged. Parts that are too long for a file system are cut and end in a hash.
    """
    parts = _DRIVE.sub("", name.replace("\\", "/")).split("/")
    kept = [_safe_part(part) for part in parts if part.strip(" .")]
    return "/".join(kept) or f"unnamed-{_hash(name)}"


def output_path(folder: Path, name: str, suffix: str = "") -> Path:
    """Return the path below `folder` for a file whose name comes from data.

    Args:
        name: may hold sub-folders; see `safe_name`.
        suffix: is added to the name as it is.
    """
    return folder / f"{safe_name(name)}{suffix}"


def lies_in(folder: Path, name: str) -> bool:
    """Return True if a name that a file lists leads to something in `folder`, with all links followed."""
    if not name or _NO_NAME.search(name):
        return False
    root, place = os.path.realpath(folder), os.path.realpath((folder / name).parent)
    return place == root or place.startswith(root.rstrip(os.sep) + os.sep)


class Distinct:
    """Names from data that must become different paths. None may be a file where another needs a folder.

    Args:
        what: the things with the names, in the plural, for the message.
        suffixes: endings that writers add to a path. A folder "x.png" cannot lie beside the results of "x".
    """

    def __init__(self, what: str, suffixes: Iterable[str] = SUFFIXES):
        self.what = what
        self.suffixes = tuple(dict.fromkeys(suffixes))
        self.owners: dict[str, str] = {}
        self.folders: dict[str, str] = {}  # those whose name ends as a file does

    def owner(self, path: str) -> str | None:
        """Return the earlier name that excludes a new one at `path`; None if there is none."""
        key = os.path.normcase(path)
        if key in self.owners:
            return self.owners[key]
        needed = (self.folders.get(key + suffix) for suffix in self.suffixes)
        files = (self.owners.get(folder.removesuffix(suffix)) for folder, suffix in self._like_files(key))
        return next((name for name in (*needed, *files) if name is not None), None)

    def add(self, name: str, path: str | None = None) -> None:
        """Add a name.

        Args:
            path: the path of the name; by default `safe_name`.

        Raises:
            DataError: an earlier name stands in its way: it has become the same path, or one of them is a file where
                the other needs a folder.
        """
        path = safe_name(name) if path is None else path
        key, other = os.path.normcase(path), self.owner(path)
        if other is not None:
            names = " and ".join(dict.fromkeys(map(repr, (other, name))))
            why = f"what is written would be {path!r} twice"
            if key not in self.owners:
                why = "one would be written as a file where the other needs a folder"
            raise DataError(f"Two {self.what} are called {names}: {why}.", hint="Rename one of them.")
        self.owners[key] = name
        for folder, _ in self._like_files(key):
            self.folders.setdefault(folder, name)

    def _like_files(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield the folders above a path whose name ends like a file, each with that ending."""
        parts = key.replace(os.sep, "/").split("/")
        for count, part in enumerate(parts[:-1], 1):
            for suffix in self.suffixes:
                if part.endswith(suffix):
                    yield os.path.normcase("/".join(parts[:count])), suffix


def _safe_part(part: str) -> str:
    part = _FORBIDDEN.sub("_", part).strip(" ")
    if _DEVICE.match(part):
        part = f"_{part}"
    if len(os.fsencode(part)) <= LONGEST_PART:
        return part
    mark = f"~{_hash(part)}"
    return os.fsencode(part)[: LONGEST_PART - len(mark)].decode(errors="ignore") + mark


def _hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:10]
