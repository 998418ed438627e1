"""Spoil bytes, trees of plain values and JSON: what the mutators of weights, archives and servers share."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 5, 7, 8, 63, 64, 65, 255, 256, 1000, 1023, 4096, 10_000, 65_535, 65_536, 99_999, 100_000),
    *(1_000_000, 10**8, 2**31 - 1, 2**31, 2**32, 2**48, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**400),
    *(0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e-8, 1e8, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
OTHERS: tuple[Any, ...] = (
    *(
        True,
        False,
        None,
        "",
        "0",
        "1",
        "-1",
        "1e9",
        "nan",
        "null",
        "a",
        "\0",
        "\ud800",
        "\u202e\x1b[31m",
        "../../x",
        "/",
    ),
    *("é" * 300, "x" * 100_000, "builtins:eval", "os:system", "swin", "resnet", "timm", "plain", "masked", "fpn"),
    *([], {}, [[]], [None], [0] * 5, [1, 2, 3, 4], [10**9] * 4, list(range(1001)), {"": None}, {"a": {"b": {}}}),
)


DEEPEST = 30  # levels of a tree that are changed; an earlier change may have put in hundreds


def spoil_bytes(rng: random.Random, data: bytes, *, start: int = 0) -> tuple[str, bytes]:
    """Return a description and `data` with one to three changes from the byte `start` on."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        word, data = _spoil_once(rng, data, min(start, len(data)))
        done.append(word)
    return ", ".join(done), data


def _spoil_once(rng: random.Random, data: bytes, start: int) -> tuple[str, bytes]:
    way = rng.choice(("flip", "byte", "number", "number", "cut", "drop", "twice", "insert", "zero", "tail", "swap"))
    at = rng.randint(start, max(start, len(data) - 1))
    if rng.random() < 0.4:  # most of the structure is at the beginning and at the end
        at = rng.choice((min(len(data), start + rng.randrange(600)), max(start, len(data) - rng.randrange(600))))
    size = min(rng.choice((1, 2, 4, 8, 30, 1000)), len(data) - at)
    made = {
        "flip": lambda: (
            data[:at] + bytes(each ^ (1 << rng.randrange(8)) for each in data[at : at + 1]) + data[at + 1 :]
        ),
        "byte": lambda: data[:at] + rng.randbytes(min(1, size)) + data[at + 1 :],
        "number": lambda: _with_number(rng, data, at),
        "cut": lambda: data[:at],
        "drop": lambda: data[:at] + data[at + size :],
        "twice": lambda: data[: at + size] + data[at:],
        "insert": lambda: data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:],
        "zero": lambda: data[:at] + bytes(size) + data[at + size :],
        "tail": lambda: data + rng.choice((b"\0", b"\n", rng.randbytes(100), data[:1000])),
        "swap": lambda: data[:at] + data[at + size : at + 2 * size] + data[at : at + size] + data[at + 2 * size :],
    }[way]()
    return f"{way} at {at}", made


def _with_number(rng: random.Random, data: bytes, at: int) -> bytes:
    form = rng.choice(("<B", "<H", "<I", "<Q", ">I", ">Q"))
    most = 256 ** struct.calcsize(form) - 1
    value = rng.choice((0, 1, most, most // 2, most // 2 + 1, most - 1, rng.randint(0, most), 1 << 20, 1 << 30)) & most
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def odd_value(rng: random.Random, before: Any = None) -> Any:
    """Return a value that a reader may not expect in the place of `before`."""
    if rng.random() < 0.15:
        return _deep(rng.choice((20, 90, 300, 900)))
    if isinstance(before, int | float) and not isinstance(before, bool) and rng.random() < 0.3:
        return rng.choice((before + 1, before - 1, before * 2, before * 1000, -before, float(before), str(before)))
    return copy.deepcopy(rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS))


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def places(tree: Any, above: tuple = ()) -> list[tuple]:
    """Return the path of every value below the top of a tree, down to `DEEPEST`."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((*above, key))
        found += places(value, (*above, key)) if len(above) < DEEPEST else []
    return found


def spoil_tree(rng: random.Random, tree: Any, *, odd: Any = odd_value) -> tuple[str, Any]:
    """Return a description and a copy of a tree with one to three changes. `odd` makes values from (rng, before)."""
    tree, done = copy.deepcopy(tree), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = places(tree)
        if not paths or rng.random() < 0.02:
            tree = odd(rng, tree)
            done.append("all of it")
            continue
        path = rng.choice(paths)
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        done.append(f"{_spoil_entry(rng, holder, path[-1], odd)} {'.'.join(map(str, path))}"[:200])
    return ", ".join(done), tree


def _spoil_entry(rng: random.Random, holder: Any, key: Any, odd: Any) -> str:
    way = rng.choice(("set", "set", "set", "set", "remove", "rename", "repeat", "wrap"))
    if way == "set":
        holder[key] = odd(rng, holder[key])
    elif way == "remove":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[rng.choice(("", "name", "type", f"{key}.", f"{key}2", "x" * 3000, "\ud800"))] = holder.pop(key)
    elif way == "repeat" and isinstance(holder[key], list):
        is_short = len(str(holder[key])) < 200  # else repeats of repeats fill the memory
        holder[key] = holder[key] * rng.choice((0, 2, 2000 if is_short else 3))
    else:
        holder[key] = rng.choice(([holder[key]], {"x": holder[key]}, str(holder[key])))
    return way


def spoil_json(rng: random.Random, tree: Any, *, odd: Any = odd_value) -> tuple[str, bytes]:
    """Return a description and a text of JSON: a spoiled tree, or a spoiled text of a good one."""
    if rng.random() < 0.8:
        done, tree = spoil_tree(rng, tree, odd=odd)
        return done, json_bytes(tree)
    text = json_bytes(tree)
    way = rng.choice(("bytes", "bytes", "utf-16", "mark", "digits", "deep", "twice", "empty", "html", "infinite"))
    made = {
        "bytes": lambda: spoil_bytes(rng, text)[1],
        "utf-16": lambda: text.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig"))),
        "mark": lambda: b"\xef\xbb\xbf" * 2 + text,
        "digits": lambda: text.replace(b": 1", b": 1" + b"0" * rng.choice((100, 4000, 5000)), 1),
        "deep": lambda: text[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "twice": lambda: text[:-1] + b"," + text[1:],
        "empty": lambda: rng.choice((b"", b" ", b"null", b"[]", b"{}", b'""', b"0", b"\0" * 100)),
        "html": lambda: b"<!doctype html><html><body>404</body></html>",
        "infinite": lambda: text.replace(b": 1", b": -Infinity", 1).replace(b": 2", b": 1e999", 1),
    }[way]()
    return f"json {way}", made


def json_bytes(tree: Any) -> bytes:
    """Return JSON, also of what JSON has no number for."""
    return json.dumps(tree).encode()
