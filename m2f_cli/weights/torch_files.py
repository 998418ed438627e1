"""Reading of `torch.save` files: today's zip archive, and the series of pickles before PyTorch 1.6.

torch's own reader is not used, because untrusted files have repeatedly led to memory corruption in it. Numbers are
mapped from the file if they are aligned there, and nothing is read before it is used.
"""

from __future__ import annotations

import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime import archives
from .pickle_source import Budget, Damaged, PickleSource
from .pickle_values import STORAGES, Name, Storage
from .safe_pickle import load as load_pickle

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before PyTorch 1.6 begins with this number
ZIP = b"PK\x03\x04"
_PROTOCOL = 1001  # version of the older form
_LONGEST_DIRECTORY = 64 << 20  # bytes; each storage takes about a hundred
_END = b"PK\x05\x06"
_END_64 = b"PK\x06\x06"


def read(path: Path, *, copied: bool = False) -> Any:
    """Read a `torch.save` file as plain containers and tensors on the CPU.

    Args:
        copied: True to give the tensors memory of their own, so that the file may be replaced. Otherwise they are
            mapped.

    Raises:
        Damaged: it is no such file, or makes no sense.
        OSError: the file cannot be read.
        WeightsError: the file names something that weights do not need.
    """
    with PickleSource(path) as source:
        budget = Budget(len(source))
        tree = _read_zip(path, source, budget) if source.data[:4] == ZIP else read_legacy(source, budget)
    return _copied(tree, {}) if copied else tree


def read_plain(path: Path) -> Any:
    """Read a plain pickle, as detectron2 writes `.pkl`; see `read`."""
    with PickleSource(path) as source:
        budget = Budget(len(source))
        return load_pickle(source, budget=budget, torch_bytes=lambda data: read_legacy(PickleSource(data), budget))[0]


def _copied(value: Any, memory: dict[int, Tensor]) -> Any:
    """Copy the tensors of a tree. Those that shared a storage share one again."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() not in memory:
            memory[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage.clone())
        copy = torch.empty(0, dtype=value.dtype)
        return copy.set_(
            memory[storage.data_ptr()].untyped_storage(), value.storage_offset(), value.shape, value.stride()
        )
    if isinstance(value, dict):
        for key in value:
            value[key] = _copied(value[key], memory)
        return value
    if type(value) in (list, tuple):
        return type(value)(_copied(each, memory) for each in value)
    return value


def _storage(ident: Any) -> tuple[torch.dtype, str, int, Any]:
    """Return the type, key and number of elements of a persistent id, and the older form's description of a view."""
    if type(ident) is not tuple or len(ident) not in (5, 6) or ident[0] != "storage":
        raise Damaged("it refers to external data that are not a storage")
    _, kind, key, _, count, *rest = ident
    if type(kind) is not Name or kind.text not in STORAGES:
        raise Damaged("it has a storage of a kind that weights do not need")
    if type(key) is not str or type(count) is not int or count < 0:
        raise Damaged("it has an invalid storage")
    return STORAGES[kind.text], key, count, rest[0] if rest else None


def _values(source: PickleSource, start: int, count: int, dtype: torch.dtype, budget: Budget) -> Tensor:
    """Return numbers of the file. They are mapped if they are aligned, else copied."""
    size = count * dtype.itemsize
    if start < 0 or start + size > len(source):
        raise Damaged("it ends before its tensors do")
    if not count:
        return torch.empty(0, dtype=dtype)
    if source.is_mapped and start % dtype.itemsize == 0:
        return torch.frombuffer(source.data, dtype=dtype, count=count, offset=start)
    budget.spend(size)
    values_N = torch.empty(count, dtype=dtype)
    source.fill(values_N.view(torch.uint8).numpy(), start)
    return values_N


# --- the zip archive --------------------------------------------------------------------------------------------------


def _read_zip(path: Path, source: PickleSource, budget: Budget) -> Any:
    _refuse_long_directory(source)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except archives.DAMAGE as error:
        raise Damaged(f"it is no whole zip archive: {error}") from error
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged("it is a zip archive, but none that torch.save wrote")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise Damaged("it is a program of TorchScript, not weights")
    _refuse_big_endian(source, entries.get(f"{folder}byteorder"))
    known: dict[tuple[str, torch.dtype, int], Storage] = {}

    def storage_of(ident: Any) -> Storage:
        dtype, key, count, _ = _storage(ident)
        if (key, dtype, count) not in known:
            entry = entries.get(f"{folder}data/{key}")
            if entry is None:
                raise Damaged(f"its storage {key[:40]!r} is missing")
            start, size = _place(source, entry)
            if size != count * dtype.itemsize:
                raise Damaged(f"its storage {key[:40]!r} has {size:,} bytes in place of {count * dtype.itemsize:,}")
            known[key, dtype, count] = Storage(_values(source, start, count, dtype, budget))
        return known[key, dtype, count]

    start, size = _place(source, entries[pickles[0]])
    return load_pickle(source, start, start + size, budget=budget, storage_of=storage_of)[0]


def _refuse_long_directory(source: PickleSource) -> None:
    """Refuse a long directory, because Python's zipfile reads it whole and needs many times its size in memory."""
    at = source.data.rfind(_END, max(0, len(source) - (1 << 16) - 22))
    if at < 0 or at + 22 > len(source):
        raise Damaged("the end of the zip archive is missing")
    size = struct.unpack_from("<I", source.data, at + 12)[0]
    if size == 0xFFFFFFFF:
        at = source.data.rfind(_END_64, max(0, at - (1 << 16)), at)
        size = struct.unpack_from("<Q", source.data, at + 40)[0] if 0 <= at <= len(source) - 48 else 0
    if size > _LONGEST_DIRECTORY:
        raise Damaged(f"the directory of the zip archive has {size:,} bytes")


def _place(source: PickleSource, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the start and the number of bytes of a member in the file."""
    at = entry.header_offset
    if not 0 <= at <= len(source) - 30 or source.data[at : at + 4] != ZIP:
        raise Damaged(f"{entry.filename[:40]!r} is not where the zip archive says")
    flags, method = struct.unpack_from("<HH", source.data, at + 6)
    if method or entry.compress_type or entry.compress_size != entry.file_size or (flags | entry.flag_bits) & 1:
        raise Damaged(f"{entry.filename[:40]!r} is compressed or encrypted, which torch.save never does")
    name, extra = struct.unpack_from("<HH", source.data, at + 26)
    start = at + 30 + name + extra
    if start + entry.file_size > len(source):
        raise Damaged(f"it ends before {entry.filename[:40]!r} does")
    return start, entry.file_size


def _refuse_big_endian(source: PickleSource, entry: zipfile.ZipInfo | None) -> None:
    if entry is None:
        return
    start, size = _place(source, entry)
    if source.data[start : start + min(size, 16)] != b"little":
        raise Damaged("its numbers are in the byte order of other machines (big endian)")


# --- the row of pickles of earlier days -------------------------------------------------------------------------------


def read_legacy(source: PickleSource, budget: Budget) -> Any:
    """Read the form before PyTorch 1.6.

    It consists of a magic number, its version, the machine that wrote it, the tree, the keys of storages, and the
    storages. The tree comes before the storages, so it is read twice; the content of the storages is known the second
    time.

    Raises:
        Damaged: as for `read`.
        WeightsError: as for `read`.
    """
    if source.data[: len(LEGACY)] != LEGACY:
        raise Damaged("it does not begin as a file of torch.save")
    version, at = load_pickle(source, len(LEGACY), budget=budget)
    machine, tree_at = load_pickle(source, at, budget=budget)
    if version != _PROTOCOL or type(machine) is not dict or machine.get("little_endian") is not True:
        raise Damaged("it is of a version or a byte order (big endian) that m2f does not read")
    declared: dict[str, tuple[torch.dtype, int]] = {}

    def note(ident: Any) -> Storage:
        dtype, key, count, _ = _storage(ident)
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise Damaged("it has a storage of two sizes")
        return Storage(None)

    _, at = load_pickle(source, tree_at, budget=budget, storage_of=note)
    keys, at = load_pickle(source, at, budget=budget)
    if type(keys) is not list or set(map(str, keys)) != set(declared) or len(keys) != len(declared):
        raise Damaged("its list of storages does not fit")
    storages: dict[str, Storage] = {}
    for key in map(str, keys):
        dtype, count = declared[key]
        if at + 8 > len(source) or struct.unpack_from("<q", source.data, at)[0] != count:
            raise Damaged("it has a storage of another size")
        storages[key] = Storage(_values(source, at + 8, count, dtype, budget))
        at += 8 + count * dtype.itemsize
    return load_pickle(source, tree_at, budget=budget, storage_of=partial(_found, storages))[0]


def _found(storages: dict[str, Storage], ident: Any) -> Storage:
    """Return the storage of an id, or the part of it that the older form calls a view: (key, offset, size)."""
    _, key, _, view = _storage(ident)
    values_N = storages[key].values_N
    if view is None:
        return storages[key]
    if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
        raise Damaged("it has a view of an invalid storage")
    _, offset, size = view
    if offset + size > len(values_N):  # type: ignore[arg-type]
        raise Damaged("it has a view that lies outside of its storage")
    return Storage(values_N[offset : offset + size])  # type: ignore[index]
