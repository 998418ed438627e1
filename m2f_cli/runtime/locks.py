"""Locks of folders: one process at a time may write to a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError, M2FError
from .files import read_file, refuse_special, remove_parts, write_json, writing_to

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".m2f.lock"  # lies in a folder while a process writes there, and holds who it is
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_held: set[int] = set()


def is_lock(path: Path) -> bool:
    """Return True for the files that lock a folder. They do not count as its content."""
    return path.name.startswith(LOCK)


def is_held(folder: Path) -> bool:
    """Return True while a process is at work in a folder.

    A lock that a killed process of this machine left behind is held by nobody. Nothing is known of the processes of
    other machines: their locks count as long as they are there.
    """
    path = folder / LOCK
    if not path.exists():
        return False
    found = _record(path)
    return found is None or found[1] != socket.gethostname() or found[0] == os.getpid() or _is_alive(path)


@contextmanager
def locked(folder: Path, what: str, *, shown: Path | str | None = None) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made where it is missing.

    The operating system releases the lock when its process dies, so that a lock that was left behind stops nobody. At
    the end, the lock is removed, and so is a folder that was made for it alone.

    Args:
        what: the activity, such as "A training", for the error message.
        shown: the folder that the error message names.

    Raises:
        ConfigError: another process is at work there. Its number and machine are in the message.
        M2FError: the folder cannot be written.
    """
    path = folder / LOCK
    with writing_to(shown or folder):
        refuse_special(path)
        is_new = not folder.exists()
        descriptor = _acquired(folder, path)
    if descriptor is None:
        raise ConfigError(
            f"{what} is at work in {shown or folder} already ({_owner(path)}).",
            hint="Wait until it has ended, stop it, or choose another --out.",
        )
    _held.add(descriptor)
    try:
        remove_parts(folder, below=False)
        write_json(
            _owner_file(path),
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
        )
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that was removed meanwhile
            _owner_file(path).unlink(missing_ok=True)
        _release(descriptor, path)
        if is_new:
            with contextlib.suppress(OSError):  # it is in use
                folder.rmdir()


@contextmanager
def staged(path: Path, what: str) -> Iterator[Path]:
    """Yield an empty folder beside `path`, for content that will take that name. It is locked meanwhile.

    It is removed at the end. Files that a killed process left in it are removed at the beginning.

    Raises:
        ConfigError: another process is at work on `path`. M2FError: the folder cannot be made.
    """
    room = _staging_of(path)
    with locked(room, what, shown=path):
        inside = room / "new"
        shutil.rmtree(inside, ignore_errors=True)
        with writing_to(path):
            inside.mkdir()
        try:
            yield inside
        finally:
            shutil.rmtree(inside, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process is at work there now
        room.rmdir()


def clear_staged(path: Path) -> None:
    """Remove what a process left behind that was killed after `path` had got its content. A living one is spared."""
    if _staging_of(path).is_dir():
        with contextlib.suppress(M2FError), staged(path, "Another command"):  # at work, or not to be removed
            pass


def _staging_of(path: Path) -> Path:
    return path.parent / f".{path.name}.part"


# --- the lock itself --------------------------------------------------------------------------------------------------


def _acquired(folder: Path, path: Path) -> int | None:
    """Open the file that is the lock. Returns None if another process has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        except FileNotFoundError:  # whoever had the lock removed the folder, too
            continue
        try:
            if not _lock(descriptor, path):
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had the lock removed its file: this one locks nothing any more


def _lock(descriptor: int, path: Path) -> bool:
    try:
        if fcntl is None:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return not _is_alive(path)  # some network file systems lock nothing: the owner's record is all there is
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _release(descriptor: int, path: Path) -> None:
    _held.discard(descriptor)
    if fcntl is not None:  # removed while it is held, so that nobody can have locked it
        with contextlib.suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
    os.close(descriptor)
    if fcntl is None:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            path.unlink(missing_ok=True)


def _forget_in_child() -> None:
    """Close the copies of a child process. A worker that outlives its parent must not keep the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


# --- who has it -------------------------------------------------------------------------------------------------------


def _owner_file(path: Path) -> Path:
    """Return the file with the owner of a lock. On Windows, nobody else can read the lock itself."""
    return path.with_name(f"{path.name}.json")


def _record(path: Path) -> tuple[int, str, str] | None:
    try:
        owner = json.loads(read_file(_owner_file(path)))
        return int(owner["pid"]), str(owner["host"]), str(owner["since"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _owner(path: Path) -> str:
    found = _record(path)
    return "its process is not known" if found is None else f"process {found[0]} on {found[1]}, since {found[2]}"


def _is_alive(path: Path) -> bool:
    found = _record(path)
    if found is None or found[1] != socket.gethostname() or found[0] == os.getpid():
        return False
    try:
        os.kill(found[0], 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
