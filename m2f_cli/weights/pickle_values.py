"""Values that a pickle may ask for: plain ones, arrays of numpy, tensors, and stand-ins for everything else.

`CALLS` has a function for each name that a pickle may "call". The function validates every argument. `MARKERS` are the
names that may stand in a pickle and are never called. Any other name is refused.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from .pickle_source import Damaged, refused

if TYPE_CHECKING:
    from .pickle_machine import Machine

MOST_AXES = 32  # largest number of axes of an array or tensor


class Inert:
    """Stand-in for an object of a training framework that is no weight. Its content is dropped."""

    __slots__ = ()


class InertDict(dict):
    """Stand-in for classes that are filled like a dictionary, such as configurations."""


@dataclass(frozen=True, slots=True)
class Name:
    """Name of a class or function in a pickle. It is not imported."""

    text: str


@dataclass(slots=True)
class Kind:
    """Type of the elements of a numpy array.

    Attributes:
        name: kind and size, such as "f4".
        order: byte order.
    """

    name: str
    order: str = "="

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.name)


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements of tensors, in a row.

    Attributes:
        values_N: the elements. None while the layout of a file is not known yet.
    """

    values_N: Tensor | None


# --- plain values -----------------------------------------------------------------------------------------------------


def _as_bytes(machine: Machine, data: Any) -> bytes:
    """Return bytes, also if Python 2 spelled them as a text in latin1."""
    if type(data) is str:
        machine.budget.spend(len(data))
        return data.encode("latin1")
    if type(data) is not bytes:
        raise Damaged(f"it has a {type(data).__name__} in place of bytes")
    return data


def _encoded(machine: Machine, text: Any = b"", encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Damaged(f"it spells bytes in {str(encoding)[:20]!r}")
    return _as_bytes(machine, text)


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise Damaged("it makes a set of a value that is not a list")
    return set(map(machine.key, machine.copying(items)))


def _frozen(machine: Machine, items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(machine, items))


def _ordered(machine: Machine, pairs: Any = ()) -> OrderedDict:
    if type(pairs) not in (list, tuple):
        raise Damaged("it makes a dictionary of values that are not pairs")
    return machine.fill(OrderedDict(), ((key, value) for key, value in machine.copying(pairs)))  # type: ignore[return-value]


def _counter(machine: Machine, counts: Any = None) -> dict:
    return counts if type(counts) is dict else {}


def _complex(_: Machine, real: Any, imaginary: Any) -> complex:
    return complex(real, imaginary)


def _inert(_: Machine, *__: Any) -> Inert:
    return Inert()


def _inert_dict(_: Machine, *__: Any) -> InertDict:
    return InertDict()


def _of_old_class(machine: Machine, what: Any, _: Any, state: Any) -> Any:
    """Create an object as protocols 0 and 1 do: from its class, a base class, and the value of that."""
    if type(what) is not Name or what.text not in CLASSES:
        raise Damaged("it makes an object of a value that is not a class")
    instance = CALLS[what.text](machine)
    if type(instance) is InertDict and type(state) is dict:
        machine.fill(instance, machine.copying(state).items())
    return instance


def _wholes(values: Any) -> tuple[int, ...]:
    """Return a shape, or the strides of a tensor, after validation."""
    if type(values) not in (tuple, list, torch.Size) or len(values) > MOST_AXES:
        raise Damaged("it has an invalid shape")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise Damaged("it has a shape or strides that are no sizes")
    return tuple(values)


# --- arrays of numpy --------------------------------------------------------------------------------------------------

_KIND = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9]\d{0,4}")


def _kind(_: Machine, name: Any, *__: Any) -> Kind:
    if type(name) is str and name[:1] == "O":
        raise WeightsError("The file holds numpy arrays of Python objects, which weights never are.")
    if type(name) is not str or not _KIND.fullmatch(name):
        raise Damaged(f"it holds numpy arrays of {str(name)[:20]!r}, which are no weights")
    return Kind(name)


def byte_order(state: Any) -> str:
    """Return the byte order in the state of a type: (3, order, None, None, None, size, alignment, flags)."""
    if type(state) is not tuple or len(state) != 8 or state[0] != 3 or state[2:5] != (None, None, None):
        raise Damaged("it changes a type of numpy")
    if state[1] not in ("<", ">", "|", "=") or not all(type(value) is int for value in state[5:]):
        raise Damaged("it changes a type of numpy")
    return state[1]


def _dtype(kind: Any) -> np.dtype:
    if type(kind) is not Kind:
        raise Damaged("it has an array without a type")
    return kind.dtype()


def _new_array(machine: Machine, kind: Any, shape: Any, _: Any) -> np.ndarray:
    if kind != Name("numpy.ndarray") or shape != (0,):
        raise Damaged("it holds arrays that are not plain ones of numpy")
    array = np.empty(0, np.uint8)
    machine.unfilled[id(array)] = array
    return array


def fill(machine: Machine, array: np.ndarray, state: Any) -> None:
    """Fill an array from its state: (version, shape, type, columns first, bytes)."""
    if machine.unfilled.pop(id(array), None) is not array or type(state) is not tuple or len(state) != 5:
        raise Damaged("it changes an array")
    _set_numbers(machine, array, state[1], state[2], state[3] is True or state[3] == 1, state[4])


def _set_numbers(machine: Machine, array: np.ndarray, shape: Any, kind: Any, columns_first: bool, data: Any) -> None:
    shape, dtype, data = _wholes(shape), _dtype(kind), _as_bytes(machine, data)
    _refuse_other_size(shape, dtype, data)
    machine.budget.spend(len(data))
    array.__setstate__((1, shape, dtype, columns_first, data))  # takes the bytes as its memory, without a copy


def _refuse_other_size(shape: tuple[int, ...], dtype: np.dtype, data: bytes) -> None:
    if math.prod(shape) * dtype.itemsize != len(data) or math.prod(filter(None, shape)) >= 2**48:
        raise Damaged(f"it has an array of {len(data):,} bytes and the shape {shape}")


def _from_buffer(machine: Machine, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    array = np.empty(0, np.uint8)
    _set_numbers(machine, array, shape, kind, order == "F", data)
    return array


def _scalar(machine: Machine, kind: Any, data: Any) -> np.generic:
    dtype, data = _dtype(kind), _as_bytes(machine, data)
    _refuse_other_size((), dtype, data)
    return np.frombuffer(data, dtype)[0]


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensor(_: Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor | None:
    """Return a view of a storage. It has to lie inside the storage and may not be larger."""
    return _view(storage, offset, size, stride)


def _tensor_of_type(
    _: Machine, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor | None:
    if type(dtype) is not torch.dtype:
        raise Damaged("it has a tensor without a type")
    return _view(storage, offset, size, stride, dtype)


def _view(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor | None:
    (offset,), size, stride = _wholes((offset,)), _wholes(size), _wholes(stride)
    if type(storage) is not Storage or len(size) != len(stride):
        raise Damaged("it has an invalid tensor")
    if storage.values_N is None:
        return None
    values_N = storage.values_N if dtype in (None, storage.values_N.dtype) else storage.values_N.view(dtype)
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    is_outside = count > 0 and (last >= len(values_N) or count > len(values_N))
    if is_outside or math.prod(filter(None, size)) >= 2**48:
        raise Damaged(f"it has a tensor of the shape {size}, which lies outside of its {len(values_N):,} numbers")
    return values_N.as_strided(size, stride, offset) if count else values_N.new_empty(size)


def _parameter(_: Machine, data: Any, *__: Any) -> Tensor | None:
    if data is not None and not isinstance(data, Tensor):
        raise Damaged("it has a parameter that is no tensor")
    return data


def _of_subclass(machine: Machine, rebuild: Any, kind: Any, args: Any, _: Any) -> Tensor | None:
    """Return a tensor without the attributes of its subclass."""
    if type(rebuild) is not Name or rebuild.text not in _REBUILD or kind not in _TENSOR_CLASSES:
        raise Damaged("it has a tensor of a class that weights do not need")
    return _REBUILD[rebuild.text](machine, *args)


def _size(_: Machine, values: Any) -> torch.Size:
    return torch.Size(_wholes(values))


def _load_from_bytes(machine: Machine, data: Any) -> Any:
    if machine.torch_bytes is None:
        raise refused("torch.storage._load_from_bytes")
    data = _as_bytes(machine, data)
    machine.budget.spend(len(data))
    return machine.torch_bytes(bytes(data))


STORAGES: dict[str, torch.dtype] = {
    **{
        f"torch.{name}Storage": dtype
        for name, dtype in {
            "Double": torch.float64,
            "Float": torch.float32,
            "Half": torch.float16,
            "BFloat16": torch.bfloat16,
            "Long": torch.int64,
            "Int": torch.int32,
            "Short": torch.int16,
            "Char": torch.int8,
            "Byte": torch.uint8,
            "Bool": torch.bool,
            "ComplexFloat": torch.complex64,
            "ComplexDouble": torch.complex128,
        }.items()
    },
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}
TORCH_TYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_TENSOR_CLASSES = (Name("torch.Tensor"), Name("torch._tensor.Tensor"), Name("torch.nn.parameter.Parameter"))
_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
CLASSES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _inert_dict,
    "builtins.set": _set,
    "torch.Size": _size,
    "argparse.Namespace": _inert,
    "mmengine.logging.history_buffer.HistoryBuffer": _inert,
    "mmengine.logging.message_hub.MessageHub": _inert,
    "mmengine.config.config.Config": _inert,
    "mmcv.utils.config.Config": _inert,
    **dict.fromkeys(
        (
            "mmengine.config.config.ConfigDict",
            "mmcv.utils.config.ConfigDict",
            "addict.addict.Dict",
            "yacs.config.CfgNode",
            "fvcore.common.config.CfgNode",
            "detectron2.config.config.CfgNode",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
        ),
        _inert_dict,
    ),
}
CALLS: dict[str, Callable[..., Any]] = {
    **CLASSES,
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch.device": _inert,
    "collections.Counter": _counter,
    "builtins.frozenset": _frozen,
    "builtins.bytes": _encoded,
    "builtins.bytearray": _encoded,
    "builtins.complex": _complex,
    # HistoryBuffer stores its own methods, which pickle spells as getattr(HistoryBuffer, "mean")
    "builtins.getattr": _inert,
    "copyreg._reconstructor": _of_old_class,
    "_codecs.encode": _encoded,
    "numpy.dtype": _kind,
    **{f"numpy.{core}.multiarray._reconstruct": _new_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
# Names that may occur and are never called.
MARKERS = frozenset(
    {
        *STORAGES,
        *(kind.text for kind in _TENSOR_CLASSES),
        "numpy.ndarray",
        "builtins.object",
        "builtins.dict",
        "builtins.list",
        "builtins.int",
    }
)
