"""Reading pickles without running what is in them.

A pickle is a program for a stack machine. This is such a machine, of our own: it has the operations that weights need,
makes numbers, texts, plain containers, numpy arrays and tensors, and calls nothing. A global is a `Name` here, a plain
record that cannot be called; what may be made "by calling" one is made by a function of the table `CALLS`, which
checks every argument.
"""

from __future__ import annotations

import codecs
import math
import mmap
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError

MOST_STEPS = 600_000  # operations of one pickle; a training file of Swin-L has 200,000
MOST_COPIED = 500_000  # entries that calls copy from one container into another
MOST_VALUES = 5_000_000  # values of what it holds, those that are referred to twice counted twice
DEEPEST = 100  # containers inside one another
LONGEST_KEY = 16  # members of a tuple that is a key; no weights have any
MOST_TUPLE_KEYS = 10_000
LONGEST_NUMBER = 1000  # digits, or bytes, of a whole number
MOST_AXES = 32  # of arrays and tensors
_LARGE = 1 << 16  # bytes that are read faster than copied from where they are mapped


class Source:
    """The bytes of a file, mapped, or bytes that stood in one; what is written to mapped ones stays in this process.

    Raises:
        OSError: the file cannot be opened.
        Damaged: it is empty.
    """

    def __init__(self, origin: Path | bytes):
        self._file = None if isinstance(origin, bytes) else origin.open("rb")
        self.data: bytes | mmap.mmap = b""
        if self._file is None:
            self.data = origin
        else:
            try:
                self.data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError as error:
                self._file.close()
                raise Damaged("it is empty") from error
        self.is_mapped = self._file is not None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what is mapped stays so as long as a tensor needs it."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self.data)

    def cut(self, start: int, size: int) -> bytes:
        """Copy a part out."""
        if self._file is None:
            return bytes(memoryview(self.data)[start : start + size])
        self._file.seek(start)
        return self._file.read(size)

    def fill(self, buffer: Any, start: int) -> None:
        """Copy into all of `buffer` what stands from `start` on; a read is faster than copying what is mapped."""
        view = memoryview(buffer).cast("B")
        if self._file is None:
            view[:] = memoryview(self.data)[start : start + len(view)]
            return
        self._file.seek(start)
        if self._file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise Damaged("it became shorter while it was read")


class Damaged(Exception):
    """A file makes no sense. The message is a clause without a full stop, such as "it ends too early"."""


# What arguments of the wrong kind or number lead to, below the checks of this file.
_SENSELESS = (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, RuntimeError)


class Inert:
    """Stands for an object of a training framework that is no weight; what it was filled with is forgotten."""

    __slots__ = ()


class InertDict(dict):
    """As `Inert`, for classes that are filled like a dictionary (configurations)."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle named: a class or function, which is not here."""

    text: str


@dataclass(slots=True)
class Kind:
    """A type of numpy's elements, such as "f4"; `order` is that of its bytes."""

    name: str
    order: str = "="

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.name)


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements of tensors, in a row; None while a file's layout is not known yet."""

    values_N: Tensor | None


class Budget:
    """How many bytes of arrays and texts may be made in all: a small file cannot ask for much memory."""

    def __init__(self, file_size: int):
        self._left = 6 * file_size + (1 << 20)  # the most copies that any of the known forms needs is 3

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Damaged("what is made of it is many times larger than the file itself")


def refused(name: str) -> WeightsError:
    """The error for a file that names something which reading weights never needs."""
    return WeightsError(
        f"The file was refused: it asks for {name}, which could run code on this machine, and weights never need it.",
        hint="If you trust whoever made it, save its weights as safetensors there and load that.",
    )


def load(
    source: Source,
    start: int = 0,
    end: int | None = None,
    *,
    budget: Budget,
    storage_of: Callable[[Any], Storage] | None = None,
    torch_bytes: Callable[[bytes], Any] | None = None,
) -> tuple[Any, int]:
    """Read the pickle that begins at `start`.

    Args:
        budget: what it may make.
        storage_of: finds the storage for a persistent id, in files of torch.
        torch_bytes: reads the torch file that a plain pickle holds as bytes for each tensor.

    Returns:
        What it holds, and where it ends.

    Raises:
        Damaged: it makes no sense, or would need an unreasonable amount of time or memory.
        WeightsError: it names what weights do not need.
    """
    machine = Machine(source, start, len(source) if end is None else end, budget, storage_of, torch_bytes)
    try:
        tree = machine.run()
    except _SENSELESS as error:
        raise Damaged(f"it makes no sense at byte {machine.at - start} ({_first_line(error)})") from error
    _refuse_tangle(tree)
    return tree, machine.at


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:120].rstrip(".")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _refuse_tangle(root: Any) -> None:
    """Refuse what would make later code run for ever: cycles, deep nesting, references that multiply."""
    known: dict[int, tuple[int, int]] = {}  # of each container: values, depth
    inside: set[int] = set()
    waiting = [(root, False)]
    while waiting:
        node, is_done = waiting.pop()
        key = id(node)
        if is_done:
            below = [known.get(id(part), (1, 0)) for part in _parts(node)]
            values, depth = 1 + sum(count for count, _ in below), 1 + max((deep for _, deep in below), default=0)
            if values > MOST_VALUES or depth > DEEPEST:
                raise Damaged(f"it holds more than {MOST_VALUES:,} values, or more than {DEEPEST} in one another")
            known[key] = values, depth
            inside.discard(key)
        elif key in inside:
            raise Damaged("it holds something that is a part of itself")
        elif key not in known:
            inside.add(key)
            waiting.append((node, True))
            waiting += [(part, False) for part in _parts(node) if isinstance(part, dict | list | tuple)]


# --- the machine ------------------------------------------------------------------------------------------------------


class Machine:
    def __init__(self, source: Source, start: int, end: int, budget: Budget, storage_of: Any, torch_bytes: Any):
        self.source, self.at, self.end = source, start, end
        self.view = memoryview(source.data)
        self.budget, self.storage_of, self.torch_bytes = budget, storage_of, torch_bytes
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unfilled: dict[int, np.ndarray] = {}  # arrays that still wait for their numbers, by identity
        self.tuple_keys = self.copied = 0

    def run(self) -> Any:
        for _ in range(MOST_STEPS):
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            act = _ACTS.get(code)
            if act is None:
                raise Damaged(f"it uses the operation {bytes([code])!r}, which weights do not need")
            act(self)
        raise Damaged(f"it has more than {MOST_STEPS:,} operations")

    # --- reading

    def take(self, count: int) -> memoryview:
        if not 0 <= count <= self.end - self.at:
            raise Damaged("it ends too early")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        stop = self.source.data.find(b"\n", self.at, self.end)
        if stop < 0:
            raise Damaged("it ends too early")
        text = bytes(self.take(stop - self.at))
        self.at += 1
        return text

    # --- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Damaged("it takes more than it has put down")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise Damaged("it takes more than it has put down")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Damaged("it closes what it did not open")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, place: int) -> None:
        self.memo[place] = self.top()

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise Damaged("it refers to what is not there")
        self.push(self.memo[place])

    # --- making things

    def push_whole(self, data: bytes | memoryview) -> None:
        if len(data) > LONGEST_NUMBER:
            raise Damaged(f"it has a number of {len(data):,} bytes")
        self.push(int.from_bytes(data, "little", signed=True))

    def push_digits(self, text: bytes) -> None:
        if len(text) > LONGEST_NUMBER:
            raise Damaged(f"it has a number of {len(text):,} digits")
        self.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.removesuffix(b"L")))

    def push_float(self, text: bytes) -> None:
        if len(text) > LONGEST_NUMBER:
            raise Damaged(f"it has a number of {len(text):,} digits")
        self.push(float(text))

    def push_bytes(self, data: memoryview) -> None:
        self.push(bytes(data) if len(data) < _LARGE else self.source.cut(self.at - len(data), len(data)))

    def push_text(self, data: memoryview) -> None:
        self.push(str(data, "utf-8", "surrogatepass"))

    def push_quoted(self, line: bytes) -> None:
        """A string of Python 2 in protocol 0, as its repr."""
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise Damaged("it has a text without quotation marks")
        self.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def push_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def pop_two(self) -> list[Any]:
        second = self.pop()
        return [self.pop(), second]

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Damaged("it has a name that is no text")
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full in _TORCH_TYPES:
            self.push(_TORCH_TYPES[full])
        elif full in CALLS or full in MARKERS:
            self.push(Name(full))
        else:
            raise refused(full)

    def reduce(self) -> None:
        args, what = self.pop(), self.pop()
        if type(what) is not Name or type(args) is not tuple:
            raise Damaged("it calls what is no function")
        if what.text not in CALLS:
            raise refused(what.text)
        self.push(CALLS[what.text](self, *args))

    def new(self) -> None:
        args, what = self.pop(), self.pop()
        if type(what) is not Name or what.text not in _CLASSES:
            raise Damaged(f"it makes an object of {what.text if type(what) is Name else 'what is no class'}")
        self.push(CALLS[what.text](self, *args))

    def new_with_names(self) -> None:
        named = self.pop()
        if type(named) is not dict:
            raise Damaged("it calls what is no function")
        self.new()

    def build(self) -> None:
        """Give the topmost object its state: arrays and their types have one, of the others it is forgotten."""
        state, target = self.pop(), self.top()
        if type(target) is np.ndarray:
            _fill(self, target, state)
        elif type(target) is Kind:
            target.order = _byte_order(state)
        elif type(target) not in (Inert, InertDict, OrderedDict):
            raise Damaged(f"it changes a {type(target).__name__}")

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Inert:
            raise Damaged(f"it appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict, InertDict, Inert) or len(items) % 2:
            raise Damaged(f"it sets items of a {type(target).__name__}")
        if type(target) is not Inert:
            self.fill(target, zip(items[::2], items[1::2], strict=True))

    def fill(self, target: dict, pairs: Iterable[tuple[Any, Any]]) -> dict:
        for key, value in pairs:
            target[self.key(key)] = value
        return target

    def copying(self, items: Any) -> Any:
        """Return the items that a call is about to copy. A call may name the same large container again and again."""
        self.copied += len(items)
        if self.copied > MOST_COPIED:
            raise Damaged(f"it copies more than {MOST_COPIED:,} entries from one container into another")
        return items

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not set:
            raise Damaged(f"it adds to a {type(target).__name__}")
        target.update(map(self.key, items))

    def key(self, value: Any) -> Any:
        """`value`, if it may be a key: its hash is quick, and few others have the same."""
        if type(value) is tuple:
            self.tuple_keys += 1
            if len(value) <= LONGEST_KEY and self.tuple_keys <= MOST_TUPLE_KEYS and all(map(_is_plain, value)):
                return value
        elif _is_plain(value) or (isinstance(value, _SCALAR_KEYS) and _is_plain(value.item())):
            return value
        raise Damaged(f"it has a {type(value).__name__} as a key")

    def persistent(self, ident: Any) -> None:
        if self.storage_of is None:
            raise Damaged("it refers to data outside of itself")
        self.push(self.storage_of(ident))


_SCALAR_KEYS = (np.bool_, np.integer, np.str_, np.bytes_)  # of floats, many have one hash


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**61 - 1  # beyond, numbers with the same hash are easy to find
    return type(value) in (str, bytes, float, bool, type(None))


_STOP = ord(".")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_ACTS: dict[int, Callable[[Machine], Any]] = {
    opcode[0]: act
    for opcode, act in {
        b"\x80": lambda m: m.take(1),  # PROTO
        b"\x95": lambda m: m.take(8),  # FRAME
        b"(": Machine.mark,
        b"0": lambda m: m.pop() if m.stack else m.since_mark(),
        b"1": Machine.since_mark,
        b"2": lambda m: m.push(m.top()),
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": lambda m: m.push_digits(m.line()),
        b"L": lambda m: m.push_digits(m.line()),
        b"J": lambda m: m.push(m.number("<i")),
        b"K": lambda m: m.push(m.number("<B")),
        b"M": lambda m: m.push(m.number("<H")),
        b"\x8a": lambda m: m.push_whole(m.take(m.number("<B"))),
        b"\x8b": lambda m: m.push_whole(m.take(m.number("<i"))),
        b"F": lambda m: m.push_float(m.line()),
        b"G": lambda m: m.push(m.number(">d")),
        b"S": lambda m: m.push_quoted(m.line()),
        b"T": lambda m: m.push(str(m.take(m.number("<i")), "latin1")),
        b"U": lambda m: m.push(str(m.take(m.number("<B")), "latin1")),
        b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        b"X": lambda m: m.push_text(m.take(m.number("<I"))),
        b"\x8c": lambda m: m.push_text(m.take(m.number("<B"))),
        b"\x8d": lambda m: m.push_text(m.take(m.number("<Q"))),
        b"B": lambda m: m.push_bytes(m.take(m.number("<I"))),
        b"C": lambda m: m.push_bytes(m.take(m.number("<B"))),
        b"\x8e": lambda m: m.push_bytes(m.take(m.number("<Q"))),
        b"\x96": lambda m: m.push_bytes(m.take(m.number("<Q"))),  # BYTEARRAY8: nothing here changes them
        b")": lambda m: m.push(()),
        b"t": lambda m: m.push(tuple(m.since_mark())),
        b"\x85": lambda m: m.push_tuple(1),
        b"\x86": lambda m: m.push_tuple(2),
        b"\x87": lambda m: m.push_tuple(3),
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.push(m.since_mark()),
        b"a": lambda m: m.append([m.pop()]),
        b"e": lambda m: m.append(m.since_mark()),
        b"}": lambda m: m.push({}),
        b"d": lambda m: m.push_dict(m.since_mark()),
        b"s": lambda m: m.set_items(m.pop_two()),
        b"u": lambda m: m.set_items(m.since_mark()),
        b"\x8f": lambda m: m.push(set()),
        b"\x90": lambda m: m.add_items(m.since_mark()),
        b"\x91": lambda m: m.push(frozenset(map(m.key, m.since_mark()))),
        b"p": lambda m: m.remember(int(m.line()[:20])),
        b"q": lambda m: m.remember(m.number("<B")),
        b"r": lambda m: m.remember(m.number("<I")),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"g": lambda m: m.recall(int(m.line()[:20])),
        b"h": lambda m: m.recall(m.number("<B")),
        b"j": lambda m: m.recall(m.number("<I")),
        b"c": lambda m: m.name(m.line().decode("utf-8"), m.line().decode("utf-8")),
        b"\x93": lambda m: m.name(*m.pop_two()),
        b"R": Machine.reduce,
        b"\x81": Machine.new,
        b"\x92": Machine.new_with_names,
        b"b": Machine.build,
        b"Q": lambda m: m.persistent(m.pop()),
    }.items()
}


# --- plain values -----------------------------------------------------------------------------------------------------


def _as_bytes(machine: Machine, data: Any) -> bytes:
    """Bytes, also as Python 2 spelled them: as a text of latin1."""
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
        raise Damaged("it makes a set of what is no list")
    return set(map(machine.key, machine.copying(items)))


def _frozen(machine: Machine, items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(machine, items))


def _ordered(machine: Machine, pairs: Any = ()) -> OrderedDict:
    if type(pairs) not in (list, tuple):
        raise Damaged("it makes a dictionary of what are no pairs")
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
    """An object as protocols 0 and 1 make it: class, class below it, and the value of that, here a dictionary."""
    if type(what) is not Name or what.text not in _CLASSES:
        raise Damaged("it makes an object of what is no class")
    made = CALLS[what.text](machine)
    if type(made) is InertDict and type(state) is dict:
        machine.fill(made, machine.copying(state).items())
    return made


def _wholes(values: Any) -> tuple[int, ...]:
    """A shape, or the strides of a tensor."""
    if type(values) not in (tuple, list, torch.Size) or len(values) > MOST_AXES:
        raise Damaged("it has a shape that is none")
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


def _byte_order(state: Any) -> str:
    """The one thing that the state of a type says: (3, order, None, None, None, size, alignment, flags)."""
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


def _fill(machine: Machine, array: np.ndarray, state: Any) -> None:
    """The state of an array: (version, shape, type, columns first, bytes)."""
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
    """A view of a storage, which has to lie inside of it and may not be larger."""
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
        raise Damaged("it has a tensor that is none")
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
    """A tensor that had attributes of its own, which are forgotten."""
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
_TORCH_TYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_TENSOR_CLASSES = (Name("torch.Tensor"), Name("torch._tensor.Tensor"), Name("torch.nn.parameter.Parameter"))
_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CLASSES: dict[str, Callable[..., Any]] = {
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
    **_CLASSES,
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
# What may be named and never called.
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
