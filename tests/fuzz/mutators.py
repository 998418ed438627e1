"""Mutators of bytes, trees of JSON or YAML, lines, and whole folders. Each tells in a few words what it did."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

HUGE = 10**30
NUMBERS = (0, -1, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63, -(2**63) - 1, HUGE)
FLOATS = (0.5, -0.0, 1e-320, 1e308, -1e308, 1e17, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "1e999",
    "nan",
    "null",
    "no",
    "\x00",
    "a\x00b",
    "\x1b[2J\x07",
    "\u202egnp.a",
    "\ud800",
    "é" * 300,
    "x" * 5000,
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "..",
    ".",
    "~/x",
    "C:\\x\\y",
    "a\\b",
    "a\nb",
    "os:system",
    "9" * 5000,
    "${HOME}",
    "1_000",
    "٣",
    "²",
    "=1+1",
    "<b>",
)
# Parts of a text that JSON cannot say as a value: they are put in place of a marker.
RAW_JSON = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1" + "0" * 5000,
    "1e99999",
    "-" + "9" * 400,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "[" * 200_000,
    '"\\ud800"',
    '"\\u0000"',
    "01",
    "0x1f",
    "'a'",
    "undefined",
    '{"id": 1, "id": 2}',
    "",
)
RAW_YAML = (
    ".nan",
    ".inf",
    "-.inf",
    "1" + "0" * 5000,
    "1e999",
    "[" * 3000 + "]" * 3000,
    "{a: " * 500 + "1" + "}" * 500,
    "!!python/object/apply:os.system [ls]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!timestamp 2024-02-31",
    "2024-01-01",
    "2024-02-31",
    "12:30:45",
    "0o17",
    "0b1",
    "*nothing",
    "&a [*a]",
    "&a {<<: *a}",
    "{<<: [1, 2]}",
    "{<<: 3}",
    "{a: 1, a: 2}",
    "{[1, 2]: 3}",
    "{{a: 1}: 3}",
    "? [1]",
    "'",
    '"\\ud800"',
    '"\\x00"',
    "|\n  a\n b",
    "%YAML 9.9",
    "--- 1\n--- 2",
    "1__",
    "0x",
    "~",
    "yes",
    "",
)
_MARK = "@@raw@@"
_ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "utf-16-le", "latin-1", "cp1252", "gbk")


def value(rng: random.Random) -> Any:
    """Return a value of any type, mostly an odd one."""
    pick = rng.randrange(10)
    if pick < 3:
        return rng.choice(NUMBERS)
    if pick < 5:
        return rng.choice(FLOATS)
    if pick < 7:
        return rng.choice(TEXTS)
    if pick < 8:
        return rng.choice([None, True, False])
    parts = [None, {}, [], [[]], [{}], [None], {"": None}, [1, "a"], {"a": {"b": [1]}}, [0] * 3, [[0, 0]] * 4]
    return copy.deepcopy(rng.choice([*parts, [0] * 10_000, [[]] * 1000, {str(i): i for i in range(1000)}]))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of each value in a tree."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def mutate_tree(rng: random.Random, tree: Any) -> tuple[str, Any]:
    """Change one to three values of a tree of plain values."""
    tree, done = copy.deepcopy(tree), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(tree)
        if not places or rng.random() < 0.02:
            tree = value(rng)
            done.append("another root")
            continue
        node, key = rng.choice(places)
        done.append(f"{_change(rng, node, key, places)} at {str(key)[:30]!r}")
    return ", ".join(done), tree


def _change(rng: random.Random, node: Any, key: Any, places: list[tuple[Any, Any]]) -> str:
    old, pick = node[key], rng.randrange(20)
    if pick < 2:
        del node[key]
        return "deleted"
    if pick == 2:
        other, there = rng.choice(places)
        node[key] = copy.deepcopy(other[there]) if _size(other[there]) < 2000 else None
        return "copied"
    if pick == 3 and isinstance(node, dict):
        node[rng.choice([*TEXTS, str(key) + " ", str(key).upper()])] = node.pop(key)
        return "renamed"
    if pick == 4 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), copy.deepcopy(old))
        return "repeated"
    if pick == 5:
        node[key] = [old] if rng.random() < 0.5 else {"a": old}
        return "wrapped"
    if pick == 6 and isinstance(node, dict):
        node[rng.choice(["extra", "id", "name", "", "__class__"])] = value(rng)
        return "added"
    if pick < 10 and isinstance(old, (int, float)) and not isinstance(old, bool):
        choices: list[Any] = [-old, old + 1, old - 1, float(old), str(old), old * 1000, bool(old), old / 3, -old - 1]
        node[key] = rng.choice(choices)
        return "another number"
    if pick < 10 and isinstance(old, str):
        node[key] = rng.choice([old[:-1], old + old, old.upper(), f" {old}", f"{old}\x00", f"../{old}", old[::-1]])
        return "another text"
    if pick < 10 and isinstance(old, list):
        node[key] = rng.choice([old[:1], old[1:], old[::-1], old * 2, old[:-1], [old, old]])
        return "another list"
    if pick < 12:
        node[key] = _MARK
        return "raw text"
    node[key] = value(rng)
    return "another value"


def _size(tree: Any) -> int:
    return 1 + len(_places(tree))


def mutate_bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Change bytes, more often near the beginning, where headers are."""
    data, pick = bytearray(content), rng.randrange(12)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
    at = rng.randrange(reach) if reach else 0
    if not data or pick == 0:
        return "random bytes", rng.randbytes(rng.choice([0, 1, 3, 64, 1000]))
    if pick < 4:
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            data[rng.randrange(reach)] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
        return "bytes changed", bytes(data)
    if pick < 6:
        return f"cut at {at}", bytes(data[:at])
    if pick == 6:
        data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 100]))
        return f"bytes put in at {at}", bytes(data)
    if pick == 7:
        del data[at : at + rng.choice([1, 2, 4, 30])]
        return f"bytes left out at {at}", bytes(data)
    if pick == 8:
        size, order = rng.choice([2, 4, 4, 8]), rng.choice(["little", "big"])
        number = rng.choice([0, 1, 0x7F, 0xFF, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
        return f"number {number} at {at}", bytes(data)
    if pick == 9:
        length = rng.choice([4, 16, 200])
        other = rng.randrange(len(data))
        data[at : at + length] = data[other : other + length]
        return f"bytes from {other} at {at}", bytes(data)
    if pick == 10:
        data[at : at + 400] = bytes(len(data[at : at + 400]))
        return f"zeros at {at}", bytes(data)
    return "twice", bytes(data) * 2


def mutate_lines(rng: random.Random, text: str) -> tuple[str, str]:
    """Change lines or words of a text."""
    lines = text.split("\n")
    at, pick = rng.randrange(len(lines)), rng.randrange(8)
    words = lines[at].split(" ")
    if pick == 0:
        del lines[at]
    elif pick == 1:
        lines.insert(at, rng.choice(lines))
    elif pick == 2:
        lines[at] = lines[at] * rng.choice([2, 1000])
    elif pick == 3:
        lines[at] = str(rng.choice([*TEXTS, *RAW_JSON[:4]]))
    elif pick == 4:
        lines[at] = rng.choice([",", "\t", ";", "  ", "\x85", "\u2028", "\r"]).join(words)
    elif pick == 5:
        del words[rng.randrange(len(words))]
        lines[at] = " ".join(words)
    else:
        words[rng.randrange(len(words))] = str(value(rng))[:6000]
        lines[at] = " ".join(words)
    return f"line {at}", "\n".join(lines)


def mutate_json(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    what, tree = mutate_tree(rng, json.loads(content))
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.9)
    return what, encode(rng, text.replace(f'"{_MARK}"', rng.choice(RAW_JSON)))


def mutate_jsonl(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], rng.choice([lines[at], b"", b"\n", lines[at] * 2])
        return f"line {at} moved", b"".join(lines)
    what, line = mutate_json(rng, lines[at])
    lines[at] = line + rng.choice([b"\n"] * 8 + [b"", b"\r\n"])
    return f"line {at}: {what}", b"".join(lines)


def mutate_yaml(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    what, tree = mutate_tree(rng, yaml.safe_load(content))
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.9)
    return what, encode(rng, text.replace(f"'{_MARK}'", rng.choice(RAW_YAML)))


def encode(rng: random.Random, text: str) -> bytes:
    """Encode text, mostly in UTF-8."""
    encoding = rng.choice(_ENCODINGS) if rng.random() < 0.04 else "utf-8"
    return text.encode(encoding, "replace" if encoding not in ("utf-8", "utf-8-sig") else "surrogatepass")


_BY_SUFFIX: dict[str, Callable[[random.Random, bytes], tuple[str, bytes]]] = {
    ".json": mutate_json,
    ".jsonl": mutate_jsonl,
    ".yaml": mutate_yaml,
    ".txt": lambda rng, content: _encoded(rng, *mutate_lines(rng, content.decode())),
}


def _encoded(rng: random.Random, what: str, text: str) -> tuple[str, bytes]:
    return what, encode(rng, text)


def mutate_file(rng: random.Random, name: str, content: bytes) -> tuple[str, bytes]:
    """Change the content of a file by its suffix; now and then its bytes, whatever it is."""
    structured = _BY_SUFFIX.get(Path(name).suffix.lower())
    if structured is None or rng.random() < 0.15:
        return mutate_bytes(rng, content)
    return structured(rng, content)


def mutate_embedded(rng: random.Random, text: str) -> str:
    """Change the bytes of a file that is embedded in a text as base64."""
    return base64.b64encode(mutate_bytes(rng, base64.b64decode(text))[1]).decode()


# --- folders ----------------------------------------------------------------------------------------------------------


class Sample:
    """A folder that is mutated and put right again.

    Args:
        folder: folder of a whole and right sample.
        weights: how often the files with a suffix are chosen, 1 by default.
    """

    def __init__(self, folder: Path, weights: dict[str, float] | None = None):
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        self.names = list(self.content)
        self.weights = [(weights or {}).get(Path(name).suffix, 1.0) for name in self.names]

    def mutate(self, rng: random.Random) -> str:
        """Change a file or two, and return what was done."""
        done = []
        for _ in range(rng.choice([1] * 9 + [2])):
            name = rng.choices(self.names, self.weights)[0]
            path = self.folder / name
            if rng.random() < 0.04:
                done.append(f"{name}: {_replace(rng, path)}")
                continue
            what, content = mutate_file(rng, name, self.content[name])
            remove(path)
            path.write_bytes(content)
            done.append(f"{name}: {what}")
        return "; ".join(done)

    def restore(self) -> None:
        """Put the folder right again, without what a reader may have written."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            is_right = (
                path.is_dir() and not path.is_symlink() and any(each.startswith(f"{name}/") for each in self.names)
            )
            if name not in self.content and not is_right:
                remove(path)
        for name, content in self.content.items():
            path = self.folder / name
            if path.is_symlink() or not path.is_file():
                remove(path)
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def remove(path: Path) -> None:
    """Remove a file, a link, a pipe or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(rng: random.Random, path: Path) -> str:
    """Put something that is no ordinary file in the place of one."""
    remove(path)
    what = rng.choice(["missing", "folder", "pipe", "link to itself", "link to a device", "dangling link"])
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to itself":
        path.symlink_to(path)
    elif what == "link to a device":
        path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full"]))
    elif what == "dangling link":
        path.symlink_to("nowhere")
    return what


def folder_mutants(
    make: Callable[[Path], object], *, hand_over: str = "", weights: dict[str, float] | None = None
) -> Callable[[random.Random, Path], Iterator[tuple[str, Path]]]:
    """Return the mutants of a folder that `make` writes.

    Args:
        make: writes a right sample into the folder that it is given.
        hand_over: file in the folder that the reader is given; by default the folder.
        weights: as in `Sample`.
    """

    def mutants(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
        place = folder / "sample"
        place.mkdir()
        make(place)
        sample = Sample(place, weights)
        while True:
            yield sample.mutate(rng), place / hand_over if hand_over else place
            sample.restore()

    return mutants


def file_mutants(
    files: Callable[[], dict[str, bytes]],
) -> Callable[[random.Random, Path], Iterator[tuple[str, Path]]]:
    """Return the mutants of single files: {name: content}."""

    def mutants(rng: random.Random, folder: Path) -> Iterator[tuple[str, Path]]:
        contents = files()
        names = list(contents)
        for number in itertools.count():
            name = rng.choice(names)
            what, content = mutate_file(rng, name, contents[name])
            if rng.random() < 0.1:
                again, content = mutate_bytes(rng, content)
                what = f"{what}, {again}"
            path = folder / str(number) / name  # another path each time: readers may remember one
            path.parent.mkdir()
            path.write_bytes(content)
            yield f"{name}: {what}", path
            shutil.rmtree(path.parent)

    return mutants
