"""Reading pickles without running what is in them.

A pickle is a program: it may call anything that it can name. Here it can name tensors, numpy arrays and plain
containers, nothing else, and what it names are stand-ins that check their arguments.
"""

from __future__ import annotations

import codecs
import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import WeightsError

# What a damaged or hostile pickle makes the unpickler raise, besides refusals of our own.
BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError,
    MemoryError, RuntimeError, NotImplementedError,
)


class Inert:
    """Stands for an object of a training framework that is no weight: made, filled and forgotten, nothing is run."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class InertDict(dict):
    """As `Inert`, for classes that are filled like a dictionary (configurations)."""

    def __setstate__(self, _: Any) -> None:
        pass


class Stand:
    """A function that a pickle may call, and may not change: BUILD can set attributes of what it gets hold of."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, _: Any) -> None:
        raise AttributeError(f"{name} cannot be set")


_nothing = Stand(lambda *_: None)

INERT: dict[str, Any] = {
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,
    "mmengine.logging.message_hub.MessageHub": Inert,
    "mmengine.config.config.ConfigDict": InertDict,
    "mmengine.config.config.Config": Inert,
    "mmcv.utils.config.ConfigDict": InertDict,
    "mmcv.utils.config.Config": Inert,
    "addict.addict.Dict": InertDict,
    "yacs.config.CfgNode": InertDict,
    "fvcore.common.config.CfgNode": InertDict,
    "detectron2.config.config.CfgNode": InertDict,
    # HistoryBuffer stores its own methods, which pickle spells as getattr(HistoryBuffer, "mean")
    "builtins.getattr": _nothing,
    "__builtin__.getattr": _nothing,
}


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are spelled in latin1, not {encoding!r}")
    return codecs.encode(text, "latin1")


def _dtype(kind: str, *_: Any) -> np.dtype:
    return _plain(np.dtype(str(kind), copy=True))


def _plain(dtype: np.dtype) -> np.dtype:
    if dtype.hasobject:
        raise WeightsError("The file holds numpy arrays of Python objects, which weights never are.")
    return dtype


def _new_array(kind: type, shape: tuple[int, ...], _: Any) -> np.ndarray:
    if kind is not Numbers or tuple(shape) != (0,):
        raise ValueError("only plain numpy arrays can be read")
    return Numbers.__new__(Numbers, (0,), np.uint8)


class Numbers(np.ndarray):
    """An array that a pickle fills: it takes numbers only."""

    def __setstate__(self, state: Any) -> None:
        _, _, dtype, _, _ = state
        _plain(dtype)
        super().__setstate__(state)


def _from_buffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, _plain(dtype)).reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, _plain(dtype), count=1)[0]


def _load_storage(data: bytes) -> Any:
    return load_torch(io.BytesIO(data))


_NUMPY: dict[str, Any] = {
    "numpy.ndarray": Numbers,
    "numpy.dtype": Stand(_dtype),
    **{f"numpy.{core}.multiarray._reconstruct": Stand(_new_array) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Stand(_scalar) for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": Stand(_from_buffer) for core in ("core", "_core")},
}
# numpy gives each dtype a class of its own, and torch has to know the class before it lets a pickle fill a dtype.
_DTYPE_CLASSES = [type(np.dtype(kind)) for kind in "?bhilqBHILQefd"]
_DTYPES = {f"numpy.dtypes.{cls.__name__}": cls for cls in _DTYPE_CLASSES}

_ALLOWED: dict[str, Any] = {
    **_NUMPY,
    **INERT,
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": Stand(_encode),
    "builtins.bytearray": bytearray,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor_v2": Stand(torch._utils._rebuild_tensor_v2),
    "torch._utils._rebuild_parameter": Stand(torch._utils._rebuild_parameter),
    "torch.storage._load_from_bytes": Stand(_load_storage),
}


def load_torch(file: str | Path | io.BytesIO, *, mmap: bool = False) -> Any:
    """`torch.load` of tensors, numpy arrays and plain containers only, with the placeholders of `INERT`.

    Raises:
        pickle.UnpicklingError and others of `BROKEN`: refused, or damaged.
    """
    stand_ins = [(stand, name) for name, stand in {**_NUMPY, **_DTYPES, **INERT}.items()]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


class RestrictedUnpickler(pickle.Unpickler):
    """A plain pickle, as detectron2 writes `.pkl`; names of Python 2 are understood.

    Raises:
        WeightsError: from `load`, when the pickle names anything else; the message says what.
    """

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name not in _ALLOWED:
            raise refused(full_name)
        return _ALLOWED[full_name]


def refused(name: str) -> WeightsError:
    """The error for a file that names something which reading weights never needs."""
    return WeightsError(
        f"The file was refused: it asks for {name}, which could run code on this machine, and weights never need it.",
        hint="If you trust whoever made it, save its weights as safetensors there and load that.",
    )
