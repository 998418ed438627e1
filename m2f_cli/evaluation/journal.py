"""Journal of an evaluation: pictures.jsonl, one line for each image that was scored.

    {"header": {…}}                                                       what was evaluated, and how
    {"name", "number", "seconds", "metrics": {metric: state}}             a scored image
    {"name", "number", "seconds", "error": "…"}                           one that could not be scored

`number` is the image's index in its split, from 0; a state is what `Metric.restore` takes. A line is written when its
image is done, so that an evaluation can stop at any time. Half a line at the end comes from a process that was killed,
and is ignored. Further processes of one evaluation write pictures.1.jsonl and so on, until all are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, DataError
from ..runtime.files import atomic
from ..runtime.jsonl import JsonLines, parse, whole_bytes, whole_lines
from ..runtime.text import json_text

NAME, SUFFIX = "pictures.jsonl", ".jsonl"
Line = dict[str, Any]


def journal_of(folder: Path, rank: int = 0, name: str = NAME) -> Path:
    return folder / (f"{name.removesuffix(SUFFIX)}.{rank}{SUFFIX}" if rank else name)


def is_begun(folder: Path) -> bool:
    """Return True if a folder holds an evaluation, however little of it."""
    return bool(_journals(folder))


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a journal.

    Raises:
        DataError: the file is no journal.
    """
    _, first = next(whole_lines(path), (0, b""))
    return _parsed(first, path, "header")["header"]


def read(path: Path) -> Iterator[Line]:
    """Yield the images of a journal, in the order of the file.

    Raises:
        DataError: a line is damaged, other than half a line at the end.
    """
    return (line for _, line in _places(path))


def finished(folder: Path) -> set[int]:
    """Return the numbers of the images that were scored; those that failed are worth another try."""
    path = journal_of(folder)
    return {line["number"] for line in read(path) if "error" not in line} if path.is_file() else set()


@contextmanager
def appending(path: Path, header: dict[str, Any]) -> Iterator[Callable[[Line], int]]:
    """Open a journal, or start one, and give the function that adds a line.

    Raises:
        M2FError: the file cannot be written.
    """
    with JsonLines(path, compact=True) as lines:
        if not lines.size:
            lines.append({"header": header})
        yield lines.append


def check_header(folder: Path, header: dict[str, Any]) -> None:
    """Refuse to go on with another evaluation than that of the folder.

    Raises:
        ConfigError: the headers differ; the message says in what.
        DataError: a journal is damaged.
    """
    for path in _journals(folder):
        if not whole_bytes(path):  # its process was killed before the first line was complete
            continue
        old = read_header(path)
        for key, new in header.items():
            if old.get(key) != new:
                raise ConfigError(
                    f"{folder} holds an evaluation with {key} {_short(old.get(key))}, not {_short(new)}.",
                    hint="Choose another --out, or evaluate as it was begun.",
                )


def consolidate(folder: Path, header: dict[str, Any], name: str = NAME) -> None:
    """Put the journals of all processes into one, a line for each image, in the order of the split.

    Of several lines about one image, one with a score is kept.
    """
    whole = journal_of(folder, name=name)
    paths = [path for path in _journals(folder, name) if whole_bytes(path)]
    if not paths:
        return
    chosen: dict[int, _Place] = {}
    in_order = len(paths) == 1
    for path in paths:
        last = -1
        for place, line in _places(path):
            number = line["number"]
            in_order &= number > last
            last = number
            if "error" not in line or number not in chosen:
                chosen[number] = place
    if in_order and paths[0] == whole:
        return
    with atomic(whole) as part:
        with JsonLines(part, compact=True) as lines:
            lines.append({"header": header})
        with part.open("ab") as file:
            file.writelines(_raw([chosen[number] for number in sorted(chosen)], paths))
    for path in _journals(folder, name):
        if path != whole:
            path.unlink()


class _Place(NamedTuple):
    path: Path
    offset: int


def _journals(folder: Path, name: str = NAME) -> list[Path]:
    """Return the journals of all processes, that of the first process first."""
    others = folder.glob(f"{name.removesuffix(SUFFIX)}.*{SUFFIX}")
    return [path for path in (journal_of(folder, name=name), *sorted(others)) if path.is_file()]


def _places(path: Path) -> Iterator[tuple[_Place, Line]]:
    for offset, raw in whole_lines(path):
        if offset:  # the first line is the header
            yield _Place(path, offset), _parsed(raw, path, "name", "number")


def _raw(places: Iterable[_Place], paths: Iterable[Path]) -> Iterator[bytes]:
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb")) for path in paths}
        for path, offset in places:
            files[path].seek(offset)
            yield files[path].readline()


def _parsed(raw: bytes, path: Path, *keys: str) -> Line:
    try:
        line = parse(raw)
    except ValueError:
        return _refuse(path)
    kinds = {"name": str, "number": int, "header": dict}
    fits = isinstance(line, dict) and all(type(line.get(key)) is kinds[key] for key in keys)
    fits = fits and ("number" not in keys or line["number"] >= 0)
    return line if fits else _refuse(path)


def _refuse(path: Path) -> Line:
    raise DataError(f"The journal {path} is damaged.", hint="Choose another --out, and evaluate again.")


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
