"""Stack machine for the operations of pickles that weights need. It calls nothing that a pickle names."""

from __future__ import annotations

import codecs
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .pickle_source import Budget, Damaged, PickleSource, refused
from .pickle_values import CALLS, CLASSES, MARKERS, TORCH_TYPES, Inert, InertDict, Kind, Name, byte_order, fill

MOST_STEPS = 600_000  # operations of one pickle; a training file of Swin-L has 200,000
MOST_COPIED = 500_000  # entries that calls copy from one container into another
LONGEST_KEY = 16  # members of a tuple as a key; weights have no such keys
MOST_TUPLE_KEYS = 10_000
LONGEST_NUMBER = 1000  # digits, or bytes, of a whole number
_LARGE = 1 << 16  # bytes from which reading is faster than copying mapped memory


class Machine:
    def __init__(self, source: PickleSource, start: int, end: int, budget: Budget, storage_of: Any, torch_bytes: Any):
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
            act = ACTS.get(code)
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
            raise Damaged("it takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise Damaged("it takes a value from an empty stack")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Damaged("it closes a group that it did not open")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Damaged("it refers to a value that does not exist")
        self.push(self.memo[index])

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
        """Push a string of Python 2, which protocol 0 spells as its repr."""
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
        if full in TORCH_TYPES:
            self.push(TORCH_TYPES[full])
        elif full in CALLS or full in MARKERS:
            self.push(Name(full))
        else:
            raise refused(full)

    def reduce(self) -> None:
        args, what = self.pop(), self.pop()
        if type(what) is not Name or type(args) is not tuple:
            raise Damaged("it calls a value that is not a function")
        if what.text not in CALLS:
            raise refused(what.text)
        self.push(CALLS[what.text](self, *args))

    def new(self) -> None:
        args, what = self.pop(), self.pop()
        if type(what) is not Name or what.text not in CLASSES:
            raise Damaged(f"it makes an object of {what.text if type(what) is Name else 'a value that is not a class'}")
        self.push(CALLS[what.text](self, *args))

    def new_with_names(self) -> None:
        named = self.pop()
        if type(named) is not dict:
            raise Damaged("it calls a value that is not a function")
        self.new()

    def build(self) -> None:
        """Set the state of the topmost object. Arrays and their types have one; that of other objects is dropped."""
        state, target = self.pop(), self.top()
        if type(target) is np.ndarray:
            fill(self, target, state)
        elif type(target) is Kind:
            target.order = byte_order(state)
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
        """Count and return the items that a call is about to copy.

        The limit is needed because a pickle may copy the same large container again and again.
        """
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
        """Return a value that may be a key: its hash is quick, and few other values have the same."""
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


_SCALAR_KEYS = (np.bool_, np.integer, np.str_, np.bytes_)  # no floats, of which many share one hash


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**61 - 1  # beyond, numbers with the same hash are easy to find
    return type(value) in (str, bytes, float, bool, type(None))


_STOP = ord(".")
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
ACTS: dict[int, Callable[[Machine], Any]] = {
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
